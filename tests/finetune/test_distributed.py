"""Two processes fine-tune what one does."""

import json

import pytest
import torch

from bert.training.log import read_log
from finetune.run import finetune
from tests.bert.training.ranks import together
from tests.bert.training.test_kill import processes  # noqa: F401
from tests.finetune import ranks
from tests.finetune.conftest import weights


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_processes_finetune_what_one_does(
    make_config,
    tmp_path,
    processes,  # noqa: F811
    sharding,
):
    training = {"budget": "9", "evaluate_every": "3", "accumulation": 2}
    two = make_config(training | {"sharding": sharding})
    assert together(processes, ranks.finetune, tmp_path / "ranks", two) == [0, 0]
    one = finetune(make_config(training, out=tmp_path / "one"))
    got, expected = weights(two.out), weights(one.run_dir)
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=0, atol=1e-4)
    for kind, value in (("step", "loss"), ("evaluation", "results")):
        ours, theirs = (
            [record[value] for record in read_log(out / "log.jsonl", kind)]
            for out in (two.out, one.run_dir)
        )
        assert len(ours) > 0
        for mine, other in zip(ours, theirs, strict=True):
            assert mine == pytest.approx(other, abs=1e-4)
    told = json.loads((two.out / "metrics.json").read_text())
    assert told["test"].keys() == one.scores["test"].as_json().keys()
    assert (tmp_path / "ranks" / "stderr-1").read_text() == ""

"""A run in phases, and one that stops on either side of where they meet."""

import itertools
import signal

import pytest
import torch

from bert.training.log import read_log
from bert.training.phases import Phase, phase_at
from bert.training.state import load_checkpoint
from tests.bert.training.toy import Clock, ToyBatches, ToyObjective, run, send

STEPS, ACCUMULATION = 6, 3


class Late(ToyBatches):
    """One sample a micro-batch: another size and another order than ToyBatches."""

    def __getitem__(self, index):
        return self.batch([(7 * index + 3) % 10])


def phases():
    return [Phase("short", 0.5, ToyBatches()), Phase("long", 1.0, Late())]


def seen_of(batches, first, last):
    return [batches[index].ids for index in range(first, last)]


def test_the_phase_follows_from_the_progress():
    names = [phase_at(phases(), p).name for p in (0.0, 0.49, 0.5, 0.99, 1.0)]
    assert names == ["short", "short", "long", "long", "long"]
    # Shares such as ten times 0.1 add up to a little less than 1.
    assert phase_at([Phase("all", 1 - 1e-9, ToyBatches())], 1.0).name == "all"


@pytest.mark.parametrize("workers", [0, 2])
def test_the_index_goes_on_from_phase_to_phase(tmp_path, workers, capsys):
    objective = ToyObjective()
    run(tmp_path, objective, batches=phases(), loader_workers=workers)
    assert objective.seen == [*seen_of(ToyBatches(), 0, 9), *seen_of(Late(), 9, 18)]
    said = capsys.readouterr().err
    assert "step 0: phase short" in said and "step 3: phase long" in said
    tokens = [record["tokens"] for record in read_log(tmp_path / "log.jsonl", "step")]
    assert tokens[-1] == sum(map(sum, objective.seen)) + sum(map(len, objective.seen))


@pytest.mark.parametrize("budget", ["6", "200tok"])
def test_stopped_in_any_micro_batch_it_ends_bit_equal(tmp_path, budget):
    whole = ToyObjective()
    result = run(tmp_path / "whole", whole, batches=phases(), budget=budget)
    expected = load_checkpoint(result.checkpoint)
    assert len(whole.seen[-1]) == 1, "the second phase was reached"
    for at in range(1, len(whole.seen) + 1):
        calls = itertools.count(1)

        def stop(batch, calls=calls, at=at):
            if next(calls) == at:
                send(signal.SIGTERM)

        run_dir, first, second = tmp_path / str(at), ToyObjective(before=stop), ToyObjective()
        stopped = run(run_dir, first, batches=phases(), budget=budget)
        assert stopped.step == at // ACCUMULATION
        result = run(run_dir, second, batches=phases(), budget=budget)
        assert first.seen[: ACCUMULATION * stopped.step] + second.seen == whole.seen
        final = load_checkpoint(result.checkpoint)
        assert final.state.tokens == expected.state.tokens
        for name, tensor in expected.parameters.items():
            assert torch.equal(final.parameters[name], tensor), name


def test_by_the_clock_as_well(tmp_path):
    """Each micro-batch takes a second; the time between stop and start doesn't count."""
    finals = []
    for stops in ((), (4, 9, 10, 11)):
        run_dir, taken, clock = tmp_path / str(len(stops)), [], Clock()

        def tick(batch, taken=taken, stops=stops, clock=clock):
            clock.now += 1.0
            taken.append(batch.ids)
            if len(taken) in stops:
                send(signal.SIGTERM)

        for _ in range(len(stops) + 1):
            result = run(
                run_dir,
                ToyObjective(before=tick),
                batches=phases(),
                budget="20s",
                accumulation=1,
                clock=clock,
            )
            clock.now += 1000.0
        assert result.interrupted is None
        assert taken == [*seen_of(ToyBatches(), 0, 10), *seen_of(Late(), 10, 20)]
        finals.append(load_checkpoint(result.checkpoint))
    for name, tensor in finals[0].parameters.items():
        assert torch.equal(finals[1].parameters[name], tensor)

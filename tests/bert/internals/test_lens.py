"""The lens: against Hugging Face's head and hidden states, and by what the last layer must be."""

import pytest
import torch
from torch.testing import assert_close

from bert.internals.capture import edit, forward
from bert.internals.lens import hidden_states, lens, state_logits
from bert.packing import pack
from kernels import REFERENCE, TORCH
from tests.bert.internals.tiny import batch_of, both, model_of

ROWS = [2, 0, 9]


@pytest.mark.parametrize("kernels", [TORCH, REFERENCE], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_last_layers_lens_is_the_models_logits(kernels, dtype):
    model, batch = model_of(kernels, dtype), batch_of()
    rows = range(len(batch.input_ids))
    with torch.no_grad():
        last = state_logits(model, hidden_states(model, batch)[-1], rows)
        assert torch.equal(last, forward(model, batch))
    found = lens(model, batch, rows)
    best = last.double().softmax(-1).topk(5)
    assert torch.equal(found.top_ids[-1], best.indices)
    assert_close(found.top_probabilities[-1], best.values)
    assert (found.kl_to_last[-1] == 0).all() and (found.kl_to_last[:-1] > 0).all()
    assert (found.truth_rank[-1] == 1).all() and (found.truth_rank >= 1).all()
    assert torch.equal(found.truth, best.indices[:, 0])


def test_every_layer_against_hugging_faces_head():
    ours, theirs = both()
    ids = torch.randint(1, 61, (1, 12))
    truth = [7, 60, 0]
    found = lens(ours, pack(ids)[0], ROWS, truth, top_k=61)
    with torch.no_grad():
        states = theirs(ids, output_hidden_states=True).hidden_states
        logs = [theirs.cls.predictions(h)[0, ROWS].log_softmax(-1) for h in states]
    assert len(found.top_ids) == len(logs) == 4
    for state, expected in enumerate(logs):
        by_id = torch.empty_like(expected)
        by_id.scatter_(1, found.top_ids[state], found.top_probabilities[state])
        assert_close(by_id, expected.exp(), rtol=1e-8, atol=1e-12)
        for row, token in enumerate(truth):
            order = expected[row].argsort(descending=True).tolist()
            assert found.truth_rank[state, row] == 1 + order.index(token)
            assert_close(found.truth_probability[state, row], expected[row, token].exp())
            kl = torch.nn.functional.kl_div(
                expected[row], logs[-1][row], reduction="sum", log_target=True
            )
            assert_close(found.kl_to_last[state, row], kl, rtol=1e-6, atol=1e-12)


def test_rows_beyond_the_tokenizers_are_never_predicted_and_edits_are_seen():
    model, batch = model_of(), batch_of()
    with torch.no_grad():
        model.mlm_head.bias[50:] = 100
    assert (lens(model, batch, ROWS).top_ids[:, :, 0] >= 50).all()
    assert (lens(model, batch, ROWS, top_k=99, vocab_size=50).top_ids < 50).all()
    plain = lens(model, batch, ROWS, vocab_size=50)
    with edit(model, {"layers.1.output": lambda x: -x}):
        edited = lens(model, batch, ROWS, vocab_size=50)
    assert torch.equal(edited.top_probabilities[:2], plain.top_probabilities[:2])
    assert not torch.equal(edited.top_probabilities[2], plain.top_probabilities[2])


@pytest.mark.errors
def test_mistakes():
    model, batch = model_of(), batch_of()
    for options, error in (
        ({"rows": [24]}, r"^rows\[0\]: expected 0 to 23, got 24$"),
        ({"rows": [0, 1], "truth": [3]}, "^truth: expected 2 tokens, as many as rows, got 1$"),
        ({"rows": [0], "truth": [61]}, r"^truth\[0\]: expected 0 to 60, got 61$"),
        ({"rows": [0], "top_k": 0}, "^top_k: expected 1 or more, got 0$"),
    ):
        with pytest.raises(ValueError, match=error):
            lens(model, batch, **options)

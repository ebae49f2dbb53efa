"""Activation patching: against Hugging Face with its own hooks, and by its two limits."""

import pytest
import torch

from bert.internals.capture import edit, forward, run_captured
from bert.internals.patching import COMPONENTS, patch
from bert.packing import PackedBatch
from tests.bert.internals.tiny import batch_of, both, model_of

ROW, TOKENS = 3, (11, 42)
MODULES = {
    "layer": "bert.encoder.layer.{}",
    "attention": "bert.encoder.layer.{}.attention.output.dense",
    "feed_forward": "bert.encoder.layer.{}.output.dense",
}


def sentences(length=6):
    """Two that differ in two tokens."""
    first = batch_of([length])
    ids = first.input_ids.clone()
    ids[[1, 4]] = torch.tensor([17, 23])
    other = PackedBatch(ids, first.token_type_ids, first.position_ids, first.sequences)
    return first, other


def their_difference(theirs, batch):
    with torch.no_grad():
        output = theirs(batch.input_ids[None], token_type_ids=batch.token_type_ids[None])
    logits = output.prediction_logits[0, ROW]
    return (logits[TOKENS[0]] - logits[TOKENS[1]]).item()


def test_every_patch_against_hugging_face_with_the_vector_put_in():
    ours, theirs = both()
    target, source = sentences()
    found = patch(ours, target, source, ROW, TOKENS)
    plain = their_difference(theirs, target)
    assert found.target == pytest.approx(plain, abs=1e-9)
    assert found.source == pytest.approx(their_difference(theirs, source), abs=1e-9)
    modules, kept = dict(theirs.named_modules()), {}
    handles = [
        modules[name.format(layer)].register_forward_hook(
            lambda _, __, y, key=(component, layer): kept.__setitem__(key, _first(y).clone())
        )
        for component, name in MODULES.items()
        for layer in range(3)
    ]
    their_difference(theirs, source)
    for handle in handles:
        handle.remove()
    assert len(found.patches) == 3 * 3 * 6
    for one in found.patches:

        def put(_, __, y, one=one):
            hidden = _first(y).clone()
            hidden[0, one.position] = kept[one.component, one.layer][0, one.position]
            return hidden if torch.is_tensor(y) else (hidden, *y[1:])

        handle = modules[MODULES[one.component].format(one.layer)].register_forward_hook(put)
        expected = their_difference(theirs, target) - plain
        handle.remove()
        assert one.change == pytest.approx(expected, abs=1e-8), one
    sizes = [abs(one.change) for one in found.patches]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 0.01
    assert found.share(found.source - found.target) == 1 and found.share(0.0) == 0


def _first(output):
    return output if torch.is_tensor(output) else output[0]


def test_heads_are_patched_at_all_positions():
    model = model_of()
    target, source = sentences()
    found = patch(model, target, source, ROW, TOKENS, positions=[])
    assert found.patches == [] and found.heads.shape == (3, 4)
    other = run_captured(model, source)
    for layer, head in ((0, 1), (2, 3)):
        name = f"layers.{layer}.attention.context"

        def put(x, name=name, head=head):
            return torch.cat([x[:, :head], other[name][:, [head]], x[:, head + 1 :]], 1)

        with torch.no_grad(), edit(model, {name: put}):
            logits = forward(model, target)[ROW]
        change = (logits[TOKENS[0]] - logits[TOKENS[1]]).item() - found.target
        assert found.heads[layer, head].item() == pytest.approx(change, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["embeddings.output", *COMPONENTS.values()])
def test_patching_in_everything_reproduces_the_other_run(dtype, name):
    """A half of a layer carries all only together with what it is added to."""
    model = model_of(dtype=dtype)
    target, source = sentences()
    other = run_captured(model, source)
    names = [name.format(1)]
    if not name.endswith("}.output") and "layers" in name:
        names.append("layers.1.input")
    with torch.no_grad():
        with edit(model, {n: lambda _, n=n: other[n] for n in names}):
            assert torch.equal(forward(model, target), other["mlm_head.logits"])
        assert not torch.equal(forward(model, target), other["mlm_head.logits"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_patching_a_run_into_itself_changes_nothing_to_the_bit(dtype):
    target, _ = sentences()
    found = patch(model_of(dtype=dtype), target, target, ROW, TOKENS)
    assert {one.change for one in found.patches} == {0.0}
    assert (found.heads == 0).all() and found.source == found.target


def test_a_sentence_of_one_token_is_carried_by_its_layer_alone():
    model = model_of()
    target, source = batch_of([1]), batch_of([1], seed=8)
    found = patch(model, target, source, 0, TOKENS)
    for one in found.patches:
        if one.component == "layer":
            assert one.change == found.source - found.target


def test_the_tokens_are_the_likeliest_of_each():
    model = model_of()
    target = batch_of([6])
    for seed in range(20):
        source = batch_of([6], seed)
        likeliest = tuple(int(forward(model, b)[ROW].argmax()) for b in (source, target))
        if likeliest[0] != likeliest[1]:
            break
    assert patch(model, target, source, ROW, positions=[]).tokens == likeliest


@pytest.mark.errors
def test_mistakes():
    model = model_of()
    target, source = sentences()
    for arguments, error in (
        ((target, batch_of([5]), 0), "^source: expected 6 tokens, as many as target, got 5$"),
        ((batch_of([2, 4]), source, 0), "^target: expected one sequence, got 2$"),
        ((target, source, 6), "^row: expected 0 to 5, got 6$"),
        ((target, source, 0, (1, 61)), "^tokens: expected 0 to 60, got 61$"),
        ((target, source, 0, (1, 2), [0, -1]), "^positions: expected 0 to 5, got -1$"),
        ((target, target, 0), "^tokens: expected two, since both sentences' likeliest at 0 is"),
    ):
        with pytest.raises(ValueError, match=error):
            patch(model, *arguments)

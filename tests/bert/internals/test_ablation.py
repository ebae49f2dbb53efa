"""Ablation: against Hugging Face with its own hooks, and by what it must not change."""

import math

import pytest
import torch

from bert import Tokenizer
from bert.internals.ablation import ablate, loss_with
from bert.internals.capture import without_heads
from bert.internals.hooks import hook_names
from bert.internals.masked_text import MaskedBatch, mask_texts
from tests.bert.internals.tiny import batch_of, both, model_of

WORDS = "the cat sat on mat and dog ran".split()
TEXTS = ["The cat sat on the mat.", "", "a dog", "the dog and the cat ran and ran " * 9]


@pytest.fixture(scope="module")
def tokenizer():
    letters = "abcdefghijklmnopqrstuvwxyz."
    pieces = [*letters, *("##" + letter for letter in letters)]
    return Tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *pieces])


def masked_batches():
    first = MaskedBatch(batch_of([7, 3]), torch.tensor([1, 4, 5, 8]), torch.tensor([7, 8, 9, 60]))
    second = MaskedBatch(batch_of([6], seed=5), torch.tensor([2]), torch.tensor([30]))
    return [first, second]


def their_loss(theirs, batches):
    """Sequence by sequence, without our packing."""
    losses = []
    for batch in batches:
        labels = torch.full_like(batch.packed.input_ids, -100)
        labels[batch.positions] = batch.labels
        lengths = batch.packed.sequences.lengths
        for ids, types, answers in zip(
            batch.packed.input_ids.split(lengths),
            batch.packed.token_type_ids.split(lengths),
            labels.split(lengths),
            strict=True,
        ):
            with torch.no_grad():
                logits = theirs(ids[None], token_type_ids=types[None]).prediction_logits[0]
            for row, answer in enumerate(answers.tolist()):
                if answer != -100:
                    losses.append(-logits[row].log_softmax(-1)[answer].item())
    return sum(losses) / len(losses)


def skip(_, inputs, output):
    return inputs[0] if torch.is_tensor(output) else (inputs[0], *output[1:])


def test_each_part_against_hugging_face_without_it():
    ours, theirs = both()
    batches = masked_batches()
    found = ablate(ours, batches)
    plain = their_loss(theirs, batches)
    assert found.loss == pytest.approx(plain, rel=1e-9) and found.masked == 5
    modules = dict(theirs.named_modules())

    def change(module, hook, before=False):
        register = "register_forward_pre_hook" if before else "register_forward_hook"
        handle = getattr(modules[module], register)(hook)
        try:
            return their_loss(theirs, batches) - plain
        finally:
            handle.remove()

    for layer in range(3):
        name = f"bert.encoder.layer.{layer}"
        for head in range(4):

            def without(_, inputs, head=head):
                context = inputs[0].clone()
                context[..., 8 * head : 8 * head + 8] = 0
                return (context,)

            expected = change(f"{name}.attention.output.dense", without, before=True)
            assert found.heads[layer, head].item() == pytest.approx(expected, abs=1e-8)
        for part, values in (("attention", found.attention), ("", found.feed_forward)):
            module = ".".join(filter(None, (name, part, "output.dense")))
            expected = change(module, lambda _, __, y: torch.zeros_like(y))
            assert values[layer].item() == pytest.approx(expected, abs=1e-8)
        expected = change(name, skip)
        assert found.layers[layer].item() == pytest.approx(expected, abs=1e-8)
    assert (found.heads.abs() > 1e-6).all() and (found.layers.abs() > 1e-6).all()
    ranked = found.ranked_heads()
    assert len(ranked) == 12 and ranked[0][2] == found.heads.max().item()
    assert all(found.heads[layer, head].item() == change for layer, head, change in ranked)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ablating_nothing_changes_nothing_to_the_bit(dtype):
    model, batches = model_of(dtype=dtype), masked_batches()
    plain = loss_with(model, batches, {})
    assert loss_with(model, batches, {"layers.*.attention.context": without_heads([])}) == plain
    assert loss_with(model, batches, {name: _same for name in hook_names(model)}) == plain
    assert ablate(model, batches).loss == plain
    one = {"layers.1.attention.context": without_heads([2])}
    change = loss_with(model, batches, one) - plain
    assert ablate(model, batches).heads[1, 2].item() == pytest.approx(change, abs=1e-12)


def _same(x):
    return x


def test_a_head_that_writes_nothing_is_worth_nothing():
    model = model_of()
    with torch.no_grad():
        model.bert.encoder.layers[1].attention.output.weight[:, 16:24] = 0
    heads = ablate(model, masked_batches()).heads
    assert heads[1, 2] == 0
    assert (heads != 0).sum() == 11


# --- the text --------------------------------------------------------------------------------


def test_masked_texts_are_the_texts_with_masks(tokenizer):
    batches = mask_texts(TEXTS, tokenizer, max_length=20, tokens=24)
    assert [batch.packed.sequences.lengths for batch in batches] == [(9, 4), (20,)]
    texts = iter(text for text in TEXTS if text)
    for batch in batches:
        ids = batch.packed.input_ids.clone()
        assert (ids[batch.positions] == tokenizer.mask_id).all()
        assert (ids == tokenizer.mask_id).sum() == len(batch.labels)
        ids[batch.positions] = batch.labels
        for row, masked in zip(
            ids.split(batch.packed.sequences.lengths),
            batch.packed.input_ids.split(batch.packed.sequences.lengths),
            strict=True,
        ):
            assert row.tolist() == tokenizer.encode(next(texts), max_length=20).ids
            inside = len(row) - 2
            assert (row != masked).sum() == max(1, round(0.15 * inside))
    again, other = (mask_texts(TEXTS, tokenizer, seed=seed, tokens=24) for seed in (0, 1))
    assert torch.equal(again[0].positions, batches[0].positions)
    assert any(
        not torch.equal(a.positions, b.positions) for a, b in zip(again, other, strict=True)
    )


def test_an_untrained_model_loses_about_what_guessing_does(tokenizer):
    from bert import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(vocab_size=tokenizer.vocab_size, hidden_size=16, num_hidden_layers=1,
                        num_attention_heads=2, intermediate_size=16)  # fmt: skip
    found = ablate(BertForMaskedLM(config).eval(), mask_texts(TEXTS, tokenizer))
    assert found.loss == pytest.approx(math.log(tokenizer.vocab_size), abs=0.1)
    assert found.heads.abs().max() < 0.1


@pytest.mark.errors
def test_no_text(tokenizer):
    with pytest.raises(ValueError, match="^texts: expected at least one with a token, got none$"):
        mask_texts(["", " "], tokenizer)

"""Capture and edits: against Hugging Face's modules and hooks, and by what mustn't change."""

import copy
import dataclasses
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from bert import Bert, BertForSequenceClassification, BertForTokenClassification
from bert.internals.capture import capture, edit, forward, run_captured, without_heads
from bert.internals.distance import distance_from_reference
from bert.internals.hooks import HOOKS, expand, hook, hook_names
from kernels import REFERENCE, TORCH
from tests.bert.internals.tiny import CONFIG, LENGTHS, batch_of, both, model_of

SETS = pytest.mark.parametrize("kernels", [TORCH, REFERENCE], ids=str)

# Where Hugging Face's model has a module that returns the same tensor.
THEIRS = {
    "embeddings.word": "bert.embeddings.word_embeddings",
    "embeddings.token_type": "bert.embeddings.token_type_embeddings",
    "embeddings.output": "bert.embeddings",
    "layers.{}.attention.query": "bert.encoder.layer.{}.attention.self.query",
    "layers.{}.attention.key": "bert.encoder.layer.{}.attention.self.key",
    "layers.{}.attention.value": "bert.encoder.layer.{}.attention.self.value",
    "layers.{}.attention.output": "bert.encoder.layer.{}.attention.output.dense",
    "layers.{}.attention.normalised": "bert.encoder.layer.{}.attention.output",
    "layers.{}.feed_forward.pre_activation": "bert.encoder.layer.{}.intermediate.dense",
    "layers.{}.feed_forward.post_activation": "bert.encoder.layer.{}.intermediate",
    "layers.{}.feed_forward.output": "bert.encoder.layer.{}.output.dense",
    "layers.{}.output": "bert.encoder.layer.{}.output",
    "pooler.output": "bert.pooler",
    "mlm_head.pre_activation": "cls.predictions.transform.dense",
    "mlm_head.post_activation": "cls.predictions.transform.transform_act_fn",
    "mlm_head.normalised": "cls.predictions.transform",
    "mlm_head.logits": "cls.predictions",
    "nsp_head.logits": "cls.seq_relationship",
}
PAIRS = [
    (ours.format(layer), theirs.format(layer))
    for ours, theirs in THEIRS.items()
    for layer in (range(3) if "{}" in ours else range(1))
]
# What goes into one of their modules: LayerNorms take the residuals, projections the context.
THEIR_INPUTS = {
    "embeddings.residual": "bert.embeddings.LayerNorm",
    "layers.1.input": "bert.encoder.layer.1.attention.self.query",
    "layers.1.attention.context": "bert.encoder.layer.1.attention.output.dense",
    "layers.1.attention.residual": "bert.encoder.layer.1.attention.output.LayerNorm",
    "layers.1.feed_forward.residual": "bert.encoder.layer.1.output.LayerNorm",
    "mlm_head.input": "cls.predictions.transform.dense",
}


def their_batch():
    ids = torch.randint(1, 61, (3, 13), generator=torch.Generator().manual_seed(8))
    return {"input_ids": ids, "token_type_ids": (torch.arange(13) > 6).long().expand(3, -1)}


def test_every_tensor_is_the_one_that_hugging_faces_module_returns():
    ours, theirs = both()
    found, inputs = {}, their_batch()
    modules = dict(theirs.named_modules())
    handles = [
        modules[their].register_forward_hook(
            lambda _, taken, given, name=name: found.__setitem__(name, given)
        )
        for name, their in PAIRS
    ] + [
        modules[their].register_forward_hook(
            lambda _, taken, given, name=name: found.__setitem__(name, taken[0])
        )
        for name, their in THEIR_INPUTS.items()
    ]
    with torch.no_grad():
        output = theirs(**inputs, output_hidden_states=True, output_attentions=True)
    for handle in handles:
        handle.remove()
    with torch.no_grad(), capture(ours) as cache:
        ours(**inputs)
    for layer, expected in enumerate(output.attentions):
        found[f"layers.{layer}.attention.probabilities"] = expected
        scores = cache[f"layers.{layer}.attention.scores"]
        assert_close(scores.softmax(-1), expected, rtol=0, atol=1e-12)
    for layer, expected in enumerate(output.hidden_states[1:]):
        assert_close(cache[f"layers.{layer}.output"], expected.flatten(0, 1), rtol=0, atol=1e-10)
    position = theirs.bert.embeddings.position_embeddings.weight[:13].repeat(3, 1)
    assert torch.equal(cache["embeddings.position"], position)
    assert len(found) == len(PAIRS) + len(THEIR_INPUTS) + 3
    for name, expected in found.items():
        value = cache[name]
        assert_close(value.reshape(expected.shape), expected, rtol=0, atol=1e-10, msg=name)


# Places of the second layer, and of the heads.
EDITED = [pair for pair in PAIRS if not pair[0].startswith(("embeddings", "layers.0", "layers.2"))]


@pytest.mark.parametrize(("name", "their"), EDITED)
def test_an_edit_does_what_a_hook_on_hugging_faces_module_does(name, their):
    ours, theirs = both()

    def change(x):
        return 0.5 * x + 0.1 * x.roll(1, 0)

    inputs, module = their_batch(), dict(theirs.named_modules())[their]
    handle = module.register_forward_hook(
        lambda _, __, y: change(y.flatten(0, 1) if y.ndim == 3 else y).view(y.shape)
    )
    with torch.no_grad():
        expected, plain = theirs(**inputs), ours(**inputs)
        handle.remove()
        with edit(ours, {name: change}):
            found = ours(**inputs)
    for ending in ("prediction_logits", "seq_relationship_logits"):
        value = getattr(found, ending)
        assert_close(value, getattr(expected, ending), rtol=0, atol=1e-9)
    assert any(
        not torch.equal(getattr(found, e), getattr(plain, e))
        for e in ("prediction_logits", "seq_relationship_logits")
    )


@SETS
def test_looking_changes_nothing_to_the_bit_and_leaves_nothing_behind(kernels):
    model, batch = model_of(kernels, torch.float32), batch_of()
    plain = forward(model, batch)
    before = {name: module.__dict__.get("kernels") for name, module in model.named_modules()}
    with pytest.raises(RuntimeError, match="on purpose"), edit(model, {"layers.*.output": _same}):
        with capture(model) as cache:
            assert torch.equal(forward(model, batch), plain)
            assert sorted(cache) == sorted(hook_names(model))
        raise RuntimeError("on purpose")
    assert torch.equal(cache["mlm_head.logits"], plain)
    for name, module in model.named_modules():
        assert module.__dict__.get("kernels") is before[name]
        assert not module._forward_hooks and not module._forward_pre_hooks
    forward(model, batch_of([2]))
    assert torch.equal(cache["mlm_head.logits"], plain)


def _same(x):
    return x


@SETS
def test_edits_that_change_nothing_change_nothing_to_the_bit(kernels):
    model, batch = model_of(kernels, torch.float32), batch_of()
    with edit(model, {name: _same for name in hook_names(model)}), capture(model) as cache:
        forward(model, batch)
    plain = run_captured(model, batch)
    for name, value in plain.items():
        assert torch.equal(cache[name], value), name
    assert cache.made_by == plain.made_by


@pytest.mark.parametrize(
    "name",
    [name for name in hook_names(model_of()) if not name.startswith(("layers.0", "layers.2"))],
)
def test_an_edit_is_seen_and_acts_on_what_comes_after_alone(name):
    model, batch, names = model_of(), batch_of(), hook_names(model_of())
    plain = run_captured(model, batch)
    noise = torch.rand(plain[name].shape, dtype=torch.float64) * (plain[name] != 0)

    def in_place(x):
        x += noise
        return x

    seen = []
    for change in (lambda x: x + noise, in_place):
        with edit(model, {name: change}), capture(model) as cache:
            forward(model, batch)
        assert torch.equal(cache[name], plain[name] + noise)
        assert cache.made_by[name] == "edit"
        for earlier in names[: names.index(name)]:
            assert torch.equal(cache[earlier], plain[earlier]), earlier
        seen.append(cache["mlm_head.logits"])
    assert torch.equal(*seen)
    ends = name in ("nsp_head.logits", "pooler.output")
    assert ends == torch.equal(seen[0], plain["mlm_head.logits"])


@pytest.mark.parametrize("name", ["embeddings.output", "layers.0.output", "layers.2.output"])
def test_putting_in_all_of_another_run_gives_that_run(name):
    model = model_of(dtype=torch.float32)
    other = run_captured(model, batch_of(seed=9))
    with edit(model, {name: lambda x: other[name]}), capture(model) as cache:
        forward(model, batch_of())
    later = hook_names(model)[hook_names(model).index(name) :]
    for place in later:
        assert torch.equal(cache[place], other[place]), place
    assert not torch.equal(run_captured(model, batch_of())[name], other[name])


def test_attention_to_itself_alone_hands_over_the_values():
    model, batch = model_of(), batch_of()

    def itself(x):
        eyes = [torch.eye(n, dtype=x.dtype) for n in LENGTHS]
        padded = [torch.nn.functional.pad(e, (0, 11 - len(e), 0, 11 - len(e))) for e in eyes]
        return torch.stack(padded)[:, None].expand_as(x).clone()

    with edit(model, {"layers.1.attention.probabilities": itself}), capture(model) as cache:
        forward(model, batch)
    context, value = cache["layers.1.attention.context"], cache["layers.1.attention.value"]
    assert torch.equal(context, value)
    assert cache.made_by["layers.1.attention.context"] == "REFERENCE"
    assert cache.made_by["layers.2.attention.context"] == "TORCH"


@SETS
def test_each_sequence_is_what_it_would_be_alone(kernels):
    model, batch = model_of(kernels), batch_of()
    cache = run_captured(model, batch)
    for index in range(len(LENGTHS)):
        start = sum(LENGTHS[:index])
        part = slice(start, start + LENGTHS[index])
        alone = dataclasses.replace(
            batch,
            input_ids=batch.input_ids[part],
            token_type_ids=batch.token_type_ids[part],
            position_ids=batch.position_ids[part],
            sequences=type(batch.sequences).from_lengths([LENGTHS[index]]),
        )
        own = run_captured(model, alone)
        for name in cache:
            of_it = cache.of_sequence(name, index)
            assert_close(of_it, own.of_sequence(name), rtol=0, atol=1e-11, msg=name)


def test_what_is_made_beside_is_referenced_and_the_table_says_so():
    cache = run_captured(model_of(), batch_of())
    for name, maker in cache.made_by.items():
        assert maker == ("REFERENCE" if hook(name).is_beside else "TORCH"), name
    reference = run_captured(model_of(REFERENCE), batch_of())
    for layer in range(3):
        name = f"layers.{layer}.attention"
        query, key = reference[f"{name}.query"], reference[f"{name}.key"]
        expected = REFERENCE.attention_probabilities(query, key, reference.sequences)
        assert torch.equal(reference[f"{name}.probabilities"], expected)


def test_gradients_flow_to_what_was_captured_and_through_edits():
    model, batch = model_of(), batch_of()
    with capture(model, ["layers.0.output", "embeddings.word"]) as cache:
        loss = forward(model, batch).square().sum()
    (at_layer,) = torch.autograd.grad(loss, [cache["layers.0.output"]], retain_graph=True)
    assert at_layer.shape == (sum(LENGTHS), 32) and at_layer.abs().min() > 0
    word = cache["embeddings.word"].detach().requires_grad_()
    with edit(model, {"embeddings.word": lambda _: word}):
        forward(model, batch).square().sum().backward()
    step = torch.randn_like(word) * 1e-6
    with torch.no_grad():
        ends = []
        for sign in (1, -1):
            with edit(model, {"embeddings.word": lambda x, s=sign: x + s * step}):
                ends.append(forward(model, batch).square().sum())
    assert_close((ends[0] - ends[1]) / 2, (word.grad * step).sum(), rtol=1e-5, atol=0)


def test_other_models_and_their_ends():
    batch = batch_of()
    ends = {Bert: "pooler.output", BertForSequenceClassification: "classifier.logits"}
    for model_class, end in ends.items():
        model = model_of(model_class=model_class)
        cache = run_captured(model, batch)
        assert list(cache)[-1] == end and sorted(cache) == sorted(hook_names(model))
        assert not any(name.startswith("mlm_head") for name in cache)
    tagged = run_captured(model_of(model_class=BertForTokenClassification), batch)
    assert tagged.of_sequence("classifier.logits", 3).shape == (7, 2)
    model = model_of()
    with capture(model, ("mlm_head.*", "nsp_head.logits")) as cache:
        forward(model, batch)
        positions = torch.tensor([3, 12])
        model.losses(batch, positions, torch.tensor([4, 5]), None)
        assert "mlm_head.logits" not in cache and cache["mlm_head.input"].shape == (2, 32)
    with pytest.raises(ValueError, match=r"^mlm_head.input: expected the batch's 24 tokens as"):
        cache.of_sequence("mlm_head.input")


def test_an_empty_batch_and_an_empty_sequence():
    model = model_of()
    assert run_captured(model, batch_of([3, 0, 2])).of_sequence("layers.0.output", 1).shape[0] == 0
    assert not run_captured(model, batch_of([])).get("layers.1.attention.scores")


def test_patterns():
    names = hook_names(model_of())
    assert expand("layers.*.output", names) == [f"layers.{i}.output" for i in range(3)]
    assert expand(["layers.1.attention.[qk]*", "embeddings.word"], names) == [
        "embeddings.word", "layers.1.attention.query", "layers.1.attention.key",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"got 'layers\.\*'$"):
        expand("layers.*", names)
    assert expand(None, names) == names and expand((), names) == []
    assert len(names) == 5 + 3 * 15 + 1 + 5 + 1
    assert len({hook.name for hook in HOOKS}) == len(HOOKS)


def test_without_heads():
    model = model_of()
    for heads in ((), (1, 3)):
        with edit(model, {"layers.2.attention.context": without_heads(heads)}):
            cache = run_captured(model, batch_of())
        context = cache["layers.2.attention.context"]
        zeros = [head for head in range(4) if (context[:, head] == 0).all()]
        assert zeros == list(heads)


# --- distance --------------------------------------------------------------------------------


def test_the_reference_is_at_no_distance_from_itself_and_torch_at_one_of_roundings():
    batch = batch_of()
    for distance in distance_from_reference(model_of(REFERENCE), batch).values():
        assert distance.difference == 0
    model = model_of(dtype=torch.float32)
    found = distance_from_reference(model, batch)
    truth = forward(copy.deepcopy(model).double(), batch)
    error, largest = (forward(model, batch) - truth).abs().max(), truth.abs().max()
    assert found["mlm_head.logits"] == pytest.approx((error.item(), largest.item()), rel=1e-6)
    assert list(found) == list(run_captured(model_of(), batch))
    assert all(d.difference <= 1e-5 * max(d.largest, 1) for d in found.values())
    assert found["mlm_head.logits"].difference > 0 and found["mlm_head.logits"].largest > 1


def test_a_wrong_kernel_shows_where_it_is():
    def wrong(x, bias, form="erf"):
        return TORCH.bias_gelu(x, bias, form) + 1e-3

    model = model_of(dataclasses.replace(TORCH, name="WRONG", bias_gelu=wrong))
    found = distance_from_reference(model, batch_of())
    off = [name for name, distance in found.items() if distance.difference > 1e-9]
    assert off[0] == "layers.0.feed_forward.post_activation"
    assert found[off[0]].difference == pytest.approx(1e-3)


# --- errors ----------------------------------------------------------------------------------


@pytest.mark.errors
def test_mistakes():
    model, batch = model_of(), batch_of()
    hint = r"^names: expected names of this model's hooks .*such as 'layers.0.output', got 'layer"
    with pytest.raises(ValueError, match=hint), capture(model, "layer.0.output"):
        pass
    with pytest.raises(ValueError, match=r"got 'layers.7.output'$"):
        run_captured(model, batch, "layers.7.output")
    shape = r"^layers.0.output: expected from the edit a tensor of shape \[24, 32\] and "
    edits = {
        lambda x: x[1:]: r"shape \[23, 32\] and torch.float64$",
        lambda x: x.float(): r"shape \[24, 32\] and torch.float32$",
        lambda x: None: "NoneType$",
    }
    for change, ending in edits.items():
        with pytest.raises(ValueError, match=f"{shape}torch.float64, got {ending}"):
            with edit(model, {"layers.0.output": change}):
                forward(model, batch)
    with capture(model, "layers.0.output") as cache:
        with pytest.raises(ValueError, match="^model: expected no capture or edit around it"):
            distance_from_reference(model, batch)
        with pytest.raises(ValueError, match="^cache: expected a forward pass since the capture"):
            _ = cache.sequences
    with edit(model.bert, {}), capture(model.bert, "layers.0.output"):
        with pytest.raises(ValueError, match="^model: expected the encoder that is looked into"):
            run_captured(model, batch)
    with edit(model, {}), capture(model.bert) as inner:
        forward(model, batch)
        assert sorted(inner) == sorted(hook_names(model.bert))
    with pytest.raises(KeyError, match="layers.0.output: no forward pass came by there"):
        cache["layers.0.output"]
    with pytest.raises(KeyError, match="layers.1.output: not among what was captured: layers.0"):
        cache["layers.1.output"]
    model.bert.gradient_checkpointing = True
    with pytest.raises(ValueError, match="^model: expected gradient_checkpointing off, got on$"):
        run_captured(model, batch)
    with pytest.raises(ValueError, match="^model: expected evaluation mode"):
        run_captured(model.train(), batch)
    assert CONFIG == model.config


def test_the_table_of_names_needs_no_torch():
    code = "import sys, bert.internals.hooks; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

"""Capture and edits on our own kernels, interpreted: what they make, and what goes around them."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("triton")

from bert.internals.capture import capture, edit, forward  # noqa: E402
from bert.internals.distance import distance_from_reference  # noqa: E402
from bert.internals.hooks import hook, hook_names  # noqa: E402
from kernels import TORCH, TRITON  # noqa: E402
from tests.bert.internals.tiny import CONFIG, batch_of, model_of  # noqa: E402
from tests.kernels import interpreter  # noqa: E402, F401 - the repaired one

# Their attention takes heads of 16 features and more.
SMALL = replace(CONFIG, num_attention_heads=2, num_hidden_layers=1)


@torch.no_grad()
def test_looking_changes_nothing_to_the_bit_and_the_tensors_are_the_kernels_own():
    model, batch = model_of(TRITON, torch.float32, config=SMALL), batch_of([5, 3])
    plain = forward(model, batch)
    with edit(model, {name: lambda x: x for name in hook_names(model)}), capture(model) as cache:
        assert torch.equal(forward(model, batch), plain)
    for name, maker in cache.made_by.items():
        assert maker == ("REFERENCE" if hook(name).is_beside else "TRITON"), name
    for name, distance in distance_from_reference(model, batch).items():
        assert distance.difference <= 1e-5 * max(distance.largest, 1), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["embeddings.word", "layers.0.attention.scores", "layers.0.attention.residual",
     "layers.0.feed_forward.output", "mlm_head.pre_activation"],
)  # fmt: skip
@torch.no_grad()
def test_edits_do_what_they_do_elsewhere(name):
    logits = []
    for kernels in (TRITON, TORCH):
        model = model_of(kernels, config=SMALL)
        with edit(model, {name: lambda x: 0.5 * x + 0.1 * x.roll(1, 0)}):
            logits.append(forward(model, batch_of([5, 3])))
    assert_close(*logits, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(logits[0], forward(model, batch_of([5, 3])))

"""Tiny random models of Hugging Face's, and one way to hold ours against them."""

import json
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")

from bert.checkpoint import load_pretrained  # noqa: E402
from bert.comparison import jolt, random_batch  # noqa: E402
from bert.side_by_side import ACTIVATION, PaddedBatch, compare_models  # noqa: E402

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    # Ten times BERT's: attention that is far from uniform.
    "initializer_range": 0.2,
}


def theirs(architecture="BertForPreTraining", pooler=True, **settings):
    """A random model of theirs with no bias at 0 and no LayerNorm at 1."""
    config = transformers.BertConfig(**{**SIZES, **settings}, attn_implementation="eager")
    make = getattr(transformers, architecture)
    model = make(config) if pooler else make(config, add_pooling_layer=False)
    jolt(model)
    return model.eval()


def saved(path, architecture="BertForPreTraining", **settings):
    """A directory with such a model, and the model."""
    model = theirs(architecture, **settings)
    model.save_pretrained(path)
    return Path(path), model


def reloaded(path, architecture, dtype=torch.float32, **options):
    """Their model of a directory, after making sure that they miss nothing in it."""
    model, info = getattr(transformers, architecture).from_pretrained(
        path, attn_implementation="eager", dtype=dtype, output_loading_info=True, **options
    )
    assert not any(info.values()), info
    return model.eval()


def change_config(path, **changes):
    file = Path(path) / "config.json"
    values = json.loads(file.read_text())
    values.update(changes)
    file.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


def batches(config, length=17):
    """The same tokens as four kinds of batch."""
    ragged = random_batch(config, [length, 5, 1, length - 1])
    full = random_batch(config, [length, length, length])

    def changed(mask, order=None):
        def place(x, padding):
            return torch.where(mask == 1, x if order is None else x.gather(1, order), padding)

        return PaddedBatch(
            ragged.input_ids if order is None else ragged.input_ids.gather(1, order),
            mask,
            place(ragged.token_type_ids, 0),
            place(ragged.labels, -100),
            ragged.next_sentence_label,
        )

    to_the_right = torch.arange(length).expand(4, -1)
    shift = length - ragged.attention_mask.sum(1, keepdim=True)
    holes = ragged.attention_mask.clone()
    holes[0, [2, 3, 9]] = 0
    return {
        "unpadded": PaddedBatch(
            full.input_ids, None, full.token_type_ids, full.labels, full.next_sentence_label
        ),
        "ragged": ragged,
        "left-padded": changed((to_the_right >= shift).long(), (to_the_right - shift) % length),
        "with holes": changed(holes),
    }


POOLED = ("pooler", "cls.seq_relationship", "classifier", "loss")


def assert_parity(ours, model, batch, gradients=True):
    """Every hidden state within 1e-5 or 1e-10, everything else within the table's tolerance.

    With padding on the left their pooler reads a padding token, where ours reads [CLS]: what
    comes after the pooler is left out then.
    """
    padded_left = batch.attention_mask is not None and not bool(batch.attention_mask[:, 0].all())
    has_pooler = any("pooler" in name for name, _ in model.named_parameters())
    gradients = gradients and not (padded_left and has_pooler)
    rows = compare_models(ours, model, batch, gradients)
    if padded_left and has_pooler:
        rows = [row for row in rows if row.name not in POOLED]
    names = [row.name for row in rows]
    layers = ours.config.num_hidden_layers
    assert {f"encoder.layer.{i}.output" for i in range(layers)} <= set(names)
    if gradients:
        assert sum(name.startswith("grad") for name in names) == len(
            [p for p in model.parameters() if p.requires_grad and p.grad is not None]
        )
    for row in rows:
        assert row.ok, row
        if row.kind in ("embeddings", "encoder.layer.*.output"):
            kind = torch.float64 if row.tolerance < 1e-9 else torch.float32
            assert row.difference <= ACTIVATION[kind], row
    return rows


def load_both(path, architecture, dtype=torch.float32, kernels=None):
    return load_pretrained(path, kernels=kernels, dtype=dtype), reloaded(path, architecture, dtype)

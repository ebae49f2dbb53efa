"""One table of names, read in both directions: our weights ⇄ Hugging Face's.

    ours                                      theirs
    encoder.layers.3.attention.qkv.weight ⇄   encoder.layer.3.attention.self.query.weight
                                              encoder.layer.3.attention.self.key.weight
                                              encoder.layer.3.attention.self.value.weight

Theirs lie one under another along axis 0 of ours, and no weight is transposed. In a model with a
head the names of embeddings, encoder and pooler begin with `bert.`, on both sides.
"""

import re

_LAYER = "encoder.layers.*."
_THEIR_LAYER = "encoder.layer.*."


def _pair(ours: str, theirs: str) -> list[tuple[str, tuple[str, ...]]]:
    """A weight and a bias that lie in a module of either side."""
    return [(f"{ours}.{kind}", (f"{theirs}.{kind}",)) for kind in ("weight", "bias")]


def _apart(ours: str, bias: str, theirs: str) -> list[tuple[str, tuple[str, ...]]]:
    """A linear map whose bias we hold outside of it, for the kernel that adds it."""
    return [(f"{ours}.weight", (f"{theirs}.weight",)), (bias, (f"{theirs}.bias",))]


# `*` stands for the number of the layer.
TABLE: dict[str, tuple[str, ...]] = dict(
    [
        ("embeddings.word.weight", ("embeddings.word_embeddings.weight",)),
        ("embeddings.position.weight", ("embeddings.position_embeddings.weight",)),
        ("embeddings.token_type.weight", ("embeddings.token_type_embeddings.weight",)),
        *_pair("embeddings.norm", "embeddings.LayerNorm"),
        *(
            (
                f"{_LAYER}attention.qkv.{kind}",
                tuple(
                    f"{_THEIR_LAYER}attention.self.{which}.{kind}"
                    for which in ("query", "key", "value")
                ),
            )
            for kind in ("weight", "bias")
        ),
        *_apart(
            f"{_LAYER}attention.output",
            f"{_LAYER}attention.output_bias",
            f"{_THEIR_LAYER}attention.output.dense",
        ),
        *_pair(f"{_LAYER}attention.norm", f"{_THEIR_LAYER}attention.output.LayerNorm"),
        *_apart(
            f"{_LAYER}feed_forward.up",
            f"{_LAYER}feed_forward.up_bias",
            f"{_THEIR_LAYER}intermediate.dense",
        ),
        *_apart(
            f"{_LAYER}feed_forward.down",
            f"{_LAYER}feed_forward.down_bias",
            f"{_THEIR_LAYER}output.dense",
        ),
        *_pair(f"{_LAYER}feed_forward.norm", f"{_THEIR_LAYER}output.LayerNorm"),
        *_pair("pooler.dense", "pooler.dense"),
        *_apart("mlm_head.dense", "mlm_head.dense_bias", "cls.predictions.transform.dense"),
        *_pair("mlm_head.norm", "cls.predictions.transform.LayerNorm"),
        ("mlm_head.decoder.weight", ("cls.predictions.decoder.weight",)),
        ("mlm_head.bias", ("cls.predictions.bias",)),
        *_pair("nsp_head.dense", "cls.seq_relationship"),
        *_pair("classifier", "classifier"),
        *_pair("qa_outputs", "qa_outputs"),
    ]
)
_REVERSE = {name: (ours, index) for ours, row in TABLE.items() for index, name in enumerate(row)}

HEADS = ("pooler", "mlm_head", "nsp_head", "classifier", "qa_outputs")
"""The parts that a checkpoint may lack, or have and not be asked for."""


def _split(name: str) -> tuple[str, str, str]:
    """Take the prefix and the layer's number off a name: the pattern, the prefix, the number."""
    prefix = "bert." if name.startswith("bert.") else ""
    bare = name[len(prefix) :]
    found = re.match(r"encoder\.layers?\.(0|[1-9][0-9]{0,8})\.", bare)
    if found is None:
        return bare, prefix, ""
    number = found[1]
    return bare.replace(f".{number}.", ".*.", 1), prefix, number


def to_theirs(name: str) -> tuple[str, ...]:
    """Name the weights of theirs that one of ours is the concatenation of."""
    pattern, prefix, number = _split(name)
    return tuple(prefix + theirs.replace("*", number) for theirs in TABLE[pattern])


def to_ours(name: str) -> tuple[str, int] | None:
    """Name the weight of ours that one of theirs is a part of, and which part; None: no BERT's."""
    pattern, prefix, number = _split(name)
    if pattern not in _REVERSE:
        return None
    ours, index = _REVERSE[pattern]
    return prefix + ours.replace("*", number), index


def head_of(name: str) -> str | None:
    """Tell which of `HEADS` one of our weights belongs to; None: to embeddings or encoder."""
    first = name.removeprefix("bert.").split(".", 1)[0]
    return first if first in HEADS else None


def layer_of(name: str) -> int | None:
    """Tell which layer one of our weights belongs to."""
    number = _split(name)[2]
    return int(number) if number else None


def modern(name: str) -> str | None:
    """Spell a stored name as Hugging Face does today, with `bert.`; None for a buffer.

    LayerNorm's gamma and beta are what files from TensorFlow's days have. A file of the encoder
    alone has no prefix. `embeddings.position_ids` counts 0, 1, 2 …: it holds nothing learnt.
    """
    if name.startswith(("embeddings.", "encoder.", "pooler.")):
        name = f"bert.{name}"
    if name in ("bert.embeddings.position_ids", "bert.embeddings.token_type_ids"):
        return None
    name = re.sub(r"(?<=\bLayerNorm\.)gamma$", "weight", name)
    return re.sub(r"(?<=\bLayerNorm\.)beta$", "bias", name)

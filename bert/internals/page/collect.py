"""Look at a model while it reads a text, and put down what the page shows of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from bert.architectures import ARCHITECTURES, Model
from bert.framing import Encoding
from bert.internals.attention import (
    distance,
    entropy,
    is_special,
    maps_of,
    rollout,
    word_groups,
)
from bert.internals.capture import Cache, run_captured
from bert.internals.distance import distance_from_reference
from bert.internals.head_types import score_maps
from bert.internals.hooks import HOOKS, hook, hook_names
from bert.internals.page.findings import (
    Question,
    answer_of,
    attributed_of,
    lens_of,
    parts_of,
    patched_of,
)
from bert.internals.page.payload import Bytes, Head, Origin, Payload, Token, rounded
from bert.internals.watching import trunk_of
from bert.packing import PackedBatch
from bert.pretraining import BertForMaskedLM
from bert.tokenization import Tokenizer


@dataclass(frozen=True)
class Reading:
    """What the model is to read, and what is right at the first [MASK]; see `Inspect`."""

    text: str
    pair: str | None = None
    answer: str | None = None
    other: str | None = None
    other_answer: str | None = None


def collect(
    model: Model,
    tokenizer: Tokenizer,
    reading: Reading,
    *,
    name: str,
    card: str = "",
    max_length: int = 128,
    top_k: int = 5,
) -> Payload:
    """Run the model, and gather all that the page shows.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        reading: the text, and what goes with it.
        name: the model's, as the page calls it.
        card: the text of its README.md.
        max_length: tokens at most, with the frame.
        top_k: guesses for each layer and token.

    Raises:
        ValueError: a text that is too long, an answer that is no token or has no [MASK], another
            text that can't be compared, or attention that isn't finite.
    """
    longest = min(max_length, model.config.max_position_embeddings)
    encoded = encode(tokenizer, reading.text, reading.pair, longest, "text")
    batch = PackedBatch.from_lists(
        [encoded.ids], [encoded.token_type_ids], trunk_of(model).embeddings.word.weight.device
    )
    cache = _run(model, batch)
    maps = maps_of(cache)
    if not maps.isfinite().all():
        raise ValueError(f"{name}: expected attention that is finite, got NaN or infinity")
    types, heads = heads_of(maps, encoded.tokens)
    states = [cache[name] for name in cache if name.endswith(".output")]
    question = _question(model, tokenizer, batch, encoded, reading)
    patched = None
    if question is not None and reading.other is not None:
        other = encode(tokenizer, reading.other, reading.pair, longest, "other")
        patched = patched_of(question, other, reading.other_answer)
    return Payload(
        name=name,
        text=reading.text,
        pair=reading.pair,
        backend=trunk_of(model).kernels.name,
        facts=facts_of(model),
        card=card,
        tokens=tokens_of(encoded),
        attention=Bytes.of(maps),
        rollout=Bytes.of(rollout(maps)),
        types=types,
        heads=heads,
        norms=rounded([state.double().norm(dim=-1).tolist() for state in states]),
        lens=None if question is None else lens_of(question, top_k),
        answer=answer_of(model, cache),
        attributed=attributed_of(model, tokenizer, batch, question),
        parts=None if question is None else parts_of(question),
        patched=patched,
        origins=origins_of(model, batch),
    )


def _run(model: Model, batch: PackedBatch) -> Cache:
    """Keep the attention, the hidden states and what the heads say."""
    heads = [name for name in hook_names(model) if name.endswith(".logits")]
    states = ["embeddings.output", "layers.*.output"]
    return run_captured(model, batch, ["layers.*.attention.probabilities", *states, *heads])


def _question(
    model: Model, tokenizer: Tokenizer, batch: PackedBatch, encoded: Encoding, reading: Reading
) -> Question | None:
    """Say what is held to be right; None for a model that guesses no words."""
    if isinstance(model, BertForMaskedLM):
        return Question.of(model, tokenizer, batch, encoded, reading.answer)
    for name in ("answer", "other"):
        if getattr(reading, name) is not None:
            raise ValueError(
                f"{name}: expected a model with a masked-word head, got {type(model).__name__}"
            )
    return None


def encode(tokenizer: Tokenizer, text: str, pair: str | None, longest: int, name: str) -> Encoding:
    """Encode a text and its pair; nothing is cut off.

    Raises:
        ValueError: more tokens than `longest`; the message begins with `name`.
    """
    encoded = tokenizer.encode(text, pair, allow_special=True)
    if len(encoded) > longest:
        raise ValueError(
            f"{name}: expected at most {longest} tokens (the lesser of --max-length and the "
            f"model's positions), got {len(encoded)}"
        )
    return encoded


def tokens_of(encoded: Encoding) -> list[Token]:
    """Describe the tokens."""
    word_of = {
        place: word for word, places in enumerate(word_groups(encoded.tokens)) for place in places
    }
    return [
        Token(text, word_of[place], segment, is_special(text))
        for place, (text, segment) in enumerate(
            zip(encoded.tokens, encoded.token_type_ids, strict=True)
        )
    ]


def heads_of(
    maps: Float[Tensor, "layers heads queries keys"], tokens: Sequence[str]
) -> tuple[dict[str, float | None], list[list[Head]]]:
    """Describe each head; and give each type's score for a head that looks at all alike."""
    scored = score_maps([maps], [tokens])
    kinds = {(layer, head): kind for layer, head, kind, _ in scored.found()}
    widths, reaches = entropy(maps).mean(-1).tolist(), distance(maps).mean(-1).tolist()
    scores = {kind: values.tolist() for kind, values in scored.scores.items()}
    heads = [
        [
            Head(
                kinds.get((layer, head), ""),
                rounded([of_kind[layer][head] for of_kind in scores.values()]),
                rounded(widths[layer][head]),
                rounded(reaches[layer][head]),
            )
            for head in range(maps.shape[1])
        ]
        for layer in range(maps.shape[0])
    ]
    return {kind: rounded(scored.uniform[kind]) for kind in scores}, heads


def facts_of(model: Model) -> dict[str, str]:
    """List what a model is."""
    config, weights = model.config, list(model.parameters())
    return {
        "Class": ARCHITECTURES[type(model)],
        "Parameters": f"{sum(weight.numel() for weight in weights):,}",
        "Layers": f"{config.num_hidden_layers}",
        "Heads a layer": f"{config.num_attention_heads}",
        "Width": f"{config.hidden_size:,}",
        "Feed-forward width": f"{config.intermediate_size:,}",
        "Vocabulary": f"{config.vocab_size:,} tokens",
        "Positions": f"{config.max_position_embeddings:,}",
        "Activation": config.hidden_act,
        "Kernels": trunk_of(model).kernels.name,
        "Weights": str(weights[0].dtype).removeprefix("torch."),
        "Device": str(weights[0].device),
    }


def origins_of(model: Model, batch: PackedBatch) -> list[Origin]:
    """Tell for each kind of tensor who makes it, and its greatest distance from REFERENCE."""
    made_by = run_captured(model, batch).made_by
    found: dict[str, Origin] = {}
    for name, (difference, largest) in distance_from_reference(model, batch).items():
        place = hook(name)
        before = found.get(place.name)
        found[place.name] = Origin(
            place.name,
            place.meaning,
            made_by[name],
            _worst(difference, before and before.difference),
            _worst(largest, before and before.largest),
        )
    return [found[place.name] for place in HOOKS if place.name in found]


def _worst(value: float, before: float | None) -> float | None:
    return rounded(value if before is None or math.isnan(value) else max(value, before))

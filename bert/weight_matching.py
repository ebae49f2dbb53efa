"""Which stored weight becomes which of ours, and one line about each that has no partner."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from bert.config import BertConfig
from bert.weight_files import StoredWeight
from bert.weight_names import head_of, layer_of, modern, to_ours, to_theirs

WORD = "bert.embeddings.word_embeddings.weight"
DECODER = "cls.predictions.decoder.weight"
DECODER_BIAS = "cls.predictions.decoder.bias"
BIAS = "cls.predictions.bias"


@dataclass
class LoadReport:
    """What a checkpoint and a model don't have in common: a line for each weight.

    The keys are Hugging Face's names. A line says what the weight is and what was done about it.
    """

    missing: dict[str, str] = field(default_factory=dict)
    """The model has it, the checkpoint hasn't."""
    unexpected: dict[str, str] = field(default_factory=dict)
    """The checkpoint has it, the model hasn't."""
    mismatched: dict[str, str] = field(default_factory=dict)
    """Both have it, and the checkpoint's is of another shape, or of another task."""
    warnings: list[str] = field(default_factory=list)
    """What somebody who did not ask for it should know."""

    def lines(self) -> list[str]:
        """All of it, to print."""
        return [
            f"{kind} {name}: {line}"
            for kind in ("missing", "unexpected", "mismatched")
            for name, line in getattr(self, kind).items()
        ]


@dataclass(frozen=True)
class Request:
    """What a caller asked for, as far as it decides about a weight without a partner."""

    model_class: str
    """The class to fill, as messages name it."""
    directory: Path
    """Where the checkpoint is, for messages."""
    new: Collection[str] = ()
    """Heads to draw anew."""
    new_by_design: Collection[str] = ()
    """Heads to draw anew where the checkpoint has nothing of them."""
    cut_layers: bool = False
    """Whether fewer layers than the checkpoint's were asked for."""
    foreign: Mapping[str, str] = field(default_factory=dict)
    """Heads that the checkpoint holds for another task: the class that they served."""


def spell(
    stored: Mapping[str, StoredWeight], ignore: Sequence[str], report: LoadReport
) -> dict[str, StoredWeight]:
    """Call each stored weight by today's name.

    Raises:
        ValueError: two of them have one name then.
    """
    found: dict[str, StoredWeight] = {}
    for name, weight in stored.items():
        today = modern(name)
        if today is None:
            report.unexpected[name] = "a buffer that counts positions: left out"
        elif any(name.startswith(prefix) for prefix in ignore):
            report.unexpected[name] = "left out, as asked for (ignore)"
        elif today in found:
            raise ValueError(f"{weight.place}: expected once, got {found[today].name} too")
        else:
            found[today] = weight
    return found


def settle_decoder(
    found: dict[str, StoredWeight], config: BertConfig, wanted: bool, report: LoadReport
) -> BertConfig:
    """Decide, as Hugging Face does, what the masked-word head multiplies with and adds.

    A matrix and a bias of its own count where they differ from the word embedding and from
    cls.predictions.bias; else they are the same thing, held once.

    Args:
        found: the stored weights; what is decided is changed in it.
        config: says whether the matrix is tied to the word embedding.
        wanted: whether the model takes the checkpoint's masked-word head.
        report: gets a line for each weight left out.

    Returns:
        The configuration, with the matrix untied where the checkpoint's differs.
    """
    if WORD not in found and DECODER in found and config.tie_word_embeddings:
        report.missing[WORD] = f"the word embedding: taken from {DECODER}, to which it is tied"
        found[WORD] = found.pop(DECODER)
    bias, own_bias = found.get(BIAS), found.pop(DECODER_BIAS, None)
    if not wanted:
        if own_bias is not None:
            report.unexpected[DECODER_BIAS] = "mlm_head: left out"
        return config
    if own_bias is not None:
        found[BIAS] = own_bias
        if bias is not None and _same(bias, own_bias, (config.vocab_size,)):
            report.unexpected[DECODER_BIAS] = f"the same as {BIAS}: held once"
        elif bias is not None:
            report.unexpected[BIAS] = f"differs from {DECODER_BIAS}, which is added: left out"
            report.warnings.append(
                f"{own_bias.place}: differs from {BIAS}; it is the one that is added"
            )
    if DECODER not in found or not config.tie_word_embeddings:
        return config
    if _same(found[WORD], found[DECODER], (config.vocab_size, config.hidden_size)):
        report.unexpected[DECODER] = "tied, the same as the word embedding: held once"
        del found[DECODER]
        return config
    report.warnings.append(
        f"{found[DECODER].place}: differs from the word embedding, to which the configuration "
        "ties it: the two are held apart (tie_word_embeddings=False)"
    )
    return replace(config, tie_word_embeddings=False)


def _same(one: StoredWeight, other: StoredWeight, shape: tuple[int, ...]) -> bool:
    if not one.shape == other.shape == shape or one.dtype != other.dtype:
        return False
    return torch.equal(one.read(), other.read())


def match(
    shapes: Mapping[str, Sequence[int]],
    found: Mapping[str, StoredWeight],
    request: Request,
    report: LoadReport,
) -> tuple[dict[str, list[StoredWeight]], set[str]]:
    """Find the stored parts of each weight of the model.

    Args:
        shapes: our weights' names and shapes.
        found: the stored weights under today's names, all with `bert.`.
        request: what the caller asked for.
        report: gets a line for each weight without a partner.

    Returns:
        Each weight's parts, to lay one under another; and the heads to draw anew.

    Raises:
        ValueError: a weight without a partner, and nobody asked for that.
    """
    fatal: list[str] = []
    anew = set(request.new) | {
        head
        for head in request.new_by_design
        if not any(_head_of_theirs(name) == head for name in found)
    }
    anew &= {head_of(name) for name in shapes}
    sources: dict[str, list[StoredWeight]] = {}
    used: set[str] = set()
    for name, shape in shapes.items():
        head = head_of(name)
        theirs = to_theirs(name if head not in (None, "pooler") else _with_prefix(name))
        for part in theirs:
            if head in anew:
                asked = "as asked for (new)" if head in request.new else "the checkpoint has none"
                report.missing[part] = f"{head}: drawn anew, {asked}"
            elif part not in found:
                report.missing[part] = f"{head or 'encoder'}: not in the checkpoint"
                fatal.append(f"{request.directory}: {part}: expected in the checkpoint, got none")
            elif (
                problem := _mismatch(found[part], shape, len(theirs), head, request)
            ) is not None:
                used.add(part)
                report.mismatched[part] = problem
                fatal.append(f"{found[part].place}: {problem}")
            else:
                used.add(part)
                sources.setdefault(name, []).append(found[part])
    if "pooler" in anew and "pooler" not in request.new:
        report.warnings.append(
            f"{request.directory}: pooler: drawn anew, since the checkpoint has none and "
            f"{request.model_class} needs one: train it before you use it"
        )
    for name, weight in found.items():
        if name not in used:
            line, allowed = _without_partner(name, anew, request)
            report.unexpected[name] = line
            if not allowed:
                fatal.append(f"{weight.place}: {line}")
    if fatal:
        more = f" (and {len(fatal) - 1} more)" if len(fatal) > 1 else ""
        raise ValueError(fatal[0] + more)
    return sources, anew


def _with_prefix(name: str) -> str:
    return name if name.startswith("bert.") else f"bert.{name}"


def _head_of_theirs(name: str) -> str | None:
    ours = to_ours(name)
    return None if ours is None else head_of(ours[0])


def _mismatch(
    weight: StoredWeight, shape: Sequence[int], parts: int, head: str | None, request: Request
) -> str | None:
    """Say why a stored weight can't be the model's; None where it can."""
    if head is not None and head in request.foreign:
        return (
            f"expected the {head} of {request.model_class}, got that of "
            f"{request.foreign[head]}; new=({head!r},) draws one anew"
        )
    wanted = [shape[0] // parts, *shape[1:]]
    if list(weight.shape) != wanted:
        anew = f"; new=({head!r},) draws it anew" if head else ""
        return f"expected shape {wanted} from the configuration, got {list(weight.shape)}{anew}"
    weight.torch_dtype  # noqa: B018  refuses integers
    return None


def _without_partner(name: str, anew: set[str], request: Request) -> tuple[str, bool]:
    """Say what an unexpected weight is, and whether leaving it out is what was asked for."""
    ours = to_ours(name)
    if ours is None:
        return "expected a weight of BERT, got an unknown one; ignore=(…) leaves it out", False
    head = head_of(ours[0])
    if head in anew:
        return f"{head}: left out, a new one is drawn, as asked for (new)", True
    if head is not None:
        return f"{head}: left out, {request.model_class} has none", True
    if layer_of(ours[0]) is not None and request.cut_layers:
        return "a layer that was not asked for (num_hidden_layers): left out", True
    return "expected fewer layers from the configuration, got this one", False

"""`bert export SOURCE OUT`: a run, a checkpoint or a model of any layout as one clean directory.

Imports no torch, so that `--help` answers at once.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bert.sentence_layout import Pooling, SentenceLayout

if TYPE_CHECKING:
    import torch

    from bert.architectures import Model
    from bert.tokenization import Tokenizer
    from bert.training.state import Checkpoint

# Files of weights that a loader could take instead of the model.safetensors that is written.
_OTHER_WEIGHTS = (
    "pytorch_model.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json",
    "model-*-of-*.safetensors", "model.safetensors.index.json",
)  # fmt: skip


@dataclass(frozen=True)
class Export:
    """Write a model as a directory that transformers and `bert` load, and read it back.

    The directory has config.json, model.safetensors, the tokenizer's files and a README.md. What
    was written is loaded again, and must be the same to the last bit.
    """

    source: Path
    """A run's directory, one of its checkpoints, or a directory with a model of any layout."""
    out: Path
    """Directory to write."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Round the weights to this; None: keep them, 16 bits as float32."""
    tokenizer: Path | None = None
    """Directory or file of the tokenizer; None: the one that lies with the source."""
    overwrite: bool = False
    """Replace the model that is in OUT; files of other names stay."""
    check: bool = False
    """Compare with transformers, and exit with 1 where a difference is over its tolerance."""
    sentences: Pooling | None = None
    """Write the encoder alone, for sentence-transformers, which embeds texts by the mean of their
    tokens' vectors, or by that of [CLS]."""
    normalize: bool = False
    """Bring the embeddings of `sentences` to length 1."""

    def __post_init__(self) -> None:
        """Check what belongs together."""
        if self.normalize and self.sentences is None:
            raise ValueError("normalize: expected sentences with it, got none")


def run(command: Export) -> int:
    """Export, say what was written, and compare if asked to; return the exit code."""
    import torch

    model = export(
        command.source,
        command.out,
        None if command.dtype is None else getattr(torch, command.dtype),
        command.tokenizer,
        command.overwrite,
        command.sentences and SentenceLayout(command.sentences, command.normalize),
    )
    weights = list(model.state_dict().values())
    print(
        f"{command.out}: {type(model).__name__}, {sum(w.numel() for w in weights):,} parameters "
        f"in {str(weights[0].dtype).removeprefix('torch.')}, read back bit for bit"
    )
    return _check(command.out) if command.check else 0


def export(
    source: Path,
    out: Path,
    dtype: "torch.dtype | None" = None,
    tokenizer: Path | None = None,
    overwrite: bool = False,
    sentences: SentenceLayout | None = None,
) -> "Model":
    """Write a model's directory, and read it back.

    Args:
        source: a run's directory (its model, or else its newest whole checkpoint), a checkpoint's,
            or a model's.
        out: the directory to write.
        dtype: what the weights are rounded to; None keeps them, but 16 bits become float32.
        tokenizer: its directory or file; the source's own where it is None.
        overwrite: whether a model that is in `out` may be replaced.
        sentences: write the encoder alone, and this for sentence-transformers beside it.

    Returns:
        The model as it was written.

    Raises:
        ValueError: nothing to export, `out` is taken, or weights that `dtype` can't hold.
        OSError: something could not be written.
    """
    from bert.model import Bert
    from bert.saving import save_pretrained

    place = _find(source)
    if out.resolve() == place.resolve():
        raise ValueError(f"out: expected another directory than the source, got {out}")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise ValueError(
            f"out: expected a new or empty directory, got {out}; "
            "--overwrite replaces the model in it"
        )
    model, card = _read(place)
    if sentences is not None:
        model = model if isinstance(model, Bert) else model.bert
        card = _card(model, f"The encoder of `{place.resolve().name}`, for sentence embeddings.")
    if dtype is not None:
        _round(model, dtype)
    words = _read_tokenizer(place, tokenizer)
    if words is None:
        warnings.warn(f"{source}: no tokenizer lies with it, so none is written", stacklevel=2)
    save_pretrained(model, out, words, card)
    for pattern in _OTHER_WEIGHTS:
        for stale in out.glob(pattern):
            stale.unlink()
    if sentences is not None:
        length = sentences.max_length or model.config.max_position_embeddings
        replace(sentences, max_length=length).write(out, model.config.hidden_size)
    _read_back(model, out)
    return model


def _find(source: Path) -> Path:
    """Find the model's or checkpoint's directory that is meant."""
    from bert.training.checkpoint_files import DamagedCheckpoint, list_checkpoints, read_checkpoint

    if _is_model(source) or _is_checkpoint(source):
        return source
    if _is_model(source / "model"):
        return source / "model"
    if (source / "checkpoints").is_dir():
        for path in reversed(list_checkpoints(source / "checkpoints")):
            try:
                read_checkpoint(path)
            except DamagedCheckpoint as error:
                warnings.warn(f"passed over: {error}", stacklevel=2)
            else:
                return path
    raise ValueError(
        f"source: expected a model's directory (with config.json), a checkpoint's, or a run's "
        f"with one of them in it, got {source}"
    )


def _is_model(path: Path) -> bool:
    return (path / "config.json").is_file() or (path / "modules.json").is_file()


def _is_checkpoint(path: Path) -> bool:
    return (path / "manifest.json").is_file() and (path / "training.json").is_file()


def _read(place: Path) -> "tuple[Model, str]":
    """Load a model and its card."""
    from bert.checkpoint import load_pretrained, model_directory
    from bert.training.state import load_checkpoint

    if _is_checkpoint(place):
        checkpoint = load_checkpoint(place)
        model, state = model_of(checkpoint), checkpoint.state
        return model, _card(model, f"Step {state.step:,} of a run, {state.tokens:,} tokens.")
    model = load_pretrained(place)
    readme = model_directory(place) / "README.md"
    if readme.is_file():
        return model, readme.read_text(encoding="utf-8", errors="replace")
    return model, _card(model, f"Converted from `{place.resolve().name}`.")


def _round(model: "Model", dtype: "torch.dtype") -> None:
    """Round the weights; refuse to make one infinite."""
    model.to(dtype)
    for name, weight in model.state_dict().items():
        if not weight.isfinite().all():
            raise ValueError(f"dtype: expected one that can hold {name}, got {dtype}")


def model_of(checkpoint: "Checkpoint") -> "Model":
    """Build the model that a run was training, with the checkpoint's weights.

    Raises:
        ValueError: the checkpoint doesn't hold a BERT of ours.
    """
    import torch

    from bert.config import BertConfig
    from bert.weight_names import head_of

    # The objective of a task holds its model as `model`.
    weights = {
        name.removeprefix("model."): weight
        for name, weight in checkpoint.parameters.items()
        if name.startswith("model.")
    }
    heads = {head_of(name) for name in weights}
    described = checkpoint.identity.fixed.get("model")
    if described is None or not weights:
        raise ValueError(
            f"{checkpoint.path}: expected the checkpoint of a BERT, got another model's"
        )
    config = BertConfig.from_dict(described, str(checkpoint.path / "training.json"))
    kind = _class_of(described, heads)
    with torch.device("meta"):
        model = kind(config)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{checkpoint.path}: {error}") from None
    return model.eval()


def _class_of(described: Mapping[str, Any], heads: set[str | None]) -> type[Any]:
    """Choose the class that a run was training: the one it names, or else by the heads."""
    from bert.architectures import ARCHITECTURES
    from bert.finetuning import (
        BertForQuestionAnswering,
        BertForSequenceClassification,
        BertForTokenClassification,
    )
    from bert.model import Bert
    from bert.pretraining import BertForMaskedLM, BertForPreTraining

    for kind, theirs in ARCHITECTURES.items():
        if described.get("architectures") == [theirs]:
            return kind
    kinds: list[tuple[set[str | None], type[Any]]] = [
        ({"nsp_head"}, BertForPreTraining),
        ({"mlm_head"}, BertForMaskedLM),
        ({"qa_outputs"}, BertForQuestionAnswering),
        ({"classifier", "pooler"}, BertForSequenceClassification),
        ({"classifier"}, BertForTokenClassification),
        (set(), Bert),
    ]
    return next(kind for needed, kind in kinds if needed <= heads)


def _read_tokenizer(place: Path, given: Path | None) -> "Tokenizer | None":
    """Load the tokenizer that was given, or the one that lies where a run or a model has it."""
    from bert.checkpoint import model_directory
    from bert.tokenization import Tokenizer

    if given is not None:
        return Tokenizer.load(given)
    if _is_checkpoint(place):
        run = place.resolve().parents[1]
        homes = [run / "tokenizer", run / "model", *_named_in(run / "run.json")]
    else:
        homes = [place, model_directory(place)]
    for home in homes:
        if any((home / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
            return Tokenizer.load(home)
    return None


def _named_in(description: Path) -> list[Path]:
    """List the directories that a run took its tokenizer from, the likelier first."""
    from bert.config import read_json

    values = read_json(description) if description.is_file() else {}
    settings = [values.get(task) or {} for task in ("pretrain", "finetune")]
    named = [s.get(name) for s in settings for name in ("tokenizer", "model")]
    return [Path(name) for name in named if isinstance(name, str)]


def _card(model: "Model", origin: str) -> str:
    """Write a model card that says no more than is known."""
    from bert.architectures import ARCHITECTURES

    config = model.config
    return (
        f"---\nlibrary_name: transformers\ntags: [bert, plainbert]\n---\n\n"
        f"# {ARCHITECTURES[type(model)]}\n\n"
        f"{config.num_hidden_layers} layers of width {config.hidden_size}, "
        f"{config.num_attention_heads} heads, {config.vocab_size:,} tokens in the vocabulary, "
        f"sequences of up to {config.max_position_embeddings} tokens. {origin} "
        f"Written by `bert export` of plainbert.\n"
    )


def _read_back(model: "Model", out: Path) -> None:
    """Load what was written, and hold it against what was to be written."""
    import torch

    from bert.checkpoint import load_pretrained

    expected = model.state_dict()
    again = load_pretrained(out, type(model), dtype=next(iter(expected.values())).dtype)
    found = again.state_dict()
    same = {n for n in expected if n in found and torch.equal(expected[n], found[n])}
    differing = (expected.keys() | found.keys()) - same
    if differing or again.config != model.config:
        raise OSError(f"{out}: read back, {(sorted(differing) or ['config.json'])[0]} differs")


def _check(out: Path) -> int:
    """Compare with transformers as `bert parity` does."""
    from bert import parity

    return parity.run(parity.Parity(str(out.resolve())))

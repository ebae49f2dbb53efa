"""Weights in and out, in Hugging Face's directories: `load_pretrained`, `save_pretrained`.

    config.json, model.safetensors   ──load──>   a model of ours   ──save──>   the same two

weight_names.py has the names, weight_files.py reads the files, weight_matching.py decides which
weight goes where, architectures.py pairs the classes, saving.py writes. Nothing is downloaded.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, cast, overload

import torch
from torch import Tensor, nn

from bert.architectures import ARCHITECTURES, WITH_CLASSIFIER, Model, class_for, written_by
from bert.config import BertConfig, read_json
from bert.model import Bert, init_weights
from bert.pretraining import BertForMaskedLM
from bert.saving import save_pretrained as save_pretrained
from bert.weight_files import StoredWeight, open_weights
from bert.weight_matching import LoadReport, Request, match, settle_decoder, spell
from bert.weight_names import HEADS, head_of, layer_of, to_ours
from kernels import KernelSet, best_for

M = TypeVar("M", bound=Model)


@overload
def load_pretrained(
    path: Path | str,
    model_class: type[M],
    *,
    new: Sequence[str] = (),
    ignore: Sequence[str] = (),
    kernels: KernelSet | None = None,
    dtype: torch.dtype | None = None,
    allow_nonfinite: bool = False,
    **changes: Any,
) -> M: ...
@overload
def load_pretrained(
    path: Path | str,
    model_class: None = None,
    *,
    new: Sequence[str] = (),
    ignore: Sequence[str] = (),
    kernels: KernelSet | None = None,
    dtype: torch.dtype | None = None,
    allow_nonfinite: bool = False,
    **changes: Any,
) -> Any: ...
def load_pretrained(
    path: Path | str, model_class: type[Model] | None = None, **options: Any
) -> Any:
    """Load a model from a Hugging Face or sentence-transformers directory.

    What the checkpoint and the model don't have in common is an error, except: heads that the
    model has no use for are left out; a fine-tuning head that the checkpoint doesn't have is
    drawn anew; so is a pooler, with a warning. See `load_with_report` for the arguments.

    Returns:
        The model on the CPU, in evaluation mode: call `.train()` to go on training it.

    Raises:
        ValueError: one line that names the file and the weight.
    """
    model, report = load_with_report(path, model_class, **options)
    for line in report.warnings:
        warnings.warn(line, stacklevel=2)
    return model


def load_with_report(
    path: Path | str,
    model_class: type[M] | None = None,
    *,
    new: Sequence[str] = (),
    ignore: Sequence[str] = (),
    kernels: KernelSet | None = None,
    dtype: torch.dtype | None = None,
    allow_nonfinite: bool = False,
    **changes: Any,
) -> tuple[M, LoadReport]:
    """Load a model, and a line about each weight that only one side has.

    Args:
        path: the directory.
        model_class: the class to fill; the one that config.json names where it is None.
        new: heads to draw anew, whatever the checkpoint has: pooler, mlm_head, nsp_head,
            classifier, qa_outputs.
        ignore: beginnings of stored names to leave out, for files that hold more than a BERT.
        kernels: see `Bert`.
        dtype: of the model's weights. Where it is None they are as stored, but float32 where
            they are stored in 16 bits: nothing is lost, and a CPU computes in float32.
        allow_nonfinite: whether weights may be NaN or infinite.
        changes: fields of the configuration to change, such as hidden_dropout_prob or id2label.

    Raises:
        ValueError: one line that names the file and the weight.
    """
    directory = model_directory(Path(path))
    values = read_json(directory / "config.json")
    config = _changed(BertConfig.from_dict(values, str(directory / "config.json")), changes)
    report = LoadReport()
    with open_weights(directory) as stored:
        found = spell(stored, ignore, report)
        trained_as = written_by(values, found)
        chosen = model_class or cast(type[M], class_for(trained_as, directory, report))
        if chosen not in ARCHITECTURES:
            raise ValueError(f"model_class: expected one of bert's models, got {chosen!r}")
        request = _request(chosen, trained_as, directory, new, changes)
        takes_mlm_head = issubclass(chosen, BertForMaskedLM) and "mlm_head" not in new
        config = settle_decoder(found, config, takes_mlm_head, report)
        _check_layers(config, found, directory)
        has_pooler = "bert.pooler.dense.weight" in found or "pooler" in new
        model = _empty(chosen, config, kernels, has_pooler, directory)
        shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
        _check_heads(new, {head_of(name) for name in shapes}, request.model_class)
        sources, anew = match(shapes, found, request, report)
        kind = dtype or _stored_dtype(sources)
        weights = {
            name: _read(parts, shapes[name], kind, allow_nonfinite)
            for name, parts in sources.items()
        }
    for head in anew:
        _draw(model, head, kind)
    model.load_state_dict(model.state_dict() | weights, assign=True)
    return model.eval(), report


def model_directory(path: Path) -> Path:
    """Find the model in a directory: there, in a run's `model`, or where modules.json says.

    Raises:
        ValueError: not a directory, there is none in it, or modules.json leads out of it.
    """
    if not path.is_dir():
        raise ValueError(
            f"{path}: expected a directory with config.json and weights (nothing is downloaded)"
        )
    if not (path / "modules.json").exists():
        for found in (path, path / "model"):
            if (found / "config.json").exists():
                return found
        raise ValueError(f"{path}: expected a model (config.json and weights) in it, got none")
    modules = read_json(path / "modules.json")
    try:
        inner = modules[0]["path"]
    except (TypeError, LookupError):
        inner = None
    if not isinstance(inner, str) or inner in (".", "..") or not set("/\\\0").isdisjoint(inner):
        raise ValueError(
            f"{path / 'modules.json'}: expected the path of a directory beside it, got {inner!r}"
        )
    return path / inner


def _changed(config: BertConfig, changes: Mapping[str, Any]) -> BertConfig:
    known = {f.name for f in fields(BertConfig)}
    for name in changes:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{name}: not a field of BertConfig{hint}")
    return replace(config, **changes)


def _request(
    model_class: type[Model],
    trained_as: str,
    directory: Path,
    new: Sequence[str],
    changes: Mapping[str, Any],
) -> Request:
    name = ARCHITECTURES[model_class]
    is_foreign = trained_as in WITH_CLASSIFIER and trained_as != name
    return Request(
        model_class=model_class.__name__,
        directory=directory,
        new=new,
        # A checkpoint of the very class must have the head.
        new_by_design=("pooler",)
        if name == trained_as
        else ("pooler", "classifier", "qa_outputs"),
        cut_layers="num_hidden_layers" in changes,
        foreign={"classifier": trained_as} if is_foreign else {},
    )


def _check_layers(config: BertConfig, found: Mapping[str, StoredWeight], directory: Path) -> None:
    """Refuse a number of layers that the file hasn't, before that many are built."""
    ours = (to_ours(name) for name in found)
    stored = {layer_of(name[0]) for name in ours if name is not None} - {None}
    if config.num_hidden_layers > len(stored):
        raise ValueError(
            f"{directory}: expected the {config.num_hidden_layers} layers of the configuration "
            f"(num_hidden_layers), got {len(stored)}"
        )


def _check_heads(new: Sequence[str], heads: set[str | None], model_class: str) -> None:
    for head in new:
        if head not in heads:
            known = ", ".join(name for name in HEADS if name in heads)
            raise ValueError(f"new: expected a head of {model_class} ({known}), got {head!r}")


def _empty(
    model_class: type[M],
    config: BertConfig,
    kernels: KernelSet | None,
    has_pooler: bool,
    directory: Path,
) -> M:
    """Build the model without memory: its weights are about to be replaced, not drawn.

    Raises:
        ValueError: a weight of more bytes than can be counted.
    """
    kernels = kernels or best_for("cpu")
    try:
        with torch.device("meta"):
            if model_class is Bert:
                return cast(M, Bert(config, kernels, pooler=has_pooler))
            return model_class(config, kernels)
    except RuntimeError as error:
        raise ValueError(
            f"{directory}: expected a configuration of sizes that a weight can have, got {error}"
        ) from None


def _stored_dtype(sources: Mapping[str, Sequence[StoredWeight]]) -> torch.dtype:
    kind = torch.float32
    for parts in sources.values():
        for part in parts:
            kind = torch.promote_types(kind, part.torch_dtype)
    return kind


def _read(
    parts: Sequence[StoredWeight],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    allow_nonfinite: bool,
) -> Tensor:
    """Read a weight's parts into one tensor, one under another."""
    weight = torch.empty(shape, dtype=dtype)
    for part, rows in zip(parts, weight.chunk(len(parts)), strict=True):
        part.fill(rows)
        # Finite weights may have an infinite sum, but a finite sum has finite terms only; and a
        # sum is read at the speed of memory.
        if not allow_nonfinite and not math.isfinite(rows.sum()) and not rows.isfinite().all():
            raise ValueError(
                f"{part.place}: expected finite numbers, got NaN or infinity "
                "(allow_nonfinite=True takes them)"
            )
    return weight


def _draw(model: nn.Module, head: str, dtype: torch.dtype) -> None:
    """Give a head the weights that its constructor would have drawn."""
    owner = cast(Any, model).bert if head == "pooler" and not isinstance(model, Bert) else model
    part: nn.Module = getattr(owner, head)
    part.to_empty(device="cpu").to(dtype)
    for module in part.modules():
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        else:
            for parameter in module.parameters(recurse=False):
                nn.init.zeros_(parameter)
    init_weights(part, cast(Any, model).config)

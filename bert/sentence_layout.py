"""Sentence embeddings as sentence-transformers keeps them beside a model (Reimers et al. 2019).

    modules.json                the steps: Transformer, Pooling and, may be, Normalize
    1_Pooling/config.json       how a text's token vectors become one
    sentence_bert_config.json   max_seq_length
    config.json, model.safetensors, …   the encoder, here or where modules.json says

Imports no torch.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bert.config import read_json

Pooling = Literal["mean", "cls"]

_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_STEPS = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])


@dataclass(frozen=True)
class SentenceLayout:
    """How the vectors of a text's tokens become one vector."""

    pooling: Pooling = "mean"
    """mean: of all tokens, [CLS] and [SEP] among them; cls: that of [CLS]."""
    is_normalized: bool = False
    """Whether it is brought to length 1."""
    max_length: int | None = None
    """Tokens of a text, [CLS] and [SEP] too; None: as many as the encoder takes."""

    def changed(
        self, pooling: Pooling | None, normalize: Literal["yes", "no"] | None
    ) -> "SentenceLayout":
        """Return the layout with what a user asks for; None changes nothing."""
        return replace(
            self,
            pooling=pooling or self.pooling,
            is_normalized=self.is_normalized if normalize is None else normalize == "yes",
        )

    @staticmethod
    def read(directory: Path) -> "SentenceLayout":
        """Read a directory's; where it has no modules.json, the defaults.

        Raises:
            ValueError: a step or a pooling that isn't done here; the message names the file.
        """
        path = directory / "modules.json"
        if not path.exists():
            return SentenceLayout()
        modules = read_json(path)
        try:
            steps = [module["type"].rpartition(".")[2] for module in modules]
            homes = [directory / module["path"] for module in modules]
        except (TypeError, KeyError, AttributeError):
            raise ValueError(f"{path}: expected a list of modules, each with type, path") from None
        if steps not in _STEPS:
            raise ValueError(
                f"{path}: expected Transformer, Pooling and, may be, Normalize, "
                f"got {', '.join(steps)[:80]}"
            )
        return SentenceLayout(
            _read_pooling(homes[1] / "config.json"),
            "Normalize" in steps,
            _read_max_length(directory, homes[0]),
        )

    def write(self, directory: Path, hidden_size: int) -> None:
        """Write the files beside an encoder that lies in `directory`, modules.json last."""
        steps = _STEPS[self.is_normalized]
        paths = ["", *(f"{i}_{step}" for i, step in enumerate(steps) if i)]
        for path in paths:
            (directory / path).mkdir(exist_ok=True)
        pooling = {name: mode == self.pooling for name, mode in _MODES.items()}
        length = {"max_seq_length": self.max_length, "do_lower_case": False}
        modules = [
            {
                "idx": i,
                "name": str(i),
                "path": path,
                "type": f"sentence_transformers.models.{step}",
            }
            for i, (path, step) in enumerate(zip(paths, steps, strict=True))
        ]
        files = {
            "1_Pooling/config.json": {"word_embedding_dimension": hidden_size, **pooling},
            "sentence_bert_config.json": length,
            "modules.json": modules,
        }
        for name, content in files.items():
            (directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _read_pooling(path: Path) -> Pooling:
    values = _object(path)
    found: Any = values.get("pooling_mode")
    if found is None:
        found = [mode for name, mode in _MODES.items() if values.get(name)] or ["mean"]
    modes = found if isinstance(found, list) else [found]
    if modes not in (["mean"], ["cls"]):
        raise ValueError(f"{path}: pooling_mode: expected mean or cls, got {modes!r:.80}")
    return modes[0]


def _read_max_length(directory: Path, encoder: Path) -> int | None:
    """Read the length; refuse what would change a text before it gets to the tokenizer."""
    prompts = directory / "config_sentence_transformers.json"
    if prompts.exists() and (name := _object(prompts).get("default_prompt_name")) is not None:
        raise ValueError(f"{prompts}: default_prompt_name: expected none, got {name!r:.80}")
    path = encoder / "sentence_bert_config.json"
    values = _object(path) if path.exists() else {}
    if values.get("do_lower_case"):
        raise ValueError(f"{path}: do_lower_case: expected false, as tokenizers lower, got true")
    length = values.get("max_seq_length")
    if length is not None and (type(length) is not int or length < 3):
        raise ValueError(f"{path}: max_seq_length: expected 3 tokens or more, got {length!r:.80}")
    return length


def _object(path: Path) -> dict[str, Any]:
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected an object, got {type(values).__name__}")
    return values

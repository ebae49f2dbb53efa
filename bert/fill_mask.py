"""`bert fill-mask "The [MASK] sat." --model DIR`: what a pretrained BERT would put there.

Imports no torch, so that `--help` answers at once.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bert.pretraining import BertForMaskedLM
    from bert.tokenization import Tokenizer

HOW_TO_GET_ONE = (
    "a run of `bert pretrain FILES --out RUN` leaves one in RUN/model, and any BERT for masked "
    "words that was saved by transformers will do (nothing is downloaded)"
)

_TAKES = {"BertModel": "bert embed"} | dict.fromkeys(
    (
        "BertForSequenceClassification",
        "BertForTokenClassification",
        "BertForMultipleChoice",
        "BertForQuestionAnswering",
    ),
    "bert predict",
)
"""The command for a model that has no head for masked words."""


@dataclass(frozen=True)
class FillMask:
    """Guess the words that stand at each [MASK] of a text, the likeliest first.

    Without a text, the standard input is read: a text a line.

    Raises:
        ValueError: a field is out of its range; the message names it.
    """

    text: str | None = None
    """A text with at least one [MASK]."""
    model: Path | None = None
    """Directory of a model that was pretrained on masked words, with its tokenizer."""
    top_k: int = 5
    """Guesses for each [MASK]."""
    json: bool = False
    """Write a JSON object for each text."""
    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:1; auto: cuda where there is one."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.top_k < 1:
            raise ValueError(f"top_k: expected 1 or more, got {self.top_k}")


@dataclass(frozen=True)
class Guess:
    """A token that may stand at a [MASK]."""

    token: str
    """As the vocabulary has it: "##ing" goes on with the word before."""
    id: int
    probability: float


def fill_mask(
    model: "BertForMaskedLM", tokenizer: "Tokenizer", text: str, top_k: int = 5
) -> list[list[Guess]]:
    """Guess the token at each [MASK] of a text (Devlin et al. 2018, section 3.1).

    The masks are guessed at the same time, each as if the others stayed masks. The logits are
    computed at the masks only.

    Args:
        model: in evaluation mode; a BertForPreTraining is one too.
        tokenizer: the model's.
        text: with the masks as "[MASK]".
        top_k: guesses for each; all tokens where there are fewer.

    Returns:
        For each mask, its guesses, the likeliest first.

    Raises:
        ValueError: no mask, or more tokens than the model has positions.
    """
    import torch

    from bert.packing import PackedBatch

    encoded = tokenizer.encode(text, allow_special=True)
    masks = [place for place, id in enumerate(encoded.ids) if id == tokenizer.mask_id]
    if not masks:
        raise ValueError(f"text: expected at least one [MASK], got {_short(text)!r}")
    longest = model.config.max_position_embeddings
    if len(encoded) > longest:
        raise ValueError(f"text: expected at most {longest} tokens, got {len(encoded)}")
    word = model.bert.embeddings.word.weight
    batch = PackedBatch.from_lists([encoded.ids], [encoded.token_type_ids], word.device)
    with torch.inference_mode():
        hidden = model.bert.encode(batch).last_hidden_state
        logits = model.mlm_head(hidden[masks], word)
        # A model may have more rows than its tokenizer has tokens, to fill up a multiple of 8.
        probabilities = logits[:, : tokenizer.vocab_size].float().softmax(-1)
        best = probabilities.topk(min(top_k, tokenizer.vocab_size))
    return [
        [Guess(tokenizer.vocab[id], id, p) for id, p in zip(ids, row, strict=True)]
        for ids, row in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def load(directory: Path, device: str = "auto") -> "tuple[BertForMaskedLM, Tokenizer]":
    """Load a model for masked words, and its tokenizer.

    Args:
        directory: the model's, or a run's with the model in it.
        device: see `FillMask`.

    Raises:
        ValueError: there is none, it has no head for masked words, or they don't fit together.
    """
    from bert.checkpoint import model_directory
    from bert.config import read_json
    from bert.pretraining import BertForMaskedLM
    from bert.training.config import TrainingConfig
    from bert.with_tokenizer import load_with_tokenizer

    directory = model_directory(directory)
    try:
        return load_with_tokenizer(directory, BertForMaskedLM, TrainingConfig(device=device))
    except ValueError as error:
        named = read_json(directory / "config.json").get("architectures")
        takes = _TAKES.get(named[0]) if isinstance(named, list) and named else None
        if takes is None:
            raise
        raise ValueError(
            f"model: expected one for masked words, got {directory}, a {named[0]}; {takes} "
            "takes it"
        ) from error


def run(command: FillMask) -> int:
    """Guess, and print; return the exit code: 1 where a line of the input could not be used."""
    if command.model is None:
        raise ValueError(f"model: expected a directory, got none; {HOW_TO_GET_ONE}")
    if command.text is None and sys.stdin.isatty():
        raise ValueError("text: expected a text with a [MASK], got nothing")
    model, tokenizer = load(command.model, command.device)
    if command.text is not None:
        guesses = fill_mask(model, tokenizer, command.text, command.top_k)
        print(_as_json(command.text, guesses) if command.json else _as_text(guesses))
        return 0
    bad = 0
    for number, text in enumerate(_lines(), start=1):
        try:
            guesses = fill_mask(model, tokenizer, text, command.top_k)
        except ValueError as error:
            bad += 1
            print(f"line {number}: {error}", file=sys.stderr)
            if command.json:
                print(json.dumps({"text": text, "error": str(error)}))
            continue
        print(_as_json(text, guesses) if command.json else f"{text}\n{_as_text(guesses)}\n")
    return 1 if bad else 0


def _lines() -> Iterator[str]:
    """Yield the lines of the standard input; a byte that is not UTF-8 is read as U+FFFD."""
    for line in sys.stdin.buffer:
        yield line.rstrip(b"\r\n").decode("utf-8", "replace")


def _as_json(text: str, guesses: list[list[Guess]]) -> str:
    masks = [[asdict(guess) for guess in mask] for mask in guesses]
    return json.dumps({"text": text, "masks": masks})


def _as_text(guesses: list[list[Guess]]) -> str:
    lines: list[str] = []
    for number, mask in enumerate(guesses, start=1):
        if len(guesses) > 1:
            lines.append(f"[MASK] {number}")
        lines += [f"  {guess.probability:7.2%}  {guess.token}" for guess in mask]
    return "\n".join(lines)


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"

"""What a pretraining run is told: one frozen dataclass that is also its command line.

Imports no torch, so that `--help` answers at once.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from bert.checked import Checked
from bert.config import PRESETS
from bert.training.config import TrainingConfig

Objective = Literal["mlm+nsp", "mlm", "nsp", "mlm+sop"]

CONFIG_DEFAULTS = TrainingConfig(
    budget="30min",
    learning_rate=1e-3,
    warmup=0.05,
    betas=(0.9, 0.98),
    eps=1e-6,
    evaluate_every="5min",
    checkpoint_every="5min",
)
"""How to train where nothing else is said: for a small BERT and half an hour.

BERT-base was trained with a rate of 1e-4 for a million steps (Devlin et al. 2018, A.2); a net of
few layers in a short run learns best at ten times that.
"""


VECTOR_WINDOW = 10
"""Tokens; the best for telling kinds of text apart (benchmarks/results/demo_recipe.md)."""


class PhaseShape(NamedTuple):
    """What the pairs and micro-batches of a phase are like."""

    name: str
    """As it was given."""
    max_length: int
    """Tokens of a pair."""
    tokens_per_batch: int
    """Tokens of a micro-batch, at most."""
    share: float
    """Share of the budget."""


def parse_phase(text: str) -> PhaseShape:
    """Read "128:4096:0.9".

    Raises:
        ValueError: it isn't three numbers, or they aren't possible.
    """
    try:
        length, tokens, share = text.split(":")
        phase = PhaseShape(text, int(length), int(tokens), float(share))
    except ValueError:
        phase = None
    if phase is None or not (8 <= phase.max_length <= phase.tokens_per_batch and 0 < phase.share):
        raise ValueError(
            "phases: expected MAX_LENGTH:TOKENS_PER_BATCH:SHARE such as 128:4096:0.9, 8 tokens or "
            f"more in a pair and a pair or more in a batch, got {text!r}"
        )
    return phase


@dataclass(frozen=True)
class PretrainConfig(Checked):
    """Pretrain a BERT from scratch on plain text, by masked words and next sentences or by one.

    The objectives: mlm, masked words; nsp, whether one segment of a pair follows the other; sop,
    in which of the two orders they stood (ALBERT). Where there are no pairs, a sequence is whole
    sentences of one document (RoBERTa).

    Raises:
        ValueError: a field is out of its range; the message names it.
    """

    out: Path
    """Directory of the run: tokenizer, data, log, checkpoints, pictures, and the model."""
    files: tuple[Path, ...] = ()
    """Text, a paragraph a line and a blank line between documents, or .jsonl; .gz, .xz and .zst
    are unpacked. A file named prepare is ./prepare, since prepare is a command."""
    data: Path | None = None
    """Directory that bert pretrain prepare made, instead of files."""
    validation_files: tuple[Path, ...] = ()
    """Text held out for evaluation; none: what data holds out."""
    model: str = "tiny"
    """Preset (tiny … large), a config.json, or a directory of a model to go on from."""
    tokenizer: Path | None = None
    """Directory or file of a tokenizer; None: that of data, the model's own, or learn one from the
    files."""
    vocab_size: int = 8192
    """Tokens of a vocabulary that is learned."""
    cased: bool = False
    """Whether a vocabulary that is learned tells A from a."""
    objective: Objective = "mlm+nsp"
    """What is minimised: the sum of the named losses. The saved model always has both heads."""
    max_length: int = 128
    """Tokens of a pair or sequence, [CLS] and [SEP] too."""
    tokens_per_batch: int = 2048
    """Tokens of a micro-batch, at most."""
    phases: tuple[str, ...] = ()
    """Parts of the run, each MAX_LENGTH:TOKENS_PER_BATCH:SHARE of the budget: longer pairs in the
    end as in 128:4096:0.9 512:4096:0.1, or batches that grow, 128:2048:0.5 128:8192:0.5; none: one
    part. Evaluation has max_length and tokens_per_batch."""
    mask_rate: float = 0.15
    """Share of the tokens that are to be predicted in training; evaluation has 0.15."""
    final_mask_rate: float | None = None
    """Share at the end of the run, which mask_rate changes into in a straight line; None: it
    stays. Needs a budget in steps."""
    whole_words: bool = False
    """Mask all pieces of a word together."""
    short_pairs: float = 0.1
    """Share of the pairs or sequences that aim at a random shorter length."""
    dropout: float | None = None
    """Both dropout probabilities of the model; None: the preset's 0.1."""
    initializer_range: float | None = None
    """Standard deviation of the initial weights; None: the preset's 0.02."""
    word_vectors: bool = False
    """Start a drawn model from counts of the text: word vectors, and the frequencies of words."""
    vector_window: int = VECTOR_WINDOW
    """Neighbours on each side that make a word's vector: 2 tell what fills a gap, 10 its topic."""
    local_start: bool = False
    """Start a drawn model with a first layer that looks at the tokens beside each one."""
    domain_files: tuple[Path, ...] = ()
    """Text of the kind that the model will meet: the word vectors heed it as much as all of
    files, and the vocabulary that is learned has its words; no pairs are made of it."""
    evaluation_tokens: int = 50_000
    """Tokens of the held-out text that an evaluation looks at, at most."""
    seed: int = 0
    """Seed of the drawn weights, of the pairs and masks, and of dropout."""
    training: TrainingConfig = CONFIG_DEFAULTS
    """How to train."""
    snapshots: bool = False
    """Keep the models of steps 0, 1, 2, 4, 8, … too, in out/snapshots."""
    resume: str = "auto"
    """auto: go on with the run in `out`, if there is one; none: begin anew; or a checkpoint."""
    overwrite: bool = False
    """Let a fresh start delete the run that is in `out`."""
    dry_run: bool = False
    """Only print the configuration, the size of the model, and estimates of memory and time."""

    def __post_init__(self) -> None:
        """Check what can be checked without a file, and name what is wrong."""
        self._require(
            "files", "at least one text file, or data", self.data is not None or bool(self.files)
        )
        self._require("files", "none beside data", self.data is None or not self.files)
        self._require("vocab_size", "16 or more", self.vocab_size >= 16)
        self._require("max_length", "8 tokens or more", self.max_length >= 8)
        self._require(
            "tokens_per_batch",
            f"max_length, {self.max_length}, or more",
            self.tokens_per_batch >= self.max_length,
        )
        self._check_phases()
        self._check_objective()
        self._require("short_pairs", "a share from 0 to 1", 0 <= self.short_pairs <= 1)
        self._require("evaluation_tokens", "1 or more", self.evaluation_tokens >= 1)
        self._require("seed", "0 or more, below 2**63", 0 <= self.seed < 2**63)
        self._require(
            "word_vectors",
            "false, since the weights are a saved model's",
            self.is_drawn or not self.word_vectors,
        )
        self._require("vector_window", "1 or more", self.vector_window >= 1)
        self._require(
            "vector_window",
            f"the default, {VECTOR_WINDOW}, without word_vectors",
            self.word_vectors or self.vector_window == VECTOR_WINDOW,
        )
        self._require(
            "local_start",
            "false, since the weights are a saved model's",
            self.is_drawn or not self.local_start,
        )
        self._require(
            "domain_files",
            "none without word_vectors",
            self.word_vectors or not self.domain_files,
        )
        if self.training.seed not in (0, self.seed):
            raise ValueError(
                f"training.seed: expected none, since seed sets it, got {self.training.seed}"
            )
        if self.data is None and not self.validation_files:
            self.refuse_evaluations()

    def refuse_evaluations(self) -> None:
        """Refuse another interval of evaluations than the default, where nothing is held out.

        Raises:
            ValueError: one was given.
        """
        every = self.training.evaluate_every
        if every not in (None, CONFIG_DEFAULTS.evaluate_every):
            raise ValueError(
                "training.evaluate_every: expected none without validation_files or data that "
                f"holds some out, got {every!r}"
            )

    def _check_objective(self) -> None:
        """Check what is to be learned, and refuse a mask option that would do nothing."""
        known = get_args(Objective)
        self._require("objective", f"one of {', '.join(known)}", self.objective in known)
        self._require("mask_rate", "a share between 0 and 1", 0 < self.mask_rate < 1)
        defaults = {field.name: field.default for field in fields(self)}
        for name in ("mask_rate", "final_mask_rate", "whole_words"):
            is_default = getattr(self, name) == defaults[name]
            expected = f"none with the objective {self.objective}, which masks nothing"
            self._require(name, expected, self.is_masked or is_default)
        final = self.final_mask_rate
        self._require("final_mask_rate", "a share between 0 and 1", final is None or 0 < final < 1)
        if final is not None and self.training.total().steps is None:
            raise ValueError(
                "training.budget: expected steps such as 10000, since the mask rate follows from "
                f"the step (final_mask_rate), got {self.training.budget!r}"
            )

    def _check_phases(self) -> None:
        phases = self.parsed_phases()
        total = sum(phase.share for phase in phases)
        self._require("phases", f"shares that add up to 1, not {total:g}", abs(total - 1) < 1e-6)
        longest = max(phase.max_length for phase in phases)
        self._require(
            "phases", f"at most max_length, {self.max_length}", longest <= self.max_length
        )

    def parsed_phases(self) -> list[PhaseShape]:
        """Return the phases; one of the whole run where none were given."""
        if not self.phases:
            return [PhaseShape("", self.max_length, self.tokens_per_batch, 1.0)]
        return [parse_phase(text) for text in self.phases]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The losses that are summed."""
        return tuple(self.objective.split("+"))

    @property
    def is_masked(self) -> bool:
        """Whether words are masked."""
        return "mlm" in self.tasks

    @property
    def largest_mask_rate(self) -> float:
        """The largest share of the tokens that a micro-batch has masked."""
        return max(self.mask_rate, self.final_mask_rate or 0.0) if self.is_masked else 0.0

    @property
    def pair_task(self) -> Literal["nsp", "sop"] | None:
        """What is asked about a pair; None: there are no pairs."""
        return "nsp" if "nsp" in self.tasks else "sop" if "sop" in self.tasks else None

    @property
    def is_preset(self) -> bool:
        """Whether `model` names a size; a directory of that name is written ./tiny."""
        return self.model in PRESETS

    @property
    def is_drawn(self) -> bool:
        """Whether the weights are drawn at random, not a saved model's."""
        return self.is_preset or not Path(self.model).is_dir()

    @property
    def is_learned(self) -> bool:
        """Whether the vocabulary is learned from the files: a saved model has one."""
        return self.is_drawn and self.tokenizer is None and self.data is None

    @property
    def fits_tokenizer(self) -> bool:
        """Whether a drawn model gets as many words as the tokenizer has.

        A config.json beside a tokenizer that was given says itself how many.
        """
        return self.is_drawn and (self.is_preset or self.tokenizer is None)

    def resolved(self) -> "PretrainConfig":
        """Return the configuration with nothing left to guess."""
        return replace(self, training=replace(self.training, seed=self.seed))

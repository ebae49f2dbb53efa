"""What a training run is told: one frozen dataclass that is also its command line.

Imports no torch, so that `--help` answers at once.
"""

import math
import os
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from bert.checked import Checked
from bert.training.span import Span, parse_span

Optimizer = Literal["adamw", "bert_adam", "lamb", "muon"]
Schedule = Literal["linear", "constant", "cosine", "inverse_sqrt", "wsd"]

# The share of a run in which wsd's rate falls, as Hägele et al. 2024 found enough.
COOLDOWN = 0.2

# What may differ when a run is resumed. Everything else changes the numbers and is refused.
CHANGEABLE = frozenset(
    {
        "budget",
        "evaluate_every",
        "checkpoint_every",
        "keep_checkpoints",
        "loader_workers",
        "max_bad_steps",
        "statistics_every",
        "trackers",
        "device",
        "kernels",
        "threads",
        "sharding",
        "timeout",
    }
)


@dataclass(frozen=True)
class TrainingConfig(Checked):
    """How to train: the budget, the optimiser, and what is kept on the way.

    Raises:
        ValueError: a field is out of its range; the message names it.
    """

    budget: str | None = None
    """How long to train: steps (500), tokens (20Mtok) or wall clock (90s, 6min, 1h30min)."""
    optimizer: Optimizer = "adamw"
    """AdamW; Google's Adam, without bias correction; LAMB, for large batches; Muon for layers."""
    learning_rate: float = 1e-4
    """The highest learning rate, reached where the warm-up ends."""
    warmup: float = 0.1
    """Share of the budget in which the learning rate rises from zero."""
    schedule: Schedule = "linear"
    """After the warm-up: a line or a cosine to 0; stay; 1/√t; or stay, then 1 − √t to 0 (wsd)."""
    cooldown: float | None = None
    """Share of the budget in which wsd falls; None: 0.2."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the mean of the gradient and of its square."""
    eps: float = 1e-6
    """What is added to the root of the mean square."""
    weight_decay: float = 0.01
    """Decoupled weight decay; biases and LayerNorm weights have none."""
    layer_decay: float | None = None
    """Share of a layer's learning rate that the one below it has, such as 0.9; None: all of it."""
    max_grad_norm: float | None = 1.0
    """Gradients are scaled down to this norm; None: never."""
    accumulation: int = 1
    """Micro-batches in one optimiser step, of all processes together."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of the matrix products; auto: bfloat16 where the hardware has it."""
    evaluate_every: str | None = None
    """Evaluate every so many steps (500) or tokens (2Mtok), or so long; None: only at the end."""
    checkpoint_every: str | None = "10min"
    """Save every so many steps (500) or tokens (2Mtok), or so long; None: only at the end."""
    keep_checkpoints: int = 2
    """The newest checkpoints that are kept; older ones are deleted."""
    loader_workers: int = 0
    """Processes that prepare batches; 0: the training process does."""
    max_bad_steps: int = 5
    """NaN or infinite steps in a row that end the run."""
    statistics_every: int | None = None
    """Log norms, update ratios and attention entropy every so many steps; None: never."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where the log's numbers are shown too; each is an extra of its name."""
    seed: int = 0
    """Seed of dropout."""
    device: str = "auto"
    """Where to train: cpu, cuda, cuda:1; auto: cuda where there is one."""
    kernels: Literal["auto", "torch", "triton", "reference"] = "auto"
    """What computes; auto: torch's operations. Ours in Triton were not yet run on a GPU."""
    threads: int | None = None
    """CPU threads of torch; None: as many as torch chooses."""
    sharding: Literal["none", "full"] = "none"
    """What each of several processes keeps: the whole model (none) or a part of it (full)."""
    timeout: str = "30min"
    """How long one of several processes waits for the others before it gives up."""

    def __post_init__(self) -> None:
        """Check each field by itself, and name the one that is wrong."""
        for name in ("budget", "evaluate_every", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None:
                parse_span(name, value)
        self._require(
            "optimizer",
            f"one of {', '.join(get_args(Optimizer))}",
            self.optimizer in get_args(Optimizer),
        )
        self._require("learning_rate", "a positive number", 0 < self.learning_rate < math.inf)
        self._require("warmup", "a share in [0, 1)", 0 <= self.warmup < 1)
        self._require(
            "schedule",
            f"one of {', '.join(get_args(Schedule))}",
            self.schedule in get_args(Schedule),
        )
        self._require(
            "warmup",
            "a share above 0, since inverse_sqrt falls from its end",
            self.schedule != "inverse_sqrt" or self.warmup > 0,
        )
        cooldown = self.cooldown_share()
        self._require(
            "cooldown",
            "None, since only the schedule wsd has one",
            self.cooldown is None or self.schedule == "wsd",
        )
        self._require(
            "cooldown",
            "a share above 0 that leaves room for warmup",
            self.schedule != "wsd" or (cooldown > 0 and self.warmup + cooldown <= 1),
        )
        self._require(
            "betas",
            "two numbers in [0, 1)",
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
        )
        self._require("eps", "a positive number", 0 < self.eps < math.inf)
        self._require("weight_decay", "zero or more", 0 <= self.weight_decay < math.inf)
        self._require(
            "layer_decay",
            "a share in (0, 1) or None",
            self.layer_decay is None or 0 < self.layer_decay < 1,
        )
        self._require(
            "max_grad_norm",
            "a positive number or None",
            self.max_grad_norm is None or 0 < self.max_grad_norm < math.inf,
        )
        self._require("accumulation", "1 or more", self.accumulation >= 1)
        self._require(
            "precision",
            "auto, float32, bfloat16 or float16",
            self.precision in ("auto", "float32", "bfloat16", "float16"),
        )
        self._require("keep_checkpoints", "1 or more", self.keep_checkpoints >= 1)
        self._require("loader_workers", "0 or more", self.loader_workers >= 0)
        self._require("max_bad_steps", "1 or more", self.max_bad_steps >= 1)
        self._require(
            "statistics_every",
            "1 step or more, or None",
            self.statistics_every is None or self.statistics_every >= 1,
        )
        known = ("tensorboard", "wandb", "trackio")
        self._require(
            "trackers",
            f"any of {', '.join(known)}, each once",
            set(self.trackers) <= set(known) and len(set(self.trackers)) == len(self.trackers),
        )
        self._require("seed", "0 or more, below 2**63", 0 <= self.seed < 2**63)
        cores = os.cpu_count() or 1
        self._require(
            "threads",
            f"None or 1 to {cores}, the cores of this machine",
            self.threads is None or 1 <= self.threads <= cores,
        )
        self._require("sharding", "none or full", self.sharding in ("none", "full"))
        self._require(
            "optimizer",
            "adamw, bert_adam or muon with sharding full, since lamb's kernels take whole tensors",
            self.sharding == "none" or self.optimizer != "lamb",
        )
        self._require(
            "timeout",
            "a time such as 90s or 30min",
            parse_span("timeout", self.timeout).seconds is not None,
        )

    def total(self) -> Span:
        """Return the budget, which a run must have.

        Raises:
            ValueError: there is none.
        """
        if self.budget is None:
            raise ValueError(
                "budget: expected steps such as 500, tokens such as 20Mtok, or a time such as "
                "6min, got None"
            )
        return parse_span("budget", self.budget)

    def cooldown_share(self) -> float:
        """Return the share of the budget in which wsd falls."""
        return COOLDOWN if self.cooldown is None else self.cooldown

    def every(self, name: Literal["evaluate_every", "checkpoint_every"]) -> Span | None:
        """Return one of the two intervals."""
        value = getattr(self, name)
        return None if value is None else parse_span(name, value)

    def timeout_seconds(self) -> float:
        """Return `timeout`, which is a time."""
        seconds = parse_span("timeout", self.timeout).seconds
        assert seconds is not None
        return seconds

    def identity(self) -> dict[str, Any]:
        """Return what may not change when the run is resumed, as JSON would give it back."""
        fields = {name: value for name, value in asdict(self).items() if name not in CHANGEABLE}
        return {**fields, "betas": list(self.betas)}

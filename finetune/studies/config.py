"""What `bert finetune seeds`, `folds`, `sizes` and `search` are told: a run, and how to vary it.

Imports no torch, so that `--help` answers at once.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from finetune.config import FinetuneConfig
from finetune.studies.space import DEFAULT_SPACE, Parameter, parse_space


@dataclass(frozen=True)
class StudyConfig(FinetuneConfig):
    """Several runs of one configuration.

    Raises:
        ValueError: a field is out of its range; the message names it.
    """

    out: Path
    """Directory of the study: a directory of each run, and a report on all."""
    resume: str = "auto"
    """auto: keep the runs that are finished in `out`, go on with the others; none: begin anew."""
    overwrite: bool = False
    """Let a fresh start delete the study that is in `out`."""

    may_grow: ClassVar[frozenset[str]] = frozenset()
    """The fields that may differ when a study goes on."""

    def __post_init__(self) -> None:
        """Check what can be checked without a file."""
        super().__post_init__()
        self._require("resume", "auto or none", self.resume in ("auto", "none"))

    def base(self, **changes: Any) -> FinetuneConfig:
        """Return what all runs have in common, with some fields changed."""
        own = {f.name: getattr(self, f.name) for f in fields(FinetuneConfig)}
        return FinetuneConfig(**own | {"resume": "auto", "overwrite": False} | changes)

    def _require_judge(self) -> None:
        """Refuse runs that nothing is measured on."""
        is_judged = self.test_file is not None or self.validation_file is not None
        self._require("test_file", "a file, or a validation_file, to score the runs on", is_judged)


@dataclass(frozen=True)
class SeedsConfig(StudyConfig):
    """Fine-tune with several seeds, and tell how far their scores lie apart.

    Takes what bert finetune takes; the report has the mean, the standard deviation, each score,
    and a 95% interval of the mean.
    """

    seeds: int = 5
    """How many seeds: `seed`, and those that follow it; more may be asked for later."""

    may_grow: ClassVar[frozenset[str]] = frozenset({"seeds"})

    def __post_init__(self) -> None:
        """Check what can be checked without a file."""
        super().__post_init__()
        self._require("seeds", "2 or more", self.seeds >= 2)
        self._require_judge()


@dataclass(frozen=True)
class FoldsConfig(StudyConfig):
    """Cross-validate: cut the train file into folds, and test on each what the others teach.

    Takes what bert finetune takes, but a test file; a validation file picks each run's best
    weights, as in bert finetune.
    """

    folds: int = 5
    """Into how many parts the rows are cut; in classification each has its share of a class."""

    def __post_init__(self) -> None:
        """Check what can be checked without a file."""
        super().__post_init__()
        self._require("folds", "2 or more", self.folds >= 2)
        is_absent = self.test_file is None
        self._require("test_file", "none, since each run is tested on a fold", is_absent)


@dataclass(frozen=True)
class SizesConfig(StudyConfig):
    """Fine-tune on ever more rows, with several seeds, and draw the learning curve.

    Takes what bert finetune takes. With the same epochs, fewer rows are fewer steps too; a
    training.budget gives each size the same.
    """

    sizes: tuple[int, ...] = ()
    """Rows to learn from, a size each; none: all, a quarter, a sixteenth …, down to 50."""
    seeds: int = 3
    """How many seeds a size has; each draws rows of its own, and a smaller size is part of a
    larger one."""

    may_grow: ClassVar[frozenset[str]] = frozenset({"sizes", "seeds"})

    def __post_init__(self) -> None:
        """Check what can be checked without a file."""
        super().__post_init__()
        self._require("seeds", "2 or more", self.seeds >= 2)
        self._require("sizes", "1 row or more in each", all(size >= 1 for size in self.sizes))
        self._require("sizes", "each one once", len({*self.sizes}) == len(self.sizes))
        self._require_judge()


@dataclass(frozen=True)
class SearchConfig(StudyConfig):
    """Search for settings that do best on the validation file, with optuna.

    Takes what bert finetune takes. The test file, if there is one, judges the best alone.
    """

    trials: int = 20
    """How many settings to try; more may be asked for later."""
    space: tuple[str, ...] = DEFAULT_SPACE
    """What to vary: NAME=LOW..HIGH, NAME=LOW..HIGH:log, or NAME=A,B,C, where NAME is an option of
    bert finetune, or options.NAME one of the task's."""
    prune: bool = True
    """Whether a run ends early that is worse than the others' median at the same evaluation."""

    may_grow: ClassVar[frozenset[str]] = frozenset({"trials"})

    def __post_init__(self) -> None:
        """Check what can be checked without a file."""
        super().__post_init__()
        self._require("trials", "1 or more", self.trials >= 1)
        has_file = self.validation_file is not None
        self._require("validation_file", "a file, on which trials are compared", has_file)
        assert self.parameters

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """What `space` says."""
        return parse_space(self.space)

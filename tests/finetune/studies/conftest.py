"""Studies of the planted rule, with a run that is over in a moment."""

import pytest

from finetune.evaluation import report

FAST = {"budget": "3", "learning_rate": 3e-3}


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    """The pictures of a run are tested elsewhere, and take longer than the run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw", lambda *_: None)
        yield


@pytest.fixture(scope="session")
def study_of(configured):
    """A configuration of a study: what all its runs have in common, and what is the study's."""

    def configure(kind, out, training=None, own=None, **changes):
        changes = {"validation_file": None, "out": out} | changes
        base = configured(FAST | (training or {}), **changes)
        return kind(**vars(base) | (own or {}))

    return configure

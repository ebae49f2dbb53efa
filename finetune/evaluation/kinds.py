"""The kinds of evidence by the names that evaluation.json calls them."""

from finetune.evaluation.answers import Answers
from finetune.evaluation.choices import ChosenTexts
from finetune.evaluation.class_sets import ClassSets
from finetune.evaluation.entities import Entities
from finetune.evaluation.evidence import Evidence
from finetune.evaluation.numbers import Numbers
from finetune.evaluation.predictions import Predictions

KINDS: dict[str, type[Evidence]] = {
    "classes": Predictions,
    "sets of classes": ClassSets,
    "numbers": Numbers,
    "entities": Entities,
    "answers": Answers,
    "choices": ChosenTexts,
}


def name_of(evidence: Evidence) -> str:
    """Return what a kind is called."""
    return next(name for name, kind in KINDS.items() if type(evidence) is kind)

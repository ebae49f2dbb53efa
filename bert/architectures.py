"""Which class of ours is which of Hugging Face's, and which one wrote a checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bert.finetuning import (
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)
from bert.model import Bert
from bert.pretraining import BertForMaskedLM, BertForPreTraining
from bert.weight_files import StoredWeight
from bert.weight_matching import LoadReport

Model = (
    Bert
    | BertForMaskedLM
    | BertForSequenceClassification
    | BertForTokenClassification
    | BertForMultipleChoice
    | BertForQuestionAnswering
)
ARCHITECTURES: dict[type[Model], str] = {
    Bert: "BertModel",
    BertForPreTraining: "BertForPreTraining",
    BertForMaskedLM: "BertForMaskedLM",
    BertForSequenceClassification: "BertForSequenceClassification",
    BertForTokenClassification: "BertForTokenClassification",
    BertForMultipleChoice: "BertForMultipleChoice",
    BertForQuestionAnswering: "BertForQuestionAnswering",
}
"""What Hugging Face calls a class of ours."""

_CLASSES: dict[str, type[Model]] = {
    **{theirs: ours for ours, theirs in ARCHITECTURES.items()},
    # The configuration refuses a decoder; without one this is BertForMaskedLM.
    "BertLMHeadModel": BertForMaskedLM,
}
# No class of ours has this head alone: the encoder and the pooler are taken, with a warning.
_ENCODER_ONLY = ("BertForNextSentencePrediction",)
# Each of these has a `classifier`, and what it learnt is of no use to the others.
WITH_CLASSIFIER = (
    "BertForSequenceClassification", "BertForTokenClassification", "BertForMultipleChoice",
)  # fmt: skip


def written_by(values: Mapping[str, Any], found: Mapping[str, StoredWeight]) -> str:
    """Say which class wrote a checkpoint: config.json does, or else the weights."""
    named = values.get("architectures")
    if isinstance(named, list) and len(named) == 1 and isinstance(named[0], str):
        return named[0]
    if named not in (None, []):
        return f"{named!r:.80}"  # no class's name: matters only to who asks for a class by it
    if any(name.startswith("cls.predictions.") for name in found):
        has_both = "cls.seq_relationship.weight" in found
        return "BertForPreTraining" if has_both else "BertForMaskedLM"
    if "classifier.weight" in found:
        return "a classifier"
    return "BertForQuestionAnswering" if "qa_outputs.weight" in found else "BertModel"


def class_for(architecture: str, directory: Path, report: LoadReport) -> type[Model]:
    """Choose the class of ours for a checkpoint, with a warning where it can't take the head."""
    if architecture in _ENCODER_ONLY:
        report.warnings.append(f"{directory}: only the encoder of this {architecture} is loaded")
        return Bert
    if architecture not in _CLASSES:
        known = ", ".join((*_CLASSES, *_ENCODER_ONLY))
        raise ValueError(
            f"{directory / 'config.json'}: architectures: expected one of {known}, "
            f"got {architecture}; model_class=… says which class to fill"
        )
    return _CLASSES[architecture]

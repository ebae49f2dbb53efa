"""BERT, written by hand: `Bert`, its heads, its configuration, its text and its weights.

Names are imported when they are asked for, so that a command's `--help` need not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bert.checkpoint import load_pretrained as load_pretrained
    from bert.checkpoint import save_pretrained as save_pretrained
    from bert.config import BertConfig as BertConfig
    from bert.finetuning import BertForMultipleChoice as BertForMultipleChoice
    from bert.finetuning import BertForQuestionAnswering as BertForQuestionAnswering
    from bert.finetuning import BertForSequenceClassification as BertForSequenceClassification
    from bert.finetuning import BertForTokenClassification as BertForTokenClassification
    from bert.model import Bert as Bert
    from bert.packing import PackedBatch as PackedBatch
    from bert.pretraining import BertForMaskedLM as BertForMaskedLM
    from bert.pretraining import BertForPreTraining as BertForPreTraining
    from bert.tokenization import Tokenizer as Tokenizer

_HOME = {
    "Bert": "bert.model",
    "BertConfig": "bert.config",
    "BertForMaskedLM": "bert.pretraining",
    "BertForMultipleChoice": "bert.finetuning",
    "BertForPreTraining": "bert.pretraining",
    "BertForQuestionAnswering": "bert.finetuning",
    "BertForSequenceClassification": "bert.finetuning",
    "BertForTokenClassification": "bert.finetuning",
    "PackedBatch": "bert.packing",
    "Tokenizer": "bert.tokenization",
    "load_pretrained": "bert.checkpoint",
    "save_pretrained": "bert.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bert' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOME)

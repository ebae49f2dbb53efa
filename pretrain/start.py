"""The network that a pretraining run begins with: its shape, and its first weights."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bert.checkpoint import load_pretrained, model_directory
from bert.config import BertConfig
from bert.pretraining import BertForPreTraining
from bert.tokenization import Tokenizer
from bert.training.progress import say
from bert.weight_files import open_weights
from bert.weight_matching import LoadReport, spell
from bert.weight_names import head_of, to_ours
from kernels import KernelSet
from pretrain.config import PretrainConfig
from pretrain.corpus import Corpus
from pretrain.local_start import start_locally
from pretrain.word_vectors import word_vectors


def read_model_config(config: PretrainConfig) -> BertConfig:
    """Find the model's shape: a preset's, a config.json's, or a saved model's.

    Raises:
        ValueError: there is none, or pairs of `max_length` don't fit into it.
    """
    path = Path(config.model)
    if config.is_preset:
        shape = BertConfig.preset(config.model)
    elif path.exists():
        shape = BertConfig.load(model_directory(path) if path.is_dir() else path)
    else:
        raise ValueError(
            f"model: expected a preset, a config.json or a model directory, got {config.model!r}"
        )
    if config.dropout is not None:
        shape = replace(
            shape,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
        )
    if config.initializer_range is not None:
        shape = replace(shape, initializer_range=config.initializer_range)
    if shape.max_position_embeddings < config.max_length:
        raise ValueError(
            f"max_length: expected at most the model's max_position_embeddings, "
            f"{shape.max_position_embeddings}, got {config.max_length}"
        )
    if config.pair_task is not None and shape.type_vocab_size < 2:
        raise ValueError(
            f"model: expected 2 segment types for pairs, got type_vocab_size "
            f"{shape.type_vocab_size}"
        )
    return shape


def check_vocabulary(model: BertConfig, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer whose ids the model's embedding doesn't hold.

    Raises:
        ValueError: it has more tokens, or another padding token.
    """
    if tokenizer.vocab_size > model.vocab_size:
        raise ValueError(
            f"tokenizer: expected at most the model's vocab_size, {model.vocab_size} tokens, "
            f"got {tokenizer.vocab_size}"
        )
    if model.pad_token_id not in (None, tokenizer.pad_id):
        raise ValueError(
            f"tokenizer: expected the model's pad_token_id, {model.pad_token_id}, "
            f"got {tokenizer.pad_id}"
        )


def build_model(
    config: PretrainConfig, model_config: BertConfig, kernels: KernelSet
) -> BertForPreTraining:
    """Draw a model's weights, or take those of a saved one."""
    torch.manual_seed(config.seed)
    if config.is_drawn:
        return BertForPreTraining(model_config, kernels)
    directory = model_directory(Path(config.model))
    new = _missing_heads(directory)
    trained = {"mlm_head": config.is_masked, "nsp_head": config.pair_task is not None}
    for head in new:
        what = "this run trains it" if trained[head] else "this run doesn't train it"
        say(f"{config.model}: has no {head}; one is drawn anew, and {what}")
    return load_pretrained(
        directory,
        BertForPreTraining,
        new=new,
        kernels=kernels,
        **_changes(config, model_config),
    )


def _missing_heads(directory: Path) -> list[str]:
    """List the pretraining heads that a saved model hasn't, as one for another task has not."""
    with open_weights(directory) as stored:
        ours = (to_ours(name) for name in spell(stored, (), LoadReport()))
        found = {head_of(names[0]) for names in ours if names is not None}
    return [head for head in ("mlm_head", "nsp_head") if head not in found]


def start(
    model: BertForPreTraining, config: PretrainConfig, corpora: Sequence[Corpus], unigram: Tensor
) -> None:
    """Put what the configuration asks for into the weights of a drawn model.

    Resumed runs overwrite it with their checkpoint.
    """
    if config.word_vectors:
        start_from_counts(model, config, corpora, unigram)
    if config.local_start:
        start_locally(model)


@torch.no_grad()
def start_from_counts(
    model: BertForPreTraining, config: PretrainConfig, corpora: Sequence[Corpus], unigram: Tensor
) -> None:
    """Put what counting the text tells into the weights that it tells of.

    The word embedding gets the corpora's word vectors, scaled like the other initial weights; the
    masked-word head's bias gets the log frequencies, so that the loss begins at the unigram loss.
    """
    vectors = word_vectors(corpora, model.config.hidden_size, config.seed, config.vector_window)
    vectors *= model.config.initializer_range
    word = model.bert.embeddings.word.weight
    word[: len(vectors)] = torch.where(vectors != 0, vectors, word[: len(vectors)])
    model.mlm_head.bias[: len(unigram)] = unigram.to(model.mlm_head.bias.dtype)


def _changes(config: PretrainConfig, model_config: BertConfig) -> dict[str, Any]:
    """List what the run sets anew in a saved model's configuration."""
    # A model that was fine-tuned is no longer one for its task.
    changes: dict[str, Any] = {"finetuning_task": None, "task_specific_params": None}
    if config.dropout is None:
        return changes
    return changes | {
        "hidden_dropout_prob": model_config.hidden_dropout_prob,
        "attention_probs_dropout_prob": model_config.attention_probs_dropout_prob,
    }

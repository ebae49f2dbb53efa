"""A small random model, its tokenizer, and what the page shows of it."""

from functools import cache

import torch

from bert import BertConfig, BertForPreTraining, Tokenizer
from bert.internals.page.collect import Reading, collect

WORDS = "the cat sat on mat and dog ran to it , . ! we are in old house".split()
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TEXT, PAIR = "The old [MASK] sat on the mats.", "It ran!"
OTHER = "The old [MASK] ran to the mats."
SPARE = 3  # rows of the embedding that no token of the tokenizer has


@cache
def tokenizer():
    pieces = [*LETTERS, *("##" + letter for letter in LETTERS)]
    return Tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *pieces])


def config(**changes):
    shape = dict(
        vocab_size=tokenizer().vocab_size + SPARE, hidden_size=32, num_hidden_layers=3,
        num_attention_heads=4, intermediate_size=64, max_position_embeddings=40,
        initializer_range=0.3,
    )  # fmt: skip
    return BertConfig(**(shape | changes))


def randomised(model):
    """No bias at 0; what nobody may guess is what the model likes best."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        if hasattr(model, "mlm_head"):
            model.mlm_head.bias[-SPARE:] = 30.0
    return model.eval()


@cache
def model():
    torch.manual_seed(1)
    return randomised(BertForPreTraining(config()))


@cache
def payload():
    reading = Reading(TEXT, PAIR, "cat", OTHER, "dog")
    return collect(model(), tokenizer(), reading, name="A small model", card="# Small\n\nRandom.")


def encoded():
    return tokenizer().encode(TEXT, PAIR, allow_special=True)

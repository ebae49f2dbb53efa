"""A small model for masked words of Hugging Face's, and ours with its weights."""

from functools import cache

import torch

from bert import BertConfig, BertForPreTraining, PackedBatch
from kernels import TORCH

CONFIG = BertConfig(
    vocab_size=61, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
    intermediate_size=48, max_position_embeddings=40, initializer_range=0.2,
)  # fmt: skip
LENGTHS = [11, 5, 1, 7]


def model_of(kernels=TORCH, dtype=torch.float64, model_class=BertForPreTraining, config=CONFIG):
    """A random model with no bias at 0 and no LayerNorm at 1."""
    torch.manual_seed(4)
    model = model_class(config, kernels).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def rows(lengths=LENGTHS, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, 61, (n,), generator=generator).tolist() for n in lengths]


def batch_of(lengths=LENGTHS, seed=3):
    ids = rows(lengths, seed)
    return PackedBatch.from_lists(
        ids, [[int(2 * i >= len(r)) for i in range(len(r))] for r in ids]
    )


@cache
def both():
    """Hugging Face's model in float64, and ours with its weights."""
    import tempfile

    from tests.bert.hugging_face import load_both, saved

    with tempfile.TemporaryDirectory() as path:
        saved(path, num_hidden_layers=3)
        return load_both(path, "BertForPreTraining", torch.float64)

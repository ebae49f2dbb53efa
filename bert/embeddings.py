"""The encoder's input: word + position + segment, normalised (Devlin et al. 2018, section 3)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bert.config import BertConfig
from bert.packing import PackedBatch
from kernels import Dropout, KernelSet
from kernels.kernel_set import EmbeddingIndices, EmbeddingTables


def _table(rows: int, width: int) -> nn.Embedding:
    """Make a table without values: `init_weights` draws them, or a checkpoint brings them.

    The draw that nn.Embedding makes of itself takes two seconds where a model is built to be
    loaded into, since torch then imports its compiler.
    """
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)


class Embeddings(nn.Module):
    """Look up a token's three vectors, add them, normalise, drop."""

    def __init__(self, config: BertConfig, kernels: KernelSet) -> None:
        super().__init__()
        self.config, self.kernels = config, kernels
        self.word = _table(config.vocab_size, config.hidden_size)
        self.position = _table(config.max_position_embeddings, config.hidden_size)
        self.token_type = _table(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, batch: PackedBatch, seed: Tensor | None) -> Float[Tensor, "tokens hidden"]:
        """Embed a packed batch; `seed` is None where nothing drops."""
        pad = self.config.pad_token_id
        p = self.config.hidden_dropout_prob
        return self.kernels.embedding_layer_norm(
            EmbeddingIndices(batch.input_ids, batch.position_ids, batch.token_type_ids),
            EmbeddingTables(self.word.weight, self.position.weight, self.token_type.weight),
            self.norm.weight,
            self.norm.bias,
            self.norm.eps,
            -1 if pad is None else pad,
            None if seed is None else Dropout(p, seed, 0),
        )

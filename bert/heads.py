"""What stands on the encoder: the pooler, and the two pretraining heads.

(Devlin et al. 2018, section 3.1 and appendix A.)
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from bert.config import BertConfig
from kernels import KernelSet, PackedSequences


class Pooler(nn.Module):
    """One vector a sequence: tanh of a linear map of its first token, [CLS]."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden: Float[Tensor, "tokens hidden"], sequences: PackedSequences
    ) -> Float[Tensor, "seqs hidden"]:
        """Pool each sequence; one of no tokens has no [CLS] and gets zeros."""
        starts = sequences.cu_seqlens[:-1].long()
        if not sequences.has_empty:
            return torch.tanh(self.dense(hidden.index_select(0, starts)))
        has_tokens = sequences.cu_seqlens.diff() > 0
        firsts = torch.tanh(self.dense(hidden.index_select(0, starts[has_tokens])))
        pooled = firsts.new_zeros(len(starts), firsts.shape[-1])
        return pooled.index_copy(0, has_tokens.nonzero().squeeze(1), firsts)


class MaskedLMHead(nn.Module):
    """Predict a token from its vector: dense, GELU, LayerNorm, then the word embedding's rows.

    The output matrix is the word embedding itself, except in checkpoints that hold another one.
    """

    def __init__(self, config: BertConfig, kernels: KernelSet) -> None:
        super().__init__()
        self.config, self.kernels = config, kernels
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.dense_bias = nn.Parameter(torch.zeros(config.hidden_size))
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.decoder = (
            None
            if config.tie_word_embeddings
            else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def transform(self, hidden: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens hidden"]:
        """Bring a vector to where the word embeddings are."""
        activated = self.kernels.bias_gelu(
            self.dense(hidden), self.dense_bias, self.config.gelu_form
        )
        return self.kernels.layer_norm(activated, self.norm.weight, self.norm.bias, self.norm.eps)

    def output_weight(self, word: Float[Tensor, "vocab hidden"]) -> Float[Tensor, "vocab hidden"]:
        """The matrix that turns a vector into logits."""
        return word if self.decoder is None else self.decoder.weight

    def forward(
        self, hidden: Float[Tensor, "tokens hidden"], word: Float[Tensor, "vocab hidden"]
    ) -> Float[Tensor, "tokens vocab"]:
        """Return each token's logits over the vocabulary."""
        transformed = self.transform(hidden)
        return nn.functional.linear(transformed, self.output_weight(word), self.bias)

    def loss(
        self,
        masked: Float[Tensor, "masked hidden"],
        word: Float[Tensor, "vocab hidden"],
        labels: Int64[Tensor, " masked"],
    ) -> Float[Tensor, ""]:
        """Sum the losses of the masked positions, the only ones computed."""
        return self.kernels.linear_cross_entropy(
            self.transform(masked), self.output_weight(word), self.bias, labels
        )


class NextSentenceHead(nn.Module):
    """Say whether the second segment follows the first: class 0 is "is next"."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, 2)

    def forward(self, pooled: Float[Tensor, "seqs hidden"]) -> Float[Tensor, "seqs 2"]:
        """Return the two logits of each sequence."""
        return self.dense(pooled)

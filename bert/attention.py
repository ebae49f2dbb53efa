"""The first half of a layer: tokens of one sequence look at each other.

    hidden ── qkv ──> query, key, value ── attention ──> context ── output ──> + hidden, LayerNorm

(Vaswani et al. 2017, section 3.2; Devlin et al. 2018 put the LayerNorm after the addition.)
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bert.config import BertConfig
from kernels import Dropout, KernelSet, PackedSequences


class SelfAttention(nn.Module):
    """Multi-head attention with its output projection, residual and LayerNorm."""

    def __init__(self, config: BertConfig, kernels: KernelSet, first_stream: int) -> None:
        super().__init__()
        self.config, self.kernels, self.first_stream = config, kernels, first_stream
        # One product makes all three: the weight's rows are query's, then key's, then value's.
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        # The output's bias is added by the kernel that drops, adds and normalises.
        self.output = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.output_bias = nn.Parameter(torch.zeros(config.hidden_size))
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def split_heads(
        self, hidden: Float[Tensor, "tokens hidden"]
    ) -> tuple[Float[Tensor, "tokens heads head_dim"], ...]:
        """Project to query, key and value: three views of one tensor."""
        shape = (hidden.shape[0], 3, self.config.num_attention_heads, self.config.head_dim)
        return self.qkv(hidden).view(shape).unbind(1)

    def forward(
        self,
        hidden: Float[Tensor, "tokens hidden"],
        sequences: PackedSequences,
        seed: Tensor | None,
    ) -> Float[Tensor, "tokens hidden"]:
        """Attend, project, add, normalise; `seed` is None where nothing drops."""
        query, key, value = self.split_heads(hidden)
        on_probabilities, on_output = (
            (None, None)
            if seed is None
            else (
                Dropout(self.config.attention_probs_dropout_prob, seed, self.first_stream),
                Dropout(self.config.hidden_dropout_prob, seed, self.first_stream + 1),
            )
        )
        context = self.kernels.attention(query, key, value, sequences, on_probabilities)
        normalised, _ = self.kernels.add_layer_norm(
            self.output(context.flatten(1)),
            self.output_bias,
            hidden,
            self.norm.weight,
            self.norm.bias,
            self.norm.eps,
            on_output,
        )
        return normalised

    def probabilities(
        self, hidden: Float[Tensor, "tokens hidden"], sequences: PackedSequences
    ) -> Float[Tensor, "seqs heads max_seqlen max_seqlen"]:
        """Compute for study what each token looks at, given the layer's input."""
        query, key, _ = self.split_heads(hidden)
        return self.kernels.attention_probabilities(query, key, sequences)

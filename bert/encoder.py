"""The stack of layers: attention, then a feed-forward network on each token by itself."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bert.attention import SelfAttention
from bert.config import BertConfig
from kernels import Dropout, KernelSet, PackedSequences

# The embeddings drop with stream 0; each layer has three places that drop.
STREAMS_PER_LAYER = 3


class FeedForward(nn.Module):
    """The second half of a layer: widen, GELU, narrow, add, normalise."""

    def __init__(self, config: BertConfig, kernels: KernelSet, stream: int) -> None:
        super().__init__()
        self.config, self.kernels, self.stream = config, kernels, stream
        # Both biases are added by the kernels that come after the products.
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_bias = nn.Parameter(torch.zeros(config.intermediate_size))
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.down_bias = nn.Parameter(torch.zeros(config.hidden_size))
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(
        self, hidden: Float[Tensor, "tokens hidden"], seed: Tensor | None
    ) -> Float[Tensor, "tokens hidden"]:
        """Transform each token; `seed` is None where nothing drops."""
        widened = self.kernels.bias_gelu(self.up(hidden), self.up_bias, self.config.gelu_form)
        normalised, _ = self.kernels.add_layer_norm(
            self.down(widened),
            self.down_bias,
            hidden,
            self.norm.weight,
            self.norm.bias,
            self.norm.eps,
            None if seed is None else Dropout(self.config.hidden_dropout_prob, seed, self.stream),
        )
        return normalised


class Layer(nn.Module):
    """One layer of the encoder."""

    def __init__(self, config: BertConfig, kernels: KernelSet, index: int) -> None:
        super().__init__()
        first_stream = 1 + STREAMS_PER_LAYER * index
        self.attention = SelfAttention(config, kernels, first_stream)
        self.feed_forward = FeedForward(config, kernels, first_stream + 2)

    def forward(
        self,
        hidden: Float[Tensor, "tokens hidden"],
        sequences: PackedSequences,
        seed: Tensor | None,
    ) -> Float[Tensor, "tokens hidden"]:
        """Run both halves."""
        return self.feed_forward(self.attention(hidden, sequences, seed), seed)


class Encoder(nn.Module):
    """The layers, one after another."""

    def __init__(self, config: BertConfig, kernels: KernelSet) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Layer(config, kernels, index) for index in range(config.num_hidden_layers)
        )
        self.gradient_checkpointing = False
        """Whether training keeps only each layer's input and computes the rest again."""

    def forward(
        self,
        hidden: Float[Tensor, "tokens hidden"],
        sequences: PackedSequences,
        seed: Tensor | None,
    ) -> list[Float[Tensor, "tokens hidden"]]:
        """Return the input and each layer's output: num_hidden_layers + 1 tensors."""
        states = [hidden]
        for layer in self.layers:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                # The masks follow from the seed, so there is no random state to restore.
                hidden = checkpoint(
                    layer, hidden, sequences, seed, use_reentrant=False, preserve_rng_state=False
                )
            else:
                hidden = layer(hidden, sequences, seed)
            states.append(hidden)
        return states

"""Bert: embeddings, encoder and pooler; padded tensors outside, packed ones inside.

Read top-down: `Bert.forward` packs and calls `Bert.encode`, which is the whole model in five
lines. The parts are in embeddings.py, attention.py, encoder.py and heads.py.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from bert.config import BertConfig
from bert.embeddings import Embeddings
from bert.encoder import STREAMS_PER_LAYER, Encoder, Layer
from bert.heads import Pooler
from bert.packing import PackedBatch, pack, unpack
from kernels import Dropout, KernelSet, best_for


@dataclass(frozen=True)
class Encoded:
    """What the encoder makes of a packed batch."""

    last_hidden_state: Float[Tensor, "tokens hidden"]
    pooled: Float[Tensor, "seqs hidden"] | None
    """None in a model without a pooler."""
    hidden_states: list[Float[Tensor, "tokens hidden"]]
    """The embeddings, then each layer's output."""


@dataclass(frozen=True)
class BertOutput:
    """What `Bert` returns at the door, padded like its input; zeros at the padding."""

    last_hidden_state: Float[Tensor, "batch seq hidden"]
    pooler_output: Float[Tensor, "batch hidden"] | None
    hidden_states: list[Float[Tensor, "batch seq hidden"]] | None = None
    attentions: list[Float[Tensor, "batch heads seq seq"]] | None = None


class Bert(nn.Module):
    """The encoder of Devlin et al. 2018.

    Args:
        config: its shape.
        kernels: the operations that it runs on; the best for a CPU where it is None.
        pooler: whether it has one. Masked-word and token models in use have none.
    """

    def __init__(
        self, config: BertConfig, kernels: KernelSet | None = None, pooler: bool = True
    ) -> None:
        super().__init__()
        self.config = config
        self.kernels = kernels or best_for("cpu")
        self.embeddings = Embeddings(config, self.kernels)
        self.encoder = Encoder(config, self.kernels)
        self.pooler = Pooler(config) if pooler else None
        self.frozen_layers: int | None = None
        """See `freeze`."""
        init_weights(self, config)

    def forward(
        self,
        input_ids: Int64[Tensor, "batch seq"],
        attention_mask: Tensor | None = None,
        token_type_ids: Int64[Tensor, "batch seq"] | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> BertOutput:
        """Encode a padded batch.

        Args:
            input_ids: token ids.
            attention_mask: [batch, seq], nonzero at tokens; all are tokens where it is None.
            token_type_ids: segment ids, 0 where they are None.
            output_hidden_states: also return the embeddings and each layer's output.
            output_attentions: also return each layer's attention probabilities, before dropout.

        Raises:
            ValueError: a shape, an id or a length that the model can't take.
        """
        batch, kept = self.pack(input_ids, attention_mask, token_type_ids)
        encoded = self.encode(batch)

        def pad(packed: Tensor) -> Tensor:
            return unpack(packed, kept, *input_ids.shape)

        return BertOutput(
            pad(encoded.last_hidden_state),
            encoded.pooled,
            [pad(h) for h in encoded.hidden_states] if output_hidden_states else None,
            self.attentions(batch, kept, input_ids.shape[1], encoded)
            if output_attentions
            else None,
        )

    def encode(self, batch: PackedBatch, dropout_seed: Tensor | None = None) -> Encoded:
        """Encode a packed batch.

        Args:
            batch: the tokens.
            dropout_seed: an int64 scalar that all masks follow from. A module in training mode
                draws one where it is None; in evaluation mode nothing drops.
        """
        self.check(batch)
        seed = self.dropout_seed(dropout_seed)
        embedded = self.embeddings(batch, seed)
        states = self.encoder(embedded, batch.sequences, seed)
        pooled = self.pooler(states[-1], batch.sequences) if self.pooler is not None else None
        return Encoded(states[-1], pooled, states)

    def pack(
        self, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None
    ) -> tuple[PackedBatch, Int64[Tensor, " tokens"]]:
        """Pack a padded batch, refusing one that is longer than the position table."""
        if input_ids.ndim == 2 and input_ids.shape[1] > self.config.max_position_embeddings:
            raise ValueError(
                f"input_ids: expected at most {self.config.max_position_embeddings} tokens a "
                f"sequence (max_position_embeddings), got {input_ids.shape[1]}"
            )
        return pack(input_ids, attention_mask, token_type_ids)

    def check(self, batch: PackedBatch) -> None:
        """Refuse lengths and, on a CPU where looking is free, ids that the tables don't hold."""
        limits = (
            ("input_ids", batch.input_ids, self.config.vocab_size, "vocab_size"),
            ("token_type_ids", batch.token_type_ids, self.config.type_vocab_size,
             "type_vocab_size"),
            ("position_ids", batch.position_ids, self.config.max_position_embeddings,
             "max_position_embeddings"),
        )  # fmt: skip
        longest = batch.sequences.max_seqlen
        if longest > self.config.max_position_embeddings:
            raise ValueError(
                f"sequences: expected at most {self.config.max_position_embeddings} tokens a "
                f"sequence (max_position_embeddings), got {longest}"
            )
        batch.sequences.check(batch.input_ids.shape[0])
        for name, ids, limit, setting in limits:
            if ids.device.type == "cpu" and ids.numel():
                low, high = (int(x) for x in ids.aminmax())
                if low < 0 or high >= limit:
                    raise ValueError(
                        f"{name}: expected ids from 0 to {limit - 1} ({setting}), "
                        f"got {low if low < 0 else high}"
                    )

    def dropout_seed(self, given: Tensor | None) -> Tensor | None:
        """Choose a forward pass's seed: none in evaluation mode, a fresh draw if not given."""
        if not self.training:
            return None
        if given is not None:
            return given
        device = self.embeddings.word.weight.device
        return torch.randint(2**63 - 1, (), dtype=torch.int64, device=device)

    def head_dropout(self, seed: Tensor | None) -> Dropout | None:
        """Describe the dropout before a fine-tuning head: the stream after the last layer's."""
        stream = 1 + STREAMS_PER_LAYER * self.config.num_hidden_layers
        return None if seed is None else Dropout(self.config.head_dropout_prob, seed, stream)

    def attentions(
        self, batch: PackedBatch, kept: Tensor, seq: int, encoded: Encoded
    ) -> list[Float[Tensor, "batch heads seq seq"]]:
        """Compute every layer's attention probabilities, for the columns of the padded batch."""
        count, heads = len(batch.sequences.lengths), self.config.num_attention_heads
        rows = torch.repeat_interleave(
            torch.arange(count, device=kept.device), batch.sequences.cu_seqlens.diff()
        )
        column = kept % seq if seq else kept
        place = torch.arange(len(kept), device=kept.device) - batch.sequences.cu_seqlens[rows]
        padded = []
        for layer, hidden in zip(self.encoder.layers, encoded.hidden_states[:-1], strict=True):
            assert isinstance(layer, Layer)
            compact = layer.attention.probabilities(hidden, batch.sequences)
            # Sequence by sequence the columns are the same ones for queries and for keys.
            wide = compact.new_zeros(count, heads, compact.shape[2], seq)
            wide[rows, :, :, column] = compact[rows, :, :, place]
            full = compact.new_zeros(count, heads, seq, seq)
            full[rows, :, column] = wide[rows, :, place]
            padded.append(full)
        return padded

    def freeze(self, layers: int) -> None:
        """Train neither the embeddings nor the lowest `layers` layers any more.

        No gradient is computed in them, and no activation kept. In training they still drop.
        """
        for part in (self.embeddings, *self.encoder.layers[:layers]):
            part.requires_grad_(False)
        self.frozen_layers = layers

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether training keeps only each layer's input and computes the rest again."""
        return self.encoder.gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        self.encoder.gradient_checkpointing = on


def init_weights(module: nn.Module, config: BertConfig) -> None:
    """Draw the initial weights (Devlin et al. 2018; Google's modeling.py).

    | parameter                        | value                                     |
    | -------------------------------- | ----------------------------------------- |
    | linear weights                   | normal, mean 0, sd initializer_range      |
    | word, position, type embeddings  | the same; the row of pad_token_id is 0    |
    | biases                           | 0                                         |
    | LayerNorm weight, bias           | 1, 0                                      |

    Google cuts the normal off at two standard deviations; Hugging Face and this don't.
    """
    for part in module.modules():
        if any(weight.is_meta for weight in part.parameters(recurse=False)):
            continue  # no values yet: a checkpoint brings them
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=config.initializer_range)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
    for part in module.modules():
        if isinstance(part, Embeddings) and config.pad_token_id is not None:
            with torch.no_grad():
                part.word.weight[config.pad_token_id].zero_()

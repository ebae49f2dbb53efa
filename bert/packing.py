"""Padded ⇄ packed: the door between rectangles of ids, as users hold them, and the encoder.

    padded   [[7, 8, 9, 0],        packed   [7, 8, 9, 5, 6]
              [5, 6, 0, 0]]                 cu_seqlens [0, 3, 5]

A position id is the column that a token stood in, so a mask with holes, or with the padding on
the left, means what it means in other BERTs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from kernels import PackedSequences


@dataclass(frozen=True)
class PackedBatch:
    """Sequences of token ids, one after another, without padding."""

    input_ids: Int64[Tensor, " tokens"]
    token_type_ids: Int64[Tensor, " tokens"]
    position_ids: Int64[Tensor, " tokens"]
    sequences: PackedSequences

    def to(self, device: torch.device | str) -> "PackedBatch":
        """Move the batch to a device."""
        return PackedBatch(
            self.input_ids.to(device),
            self.token_type_ids.to(device),
            self.position_ids.to(device),
            self.sequences.to(device),
        )

    @staticmethod
    def from_lists(
        input_ids: Sequence[Sequence[int]],
        token_type_ids: Sequence[Sequence[int]] | None = None,
        device: torch.device | str = "cpu",
    ) -> "PackedBatch":
        """Pack lists of ids; token types are 0 where none are given."""
        sequences = PackedSequences.from_lengths([len(row) for row in input_ids], device)
        ids = torch.tensor([i for row in input_ids for i in row], dtype=torch.int64)
        positions = torch.tensor([i for row in input_ids for i in range(len(row))])
        if token_type_ids is None:
            types = torch.zeros_like(ids)
        else:
            types = torch.tensor([i for row in token_type_ids for i in row], dtype=torch.int64)
            if [len(row) for row in token_type_ids] != [len(row) for row in input_ids]:
                raise ValueError("token_type_ids: expected one type for each of input_ids")
        return PackedBatch(
            ids.to(device), types.to(device), positions.to(torch.int64).to(device), sequences
        )


def pack(
    input_ids: Int64[Tensor, "batch seq"],
    attention_mask: Tensor | None = None,
    token_type_ids: Int64[Tensor, "batch seq"] | None = None,
) -> tuple[PackedBatch, Int64[Tensor, " tokens"]]:
    """Take the tokens that `attention_mask` marks out of a padded batch.

    Args:
        input_ids: token ids.
        attention_mask: [batch, seq], nonzero at tokens; all are tokens where it is None.
        token_type_ids: segment ids, 0 where they are None.

    Returns:
        The packed batch, and each token's index in the flattened [batch · seq].

    Raises:
        ValueError: a shape differs from that of `input_ids`.
    """
    if input_ids.ndim != 2:
        raise ValueError(f"input_ids: expected shape [batch, seq], got {list(input_ids.shape)}")
    for name, given in (("attention_mask", attention_mask), ("token_type_ids", token_type_ids)):
        if given is not None and given.shape != input_ids.shape:
            raise ValueError(
                f"{name}: expected the shape of input_ids, {list(input_ids.shape)}, "
                f"got {list(given.shape)}"
            )
    batch, seq = input_ids.shape
    device = input_ids.device
    if attention_mask is None:
        kept = torch.arange(batch * seq, device=device)
        lengths = [seq] * batch
    else:
        is_token = attention_mask != 0
        kept = is_token.flatten().nonzero().squeeze(1)
        lengths = is_token.sum(1).tolist()
    flat_types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
    packed = PackedBatch(
        input_ids.flatten()[kept],
        flat_types.flatten()[kept],
        kept % seq if seq else kept,
        PackedSequences.from_lengths(lengths, device),
    )
    return packed, kept


def unpack(
    packed: Float[Tensor, "tokens ..."], kept: Int64[Tensor, " tokens"], batch: int, seq: int
) -> Float[Tensor, "batch seq ..."]:
    """Put packed rows back where `pack` took them from; zeros at the padding."""
    padded = packed.new_zeros(batch * seq, *packed.shape[1:])
    return padded.index_copy(0, kept, packed).view(batch, seq, *packed.shape[1:])

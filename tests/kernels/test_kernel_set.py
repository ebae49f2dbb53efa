import dataclasses

import pytest
import torch

import kernels
from kernels import REFERENCE, TORCH, Dropout, PackedSequences, best_for


def test_sequences_lie_one_after_another():
    sequences = PackedSequences.from_lengths([3, 0, 2])
    assert sequences.cu_seqlens.tolist() == [0, 3, 3, 5] == list(sequences.offsets)
    assert sequences.cu_seqlens.dtype == torch.int32
    assert (sequences.max_seqlen, sequences.tokens) == (3, 5)
    assert sequences.to("cpu").lengths == (3, 0, 2)
    empty = PackedSequences.from_lengths([])
    assert (empty.tokens, empty.max_seqlen, empty.cu_seqlens.tolist()) == (0, 0, [0])


@pytest.mark.errors
def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="^lengths: expected non-negative integers, got -1$"):
        PackedSequences.from_lengths([2, -1])
    with pytest.raises(ValueError, match="^p: expected a probability between 0 and 0.99, got 1$"):
        Dropout.check(1)
    with pytest.raises(AttributeError, match="^module 'kernels' has no attribute 'TRITTON'$"):
        kernels.TRITTON  # noqa: B018
    with pytest.raises(RuntimeError, match="nonesuch"):
        best_for("nonesuch")


def test_a_set_is_a_value():
    mixed = dataclasses.replace(TORCH, name="MIXED", attention=REFERENCE.attention)
    assert mixed.attention is REFERENCE.attention and mixed.bias_gelu is TORCH.bias_gelu
    assert repr(mixed) == "KernelSet(MIXED)"
    assert best_for("cpu") is TORCH
    assert set(dir(kernels)) >= {"REFERENCE", "TORCH", "KernelSet"}

"""Embedding lookup over packed codes (format: ``csrc/layout.h``)."""

from __future__ import annotations

import torch
from torch import Tensor

from torchcoinfer.errors import ArgumentError
from torchcoinfer.ops.library import implement
from torchcoinfer.ops.pack import BLOCK_N, check_format
from torchcoinfer.ops.quantize import dequantize_codes, unpack_codes_reference


def quant_embedding(
    indices: Tensor,
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bits: int,
    group_size: int,
    num_embeddings: int,
    embedding_dim: int,
    dtype: torch.dtype,
) -> Tensor:
    """Rows of the packed table [num_embeddings, embedding_dim], decoded straight from the packed blocks.

    Args:
        indices: int64 or int32, any shape, each in [0, num_embeddings).

    Returns:
        [*indices.shape, embedding_dim] of ``dtype``.

    Raises:
        RuntimeError, ArgumentError: an index out of range; shapes, dtypes or format disagree.
    """
    return torch.ops.torchcoinfer.quant_embedding(
        indices, packed, scales, zeros, bits, group_size, num_embeddings, embedding_dim, dtype
    )


def quant_embedding_reference(
    indices: Tensor,
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bits: int,
    group_size: int,
    num_embeddings: int,
    embedding_dim: int,
    dtype: torch.dtype,
) -> Tensor:
    check_format("quant_embedding", bits, group_size)
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < num_embeddings:
        fact = "torchcoinfer::quant_embedding: argument 'indices'"
        got = f"{int(indices.min())} .. {int(indices.max())}"
        raise ArgumentError(fact, got=got, expected=f"0 <= index < {num_embeddings}")
    blocks, place = torch.unique(indices // BLOCK_N, return_inverse=True)
    codes = unpack_codes_reference(packed[blocks], bits, BLOCK_N * len(blocks), embedding_dim)
    zeros = zeros[blocks] if zeros is not None and zeros.numel() else None
    rows = dequantize_codes(codes, scales[blocks], zeros, bits, group_size)
    return rows[place * BLOCK_N + indices % BLOCK_N].to(dtype)


def _quant_embedding_fake(
    indices: Tensor,
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bits: int,
    group_size: int,
    num_embeddings: int,
    embedding_dim: int,
    dtype: torch.dtype,
) -> Tensor:
    return packed.new_empty(*indices.shape, embedding_dim, dtype=dtype)


implement("quant_embedding", quant_embedding_reference, _quant_embedding_fake)

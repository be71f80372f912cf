"""Linear layer over a weight in the bitmap format (``bitmap.py``)."""

from __future__ import annotations

import torch
from torch import Tensor

from torchcoinfer.ops.bitmap import bitmap_unpack_reference
from torchcoinfer.ops.epilogue import activated
from torchcoinfer.ops.library import implement
from torchcoinfer.ops.survivors import survivor_linear


def bitmap_linear(
    x: Tensor,
    mask: Tensor,
    offsets: Tensor,
    values: Tensor,
    scales: Tensor | None,
    zeros: Tensor | None,
    bias: Tensor | None,
    bits: int,
    group_size: int,
    out_features: int,
    activation_bits: int = 0,
    layout: int = 0,
    activation: str = "none",
) -> Tensor:
    """y = x W^T + bias, W [N, K] in the bitmap format; sums in float32, or int32 a group (int8 activations).

    Args:
        x: [..., K] float32, bfloat16 or float16, any strides.
        mask, offsets, values: as ``bitmap_pack`` gives them.
        scales, zeros: [NB, G, 16] of the codes; None for float survivors; zeros None: symmetric.
        bias: [N] or None.
        bits: 0 for float survivors.
        group_size: 0 for float survivors.
        activation_bits: 0 = weight-only; 8 (codes alone) = each row of x is quantized to int8.
        layout: 0, the canonical packed order.
        activation: as for ``quant_linear``.

    Returns:
        [..., N] in the dtype of x.

    Raises:
        RuntimeError, ArgumentError: shapes, dtypes or format disagree; the message names op and argument.
    """
    return torch.ops.torchcoinfer.bitmap_linear(
        x,
        mask,
        offsets,
        values,
        scales,
        zeros,
        bias,
        bits,
        group_size,
        out_features,
        activation_bits,
        layout,
        activation,
    )


def bitmap_linear_reference(
    x: Tensor,
    mask: Tensor,
    offsets: Tensor,
    values: Tensor,
    scales: Tensor | None,
    zeros: Tensor | None,
    bias: Tensor | None,
    bits: int,
    group_size: int,
    out_features: int,
    activation_bits: int = 0,
    layout: int = 0,
    activation: str = "none",
) -> Tensor:
    stored = bitmap_unpack_reference(mask, offsets, values, bits, out_features, x.shape[-1])
    variant = (bits, group_size, activation_bits, layout)
    y = survivor_linear("bitmap_linear", x, stored, scales, zeros, bias, variant)
    return activated("bitmap_linear", y, activation)


def _linear_fake(
    x: Tensor,
    mask: Tensor,
    offsets: Tensor,
    values: Tensor,
    scales: Tensor | None,
    zeros: Tensor | None,
    bias: Tensor | None,
    bits: int,
    group_size: int,
    out_features: int,
    activation_bits: int = 0,
    layout: int = 0,
    activation: str = "none",
) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


implement("bitmap_linear", bitmap_linear_reference, _linear_fake)

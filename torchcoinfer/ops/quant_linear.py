"""Linear layer over packed weight codes (format: ``csrc/layout.h``)."""

from __future__ import annotations

import torch
from torch import Tensor

from torchcoinfer.errors import ArgumentError
from torchcoinfer.ops.epilogue import activated
from torchcoinfer.ops.library import implement
from torchcoinfer.ops.pack import check_format
from torchcoinfer.ops.quantize import dequantize_codes, unpack_codes_reference

ACTIVATION_TOP = 127  # symmetric int8: -127 .. 127


def quant_linear(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bias: Tensor | None,
    bits: int,
    group_size: int,
    out_features: int,
    activation_bits: int = 0,
    layout: int = 0,
    x_scales: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """y = x W^T + bias, W [N, K] packed; sums in float32 (weight-only) or int32 a group (int8 activations).

    Weight-only on AVX-512 takes x as fixed-point numbers, exact to 2^-15 (16-bit dtypes) or 2^-23 (float32)
    of the absolute maximum of each row's group (256 columns where the group is the row), summed in integers.

    Args:
        x: [..., K] float32, bfloat16 or float16, any strides.
        packed, scales, zeros: as ``quantize_pack`` gives them; zeros None or empty: symmetric.
        bias: [N], any of the three dtypes, or None.
        activation_bits: 0 = weight-only; 8 = each row of x is quantized to int8, scale absmax / 127.
        layout: 0, the canonical packed order.
        x_scales: float32 [K], with activation_bits 8: column k of x is rounded to int8 with this scale, known
            beforehand, and values beyond ±127 times it saturate; the packed weight is W with column k times
            x_scales[k].
        activation: "none", "relu", "gelu", "gelu_tanh" or "silu", applied to y in its dtype.

    Returns:
        [..., N] in the dtype of x.

    Raises:
        RuntimeError, ArgumentError: shapes, dtypes or format disagree; the message names op and argument.
    """
    return torch.ops.torchcoinfer.quant_linear(
        x,
        packed,
        scales,
        zeros,
        bias,
        bits,
        group_size,
        out_features,
        activation_bits,
        layout,
        x_scales,
        activation,
    )


def quant_linear_reference(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bias: Tensor | None,
    bits: int,
    group_size: int,
    out_features: int,
    activation_bits: int = 0,
    layout: int = 0,
    x_scales: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    check_format("quant_linear", bits, group_size)
    check_variant("quant_linear", activation_bits, layout)
    codes = unpack_codes_reference(packed, bits, out_features, x.shape[-1])
    weight = dequantize_codes(codes, scales, zeros, bits, group_size)
    if x_scales is None:
        y = rows_by_weight(x.float(), weight, activation_bits)
    else:
        check_static("quant_linear", x_scales, x.shape[-1], activation_bits)
        y = scaled_rows(x, x_scales) @ weight.T
    return activated("quant_linear", (y if bias is None else y + bias.float()).to(x.dtype), activation)


def check_variant(op: str, activation_bits: int, layout: int) -> None:
    """Raises ArgumentError unless the activation width and the layout are ones the references know."""
    if activation_bits not in (0, 8):
        fact = f"torchcoinfer::{op}: argument 'activation_bits'"
        raise ArgumentError(fact, got=activation_bits, expected="0 (weight-only) or 8")
    if layout != 0:
        raise ArgumentError(f"torchcoinfer::{op}: argument 'layout'", got=layout, expected="0 (canonical)")


def check_static(op: str, x_scales: Tensor, columns: int, activation_bits: int) -> None:
    """Raises ArgumentError unless there is one float32 scale a column and x is rounded to 8 bits."""
    fact = f"torchcoinfer::{op}: argument 'x_scales'"
    if activation_bits != 8:
        raise ArgumentError(fact, got=f"activation_bits {activation_bits}", expected="activation_bits 8")
    if x_scales.dtype != torch.float32 or tuple(x_scales.shape) != (columns,):
        got = f"{x_scales.dtype} {tuple(x_scales.shape)}"
        raise ArgumentError(fact, got=got, expected=f"float32 ({columns},)")


def scaled_rows(x: Tensor, x_scales: Tensor) -> Tensor:
    """Static int8 codes (as float32) of x [..., K]: one scale a column, values beyond saturate."""
    return (x.float() / x_scales).round().clamp(-ACTIVATION_TOP, ACTIVATION_TOP)


def rows_by_weight(rows: Tensor, weight: Tensor, activation_bits: int) -> Tensor:
    """float32 rows [..., K] times weight [N, K] transposed, the rows quantized to int8 each if asked."""
    if activation_bits == 0:
        return rows @ weight.T
    codes, scale = quantize_rows(rows)
    return codes @ weight.T * scale


def quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 codes (as float32) of each row [..., K] and its scale [..., 1]: absmax / 127."""
    largest = torch.nn.functional.pad(rows, (0, 1)).abs().amax(-1, keepdim=True)
    top = torch.full_like(largest, ACTIVATION_TOP)  # 127 / tensor would multiply by the rounded reciprocal
    inverse = torch.where(largest > 0, top / largest, 0)
    codes = (rows * inverse).round().clamp(-ACTIVATION_TOP, ACTIVATION_TOP)
    return codes, largest / ACTIVATION_TOP


def _quant_linear_fake(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bias: Tensor | None,
    bits: int,
    group_size: int,
    out_features: int,
    activation_bits: int = 0,
    layout: int = 0,
    x_scales: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


implement("quant_linear", quant_linear_reference, _quant_linear_fake)

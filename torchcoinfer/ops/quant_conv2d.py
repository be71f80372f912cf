"""2-d convolution over packed weight codes (format: ``csrc/layout.h``)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from torchcoinfer.ops.epilogue import activated
from torchcoinfer.ops.library import implement
from torchcoinfer.ops.pack import check_format
from torchcoinfer.ops.quant_linear import check_variant, quantize_rows
from torchcoinfer.ops.quantize import dequantize_codes, unpack_codes_reference


def quant_conv2d(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bias: Tensor | None,
    bits: int,
    group_size: int,
    out_channels: int,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation_bits: int = 0,
    layout: int = 0,
    activation: str = "none",
) -> Tensor:
    """Convolution of x [B, C, H, W] with the packed weight seen as [O, (C / groups) * kh * kw], zero padding.

    Args:
        x: float32, bfloat16 or float16, any strides.
        packed, scales, zeros, bias, activation_bits, layout, activation: as for ``quant_linear``; with
            activation_bits 8 one patch of one convolution group is what gets its own int8 scale.

    Returns:
        [B, O, H', W'] in the dtype of x, contiguous.

    Raises:
        RuntimeError, ArgumentError: shapes, dtypes or format disagree; the message names op and argument.
    """
    return torch.ops.torchcoinfer.quant_conv2d(
        x,
        packed,
        scales,
        zeros,
        bias,
        bits,
        group_size,
        out_channels,
        kernel_size,
        stride,
        padding,
        dilation,
        groups,
        activation_bits,
        layout,
        activation,
    )


def quant_conv2d_reference(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bias: Tensor | None,
    bits: int,
    group_size: int,
    out_channels: int,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation_bits: int = 0,
    layout: int = 0,
    activation: str = "none",
) -> Tensor:
    check_format("quant_conv2d", bits, group_size)
    check_variant("quant_conv2d", activation_bits, layout)
    channels = x.shape[1] // groups
    columns = channels * kernel_size[0] * kernel_size[1]
    codes = unpack_codes_reference(packed, bits, out_channels, columns)
    weight = dequantize_codes(codes, scales, zeros, bits, group_size)
    if activation_bits == 0:
        kernel = weight.view(out_channels, channels, *kernel_size)
        y = functional.conv2d(x.float(), kernel, None, stride, padding, dilation, groups)
    else:
        patches = functional.unfold(x.float(), kernel_size, dilation, padding, stride)
        patches = patches.unflatten(1, (groups, columns)).transpose(2, 3)  # [B, groups, pixels, columns]
        rows, scale = quantize_rows(patches)
        y = rows @ weight.view(groups, -1, columns).transpose(1, 2) * scale
        y = y.transpose(2, 3).reshape(
            x.shape[0], out_channels, *_output_size(x, kernel_size, stride, padding, dilation)
        )
    y = y if bias is None else y + bias.float()[:, None, None]
    return activated("quant_conv2d", y.to(x.dtype), activation)


def _output_size(
    x: Tensor, kernel_size: list[int], stride: list[int], padding: list[int], dilation: list[int]
):
    return [
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (kernel_size[i] - 1) - 1) // stride[i] + 1
        for i in (0, 1)
    ]


def _quant_conv2d_fake(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bias: Tensor | None,
    bits: int,
    group_size: int,
    out_channels: int,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation_bits: int = 0,
    layout: int = 0,
    activation: str = "none",
) -> Tensor:
    return x.new_empty(x.shape[0], out_channels, *_output_size(x, kernel_size, stride, padding, dilation))


implement("quant_conv2d", quant_conv2d_reference, _quant_conv2d_fake)

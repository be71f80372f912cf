"""A two-dimensional convolution on quantized weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from torchcoinfer.errors import ArgumentError
from torchcoinfer.nn.checks import bias_buffer, check_config
from torchcoinfer.nn.packed import DenseCodes


class QuantConv2d(DenseCodes):
    """``nn.Conv2d`` whose weight, seen as [O, I/groups * kh * kw], is stored as group-wise codes.

    x [B, I, H, W] or [I, H, W] float32, bfloat16 or float16; y of the same dtype. Buffers as in
    ``QuantLinear``. Made by ``from_float`` or ``from_quantized``; the constructor takes the geometry from
    ``like`` and makes a zero weight, to be filled by ``load_state_dict``.

    Args:
        like: the convolution whose geometry is taken; its weight is not read.
        bits, group_size, activation_bits, symmetric, scale_dtype, device: as in ``QuantLinear``.

    Raises:
        ArgumentError: unknown bits, group size or activation bits.
    """

    def __init__(
        self,
        like: nn.Conv2d,
        *,
        bits: int = 4,
        group_size: int = 128,
        activation_bits: int | None = None,
        symmetric: bool = False,
        scale_dtype: torch.dtype = torch.float16,
        device: torch.device | str | None = None,
    ):
        fan_in = like.in_channels // like.groups * like.kernel_size[0] * like.kernel_size[1]
        super().__init__(
            like.out_channels,
            fan_in,
            bits=bits,
            group_size=group_size,
            activation_bits=activation_bits,
            symmetric=symmetric,
            scale_dtype=scale_dtype,
            device=device,
        )
        self.in_channels, self.out_channels, self.groups = like.in_channels, like.out_channels, like.groups
        self.in_features, self.out_features = fan_in, like.out_channels
        self.kernel_size, self.stride, self.dilation = (
            list(like.kernel_size),
            list(like.stride),
            list(like.dilation),
        )
        self.padding_mode = like.padding_mode
        left, right, top, bottom = like._reversed_padding_repeated_twice
        self.pads_first = like.padding_mode != "zeros" or left != right or top != bottom
        self.border = [left, right, top, bottom]
        self.padding = [0, 0] if self.pads_first else [top, left]
        bias = (
            None
            if like.bias is None
            else torch.zeros(like.out_channels, dtype=like.bias.dtype, device=device)
        )
        self._finish(bias)

    @classmethod
    def from_float(
        cls,
        conv: nn.Conv2d,
        bits: int = 4,
        group_size: int = 128,
        activation_bits: int | None = None,
        symmetric: bool = False,
        scale_dtype: torch.dtype = torch.float16,
    ) -> QuantConv2d:
        """Rounds to nearest on a minimum-maximum (symmetric: absolute maximum) grid per group.

        Raises:
            ArgumentError: unknown bits, group size or dtype; NaN or Inf in the weight.
        """
        module = cls._hollow(conv, bits, group_size, activation_bits, symmetric)
        module._quantize(conv.weight.flatten(1), scale_dtype)
        module._finish(bias_buffer("QuantConv2d", conv.bias, conv.out_channels))
        return module

    @classmethod
    def from_quantized(
        cls,
        codes: Tensor,
        scales: Tensor,
        zeros: Tensor | None,
        bias: Tensor | None = None,
        *,
        like: nn.Conv2d,
        bits: int,
        group_size: int,
        activation_bits: int | None = None,
    ) -> QuantConv2d:
        """Packs codes that an algorithm has chosen.

        Args:
            codes: uint8 [O, I/groups * kh * kw] or [O, I/groups, kh, kw], below ``2**bits``.
            scales, zeros: [O, G], as in ``QuantLinear.from_quantized``.
            bias: [O] or None.
            like: the convolution whose geometry is taken.

        Raises:
            ArgumentError: shapes, dtypes or values that disagree with the above.
        """
        if codes.dim() not in (2, 4):
            raise ArgumentError(
                "QuantConv2d: codes", got=tuple(codes.shape), expected="[O, K] or [O, I/g, kh, kw]"
            )
        module = cls._hollow(like, bits, group_size, activation_bits, zeros is None)
        module._pack(codes.flatten(1), scales, zeros)
        module._finish(bias_buffer("QuantConv2d", bias, module.out_channels))
        return module

    @classmethod
    def _hollow(
        cls, like: nn.Conv2d, bits: int, group_size: int, activation_bits: int | None, symmetric: bool
    ) -> QuantConv2d:
        """Without storage: the caller fills it."""
        check_config("QuantConv2d", bits, group_size, activation_bits)
        return cls(
            like,
            bits=bits,
            group_size=group_size,
            activation_bits=activation_bits,
            symmetric=symmetric,
            device="meta",
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.pads_first:
            x = functional.pad(
                x, self.border, "constant" if self.padding_mode == "zeros" else self.padding_mode
            )
        single = x.dim() == 3
        y = torch.ops.torchcoinfer.quant_conv2d(
            x.unsqueeze(0) if single else x,
            self.packed,
            self.scales,
            self.zeros,
            self.bias,
            self.bits,
            self.group_size,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.activation_bits,
            self.layout,
            self.activation,
        )
        return y.squeeze(0) if single else y

    def dequantize_weight(self) -> Tensor:
        """The weight that the layer computes with: [O, I/groups, kh, kw] float32."""
        shape = (self.out_channels, self.in_channels // self.groups, self.kernel_size[0], self.kernel_size[1])
        return self._dequantized(torch.float32).view(shape)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, in_features={self.in_features}, "
            f"out_features={self.out_features}, kernel_size={tuple(self.kernel_size)}, "
            f"stride={tuple(self.stride)}, padding={tuple(self.border)}, "
            f"dilation={tuple(self.dilation)}, groups={self.groups}, padding_mode={self.padding_mode!r}, "
            + self._storage_repr()
        )

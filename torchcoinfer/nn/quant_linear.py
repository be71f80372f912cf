"""A linear layer on quantized weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchcoinfer.errors import ArgumentError
from torchcoinfer.nn.checks import bias_buffer, check_config, check_matrix
from torchcoinfer.nn.packed import DenseCodes


class QuantLinear(DenseCodes):
    """``y = x Wᵀ + bias`` with ``W = scale * (code - zero)`` in groups along a row.

    x [..., in_features] float32, bfloat16 or float16, any strides; y [..., out_features] of the same dtype.
    The constructor makes a zero weight of the right shapes, to be filled by ``load_state_dict``; weights
    come from ``from_float`` or ``from_quantized``.

    Buffers: ``packed`` uint8 [ceil(N/16), ceil(K/32), 64 * bits], ``scales`` [ceil(N/16), G, 16], ``zeros``
    uint8 of the same shape or None (symmetric: the zero point is ``2**(bits - 1)``), ``bias`` [N] or None,
    ``x_scales`` float32 [K] or None (x is rounded per token, on the fly).

    Args:
        in_features, out_features: K and N.
        bias: whether there is one.
        bits: 2, 3, 4, 5, 6 or 8 bits a weight.
        group_size: 32, 64, 128, or 0 for the whole row.
        activation_bits: None for weight-only; 8 quantizes x per token on the fly.
        static_scales: with activation_bits 8: x is quantized by one stored scale a column instead.
        symmetric: no stored zero points.
        scale_dtype: float16, bfloat16 or float32.
        dtype: of the bias.
        device: of the buffers.

    Raises:
        ArgumentError: unknown bits, group size or activation bits.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        bits: int = 4,
        group_size: int = 128,
        activation_bits: int | None = None,
        static_scales: bool = False,
        symmetric: bool = False,
        scale_dtype: torch.dtype = torch.float16,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ):
        super().__init__(
            out_features,
            in_features,
            bits=bits,
            group_size=group_size,
            activation_bits=activation_bits,
            symmetric=symmetric,
            scale_dtype=scale_dtype,
            device=device,
        )
        self.in_features, self.out_features = in_features, out_features
        ones = torch.ones(in_features, device=device) if static_scales else None
        self.register_buffer("x_scales", self._checked_scales(ones))
        self._finish(torch.zeros(out_features, dtype=dtype, device=device) if bias else None)

    @classmethod
    def from_float(
        cls,
        linear: nn.Linear,
        bits: int = 4,
        group_size: int = 128,
        activation_bits: int | None = None,
        symmetric: bool = False,
        scale_dtype: torch.dtype = torch.float16,
        x_scales: Tensor | None = None,
    ) -> QuantLinear:
        """Rounds to nearest on a minimum-maximum (symmetric: absolute maximum) grid per group.

        Args:
            x_scales: float [K], with activation_bits 8: the static int8 scale of every column of x, known
                from calibration (largest |x[..., k]| / 127); folded into the weight before it is rounded.

        Raises:
            ArgumentError: unknown bits, group size or dtype; NaN or Inf in the weight; scales that are not
                positive.
        """
        module = cls._hollow(linear.weight.shape, bits, group_size, activation_bits, symmetric)
        module.x_scales = module._checked_scales(x_scales)
        weight = linear.weight.detach()
        module._quantize(weight if x_scales is None else weight.float() * module.x_scales, scale_dtype)
        module._finish(bias_buffer("QuantLinear", linear.bias, linear.out_features))
        return module

    @classmethod
    def from_quantized(
        cls,
        codes: Tensor,
        scales: Tensor,
        zeros: Tensor | None,
        bias: Tensor | None = None,
        *,
        bits: int,
        group_size: int,
        activation_bits: int | None = None,
        x_scales: Tensor | None = None,
    ) -> QuantLinear:
        """Packs codes that an algorithm has chosen.

        Args:
            codes: uint8 [N, K], below ``2**bits``.
            scales: [N, G], G = ceil(K / group_size), or 1 for group_size 0.
            zeros: uint8 [N, G], or None for the symmetric zero point ``2**(bits - 1)``.
            bias: [N] or None.
            x_scales: as in ``from_float``; the codes stand for a weight with these scales folded in.

        Raises:
            ArgumentError: shapes, dtypes or values that disagree with the above.
        """
        module = cls._hollow(
            check_matrix("QuantLinear", codes), bits, group_size, activation_bits, zeros is None
        )
        module.x_scales = module._checked_scales(x_scales)
        module._pack(codes, scales, zeros)
        module._finish(bias_buffer("QuantLinear", bias, module.out_features))
        return module

    @classmethod
    def _hollow(
        cls, shape, bits: int, group_size: int, activation_bits: int | None, symmetric: bool
    ) -> QuantLinear:
        """Without storage: the caller fills it."""
        check_config("QuantLinear", bits, group_size, activation_bits)
        return cls(
            shape[1],
            shape[0],
            bias=False,
            bits=bits,
            group_size=group_size,
            activation_bits=activation_bits,
            symmetric=symmetric,
            device="meta",
        )

    def _checked_scales(self, x_scales: Tensor | None) -> Tensor | None:
        """Static scales of x, float32 [K]; raises ArgumentError where they cannot be such."""
        if x_scales is None:
            return None
        if self.activation_bits != 8:
            raise ArgumentError(
                "QuantLinear: x_scales",
                got=f"activation_bits {self.activation_bits or None}",
                expected="activation_bits 8",
                remedy="pass activation_bits=8, or leave x_scales out",
            )
        if not isinstance(x_scales, Tensor) or tuple(x_scales.shape) != (self.in_features,):
            got = tuple(x_scales.shape) if isinstance(x_scales, Tensor) else type(x_scales).__name__
            raise ArgumentError(
                "QuantLinear: x_scales", got=got, expected=f"a tensor of shape ({self.in_features},)"
            )
        scales = x_scales.detach().float().clone(memory_format=torch.contiguous_format)
        if scales.device.type != "meta" and not bool((torch.isfinite(scales) & (scales > 0)).all()):
            raise ArgumentError(
                "QuantLinear: x_scales",
                got=f"{float(scales.min()):g} .. {float(scales.max()):g}",
                expected="positive, finite scales",
                remedy="give columns that are always zero any positive scale",
            )
        return scales

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.torchcoinfer.quant_linear(
            x,
            self.packed,
            self.scales,
            self.zeros,
            self.bias,
            self.bits,
            self.group_size,
            self.out_features,
            self.activation_bits,
            self.layout,
            self.x_scales,
            self.activation,
        )

    def dequantize_weight(self) -> Tensor:
        """The weight that the layer computes with, static scales of x taken out: [N, K] float32."""
        weight = self._dequantized(torch.float32)
        return weight if self.x_scales is None else weight / self.x_scales

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, "
            + self._storage_repr()
            + (", static_scales=True" if self.x_scales is not None else "")
        )

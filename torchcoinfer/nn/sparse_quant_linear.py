"""A linear layer on sparse weights whose survivors are quantized."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchcoinfer import ops
from torchcoinfer.errors import ArgumentError
from torchcoinfer.nn.checks import (
    bias_buffer,
    check_codes,
    check_config,
    check_groups,
    check_mask,
    check_matrix,
    check_weight,
)
from torchcoinfer.nn.magnitude import magnitude_mask, sparsity_format
from torchcoinfer.nn.packed import empty_groups
from torchcoinfer.nn.sparse_codes import SparsePacked
from torchcoinfer.ops.pack import group_count
from torchcoinfer.ops.quantize import dequantize_codes, unblock_groups


class SparseQuantLinear(SparsePacked):
    """``y = x Wᵀ + bias``; kept weights are ``scale * (code - zero)``, pruned ones 0 and not stored.

    x, y as in ``QuantLinear``; buffers as in ``SparseLinear`` with ``values`` uint8 codes (2:4: [.., .., 32
    * bits]; bitmap: [8 * bits * chunks]), and ``scales``, ``zeros`` as in ``QuantLinear``.

    Args:
        in_features, out_features, bias, dtype, device: as in ``QuantLinear``.
        bits, group_size, activation_bits, symmetric, scale_dtype: as in ``QuantLinear``.
        format, survivor_chunks: as in ``SparseLinear``.

    Raises:
        ArgumentError: unknown bits, group size, activation bits or format.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        format: str = "bitmap",
        bits: int = 4,
        group_size: int = 128,
        activation_bits: int | None = None,
        symmetric: bool = False,
        scale_dtype: torch.dtype = torch.float16,
        survivor_chunks: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ):
        check_config("SparseQuantLinear", bits, group_size, activation_bits)
        super().__init__(
            in_features,
            out_features,
            format=format,
            bits=bits,
            group_size=group_size,
            activation_bits=activation_bits,
            survivor_chunks=survivor_chunks,
            values_dtype=torch.uint8,
            device=device,
        )
        groups = (out_features, in_features, group_size)
        self.scales = empty_groups(*groups, scale_dtype, device)
        self.zeros = None if symmetric else empty_groups(*groups, torch.uint8, device)
        self._finish(torch.zeros(out_features, dtype=dtype, device=device) if bias else None)

    @classmethod
    def from_float(
        cls,
        linear: nn.Linear,
        sparsity: float | str = 0.5,
        bits: int = 4,
        group_size: int = 128,
        activation_bits: int | None = None,
        symmetric: bool = False,
        scale_dtype: torch.dtype = torch.float16,
    ) -> SparseQuantLinear:
        """Keeps the largest weights, then rounds them to nearest on a plain grid per group.

        Raises:
            ArgumentError: an unknown sparsity, bits, group size or dtype; NaN or Inf in the weight.
        """
        check_config("SparseQuantLinear", bits, group_size, activation_bits)
        weight = check_weight("SparseQuantLinear", linear.weight, 2)
        rows, columns = weight.shape
        mask = magnitude_mask(weight.abs(), sparsity)
        pruned = torch.where(mask, weight, 0)
        packed, scales, zeros = ops.quantize_pack(pruned, bits, group_size, symmetric, scale_dtype)
        return cls.from_quantized(
            ops.unpack_codes(packed, bits, rows, columns),
            mask,
            unblock_groups(scales, rows),
            None if symmetric else unblock_groups(zeros, rows),
            linear.bias,
            format=sparsity_format(sparsity),
            bits=bits,
            group_size=group_size,
            activation_bits=activation_bits,
        )

    @classmethod
    def from_quantized(
        cls,
        codes: Tensor,
        mask: Tensor,
        scales: Tensor,
        zeros: Tensor | None,
        bias: Tensor | None = None,
        *,
        format: str,
        bits: int,
        group_size: int,
        activation_bits: int | None = None,
    ) -> SparseQuantLinear:
        """Packs codes and a mask that an algorithm has chosen.

        Args:
            codes: uint8 [N, K], below ``2**bits``; ignored where pruned.
            mask: bool [N, K], True = kept.
            scales, zeros, bias: as in ``QuantLinear.from_quantized``.
            format: "2:4" or "bitmap".

        Raises:
            ArgumentError: shapes, dtypes or values that disagree with the above; in format "2:4" more than
            two of
                four consecutive columns kept, or a zero point of ``2**bits`` or more (empty slots store it).
        """
        check_config("SparseQuantLinear", bits, group_size, activation_bits)
        rows, columns = shape = check_matrix("SparseQuantLinear", codes)
        kept = check_mask("SparseQuantLinear", mask, shape)
        module = cls(
            columns,
            rows,
            False,
            format=format,
            bits=bits,
            group_size=group_size,
            activation_bits=activation_bits,
            device="meta",
        )
        groups = (rows, group_count(columns, group_size))
        module.scales = check_groups("SparseQuantLinear", "scales", scales, groups)
        module.zeros = None if zeros is None else check_groups("SparseQuantLinear", "zeros", zeros, groups)
        filler = _empty_slots(codes, zeros, bits, group_size) if format == "2:4" else torch.zeros_like(codes)
        stored = torch.where(kept, codes.detach(), filler)
        check_codes("SparseQuantLinear", stored, bits, shape)
        module._pack(stored, kept.contiguous())
        module._finish(bias_buffer("SparseQuantLinear", bias, rows))
        return module

    def dequantize_weight(self) -> Tensor:
        """The weight that the layer computes with, zeros where pruned: [N, K] float32."""
        codes, kept = self._unpack()
        return dequantize_codes(codes, self.scales, self.zeros, self.bits, self.group_size) * kept

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, " + self._storage_repr()
        )


def _empty_slots(codes: Tensor, zeros: Tensor | None, bits: int, group_size: int) -> Tensor:
    """What an empty 2:4 slot stores at each place, so that it counts as 0: the zero point, uint8 [N, K]."""
    if zeros is None:
        return torch.full_like(codes, 2 ** (bits - 1))
    if int(zeros.max()) >= 2**bits:
        raise ArgumentError(
            "SparseQuantLinear: zeros",
            got=f"zero point {int(zeros.max())}",
            expected=f"zero points below 2**{bits} in format '2:4', whose empty slots store them",
            remedy="clip the zero points, or use format 'bitmap'",
        )
    return zeros.repeat_interleave(group_size or codes.shape[1], 1)[:, : codes.shape[1]]

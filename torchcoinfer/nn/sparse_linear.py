"""A linear layer on sparse float weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchcoinfer.errors import ArgumentError
from torchcoinfer.nn.checks import FLOAT_DTYPES, bias_buffer, check_mask, check_weight
from torchcoinfer.nn.magnitude import magnitude_mask, sparsity_format
from torchcoinfer.nn.sparse_codes import SparsePacked


class SparseLinear(SparsePacked):
    """``y = x Wᵀ + bias`` with the pruned weights of W not stored.

    x [..., in_features] float32, bfloat16 or float16, any strides; y [..., out_features] of the same dtype.
    Buffers for format "2:4": ``index`` uint8 [ceil(N/16), ceil(K/32), 64], ``values`` [.., .., 256]; for
    "bitmap": ``mask`` int64 [ceil(N/16), ceil(K/32), 8], ``offsets`` int32 [ceil(N/16) + 1], ``values`` [64
    * chunks]; ``bias`` [N] or None. Made by ``from_float`` or ``from_dense``; the constructor makes a zero
    weight, to be filled by ``load_state_dict``.

    Args:
        in_features, out_features: K and N.
        bias: whether there is one.
        format: "2:4" or "bitmap".
        survivor_chunks: bitmap alone: ``offsets[-1]``, stored survivors in units of 64, to be loaded before
            the first call.
        values_dtype: float16, bfloat16 or float32; ``.to(dtype)`` does not change it.
        dtype: of the bias.
        device: of the buffers.

    Raises:
        ArgumentError: an unknown format or dtype.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        format: str = "bitmap",
        survivor_chunks: int = 0,
        values_dtype: torch.dtype = torch.float32,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ):
        if values_dtype not in FLOAT_DTYPES:
            raise ArgumentError(
                "SparseLinear: values_dtype", got=values_dtype, expected=f"one of {FLOAT_DTYPES}"
            )
        super().__init__(
            in_features,
            out_features,
            format=format,
            bits=0,
            group_size=0,
            activation_bits=None,
            survivor_chunks=survivor_chunks,
            values_dtype=values_dtype,
            device=device,
        )
        self._finish(torch.zeros(out_features, dtype=dtype, device=device) if bias else None)

    @classmethod
    def from_float(
        cls, linear: nn.Linear, sparsity: float | str = 0.5, values_dtype: torch.dtype | None = None
    ) -> SparseLinear:
        """Keeps the largest weights.

        Args:
            linear: the layer, not changed.
            sparsity: "2:4", or the share of pruned weights in [0, 1), the same in every block of 16 rows.
            values_dtype: of the stored weights; default the layer's.

        Raises:
            ArgumentError: an unknown sparsity or dtype; NaN or Inf in the weight.
        """
        weight = check_weight("SparseLinear", linear.weight, 2)
        mask = magnitude_mask(weight.abs(), sparsity)
        form = sparsity_format(sparsity)
        return cls.from_dense(weight, linear.bias, format=form, mask=mask, values_dtype=values_dtype)

    @classmethod
    def from_dense(
        cls,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        format: str = "bitmap",
        mask: Tensor | None = None,
        values_dtype: torch.dtype | None = None,
    ) -> SparseLinear:
        """Packs a pruned weight.

        Args:
            weight: [N, K] floating point.
            bias: [N] or None.
            format: "2:4" or "bitmap".
            mask: bool [N, K], True = kept; default the non-zero weights.
            values_dtype: of the stored weights; default the weight's.

        Raises:
            ArgumentError: shapes, dtypes or values that disagree with the above; more than two of four
            consecutive
                columns kept in format "2:4"; a weight that overflows ``values_dtype``.
        """
        weight = check_weight("SparseLinear", weight, 2)
        rows, columns = weight.shape
        kept = weight != 0 if mask is None else check_mask("SparseLinear", mask, (rows, columns))
        values_dtype = values_dtype or weight.dtype
        module = cls(columns, rows, False, format=format, values_dtype=values_dtype, device="meta")
        module._pack(check_weight("SparseLinear", weight.to(values_dtype), 2).contiguous(), kept.contiguous())
        module._finish(bias_buffer("SparseLinear", bias, rows))
        return module

    def dequantize_weight(self) -> Tensor:
        """The weight that the layer computes with, zeros where pruned: [N, K] float32."""
        return self._unpack()[0].float()

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, "
            f"values_dtype={self.values.dtype}, sparsity_format={self.sparsity_format!r}"
            + ("" if self.activation == "none" else f", activation={self.activation!r}")
        )

"""Checks at the border of the packed modules: every refusal names the module, the value and what was
expected.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchcoinfer.errors import ArgumentError
from torchcoinfer.ops.pack import GROUP_SIZES, PLANES
from torchcoinfer.ops.quantize import block_groups

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def check_config(owner: str, bits: int, group_size: int, activation_bits: int | None = None) -> None:
    """Raises ArgumentError unless bits, group size and activation bits are ones that the kernels know."""
    if bits not in PLANES:
        raise ArgumentError(
            f"{owner}: bits", got=bits, expected=f"one of {tuple(PLANES)}", remedy="choose a listed width"
        )
    if group_size not in GROUP_SIZES:
        raise ArgumentError(
            f"{owner}: group_size",
            got=group_size,
            expected=f"one of {GROUP_SIZES}",
            remedy="0 is the whole row",
        )
    if activation_bits not in (None, 0, 8):
        raise ArgumentError(
            f"{owner}: activation_bits",
            got=activation_bits,
            expected="None or 8",
            remedy="None is weight-only",
        )


def check_weight(owner: str, weight: Tensor, dims: int) -> Tensor:
    """The weight, detached; raises ArgumentError for a wrong rank or dtype, no elements, NaN or Inf."""
    if weight.dim() != dims or weight.numel() == 0:
        raise ArgumentError(
            f"{owner}: weight", got=tuple(weight.shape), expected=f"{dims} dimensions, none of them 0"
        )
    if weight.dtype not in FLOAT_DTYPES:
        raise ArgumentError(
            f"{owner}: weight dtype",
            got=weight.dtype,
            expected=f"one of {FLOAT_DTYPES}",
            remedy="call .float()",
        )
    check_finite(owner, "weight", weight)
    return weight.detach()


def check_finite(owner: str, name: str, tensor: Tensor) -> None:
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise ArgumentError(
            f"{owner}: {name} holds NaN or Inf",
            got=f"{bad} of {tensor.numel()} values",
            expected="finite values",
            remedy="load a sound checkpoint, or leave this layer uncompressed",
        )


def check_mask(owner: str, mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    if mask.dtype != torch.bool or tuple(mask.shape) != shape:
        raise ArgumentError(
            f"{owner}: mask",
            got=f"{mask.dtype} {tuple(mask.shape)}",
            expected=f"torch.bool {shape}, True = kept",
        )
    return mask.detach()


def check_codes(owner: str, codes: Tensor, bits: int, shape: tuple[int, int]) -> None:
    """Raises ArgumentError unless uint8 of the shape given, all below ``2**bits``."""
    if codes.dtype != torch.uint8 or tuple(codes.shape) != shape or codes.numel() == 0:
        raise ArgumentError(
            f"{owner}: codes",
            got=f"{codes.dtype} {tuple(codes.shape)}",
            expected=f"torch.uint8 {shape}, not empty",
        )
    top = int(codes.max())
    if top >= 2**bits:
        raise ArgumentError(f"{owner}: codes", got=f"largest code {top}", expected=f"codes below 2**{bits}")


def check_matrix(owner: str, codes: Tensor) -> tuple[int, int]:
    """(N, K) of a tensor of codes; raises ArgumentError unless it has two dimensions."""
    if codes.dim() != 2:
        raise ArgumentError(f"{owner}: codes", got=tuple(codes.shape), expected="[N, K]")
    return codes.shape[0], codes.shape[1]


def check_groups(owner: str, name: str, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Scales or zero points [N, G] in the kernels' order [ceil(N/16), G, 16]; padded rows hold 0.

    Raises:
        ArgumentError: another shape or dtype; NaN or Inf.
    """
    dtypes = (torch.uint8,) if name == "zeros" else FLOAT_DTYPES
    if tuple(values.shape) != shape or values.dtype not in dtypes:
        raise ArgumentError(
            f"{owner}: {name}",
            got=f"{values.dtype} {tuple(values.shape)}",
            expected=f"{' | '.join(str(d) for d in dtypes)} {shape}",
            remedy="one value per row and group of group_size columns",
        )
    if values.dtype.is_floating_point:
        check_finite(owner, name, values)
    return block_groups(values.detach())


def bias_buffer(owner: str, bias: Tensor | None, rows: int) -> Tensor | None:
    """The bias as a buffer of its own [N]; raises ArgumentError for another shape, dtype, NaN or Inf."""
    if bias is None:
        return None
    if tuple(bias.shape) != (rows,) or bias.dtype not in FLOAT_DTYPES:
        raise ArgumentError(
            f"{owner}: bias", got=f"{bias.dtype} {tuple(bias.shape)}", expected=f"floating point {(rows,)}"
        )
    check_finite(owner, "bias", bias)
    return bias.detach().clone()

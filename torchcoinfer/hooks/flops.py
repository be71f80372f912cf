"""FLOPs of the torch calls that a model makes, seen by a TorchFunctionMode; multiply and add count as two.

A dispatch mode (``torch.utils.flop_counter``) would see more, but it decomposes ops under inference_mode and
with that may change the last bits of the result. A function mode only looks on. Counted are the calls below,
as dense work: pruned weights count in full. Everything else counts as zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode


def _contraction(args: tuple, out: Tensor) -> int:
    """x [..., K] against anything that contracts K."""
    return 2 * out.numel() * args[0].shape[-1]


def _added_contraction(args: tuple, out: Tensor) -> int:
    """addmm(bias, a, b)."""
    return 2 * out.numel() * args[1].shape[-1]


def _convolution(args: tuple, out: Tensor) -> int:
    weight = args[1]
    return 2 * out.numel() * math.prod(weight.shape[1:])


def _transposed_convolution(args: tuple, out: Tensor) -> int:
    x, weight = args[:2]
    return 2 * x.numel() * math.prod(weight.shape[1:])


def _packed_convolution(args: tuple, out: Tensor) -> int:
    """quant_conv2d: the output channel's own filter, from the arguments behind the packed weight."""
    x, kernel_size, groups = args[0], args[8], args[12]
    return 2 * out.numel() * x.shape[1] // groups * math.prod(kernel_size)


def _attention(args: tuple, out: Tensor) -> int:
    """q [..., L, E], k [..., S, E], v [..., S, Ev]: q k^T and the weighted sum of v."""
    query, key, value = args[:3]
    return 2 * query.numel() // query.shape[-1] * key.shape[-2] * (query.shape[-1] + value.shape[-1])


FORMULAS: Mapping[str, Callable[[tuple, Tensor], int]] = {
    **dict.fromkeys(("linear", "matmul", "mm", "bmm", "mv", "dot"), _contraction),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), _added_contraction),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed_convolution),
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("quant_linear", "sparse24_linear", "bitmap_linear"), _contraction),
    "quant_conv2d": _packed_convolution,
}
_LEADING = {  # arguments that a formula reads, where callers pass them by keyword
    "scaled_dot_product_attention": ("query", "key", "value"),
    "linear": ("input", "weight"),
    "matmul": ("input", "other"),
    "conv2d": ("input", "weight"),
}


def _name(func: Any) -> str:
    """ "linear" for F.linear, torch.ops.aten.linear and torch.ops.aten.linear.default."""
    qualified = getattr(func, "_qualified_op_name", None) or getattr(func, "_name", None)
    if isinstance(qualified, str):  # an op packet "aten::linear", an overload "aten::linear.default"
        return qualified.rpartition("::")[2].partition(".")[0]
    return getattr(func, "__name__", "")


class FlopMode(TorchFunctionMode):
    """Calls ``add(flops)`` for each torch call that has a formula; changes nothing."""

    def __init__(self, add: Callable[[int], None]):
        super().__init__()
        self._add = add

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = _name(func)
        formula = FORMULAS.get(name)
        if formula is not None and isinstance(out, Tensor):
            leading = args or tuple((kwargs or {}).get(key) for key in _LEADING.get(name, ()))
            if leading:
                self._add(formula(leading, out))
        return out

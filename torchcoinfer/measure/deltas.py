"""The change of a weight, ŵ − w, kept small while many chunks of samples are multiplied by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from torchcoinfer.calibrate.interpret import LayerCall
from torchcoinfer.calibrate.moments import patches
from torchcoinfer.ops.quant_linear import quantize_rows
from torchcoinfer.theory.options import Option


@dataclass(frozen=True)
class WeightDelta:
    """ŵ − w of one (layer, option), [R, K].

    Attributes:
        values: the change itself, or int8 steps of ``scale``.
        scale: [R, 1], or None. Eight bits a value, one scale a row: the error is 1/127 of the row's largest
            change at most, about .0001 of the estimated distortion.
        shift: [N], what the bias is changed by, or None.
        rows: sorted row numbers kept, for an embedding of which the data read few rows; None: all.
    """

    option: Option
    values: Tensor
    scale: Tensor | None
    rows: Tensor | None
    shift: Tensor | None = None

    @classmethod
    def of(
        cls, option: Option, change: Tensor, rows: Tensor | None, exact: bool, shift: Tensor | None = None
    ) -> WeightDelta:
        """``change`` [R, K] of the rows ``rows``; kept as it is, or in eight bits."""
        if exact:
            return cls(option, change, None, rows, shift)
        smallest = torch.finfo(change.dtype).tiny * 127
        scale = change.abs().amax(1, keepdim=True).clamp_min(smallest) / 127
        return cls(option, (change / scale).round_().to(torch.int8), scale, rows, shift)

    def dense(self, dtype: torch.dtype) -> Tensor:
        if self.scale is None:
            return self.values.to(dtype)
        return self.values.to(dtype).mul_(self.scale.to(dtype))

    def response(self, call: LayerCall, args: Sequence[Any], output: Tensor, dtype: torch.dtype) -> Tensor:
        """δ: the change of the call's output when this change is made to the weight, shaped as ``output``."""
        response = self._of_weight(call, args, output, dtype)
        if self.shift is None or call.kind == "embedding":
            return response
        return response + self.shift.to(dtype).reshape(-1, *(1,) * (2 if call.kind == "conv2d" else 0))

    def _of_weight(self, call: LayerCall, args: Sequence[Any], output: Tensor, dtype: torch.dtype) -> Tensor:
        changed = list(args)
        h = args[call.input_position]
        if call.kind == "embedding":
            if self.rows is not None:
                changed[call.input_position] = torch.searchsorted(self.rows, h.contiguous())
            return call.apply(changed, self.dense(dtype)).expand_as(output)
        if self.option.activation_bits is not None:
            return self._with_coded_input(call, args, dtype).reshape(output.shape)
        changed[call.input_position] = h.to(dtype)
        return call.apply(changed, self.dense(dtype))

    def _with_coded_input(self, call: LayerCall, args: Sequence[Any], dtype: torch.dtype) -> Tensor:
        """x̂ ŵᵀ − x wᵀ: each input row coded to int8 as the packed modules do (``ops.quant_linear``)."""
        h = args[call.input_position].to(dtype)
        weight = args[call.weight_position].to(dtype).flatten(1)
        x = h if call.kind == "linear" else patches(call, args, h)
        codes, scale = quantize_rows(x)
        coded, change = codes * scale, self.dense(dtype)
        if call.kind == "linear":
            return linear(coded, change) + linear(coded - x, weight)
        groups = x.shape[1]
        change, weight = (w.unflatten(0, (groups, -1)).transpose(1, 2) for w in (change, weight))
        return (coded @ change + (coded - x) @ weight).transpose(2, 3)  # [B, groups, N / groups, pixels]


def stored_bytes(rows: int, columns: int, exact: bool, itemsize: int) -> int:
    """Bytes that a ``WeightDelta`` takes."""
    return rows * columns * itemsize if exact else rows * (columns + itemsize)

"""Which dims are the batch, and whether the samples of a batch are independent of one another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchcoinfer.calibrate.judge import batch_size
from torchcoinfer.trace import Traced

TOLERANCE = 1e-3  # of the largest output: other batch sizes sum in another order
TOLERANCE_HALF = 5e-2  # 16-bit floats


@dataclass(frozen=True)
class BatchDims:
    """Where the batch dim stands.

    Attributes:
        leading: per flat input, whether its first dim is the batch.
        symbols: names of the batch dim in the traced graph; empty where the batch is fixed. torch.export may
            give the first dims of two inputs different names although they must agree.
    """

    leading: tuple[bool, ...]
    symbols: frozenset[str]

    @classmethod
    def of(cls, traced: Traced, inputs: Sequence[Tensor]) -> BatchDims:
        """Read off the traced dims and the sizes of one batch.

        A dynamic first dim whose name stands at another place too (a sequence length) is not the batch.
        """
        specs, batch = traced.call.inputs, batch_size(inputs)
        elsewhere = {size for spec in specs for size in spec.shape[1:]}
        first = next((spec.shape[0] for spec in specs if spec.shape), None)
        leading = tuple(
            bool(spec.shape)
            and value.shape[0] == batch
            and isinstance(spec.shape[0], str) == isinstance(first, str)
            and (isinstance(first, int) or spec.shape[0] not in elsewhere)
            for spec, value in zip(specs, inputs)
        )
        names = (spec.shape[0] for spec, lead in zip(specs, leading) if lead)
        return cls(leading, frozenset(name for name in names if isinstance(name, str)))

    def take(self, inputs: Sequence[Tensor], rows: slice) -> tuple[Tensor, ...]:
        """Some samples of a batch: inputs that lead with the batch dim are cut, others shared."""
        return tuple(value[rows] if lead else value for lead, value in zip(self.leading, inputs))

    def independent(self, inputs: Sequence[Tensor], judge: Callable[[Sequence[Tensor]], Tensor]) -> bool:
        """Whether no sample changes another's output, tried on one batch.

        With a dynamic batch dim the first sample is run alone; with a fixed one it is exchanged for a copy of
        the second, and the others must not notice.
        """
        if batch_size(inputs) < 2:
            return True
        together = judge(inputs)
        if self.symbols:
            alone = judge(self.take(inputs, slice(0, 1)))
            return alone.shape[1:] == together.shape[1:] and _close(alone, together[:1])
        changed = tuple(
            torch.cat([value[1:2], value[1:]]) if lead else value for lead, value in zip(self.leading, inputs)
        )
        return _close(judge(changed)[1:], together[1:])


def _close(one: Tensor, other: Tensor) -> bool:
    tolerance = TOLERANCE_HALF if one.dtype in (torch.float16, torch.bfloat16) else TOLERANCE
    largest = float(other.abs().max()) if other.numel() else 0.0
    return bool(((one - other).abs() <= tolerance * largest).all())

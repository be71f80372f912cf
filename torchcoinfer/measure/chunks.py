"""Walks calibration data a few samples at a time, and sums squared responses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, fx
from tqdm import tqdm

from torchcoinfer.calibrate.judge import batch_size
from torchcoinfer.measure.segments import Costs
from torchcoinfer.measure.sweep import Responses, measure_costs, sweep
from torchcoinfer.measure.tape import Noise, Tape


@dataclass
class Squares:
    """Running sums of squared responses x of independent groups of samples, per option."""

    total: Tensor
    squared: Tensor
    groups: int = 0

    @classmethod
    def empty(cls, options: int) -> Squares:
        return cls(torch.zeros(options, dtype=torch.float64), torch.zeros(options, dtype=torch.float64))

    def add(self, responses: Tensor) -> None:
        """``responses`` g·δ [B, P, O]: squared, averaged over probes, summed over samples."""
        x = responses.double().square().mean(1).cpu()
        self.total += x.sum(0)
        self.squared += x.square().sum(0)
        self.groups += x.shape[0]

    def mean_and_error(self, scale: float) -> tuple[list[float], list[float]]:
        """Total and its standard error, both times ``scale``."""
        spread = (self.squared - self.total.square() / self.groups).clamp_min(0.0)
        error = (spread * self.groups / max(self.groups - 1, 1)).sqrt()
        return (self.total * scale).tolist(), (error * scale).tolist()


def responses(
    tape: Tape,
    data: Sequence[Sequence[Tensor]],
    nodes: set[fx.Node],
    probes: int,
    noise: Noise,
    budget_bytes: int,
    bar: tqdm,
) -> Iterator[Iterator[Responses]]:
    """Per chunk of samples, per segment of the graph, last one first: the sites, and g = Jᵀu at each.

    Chunks are as large, and segments as few, as the budget allows; where not even one sample fits, the
    segments are those of least peak. A chunk's segments must be used up before the next chunk.
    """
    first = 0
    plans: dict[tuple[torch.Size, ...], tuple[int, tuple[int, ...], frozenset[fx.Node]]] = {}
    for inputs in data:
        batch = batch_size(inputs)
        shapes = tuple(value.shape for value in inputs)
        if shapes not in plans:
            costs = measure_costs(tape, tape.few(inputs), nodes, probes)
            plans[shapes] = (
                *_divided(costs, batch if tape.divisible else 1, budget_bytes),
                costs.differentiable,
            )
        step, bounds, differentiable = plans[shapes]
        step = step if tape.divisible else batch
        for start in range(0, batch, step):
            chunk = inputs if step == batch else tape.dims.take(inputs, slice(start, start + step))
            size = batch_size(chunk)
            numbers = range(first + start, first + start + size)
            numbered = partial(noise, samples=numbers)
            yield sweep(tape, chunk, nodes, bounds, differentiable, probes, numbered)
            bar.update(size)
        first += batch


def _divided(costs: Costs, batch: int, budget_bytes: int) -> tuple[int, tuple[int, ...]]:
    """The most samples that fit, of ``batch`` halved repeatedly, and where the graph is divided for them.

    A division costs one forward pass more, whatever the number of segments: less than small chunks do.
    """
    step = batch
    while True:
        bounds = costs.divide(budget_bytes / step)
        if step == 1 or costs.peak(bounds) * step <= budget_bytes:
            return step, bounds
        step = (step + 1) // 2

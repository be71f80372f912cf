"""Walks calibration data a few samples at a time, and sums squared responses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, fx
from tqdm import tqdm

from torchcoinfer.calibrate.judge import batch_size
from torchcoinfer.measure.tape import Noise, Site, Tape


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
) -> Iterator[tuple[dict[fx.Node, Site], dict[fx.Node, Tensor]]]:
    """Per chunk of samples: the sites, and g = Jᵀu at each."""
    first = 0
    for inputs in data:
        batch = batch_size(inputs)
        step = batch
        if tape.divisible:
            one = response_bytes(*tape.footprint(tape.dims.take(inputs, slice(0, 1)), nodes), probes)
            step = max(1, min(batch, budget_bytes // max(one, 1)))
        for start in range(0, batch, step):
            chunk = inputs if step == batch else tape.dims.take(inputs, slice(start, start + step))
            size = batch_size(chunk)
            judged, sites = tape.record(chunk, nodes)
            numbers = range(first + start, first + start + size)
            yield sites, tape.responses(judged, sites, probes, partial(noise, samples=numbers))
            bar.update(size)
        first += batch


def response_bytes(sizes: Mapping[fx.Node, tuple[int, int]], judged: int, probes: int) -> int:
    """Bytes held for one chunk, float32: per node g of every probe, value, its gradient and the input;
    of the judged tensor the noise, the direction and two more.
    """
    return 16 * judged + sum(4 * ((probes + 2) * value + read) for value, read in sizes.values())

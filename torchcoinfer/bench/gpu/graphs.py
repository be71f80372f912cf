"""Timing on a GPU: calls on distinct weights captured in one CUDA graph, replayed between two events.

A graph leaves the launches out that Python would be slow at, and the weights, at least ``LEAST_ROTATED``
bytes of them, do not fit into the L2 cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

LEAST_ROTATED = 256 << 20
MOST_COPIES = 512
REPLAYS = 30
WARM_UPS = 3
MOST_P90_OVER_MEDIAN = 1.2


@dataclass
class Timed:
    """One way to do the same work; ``calls`` have weights of their own.

    ``seconds`` holds, replay by replay, the mean time of a call; filled by ``race``.
    """

    name: str
    calls: Sequence[Callable[[], Any]]
    moved_bytes: int
    flops: float
    peer: bool = False
    seconds: list[float] = field(default_factory=list)
    _graph: torch.cuda.CUDAGraph | None = None

    @property
    def median_s(self) -> float:
        return float(np.median(self.seconds))

    @property
    def p90_s(self) -> float:
        return float(np.quantile(self.seconds, 0.9))

    @property
    def not_judged(self) -> str | None:
        """Why this timing counts for nothing, or None."""
        spread = self.p90_s / self.median_s
        return None if spread <= MOST_P90_OVER_MEDIAN else f"p90/median {spread:.2f} > {MOST_P90_OVER_MEDIAN}"

    def capture(self) -> None:
        """Warm up on a stream of its own, then capture every call once."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self.calls[0]()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in self.calls:
                call()
        self._graph = graph

    def replay(self) -> None:
        """One timed replay of all calls."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        self._graph.replay()
        end.record()
        end.synchronize()
        self.seconds.append(1e-3 * begin.elapsed_time(end) / len(self.calls))


def copies_for(weight_bytes: int) -> int:
    """How many distinct weights make ``LEAST_ROTATED`` bytes: 2 to ``MOST_COPIES``."""
    return min(MOST_COPIES, max(2, math.ceil(LEAST_ROTATED / max(1, weight_bytes))))


def race(contenders: Sequence[Timed], replays: int = REPLAYS) -> None:
    """Time all contenders in turn, replay by replay; the first replay of each is left out."""
    for contender in contenders:
        contender.capture()
    for turn in range(replays + 1):
        for contender in contenders:
            contender.replay()
            if turn == 0:
                contender.seconds.clear()

"""Times of short calls on a machine that does other things too: round-robin, medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def interleaved_medians(
    calls: Mapping[str, Callable[[], Any]], *, rounds: int = 7, budget_s: float = 5.0
) -> dict[str, float]:
    """Median seconds of each call.

    One call of each in turn, round after round, so that a slow moment of the machine falls on all of them and
    no call finds its own weights still in the nearest cache. Calls shorter than 20 us are repeated within one
    sample. Stops early, after at least two rounds, when ``budget_s`` is spent.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    with torch.inference_mode():
        repeats = {name: _repeats(call) for name, call in calls.items()}
        for done in range(rounds):
            if done >= 2 and time.perf_counter() - start > budget_s:
                break
            for name, call in calls.items():
                begin = time.perf_counter()
                for _ in range(repeats[name]):
                    call()
                samples[name].append((time.perf_counter() - begin) / repeats[name])
    return {name: statistics.median(times) for name, times in samples.items()}


def _repeats(call: Callable[[], Any]) -> int:
    """A first call, not counted (allocation, dispatch), then one to see how many fill 20 us."""
    call()
    begin = time.perf_counter()
    call()
    return max(1, min(32, round(20e-6 / max(time.perf_counter() - begin, 1e-7))))

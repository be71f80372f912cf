"""Fair timing on a shared machine: peers interleaved in one process, weights rotated out of the cache, rows
that say when they may not be judged.

A ratio counts only if both sides had their cores (CPU time >= .94 x threads x wall) and were steady
(p90 <= 1.5 x median); otherwise the row says "not judged" and why.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

LEAST_CPU_SHARE = 0.94
MOST_P90_OVER_MEDIAN = 1.5
_CACHE_FOLDER = Path("/sys/devices/system/cpu/cpu0/cache")
_DEFAULT_CACHE_BYTES = 32 << 20  # where the system does not tell


@dataclass
class Contender:
    """One way to do the same work.

    Attributes:
        name: as it appears in tables.
        calls: the same work on copies with memory of their own; used in turn.
        moved_bytes: bytes of weights that one call has to read.
        flops: of one call.
        seconds, cpu_seconds: one entry a call, filled by ``race``.
    """

    name: str
    calls: Sequence[Callable[[], Any]]
    moved_bytes: int
    flops: float = 0.0
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        return float(np.median(self.seconds))

    @property
    def p90_s(self) -> float:
        return float(np.quantile(self.seconds, 0.9))

    def cpu_share(self, threads: int) -> float:
        """CPU time over threads x wall; below one where others had the cores or threads had to wait."""
        return sum(self.cpu_seconds) / max(1e-12, threads * sum(self.seconds))

    def not_judged(self, threads: int) -> str | None:
        """Why this timing counts for nothing, or None."""
        share, spread = self.cpu_share(threads), self.p90_s / self.median_s
        if share < LEAST_CPU_SHARE:
            return f"CPU share {share:.2f} < {LEAST_CPU_SHARE}"
        if spread > MOST_P90_OVER_MEDIAN:
            return f"p90/median {spread:.2f} > {MOST_P90_OVER_MEDIAN}"
        return None


def race(contenders: Sequence[Contender], budget_s: float = 2.0, least_rounds: int = 9) -> None:
    """Time all contenders, one call each in turn, until ``budget_s`` is spent (``least_rounds`` at least)."""
    for contender in contenders:
        contender.calls[0]()  # first call: allocation, thread start, code paths
    started, rounds = time.perf_counter(), 0
    while rounds < least_rounds or time.perf_counter() - started < budget_s:
        for contender in contenders:
            call = contender.calls[rounds % len(contender.calls)]
            cpu, wall = time.process_time(), time.perf_counter()
            call()
            contender.seconds.append(time.perf_counter() - wall)
            contender.cpu_seconds.append(time.process_time() - cpu)
        rounds += 1


def last_level_cache_bytes() -> int:
    """Size of the largest cache, from the system; 32 MiB where it does not tell."""
    sizes = [path.read_text().strip() for path in _CACHE_FOLDER.glob("index*/size")]
    steps = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return max(
        (int(size[:-1]) * steps[size[-1]] for size in sizes if size[-1:] in steps),
        default=_DEFAULT_CACHE_BYTES,
    )


def copies_beyond_cache(weight_bytes: int, most_bytes: int = 1 << 30) -> int:
    """How many copies of a weight make twice the last-level cache: 2 to 512, at most ``most_bytes`` in all.

    The limit of 512 leaves small layers partly in the cache of a large server; rows say how much was rotated.
    """
    wanted = min(2 * last_level_cache_bytes(), most_bytes)
    return min(512, max(2, -(-wanted // max(1, weight_bytes))))


def memory_reader(size_bytes: int) -> Contender:
    """Reads memory once with all threads of torch: the floor of memory-bound kernels."""
    parts = [torch.ones(size_bytes // 16, dtype=torch.float32) for _ in range(4)]
    return Contender("memory read", [part.sum for part in parts], parts[0].numel() * 4)


def row(contender: Contender, what: str, shape: Sequence[int], threads: int, **told: Any) -> dict[str, Any]:
    """One measurement as plain JSON; ``told``: peer ratios, dtype, fraction of the roofline and the like."""
    reason = contender.not_judged(threads)
    return {
        "what": what,
        "kernel": contender.name,
        "shape": list(shape),
        "device": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": threads,
        "median_s": contender.median_s,
        "p90_s": contender.p90_s,
        "cpu_share": contender.cpu_share(threads),
        "bytes": contender.moved_bytes,
        "flops": contender.flops,
        "calls": len(contender.seconds),
        "judged": True if reason is None else f"not judged: {reason}",
        "load_1min": os.getloadavg()[0],
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        **told,
    }

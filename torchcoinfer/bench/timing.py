"""Fair timing on a shared machine: peers interleaved in one process, weights rotated out of the cache, rows
that say when they may not be judged.

A timing counts only if the process had its cores (CPU time >= .94 x threads x wall) and was steady
(p90 <= 1.5 x median); otherwise the row says "not judged" and why. Contenders take turns in bursts of calls:
single calls in turn would each pay for waking another library's threads. A burst during which others used
the cores is left out.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

LEAST_CPU_SHARE = 0.94
MOST_P90_OVER_MEDIAN = 1.5
BURST_S = 2e-3  # a contender's turn lasts at least so long, so that its CPU time can be read
LONGEST_BURST = 64
LEAST_BURSTS = 5
PATIENCE, GRACE_S = 4, 1.0
SETTLE_S = 6e-3  # idle threads of OpenMP spin for up to 5 ms and would take the next pool's cores
_THREAD_FOLDER = Path("/proc/self/task")
_CACHE_FOLDER = Path("/sys/devices/system/cpu/cpu0/cache")
_DEFAULT_CACHE_BYTES = 32 << 20  # where the system does not tell


@dataclass(frozen=True)
class Burst:
    """Some calls in a row: each one's time, and of all together wall, CPU time of all threads, and the time
    that threads of this process were ready and had no core."""

    seconds: tuple[float, ...]
    wall_s: float
    cpu_s: float
    waited_s: float = 0.0

    def cpu_share(self, threads: int) -> float:
        """CPU time over threads x wall; below one where others had the cores or threads slept."""
        return self.cpu_s / max(1e-12, threads * self.wall_s)

    def had_cores(self, threads: int) -> bool:
        """Whether nobody else used the cores meanwhile.

        Calls that keep to one thread of several by their own choice (CPU time = wall) had theirs if no thread
        of the process waited for a core.
        """
        waited, alone = self.waited_s / max(1e-12, self.wall_s), self.cpu_share(1)
        by_choice = LEAST_CPU_SHARE <= alone <= 2.0 - LEAST_CPU_SHARE and waited <= 1.0 - LEAST_CPU_SHARE
        return self.cpu_share(threads) >= LEAST_CPU_SHARE or by_choice


@dataclass
class Contender:
    """One way to do the same work.

    Attributes:
        name: as it appears in tables.
        calls: the same work on copies with memory of their own; used in turn.
        moved_bytes: bytes of weights that one call has to read.
        flops: of one call.
        pool: whose threads it runs on; between pools the race waits until idle threads sleep.
        threads: that it may use.
        bursts: filled by ``race``.
    """

    name: str
    calls: Sequence[Callable[[], Any]]
    moved_bytes: int
    flops: float = 0.0
    pool: str = "torch"
    threads: int = 1
    bursts: list[Burst] = field(default_factory=list)
    _turn: int = 0

    @property
    def sound(self) -> list[Burst]:
        """Bursts during which the process had its cores."""
        return [burst for burst in self.bursts if burst.had_cores(self.threads)]

    @property
    def seconds(self) -> list[float]:
        """Time of each call: of the sound bursts, or of all where they are too few."""
        sound = self.sound
        used = sound if len(sound) >= LEAST_BURSTS else self.bursts
        return [second for burst in used for second in burst.seconds]

    @property
    def median_s(self) -> float:
        return float(np.median(self.seconds))

    @property
    def p90_s(self) -> float:
        return float(np.quantile(self.seconds, 0.9))

    @property
    def cpu_share(self) -> float:
        """Median over the bursts."""
        return float(np.median([burst.cpu_share(self.threads) for burst in self.bursts]))

    @property
    def not_judged(self) -> str | None:
        """Why this timing counts for nothing, or None."""
        if len(self.sound) < LEAST_BURSTS:
            had = f"cores to itself in {len(self.sound)} of {len(self.bursts)} bursts"
            return f"{had}, CPU share {self.cpu_share:.2f}"
        spread = self.p90_s / self.median_s
        if spread > MOST_P90_OVER_MEDIAN:
            return f"p90/median {spread:.2f} > {MOST_P90_OVER_MEDIAN}"
        return None

    def burst(self, count: int) -> None:
        """Time ``count`` calls, each on the next copy; one more before them wakes the threads."""
        self.calls[self._turn % len(self.calls)]()
        seconds = []
        waited, cpu, started = _waited_s(), time.process_time(), time.perf_counter()
        for _ in range(count):
            self._turn += 1
            call = self.calls[self._turn % len(self.calls)]
            begun = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - begun)
        wall, used = time.perf_counter() - started, time.process_time() - cpu
        self.bursts.append(Burst(tuple(seconds), wall, used, _waited_s() - waited))
        self._turn += 1


def _waited_s() -> float:
    """Time that threads of this process were ready and had no core; 0 where the system does not tell."""
    waited = 0
    for path in _THREAD_FOLDER.glob("*/schedstat"):
        with contextlib.suppress(OSError):  # a thread may end meanwhile
            waited += int(path.read_text().split()[1])
    return 1e-9 * waited


def race(contenders: Sequence[Contender], threads: int, budget_s: float = 2.0) -> None:
    """Time all contenders in turn, burst by burst, until ``budget_s`` is spent.

    Where others use the cores or the memory it goes on, ``PATIENCE`` times as long and ``GRACE_S``, until all
    may be judged. Contenders of one thread pool should stand together: every change of pool costs
    ``SETTLE_S``.
    """
    counts, pool = {}, None
    for contender in contenders:
        contender.threads = threads
        pool = _settle(contender.pool, pool)
        contender.calls[0]()  # first call: allocation, thread start, code paths
        begun = time.perf_counter()
        contender.calls[-1]()
        once = time.perf_counter() - begun
        counts[id(contender)] = min(LONGEST_BURST, max(1, math.ceil(BURST_S / max(once, 1e-9))))
    started, rounds = time.perf_counter(), 0
    while True:
        spent = time.perf_counter() - started
        patient = spent <= PATIENCE * budget_s + GRACE_S
        if rounds >= LEAST_BURSTS and spent > budget_s and not (patient and _disturbed(contenders)):
            return
        for contender in contenders:
            pool = _settle(contender.pool, pool)
            contender.burst(counts[id(contender)])
        rounds += 1


def _disturbed(contenders: Sequence[Contender]) -> bool:
    return any(contender.not_judged for contender in contenders)


def _settle(pool: str, before: str | None) -> str:
    """Waits for the other pool's threads to go to sleep; returns the pool."""
    if before not in (None, pool):
        time.sleep(SETTLE_S)
    return pool


def last_level_cache_bytes() -> int:
    """Size of the largest cache, from the system; 32 MiB where it does not tell."""
    sizes = [path.read_text().strip() for path in _CACHE_FOLDER.glob("index*/size")]
    steps = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return max(
        (int(size[:-1]) * steps[size[-1]] for size in sizes if size[-1:] in steps),
        default=_DEFAULT_CACHE_BYTES,
    )


def copies_beyond_cache(weight_bytes: int, most_bytes: int = 1 << 30) -> int:
    """How many copies of a weight make four times the last-level cache: 2 to 512, ``most_bytes`` at most.

    Twice the cache is not enough: caches do not forget in order, and a tenth was still read from there. The
    limit of 512 leaves small layers partly in the cache of a large server; rows say how much was rotated.
    """
    wanted = min(4 * last_level_cache_bytes(), most_bytes)
    return min(512, max(2, -(-wanted // max(1, weight_bytes))))


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """torch's thread count for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cpu_model() -> str:
    """The processor's name, from the system."""
    return _cpu_fact("model name") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """Instruction set extensions by the system's names ("avx512_vnni", "amx_int8"); empty if untold."""
    return frozenset(_cpu_fact("flags").split())


@cache
def _cpu_fact(name: str) -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.partition(":")[0].strip() == name:
                return line.partition(":")[2].strip()
    return ""


def row(contender: Contender, what: str, shape: Sequence[int], **told: Any) -> dict[str, Any]:
    """One measurement as plain JSON; ``told``: peer ratios, dtype, fraction of the roofline and the like."""
    reason = contender.not_judged
    return {
        "what": what,
        "kernel": contender.name,
        "shape": list(shape),
        "device": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": contender.threads,
        "median_s": contender.median_s,
        "p90_s": contender.p90_s,
        "cpu_share": contender.cpu_share,
        "bytes": contender.moved_bytes,
        "flops": contender.flops,
        "calls": len(contender.seconds),
        "judged": True if reason is None else f"not judged: {reason}",
        "load_1min": os.getloadavg()[0],
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        **told,
    }

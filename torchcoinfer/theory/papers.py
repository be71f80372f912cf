"""The problems of [Q] and [P*] as published: one global choice for the device's part, continuous clocks.

[Q] = arXiv 2602.13052: one bit-width, one split given, communication left out. [P*] = derived here from the
abstract of arXiv 2505.09214: one pruned share for both parts, several splits, with the link. Both are a small
table (splits x levels, ``papers_tables``) whose every cell has a closed form or a one-dimensional convex
solution (``resources``), so the joint design is found by going through all cells; the papers' baselines go
through some of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from torchcoinfer.errors import ArgumentError
from torchcoinfer.theory.bounds import FloatArray
from torchcoinfer.theory.papers_tables import Q_SYSTEM, Level, PaperSystem, Split
from torchcoinfer.theory.resources import Allocation, largest_load, least_energy, least_energy_with_link


@dataclass(frozen=True)
class Design:
    """A choice that keeps both limits: indices of split and level, the distortion, clocks and power."""

    split: int
    level: int
    distortion: float
    allocation: Allocation


@dataclass(frozen=True)
class PaperProblem:
    """A table of distortions over splits and levels under a latency T0 and an energy E0 ([Q]'s sum).

    Attributes:
        distortion: [splits, levels], what is minimized: a bound, or the measured error of the output.
    """

    splits: tuple[Split, ...]
    levels: tuple[Level, ...]
    distortion: FloatArray
    latency_s: float
    energy_j: float
    system: PaperSystem = Q_SYSTEM

    def __post_init__(self) -> None:
        table = np.asarray(self.distortion, float)
        if table.shape != (len(self.splits), len(self.levels)) or not np.isfinite(table).all():
            raise ArgumentError(
                "the distortions do not belong to these splits and levels",
                got=f"shape {table.shape}",
                expected=f"finite, shape {(len(self.splits), len(self.levels))}",
            )
        object.__setattr__(self, "distortion", table)

    def loads(self, split: int, level: int) -> tuple[float, float, float]:
        """Cycles on the device, bits on the link, cycles on the server."""
        s, own, system = self.splits[split], self.levels[level], self.system
        return (
            own.device_share * s.device_flops / system.device_flops_per_cycle,
            s.link_bits,
            own.server_share * s.server_flops / system.server_flops_per_cycle,
        )

    def least_energy(self, split: int, level: int) -> Allocation | None:
        """The cell's least energy within the latency; None: not within it."""
        return _least_energy(self.loads(split, level), self.latency_s, self.system)

    def spent(self, split: int, level: int, clocks: Allocation) -> Allocation:
        """Energy and latency of the cell at the given clocks and power."""
        a1, bits, a2 = self.loads(split, level)
        system = self.system
        seconds = [a1 / clocks.device_hz if a1 else 0.0, 0.0, a2 / clocks.server_hz if a2 else 0.0]
        if system.radio is not None and bits:
            seconds[1] = bits / system.radio.rate_bps(clocks.transmit_w)
        joules = system.device.coefficient * a1 * clocks.device_hz**2
        joules += clocks.transmit_w * seconds[1]
        joules += system.server.coefficient * a2 * clocks.server_hz**2
        return Allocation(joules, math.fsum(seconds), clocks.device_hz, clocks.server_hz, clocks.transmit_w)

    def keeps(self, spent: Allocation) -> bool:
        return spent.latency_s <= self.latency_s and spent.energy_j <= self.energy_j

    def order(self) -> list[tuple[int, int]]:
        """All cells from the least distortion up; ties: the earlier split, then the earlier level."""
        flat = np.argsort(self.distortion, axis=None, kind="stable")
        return [(int(i) // len(self.levels), int(i) % len(self.levels)) for i in flat]


def _least_energy(
    loads: tuple[float, float, float], latency_s: float, system: PaperSystem
) -> Allocation | None:
    a1, bits, a2 = loads
    if system.radio is None:
        return least_energy(a1, a2, latency_s, system.device, system.server)
    return least_energy_with_link(a1, bits, a2, latency_s, system.device, system.server, system.radio)


def joint_design(problem: PaperProblem, splits: Sequence[int] | None = None) -> Design | None:
    """The least distortion over all levels, clocks and powers, and over ``splits`` (default: all).

    Exact: cells are tried from the least distortion up, each at its least energy. None: impossible.
    """
    allowed = range(len(problem.splits)) if splits is None else splits
    for split, level in problem.order():
        if split in allowed:
            found = problem.least_energy(split, level)
            if found is not None and found.energy_j <= problem.energy_j:
                return Design(split, level, float(problem.distortion[split, level]), found)
    return None


def on_device(problem: PaperProblem) -> Design | None:
    """Baseline: everything on the device; only level and clock are chosen."""
    return joint_design(problem, [i for i, s in enumerate(problem.splits) if s.server_flops == 0])


def on_server(problem: PaperProblem) -> Design | None:
    """Baseline: everything on the server; only clock (and power, and what the server's level is) chosen."""
    return joint_design(problem, [i for i, s in enumerate(problem.splits) if s.device_flops == 0])


def fixed_frequency(
    problem: PaperProblem, clocks: Allocation, splits: Sequence[int] | None = None
) -> Design | None:
    """Baseline: clocks and power fixed beforehand; level (and split) the best that keep both limits."""
    allowed = range(len(problem.splits)) if splits is None else splits
    for split, level in problem.order():
        if split in allowed:
            spent = problem.spent(split, level, clocks)
            if problem.keeps(spent):
                return Design(split, level, float(problem.distortion[split, level]), spent)
    return None


def feasible_random(
    problem: PaperProblem,
    draws: int,
    seed: int = 0,
    splits: Sequence[int] | None = None,
    most_tries: int = 20000,
) -> list[Design]:
    """Baseline: split, level, clocks and power drawn uniformly until ``draws`` of them keep both limits.

    Fewer than ``draws`` come back, perhaps none, when ``most_tries`` did not give them.
    """
    if joint_design(problem, splits) is None:
        return []
    system, shape = problem.system, problem.distortion.shape
    allowed = np.array(range(shape[0]) if splits is None else splits)
    loads = np.array([[problem.loads(s, k) for k in range(shape[1])] for s in range(shape[0])])
    tops = np.array([system.device.max_hz, system.server.max_hz, system.radio.max_w if system.radio else 0.0])
    drawn = np.random.default_rng(seed).random((most_tries, 5))
    split = allowed[(drawn[:, 0] * len(allowed)).astype(int)]
    level = (drawn[:, 1] * shape[1]).astype(int)
    clocks = (1.0 - drawn[:, 2:]) * tops  # never 0
    a1, bits, a2 = loads[split, level].T
    seconds = a1 / clocks[:, 0] + a2 / clocks[:, 1]
    joules = system.device.coefficient * a1 * clocks[:, 0] ** 2
    joules += system.server.coefficient * a2 * clocks[:, 1] ** 2
    if system.radio is not None:
        air = bits / (system.radio.bandwidth_hz * np.log2(1.0 + clocks[:, 2] * system.radio.snr_per_w))
        seconds, joules = seconds + air, joules + clocks[:, 2] * air
    near = (seconds <= 1.001 * problem.latency_s) & (joules <= 1.001 * problem.energy_j)
    found: list[Design] = []
    for k in np.flatnonzero(near):  # few: the exact check is below
        if len(found) == draws:
            break
        s, own = int(split[k]), int(level[k])
        spent = problem.spent(s, own, Allocation(0.0, 0.0, *clocks[k].tolist()))
        if problem.keeps(spent):
            found.append(Design(s, own, float(problem.distortion[s, own]), spent))
    return found


@dataclass(frozen=True)
class Rounding:
    """The relaxed width, what the papers make of it (rounded to nearest), and the exact answer."""

    relaxed_bits: float
    rounded_bits: int
    rounded_is_feasible: bool
    best_bits: int


def nearest_rounding(
    split: Split, latency_s: float, energy_j: float, most_bits: int = 16, system: PaperSystem = Q_SYSTEM
) -> Rounding | None:
    """[Q]'s own way: the width relaxed to a real number, then rounded to nearest without a re-check.

    Rounded up it breaks a limit; the exact answer is the floor. Widths from 2 to ``most_bits``; None: not
    even two bits are feasible.
    """

    def energy_of(bits: float) -> Allocation | None:
        a1 = bits / system.float_bits * split.device_flops / system.device_flops_per_cycle
        a2 = split.server_flops / system.server_flops_per_cycle
        return _least_energy((a1, split.link_bits, a2), latency_s, system)

    def fits(bits: float) -> bool:
        found = energy_of(bits)
        return found is not None and found.energy_j <= energy_j

    if not fits(2.0):
        return None
    relaxed = largest_load(energy_of, energy_j, float(most_bits))
    rounded = math.floor(relaxed + 0.5)
    best = max(width for width in range(2, most_bits + 1) if fits(float(width)))
    return Rounding(relaxed, rounded, fits(float(rounded)), best)

"""Stages and the link between them, as the closed forms of ``resources`` take them; checked where made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

from torchcoinfer.errors import ArgumentError


def check(**values: float) -> None:
    """Raises ArgumentError for a value that is not finite or below 0."""
    for name, value in values.items():
        if not (isinstance(value, Real) and math.isfinite(value) and value >= 0):
            raise ArgumentError(
                f"{name} must be finite and at least 0", got=value, expected="SI units",
                remedy="check the loads and limits passed in",
            )  # fmt: skip


def check_positive(**values: float) -> None:
    """Raises ArgumentError for a value that is not finite or not above 0."""
    check(**values)
    for name, value in values.items():
        if value == 0:
            raise ArgumentError(
                f"{name} must be above 0",
                got=value,
                expected="SI units",
                remedy="leave out what is not there",
            )


@dataclass(frozen=True)
class Stage:
    """Device or server: ``coefficient`` = eta psi (0: its energy is free), and the highest clock.

    Raises:
        ArgumentError: a coefficient below 0, a clock that is not above 0, or one that is not finite.
    """

    coefficient: float
    max_hz: float

    def __post_init__(self) -> None:
        check(coefficient=self.coefficient)
        check_positive(max_hz=self.max_hz)


@dataclass(frozen=True)
class Radio:
    """Uplink with Shannon's rate r(p) = B log2(1 + p snr_per_w), snr_per_w = g/(N0 B).

    Raises:
        ArgumentError: a value that is not finite and above 0.
    """

    bandwidth_hz: float
    snr_per_w: float
    max_w: float

    def __post_init__(self) -> None:
        check_positive(bandwidth_hz=self.bandwidth_hz, snr_per_w=self.snr_per_w, max_w=self.max_w)

    def rate_bps(self, transmit_w: float) -> float:
        return self.bandwidth_hz * math.log2(1.0 + transmit_w * self.snr_per_w)

    def power_w(self, rate_bps: float) -> float:
        return math.expm1(rate_bps / self.bandwidth_hz * math.log(2.0)) / self.snr_per_w


@dataclass(frozen=True)
class Allocation:
    """The least energy of one run, and how it is reached. Clocks and power are 0 for an empty stage."""

    energy_j: float
    latency_s: float
    device_hz: float
    server_hz: float
    transmit_w: float = 0.0


# [Q]: 2 GHz and 10 GHz; 32 and 128 FLOP a cycle; eta = 1 and 2; psi = 2e-29 and 1e-28 W/(cycle/s)^3
Q_DEVICE, Q_SERVER = Stage(1.0 * 2e-29, 2e9), Stage(2.0 * 1e-28, 10e9)
Q_DEVICE_FLOPS_PER_CYCLE, Q_SERVER_FLOPS_PER_CYCLE = 32.0, 128.0
Q_FLOAT_BITS = 32

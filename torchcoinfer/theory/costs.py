"""Profiles of devices, servers and links, and what a unit costs on them. Numbers only; each carries its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Load:
    """Work of one unit on one side: ``T = cycles / f + seconds`` (theory.md §4, measured mode).

    ``cycles`` scale with the clock f (Hz); ``seconds`` do not (memory-bound or measured time).
    """

    cycles: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Load) -> Load:
        return Load(self.cycles + other.cycles, self.seconds + other.seconds)


@dataclass(frozen=True)
class DeviceProfile:
    """A device or a server.

    Attributes:
        clocks_hz: DVFS states, ascending; the last is the maximum.
        flops_per_cycle: peak, fp32, all cores.
        efficiency: share of the peak that real kernels reach (stated, since rooflines are not reached).
        memory_bandwidth: bytes per second that a stream of weights reaches.
        memory_bytes: what the model may use at most (a ceiling, not a budget).
        energy_coefficient: eta*psi of [Q] in W/(cycle/s)^3: dynamic power = energy_coefficient * f^3.
        static_w: power drawn while the run lasts, independent of f.
        format_speed: throughput of compute-bound work in a format relative to fp32, keyed "int8a" (8-bit
            activations), "int" (weight-only codes), "2:4", "bitmap"; a missing key counts as 1.
        op_overhead_s: fixed time of one op call.
        measured: seconds per (op key) measured on the machine at ``clocks_hz[-1]``; see profile.py for keys.
        basis: "measured" | "estimated".
        source: where the numbers come from.
    """

    name: str
    clocks_hz: tuple[float, ...]
    flops_per_cycle: float
    efficiency: float
    memory_bandwidth: float
    memory_bytes: float
    energy_coefficient: float
    static_w: float
    source: str
    basis: str = "estimated"
    format_speed: Mapping[str, float] = field(default_factory=dict)
    op_overhead_s: float = 0.0
    measured: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class LinkProfile:
    """A link. Rates in bits per second.

    With ``bandwidth_hz`` and ``snr_per_w`` (= g/(N0 B)) the uplink rate is Shannon's, r(p) = B log2(1 + p snr),
    for each of ``transmit_w``; without them it is ``uplink_bps`` at every power.
    """

    name: str
    uplink_bps: float
    downlink_bps: float
    rtt_s: float
    transmit_w: tuple[float, ...]
    receive_w: float
    source: str
    bandwidth_hz: float | None = None
    snr_per_w: float | None = None
    basis: str = "estimated"

"""Clocks and transmit power in closed form or by one-dimensional convex search.

Energies here are dynamic and radio energy only, as in [Q]; static power, receive power and round trips belong
to the measured rows of ``solve_table``. Loads in cycles at the clock f: a stage takes ``a / f`` seconds and
``k a f^2`` joules with k = eta psi of [Q] in W/(cycle/s)^3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral

from scipy.optimize import brentq

from torchcoinfer.errors import ArgumentError
from torchcoinfer.theory.stages import (
    Q_DEVICE,
    Q_DEVICE_FLOPS_PER_CYCLE,
    Q_FLOAT_BITS,
    Q_SERVER,
    Q_SERVER_FLOPS_PER_CYCLE,
    Allocation,
    Radio,
    Stage,
    check,
)


def least_energy(a1: float, a2: float, latency_s: float, device: Stage, server: Stage) -> Allocation | None:
    """[Q]'s P1 for given loads: least ``k1 a1 f^2 + k2 a2 g^2`` subject to ``a1/f + a2/g <= latency_s``.

    Without limits the clocks keep f/g = r = (k2/k1)^(1/3) and f = (a1 + a2 r)/T0; a clock above its maximum
    is set to it and the other stage takes the time that is left (the problem is convex). A stage whose energy
    is free runs at its highest clock. None: impossible.

    Args:
        a1, a2: cycles on the device and on the server.
    """
    check(a1=a1, a2=a2, latency_s=latency_s)
    if a1 / device.max_hz + a2 / server.max_hz > latency_s or latency_s == 0:
        return None
    if device.coefficient == 0 or server.coefficient == 0:
        f, g = _clocks_of_free_energy(a1, a2, latency_s, device, server)
    else:
        ratio = (server.coefficient / device.coefficient) ** (1.0 / 3.0)
        f = (a1 + a2 * ratio) / latency_s
        g = f / ratio
    if a1 > 0 and f > device.max_hz:
        f, left = device.max_hz, latency_s - a1 / device.max_hz
        g = min(a2 / left, server.max_hz) if a2 > 0 else 0.0
    elif a2 > 0 and g > server.max_hz:
        g, left = server.max_hz, latency_s - a2 / server.max_hz
        f = min(a1 / left, device.max_hz) if a1 > 0 else 0.0
    f, g = (f if a1 > 0 else 0.0), (g if a2 > 0 else 0.0)
    energy = device.coefficient * a1 * f**2 + server.coefficient * a2 * g**2
    time = (a1 / f if a1 > 0 else 0.0) + (a2 / g if a2 > 0 else 0.0)
    return Allocation(energy, time, f, g)


def _clocks_of_free_energy(
    a1: float, a2: float, latency_s: float, device: Stage, server: Stage
) -> tuple[float, float]:
    """Who pays nothing runs at its highest clock; the other stage takes the time that is left."""
    if device.coefficient == 0 and server.coefficient == 0:
        return device.max_hz, server.max_hz
    if device.coefficient == 0:
        left = latency_s - a1 / device.max_hz
        return device.max_hz, min(a2 / left, server.max_hz) if left > 0 else server.max_hz
    left = latency_s - a2 / server.max_hz
    return min(a1 / left, device.max_hz) if left > 0 else device.max_hz, server.max_hz


def _root_of_rate(value: float) -> float:
    """x >= 0 with ``1 + (x - 1) e^x = value``: the marginal energy of time on the link; increasing in x."""
    if value < 1e-6:  # the difference cancels; its series is x^2/2 + x^3/3 + ...
        x = math.sqrt(2.0 * value)
        return x * (1.0 - x / 3.0)
    x = math.log1p(value) + 1.0
    for _ in range(60):  # Newton from above: convex and increasing there
        step = (1.0 + (x - 1.0) * math.exp(x) - value) / (x * math.exp(x))
        x -= step
        if abs(step) <= 1e-15 * x:
            break
    return x


def _link_energy(bits: float, seconds: float, radio: Radio) -> float:
    """``t (2^(S/(B t)) - 1) / snr_per_w`` joules."""
    return seconds * radio.power_w(bits / seconds) if bits > 0 else 0.0


def least_energy_with_link(
    a1: float, bits: float, a2: float, latency_s: float, device: Stage, server: Stage, radio: Radio
) -> Allocation | None:
    """Least ``k1 a1^3/t1^2 + t2 (2^(S/(B t2)) - 1)/snr + k2 a2^3/t3^2`` over ``t1 + t2 + t3 <= latency_s``
    and the limits of clocks and power; None: impossible.

    Jointly convex: with one multiplier nu on the time each stage's time is a function of nu alone, and their
    sum decreases in nu; nu is found by bracketing on a logarithmic scale.

    Args:
        bits: S, what crosses the link.
    """
    check(a1=a1, bits=bits, a2=a2, latency_s=latency_s)
    shortest = [a1 / device.max_hz, bits / radio.rate_bps(radio.max_w), a2 / server.max_hz]
    if sum(shortest) > latency_s or latency_s == 0:
        return None
    per_bit = bits * math.log(2.0) / radio.bandwidth_hz

    def times(nu: float) -> tuple[float, float, float]:
        t1 = (2.0 * device.coefficient * a1**3 / nu) ** (1.0 / 3.0)
        t2 = per_bit / _root_of_rate(nu * radio.snr_per_w) if bits > 0 else 0.0
        t3 = (2.0 * server.coefficient * a2**3 / nu) ** (1.0 / 3.0)
        return max(t1, shortest[0]), max(t2, shortest[1]), max(t3, shortest[2])

    if a1 == bits == a2 == 0:
        return Allocation(0.0, 0.0, 0.0, 0.0)

    def spare(log_nu: float) -> float:
        return sum(times(math.exp(log_nu))) - latency_s

    low, high = _bracket(spare)
    t = (
        times(math.exp(high))
        if low == high
        else times(math.exp(brentq(spare, low, high, xtol=1e-14, rtol=1e-15)))
    )
    excess = sum(t) - latency_s
    if excess > 0:  # the last rounding of the search, taken off the stages that have time to give
        room = [own - least for own, least in zip(t, shortest, strict=True)]
        share = excess / sum(room) if sum(room) > 0 else 0.0
        t = tuple(own - share * free for own, free in zip(t, room, strict=True))
    f, g = (a / own if a > 0 else 0.0 for a, own in ((a1, t[0]), (a2, t[2])))
    f, g = min(f, device.max_hz), min(g, server.max_hz)
    power = min(radio.power_w(bits / t[1]), radio.max_w) if bits > 0 else 0.0
    energy = device.coefficient * a1 * f**2 + _link_energy(bits, t[1], radio) + server.coefficient * a2 * g**2
    return Allocation(energy, math.fsum(t), f, g, power)


def _bracket(decreasing: Callable[[float], float]) -> tuple[float, float]:
    """(low, high) with the root of a decreasing function between them; equal if it never exceeds 0."""
    low = high = 0.0
    while decreasing(high) > 0 and high < 690.0:
        high += 10.0
    while decreasing(low) < 0 and low > -690.0:
        low -= 10.0
    if decreasing(low) <= 0 or decreasing(high) > 0:
        return high, high
    return low, high


def largest_load(
    energy_of: Callable[[float], Allocation | None], energy_j: float, upper: float, tolerance: float = 1e-12
) -> float:
    """Largest load a in [0, upper] with ``energy_of(a).energy_j <= energy_j``, which increases in a; by
    bisection from the feasible side. 0 also if nothing is feasible: check ``energy_of(0)``."""
    check(energy_j=energy_j, upper=upper)

    def fits(load: float) -> bool:
        found = energy_of(load)
        return found is not None and found.energy_j <= energy_j

    if fits(upper):
        return upper
    low, high = 0.0, upper
    while high - low > tolerance * upper:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


@dataclass(frozen=True)
class QuantizedSplit:
    """Answer of [Q]'s P1: the bit-width of the device's part, and the clocks."""

    bits: int
    allocation: Allocation


def quantized_split(
    device_flops: float,
    server_flops: float,
    latency_s: float,
    energy_j: float,
    *,
    bits: Sequence[int] = tuple(range(1, Q_FLOAT_BITS + 1)),
    device: Stage = Q_DEVICE,
    server: Stage = Q_SERVER,
    float_bits: int = Q_FLOAT_BITS,
) -> QuantizedSplit | None:
    """[Q]'s joint problem with their work model a1 = b N/(32 c), a2 = N'/c': the largest feasible bit-width.

    The objective D_U - D_L strictly decreases in the bit-width, so no search beyond feasibility is needed;
    the width is an integer and re-checked, never rounded up into infeasibility. None: impossible.

    Raises:
        ArgumentError: a load or limit below 0 or not finite, a width outside 1 to ``float_bits``.
    """
    check(device_flops=device_flops, server_flops=server_flops, latency_s=latency_s, energy_j=energy_j)
    if not all(isinstance(width, Integral) and 1 <= width <= float_bits for width in bits):
        raise ArgumentError(
            "a bit-width is out of range", got=tuple(bits), expected=f"integers in 1..{float_bits}",
            remedy="leave out the widths that no code has",
        )  # fmt: skip
    a2 = server_flops / Q_SERVER_FLOPS_PER_CYCLE
    for width in sorted(bits, reverse=True):
        a1 = width / float_bits * device_flops / Q_DEVICE_FLOPS_PER_CYCLE
        found = least_energy(a1, a2, latency_s, device, server)
        if found is not None and found.energy_j <= energy_j:
            return QuantizedSplit(width, found)
    return None


@dataclass(frozen=True)
class PrunedSplit:
    """Answer of [P*]: the split, the pruned share of both parts, clocks and power."""

    split: int
    sparsity: float
    allocation: Allocation


def pruned_split(
    splits: Sequence[tuple[float, float, float]],
    latency_s: float,
    energy_j: float,
    *,
    radio: Radio,
    device: Stage = Q_DEVICE,
    server: Stage = Q_SERVER,
) -> PrunedSplit | None:
    """[P*], derived here from the abstract of [P]: one pruned share for both parts, with the
    link.

    a1 = (1 - rho) N1/c, a2 = (1 - rho) N2/c'. The distortion D1(rho) increases in rho, so the answer is the
    split with the smallest feasible share; energy increases in (1 - rho), so the share is found by bisection.
    Ties go to the split with less energy, then to the first. None: impossible.

    Args:
        splits: (device FLOPs, bits on the link, server FLOPs) of each split.

    Raises:
        ArgumentError: a load or limit below 0 or not finite.
    """
    check(latency_s=latency_s, energy_j=energy_j)
    for n1, bits, n2 in splits:
        check(device_flops=n1, link_bits=bits, server_flops=n2)
    best: tuple[float, float, int, Allocation] | None = None
    for index, (n1, bits, n2) in enumerate(splits):

        def energy_of(kept: float, n1=n1, bits=bits, n2=n2) -> Allocation | None:
            a1, a2 = kept * n1 / Q_DEVICE_FLOPS_PER_CYCLE, kept * n2 / Q_SERVER_FLOPS_PER_CYCLE
            return least_energy_with_link(a1, bits, a2, latency_s, device, server, radio)

        kept = largest_load(energy_of, energy_j, 1.0)
        found = energy_of(kept)
        if found is None or found.energy_j > energy_j:
            continue
        if best is None or (1.0 - kept, found.energy_j, index) < best[:3]:
            best = (1.0 - kept, found.energy_j, index, found)
    return None if best is None else PrunedSplit(best[2], best[0], best[3])

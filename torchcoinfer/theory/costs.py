"""Profiles of devices, servers and links, and what a unit costs on them. Numbers only; each carries its
source."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from torchcoinfer.theory.graph import Graph, Layer, Unit
from torchcoinfer.theory.options import Option, kept_size, packed_bytes

SCALE_ZERO_BYTES = 8  # float32 scale and zero point of one row of a coded tensor
FLOAT_BITS = 32  # b of [Q]: full precision


@dataclass(frozen=True)
class Load:
    """Work of one unit on one side: ``T = cycles / f + seconds`` (measured mode).

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

    @cached_property
    def measured_by_shape(self) -> dict[str, tuple[tuple[int, float], ...]]:
        """``measured`` without the last part of the key: -> (tokens, seconds), ascending in tokens."""
        table: dict[str, list[tuple[int, float]]] = {}
        for key, seconds in self.measured.items():
            shape, _, tokens = key.rpartition(":")
            table.setdefault(shape, []).append((int(tokens), seconds))
        return {shape: tuple(sorted(rows)) for shape, rows in table.items()}


@dataclass(frozen=True)
class LinkProfile:
    """A link. Rates in bits per second.

    With ``bandwidth_hz`` and ``snr_per_w`` (= g/(N0 B)) the uplink rate is Shannon's, r(p) = B log2(1 + p
    snr), for each of ``transmit_w``; without them it is ``uplink_bps`` at every power.
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

    def rate_bps(self, transmit_w: float) -> float:
        """Uplink bits per second at a transmit power: Shannon's r(p), or ``uplink_bps``."""
        if self.bandwidth_hz is None or self.snr_per_w is None:
            return self.uplink_bps
        return self.bandwidth_hz * math.log2(1.0 + transmit_w * self.snr_per_w)


def coded_bytes(shape: tuple[int, ...], bits: int, leading_dims: int | None = None) -> int:
    """Bytes of a coded tensor on the link: header, codes, and a scale and zero point a row.

    A row is one index of the leading dims; its values are packed into ``bits`` each, rounded up to a byte.
    ``leading_dims`` defaults to all but the last of up to three dims (tokens) and to 1 above (images).
    """
    leading = leading_dims if leading_dims is not None else (len(shape) - 1 if len(shape) <= 3 else 1)
    rows, row_values = math.prod(shape[:leading]), math.prod(shape[leading:])
    return rows * (-(-row_values * bits // 8) + SCALE_ZERO_BYTES) + header_bytes(len(shape))


def float_bytes(nbytes: int, rank: int) -> int:
    """Bytes on the link of a tensor with ``rank`` dims sent as it is."""
    return nbytes + header_bytes(rank)


def header_bytes(rank: int) -> int:
    """Bytes of the header of one tensor's frame (runtime/wire.py; a test compares)."""
    return 20 + 4 * rank


def measured_key(kind: str, option: Option, layer: Layer, tokens: int) -> str:
    """Key in ``DeviceProfile.measured``: kind:format:bits:rows x columns:tokens.

    The format carries what else the time depends on: "+a8" for 8-bit activations, "@0.5" for the sparsity of
    a bitmap.
    """
    sparsity = f"@{option.sparsity:g}" if option.format == "bitmap" else ""
    activations = f"+a{option.activation_bits}" if option.activation_bits else ""
    rows, columns = kept_size(option, layer.rows, layer.columns)
    return f"{kind}:{option.format}{sparsity}{activations}:{option.bits}:{rows}x{columns}:{tokens}"


def unit_tokens(unit: Unit, layer: Layer, graph: Graph) -> int:
    """Rows of the activation matrix that meets the weight: tokens, output positions, or rows looked up."""
    if unit.flops > 0:
        return max(1, round(unit.flops / (2 * layer.numel)))
    return max(1, math.prod(graph.tensors[unit.outputs[0]].shape) // layer.columns)


def _speed(profile: DeviceProfile, option: Option) -> float:
    """Compute throughput of a format relative to fp32: the most specific key that the profile has, else 1."""
    prefix = "int8a" if option.activation_bits == 8 else option.format
    keys = (f"{prefix}:{option.bits}", prefix)
    return next((profile.format_speed[key] for key in keys if key in profile.format_speed), 1.0)


def _weight_stream_bytes(profile: DeviceProfile, option: Option, layer: Layer) -> float:
    """Bytes whose streaming takes as long as reading the weight in its format.

    An estimate must not promise what unmeasured kernels may not keep: odd widths stream like the next power
    of two, and a bitmap like the dense codes of its width, unless the profile states a speed for the format.
    """
    share = option.kept_rows * option.kept_columns
    if option.format == "float":
        return layer.weight_bytes * share
    packed = packed_bytes(option, layer.rows, layer.columns)
    if f"{option.format}:{option.bits}" in profile.format_speed:
        return packed
    if option.format == "bitmap":
        if "bitmap" in profile.format_speed:
            return packed
        dense = replace(option, sparsity=0.0, format="int")
        codes = layer.numel * share * option.bits / 8  # survivors that are not quantized
        return max(packed, _weight_stream_bytes(profile, dense, layer) if option.bits < 16 else codes)
    if option.format == "int" and option.bits < 8:
        return packed * (1 << (option.bits - 1).bit_length()) / option.bits
    return packed


def _moved_bytes(
    profile: DeviceProfile, unit: Unit, option: Option | None, layer: Layer | None, graph: Graph
) -> float:
    """Bytes that the unit reads and writes once: activations, parameters, and the weight in its format."""
    kept = (1.0, 1.0) if option is None else (option.kept_columns, option.kept_rows)
    moved = kept[0] * sum(graph.tensors[name].nbytes for name in unit.inputs)
    moved += kept[1] * sum(graph.tensors[name].nbytes for name in unit.outputs)
    moved += sum(graph.parameters[name] for name in unit.parameters)
    if layer is not None and option is not None:
        weight = _weight_stream_bytes(profile, option, layer)
        if layer.kind == "embedding":  # only the rows looked up are read
            weight *= min(1.0, unit_tokens(unit, layer, graph) / layer.rows)
        moved += weight
    return moved


def _is_view(unit: Unit, graph: Graph) -> bool:
    """Whether the unit only looks at its input in another shape: no arithmetic, no parameter, equal bytes."""
    if unit.flops > 0 or unit.layer is not None or unit.parameters or len(unit.inputs) != 1:
        return False
    made = sum(graph.tensors[name].nbytes for name in unit.outputs)
    return made == graph.tensors[unit.inputs[0]].nbytes


def _roofline(profile: DeviceProfile, cycles: float, seconds: float) -> Load:
    """``max(cycles / f, seconds)`` as a Load: exact at the lowest and the highest clock, above it between.

    The maximum is convex in 1/f, so its chord is the least line above it. A unit that is compute-bound at all
    clocks is cycles alone, a memory-bound one seconds alone.
    """
    fast, slow = 1.0 / profile.clocks_hz[-1], 1.0 / profile.clocks_hz[0]
    at_fast, at_slow = max(cycles * fast, seconds), max(cycles * slow, seconds)
    if slow == fast:
        return Load(cycles, 0.0) if cycles * fast >= seconds else Load(0.0, seconds)
    if cycles * fast >= seconds:
        return Load(cycles, 0.0)
    slope = (at_slow - at_fast) / (slow - fast)
    return Load(slope, at_fast - slope * fast)


def _measured_seconds(
    profile: DeviceProfile, unit: Unit, option: Option, layer: Layer, graph: Graph
) -> float | None:
    """Seconds at the highest clock from the profile's table; between measured token counts linear, below the
    least the least, above the greatest in proportion. None: never measured."""
    shape = measured_key(unit.kind, option, layer, 0).rpartition(":")[0]
    rows = profile.measured_by_shape.get(shape)
    if not rows:
        return None
    tokens = unit_tokens(unit, layer, graph)
    if tokens <= rows[0][0]:
        return rows[0][1]
    for (low, t_low), (high, t_high) in zip(rows, rows[1:]):
        if tokens <= high:
            return t_low + (t_high - t_low) * (tokens - low) / (high - low)
    return rows[-1][1] * tokens / rows[-1][0]


def unit_load(
    profile: DeviceProfile,
    unit: Unit,
    option: Option | None,
    layer: Layer | None,
    graph: Graph,
    *,
    analytic: bool = False,
) -> Load:
    """Work of one unit on one side.

    With a measured entry: that time, split into cycles and seconds as the roofline splits its own. Without:
    a roofline at the stated efficiency, plus the time of one op call. Formats buy compute time only where the
    profile says so (``format_speed``), and memory time as ``_weight_stream_bytes`` allows. A view takes the
    time of a call alone.

    Args:
        option, layer: of the weight that the unit reads; None for a unit without one.
        analytic: [Q] and [P*]'s linear law instead: (b/32)(1 - sparsity) FLOPs at the peak, no memory time.
    """
    rate = profile.flops_per_cycle * (1.0 if analytic else profile.efficiency)
    kept = 1.0 if option is None else option.kept_rows * option.kept_columns
    if analytic:
        share = 1.0 if option is None else min(option.bits, FLOAT_BITS) / FLOAT_BITS * (1.0 - option.sparsity)
        return Load(unit.flops * kept * share / rate, 0.0)
    if _is_view(unit, graph):
        return Load(0.0, profile.op_overhead_s)
    speed = 1.0 if option is None or layer is None else _speed(profile, option)
    cycles = unit.flops * kept / (rate * speed)
    load = _roofline(
        profile, cycles, _moved_bytes(profile, unit, option, layer, graph) / profile.memory_bandwidth
    )
    if option is not None and layer is not None and profile.measured:
        seconds = _measured_seconds(profile, unit, option, layer, graph)
        if seconds is not None:
            total = load.cycles / profile.clocks_hz[-1] + load.seconds
            share = seconds / total if total > 0 else 0.0
            return Load(load.cycles * share, load.seconds * share) if total > 0 else Load(0.0, seconds)
    return Load(load.cycles, load.seconds + profile.op_overhead_s)

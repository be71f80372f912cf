"""This machine, measured: bandwidth, fp32 throughput, op overhead, speed of the packed formats."""

from __future__ import annotations

import functools
import math
import os
import platform
from pathlib import Path

import torch
from torch import nn

from torchcoinfer import nn as packed_nn
from torchcoinfer import ops
from torchcoinfer.profile.timing import interleaved_medians
from torchcoinfer.theory.costs import DeviceProfile

_SIZE = 1024  # N = K of the throughput measurements
_TOKENS = 64  # rows of activations: enough to be compute-bound in every format
_FALLBACK_CLOCK_HZ = 2.5e9
# not measurable from here; stated in the source line of the profile
_ASSUMED_DYNAMIC_W_PER_THREAD = 4.0
_ASSUMED_STATIC_W = 10.0


@functools.lru_cache(maxsize=8)
def measure_local(threads: int) -> DeviceProfile:
    """Measure this machine with ``threads`` torch threads; a few seconds, once a process and thread count.

    Power cannot be measured here: energy rows rest on the assumptions that ``source`` states.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _measure(threads)
    finally:
        torch.set_num_threads(before)


def _measure(threads: int) -> DeviceProfile:
    clock_hz, clock_source = _clock()
    bandwidth = _memory_bandwidth()
    flops, speeds = _throughput()
    kernels = f"kernels {ops.cpu_isa()}" if ops.has_kernels() else "no kernel library: reference ops"
    dynamic_w = _ASSUMED_DYNAMIC_W_PER_THREAD * threads
    return DeviceProfile(
        name="local",
        clocks_hz=(clock_hz,),
        flops_per_cycle=flops / clock_hz,
        efficiency=1.0,  # flops is already what was reached
        memory_bandwidth=bandwidth,
        memory_bytes=float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        energy_coefficient=dynamic_w / clock_hz**3,
        static_w=_ASSUMED_STATIC_W,
        source=(
            f"measured on {platform.machine()} with {threads} threads of {os.cpu_count()} cores, torch "
            f"{torch.__version__}, {kernels}; clock {clock_source}; power assumed, not measured: "
            f"{dynamic_w:g} W dynamic, {_ASSUMED_STATIC_W:g} W static"
        ),
        basis="measured",
        format_speed=speeds,
        op_overhead_s=_op_overhead(),
    )


def _clock() -> tuple[float, str]:
    """Highest clock in Hz, and where it was read."""
    scaling = Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
    if scaling.is_file():
        return float(scaling.read_text()) * 1e3, "cpufreq's maximum"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    clocks = [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]
    return (max(clocks) * 1e6, "of /proc/cpuinfo") if clocks else (_FALLBACK_CLOCK_HZ, "assumed 2.5 GHz")


def _last_level_cache_bytes() -> int:
    caches = Path("/sys/devices/system/cpu/cpu0/cache")
    sizes = [path.read_text().strip() for path in caches.glob("index*/size")] if caches.is_dir() else []
    units = {"K": 1 << 10, "M": 1 << 20}
    return max((int(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units), default=32 << 20)


def _memory_bandwidth() -> float:
    """Bytes per second of fp32 matrix-vector products over matrices that together exceed the last cache.

    At most 256 MiB: beside a larger cache (some servers) the figure is between cache and memory.
    """
    rows, columns = 4096, 4096
    nbytes = rows * columns * 4
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    count = max(2, math.ceil(min(2 * _last_level_cache_bytes(), 1 << 28, free // 4) / nbytes))
    matrices = [torch.ones(rows, columns) for _ in range(count)]
    vector = torch.ones(columns)
    calls = {f"{i}": functools.partial(torch.mv, matrix, vector) for i, matrix in enumerate(matrices)}
    medians = interleaved_medians(calls, rounds=5, budget_s=2.0)
    return nbytes / sorted(medians.values())[len(medians) // 2]


def _op_overhead() -> float:
    linear, x = nn.Linear(8, 8), torch.ones(1, 8)
    return interleaved_medians({"op": functools.partial(linear, x)}, rounds=31, budget_s=0.5)["op"]


def _throughput() -> tuple[float, dict[str, float]]:
    """FLOP/s of an fp32 linear, and the throughput of the packed formats relative to it."""
    linear, x = nn.Linear(_SIZE, _SIZE), torch.randn(_TOKENS, _SIZE)
    big = torch.randn(512, _SIZE)
    modules = {
        f"int:{bits}": packed_nn.QuantLinear.from_float(linear, bits=bits, group_size=64)
        for bits in (2, 4, 8)
    }
    modules["int8a"] = packed_nn.QuantLinear.from_float(linear, bits=4, group_size=64, activation_bits=8)
    modules["2:4"] = packed_nn.SparseQuantLinear.from_float(linear, "2:4", bits=4, group_size=64)
    modules["bitmap"] = packed_nn.SparseQuantLinear.from_float(linear, 0.5, bits=4, group_size=64)
    calls = {name: functools.partial(module, x) for name, module in {**modules, "fp32": linear}.items()}
    seconds = interleaved_medians({**calls, "peak": functools.partial(linear, big)}, rounds=7, budget_s=3.0)
    flops = 2 * _SIZE * _SIZE * len(big) / seconds["peak"]
    speeds = {name: seconds["fp32"] / seconds[name] for name in modules}
    return flops, {**speeds, "int": speeds["int:4"]}

"""``ResourceMonitor``: forward hooks for the length of a ``with`` block."""

from __future__ import annotations

import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from torchcoinfer.errors import ArgumentError, BudgetExceeded
from torchcoinfer.hooks.flops import FlopMode
from torchcoinfer.hooks.rows import ModuleRow, table
from torchcoinfer.hooks.sizes import is_closed, own_bytes, tensor_bytes, tensors
from torchcoinfer.nn.halves import DeviceHalf
from torchcoinfer.theory.budget import Budget
from torchcoinfer.theory.costs import header_bytes


class BudgetExceededWarning(UserWarning):
    """A monitored run exceeded its budget."""


@dataclass(frozen=True)
class Exceeded:
    """One budget row that a run exceeded; SI units."""

    resource: str  # "latency" | "device_memory" | "uplink"
    limit: float
    measured: float
    unit: str

    def __str__(self) -> str:
        return f"{self.resource} {self.measured:.6g} {self.unit} exceeds {self.limit:.6g} {self.unit}"


@dataclass
class _Frame:
    row: ModuleRow
    start: float
    inner_s: float = 0.0  # of submodules with rows


@dataclass
class _Seen:
    """What one ``with`` block saw."""

    rows: dict[int, ModuleRow] = field(default_factory=dict)
    stack: list[_Frame] = field(default_factory=list)
    run_seconds: list[float] = field(default_factory=list)
    cut_bytes: int | None = None
    uplink_bytes: int | None = None  # with headers
    working_bytes: int = 0  # largest inputs + outputs of one module
    peak_rss_before: int = 0
    peak_rss_growth_bytes: int = 0
    announced: set[str] = field(default_factory=set)


_GUARDED = {"latency", "device_memory", "uplink"}


class ResourceMonitor:
    """Measures a model while it runs, and guards a budget. The model computes what it computes without.

    ::

        with ResourceMonitor(model, Budget(latency="80 ms")) as monitor, torch.inference_mode():
            model(x)
        print(monitor.report())

    Hooks stand on every module for the length of the block and are removed at its end, after exceptions too.
    Monitors of one model may be nested. ``nn.MultiheadAttention``, ``nn.TransformerEncoderLayer``, compiled
    and scripted modules are not looked into, and with one of them in the model no FLOPs are counted.

    Args:
        model: any module; a half of a split model too: what a device half returns is what crosses the cut.
        budget: rows ``latency`` (wall time of one call), ``device_memory`` (parameters, buffers, and the
            largest inputs + outputs of one module: what a call needs at least) and ``uplink`` (a device
            half's outputs and their headers) are checked after each call; other rows cannot be measured here.
        on_exceed: "warn" (once for each resource), "raise" (BudgetExceeded out of the model's call), or a
            function that gets a tuple of :class:`Exceeded`.

    Raises:
        ArgumentError: on_exceed is none of these, or the model is itself a module that cannot be hooked.
    """

    def __init__(
        self,
        model: nn.Module,
        budget: Budget | None = None,
        on_exceed: str | Callable[[tuple[Exceeded, ...]], Any] = "warn",
    ):
        if on_exceed not in ("warn", "raise") and not callable(on_exceed):
            raise ArgumentError(
                "on_exceed cannot be read", got=repr(on_exceed), expected="'warn', 'raise' or a function"
            )
        if budget is not None and (not isinstance(budget, Budget) or not set(budget.as_dict()) & _GUARDED):
            raise ArgumentError(
                "the budget has no row that a monitor can measure", got=repr(budget),
                expected=f"a Budget with one of {', '.join(sorted(_GUARDED))}", remedy="or leave budget out",
            )  # fmt: skip
        if not isinstance(model, nn.Module) or (is_closed(model) and not hasattr(model, "_orig_mod")):
            raise ArgumentError(
                "this cannot be monitored",
                got=type(model).__name__,
                expected="an nn.Module that torch runs the same way with hooks",
                remedy="wrap it: ResourceMonitor(nn.Sequential(module))",
            )
        self.model, self.budget, self.on_exceed = model, budget, on_exceed
        self.counts_flops = not any(is_closed(module) for module in model.modules())
        self._handles: list[RemovableHandle] = []
        self._mode: FlopMode | None = None
        self._seen = _Seen()

    def __enter__(self) -> ResourceMonitor:
        if self._handles:
            raise ArgumentError(
                "this monitor is already active",
                got="a second 'with' on one ResourceMonitor",
                remedy="make a second ResourceMonitor: monitors of one model may be nested",
            )
        self._seen = _Seen(peak_rss_before=_peak_rss_bytes())
        counted: set[int] = set()
        for name, module in _hooked(self.model):
            self._seen.rows[id(module)] = ModuleRow(name, type(module).__name__, own_bytes(module, counted))
            self._handles.append(
                module.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True)
            )
            self._handles.append(
                module.register_forward_hook(self._after, with_kwargs=True, always_call=True)
            )
        if self.counts_flops:
            self._mode = FlopMode(self._add_flops)
            self._mode.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._mode is not None:
            self._mode.__exit__(*exception)
            self._mode = None
        self._seen.stack.clear()
        self._seen.peak_rss_growth_bytes = _peak_rss_bytes() - self._seen.peak_rss_before

    def _before(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._seen.stack.append(_Frame(self._seen.rows[id(module)], _now(args)))

    def _after(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        seen = self._seen
        frame = seen.stack.pop()
        seconds, out_bytes = _now(output) - frame.start, tensor_bytes(output)
        if seen.stack:
            seen.stack[-1].inner_s += seconds
        frame.row.calls += 1
        frame.row.seconds += seconds - frame.inner_s
        frame.row.activation_bytes = max(frame.row.activation_bytes, out_bytes)
        seen.working_bytes = max(seen.working_bytes, out_bytes + tensor_bytes((args, kwargs)))
        if module is self.model and output is not None:  # None: the call has failed
            seen.run_seconds.append(seconds)
            if isinstance(module, DeviceHalf):
                seen.cut_bytes = out_bytes
                headers = sum(header_bytes(len(tensor.shape)) for tensor in module.crossing)
                seen.uplink_bytes = out_bytes + headers
            self._guard(seconds)

    def _add_flops(self, flops: int) -> None:
        if self._seen.stack:
            self._seen.stack[-1].row.flops += flops

    def _guard(self, seconds: float) -> None:
        exceeded = tuple(self._exceeded(seconds))
        if not exceeded:
            return
        if callable(self.on_exceed):
            self.on_exceed(exceeded)
        elif self.on_exceed == "raise":
            raise BudgetExceeded(
                "a run exceeded its budget",
                got="; ".join(map(str, exceeded)),
                remedy="relax the budget, plan again with measured costs, or pass on_exceed='warn'",
            )
        else:
            fresh = [e for e in exceeded if e.resource not in self._seen.announced]
            self._seen.announced.update(e.resource for e in fresh)
            for one in fresh:
                warnings.warn(f"budget exceeded: {one}", BudgetExceededWarning, stacklevel=2)

    def _exceeded(self, seconds: float) -> Iterator[Exceeded]:
        limits = self.budget
        if limits is None:
            return
        checks = (
            ("latency", limits.latency, seconds, "s"),
            ("device_memory", limits.device_memory, self.memory_bytes, "B"),
            ("uplink", limits.uplink, self._seen.uplink_bytes, "B"),
        )
        for name, limit, measured, unit in checks:
            if limit is not None and measured is not None and measured > limit:
                yield Exceeded(name, limit, measured, unit)

    @property
    def rows(self) -> tuple[ModuleRow, ...]:
        """One row a module that was called, in the order of ``model.named_modules()``.

        Modules that only hold tensors (in the flat graphs of halves) count to the module around them.
        """
        called = {row.name: replace(row) for row in self._seen.rows.values() if row.calls}
        for row in self._seen.rows.values():
            name = row.name
            while name and name not in called:
                name = name.rpartition(".")[0]
            if not row.calls and name in called:
                called[name].parameter_bytes += row.parameter_bytes
        return tuple(called.values())

    @property
    def run_seconds(self) -> tuple[float, ...]:
        """Wall time of each finished call of the model."""
        return tuple(self._seen.run_seconds)

    @property
    def cut_bytes(self) -> int | None:
        """Bytes of the tensors that a device half returned last, without headers; None: another model.

        Where the whole model is on the device, this is its answer, which stays there.
        """
        return self._seen.cut_bytes

    @property
    def memory_bytes(self) -> int:
        """Parameters, buffers, and the largest inputs + outputs of one module: a call needs at least this."""
        return sum(row.parameter_bytes for row in self._seen.rows.values()) + self._seen.working_bytes

    @property
    def peak_rss_growth_bytes(self) -> int:
        """By how much the block raised the process's peak resident memory; 0 below an earlier peak."""
        return self._seen.peak_rss_growth_bytes

    def report(self) -> str:
        """The rows as a table, the slowest module first, and the totals."""
        runs, rows = self._seen.run_seconds, self.rows
        lines = [table(rows)] if rows else ["no module was called"]
        if runs:
            lines.append(f"{len(runs)} runs, median {1e3 * sorted(runs)[len(runs) // 2]:.3f} ms")
        flops = (
            f"{sum(row.flops for row in rows) / 1e6:.3f} MFLOP" if self.counts_flops else "FLOPs not counted"
        )
        lines.append(
            f"{flops}; memory at least {self.memory_bytes} B; peak RSS +{self.peak_rss_growth_bytes} B"
        )
        if self._seen.cut_bytes is not None:
            lines.append(f"crossing the cut: {self._seen.cut_bytes} B")
        if self.budget is not None and runs:
            exceeded = [str(e) for e in self._exceeded(max(runs))]
            lines.append("budget: " + ("; ".join(exceeded) or "kept in every measured row"))
        return "\n".join(lines)


def _hooked(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module once, in order, without those that are closed and what is inside them.

    A compiled model is itself hooked all the same: the hooks of the wrapper run outside the compiled code.
    """
    closed: list[str] = []
    for name, module in model.named_modules():
        if name.startswith(tuple(closed)):
            continue
        if is_closed(module):
            closed.append(f"{name}." if name else "")
        if module is model or not is_closed(module):
            yield name, module


def _now(value: Any) -> float:
    """Seconds, after the CUDA work that makes ``value`` is done: kernels run on after the call returns."""
    for tensor in tensors(value):
        if tensor.is_cuda:
            torch.cuda.synchronize(tensor.device)
            break
    return time.perf_counter()


def _peak_rss_bytes() -> int:
    """Peak resident memory of the process; the kernel counts it anyway. KiB on Linux, bytes on macOS."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

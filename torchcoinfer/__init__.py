"""torchcoinfer: compress a model and split it between a device and a server, planned by rate-distortion theory.

The public page. Names load on first use (PEP 562), so that importing the package on a device loads neither
compiler, tracer nor solver.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "compress_and_split": "pipeline",
    "apply_plan": "pipeline",
    "Result": "result",
    "load": "result",
    "Budget": "theory.budget",
    "Workload": "theory.budget",
    "Search": "theory.budget",
    "Plan": "theory.plan",
    "DeviceProfile": "theory.costs",
    "LinkProfile": "theory.costs",
    "ResourceMonitor": "hooks",
    "has_kernels": "ops",
    "TorchCoinferError": "errors",
    "InfeasibleBudget": "errors",
}
_SUBPACKAGES = ("nn", "ops", "theory", "errors")

__all__ = [*_HOME, *_SUBPACKAGES, "__version__"]

if TYPE_CHECKING:
    from torchcoinfer import errors, nn, ops, theory
    from torchcoinfer.errors import InfeasibleBudget, TorchCoinferError
    from torchcoinfer.hooks import ResourceMonitor
    from torchcoinfer.ops import has_kernels
    from torchcoinfer.pipeline import apply_plan, compress_and_split
    from torchcoinfer.result import Result, load
    from torchcoinfer.theory.budget import Budget, Search, Workload
    from torchcoinfer.theory.costs import DeviceProfile, LinkProfile
    from torchcoinfer.theory.plan import Plan


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"torchcoinfer.{_HOME[name]}"), name)
    if name in _SUBPACKAGES:
        return importlib.import_module(f"torchcoinfer.{name}")
    raise AttributeError(f"module 'torchcoinfer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

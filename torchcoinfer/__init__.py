"""torchcoinfer: compress a model and split it between a device and a server by rate-distortion theory.

The public page. Names load on first use (PEP 562), so that importing the package on a device loads neither
compiler, tracer nor solver.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "compress_and_split": "pipeline",
    "apply_plan": "pipeline",
    "pareto": "pipeline",
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

__all__ = [*_HOME, *_SUBPACKAGES, "__version__"]  # noqa: PLE0604  all of them are strings


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"torchcoinfer.{_HOME[name]}"), name)
    if name in _SUBPACKAGES:
        return importlib.import_module(f"torchcoinfer.{name}")
    raise AttributeError(f"module 'torchcoinfer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

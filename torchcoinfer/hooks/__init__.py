"""Resource-aware hooks: measure and guard a running model."""

from __future__ import annotations

from torchcoinfer.hooks.monitor import BudgetExceededWarning, Exceeded, ResourceMonitor
from torchcoinfer.hooks.rows import ModuleRow

__all__ = ["BudgetExceededWarning", "Exceeded", "ModuleRow", "ResourceMonitor"]

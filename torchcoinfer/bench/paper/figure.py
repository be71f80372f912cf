"""A figure as plain numbers: what is written as JSON is what is drawn."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchcoinfer.report import write_text

Values = Sequence[float | None]


@dataclass(frozen=True)
class Series:
    """One line, cloud or histogram; ``None`` in ``y``: nothing feasible there.

    Attributes:
        kind: "line" | "points" | "bars" (x: left edges, one more than y).
        low, high: a band around y.
    """

    label: str
    x: Values
    y: Values
    kind: str = "line"
    low: Values | None = None
    high: Values | None = None


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    x_scale: str = "linear"
    y_scale: str = "linear"

    def __getitem__(self, label: str) -> Series:
        return next(s for s in self.series if s.label == label)


@dataclass(frozen=True)
class Figure:
    """Panels of one figure.

    Attributes:
        name: file name without suffix.
        source: which equations or which paper's figure it belongs to.
        settings: everything that the numbers depend on.
        facts: figures worth quoting, computed from the panels.
        notes: what a reader must know to read it rightly.
    """

    name: str
    title: str
    source: str
    panels: tuple[Panel, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON: no NaN, no infinity, six significant digits."""
        return _plain({name: getattr(self, name) for name in self.__dataclass_fields__})

    def write_json(self, folder: Path) -> Path:
        path = folder / f"{self.name}.json"
        write_text(path, json.dumps(self.as_dict(), indent=1) + "\n")
        return path


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (bool, str)) or value is None:
        return value
    if isinstance(value, int):
        return value
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    number = float(value)
    return float(f"{number:.6g}") if math.isfinite(number) else None

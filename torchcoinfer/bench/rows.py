"""Rows of a bench as JSON, one a line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Strict JSON, one row a line: a number that is not finite (a correlation of constants) becomes null."""
    return "".join(json.dumps(_finite(row), allow_nan=False) + "\n" for row in rows)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(own) for key, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(own) for own in value]
    return value

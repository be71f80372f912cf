"""Numbers with units, as people write them, read as SI floats."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Mapping
from typing import Any

from torchcoinfer.errors import UnitError

TIME_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "min": 60.0}
ENERGY_UNITS = {"J": 1.0, "mJ": 1e-3, "uJ": 1e-6, "µJ": 1e-6, "kJ": 1e3, "mWh": 3.6, "Wh": 3600.0}
BYTE_UNITS = {
    **{"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12},
    **{"KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40},
}
QUANTITY = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([A-Za-zµμ]*)\s*")


SPOKEN = {  # units that a quantity is told in, largest first
    "s": ("s", "ms", "us"),
    "J": ("J", "mJ", "uJ"),
    "B": ("GiB", "MiB", "KiB", "B"),
}
SPOKEN_DIGITS = 4


def spoken(value: float, units: Mapping[str, float]) -> str:
    """An SI float as people write it: four digits, rounded up, so that what keeps ``value`` keeps it too.

    Args:
        value: in SI units, at least 0.
        units: as for ``quantity``; empty for a plain number.
    """
    names = next((names for si, names in SPOKEN.items() if si in units), ())
    name = next((name for name in names if value >= units[name]), names[-1] if names else "")
    number = value / units.get(name, 1.0)
    if number > 0:
        digits = SPOKEN_DIGITS - 1 - math.floor(math.log10(number))
        step = 10.0**-digits
        number = round(math.ceil(number / step - 1e-9) * step, max(digits, 0))
    return f"{number:.10g} {name}".rstrip()


def quantity(name: str, value: Any, units: Mapping[str, float], *, zero: bool = False) -> float:
    """Reads a number in SI units, or a string of a number and one of ``units``, as an SI float.

    Args:
        name: what the quantity is called in the message.
        units: unit -> factor to SI; empty for a plain number.
        zero: whether 0 is allowed.

    Raises:
        UnitError: no number, an unknown or a missing unit, not finite, negative, or 0 where it may not be.
    """
    example = f'a positive number or a string such as "80 {min(units, key=len)}"' if units else "a number"
    allowed = ", ".join(units) if units else "no unit"
    if isinstance(value, str):
        match = QUANTITY.fullmatch(value)
        if match is None:
            raise UnitError(
                f"{name} cannot be read", got=repr(value), expected=example, remedy=f"units: {allowed}"
            )
        number, unit = float(match[1]), match[2].replace("μ", "µ")
        if unit not in units and (unit or units):
            fact = f"{name} has an unknown unit {unit!r}" if unit else f"{name} is a string without a unit"
            remedy = "write one of them after the number" if units else "give a plain number"
            raise UnitError(fact, got=repr(value), expected=f"one of {allowed}", remedy=remedy)
        result = number * units.get(unit, 1.0)
    elif isinstance(value, numbers.Real) and not isinstance(value, bool):
        result = float(value)
    else:
        raise UnitError(
            f"{name} has the wrong type {type(value).__name__}", got=repr(value), expected=example,
            remedy=f"give an SI number, or a string with a unit: {allowed}",
        )  # fmt: skip
    if not math.isfinite(result) or result < 0 or (result == 0 and not zero):
        bound = "at least 0" if zero else "greater than 0"
        raise UnitError(
            f"{name} must be finite and {bound}", got=repr(value), expected=example,
            remedy="leave the field out (None) for no limit",
        )  # fmt: skip
    return result

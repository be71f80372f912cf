"""Whether the numbers of a profile can be used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from torchcoinfer.errors import UnitError
from torchcoinfer.theory.costs import DeviceProfile, LinkProfile

Profile = TypeVar("Profile", DeviceProfile, LinkProfile)
# zero is meant for these: no dynamic power, no latency, no overhead
_MAY_BE_ZERO = {
    "energy_coefficient",
    "static_w",
    "op_overhead_s",
    "rtt_s",
    "receive_w",
    "transmit_w",
    "measured",
}


def check_profile(profile: Profile, where: str) -> Profile:
    """The same profile, its numbers checked.

    Raises:
        UnitError: a quantity is not a finite number above zero (or zero where that has a meaning), the clocks
            do not ascend, or a power of 0 on a link whose rate depends on power.
    """
    for field in fields(profile):
        value = getattr(profile, field.name)
        if field.name in ("name", "source", "basis"):
            if not isinstance(value, str) or not value:
                raise UnitError(f"{field.name} of {where} is no text", got=repr(value), expected="a text")
        elif value is not None:
            _check_numbers(field.name, value, where)
    ladder = (
        ("clocks_hz", profile.clocks_hz)
        if isinstance(profile, DeviceProfile)
        else ("transmit_w", profile.transmit_w)
    )
    if not ladder[1] or list(ladder[1]) != sorted(set(ladder[1])):
        raise UnitError(
            f"{ladder[0]} of {where} must ascend", got=ladder[1], expected="at least one value, ascending"
        )
    if isinstance(profile, LinkProfile) and profile.bandwidth_hz is not None and profile.transmit_w[0] == 0:
        raise UnitError(
            f"transmit_w of {where} holds 0, and nothing is sent without power", got=profile.transmit_w,
            expected="powers above zero where bandwidth_hz is given", remedy="leave the 0 out",
        )  # fmt: skip
    return profile


def _check_numbers(name: str, value: Any, where: str) -> None:
    numbers = (
        value.values()
        if isinstance(value, Mapping)
        else value
        if isinstance(value, (tuple, list))
        else (value,)
    )
    for number in numbers:
        real = isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)
        if not real or number < 0 or (number == 0 and name not in _MAY_BE_ZERO):
            raise UnitError(
                f"{name} of {where} is not a usable quantity",
                got=repr(number),
                expected="a finite number above zero, in SI units"
                + (", or zero" if name in _MAY_BE_ZERO else ""),
            )

"""Profiles as TOML or JSON files: read, checked, written. A saved profile makes a plan reproducible."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from torchcoinfer.errors import FormatError
from torchcoinfer.theory.costs import DeviceProfile, LinkProfile
from torchcoinfer.theory.profile_check import check_profile

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Profile = DeviceProfile | LinkProfile
_TYPES = {"device": DeviceProfile, "server": DeviceProfile, "link": LinkProfile}


def load_profile(path: str | Path) -> Profile:
    """Read a profile from a ``.toml`` or ``.json`` file.

    Raises:
        FormatError: the file is missing, unreadable, or its fields are missing or unknown (named).
        UnitError: a quantity is no finite positive number.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise FormatError(
            f"cannot read the profile {path}", got=str(error), expected="a TOML or JSON profile"
        ) from error
    return _from_mapping(content, str(path))


def _from_mapping(content: Any, where: str) -> Profile:
    role = content.get("role") if isinstance(content, dict) else None
    if role not in _TYPES:
        raise FormatError(
            f"{where} does not say what it describes",
            got=f"role = {role!r}",
            expected=f"role in {list(_TYPES)}",
        )
    profile_type = _TYPES[role]
    given = {key: value for key, value in content.items() if key != "role"}
    known = {field.name: field for field in fields(profile_type)}
    required = {n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
    missing, unknown = sorted(required - given.keys()), sorted(given.keys() - known.keys())
    if missing or unknown:
        raise FormatError(
            f"{where} is no {role} profile",
            got=f"missing {missing}, unknown {unknown}",
            expected=f"the fields {sorted(known)}",
            remedy="compare it with a file that save_profile wrote",
        )
    for name, value in given.items():
        if isinstance(value, list):
            given[name] = tuple(value)
        elif isinstance(value, str):
            given[name] = value.strip()
    return check_profile(profile_type(**given), where)


def save_profile(profile: Profile, path: str | Path, role: str | None = None) -> Path:
    """Write a profile to a ``.toml`` or ``.json`` file that :func:`load_profile` reads back equal.

    Args:
        role: "device" | "server" | "link"; default "device" for a DeviceProfile, "link" for a LinkProfile.
    """
    path = Path(path)
    role = role or ("link" if isinstance(profile, LinkProfile) else "device")
    content = {"role": role, **{k: v for k, v in asdict(profile).items() if v is not None}}
    text = json.dumps(content, indent=1) + "\n" if path.suffix == ".json" else _toml(content)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def describe(profile: Profile) -> str:
    """The profile's fields, one a line, as in a file; of the table of times its size."""
    shown = {k: v for k, v in asdict(profile).items() if v is not None and k != "measured"}
    entries = len(profile.measured) if isinstance(profile, DeviceProfile) else 0
    return _toml(shown) + (f"\n# and {entries} measured times\n" if entries else "")


def _toml(content: Mapping[str, Any]) -> str:
    """Flat values first, then one table for each mapping. JSON's strings and numbers are TOML's too."""
    flat = [
        f"{key} = {_toml_value(value)}" for key, value in content.items() if not isinstance(value, Mapping)
    ]
    tables = [
        "\n".join([f"\n[{key}]", *(f"{json.dumps(k)} = {float(v)!r}" for k, v in value.items())])
        for key, value in content.items()
        if isinstance(value, Mapping)
    ]
    return "\n".join([*flat, *tables]) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(repr(float(v)) for v in value)}]"
    return repr(float(value))

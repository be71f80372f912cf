"""From what a user writes (a preset's name, a file, "local", a profile) to a profile."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import torch

from torchcoinfer.errors import ArgumentError
from torchcoinfer.profile.files import Profile, load_profile
from torchcoinfer.profile.local import measure_local
from torchcoinfer.theory.costs import DeviceProfile, LinkProfile
from torchcoinfer.theory.profile_check import check_profile

_TORCH_DEVICE_TYPES = ("cpu", "cuda", "mps", "xpu", "meta", "hip", "xla", "hpu", "npu", "vulkan")


def device_profile(device: str | Path | DeviceProfile) -> DeviceProfile:
    """The profile of the device.

    Args:
        device: a DeviceProfile, a preset's name, a path to a .toml or .json profile, or "local": measured
            here, once a process for each thread count.

    Raises:
        ArgumentError: no such preset or file, or a torch device where a profile is meant.
        FormatError, UnitError: the file cannot be used.
    """
    return _resolve("device", device, DeviceProfile)


def server_profile(server: str | Path | DeviceProfile) -> DeviceProfile:
    """The profile of the server; arguments and errors as for :func:`device_profile`."""
    return _resolve("server", server, DeviceProfile)


def link_profile(link: str | Path | LinkProfile) -> LinkProfile:
    """The profile of the link; as :func:`device_profile`, without "local": a link has two ends."""
    return _resolve("link", link, LinkProfile)


def preset_names(role: str | None = None) -> tuple[str, ...]:
    """Names of the presets, sorted; of one role ("device" | "server" | "link") or all."""
    names = sorted(Path(entry.name).stem for entry in _presets().iterdir() if entry.name.endswith(".toml"))
    return tuple(name for name in names if role is None or _role_of(name) == role)


def _presets() -> Any:
    return resources.files("torchcoinfer") / "presets"


def _role_of(name: str) -> str:
    first = (_presets() / f"{name}.toml").read_text(encoding="utf-8").splitlines()[0]
    return first.split('"')[1]


def _resolve(role: str, value: Any, profile_type: type) -> Any:
    if isinstance(value, (DeviceProfile, LinkProfile)):
        return _of_type(role, check_profile(value, repr(value.name)), profile_type)
    if isinstance(value, torch.device) or (
        isinstance(value, str) and value.split(":")[0] in _TORCH_DEVICE_TYPES
    ):
        raise ArgumentError(
            f"{role}= takes a profile, not a torch device",
            got=repr(value),
            expected=f"{profile_type.__name__} or the name of one: {_choices(role)}",
            remedy=f"a torch device says where tensors live: model.to({str(value)!r}) moves the model; "
            f"{role}= says how fast the {role} is",
        )
    if not isinstance(value, (str, Path)):
        raise ArgumentError(
            f"{role}= cannot be read",
            got=repr(value),
            expected=f"a {profile_type.__name__}, a name or a path",
        )
    if value == "local" and role != "link":
        return measure_local(torch.get_num_threads())
    return _of_type(role, _named(role, value), profile_type)


def _named(role: str, value: str | Path) -> Profile:
    if Path(value).suffix in (".toml", ".json"):
        return load_profile(value)
    if str(value) not in preset_names():
        raise ArgumentError(
            f"unknown {role} profile",
            got=repr(str(value)),
            expected=f"one of {_choices(role)}",
            remedy="use one of these names, pass a path to a .toml profile, or a profile object",
        )
    with resources.as_file(_presets() / f"{value}.toml") as path:
        return load_profile(path)


def _of_type(role: str, profile: Profile, profile_type: type) -> Profile:
    if not isinstance(profile, profile_type):
        raise ArgumentError(
            f"{role}= got a profile of another kind",
            got=f"{type(profile).__name__} {profile.name!r}",
            expected=f"a {profile_type.__name__}: {_choices(role)}",
        )
    return profile


def _choices(role: str) -> str:
    return ", ".join([*preset_names(role), *(["local"] if role != "link" else [])])

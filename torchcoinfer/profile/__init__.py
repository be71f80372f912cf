"""What the device, the server and the link can do: presets with sources, files, or this machine."""

from __future__ import annotations

from torchcoinfer.profile.costs import measure_costs
from torchcoinfer.profile.files import describe, load_profile, save_profile
from torchcoinfer.profile.local import measure_local
from torchcoinfer.profile.resolve import device_profile, link_profile, preset_names, server_profile

__all__ = [
    "describe",
    "device_profile",
    "link_profile",
    "load_profile",
    "measure_costs",
    "measure_local",
    "preset_names",
    "save_profile",
    "server_profile",
]

"""What this process occupies, as Linux tells it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchcoinfer.errors import KernelError

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def trim() -> None:
    """Gives the allocator's free memory back to the system, where the C library can (glibc)."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def status_bytes(name: str) -> int:
    """A memory figure of this process ("VmRSS", "VmHWM"). Raises KernelError where none is told."""
    if _STATUS.is_file():
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) << 10
    raise KernelError(f"{_STATUS} does not tell {name}", remedy="measure memory on Linux")


def peak_added(work: Callable[[], Any]) -> tuple[Any, int]:
    """What ``work`` returns, and the bytes by which it raised the process's peak."""
    trim()
    _RESET.write_text("5")  # sets the peak to what is resident now
    before = status_bytes("VmHWM")
    result = work()
    return result, status_bytes("VmHWM") - before

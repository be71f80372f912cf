"""Which CPU instruction set the kernels use (``csrc/cpu/isa.h``)."""

from __future__ import annotations

import torch

from torchcoinfer.ops.library import has_kernels, implement


def cpu_isa() -> str:
    """The path that runs now: "scalar", "neon", "avx2", "avx512" or "amx"; "reference" without the kernels.

    ``TORCHCOINFER_ISA`` forces one; a name this machine lacks raises RuntimeError.
    """
    return torch.ops.torchcoinfer.cpu_isa()


def cpu_isas() -> tuple[str, ...]:
    """All paths this machine has, best first."""
    return tuple(torch.ops.torchcoinfer.cpu_isas().split(","))


def _reference_isa() -> str:
    return "reference"


if not has_kernels():
    implement("cpu_isa", _reference_isa, None)
    implement("cpu_isas", _reference_isa, None)

"""Kernels that the dispatch runs on request only: checked and timed beside the default; one run decides.

To add one: a ``Candidate`` in ``CANDIDATES``; it leaves the list when it becomes the default, or is removed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from torchcoinfer.report import format_table


@dataclass(frozen=True)
class Candidate:
    """A kernel that an environment variable asks for.

    Attributes:
        name: added to the format's.
        variable: "1" asks for the kernel.
        formats: names of ``formats.FORMATS`` that it serves.
        tokens: rows of x that it serves, the first and the last.
        capability: major compute capability that it needs.
    """

    name: str
    variable: str
    formats: tuple[str, ...]
    tokens: tuple[int, int]
    capability: int

    def serves(self, name: str, tokens: int, device: str = "cuda") -> bool:
        """Whether the kernel takes part for a format and so many rows of x on this machine."""
        first, last = self.tokens
        if device != "cuda" or name not in self.formats or not first <= tokens <= last:
            return False
        return torch.cuda.get_device_capability()[0] == self.capability

    @contextmanager
    def asked(self) -> Iterator[None]:
        """The kernel runs within, where it serves."""
        before = os.environ.get(self.variable)
        os.environ[self.variable] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[self.variable]
            else:
                os.environ[self.variable] = before

    def called(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """The call, asking for the kernel."""

        def asking() -> Any:
            with self.asked():
                return call()

        return asking


WGMMA = Candidate(
    "wgmma", "TORCHCOINFER_CUDA_HOPPER", tuple(f"W{bits}" for bits in (2, 3, 4, 5, 6, 8)), (64, 4095), 9
)
CANDIDATES = (WGMMA,)


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Every candidate beside the default of the same format, shape and dtype; empty where none took part."""
    found = {(r["kernel"], tuple(r["shape"]), r["dtype"]): r for r in rows if "missing" not in r}
    told = []
    for (kernel, shape, kind), row in found.items():
        default, _, candidate = kernel.rpartition(", ")
        beside = found.get((default, shape, kind))
        if beside is None or candidate not in {c.name for c in CANDIDATES}:
            continue
        unsure = next((r["judged"] for r in (row, beside) if r["judged"] is not True), None)
        faster = beside["median_s"] / row["median_s"]
        told.append(
            {
                "candidate": kernel,
                "x": kind,
                "M": shape[0],
                "K x N": f"{shape[1]} x {shape[2]}",
                "times faster than the default": f"{faster:.2f}",
                "verdict": unsure or ("faster" if faster > 1 else "slower"),
            }
        )
    return f"\n{format_table(told)}" if told else ""

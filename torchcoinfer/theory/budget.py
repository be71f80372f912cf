"""What the user may spend (``Budget``), on what run (``Workload``), and how the planner may search (``Search``).

A skeleton of names and types; units are parsed here, so that every later stage sees SI floats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Workload:
    """One run: ``batch`` inputs of ``prompt`` positions each (None: as in example_inputs)."""

    batch: int | None = None
    prompt: int | None = None
    new_tokens: int = 0
    answer: str = "device"  # "device": the answer comes back over the link | "server"


@dataclass(frozen=True)
class Budget:
    """Ceilings of one run of the workload; SI numbers or strings with units ("80 ms", "0.6 J", "12 MiB")."""

    latency: float | str | None = None
    energy: float | str | None = None
    server_energy: float | str | None = None
    total_energy: float | str | None = None
    device_memory: float | str | None = None
    server_memory: float | str | None = None
    uplink: float | str | None = None
    device_bits_per_weight: float | None = None
    distortion: float | None = None
    certified_distortion: float | None = None


@dataclass(frozen=True)
class Search:
    """Every option of the search."""

    bits: tuple[int, ...] = (2, 3, 4, 5, 6, 8)
    sparsities: tuple[float, ...] = (0.0, 0.5)
    formats: tuple[str, ...] = ("int", "2:4", "bitmap")
    group_sizes: tuple[int, ...] = (64,)
    algorithms: tuple[str, ...] = ("nearest", "obs")
    activation_bits: tuple[int | None, ...] = (None,)  # of layers
    cut_bits: tuple[int | None, ...] = (None, 8, 6, 4)  # of the tensors that cross; None: as they are
    cut: str | None = None
    minimize: str = "distortion"
    metric: str = "output_mse"
    output: Callable[[Any], Any] | None = None
    costs: str = "preset"
    mode: str | None = None
    alpha: float = 0.1
    finetune_steps: int = 0
    gap: float = 1e-4
    seed: int = 0

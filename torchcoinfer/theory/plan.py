"""The plan: frozen, printable, diffable, versioned JSON; everything after the solver obeys it and nothing else decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PLAN_VERSION = 1


@dataclass(frozen=True)
class LayerPlan:
    bits: int
    sparsity: float
    format: str
    group_size: int
    symmetric: bool
    activation_bits: int | None
    algorithm: str
    side: str  # "device" | "server" | "both"
    packed_bytes: int
    predicted: float  # E_l(o), relative output error
    kept_channels: tuple[int, ...] | None = None  # structured pruning, with its coupling group
    channel_group: str | None = None


@dataclass(frozen=True)
class CutPlan:
    name: str
    tensors: tuple[tuple[str, int | None], ...]  # (tensor name, bits or None = as it is)


@dataclass(frozen=True)
class Plan:
    layers: Mapping[str, LayerPlan]
    cut: CutPlan
    resources: Mapping[str, float]  # device_hz, server_hz, transmit_w
    predicted: Mapping[
        str, Any
    ]  # latency_s, energy_j, server_energy_j, device_bytes, server_bytes, uplink_bytes, distortion, device_bits_per_weight; basis
    bounds: Mapping[str, Any]  # weights: {...}, output: {...} (theory.md §6)
    optimality: Mapping[str, Any]  # gap, dual_bound, over ("all frontiers" | "candidate cuts")
    provenance: Mapping[str, Any]  # model_hash, device, server, link, versions, seed
    budget: Mapping[str, float]
    version: int = PLAN_VERSION

"""The model as the planner sees it: units of work, tensors between them, layers that can be compressed.

Plain numbers only. ``trace.py`` makes a ``Graph`` from an ``nn.Module``; nothing here knows torch.

A *unit* is one call of a leaf module or one functional op outside a leaf module. A tensor's name is stable
under compression: ``"<unit name>:<output index>"``, and an input's name is the input's own name. Cheap
functions of shapes, positions and integer inputs (masks, rotary tables, position ids) are *free*: they are
recomputed on whichever side needs them, never sent, and appear here only through the model inputs they read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Tensor:
    """A tensor that may cross the cut. ``shape`` and ``nbytes`` at the workload's sizes."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # "float32", "int64", ...
    nbytes: int


@dataclass(frozen=True)
class Unit:
    """One call of a leaf module, or one functional op outside one."""

    name: str  # "encoder.layer.0.attention.self.query#0" | "encoder.layer.0.attention.self/add.1#0"
    kind: str  # "linear" | "conv2d" | "embedding" | "other"
    inputs: tuple[str, ...]  # tensor names, free tensors replaced by the model inputs whose values they read
    outputs: tuple[str, ...]
    flops: float  # multiply and add counted as two
    layer: str | None = None  # the Layer whose weight this unit reads
    parameters: tuple[str, ...] = ()  # names in Graph.parameters that it reads (layer weights left out)


@dataclass(frozen=True)
class Layer:
    """One decision: a weight matrix, with every module that shares it (tied weights stay tied)."""

    name: str  # FQN of the first module that owns the weight
    kind: str  # "linear" | "conv2d" | "embedding", of the first module
    rows: int  # N: out_features, out_channels or num_embeddings
    columns: int  # K: in_features, in_channels / groups * kh * kw or embedding_dim
    weight_bytes: int  # uncompressed
    modules: tuple[str, ...]  # FQNs of all modules with this weight
    group: str | None = None  # layers with one group name must take the same option (fused projections)

    @property
    def numel(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class Graph:
    """A directed acyclic graph of units in one deterministic topological order."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    units: tuple[Unit, ...]
    layers: tuple[Layer, ...]
    parameters: Mapping[str, int]  # bytes of what is never compressed: norms, biases, buffers
    parameter_numel: Mapping[str, int]  # elements of the same


@dataclass(frozen=True)
class Cut:
    """Where the model is divided: the units on the device, and the tensors that cross to the server.

    ``name`` is "device" (all on the device), "server" (inputs sent), or the name of the last device unit.
    ``device`` is closed under predecessors. For "device" nothing crosses in the cost model, although the
    device half returns the model's outputs and the server half passes them through.
    """

    name: str
    device: tuple[str, ...]
    tensors: tuple[str, ...]

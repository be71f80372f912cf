"""The model as the planner sees it: units of work, tensors between them, layers that can be compressed.

Plain numbers only. ``trace.py`` makes a ``Graph`` from an ``nn.Module``; nothing here knows torch.

A *unit* is one call of a leaf module or one functional op outside a leaf module. A tensor's name is stable
under compression: ``"<unit name>:<output index>"``, and an input's name is the input's own name. Cheap
functions of shapes, positions and integer inputs (masks, rotary tables, position ids) are *free*: they are
recomputed on whichever side needs them, never sent, and appear here only through the model inputs they read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from torchcoinfer.errors import ArgumentError
from torchcoinfer.theory.mincut import Edge, parametric_minimum_closures


@dataclass(frozen=True)
class Tensor:
    """A tensor that may cross the cut. ``shape`` and ``nbytes`` at the workload's sizes."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # "float32", "int64", ...
    nbytes: int
    leading_dims: int | None = None  # dims that keep their place when coded; None: not known to be codable
    sizes: tuple[str, ...] = ()  # the varying ones among its sizes, as expressions


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
    sizes: tuple[
        tuple[str, str], ...
    ] = ()  # (tensor, expression): sizes of tensors that it reads no value of


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


class GraphIndex:
    """Positions, producers and consumers of a graph, computed once: what every cut question needs.

    Attributes:
        position: unit name -> index in ``graph.units``.
        producer: tensor name -> index of the unit that makes it; model inputs are absent.
        consumers: tensor name -> indices of the units that read it.
        predecessors: per unit, the bit mask of the units whose outputs it reads.
    """

    def __init__(self, graph: Graph):
        self.position = {unit.name: i for i, unit in enumerate(graph.units)}
        self.producer = {name: i for i, unit in enumerate(graph.units) for name in unit.outputs}
        self.consumers: dict[str, list[int]] = {name: [] for name in graph.tensors}
        self.predecessors = []
        for i, unit in enumerate(graph.units):
            mask = 0
            for name in unit.inputs:
                self.consumers[name].append(i)
                if name in self.producer:
                    mask |= 1 << self.producer[name]
            if mask >> i:
                raise ArgumentError(
                    "the units are not in topological order", got=unit.name,
                    expected="every unit after the units that it reads", remedy="sort Graph.units",
                )  # fmt: skip
            self.predecessors.append(mask)


def crossing_tensors(graph: Graph, device: frozenset[str]) -> tuple[str, ...]:
    """Tensors that go from ``device`` to the server: read there, or outputs of the model (in graph order).

    A model input starts on the device; it crosses when a unit of the server reads it.
    """
    server = [unit for unit in graph.units if unit.name not in device]
    if not server:
        return ()
    wanted = {name for unit in server for name in unit.inputs} | set(graph.outputs)
    made = {name for unit in server for name in unit.outputs}
    here = [*graph.inputs, *(name for unit in graph.units if unit.name in device for name in unit.outputs)]
    return tuple(dict.fromkeys(name for name in here if name in wanted and name not in made))


def lost_sizes(graph: Graph, device: frozenset[str], tensors: Iterable[str]) -> tuple[str, ...]:
    """Sizes that the server reads off tensors of the device and that no crossing tensor has.

    They are sent as the shape of one more tensor, without elements: a frame's header.
    """
    server = [unit for unit in graph.units if unit.name not in device]
    crossing = set(tensors)
    there = crossing | {name for unit in server for name in unit.outputs}
    known = {size for name in crossing for size in graph.tensors[name].sizes}
    read = (pair for unit in server for pair in unit.sizes)
    return tuple(dict.fromkeys(size for name, size in read if name not in there and size not in known))


def make_cut(graph: Graph, device: frozenset[str]) -> Cut:
    """The cut with these units on the device. A prefix of ``graph.units`` is named after its last unit; any
    other set after its last unit and a digest of the set, so that names are unique and reproducible."""
    units = tuple(unit.name for unit in graph.units if unit.name in device)
    if not units:
        name = "server"
    elif len(units) == len(graph.units):
        name = "device"
    elif units[-1] == graph.units[len(units) - 1].name:
        name = units[-1]
    else:
        name = f"{units[-1]}@{hashlib.sha256(chr(10).join(units).encode()).hexdigest()[:8]}"
    return Cut(name, units, crossing_tensors(graph, device))


def cut_from_tensors(graph: Graph, names: Iterable[str]) -> Cut:
    """The cut at which exactly these tensors cross: the device runs their ancestors. No tensor: "device".

    Raises:
        ArgumentError: an unknown tensor, or tensors that do not divide the graph.
    """
    names = tuple(names)
    if not names:
        return make_cut(graph, frozenset(unit.name for unit in graph.units))
    unknown = sorted(set(names) - set(graph.tensors))
    if unknown:
        raise ArgumentError(
            "the graph has no such tensors", got=unknown,
            expected=f"names among {len(graph.tensors)} tensors",
            remedy="take them from candidate_cuts",
        )  # fmt: skip
    index, ancestors = GraphIndex(graph), 0
    stack = [index.producer[name] for name in names if name in index.producer]
    while stack:
        i = stack.pop()
        if not ancestors >> i & 1:
            ancestors |= 1 << i
            stack.extend(index.producer[n] for n in graph.units[i].inputs if n in index.producer)
    cut = make_cut(graph, frozenset(u.name for i, u in enumerate(graph.units) if ancestors >> i & 1))
    if cut.name != "device" and set(cut.tensors) != set(names):
        raise ArgumentError(
            "these tensors do not divide the graph", got=sorted(names),
            expected=f"to send {sorted(cut.tensors)}",
            remedy="take a cut from candidate_cuts",
        )  # fmt: skip
    return cut


def layer_sides(graph: Graph, cut: Cut) -> dict[str, str]:
    """Layer -> "device" | "server" | "both": where its units run."""
    device, sides = set(cut.device), {layer.name: set() for layer in graph.layers}
    for unit in graph.units:
        if unit.layer is not None:
            sides[unit.layer].add("device" if unit.name in device else "server")
    unused = "device" if cut.name == "device" else "server"
    return {name: "both" if len(own) > 1 else next(iter(own), unused) for name, own in sides.items()}


def candidate_cuts(graph: Graph) -> tuple[Cut, ...]:
    """Every candidate: "device", "server", the prefix after each unit, the parametric minimum
    cuts of bytes on the link against work moved; deduplicated, in this order."""
    names = [unit.name for unit in graph.units]
    sets = [frozenset(names), frozenset()]
    sets += [frozenset(names[: i + 1]) for i in range(len(names) - 1)]
    sets += parametric_minimum_cuts(graph)
    return tuple(make_cut(graph, device) for device in dict.fromkeys(sets))


def parametric_minimum_cuts(graph: Graph) -> list[frozenset[str]]:
    """Device sets on the lower convex hull of (FLOPs on the device, bytes that cross): all breakpoints."""
    index = GraphIndex(graph)
    edges = [
        Edge(tensor.nbytes, index.producer.get(name), tuple(index.consumers[name]), name in graph.outputs)
        for name, tensor in graph.tensors.items()
    ]
    closures = parametric_minimum_closures([unit.flops for unit in graph.units], edges)
    return [frozenset(graph.units[i].name for i in closure) for closure in closures]


def all_frontiers(graph: Graph, limit: int | None = None) -> tuple[Cut, ...] | None:
    """Every set of units closed under predecessors, "device" and "server" first; None if more than
    ``limit``."""
    predecessors = GraphIndex(graph).predecessors
    masks = [0]
    for i, mask in enumerate(predecessors):
        masks += [m | 1 << i for m in masks if m & mask == mask]
        if limit is not None and len(masks) > limit:
            return None
    everything = (1 << len(graph.units)) - 1
    masks.sort(key=lambda m: (m != everything, m))
    members = [frozenset(u.name for i, u in enumerate(graph.units) if m >> i & 1) for m in masks]
    return tuple(make_cut(graph, device) for device in dict.fromkeys(members))


def peak_activation_bytes(graph: Graph, units: Iterable[str], held: Iterable[str] = ()) -> int:
    """Peak bytes of live tensors while ``units`` run in graph order (liveness).

    A tensor lives from the unit that makes it to the last of ``units`` that reads it, and to the end if it
    leaves (read elsewhere, or an output of the model). What ``units`` read but do not make, and ``held``,
    lives throughout: the caller keeps it.
    """
    chosen = set(units)
    steps = [unit for unit in graph.units if unit.name in chosen]
    birth = {name: i for i, unit in enumerate(steps) for name in unit.outputs}
    sources = set(held) | {name for unit in steps for name in unit.inputs}
    base = sum(graph.tensors[name].nbytes for name in sources - set(birth))
    leaving = set(graph.outputs)
    leaving |= {name for unit in graph.units if unit.name not in chosen for name in unit.inputs}
    death = dict(birth)
    for i, unit in enumerate(steps):
        death.update((name, i) for name in unit.inputs if name in birth)
    change = np.zeros(len(steps) + 1, dtype=np.int64)
    for name, first in birth.items():
        change[first] += graph.tensors[name].nbytes
        change[len(steps) if name in leaving else death[name] + 1] -= graph.tensors[name].nbytes
    return base + (int(np.cumsum(change)[:-1].max()) if steps else 0)

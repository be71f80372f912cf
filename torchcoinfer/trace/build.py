"""Reads the planner's graph, plain numbers, off a flat fx module."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import sympy
import torch
from torch import Tensor, fx, nn

from torchcoinfer.errors import TraceError
from torchcoinfer.nn.callspec import dtype_name
from torchcoinfer.theory import graph as planner
from torchcoinfer.trace.flops import node_flops
from torchcoinfer.trace.free import attribute, find_free
from torchcoinfer.trace.layers import Weight, canonical_names, find_weights
from torchcoinfer.trace.units import UnitNodes, enclosing_module, group_units

_SIZE = torch.ops.aten.sym_size.int


class GraphBuilder:
    """Everything that is read off the graph of one flat module."""

    def __init__(
        self,
        model: nn.Module,
        module: fx.GraphModule,
        placeholders: list[fx.Node],
        sample: tuple[Tensor, ...],
    ):
        self.module, self.placeholders = module, placeholders
        self.sizes = _symbol_sizes(placeholders, sample)
        self.output = next(node for node in module.graph.nodes if node.op == "output")
        self.weights = _weights(model, module)
        self.weight_of = {fqn: weight.layer for weight in self.weights for fqn in weight.layer.modules}
        stored = {fqn for weight in self.weights for fqn in weight.stored}
        self.stored = _same_tensors(model, module, stored)
        self.free = find_free(module, self.stored)
        self.units = group_units(model, module.graph, self.free)
        self.name_of = {node: name for unit in self.units for node, name in unit.outputs.items()}
        self.name_of.update((node, node.name) for node in placeholders)

    def tensor_nodes(self) -> dict[str, fx.Node]:
        return {name: node for node, name in self.name_of.items()}

    def graph(self) -> planner.Graph:
        read: dict[str, None] = {}
        units = []
        for unit in self.units:
            units.append(self._unit(unit))
            read.update(dict.fromkeys(units[-1].parameters))
        stored = {name: attribute(self.module, name) for name in read}
        used = {unit.layer for unit in units}
        return planner.Graph(
            inputs=tuple(node.name for node in self.placeholders),
            outputs=tuple(dict.fromkeys(name for leaf in self.output.args[0] for name in self._names(leaf))),
            tensors={name: self._tensor(name, node) for name, node in self._ordered_tensors()},
            units=tuple(units),
            layers=tuple(weight.layer for weight in self.weights if weight.layer.name in used),
            parameters={name: value.numel() * value.element_size() for name, value in stored.items()},
            parameter_numel={name: value.numel() for name, value in stored.items()},
        )

    def _ordered_tensors(self) -> list[tuple[str, fx.Node]]:
        inputs = [(node.name, node) for node in self.placeholders]
        return inputs + [(name, node) for unit in self.units for node, name in unit.outputs.items()]

    def _names(self, node: fx.Node) -> list[str]:
        """The tensors that stand for ``node`` for the planner: itself, or the inputs a free node reads."""
        if node in self.free:
            return [read.name for read in self.free[node]]
        return [self.name_of[node]] if node in self.name_of else []

    def _unit(self, unit: UnitNodes) -> planner.Unit:
        members = set(unit.nodes)
        reads = list(
            dict.fromkeys(r for node in unit.nodes for r in node.all_input_nodes if r not in members)
        )
        layer = self.weight_of.get(unit.module) if unit.module is not None else None
        stored = dict.fromkeys(name for node in reads for name in self._stored_names(node))
        flops = [node_flops(node, self._shape) for node in unit.nodes]
        return planner.Unit(
            name=unit.name,
            kind=layer.kind if layer else "other",
            inputs=tuple(dict.fromkeys(name for node in reads for name in self._names(node))),
            outputs=tuple(unit.outputs.values()),
            flops=self._layer_flops(unit, layer) if layer else sum(flops),
            layer=layer.name if layer else None,
            parameters=tuple(name for name in stored if name not in self.stored),
            sizes=self._sizes_read(reads),
        )

    def _sizes_read(self, reads: list[fx.Node]) -> tuple[tuple[str, str], ...]:
        """(tensor, expression) of every varying size behind what a unit reads."""
        found: dict[tuple[str, str], None] = {}
        stack, seen = [node for node in reads if node in self.free], set()
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if node.target is _SIZE:
                source = self.name_of.get(
                    node.args[0], ""
                )  # a free tensor has no name: its size must be found
                found.update(dict.fromkeys((source, size) for size in _varying([node.meta["val"]])))
            else:
                stack.extend(read for read in node.all_input_nodes if read in self.free)
        return tuple(found)

    def _layer_flops(self, unit: UnitNodes, layer: planner.Layer) -> float:
        """From the weight's shape, so that packed and float layers count the same."""
        if layer.kind == "embedding":
            return 0.0
        elements = math.prod(self._shape(next(iter(unit.outputs)).meta["val"]))
        return 2.0 * elements * layer.columns

    def _stored_names(self, node: fx.Node) -> list[str]:
        """FQNs of the stored tensors behind ``node``: itself, or those that a free node reads."""
        names: dict[str, None] = {}
        stack = [node]
        seen = set()
        while stack:
            current = stack.pop()
            if current in seen:
                continue
            seen.add(current)
            if current.op == "get_attr":
                names[current.target] = None
            elif current in self.free:
                stack.extend(reversed(current.all_input_nodes) if current.target is not _SIZE else ())
        return list(names)

    def _shape(self, value: Tensor) -> tuple[int, ...]:
        return tuple(concrete_size(size, self.sizes) for size in value.shape)

    def _tensor(self, name: str, node: fx.Node) -> planner.Tensor:
        value = node.meta["val"]
        shape = self._shape(value)
        return planner.Tensor(
            name,
            shape,
            dtype_name(value.dtype),
            math.prod(shape) * value.element_size(),
            coded_leading_dims(value),
            tuple(_varying(value.shape)),
        )


def coded_leading_dims(value: Tensor) -> int | None:
    """How many leading dims a coded tensor keeps, one scale for each index of them; None: it cannot be coded.

    Tokens [B, ..., C]: all but the last. Feature maps [B, C, H, W] of fixed height and width: two, a scale
    per sample and channel, as long as 64 values share it; else one, a scale per sample. What follows the
    leading dims must be static.

    Args:
        value: the tensor, with symbolic sizes where they may vary.
    """
    if value.dtype not in (torch.float32, torch.float16, torch.bfloat16) or value.dim() < 2:
        return None
    static = [isinstance(size, int) for size in symbolic_shape(value)]
    if not static[-1]:
        return None
    if value.dim() < 4 or not all(static[1:]):
        return value.dim() - 1
    return 2 if value.shape[2:].numel() >= 64 else 1


def _varying(sizes: Iterable[int | torch.SymInt]) -> list[str]:
    """The expressions of sizes that are not constants."""
    return [
        str(size.node.expr)
        for size in sizes
        if isinstance(size, torch.SymInt) and not size.node.expr.is_number
    ]


def symbolic_shape(value: Tensor) -> tuple[int | torch.SymInt, ...]:
    """The sizes of a traced value: ints, and symbols only where they really vary."""
    return tuple(
        int(size) if isinstance(size, int) or size.node.expr.is_number else size for size in value.shape
    )


def concrete_size(size: int | torch.SymInt, sizes: Mapping[sympy.Symbol, sympy.Integer]) -> int:
    """A symbolic size at given values of its symbols.

    Raises:
        TraceError: the size depends on the values of tensors.
    """
    if isinstance(size, int):
        return size
    value = size.node.expr.xreplace(sizes)
    if not value.is_number:
        raise TraceError(
            "a tensor's size depends on data, so that its bytes cannot be planned", got=str(size),
            remedy="avoid nonzero, boolean indexing and unique in forward, or use static shapes (masks)",
        )  # fmt: skip
    return int(value)


def _symbol_sizes(
    placeholders: list[fx.Node], sample: tuple[Tensor, ...]
) -> dict[sympy.Symbol, sympy.Integer]:
    """What each symbolic size is at the sample."""
    sizes: dict[sympy.Symbol, sympy.Integer] = {}
    for node, tensor in zip(placeholders, sample):
        for symbolic, size in zip(node.meta["val"].shape, tensor.shape):
            if isinstance(symbolic, torch.SymInt) and isinstance(symbolic.node.expr, sympy.Symbol):
                sizes[symbolic.node.expr] = sympy.Integer(size)
    return sizes


def _weights(model: nn.Module, module: fx.GraphModule) -> list[Weight]:
    """Compressible weights that are read by calls of their own layers only."""
    canonical = canonical_names(model)
    readers: dict[int, set[str]] = {}
    called: set[str] = set()
    for node in module.graph.nodes:
        if node.op == "call_function":
            called.add(enclosing_module(node, canonical)[0])
        elif node.op == "get_attr":
            names = {enclosing_module(user, canonical)[0] for user in node.users}
            readers.setdefault(id(attribute(module, node.target)), set()).update(names)
    tensors = _named_tensors(model)

    def read_raw(name: str) -> bool:
        owners = {canonical[fqn.rpartition(".")[0]] for fqn, t in tensors.items() if t is tensors[name]}
        return bool(readers.get(id(tensors[name]), set()) - owners)

    return find_weights(model, read_raw, called)


def _same_tensors(model: nn.Module, module: fx.GraphModule, names: set[str]) -> frozenset[str]:
    """FQNs in ``module`` of what ``model`` knows as ``names``: export keeps one name of tied tensors."""
    tensors = _named_tensors(model)
    wanted = {id(tensors[name]) for name in names}
    targets = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    return frozenset(target for target in targets if id(attribute(module, target)) in wanted)


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer under every name that it has."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }

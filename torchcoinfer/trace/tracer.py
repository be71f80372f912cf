"""``trace``: the model as an exported graph and, beside it, as the plain numbers that the planner reads."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from torchcoinfer.errors import ArgumentError, TraceError
from torchcoinfer.models import disable_cache
from torchcoinfer.nn.callspec import CallSpec, Constant, InputSpec, dtype_name
from torchcoinfer.theory import graph as planner
from torchcoinfer.theory.budget import Workload
from torchcoinfer.trace import capture
from torchcoinfer.trace.clean import flat_module
from torchcoinfer.trace.flops import node_flops
from torchcoinfer.trace.free import attribute, find_free
from torchcoinfer.trace.layers import Weight, canonical_names, find_weights
from torchcoinfer.trace.units import UnitNodes, enclosing_module, group_units


@dataclass(frozen=True)
class Traced:
    """A traced model.

    Attributes:
        model: as given, untouched.
        program: torch.export's program, in eval mode; it shares the model's parameters.
        module: flat and functional fx graph of it: flat tensors in (order of ``graph.inputs``), tuple of flat
            tensors out; shares the model's parameters.
        graph: what the planner reads.
        tensor_nodes: tensor name -> node of ``module``.
        unit_nodes: unit name -> its nodes, in order.
        free_nodes: nodes recomputed on either side (masks, positions, sizes) -> the input placeholders whose
            values they read.
        layer_modules: layer name -> FQNs of the modules that share its weight.
        call: the model's own calling convention.
        sample: flat tensors of example_inputs, at the workload's size.
        dynamic_dims, static_dims: input name -> dims that may vary; dims that were asked for and could not.
    """

    model: nn.Module
    program: ExportedProgram
    module: fx.GraphModule
    graph: planner.Graph
    tensor_nodes: Mapping[str, fx.Node]
    unit_nodes: Mapping[str, tuple[fx.Node, ...]]
    free_nodes: Mapping[fx.Node, tuple[fx.Node, ...]]
    layer_modules: Mapping[str, tuple[str, ...]]
    call: CallSpec
    sample: tuple[Tensor, ...]
    dynamic_dims: Mapping[str, tuple[int, ...]]
    static_dims: Mapping[str, tuple[int, ...]]

    @property
    def input_names(self) -> tuple[str, ...]:
        return self.graph.inputs

    @property
    def in_spec(self) -> pytree.TreeSpec:
        return self.call.in_spec

    @property
    def out_spec(self) -> pytree.TreeSpec:
        return self.call.out_spec

    def flatten_inputs(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """The model's own arguments as flat tensors, in the order of ``graph.inputs``.

        Raises:
            ArgumentError: arguments of another structure, dtype or fixed size than traced.
        """
        return self.call.flatten_inputs(*args, **kwargs)

    def unflatten_outputs(self, flat: Sequence[Any]) -> Any:
        """The model's own output structure from what ``module`` returned."""
        return self.call.unflatten_outputs(flat)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the traced graph: the model's own arguments in, its own output structure out."""
        return self.unflatten_outputs(self.module(*self.flatten_inputs(*args, **kwargs)))


def trace(
    model: nn.Module,
    example_inputs: tuple | Mapping[str, Any],
    *,
    dynamic_shapes: Any = None,
    workload: Workload | None = None,
) -> Traced:
    """Trace a model.

    Args:
        model: in train or eval mode; traced in eval mode, on a copy of its structure that shares its parameters.
        example_inputs: positional (tuple) or keyword (dict) arguments of one call.
        dynamic_shapes: as torch.export's; default: dim 0 of every tensor and the sequence dim of known
            keywords. Dims that cannot vary become static and are listed in ``static_dims``.
        workload: sizes at which costs are counted; default: those of example_inputs.

    Raises:
        ArgumentError: example_inputs cannot be read.
        TraceError: the model cannot be exported, or cannot be planned (sizes that depend on data).
    """
    args, kwargs = capture.split_arguments(example_inputs)
    if dynamic_shapes is None:
        dynamic_shapes = capture.default_shapes(args, kwargs)
    copied = disable_cache(capture.structure_copy(model))
    program = capture.export(copied, args, kwargs, dynamic_shapes)
    module = flat_module(program)
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    asked = capture.dynamic_dims(args, kwargs, dynamic_shapes)
    call = _call_spec(model, program, module, placeholders, (args, kwargs))
    sample = _sample(args, kwargs, call, workload)
    built = _Builder(copied, module, placeholders, sample)
    free_dims = {
        spec.name: tuple(d for d, size in enumerate(spec.shape) if isinstance(size, str))
        for spec in call.inputs
    }
    asked_of = dict(
        zip(free_dims, [dims for dims, leaf in zip(asked, call.in_leaves) if isinstance(leaf, InputSpec)])
    )
    return Traced(
        model=model,
        program=program,
        module=module,
        graph=built.graph(),
        tensor_nodes=built.tensor_nodes(),
        unit_nodes={unit.name: tuple(unit.nodes) for unit in built.units},
        free_nodes=built.free,
        layer_modules={weight.layer.name: weight.layer.modules for weight in built.weights},
        call=call,
        sample=sample,
        dynamic_dims=free_dims,
        static_dims={
            name: stuck
            for name, dims in asked_of.items()
            if (stuck := tuple(d for d in dims if d not in free_dims[name]))
        },
    )


def _call_spec(
    model: nn.Module,
    program: ExportedProgram,
    module: fx.GraphModule,
    placeholders: list[fx.Node],
    arguments: tuple[tuple, dict],
) -> CallSpec:
    names = iter(placeholders)
    in_leaves: list[InputSpec | Constant] = []
    for leaf in pytree.tree_leaves(arguments):
        if isinstance(leaf, Tensor):
            node = next(names)
            shape = tuple(s if isinstance(s, int) else str(s) for s in node.meta["val"].shape)
            in_leaves.append(InputSpec(node.name, shape, dtype_name(leaf.dtype)))
        else:
            in_leaves.append(Constant(leaf))
    output = next(node for node in module.graph.nodes if node.op == "output")
    out_leaves: list[int | Constant] = []
    kept: list[fx.Node] = []
    for leaf in output.args[0]:
        out_leaves.append(len(kept) if isinstance(leaf, fx.Node) else Constant(leaf))
        kept += [leaf] if isinstance(leaf, fx.Node) else []
    output.args = (tuple(kept),)
    module.recompile()
    parameters = inspect.signature(model.forward).parameters.values()
    positional = tuple(p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD)
    spec = program.call_spec
    return CallSpec(
        positional=positional,
        in_spec=pytree.tree_flatten(arguments)[1],
        in_leaves=tuple(in_leaves),
        out_spec=spec.out_spec,
        out_leaves=tuple(out_leaves),
    )


def _sample(args: tuple, kwargs: dict, call: CallSpec, workload: Workload | None) -> tuple[Tensor, ...]:
    """The example's tensors, free dims repeated or cut to the workload's batch (dim 0) and prompt (others)."""
    leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    workload = workload or Workload()
    for i, spec in enumerate(call.inputs):
        for dim, size in enumerate(spec.shape):
            wanted = workload.batch if dim == 0 else workload.prompt
            if isinstance(size, str) and wanted is not None:
                index = torch.arange(wanted, device=leaves[i].device) % leaves[i].shape[dim]
                leaves[i] = leaves[i].index_select(dim, index)
            elif wanted is not None and dim == 0 and wanted != leaves[i].shape[0]:
                raise ArgumentError(
                    f"the batch of input {spec.name!r} is fixed by the model", got=f"Workload(batch={wanted})",
                    expected=f"batch {leaves[i].shape[0]}", remedy="leave Workload.batch out",
                )  # fmt: skip
    return tuple(leaf.detach() for leaf in leaves)


class _Builder:
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
        """The tensors that stand for ``node`` in the planner's graph: itself, or the inputs a free node reads."""
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
        )

    def _layer_flops(self, unit: UnitNodes, layer: planner.Layer) -> float:
        """From the weight's shape, so that packed and float layers count the same."""
        if layer.kind == "embedding":
            return 0.0
        elements = math.prod(self._shape(next(iter(unit.outputs)).meta["val"]))
        return 2.0 * elements * layer.columns

    def _stored_names(self, node: fx.Node) -> list[str]:
        """FQNs of the stored tensors behind ``node``: itself, or those that a free node reads, depth first."""
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
        return tuple(self._size(size) for size in value.shape)

    def _size(self, size: int | torch.SymInt) -> int:
        if isinstance(size, int):
            return size
        value = size.node.expr.xreplace(self.sizes)
        if not value.is_number:
            raise TraceError(
                "a tensor's size depends on data, so that its bytes cannot be planned", got=str(size),
                remedy="avoid nonzero, boolean indexing and unique in forward, or use static shapes (masks)",
            )  # fmt: skip
        return int(value)

    def _tensor(self, name: str, node: fx.Node) -> planner.Tensor:
        value = node.meta["val"]
        shape = self._shape(value)
        return planner.Tensor(name, shape, dtype_name(value.dtype), math.prod(shape) * value.element_size())


_SIZE = torch.ops.aten.sym_size.int


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
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }

    def read_raw(name: str) -> bool:
        owners = {canonical[fqn.rpartition(".")[0]] for fqn, t in tensors.items() if t is tensors[name]}
        return bool(readers.get(id(tensors[name]), set()) - owners)

    return find_weights(model, read_raw, called)


def _same_tensors(model: nn.Module, module: fx.GraphModule, names: set[str]) -> frozenset[str]:
    """FQNs in ``module`` of the tensors that ``model`` knows as ``names``: torch.export keeps one name of tied ones."""
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    wanted = {id(tensors[name]) for name in names}
    targets = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    return frozenset(target for target in targets if id(attribute(module, target)) in wanted)

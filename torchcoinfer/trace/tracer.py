"""``trace``: the model as an exported graph and, beside it, as the plain numbers that the planner reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from torchcoinfer.errors import ArgumentError
from torchcoinfer.models import disable_cache
from torchcoinfer.nn.callspec import CallSpec, Constant, InputSpec, dtype_name
from torchcoinfer.theory import graph as planner
from torchcoinfer.theory.budget import Workload
from torchcoinfer.trace import capture
from torchcoinfer.trace.build import GraphBuilder, concrete_size, symbolic_shape
from torchcoinfer.trace.clean import flat_module

SAMPLE_BYTES = 1 << 30  # of one input at the workload's size


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
        sizes: each symbol in the shapes of ``module``'s nodes -> its value in the sample.
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
    sizes: Mapping[sympy.Symbol, sympy.Integer]
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

    def size(self, symbolic: int | torch.SymInt) -> int:
        """A size in ``module`` as it is for ``sample``."""
        return concrete_size(symbolic, self.sizes)

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
        model: in train or eval mode; traced in eval mode, on a copy of its structure that shares parameters.
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
    asked = capture.dynamic_dims(copied, args, kwargs, dynamic_shapes)
    call = _call_spec(model, program, module, placeholders, (args, kwargs))
    sample = _sample(args, kwargs, call, workload)
    built = GraphBuilder(copied, module, placeholders, sample)
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
        sizes=built.sizes,
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
            shape = tuple(s if isinstance(s, int) else str(s) for s in symbolic_shape(node.meta["val"]))
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
    spec = program.call_spec
    return CallSpec(
        positional=capture.positional_names(model),
        in_spec=pytree.tree_flatten(arguments)[1],
        in_leaves=tuple(in_leaves),
        out_spec=spec.out_spec,
        out_leaves=tuple(out_leaves),
    )


def _sample(args: tuple, kwargs: dict, call: CallSpec, workload: Workload | None) -> tuple[Tensor, ...]:
    """The example's tensors, free dims repeated or cut to the workload's batch (dim 0) or prompt."""
    leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    workload = workload or Workload()
    lengths = [size for spec in call.inputs for size in spec.shape[1:]]
    if workload.prompt not in (None, *lengths) and not any(isinstance(size, str) for size in lengths):
        raise ArgumentError(
            "no input has a length that varies", got=f"Workload(prompt={workload.prompt})",
            expected="a dim after the batch that dynamic_shapes leaves free",
            remedy="leave Workload.prompt out, or pass dynamic_shapes",
        )  # fmt: skip
    for i, spec in enumerate(call.inputs):
        for dim, size in enumerate(spec.shape):
            wanted = workload.batch if dim == 0 else workload.prompt
            if isinstance(size, str) and wanted is not None:
                _check_size(leaves[i], spec.name, wanted / max(1, leaves[i].shape[dim]))
                index = torch.arange(wanted, device=leaves[i].device) % leaves[i].shape[dim]
                leaves[i] = leaves[i].index_select(dim, index)
            elif wanted is not None and dim == 0 and wanted != leaves[i].shape[0]:
                raise ArgumentError(
                    f"the batch of input {spec.name!r} is fixed by the model",
                    got=f"Workload(batch={wanted})",
                    expected=f"batch {leaves[i].shape[0]}", remedy="leave Workload.batch out",
                )  # fmt: skip
    return tuple(leaf.clone() if leaf.is_inference() else leaf.detach() for leaf in leaves)


def _check_size(leaf: Tensor, name: str, factor: float) -> None:
    if leaf.numel() * leaf.element_size() * factor > SAMPLE_BYTES:
        raise ArgumentError(
            f"the workload makes input {name!r} too large", expected=f"at most {SAMPLE_BYTES} bytes",
            got=f"{leaf.numel() * leaf.element_size() * factor:.3g} bytes",
            remedy="plan a smaller batch or prompt: resources grow in proportion",
        )  # fmt: skip

"""Groups fx nodes into units and names them, so that names are the same before and after compression."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from torchcoinfer.errors import TraceError
from torchcoinfer.trace.layers import canonical_names

_CALL = re.compile(r"@(\d+)$")


@dataclass
class UnitNodes:
    """A unit: the call of leaf module ``module`` (FQN), or one functional op (``module`` None)."""

    name: str
    module: str | None
    nodes: list[fx.Node] = field(default_factory=list)
    outputs: dict[fx.Node, str] = field(default_factory=dict)  # node -> tensor name, in order


def group_units(model: nn.Module, graph: fx.Graph, free: Mapping[fx.Node, object]) -> list[UnitNodes]:
    """The units in topological order: that of the first node of each.

    Args:
        model: whose module tree the nodes' ``nn_module_stack`` names.
        free: nodes that belong to no unit.
    """
    canonical = canonical_names(model)
    leaves = {name for name, module in model.named_modules() if name and not list(module.children())}
    units: dict[object, UnitNodes] = {}
    unit_of: dict[fx.Node, UnitNodes] = {}
    ordinals: dict[tuple[str, str], int] = {}
    calls: dict[str, dict[str, int]] = {}  # module -> its calls by torch.export's key -> index
    for node in graph.nodes:
        if node.op != "call_function" or node in free:
            continue
        if _is_getitem(node):
            unit = unit_of[node.args[0]]
        else:
            module, stack_key = enclosing_module(node, canonical)
            call = _call_index(stack_key, calls.setdefault(module, {}))
            key = f"{module}#{call}"
            if module not in leaves:
                operation = op_name(node)
                ordinal = ordinals[key, operation] = ordinals.get((key, operation), -1) + 1
                key = f"{module}/{operation}.{ordinal}#{call}"
            unit = units.setdefault(key, UnitNodes(key, module if module in leaves else None))
        unit.nodes.append(node)
        unit_of[node] = unit
    for unit in units.values():
        _name_outputs(unit, unit_of)
    return _in_dependency_order(list(units.values()), unit_of)


def _in_dependency_order(units: list[UnitNodes], unit_of: Mapping[fx.Node, UnitNodes]) -> list[UnitNodes]:
    """Topological, the program's order wherever the dependencies leave a choice.

    A leaf module that is given a callable, or a hook on it, may run other units between two of its own nodes.
    """
    position = {id(unit): i for i, unit in enumerate(units)}
    done: set[int] = set()
    ordered: list[UnitNodes] = []
    stack = list(reversed(units))
    while stack:
        unit = stack[-1]
        if id(unit) in done:
            stack.pop()
            continue
        reads = {id(unit_of[r]): unit_of[r] for n in unit.nodes for r in n.all_input_nodes if r in unit_of}
        missing = [u for key, u in reads.items() if key not in done and u is not unit]
        if len(stack) > (len(units) + 1) ** 2:
            raise TraceError(
                "calls of modules read each other in a circle", got=f"{unit.name} among them",
                expected="a module that reads no result of its own call",
                remedy="give every call that is interrupted by others a module of its own",
            )  # fmt: skip
        if missing:
            stack.extend(sorted(missing, key=lambda u: -position[id(u)]))
        else:
            done.add(id(unit))
            ordered.append(unit)
    return ordered


def enclosing_module(node: fx.Node, canonical: Mapping[str, str]) -> tuple[str, str]:
    """FQN of the innermost module that ran the node, torch.export's key of the call; ("", "") is the model.

    The key of the second call of module ``a.b`` is ``...a.b@1``.
    """
    stack = node.meta.get("nn_module_stack") or {}
    for key, (name, _) in reversed(stack.items()):
        if name in canonical:
            return canonical[name], key
    return "", ""


def _call_index(key: str, known: dict[str, int]) -> int:
    """torch.export counts the calls of each name of a shared module from 0: the next one free is taken."""
    if key not in known:
        call = _CALL.search(key)
        index = int(call.group(1)) if call else 0
        known[key] = max(known.values()) + 1 if index in known.values() else index
    return known[key]


def op_name(node: fx.Node) -> str:
    """``add`` for ``aten.add.Tensor`` and ``aten.add_.Tensor``: the op, whatever its overload."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.split("::")[1].rstrip("_")
    return node.target.__name__


def _is_getitem(node: fx.Node) -> bool:
    return not isinstance(node.target, torch._ops.OpOverload) and node.target.__name__ == "getitem"


def _name_outputs(unit: UnitNodes, unit_of: Mapping[fx.Node, UnitNodes]) -> None:
    """Outputs: tensors read outside the unit. Index: the op's own output index where it returns several."""
    seen = 0
    for node in unit.nodes:
        outside = any(unit_of.get(user) is not unit for user in node.users)
        if not outside or not isinstance(node.meta.get("val"), Tensor):
            continue
        single_op = sum(not _is_getitem(n) for n in unit.nodes) == 1
        index = node.args[1] if _is_getitem(node) and single_op else seen
        unit.outputs[node] = f"{unit.name}:{index}"
        seen += 1

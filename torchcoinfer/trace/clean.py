"""ExportedProgram -> one flat, functional fx graph: tensors in, tensors out, no bookkeeping."""

from __future__ import annotations

import sys

import torch
from torch import fx
from torch.export import ExportedProgram

from torchcoinfer.errors import TraceError

aten = torch.ops.aten

# checks of what the calling convention has checked already (CallSpec)
_CHECKS = (
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten._assert_async.msg,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
)
_DROPOUTS = (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default)
# op -> what it fills with; None: its own argument
_FILLS = {
    "zeros_like": 0,
    "ones_like": 1,
    "full_like": None,
    "new_zeros": 0,
    "new_ones": 1,
    "new_full": None,
}
_ALIASES = (aten.lift_fresh_copy.default, aten.lift_fresh.default, aten.alias.default, aten.detach.default)


def flat_module(program: ExportedProgram) -> fx.GraphModule:
    """The program as a GraphModule that takes and returns flat tensors and shares the model's parameters.

    In-place ops are rewritten as their functional forms (a cut between a value and its overwriting would
    otherwise change results); dropout in eval mode, assertions and aliases are removed.

    Raises:
        TraceError: the model writes to its own buffers, or overwrites memory with no functional form.
    """
    module = _unlifted(program)
    if not _functionalize(module.graph):
        # views of overwritten memory: torch's own functionalization, at the price of some decomposed ops
        module = _unlifted(program.run_decompositions({}))
        if not _functionalize(module.graph):
            raise TraceError(
                "the model writes to tensors in place in a way that has no functional form",
                got=", ".join(str(n.target) for n in module.graph.nodes if _mutates(n)),
                remedy="replace the in-place ops named by their out-of-place forms",
            )
    for node in list(module.graph.nodes):
        _simplify(node)
    for node in reversed(module.graph.nodes):
        unused_constant = node.op == "placeholder" and "val" in node.meta and not _is_tensor(node)
        if not node.users and (node.op not in ("placeholder", "output") or unused_constant):
            module.graph.erase_node(node)
    return fx.GraphModule(module, module.graph, "FlatModel")


def _unlifted(program: ExportedProgram) -> fx.GraphModule:
    module = program.module(check_guards=False)
    module.graph.set_codegen(fx.graph.CodeGen())
    higher = [n for n in module.graph.nodes if isinstance(n.target, torch._ops.HigherOrderOperator)]
    if higher:
        raise TraceError(
            "the model uses control flow or a context that cannot be cut",
            got=", ".join(str(node.target) for node in higher),
            remedy="remove torch.cond, autocast and torch.autograd contexts from forward",
        )
    return module


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _mutates(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.is_mutable


def is_view(node: fx.Node) -> bool:
    """Whether the node's value may share memory with its first argument."""
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None:
        return False
    return any(value.alias_info is not None for value in schema.returns)


def _functionalize(graph: fx.Graph) -> bool:
    """Rewrites ``op_(x)`` as ``op(x)`` for all later readers; False if another name sees a write."""
    if not any(_mutates(node) for node in graph.nodes):
        return True
    family = _memory_families(graph)
    position = {node: i for i, node in enumerate(graph.nodes)}
    newest: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        for old in [old for old in node.all_input_nodes if old in newest]:
            node.replace_input_with(old, newest[old])
        if not _mutates(node):
            continue
        if node.target is aten.detach_.default:
            node.target = aten.detach.default
            continue
        if any(name.op == "get_attr" for name in family[node]):
            raise TraceError(
                "the model writes to its own buffers or parameters in forward",
                got=", ".join(str(name.target) for name in family[node] if name.op == "get_attr"),
                expected="a forward without state",
                remedy="return the state, or compute it anew in each call",
            )  # fmt: skip
        functional = _functional(node.target)
        written = node.args[0]
        names = [n for n in family[node] if position[n] < position[node]]
        others = [n for n in names if n is not written and newest.get(n) is not written]
        if functional is None or any(position[user] > position[node] for n in others for user in n.users):
            return False
        node.target = functional
        newest.update((name, node) for name in names)
    return True


def _memory_families(graph: fx.Graph) -> dict[fx.Node, set[fx.Node]]:
    """Per node, all nodes whose values may share its memory: views and in-place results of one origin."""
    family: dict[fx.Node, set[fx.Node]] = {}
    for node in graph.nodes:
        shares = (_mutates(node) or is_view(node)) and node.args and isinstance(node.args[0], fx.Node)
        getitem = node.op == "call_function" and node.target.__name__ == "getitem" and is_view(node.args[0])
        members = family[node.args[0]] if shares or getitem else set()
        members.add(node)
        family[node] = members
    return family


def _functional(target: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    """``aten.relu`` for ``aten.relu_``; None where there is none with the same overload."""
    namespace, name = target._schema.name.split("::")
    packet = getattr(getattr(torch.ops, namespace), name.rstrip("_"), None) if name.endswith("_") else None
    return getattr(packet, target._overloadname, None) if packet is not None else None


def _fill_of_sizes(node: fx.Node) -> None:
    """``ones_like(x)`` as ``full(sizes of x, 1)``: of a floating tensor, it needs the sizes alone."""
    name = node.target._schema.name.removeprefix("aten::")
    like = node.args[0]
    if name not in _FILLS or not like.meta["val"].is_floating_point():
        return
    value = node.meta["val"]
    with node.graph.inserting_before(node):
        sizes = node.args[1] if name.startswith("new_") else [_size(like, dim) for dim in range(value.dim())]
        fill = _FILLS[name]
        if fill is None:
            fill = node.args[2] if name.startswith("new_") else node.args[1]
        place = {"dtype": value.dtype, "device": value.device}
        filled = node.graph.call_function(aten.full.default, (list(sizes), fill), place)
    filled.meta = dict(node.meta)
    node.replace_all_uses_with(filled)
    node.graph.erase_node(node)


def _size(tensor: fx.Node, dim: int) -> fx.Node | int:
    size = tensor.meta["val"].shape[dim]
    if isinstance(size, int):
        return size
    node = tensor.graph.call_function(aten.sym_size.int, (tensor, dim))
    node.meta = {"val": size}
    return node


def _simplify(node: fx.Node) -> None:
    """Removes what computes nothing."""
    if node.op != "call_function":
        return
    if node.target in _CHECKS:
        node.graph.erase_node(node)
    elif node.target in _ALIASES or (node.target in _DROPOUTS and node.args[2] is False) or _is_whole(node):
        node.replace_all_uses_with(node.args[0])
        node.graph.erase_node(node)
    elif isinstance(node.target, torch._ops.OpOverload):
        _fill_of_sizes(node)


def _is_whole(node: fx.Node) -> bool:
    """``x[:]``: a slice of a whole dim."""
    if node.target is not aten.slice.Tensor:
        return False
    start, end, step = (list(node.args[2:]) + [None, None, 1][len(node.args) - 2 :])[:3]
    return start in (None, 0) and end in (None, sys.maxsize) and step == 1

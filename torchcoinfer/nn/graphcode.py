"""fx graphs as plain JSON: readable, diffable, and loadable without running anything that a file names.

``{"version": 1, "nodes": [[name, op, target, args, kwargs], ...]}``. ``op`` is "input", "tensor" (target: the
name of a stored tensor), "call" or "output". A call's target is ``"aten::add.Tensor"`` (an overload of a
registered op) or ``"operator.mul"`` (a function of the short list below). Arguments: null, booleans,
integers, floats and strings as they are; lists as lists; everything else as ``{kind: value}`` with kind one
of "node", "tuple", "slice", "float" (inf, nan), "dtype", "device", "layout", "memory_format".

Worked example: ``y = x + 1`` is ::

    {"version": 1, "nodes": [["x", "input", "x", [], {}],
                             ["add", "call", "aten::add.Tensor", [{"node": "x"}, 1], {}],
                             ["output", "output", "output", [{"tuple": [{"node": "add"}]}], {}]]}
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from torchcoinfer.errors import FormatError

VERSION = 1
_OPS = {"placeholder": "input", "get_attr": "tensor", "call_function": "call", "output": "output"}
_FX_OPS = {name: op for op, name in _OPS.items()}
_NAMESPACES = ("aten", "prims", "torchcoinfer", "torchvision")
_FORBIDDEN = ("aten::from_file",)  # reads any file that the process may read
_OPERATORS = (
    "getitem",
    "add",
    "sub",
    "mul",
    "floordiv",
    "truediv",
    "mod",
    "neg",
    "pow",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
)
_FUNCTIONS: Mapping[str, Callable] = {
    **{f"operator.{name}": getattr(operator, name) for name in (*_OPERATORS, "ge", "and_", "or_", "not_")},
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc", "sqrt", "log2")},
    **{
        f"torch.{n}": getattr(torch, n)
        for n in ("sym_max", "sym_min", "sym_float", "sym_int", "sym_not", "sym_ite")
    },
}
_NAME_OF = {function: name for name, function in _FUNCTIONS.items()}
_TORCH_KINDS = {
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
}


def encode_graph(graph: fx.Graph) -> dict[str, Any]:
    """The graph as JSON-able data.

    Raises:
        FormatError: a call of something that the format does not name.
    """
    nodes = []
    for node in graph.nodes:
        target = _encode_target(node) if node.op == "call_function" else str(node.target)
        if node.op not in _OPS:
            raise FormatError(
                "a graph cannot be saved", got=f"{node.op} {node.target}", expected=sorted(_OPS)
            )
        nodes.append([node.name, _OPS[node.op], target, _encode(list(node.args)), _encode_items(node.kwargs)])
    return {"version": VERSION, "nodes": nodes}


def decode_graph(data: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str) -> fx.GraphModule:
    """The module of a graph and its stored tensors, all of them buffers.

    Raises:
        FormatError: another version, unknown ops, names that are not defined, or missing or unused tensors.
    """
    if not isinstance(data, Mapping) or data.get("version") != VERSION:
        version = data.get("version") if isinstance(data, Mapping) else type(data).__name__
        raise FormatError("a graph file has another version", got=version, expected=str(VERSION))
    try:
        return _build(data["nodes"], tensors, name)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(
            "a graph file cannot be read", got=f"{type(error).__name__}: {error}",
            expected="what encode_graph writes", remedy="save the model again",
        ) from error  # fmt: skip


def _build(nodes: list, tensors: Mapping[str, Tensor], name: str) -> fx.GraphModule:
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}
    root = nn.Module()
    read = {target for _, op, target, _, _ in nodes if op == "tensor"}
    if read != set(tensors):
        raise FormatError(
            "a graph and its stored tensors disagree", got=sorted(read ^ set(tensors)),
            expected="each stored tensor read by the graph, and each one read stored",
        )  # fmt: skip
    for path in sorted(read):
        _store(root, path, tensors[path])
    for node_name, op, target, args, kwargs in nodes:
        resolved = _decode_target(target) if op == "call" else target
        arguments = tuple(_decode(arg, made) for arg in args)
        keywords = {key: _decode(value, made) for key, value in kwargs.items()}
        made[node_name] = graph.create_node(_FX_OPS[op], resolved, arguments, keywords, name=node_name)
    graph.lint()
    return fx.GraphModule(root, graph, name)


def _store(root: nn.Module, path: str, tensor: Tensor) -> None:
    *parents, leaf = path.split(".")
    owner = root
    for part in parents:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner._modules[part]
    owner.register_buffer(leaf, tensor)


def _encode_target(node: fx.Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        schema = node.target._schema
        if schema.name.split("::")[0] in _NAMESPACES and schema.name not in _FORBIDDEN:
            return f"{schema.name}.{schema.overload_name or 'default'}"
    elif node.target in _NAME_OF:
        return _NAME_OF[node.target]
    raise FormatError(
        f"node {node.name!r} calls something that a saved graph cannot name", got=str(node.target),
        expected=f"ops of {', '.join(_NAMESPACES)}, or one of {sorted(_FUNCTIONS)}",
    )  # fmt: skip


def _decode_target(target: str) -> Callable:
    if target in _FUNCTIONS:
        return _FUNCTIONS[target]
    namespace, _, rest = target.partition("::")
    op, _, overload = rest.partition(".")
    if namespace not in _NAMESPACES or f"{namespace}::{op}" in _FORBIDDEN:
        raise FormatError(
            "a graph file calls what it may not", got=repr(target),
            expected=f"ops of {', '.join(_NAMESPACES)}, or one of {sorted(_FUNCTIONS)}",
        )  # fmt: skip
    packet = getattr(getattr(torch.ops, namespace), op)
    return getattr(packet, overload)


def _encode(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, tuple):
        return {"tuple": [_encode(item) for item in value]}
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if isinstance(value, slice):
        return {"slice": [_encode(item) for item in (value.start, value.stop, value.step)]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for kind, torch_type in _TORCH_KINDS.items():
        if isinstance(value, torch_type):
            return {kind: str(value).removeprefix("torch.")}
    raise FormatError(
        "an argument cannot be saved", got=repr(value), expected="numbers, strings, torch types"
    )


def _encode_items(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _encode(value) for key, value in values.items()}


def _decode(value: Any, made: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(item, made) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "node":
        return made[content]
    if kind == "tuple":
        return tuple(_decode(item, made) for item in content)
    if kind == "slice":
        return slice(*(_decode(item, made) for item in content))
    if kind == "float":
        return float(content)
    if kind == "device":
        return torch.device(content)
    found = getattr(torch, content)
    if not isinstance(found, _TORCH_KINDS[kind]):
        raise FormatError(f"not a {kind}", got=repr(content))
    return found

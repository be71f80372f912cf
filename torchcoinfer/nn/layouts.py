"""Which order packed buffers are in: canonical, or on a GPU the device order (``csrc/layout_device.h``).

There is one copy of a weight: where it moves to a GPU its bytes are permuted, and back where it leaves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, fx

from torchcoinfer import ops
from torchcoinfer.ops.reorder import CANONICAL_LAYOUT, DEVICE_LAYOUT

# op -> argument -> kind of buffer; other ops read the canonical order alone
ORDERED = {
    "quant_linear": {"packed": "codes"},
    "quant_conv2d": {"packed": "codes"},
    "sparse24_linear": {"index": "index", "values": "survivors"},
}


def wanted_layout(device: torch.device) -> int:
    """The order for buffers on this device."""
    return DEVICE_LAYOUT if device.type == "cuda" and ops.has_kernels("cuda") else CANONICAL_LAYOUT


def in_layout(buffer: Tensor, kind: str, bits: int, layout: int) -> Tensor:
    """A new buffer in that order, from one in the other."""
    moved = buffer.detach().clone(memory_format=torch.contiguous_format)
    ops.reorder_(moved, kind, bits, layout == DEVICE_LAYOUT)
    return moved


def ordered_buffers(graph: fx.Graph) -> dict[str, tuple[str, int]]:
    """Name -> (kind, bits) of the buffers that only ops with a ``layout`` argument read."""
    found: dict[str, tuple[str, int]] = {}
    readers: dict[str, set[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            readers.setdefault(node.target, set()).update(node.users)
    for node, arguments in _ordered_calls(graph):
        of_node = {name: arguments[name] for name in ORDERED[_op_name(node)]}
        if all(_reads_ordered(argument, readers) for argument in of_node.values()):
            for name, argument in of_node.items():
                found[argument.target] = (ORDERED[_op_name(node)][name], arguments["bits"])
    return found


def order_graph(module: fx.GraphModule, layout: int) -> None:
    """Puts the packed buffers of a graph into that order, and says so in the ops that read them."""
    ordered, done = ordered_buffers(module.graph), {}
    for node, arguments in list(_ordered_calls(module.graph)):
        names = [arguments[name].target for name in ORDERED[_op_name(node)] if name in arguments]
        if not all(name in ordered for name in names) or arguments["layout"] == layout:
            continue
        for name in names:
            if name not in done:
                owner, _, leaf = name.rpartition(".")
                place = module.get_submodule(owner)._buffers
                done[name] = place[leaf] = in_layout(place[leaf], *ordered[name], layout)
        schema = node.target._schema.arguments
        position = next(i for i, argument in enumerate(schema) if argument.name == "layout")
        if len(node.args) > position:
            node.update_arg(position, layout)
        else:  # traced away as a default: given by name, and again not at all
            rest = {name: value for name, value in node.kwargs.items() if name != "layout"}
            node.kwargs = rest if layout == CANONICAL_LAYOUT else {**rest, "layout": layout}
    if done:
        module.recompile()


def _op_name(node: fx.Node) -> str:
    """The name of the op of this package that the node calls, else an empty one."""
    target = node.target
    if node.op != "call_function" or getattr(target, "namespace", "") != "torchcoinfer":
        return ""
    return target._schema.name.partition("::")[2]


def _ordered_calls(graph: fx.Graph) -> Iterator[tuple[fx.Node, Mapping[str, object]]]:
    """Nodes that call an op with a layout, and their arguments by name, defaults included."""
    for node in graph.nodes:
        if _op_name(node) in ORDERED:
            schema = node.target._schema.arguments
            given = {argument.name: value for argument, value in zip(schema, node.args)}
            defaults = {argument.name: argument.default_value for argument in schema}
            yield node, {**defaults, **given, **node.kwargs}


def _reads_ordered(argument: object, readers: Mapping[str, set[fx.Node]]) -> bool:
    """Whether the argument is a buffer of the graph that ops with a layout alone read."""
    if not isinstance(argument, fx.Node) or argument.op != "get_attr":
        return False
    return all(_op_name(user) in ORDERED for user in readers[argument.target])

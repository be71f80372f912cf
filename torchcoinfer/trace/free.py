"""Free nodes: cheap functions of shapes, integer inputs and buffers, recomputed on either side of a cut."""

from __future__ import annotations

from collections.abc import Set

import torch
from torch import Tensor, fx

aten = torch.ops.aten

# dense arithmetic is work, wherever its operands come from
_NEVER_FREE = {
    aten.linear.default,
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.convolution.default,
    aten.embedding_bag.default,
    aten.scaled_dot_product_attention.default,
}


def find_free(module: fx.GraphModule, weights: Set[str]) -> dict[fx.Node, tuple[fx.Node, ...]]:
    """The free nodes, each with the input placeholders whose *values* it depends on (sizes are not values).

    Free are sizes; inputs that are not floating point; buffers and constants; and ops on free values only.
    Not free: parameters, ``weights`` (FQNs of buffers that hold packed weights), and random ops, which would
    differ between the sides.
    """
    free: dict[fx.Node, tuple[fx.Node, ...]] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            value = node.meta["val"]
            if isinstance(value, Tensor) and not value.is_floating_point() and not value.is_complex():
                free[node] = (node,)
        elif node.op == "get_attr":
            if (
                not isinstance(attribute(module, node.target), torch.nn.Parameter)
                and node.target not in weights
            ):
                free[node] = ()
        elif node.op == "call_function":
            if node.target is aten.sym_size.int:
                free[node] = ()
            elif _may_be_free(node) and all(read in free for read in node.all_input_nodes):
                free[node] = tuple(dict.fromkeys(x for read in node.all_input_nodes for x in free[read]))
    return free


def _may_be_free(node: fx.Node) -> bool:
    if node.target in _NEVER_FREE:
        return False
    if isinstance(node.target, torch._ops.OpOverload):
        random = torch.Tag.nondeterministic_seeded in node.target.tags
        return not random and node.target.namespace != "torchcoinfer"
    return True


def attribute(module: torch.nn.Module, name: str) -> Tensor:
    """The tensor of FQN ``name``."""
    value = module
    for part in name.split("."):
        value = getattr(value, part)
    return value

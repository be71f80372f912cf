"""Floating-point operations of one fx node, multiply and add counted as two."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from torchcoinfer.trace.clean import is_view

aten = torch.ops.aten
Shape = tuple[int, ...]
_COPIES = {
    "cat",
    "stack",
    "clone",
    "contiguous",
    "_to_copy",
    "embedding",
    "index_select",
    "index",
    "gather",
    "pad",
}


def node_flops(node: fx.Node, shape_of: Callable[[Tensor], Shape]) -> float:
    """At the sizes that ``shape_of`` gives; views and copies are 0, unknown ops 1 an output element.

    Layers (linear, convolution, embedding, packed ops) are counted by the caller from their weight's shape.
    """
    if node.op != "call_function" or is_view(node) or not isinstance(node.target, torch._ops.OpOverload):
        return 0.0
    name = node.target._schema.name.split("::")[1]
    output = _first_tensor(node.meta.get("val"))
    if output is None or name in _COPIES:
        return 0.0
    elements = math.prod(shape_of(output))
    shapes = [
        shape_of(n.meta["val"]) if isinstance(n.meta.get("val"), Tensor) else () for n in _positional(node)
    ]
    count = _DENSE.get(name)
    return float(count(shapes, elements)) if count else float(elements)


def _positional(node: fx.Node) -> list[fx.Node]:
    return [arg for arg in node.args if isinstance(arg, fx.Node)]


def _first_tensor(value: object) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (tuple, list)):
        return next((item for item in value if isinstance(item, Tensor)), None)
    return None


def _contraction(shapes: Sequence[Shape], elements: int) -> int:
    return 2 * elements * shapes[0][-1]


def _added_contraction(shapes: Sequence[Shape], elements: int) -> int:
    return 2 * elements * shapes[1][-1]


def _convolution(shapes: Sequence[Shape], elements: int) -> int:
    return 2 * elements * math.prod(shapes[1][1:])


def _attention(shapes: Sequence[Shape], elements: int) -> int:
    query, key = shapes[0], shapes[1]
    scores = math.prod(query[:-1]) * key[-2]
    return 2 * scores * query[-1] + 2 * elements * key[-2] + 5 * scores


def _five_each(shapes: Sequence[Shape], elements: int) -> int:
    """Normalizations and softmax: mean, variance (or maximum, exponential), scale, shift."""
    return 5 * elements


_DENSE: dict[str, Callable[[Sequence[Shape], int], int]] = {
    "linear": _contraction,
    "matmul": _contraction,
    "mm": _contraction,
    "bmm": _contraction,
    "addmm": _added_contraction,
    "baddbmm": _added_contraction,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _convolution),
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(
        ("layer_norm", "rms_norm", "group_norm", "batch_norm", "softmax", "log_softmax"), _five_each
    ),
}

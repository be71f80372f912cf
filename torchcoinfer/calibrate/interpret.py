"""Runs the traced module node by node: the one place where calibration meets ``torch.fx``.

Calibration needs what a plain call of the module does not give: the input of every layer, an output that
can be differentiated without touching the model's parameters, weights replaced for one run, a stop half way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from torchcoinfer.errors import CalibrationError
from torchcoinfer.trace import Traced


@dataclass(frozen=True)
class Shifted:
    """A dense weight [N, K] together with what the layer's bias is changed by, [N]."""

    weight: Tensor
    shift: Tensor


Replacement = Tensor | Shifted | Callable[[Tensor], Tensor]
"""What may stand for a layer in one run: a dense weight [N, K], that with a changed bias, or a callable of
the layer's input."""

Tap = Callable[[fx.Node, Sequence[Any], Any], Any]
"""Called with (node, its arguments, its value); what it returns is passed on as the node's value."""

aten = torch.ops.aten

# target -> (kind, position of the layer's input, position of its weight)
LAYER_OPS = {
    aten.linear.default: ("linear", 0, 1),
    aten.conv2d.default: ("conv2d", 0, 1),
    aten.conv2d.padding: ("conv2d", 0, 1),
    aten.embedding.default: ("embedding", 1, 0),
}


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer: the node that multiplies by its weight."""

    layer: str
    unit: str
    node: fx.Node
    kind: str  # "linear" | "conv2d" | "embedding"
    input_position: int
    weight_position: int

    def apply(self, args: Sequence[Any], weight: Tensor) -> Tensor:
        """The call's linear part, without bias: another weight [N, K] times the input in ``args``."""
        h = args[self.input_position]
        if self.kind == "embedding":
            return weight[h]
        if self.kind == "linear":
            return torch.nn.functional.linear(h, weight)
        kernel = weight.reshape(weight.shape[0], *args[self.weight_position].shape[1:])
        return self.node.target(h, kernel, None, *args[3:])


class Interpreter:
    """Evaluates ``traced.module`` on flat inputs.

    Args:
        traced: the traced model. Its parameters are read detached: nothing here can reach their ``grad``.

    Raises:
        CalibrationError: a unit with a layer has no node that this package knows as a linear map.
    """

    def __init__(self, traced: Traced):
        self.traced = traced
        self.module: fx.GraphModule = traced.module
        self.nodes: tuple[fx.Node, ...] = tuple(self.module.graph.nodes)
        self.calls: tuple[LayerCall, ...] = tuple(_find_calls(traced))
        self.call_of: dict[fx.Node, LayerCall] = {call.node: call for call in self.calls}
        self.last_use = last_uses(self.nodes)

    def run(
        self,
        inputs: Sequence[Tensor],
        *,
        replacements: Mapping[str, Replacement] | None = None,
        tap: Tap | None = None,
    ) -> list[Any]:
        """One forward pass; values are dropped after their last use.

        Args:
            inputs: flat inputs in the order of ``graph.inputs``.
            replacements: per layer, what stands for its weight in this run.
            tap: sees, and may replace, the value of every node.

        Returns:
            the flat outputs.
        """
        values: dict[fx.Node, Any] = {}
        feed = iter(inputs)
        for node in self.nodes:
            if node.op == "placeholder":
                value = next(feed)
                values[node] = value if tap is None else tap(node, (), value)
            elif node.op == "output":
                return self.outputs(node, values)
            else:
                values[node] = self.evaluate(node, values, replacements or {}, tap)
            for done in self.last_use.get(node, ()):
                values.pop(done, None)
        raise CalibrationError("the traced module has no output node", remedy="trace the model again")

    def outputs(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> list[Any]:
        found = fx.map_arg(node.args[0], lambda read: values[read])
        return list(found) if isinstance(found, (tuple, list)) else [found]

    def evaluate(
        self,
        node: fx.Node,
        values: Mapping[fx.Node, Any],
        replacements: Mapping[str, Replacement],
        tap: Tap | None = None,
    ) -> Any:
        """The value of one node from the values of those that it reads."""
        if node.op == "get_attr":
            return self.attribute(node)
        args, kwargs = (fx.map_arg(given, lambda read: values[read]) for given in (node.args, node.kwargs))
        call = self.call_of.get(node)
        if call is not None and call.layer in replacements:
            value = replace_layer(call, args, kwargs, replacements[call.layer])
        elif node.op == "call_function":
            value = node.target(*args, **kwargs)
        else:
            raise CalibrationError(f"node {node.name!r}", got=node.op, expected="call_function")
        return value if tap is None else tap(node, args, value)

    def attribute(self, node: fx.Node) -> Any:
        """A parameter or buffer, detached: gradients go to activations only."""
        value: Any = self.module
        for part in node.target.split("."):
            value = getattr(value, part)
        return value.detach() if isinstance(value, Tensor) else value

    def weight(self, layer: str) -> Tensor:
        """The layer's own weight as [N, K], a view where it can be one."""
        call = next(call for call in self.calls if call.layer == layer)
        weight = self.attribute(call.node.args[call.weight_position])
        return weight.reshape(weight.shape[0], -1)


def replace_layer(
    call: LayerCall, args: Sequence[Any], kwargs: Mapping[str, Any], replacement: Replacement
) -> Tensor:
    """The call's output with its weight replaced: the same op for a tensor, or what the callable gives."""
    if isinstance(replacement, Shifted):
        value = replace_layer(call, args, kwargs, replacement.weight)
        return value + replacement.shift.to(value.dtype).reshape(
            -1, *(1,) * (2 if call.kind == "conv2d" else 0)
        )
    if not isinstance(replacement, Tensor):
        return replacement(args[call.input_position])
    old = args[call.weight_position]
    new = replacement.reshape(old.shape).to(old.dtype)
    changed = list(args)
    changed[call.weight_position] = new
    return call.node.target(*changed, **kwargs)


def _find_calls(traced: Traced) -> Iterable[LayerCall]:
    for unit in traced.graph.units:
        if unit.layer is None:
            continue
        known = [node for node in traced.unit_nodes[unit.name] if node.target in LAYER_OPS]
        if len(known) != 1:
            raise CalibrationError(
                f"unit {unit.name!r} of layer {unit.layer!r} is not one linear map",
                got=[str(node.target) for node in traced.unit_nodes[unit.name]],
                expected="one aten linear, conv2d or embedding",
            )
        yield LayerCall(unit.layer, unit.name, known[0], *LAYER_OPS[known[0].target])


def last_uses(order: Sequence[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Per node, the values that nothing after it in ``order`` reads: its last reads, itself if unread."""
    seen: set[fx.Node] = set()
    ends: dict[fx.Node, list[fx.Node]] = {}
    for node in reversed(order):
        if node not in seen and node.op != "output":
            ends.setdefault(node, []).append(node)
        for read in node.all_input_nodes:
            if read not in seen:
                seen.add(read)
                ends.setdefault(node, []).append(read)
    return ends


def padding_mask(traced: Traced, inputs: Sequence[Tensor]) -> Tensor | None:
    """``attention_mask`` [B, S] among the inputs: 0 where a position is padding, which no one reads."""
    position = mask_position(traced)
    return None if position is None or inputs[position].dim() != 2 else inputs[position]


def mask_position(traced: Traced) -> int | None:
    """Which flat input is the attention mask."""
    return next((i for i, name in enumerate(traced.graph.inputs) if name == "attention_mask"), None)

"""Divides a traced model at a cut: two fx graphs, and the modules that hold them."""

from __future__ import annotations

import operator

import sympy
import torch
from torch import Tensor, fx, nn

from torchcoinfer import ops  # noqa: F401  registers torch.ops.torchcoinfer
from torchcoinfer.errors import ArgumentError, PlanError
from torchcoinfer.nn.callspec import dtype_name
from torchcoinfer.nn.halves import Crossing, DeviceHalf, ServerHalf
from torchcoinfer.theory.graph import Cut, cut_from_tensors
from torchcoinfer.theory.plan import CutPlan
from torchcoinfer.trace import Traced, coded_leading_dims
from torchcoinfer.trace.build import concrete_size, symbolic_shape

SIZES = "sizes"  # name of the tensor without elements whose shape carries sizes that no other tensor has
_SIZE = torch.ops.aten.sym_size.int


def split(traced: Traced, cut: CutPlan | Cut) -> tuple[DeviceHalf, ServerHalf]:
    """The halves of ``traced`` (of the compressed model) at ``cut``.

    ``server(*device(...))`` is bit for bit what ``traced(...)`` gives when no tensor is coded; with coded
    tensors, what it gives with encode and decode inserted there. Weights are shared with the traced model;
    a tensor that both sides need (tied weights, buffers of masks) is in both.

    Args:
        cut: the tensors that cross and their bits (None: as they are). "device" runs all on the device,
            and the server passes the outputs on; at "server" the inputs cross.

    Raises:
        PlanError: the cut belongs to another model, or a tensor cannot be coded.
    """
    bits = dict(cut.tensors) if isinstance(cut, CutPlan) else dict.fromkeys(cut.tensors)
    try:
        found = cut_from_tensors(traced.graph, () if cut.name == "device" else bits)
    except ArgumentError as error:
        raise PlanError(
            "the plan's cut does not divide this model", got=f"{cut.name!r}: {error}",
            remedy="take a cut of theory.graph.candidate_cuts, and the model that the plan was made for",
        ) from error  # fmt: skip
    halves = _Halves(traced, found, bits)
    return halves.device(), halves.server()


class _Halves:
    """The nodes of each side and the tensors between them."""

    def __init__(self, traced: Traced, cut: Cut, bits: dict[str, int | None]):
        self.traced, self.cut = traced, cut
        self.output = next(node for node in traced.module.graph.nodes if node.op == "output")
        on_device = {node for unit in cut.device for node in traced.unit_nodes[unit]}
        if cut.name == "device":
            self.sent = {_tensor_name(traced, n): n for n in self.output.args[0] if _is_tensor(n)}
        else:
            self.sent = {name: traced.tensor_nodes[name] for name in cut.tensors}
        self.crossing = [_crossing(name, node, bits.get(name)) for name, node in self.sent.items()]
        self.server_nodes = self._needed_by_server(on_device)
        self.resolved, self.carried = self._resolve_sizes()
        if self.carried:
            shape = tuple(str(node.meta["val"]) for node in self.carried)
            self.crossing.append(Crossing(SIZES, (*shape, 0), "uint8"))

    def _needed_by_server(self, on_device: set[fx.Node]) -> set[fx.Node]:
        """Closure of the outputs, down to what crosses, stored tensors and sizes."""
        needed: set[fx.Node] = set()
        stack = [leaf for leaf in self.output.args[0]]
        received = set(self.sent.values())
        while stack:
            node = stack.pop()
            if node in needed or node in received:
                continue
            needed.add(node)
            if node in on_device or node.op == "placeholder":
                raise PlanError(
                    f"the cut {self.cut.name!r} does not divide this model",
                    got=f"the server needs {node.name!r}, which does not cross", expected=list(self.sent),
                )  # fmt: skip
            if node.target is not _SIZE or node.args[0] in received:
                stack.extend(node.all_input_nodes)
        return needed

    def _resolve_sizes(self) -> tuple[dict[fx.Node, tuple[fx.Node, int]], list[fx.Node]]:
        """Sizes of tensors that the server does not have: (a tensor that crosses, dim) of equal size each.

        Where no crossing tensor has that size: its place in one tensor without elements, sent beside.
        """
        places = {
            size.node.expr: (node, dim)
            for node in reversed(self.sent.values())
            for dim, size in reversed(list(enumerate(symbolic_shape(node.meta["val"]))))
            if isinstance(size, torch.SymInt)
        }
        resolved: dict[fx.Node, tuple[fx.Node, int]] = {}
        carried: dict[object, fx.Node] = {}
        for node in self.traced.module.graph.nodes:
            here = node in self.server_nodes and node.target is _SIZE
            if not here or node.args[0] in self.server_nodes or node.args[0] in self.sent.values():
                continue
            size = node.meta["val"]
            if isinstance(size, torch.SymInt) and size.node.expr in places:
                resolved[node] = places[size.node.expr]
            elif isinstance(size, torch.SymInt):
                carried.setdefault(size.node.expr, node)
        return resolved, list(carried.values())

    def device(self) -> DeviceHalf:
        """All inputs in, whether used or not; out what crosses."""
        needed: set[fx.Node] = set()
        stack = [*self.sent.values(), *self.carried]
        while stack:
            node = stack.pop()
            if node not in needed:
                needed.add(node)
                stack.extend(node.all_input_nodes)
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        for node in self.traced.module.graph.nodes:
            if node in needed or node.op == "placeholder":
                copies[node] = graph.node_copy(node, lambda read: copies[read])
        results = []
        for tensor, node in zip(self.crossing, self.sent.values()):
            results += _encode(graph, copies[node], tensor)
        if self.carried:
            sizes = [copies[node] for node in self.carried]
            place = {"dtype": torch.uint8, "device": torch.device("cpu")}
            results.append(graph.call_function(torch.ops.aten.zeros.default, ([*sizes, 0],), place))
        graph.output(tuple(results))
        return DeviceHalf(_module(self.traced.module, graph, "Device"), *self._conventions())

    def server(self) -> ServerHalf:
        """In what crosses; out the model's flat outputs."""
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        received = [
            [graph.placeholder(f"received_{i}_{j}") for j in range(len(tensor.sent))]
            for i, tensor in enumerate(self.crossing)
        ]
        for tensor, node, parts in zip(self.crossing, self.sent.values(), received):
            copies[node] = _decode(graph, parts, tensor)
        for node in self.traced.module.graph.nodes:
            if node in self.resolved:
                source, dim = self.resolved[node]
                copies[node] = graph.call_function(_SIZE, (copies[source], dim))
            elif node in self.server_nodes and self._is_lost_size(node, copies):
                copies[node] = self._lost_size(graph, node, received)
            elif node in self.server_nodes:
                copies[node] = graph.node_copy(node, lambda read: copies[read])
        graph.output(tuple(copies[leaf] for leaf in self.output.args[0]))
        return ServerHalf(_module(self.traced.module, graph, "Server"), *self._conventions())

    def _is_lost_size(self, node: fx.Node, copies: dict[fx.Node, fx.Node]) -> bool:
        return node.target is _SIZE and node.args[0] not in copies

    def _lost_size(self, graph: fx.Graph, node: fx.Node, received: list[list[fx.Node]]) -> fx.Node | int:
        """A size that no crossing tensor has: a constant, or a dim of the tensor sent for this."""
        if isinstance(node.meta["val"], int):
            return node.meta["val"]
        expressions = [carrier.meta["val"].node.expr for carrier in self.carried]
        return graph.call_function(_SIZE, (received[-1][0], expressions.index(node.meta["val"].node.expr)))

    def _conventions(self) -> tuple:
        """What a half keeps beside its graph: the call, what crosses, varying sizes at the sample."""
        placeholders = [node for node in self.traced.module.graph.nodes if node.op == "placeholder"]
        sizes = [n.meta["val"] for n in self.carried]
        sizes += [
            size for n in (*placeholders, *self.sent.values()) for size in symbolic_shape(n.meta["val"])
        ]
        varying = [size for size in sizes if isinstance(size, torch.SymInt)]
        at_sample = {str(size): self.traced.size(size) for size in varying}
        least_two = {symbol: sympy.Max(2, value) for symbol, value in self.traced.sizes.items()}
        widened = {str(size): concrete_size(size, least_two) for size in varying}
        return self.traced.call, tuple(self.crossing), at_sample, widened


def _is_tensor(node: object) -> bool:
    return isinstance(node, fx.Node) and isinstance(node.meta.get("val"), Tensor)


def _tensor_name(traced: Traced, node: fx.Node) -> str:
    """The graph's name; a free tensor, which is sent when all is on the device, has its node's."""
    return next((name for name, found in traced.tensor_nodes.items() if found is node), node.name)


def _crossing(name: str, node: fx.Node, bits: int | None) -> Crossing:
    value = node.meta["val"]
    shape = tuple(size if isinstance(size, int) else str(size) for size in symbolic_shape(value))
    if bits is None:
        return Crossing(name, shape, dtype_name(value.dtype))
    leading = coded_leading_dims(value)
    if leading is None or not 2 <= bits <= 8:
        raise PlanError(
            f"tensor {name!r} cannot be coded", got=f"{bits} bits for {dtype_name(value.dtype)} {shape}",
            expected="2 to 8 bits for a floating tensor whose last dim is static",
            remedy="plan bits None for it",
        )  # fmt: skip
    return Crossing(name, shape, dtype_name(value.dtype), bits, leading)


def _encode(graph: fx.Graph, value: fx.Node, tensor: Crossing) -> list[fx.Node]:
    if tensor.bits is None:
        return [value]
    encode = torch.ops.torchcoinfer.encode_activation.default
    coded = graph.call_function(encode, (value, tensor.bits, tensor.granularity, tensor.leading_dims))
    return [graph.call_function(operator.getitem, (coded, i)) for i in range(3)]


def _decode(graph: fx.Graph, parts: list[fx.Node], tensor: Crossing) -> fx.Node:
    if tensor.bits is None:
        return parts[0]
    decode = torch.ops.torchcoinfer.decode_activation.default
    trailing = list(tensor.shape[tensor.leading_dims :])
    dtype = getattr(torch, tensor.dtype)
    return graph.call_function(decode, (*parts, tensor.bits, tensor.granularity, trailing, dtype))


def _module(source: nn.Module, graph: fx.Graph, name: str) -> fx.GraphModule:
    """The graph with the tensors that it reads, all of them buffers, in the memory that they have."""
    for node in graph.nodes:
        node.meta = {}
    module = fx.GraphModule(source, graph, name)
    for path, parameter in list(module.named_parameters(remove_duplicate=False)):
        holder, _, leaf = path.rpartition(".")
        del module.get_submodule(holder)._parameters[leaf]
        module.get_submodule(holder).register_buffer(leaf, parameter.detach())
    for owner in module.modules():  # a half has no code that could make a table of positions anew
        owner._non_persistent_buffers_set.clear()
    return module

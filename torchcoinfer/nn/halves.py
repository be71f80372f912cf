"""The two halves of a divided model: an fx graph of flat tensors each, and the calling convention."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from torchcoinfer.errors import ArgumentError
from torchcoinfer.nn import layouts
from torchcoinfer.nn.callspec import CallSpec, InputSpec, dtype_name
from torchcoinfer.nn.graphcode import decode_graph, encode_graph
from torchcoinfer.ops.reorder import CANONICAL_LAYOUT


@dataclass(frozen=True)
class Crossing:
    """A tensor that crosses the cut, as the graph knows it, and how it is coded.

    ``bits`` None: sent as it is, one tensor. Otherwise three: codes uint8, scale and zero_point float32, by
    ``torch.ops.torchcoinfer.encode_activation`` with granularity "token": one scale per index of the first
    ``leading_dims`` dims. Static sizes are ints in ``shape``, symbols' names where sizes vary.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    bits: int | None = None
    leading_dims: int = 0
    granularity: str = "token"

    @property
    def sent(self) -> tuple[InputSpec, ...]:
        """The plain tensors that are sent for this one."""
        if self.bits is None:
            return (InputSpec(self.name, self.shape, self.dtype),)
        leading, trailing = self.shape[: self.leading_dims], self.shape[self.leading_dims :]
        row_bytes = -(-math.prod(trailing) * self.bits // 8)
        return (
            InputSpec(f"{self.name}.codes", (*leading, row_bytes), "uint8"),
            InputSpec(f"{self.name}.scale", leading, "float32"),
            InputSpec(f"{self.name}.zero_point", leading, "float32"),
        )


class Half(nn.Module):
    """What both halves share.

    Attributes:
        graph_module: flat tensors in, tuple of flat tensors out; holds exactly this side's tensors.
        call: the whole model's calling convention.
        crossing: the tensors that cross, in the order in which they are sent.
        sample_sizes: every varying size in the shapes -> its value at the workload (for exports, bytes).
        trace_sizes: the same with sizes of at least 2, as torch.export wants them.
    """

    def __init__(
        self,
        graph_module: fx.GraphModule,
        call: CallSpec,
        crossing: tuple[Crossing, ...],
        sample_sizes: Mapping[str, int],
        trace_sizes: Mapping[str, int],
    ):
        super().__init__()
        self.graph_module, self.call, self.crossing = graph_module, call, crossing
        self.sample_sizes, self.trace_sizes = dict(sample_sizes), dict(trace_sizes)
        # where the half is, even if it has no weights
        self.register_buffer("_place", torch.empty(0), persistent=False)
        self.eval()

    @property
    def sent(self) -> tuple[InputSpec, ...]:
        """The plain tensors that cross, in order: a coded tensor counts three."""
        return tuple(spec for tensor in self.crossing for spec in tensor.sent)

    @property
    def cut_bytes(self) -> int:
        """Bytes of the tensors that cross at the workload's sizes, without frame headers."""
        return sum(
            math.prod(self.sample_sizes.get(size, size) for size in spec.shape)
            * getattr(torch, spec.dtype).itemsize
            for spec in self.sent
        )

    @property
    def sent_names(self) -> tuple[str, ...]:
        """Names of the plain tensors that cross, in order: a coded tensor counts three."""
        return tuple(spec.name for spec in self.sent)

    def __getstate__(self) -> dict[str, Any]:
        """The graph as data: fx would pickle code and trace it anew, which fails on lists of sizes."""
        layouts.order_graph(self.graph_module, CANONICAL_LAYOUT)
        state = dict(self.__dict__)
        modules = dict(state["_modules"])
        graph_module = modules.pop("graph_module")
        state["_modules"] = modules
        state["graph"] = encode_graph(graph_module.graph)
        state["tensors"] = stored_tensors(graph_module)
        self._order()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        graph, tensors = state.pop("graph"), state.pop("tensors")
        super().__setstate__(state)
        self.graph_module = decode_graph(graph, tensors, type(self).__name__)
        self._order()

    def _order(self) -> None:
        """Packed buffers in the order for the device that the half is on."""
        layouts.order_graph(self.graph_module, layouts.wanted_layout(self._place.device))

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Canonical bytes, wherever the half is."""
        layouts.order_graph(self.graph_module, CANONICAL_LAYOUT)
        state = super().state_dict(*args, **kwargs)
        self._order()  # makes buffers anew: the state keeps the canonical ones
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        layouts.order_graph(self.graph_module, CANONICAL_LAYOUT)
        try:
            return super().load_state_dict(state_dict, *args, **kwargs)
        finally:
            self._order()

    def _computed_dtypes(self) -> set[torch.dtype]:
        """Floating dtypes of inputs, outputs and stored tensors; packed weights keep their own."""
        stored = stored_tensors(self.graph_module)
        plain = {
            node.target
            for node in self.graph_module.graph.nodes
            for user in node.users
            if node.op == "get_attr" and getattr(user.target, "namespace", "") != "torchcoinfer"
        }
        dtypes = {getattr(torch, spec.dtype) for spec in (*self.call.inputs, *self.crossing)}
        dtypes |= {stored[name].dtype for name in plain}
        return {dtype for dtype in dtypes if dtype.is_floating_point}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Moves between devices, graph included. Dtypes are part of the graph and stay.

        Raises:
            ArgumentError: another floating dtype is asked for.
        """
        for dtype in self._computed_dtypes():
            if fn(torch.empty(0, dtype=dtype)).dtype != dtype:
                raise ArgumentError(
                    "a half computes in the dtype it was traced with", got="a conversion of its dtype",
                    expected=dtype_name(dtype), remedy="convert the model before compress_and_split",
                )  # fmt: skip
        layouts.order_graph(self.graph_module, CANONICAL_LAYOUT)
        before = {name: buffer.dtype for name, buffer in self.named_buffers()}
        stored = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in list(self.named_buffers()):
            if buffer.dtype != before[name]:  # packed scales under .float(): their bytes are the format
                owner, _, leaf = name.rpartition(".")
                self.get_submodule(owner)._buffers[leaf] = stored[name].to(buffer.device)
        if self._place.device != stored["_place"].device:
            move_graph(self.graph_module, self._place.device)
        self._order()
        return self


def stored_tensors(module: fx.GraphModule) -> dict[str, Tensor]:
    """The tensors that the graph reads, under the names by which it reads them."""
    named = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    return {node.target: named[node.target].detach() for node in module.graph.nodes if node.op == "get_attr"}


def move_graph(module: fx.GraphModule, device: torch.device) -> None:
    """Rewrites the devices that stand in the graph (of ``arange``, ``to``, ...)."""

    def moved(argument: Any) -> Any:
        return device if isinstance(argument, torch.device) else argument

    for node in module.graph.nodes:
        node.args = fx.node.map_aggregate(node.args, moved)
        node.kwargs = fx.node.map_aggregate(node.kwargs, moved)
    module.recompile()


class DeviceHalf(Half):
    """Takes the model's own arguments, returns the tensors that cross: three for each coded one."""

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.call.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        return self.sent_names

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        return tuple(self.graph_module(*self.call.flatten_inputs(*args, **kwargs)))


class ServerHalf(Half):
    """Takes the tensors that the device half returned, returns the model's own output structure."""

    @property
    def input_names(self) -> tuple[str, ...]:
        return self.sent_names

    @property
    def output_names(self) -> tuple[str, ...]:
        count = sum(isinstance(leaf, int) for leaf in self.call.out_leaves)
        return tuple(f"output.{i}" for i in range(count))

    def forward(self, *tensors: Tensor) -> Any:
        if len(tensors) != len(self.input_names):
            raise ArgumentError(
                "the server half got another number of tensors than crosses the cut", got=len(tensors),
                expected=f"{len(self.input_names)}: {', '.join(self.input_names)}",
                remedy="pass what the device half returned: server(*device(x))",
            )  # fmt: skip
        return self.call.unflatten_outputs(self.graph_module(*tensors))

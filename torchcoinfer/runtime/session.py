"""Both halves in one process, with every byte of the link between them really framed and decoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchcoinfer.errors import ArgumentError
from torchcoinfer.nn.halves import Crossing
from torchcoinfer.runtime.decoder import Decoder
from torchcoinfer.runtime.wire import Frame, coded_frame, encode, plain_frame


@dataclass(frozen=True)
class Transfer:
    """One run of a session.

    Attributes:
        output: the model's own output structure.
        uplink_bytes, downlink_bytes: bytes framed each way, headers counted; 0 where the whole model runs on
            the device.
    """

    output: Any
    uplink_bytes: int
    downlink_bytes: int


class Session:
    """Runs device half, wire codec, server half, and the answer's way back.

    Args:
        device: takes the model's own arguments, returns the flat tensors that cross; ``crossing`` says how
            they are coded.
        server: takes these tensors, returns the model's own output structure.
    """

    def __init__(self, device: nn.Module, server: nn.Module):
        self.device, self.server = device, server

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own arguments in, its own output structure out."""
        return self.run(*args, **kwargs).output

    def run(self, *args: Any, **kwargs: Any) -> Transfer:
        """As ``__call__``, with the bytes that crossed.

        Raises:
            ArgumentError: wrong arguments, or the device half returned other tensors than it declares.
            FormatError: a tensor of a dtype or rank that the wire format does not know.
        """
        sent = self.device(*args, **kwargs)
        if runs_nothing(self.server):
            return Transfer(self.server(*sent), 0, 0)
        stream = b"".join(encode(frame) for frame in frames(sent, self.device.crossing))
        received = [t.to(_place(self.server)) for frame in _decode(stream) for t in tensors(frame)]
        leaves, structure = pytree.tree_flatten(self.server(*received))
        answer = b"".join(encode(tensor_frame(leaf)) for leaf in leaves if isinstance(leaf, Tensor))
        returned = (t.to(_place(self.device)) for frame in _decode(answer) for t in tensors(frame))
        leaves = [next(returned) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return Transfer(pytree.tree_unflatten(leaves, structure), len(stream), len(answer))


def runs_nothing(server: nn.Module) -> bool:
    """Whether the server half only passes its inputs through: the whole model is on the device."""
    graph_module = getattr(server, "graph_module", None)
    return graph_module is not None and all(
        n.op in ("placeholder", "output") for n in graph_module.graph.nodes
    )


def frames(sent: Sequence[Tensor], crossing: Sequence[Crossing]) -> Iterator[Frame]:
    """One frame for each tensor that crosses: three plain tensors (codes, scale, zero point) for a coded one.

    Raises:
        ArgumentError: another number of tensors than ``crossing`` declares.
        FormatError: a tensor that does not fit its declaration.
    """
    expected = [spec.name for tensor in crossing for spec in tensor.sent]
    if len(sent) != len(expected):
        raise ArgumentError(
            "the device half returned other tensors than cross the cut",
            got=f"{len(sent)} tensors",
            expected=f"{len(expected)}: {', '.join(expected)}",
            remedy="frame what the device half returned, with that half's own crossing",
        )
    flat = iter(sent)
    for tensor in crossing:
        if tensor.bits is None:
            yield tensor_frame(next(flat))
            continue
        codes, scale, zero_point = (_array(next(flat)) for _ in range(3))
        trailing = tensor.shape[tensor.leading_dims :]  # static, by the codec's contract
        yield coded_frame(
            codes,
            scale,
            zero_point,
            dtype=tensor.dtype,
            shape=(*codes.shape[:-1], *trailing),
            bits=tensor.bits,
            granularity=tensor.granularity,
            leading_dims=tensor.leading_dims,
        )


def tensor_frame(tensor: Tensor) -> Frame:
    """Frame of one uncoded tensor."""
    return plain_frame(_array(tensor), str(tensor.dtype).removeprefix("torch."))


def tensors(frame: Frame) -> tuple[Tensor, ...]:
    """The plain tensors of a frame, on the CPU: one, or codes, scale and zero point."""
    if frame.header.bits is None and frame.header.dtype == "bfloat16":
        return (torch.from_numpy(frame.arrays[0].view(np.int16)).view(torch.bfloat16),)
    return tuple(torch.from_numpy(array) for array in frame.arrays)


def _array(tensor: Tensor) -> np.ndarray:
    """The tensor's values as a NumPy array; bfloat16 as uint16."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


def _decode(stream: bytes) -> Iterator[Frame]:
    decoder = Decoder(max_payload_bytes=len(stream))
    decoder.receive_data(stream)
    while (frame := decoder.next_frame()) is not None:
        yield frame
    decoder.close()


def _place(half: nn.Module) -> torch.device:
    """Where a half lives; the CPU if it holds no tensor."""
    held = next(half.buffers(), next(half.parameters(), None))
    return torch.device("cpu") if held is None else held.device

"""Every peer by the name it has in tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from torchcoinfer.bench.cases import Case
from torchcoinfer.bench.peers import builtin, ggml, onnx, openvino
from torchcoinfer.bench.timing import Contender
from torchcoinfer.errors import KernelError, MissingExtra

PEERS: dict[str, Callable[[Case, int], Contender]] = {
    "torch fp32": partial(builtin.dense, "fp32"),
    "torch bf16": partial(builtin.dense, "bf16"),
    "torch dynamic qint8": builtin.dynamic_int8,
    "onednn qlinear": builtin.qlinear,
    "aten int4pack": builtin.int4pack,
    "torch CSR 50 %": partial(builtin.csr, 0.5),
    "torch CSR 80 %": partial(builtin.csr, 0.8),
    "torch CSR 90 %": partial(builtin.csr, 0.9),
    "onnxruntime MatMulNBits": onnx.matmul_nbits,
    "openvino u4": openvino.four_bit,
    "ggml Q4_0": partial(ggml.matmul, "Q4_0"),
    "ggml Q4_K": partial(ggml.matmul, "Q4_K"),
}
FOUR_BIT = ("aten int4pack", "onnxruntime MatMulNBits", "openvino u4", "ggml Q4_0", "ggml Q4_K")


@dataclass(frozen=True)
class Missing:
    """A peer that does not take part, and why."""

    name: str
    reason: str


def make_peers(names: Iterable[str], case: Case, threads: int) -> Iterator[Contender | Missing]:
    """The peers named, in order; one that cannot take part as ``Missing``."""
    for name in names:
        try:
            made = PEERS[name](case, threads)
        except (MissingExtra, KernelError) as error:
            yield Missing(name, str(error))
        else:
            made.name = name
            yield made

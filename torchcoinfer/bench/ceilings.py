"""The machine's ceilings, measured in the run that they judge: memory read, and multiply-adds a second.

The compute ceilings are what the best peer reaches on a product that stays in the cache: oneDNN, through
torch's bfloat16 product and its int8 linear. They are lower bounds of what the silicon can do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from torchcoinfer.bench.cases import Case
from torchcoinfer.bench.peers import builtin
from torchcoinfer.bench.timing import Contender, last_level_cache_bytes, race
from torchcoinfer.errors import KernelError

COMPUTE_CASE = Case(rows=1024, columns=1024, tokens=512)
MOST_READ_BYTES = 1 << 30


@dataclass(frozen=True)
class Ceilings:
    """bytes/s of memory reads; multiply-add FLOP/s (2 a pair) through bfloat16 and int8, None if unknown."""

    memory_bytes_per_s: float
    bf16_flops: float | None
    int8_flops: float | None

    def of(self, contender: Contender, int8: bool) -> float:
        """Share of the roofline reached: the larger one of the memory's and the compute's share."""
        peak = self.int8_flops if int8 else self.bf16_flops
        compute_s = contender.flops / peak if peak else 0.0
        return max(contender.moved_bytes / self.memory_bytes_per_s, compute_s) / contender.median_s


def memory_reader() -> Contender:
    """Reads memory once with all threads of torch: the floor of memory-bound kernels."""
    size = min(MOST_READ_BYTES, max(256 << 20, 4 * last_level_cache_bytes()))
    parts = [torch.ones(size // 16, dtype=torch.float32) for _ in range(4)]
    return Contender("memory read", [part.sum for part in parts], parts[0].numel() * 4)


def compute_ceilings(threads: int, budget_s: float = 0.1) -> tuple[float | None, float | None]:
    """FLOP/s of the cached product through bfloat16 and int8; None where torch lacks the kernel."""
    found: list[float | None] = []
    for make in (
        lambda: builtin.dense("bf16", COMPUTE_CASE, threads),
        lambda: builtin.qlinear(COMPUTE_CASE, threads),
    ):
        try:
            made = make()
        except KernelError:
            found.append(None)
            continue
        made.calls = made.calls[:1]  # one weight: it stays in the cache
        race([made], threads, budget_s)
        found.append(made.flops / min(made.seconds))
    return found[0], found[1]

"""What is raced: shapes by the models they come from, and one case of a race."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from torchcoinfer.errors import ArgumentError

GROUP_SIZE = 128
# (N, K) of y = x W^T
SHAPES = {
    "llama": ((4096, 4096), (11008, 4096)),
    "bert": ((384, 384), (1536, 384), (384, 1536), (3072, 768)),
    "resnet": ((1000, 2048),),
    "odd": ((1003, 97), (2048, 1000), (1536, 384)),
}
TOKENS = (1, 4, 16, 64)
ACTIVATIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """One race: y = x W^T with x [tokens, columns], W [rows, columns]."""

    rows: int
    columns: int
    tokens: int

    @property
    def flops(self) -> float:
        return 2.0 * self.rows * self.columns * self.tokens

    @property
    def shape(self) -> tuple[int, int, int]:
        """(M, K, N), as the rows of measurements give it."""
        return self.tokens, self.columns, self.rows


def shapes(name: str) -> tuple[tuple[int, int], ...]:
    """(N, K) pairs of a model's name, or of "KxN".

    Raises:
        ArgumentError: neither a known name nor two numbers.
    """
    if name in SHAPES:
        return SHAPES[name]
    columns, _, rows = name.partition("x")
    if not (columns.isdigit() and rows.isdigit() and int(columns) and int(rows)):
        known = ", ".join(SHAPES)
        raise ArgumentError(
            "a shape of the kernel benchmark", got=name, expected=f"{known} or KxN (4096x11008)"
        )
    return ((int(rows), int(columns)),)

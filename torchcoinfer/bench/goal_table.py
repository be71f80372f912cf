"""The goals of the CPU kernels, as data: one line a kernel, its rows of x, and what it is held against."""

from __future__ import annotations

from dataclasses import dataclass

FLOOR = "memory floor"
FOUR_BIT_PEERS = "4-bit peers"  # the fastest of them
SHAPES = ((4096, 4096), (11008, 4096))  # (N, K)
BOTH = ("fp32", "bf16")


@dataclass(frozen=True)
class Goal:
    """What one format has to reach at some numbers of rows.

    Attributes:
        format: a name of ``formats.FORMATS``.
        tokens: rows of x.
        against: a peer's name, ``FOUR_BIT_PEERS``, or ``FLOOR``.
        goal, stretch: at most so many times the peer's time; for ``FLOOR`` at least this share of it. No
            stretch: None.
        activations: dtypes of x.
    """

    format: str
    tokens: tuple[int, ...]
    against: str
    goal: float
    stretch: float | None = None
    activations: tuple[str, ...] = BOTH


def _bitmaps(limits: tuple[tuple[str, float, float], ...]) -> tuple[Goal, ...]:
    return tuple(
        Goal(f"bitmap {share} % {values}", (1,), "torch bf16", goal, stretch, ("bf16",))
        for share, goal, stretch in limits
        for values in ("fp16", "bf16")
    )


_ANY_ISA = (
    Goal("W4", (1,), "ggml Q4_0", 1.0),
    Goal("W4", (1,), FLOOR, 0.85, 0.95),
    *(Goal(f"W{bits}", (1,), FLOOR, 0.8, 0.9) for bits in (2, 3, 5, 6, 8)),
    Goal("W4 + 2:4", (1,), FLOOR, 0.75, 0.9),
    Goal("W4 + bitmap 50 %", (1,), FLOOR, 0.75, 0.9),
)
_X = ("fp32",)  # int8 activations: the peers they are held against take or give float32

GOALS: dict[str, tuple[Goal, ...]] = {
    "avx512": (
        *_ANY_ISA,
        Goal("W4", (4,), FOUR_BIT_PEERS, 0.75, 0.6),
        Goal("W4A8", (16,), "onednn qlinear", 0.9, 0.7, _X),
        Goal("W4A8", (16,), FOUR_BIT_PEERS, 0.5, None, _X),
        Goal("W4A8", (64, 256), "onednn qlinear", 1.05, 1.0, _X),
        Goal("W4A8", (64, 256), FOUR_BIT_PEERS, 0.35, None, _X),
        Goal("W8A8", (16, 64, 256), "torch dynamic qint8", 1.0, 0.9, _X),
        *_bitmaps((("50", 0.40, 0.30), ("80", 0.20, 0.15), ("90", 0.13, 0.10))),
    ),
    "amx": (
        *_ANY_ISA,
        Goal("W4", (4,), "ggml Q4_0", 0.62, 0.48),
        Goal("W4A8", (16,), "onednn qlinear", 0.8, 0.5, _X),
        Goal("W4A8", (64,), "onednn qlinear", 1.0, 0.5, _X),
        Goal("W4A8", (256,), "onednn qlinear", 1.1, 0.65, _X),
        Goal("W4A8", (64, 256), FOUR_BIT_PEERS, 0.4, None, _X),
        Goal("W8A8", (16, 64, 256), "torch dynamic qint8", 1.0, 0.7, _X),
        *_bitmaps((("50", 0.55, 0.40), ("80", 0.30, 0.19), ("90", 0.20, 0.12))),
    ),
}

"""The goals of the GPU kernels as data, and which cells a run of ``bench kernels --device cuda --goals`` met.

A cell is a format at one shape, number of rows and dtype of x: so many times faster than cuBLAS, and beside
the fastest other kernel for the same format, all in one run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torchcoinfer.bench.cases import Case
from torchcoinfer.bench.formats import FORMATS
from torchcoinfer.bench.gpu.peers import BASELINE
from torchcoinfer.report import format_table

SQUARE, WIDE = (4096, 4096), (11008, 4096)  # (N, K)
BOTH = (SQUARE, WIDE)
KINDS = ("bf16", "fp16")
FEW, SOME, MANY = (1, 4, 16), 64, 4096
BETWEEN = (64, 256, 1024)  # of 64 <= M < 4096
ASKED, ASKED_OF_PEERS = 0.8, 2 / 3  # shares of the cells
FOUR_BIT = ("aten int4pack", "torchao int4", "gemlite int4", "bitsandbytes nf4")
MET, MISSED, NOT_JUDGED = "met", "MISSED", "not judged"


@dataclass(frozen=True)
class Goal:
    """What one format has to reach.

    Attributes:
        format: a name of ``formats.FORMATS``.
        tokens: rows of x.
        least: times faster than cuBLAS on the dense weight.
        shapes: (N, K).
        kinds: dtypes of x.
        peers: kernels that do the same work.
    """

    format: str
    tokens: tuple[int, ...]
    least: float
    shapes: tuple[tuple[int, int], ...] = BOTH
    kinds: tuple[str, ...] = KINDS
    peers: tuple[str, ...] = ()


def _kinds_of(name: str) -> tuple[str, ...]:
    """Float survivors meet an x of their own dtype."""
    return tuple(kind for kind in KINDS if name.endswith(kind)) or KINDS


def _limits() -> Iterator[Goal]:
    """What many rows may cost: three formats by a fused kernel below ``MANY`` rows, all from there on."""
    for name in ("W4", "W8", "2:4 fp16", "2:4 bf16"):
        yield Goal(name, BETWEEN, 0.8, kinds=_kinds_of(name))
    for name in FORMATS:
        if "70 %" not in name:
            yield Goal(name, (MANY,), 0.9, (SQUARE,), _kinds_of(name))


GOALS: tuple[Goal, ...] = (
    Goal("W4", FEW, 3.0, (WIDE,), peers=FOUR_BIT),
    Goal("W4", (SOME,), 2.2, (WIDE,), peers=FOUR_BIT),
    Goal("W4", FEW, 2.2, (SQUARE,), peers=FOUR_BIT),
    Goal("W4", (SOME,), 1.6, (SQUARE,), peers=FOUR_BIT),
    Goal("W4 + 2:4", FEW, 3.8, (WIDE,), peers=FOUR_BIT),
    Goal("W4 + 2:4", FEW, 2.4, (SQUARE,), peers=FOUR_BIT),
    Goal("W8A8", (64, 256, 1024), 1.5, peers=("cuBLAS int8",)),
    *(
        Goal(f"bitmap {share} % {kind}", (1,), least, BOTH, (kind,), ("torch CSR 50 %", "torch CSR 80 %"))
        for share, least in ((50, 1.0), (70, 1.4), (80, 1.9))
        for kind in KINDS
    ),
    *_limits(),
)


@dataclass(frozen=True)
class Cell:
    """One goal at one case, as a run left it.

    ``reached``: times faster than cuBLAS, None where one is missing.
    ``beside_peer``: times faster than ``peer``, the fastest of the goal's peers that took part.
    """

    goal: Goal
    shape: tuple[int, int, int]
    kind: str
    reached: float | None
    peer: str | None
    beside_peer: float | None
    verdict: str


def cases(goals: Sequence[Goal] = GOALS) -> list[tuple[Case, str, tuple[str, ...], tuple[str, ...]]]:
    """What has to run: case, dtype of x, formats, peers; cases of one shape together."""
    wanted: dict[tuple[Case, str], tuple[dict[str, None], dict[str, None]]] = {}
    for shape in dict.fromkeys(shape for goal in goals for shape in goal.shapes):
        for goal in goals:
            for tokens in goal.tokens if shape in goal.shapes else ():
                for kind in goal.kinds:
                    formats, peers = wanted.setdefault((Case(*shape, tokens), kind), ({}, {BASELINE: None}))
                    formats[goal.format] = None
                    peers.update(dict.fromkeys(goal.peers))
    return [(case, kind, tuple(formats), tuple(peers)) for (case, kind), (formats, peers) in wanted.items()]


def judge(rows: Sequence[dict[str, Any]], goals: Sequence[Goal] = GOALS) -> Iterator[Cell]:
    """Every cell, by the rows of ``bench kernels --device cuda``."""
    found = {(r["kernel"], tuple(r["shape"]), r["dtype"]): r for r in rows if "missing" not in r}
    for goal in goals:
        for shape in goal.shapes:
            for tokens in goal.tokens:
                for kind in goal.kinds:
                    yield _cell(goal, Case(*shape, tokens).shape, kind, found)


def _cell(goal: Goal, shape: tuple[int, int, int], kind: str, found: dict[Any, dict[str, Any]]) -> Cell:
    row, base = found.get((goal.format, shape, kind)), found.get((BASELINE, shape, kind))
    if row is None or base is None:
        return Cell(goal, shape, kind, None, None, None, f"{NOT_JUDGED}: did not run")
    reached = 1 / row["ratio_to"][BASELINE]
    ratios = {name: 1 / row["ratio_to"][name] for name in goal.peers if name in row["ratio_to"]}
    peer = min(ratios, key=ratios.__getitem__, default=None)
    unsure = next((r["judged"] for r in (row, base) if r["judged"] is not True), None)
    verdict = unsure or (MET if reached >= goal.least else MISSED)
    return Cell(goal, shape, kind, reached, peer, ratios.get(peer), verdict)


def summary(rows: Sequence[dict[str, Any]], goals: Sequence[Goal] = GOALS) -> str:
    """The table of cells, the share that met its goal, and the share at least as fast as every peer."""
    cells = list(judge(rows, goals))
    judged = [cell for cell in cells if not cell.verdict.startswith(NOT_JUDGED)]
    met = sum(cell.verdict == MET for cell in judged)
    raced = [cell for cell in judged if cell.beside_peer is not None]
    ahead = sum(cell.beside_peer >= 1.0 for cell in raced)
    told = [
        f"goals met in {_share(met, len(judged))} cells judged, {ASKED:.0%} asked; {len(cells)} in all",
        f"no slower than the best peer in {_share(ahead, len(raced))} cells, {ASKED_OF_PEERS:.0%} asked",
    ]
    return "\n".join([f"\n{format_table([_shown(cell) for cell in cells])}", *told])


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.0%})" if whole else "0 of 0"


def _shown(cell: Cell) -> dict[str, Any]:
    tokens, columns, rows = cell.shape
    return {
        "kernel": cell.goal.format,
        "x": cell.kind,
        "M": tokens,
        "K x N": f"{columns} x {rows}",
        f"times faster than {BASELINE}": None if cell.reached is None else f"{cell.reached:.2f}",
        "goal": f">= {cell.goal.least:.1f}",
        "verdict": cell.verdict,
        "best peer": cell.peer,
        "times faster than it": None if cell.beside_peer is None else f"{cell.beside_peer:.2f}",
    }

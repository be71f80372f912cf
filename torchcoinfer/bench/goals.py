"""Which cells of the goal table a run hit, missed, or could not judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torchcoinfer.bench import timing
from torchcoinfer.bench.cases import Case
from torchcoinfer.bench.formats import label
from torchcoinfer.bench.goal_table import FLOOR, FOUR_BIT_PEERS, GOALS, SHAPES, Goal
from torchcoinfer.bench.peers import FOUR_BIT
from torchcoinfer.report import format_table

HIT, MISS, NOT_JUDGED = "hit", "MISS", "not judged"


@dataclass(frozen=True)
class Wanted:
    """What a case of the goal table needs: (format, dtype of x) pairs and peers."""

    formats: tuple[tuple[str, str], ...]
    peers: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One goal at one shape, number of rows and dtype of x, as a run left it.

    ``reached`` is a ratio of times, or against the floor a share of it; None where a side is missing.
    """

    goal: Goal
    kernel: str
    shape: tuple[int, int, int]
    reached: float | None
    peer: str
    verdict: str
    stretch: bool


def table() -> tuple[Goal, ...]:
    """The goals for this machine's instruction set."""
    return GOALS["amx" if "amx_int8" in timing.cpu_flags() else "avx512"]


def cases() -> list[Case]:
    """Every shape and number of rows that the table names."""
    tokens = sorted({count for goal in table() for count in goal.tokens})
    return [Case(rows, columns, count) for rows, columns in SHAPES for count in tokens]


def contenders(case: Case) -> Wanted:
    """What has to run for the goals of one case."""
    goals = [goal for goal in table() if case.tokens in goal.tokens]
    named: list[str] = []
    for goal in goals:
        if goal.against != FLOOR:
            named += FOUR_BIT if goal.against == FOUR_BIT_PEERS else [goal.against]
    formats = ((goal.format, activation) for goal in goals for activation in goal.activations)
    return Wanted(tuple(dict.fromkeys(formats)), tuple(dict.fromkeys(named)))


def judge(rows: Sequence[dict[str, Any]]) -> Iterator[Cell]:
    """Every cell of the table whose kernel is among the rows of ``bench kernels``."""
    measured = {(row["kernel"], tuple(row["shape"])): row for row in rows if "missing" not in row}
    for goal in table():
        for activation in goal.activations:
            for case in cases():
                row = measured.get((label(goal.format, activation), case.shape))
                if case.tokens in goal.tokens and row is not None:
                    yield _cell(goal, row, case)


def _cell(goal: Goal, row: dict[str, Any], case: Case) -> Cell:
    if goal.against == FLOOR:
        peer, reached, reason = FLOOR, row["fraction_of_memory_floor"], row["bandwidth_not_judged"]
    else:
        names = FOUR_BIT if goal.against == FOUR_BIT_PEERS else (goal.against,)
        ratios = {name: row["ratio_to"][name] for name in names if name in row["ratio_to"]}
        peer = max(ratios, key=ratios.__getitem__, default=goal.against)  # the fastest has the largest ratio
        reached, reason = ratios.get(peer), row["ratio_not_judged"].get(peer)
    verdict = _verdict(goal, reached, reason if row["judged"] is True else row["judged"])
    stretch = verdict == HIT and goal.stretch is not None and _meets(goal, reached, goal.stretch)
    return Cell(goal, row["kernel"], case.shape, reached, peer, verdict, stretch)


def _verdict(goal: Goal, reached: float | None, reason: str | None) -> str:
    if reached is None:
        return f"{NOT_JUDGED}: the peer is missing"
    if reason is not None:
        return reason if reason.startswith(NOT_JUDGED) else f"{NOT_JUDGED}: {reason}"
    return HIT if _meets(goal, reached, goal.goal) else MISS


def _meets(goal: Goal, reached: float, limit: float) -> bool:
    return reached >= limit if goal.against == FLOOR else reached <= limit


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """The table of cells and the share of hits, as text."""
    cells = list(judge(rows))
    judged = [cell for cell in cells if not cell.verdict.startswith(NOT_JUDGED)]
    hits = sum(cell.verdict == HIT for cell in judged)
    with_stretch = [cell for cell in judged if cell.goal.stretch is not None]
    told = f"goals met in {hits} of {len(judged)} cells judged ({len(cells)} in all)"
    if judged:
        told += f" = {100 * hits / len(judged):.0f} %"
    told += f"; stretch in {sum(cell.stretch for cell in with_stretch)} of {len(with_stretch)}"
    return f"\n{format_table([_shown(cell) for cell in cells])}\n{told}"


def _shown(cell: Cell) -> dict[str, Any]:
    sign, form = (">=", "{:.0%}") if cell.goal.against == FLOOR else ("<=", "{:.2f}x")
    tokens, columns, rows = cell.shape
    return {
        "kernel": cell.kernel,
        "M": tokens,
        "K x N": f"{columns} x {rows}",
        "against": cell.peer,
        "reached": None if cell.reached is None else form.format(cell.reached),
        "goal": f"{sign} {form.format(cell.goal.goal)}",
        "stretch": None if cell.goal.stretch is None else f"{sign} {form.format(cell.goal.stretch)}",
        "verdict": cell.verdict + (", stretch" if cell.stretch else ""),
    }

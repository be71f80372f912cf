"""Parametric minimum cuts: bytes on the link against work on the device (candidate cuts)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array


@dataclass(frozen=True)
class Edge:
    """A tensor: its bytes, the unit that makes it (None: a model input), the units that read it."""

    nbytes: float
    producer: int | None
    consumers: tuple[int, ...]
    output: bool  # an output of the model: it crosses whenever it is made on the device


def _linear_program(work: np.ndarray, edges: Sequence[Edge]) -> tuple[coo_array, np.ndarray]:
    """Rows ``A x <= b`` over x = (unit on the device, tensor crosses); the matrix is totally unimodular."""
    rows: list[tuple[dict[int, float], float]] = []
    for t, edge in enumerate(edges):
        crosses = len(work) + t
        for consumer in edge.consumers:
            if edge.producer is None:
                rows.append(({consumer: -1.0, crosses: -1.0}, -1.0))
            else:
                rows.append(({edge.producer: 1.0, consumer: -1.0, crosses: -1.0}, 0.0))
                rows.append(({consumer: 1.0, edge.producer: -1.0}, 0.0))
        if edge.output and edge.producer is not None:
            rows.append(({edge.producer: 1.0, crosses: -1.0}, 0.0))
    entries = [(r, column, value) for r, (row, _) in enumerate(rows) for column, value in row.items()]
    r, c, v = (np.array(part) for part in zip(*entries, strict=True))
    return coo_array((v, (r, c)), shape=(len(rows), len(work) + len(edges))), np.array([b for _, b in rows])


def parametric_minimum_closures(work: Sequence[float], edges: Sequence[Edge]) -> list[frozenset[int]]:
    """All sets of device units on the lower convex hull of (work on the device, bytes that cross).

    The minimum of ``bytes + slope * work`` over sets closed under predecessors is one minimum cut; all
    breakpoints in ``slope`` come from intersecting the lines of neighboring solutions (Eisner and Severance,
    1976), from the empty set to the set of all units, in this order.
    """
    load = np.asarray(work, dtype=np.float64)
    if not len(load) or not edges:
        return [frozenset(), frozenset(range(len(load)))]
    load = load / max(load.sum(), 1e-300) + 1.0 / len(load)  # a model without arithmetic still has an order
    nbytes = np.array([edge.nbytes for edge in edges], dtype=np.float64)
    nbytes = nbytes / max(nbytes.sum(), 1e-300)
    matrix, right = _linear_program(load, edges)

    def line(units: frozenset[int]) -> tuple[float, float]:
        crossing = [
            b for b, e in zip(nbytes, edges, strict=True)
            if (e.producer is None or e.producer in units) and (
                any(c not in units for c in e.consumers) or (e.output and e.producer is not None))
        ]  # fmt: skip
        return sum(crossing), float(load[sorted(units)].sum())

    def between(low: frozenset[int], high: frozenset[int], depth: int) -> list[frozenset[int]]:
        (bytes_low, work_low), (bytes_high, work_high) = line(low), line(high)
        if depth == 0 or work_high <= work_low:
            return []
        slope = (bytes_low - bytes_high) / (work_high - work_low)
        cost = np.concatenate([slope * load, nbytes])
        solution = linprog(cost, A_ub=matrix.tocsr(), b_ub=right, bounds=(0.0, 1.0), method="highs-ds")
        middle = frozenset(np.flatnonzero(solution.x[: len(load)] > 0.5).tolist())
        bytes_middle, work_middle = line(middle)
        if bytes_middle + slope * work_middle >= (bytes_low + slope * work_low) - 1e-9:
            return []
        return [*between(low, middle, depth - 1), middle, *between(middle, high, depth - 1)]

    empty, full = frozenset(), frozenset(range(len(load)))
    return [empty, *between(empty, full, 8), full]

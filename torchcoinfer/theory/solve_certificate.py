"""What can be said of a plan's own cut, clocks and power without branching: the Lagrangian dual, and by the
theorem of Shapley and Folkman how far below the optimum it can lie.

For a sum of decisions under R rows the gap between optimum and dual is at most the sum of the R + 1 largest
nonconvexities rho_l (so at most (R + 1) times the largest), where rho_l is the largest vertical distance
between a decision's staircase r -> min{E(o): cost(o) <= r} and its lower convex hull (Bertsekas, "Constrained
Optimization and Lagrange Multiplier Methods", section 5.6.1). With several rows that holds only where every
mixture of options costs at least as much as one of them in every row: otherwise nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from torchcoinfer.theory.solve_dual import make_knapsacks
from torchcoinfer.theory.solve_milp import relaxation_multipliers
from torchcoinfer.theory.solve_plan import Certificate
from torchcoinfer.theory.solve_table import Table

CORNER_LIMIT = 400  # corners of a staircase; beyond it the decision's whole span stands for its nonconvexity
DIRECTIONS, SLOPES = 16, 24  # supporting planes of a hull in several rows: any of them bounds it from below


def certificate(table: Table, objective: str, limits: Mapping[str, float], pair: int) -> Certificate | None:
    """The Lagrangian dual of a pair (cut, clocks and power), recomputed in float64 at multipliers of its
    linear relaxation, and the Shapley-Folkman gap; None if the relaxation has no multipliers."""
    knapsacks = make_knapsacks(table, objective, limits)
    costs, rows = knapsacks.pair_costs(pair)
    slack, coupled = knapsacks.slack[pair], table.coupled[table.pair_cut[pair]]
    m = relaxation_multipliers(costs, rows, slack, coupled)
    if m is None:
        return None
    scores = np.tensordot(m, rows, 1) + costs
    items = scores.argmin(axis=1) if coupled is None else coupled.minimum(scores[:, :, None])[:, 0]
    least = scores[np.arange(len(items)), items].sum()
    dual = float(least - m @ slack + knapsacks.objective_constant[pair])
    if coupled is not None:
        return Certificate(dual, None, "coupled decisions have no staircase of their own")
    gap = shapley_folkman(costs, rows)
    why = None if np.isfinite(gap) else "some decision has no option that is the least in every row"
    return Certificate(dual, gap if why is None else None, why)


def shapley_folkman(costs: np.ndarray, rows: np.ndarray) -> float:
    """Sum of the R + 1 largest nonconvexities; inf where the theorem says nothing.

    Args:
        costs: [G, I] objective of each item, +inf where there is none. rows: [R, G, I].
    """
    own = []
    for g in range(len(costs)):
        there = np.isfinite(costs[g])
        own.append(nonconvexity(costs[g, there], rows[:, g, there]))
    return float(sum(sorted(own, reverse=True)[: len(rows) + 1]))


def nonconvexity(costs: np.ndarray, rows: np.ndarray) -> float:
    """Largest distance of the staircase r -> min{costs[i]: rows[:, i] <= r} to its lower convex hull.

    Exact for one row. For more, an upper bound: the hull is bounded from below by some of its supporting
    planes. inf: where some mixture of items lies below every single item in some row.

    Args:
        costs: [I]. rows: [R, I].
    """
    kept = _undominated(costs, rows)
    costs, rows = costs[kept], rows[:, kept]
    if len(costs) == 1 or not len(rows):
        return 0.0
    span = np.maximum(np.ptp(rows, axis=1), 1e-300)
    rows = (rows - rows.min(axis=1, keepdims=True)) / span[:, None]
    planes = _planes(costs, rows)  # [M, R]
    heights = (costs + planes @ rows).min(axis=1)  # [M]
    corners, worst = np.full((1, len(rows)), np.inf), 0.0
    for i in range(len(costs)):  # ascending in cost: beyond the items before i nothing costs less than i
        hull = (heights - np.minimum(corners, 1.0) @ planes.T).max(axis=1)
        worst = max(worst, float((costs[i] - hull).max()))
        corners = _cut_corners(corners, rows[:, i])
        if not len(corners):
            return worst
        if len(corners) > CORNER_LIMIT:
            least = (rows <= 0.0).all(axis=0)
            return float(costs[least].min() - costs.min()) if least.any() else np.inf
    return np.inf


def _undominated(costs: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Indices, ascending in cost, of the items that no other beats in cost and every row."""
    order, kept = np.lexsort((rows.sum(axis=0), costs)), []
    for i in order.tolist():
        if not any((rows[:, j] <= rows[:, i]).all() for j in kept):
            kept.append(i)
    return np.array(kept)


def _planes(costs: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """[M, R] slopes >= 0 of supporting planes; for one row all slopes that its hull can have."""
    if len(rows) == 1:
        rise, run = costs[:, None] - costs[None], rows[0][None] - rows[0][:, None]
        slopes = (rise[run > 0] / run[run > 0])[:, None]
        return np.concatenate([np.zeros((1, 1)), slopes[slopes[:, 0] > 0]])
    rng = np.random.default_rng(0)
    mixed = rng.dirichlet(np.full(len(rows), 0.5), DIRECTIONS)
    directions = np.concatenate([np.eye(len(rows)), np.ones((1, len(rows))), mixed])
    steps = np.ptp(costs) * 10.0 ** np.linspace(-4, 3, SLOPES)
    slopes = (steps[:, None, None] * directions).reshape(-1, len(rows))
    return np.concatenate([np.zeros((1, len(rows))), slopes])


def _cut_corners(corners: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Upper corners of the region that no item so far covers, once ``item`` covers everything above it."""
    inside = (corners > item).all(axis=1)
    pieces = [corners[~inside]]
    for r in np.flatnonzero(item > 0.0):  # nothing lies below the least value of a row
        piece = corners[inside].copy()
        piece[:, r] = item[r]
        pieces.append(piece)
    found = np.unique(np.concatenate(pieces), axis=0)
    covered = (found[:, None, :] <= found[None, :, :]).all(axis=2).sum(axis=1) > 1
    return found[~covered]

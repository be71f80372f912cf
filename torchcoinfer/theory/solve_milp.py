"""HiGHS behind two functions: the linear relaxation of a multiple-choice knapsack, and its exact solution.

HiGHS' tolerances are absolute (gap 0 was reported 21-181 % above the optimum), so callers pass
rows with right sides of about 1, the objective is scaled here, and nothing that HiGHS says about objective or
feasibility is used without being recomputed by the caller.
"""

from __future__ import annotations

from dataclasses import dataclass

import highspy
import numpy as np
from scipy.sparse import csc_array

from torchcoinfer.errors import TorchCoinferError
from torchcoinfer.theory.couplings import Coupled

OBJECTIVE_SCALE = 1e3
ROW_TOLERANCE = 1e-9  # scaled rows are relaxed by this; the caller re-checks them exactly
NODE_LIMIT = 200_000


class SolverError(TorchCoinferError, RuntimeError):
    """HiGHS stopped for a reason that is neither optimality, infeasibility nor the node limit."""


@dataclass(frozen=True)
class MilpResult:
    """``items`` [G], None if nothing feasible was found; ``bound``: lower bound in the caller's objective
    units."""

    items: np.ndarray | None
    bound: float
    finished: bool  # False: the node limit was met


def _model(
    objective: np.ndarray,
    rows: np.ndarray,
    slack: np.ndarray,
    kept: np.ndarray,
    excluded: list[np.ndarray],
    integer: bool,
    relaxed: np.ndarray | None = None,
    coupled: Coupled | None = None,
) -> tuple[highspy.HighsLp, np.ndarray, np.ndarray]:
    """Columns are the kept items; rows: one equality a decision, the knapsack rows, a cut for each excluded
    plan.

    With ``relaxed`` [R] of 0 and 1 there is one more column, the violation v >= 0: it is the objective, and
    is taken off the rows marked 1. With ``coupled`` two rows = 0 for each value that two decisions share.
    """
    group, item = np.nonzero(kept)
    columns, groups = len(group), kept.shape[0]
    dense = np.concatenate([rows[:, group, item], np.zeros((len(excluded), columns))])
    for k, plan in enumerate(excluded):
        dense[len(rows) + k] = item == plan[group]
    links = [] if coupled is None else coupled.links()
    linked = [one[group, item].astype(float) - other[group, item] for one, other in links]
    equal = np.array(linked).reshape(len(links), columns)
    dense = np.concatenate([dense, equal, -equal])
    padding = len(excluded) + 2 * len(links)
    cost, upper = objective[group, item], np.ones(columns)
    if relaxed is not None:
        violation = np.concatenate([-relaxed, np.zeros(padding)])
        dense = np.concatenate([dense, violation[:, None]], axis=1)
        cost, upper = np.concatenate([np.zeros(columns), [1.0]]), np.concatenate([upper, [highspy.kHighsInf]])
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(cost), groups + len(dense)
    lp.col_cost_ = cost
    lp.col_lower_, lp.col_upper_ = np.zeros(len(cost)), upper
    right = np.concatenate(
        [
            slack + ROW_TOLERANCE * np.maximum(1.0, np.abs(slack)),
            np.full(len(excluded), groups - 1.0),
            np.zeros(2 * len(links)),
        ]
    )
    lp.row_lower_ = np.concatenate([np.ones(groups), np.full(len(dense), -highspy.kHighsInf)])
    lp.row_upper_ = np.concatenate([np.ones(groups), right])
    below, column = np.nonzero(dense)
    at = np.concatenate([group, groups + below]), np.concatenate([np.arange(columns), column])
    entries = np.concatenate([np.ones(columns), dense[below, column]])
    matrix = csc_array((entries, at), shape=(lp.num_row_, lp.num_col_))
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = matrix.indptr, matrix.indices, matrix.data
    if integer:
        continuous = [highspy.HighsVarType.kContinuous] * (len(cost) - columns)
        lp.integrality_ = [highspy.HighsVarType.kInteger] * columns + continuous
    return lp, group, item


def run_highs(lp: highspy.HighsLp, gap: float, start: np.ndarray | None = None) -> highspy.Highs:
    """One thread, fixed seed, tight tolerances, no time limit: equal models give equal answers."""
    solver = highspy.Highs()
    for name, value in (
        ("output_flag", False), ("threads", 1), ("random_seed", 0),
        ("mip_rel_gap", gap), ("mip_abs_gap", 1e-9),
        ("mip_feasibility_tolerance", 1e-9), ("primal_feasibility_tolerance", 1e-9),
        ("dual_feasibility_tolerance", 1e-9), ("mip_max_nodes", NODE_LIMIT),
    ):  # fmt: skip
        solver.setOptionValue(name, value)
    solver.passModel(lp)
    if start is not None:
        solution = highspy.HighsSolution()
        solution.col_value = start.tolist()
        solver.setSolution(solution)
    solver.run()
    return solver


def relaxation_multipliers(
    objective: np.ndarray, rows: np.ndarray, slack: np.ndarray, coupled: Coupled | None = None
) -> np.ndarray | None:
    """Multipliers [R] >= 0 of the knapsack rows at the optimum of the linear relaxation; None: it is
    infeasible.

    Args:
        objective: [G, I], +inf where there is no item. rows: [R, G, I]; slack: [R].
    """
    kept = np.isfinite(objective)
    spread = float(np.ptp(objective[kept])) or 1.0
    lp, _, _ = _model(objective / spread, rows, slack, kept, [], integer=False, coupled=coupled)
    solver = run_highs(lp, 0.0)
    status = solver.getModelStatus()
    if status == highspy.HighsModelStatus.kInfeasible:
        return None
    if status != highspy.HighsModelStatus.kOptimal:
        raise SolverError("HiGHS could not solve a linear relaxation", got=solver.modelStatusToString(status))
    duals = np.array(solver.getSolution().row_dual)[kept.shape[0] :][: len(rows)]
    return np.maximum(-duals, 0.0) * spread


def solve_knapsack(
    objective: np.ndarray,
    rows: np.ndarray,
    slack: np.ndarray,
    kept: np.ndarray,
    gap: float,
    magnitude: float,
    excluded: list[np.ndarray],
    start: np.ndarray | None = None,
    coupled: Coupled | None = None,
) -> MilpResult:
    """Least objective with one kept item a decision under the rows, to a relative gap.

    Args:
        kept: [G, I] items still possible. magnitude: about the optimum's size; it is scaled to 1e3.
        excluded: plans [G] to leave out (they broke a row when recomputed exactly).
        start: a plan [G] to start from.
    """
    scale = OBJECTIVE_SCALE / magnitude if magnitude > 0 else 1.0
    lp, group, item = _model(objective * scale, rows, slack, kept, excluded, integer=True, coupled=coupled)
    first = None if start is None else (item == start[group]).astype(np.float64)
    return _finish(run_highs(lp, gap, first), kept, group, item, scale)


def solve_violation(
    rows: np.ndarray,
    slack: np.ndarray,
    kept: np.ndarray,
    relaxed: np.ndarray,
    gap: float,
    coupled: Coupled | None = None,
) -> MilpResult:
    """Least v >= 0 such that some plan keeps ``rows <= slack + v * relaxed``; ``bound`` bounds v from
    below."""
    zeros = np.zeros(kept.shape)
    lp, group, item = _model(zeros, rows, slack, kept, [], integer=True, relaxed=relaxed, coupled=coupled)
    lp.col_cost_ = np.asarray(lp.col_cost_) * OBJECTIVE_SCALE
    return _finish(run_highs(lp, gap), kept, group, item, OBJECTIVE_SCALE)


def _finish(
    solver: highspy.Highs, kept: np.ndarray, group: np.ndarray, item: np.ndarray, scale: float
) -> MilpResult:
    status, info = solver.getModelStatus(), solver.getInfo()
    if status == highspy.HighsModelStatus.kInfeasible:
        return MilpResult(None, np.inf, True)
    limited = status in (highspy.HighsModelStatus.kSolutionLimit, highspy.HighsModelStatus.kIterationLimit)
    if status != highspy.HighsModelStatus.kOptimal and not limited:
        raise SolverError("HiGHS could not solve a knapsack", got=solver.modelStatusToString(status))
    found = None
    if info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible:
        share = np.full(kept.shape, -1.0)
        share[group, item] = solver.getSolution().col_value[: len(group)]
        found = share.argmax(axis=1)
    return MilpResult(found, info.mip_dual_bound / scale, not limited)

"""Linear forms by column, and the program that HiGHS gets of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import highspy
import numpy as np
from scipy.sparse import csr_array

from torchcoinfer.theory.solve_milp import ROW_TOLERANCE


class Expression(dict):
    """Linear form: column -> coefficient, and a constant under None."""

    def add(self, column: int | None, value: float) -> None:
        if value:
            self[column] = self.get(column, 0.0) + value


def linear_program(
    cost: Mapping[int | None, float],
    forms: Sequence[tuple[Mapping[int | None, float], float]],
    upper: Sequence[float],
    integer: Sequence[bool],
    scale: float,
) -> highspy.HighsLp:
    """Least ``scale * cost`` over columns in [0, upper] under ``form <= right side``, each row scaled to a
    right side of about 1. Constants of the cost are left out."""
    lp, columns = highspy.HighsLp(), len(upper)
    lp.num_col_, lp.num_row_ = columns, len(forms)
    costs = np.zeros(columns)
    for column, value in cost.items():
        if column is not None:
            costs[column] = value * scale
    entries, right = [], np.empty(len(forms))
    for r, (form, limit) in enumerate(forms):
        size = max((abs(v) for c, v in form.items() if c is not None), default=1.0) or 1.0
        size = max(size, abs(limit)) if limit else size
        right[r] = (limit - form.get(None, 0.0)) / size
        right[r] += ROW_TOLERANCE * max(1.0, abs(right[r]))
        entries += [(r, c, v / size) for c, v in form.items() if c is not None]
    r, c, v = (np.array(part) for part in zip(*entries, strict=True))
    matrix = csr_array((v, (r, c)), shape=(len(forms), columns))
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = costs, np.zeros(columns), np.array(upper)
    lp.row_lower_, lp.row_upper_ = np.full(len(right), -highspy.kHighsInf), right
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_, lp.a_matrix_.index_ = matrix.indptr, matrix.indices
    lp.a_matrix_.value_ = matrix.data
    kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
    lp.integrality_ = [kinds[flag] for flag in integer]
    return lp

"""Placement inside the integer program: graphs with up to 64 units and too many frontiers to enumerate.

One binary a unit says whether it runs on the device (no edge from the server back); options, crossing tensors
and their bits are decided with it. Clocks and power are relaxed to the best of all states in every
coefficient, so the program proposes a frontier and proves a bound: the frontier is then solved exactly as any
cut, excluded, and the next one asked for, until the bound meets the incumbent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import highspy
import numpy as np

from torchcoinfer.theory.graph import Cut, GraphIndex, make_cut
from torchcoinfer.theory.solve_linear import Expression, linear_program
from torchcoinfer.theory.solve_milp import OBJECTIVE_SCALE, run_highs
from torchcoinfer.theory.solve_problem import Problem
from torchcoinfer.theory.solve_table import (
    BASE,
    DB,
    DC,
    DS,
    ROWS,
    SB,
    SC,
    SS,
    WIRE,
    E,
    layer_decisions,
    optimistic_rows,
)  # fmt: skip

UNIT_LIMIT = 64  # more units: candidate cuts only


@dataclass
class Proposal:
    """``cut`` None: nothing is left. ``bound``: of every frontier that was not excluded."""

    cut: Cut | None
    bound: float


class Placement:
    """The integer program over all frontiers but "device" and "server" (those are always candidates)."""

    def __init__(self, problem: Problem, objective: str, limits: Mapping[str, float], magnitude: float):
        self.problem, self.index = problem, GraphIndex(problem.graph)
        self.upper: list[float] = []
        self.integer: list[bool] = []
        self.rows: list[tuple[dict[int | None, float], float]] = []  # form <= right side
        self.base = [Expression() for _ in BASE]
        self.columns: dict[str, list[int]] = {}  # layer or tensor -> a column an option
        self.unit = [self._column(True) for _ in problem.graph.units]
        self._row(dict.fromkeys(self.unit, 1.0), len(self.unit) - 1.0)
        self._row(dict.fromkeys(self.unit, -1.0), -1.0)
        for i, mask in enumerate(self.index.predecessors):
            for p in range(i):
                if mask >> p & 1:
                    self._row({self.unit[i]: 1.0, self.unit[p]: -1.0}, 0.0)
        self._fixed_units()
        self._layers()
        self.bits_form, self.numel_form = Expression(self.base[DB]), Expression()
        self._parameters()
        self.crossing = self._tensors()
        self._couplings()
        self._limits(objective, limits, magnitude)

    def _column(self, integer: bool) -> int:
        self.upper.append(1.0)
        self.integer.append(integer)
        return len(self.upper) - 1

    def _row(self, form: Mapping[int | None, float], right: float) -> None:
        self.rows.append((dict(form), right))

    def _equal(self, form: Mapping[int | None, float], right: float) -> None:
        self._row(form, right)
        self._row({column: -value for column, value in form.items()}, -right)

    def _fixed_units(self) -> None:
        for i, unit in enumerate(self.problem.graph.units):
            for loads, cycles, seconds, here in (
                (self.problem.fixed_device, DC, DS, True),
                (self.problem.fixed_server, SC, SS, False),
            ):
                load = loads.get(unit.name)
                for k, value in ((cycles, load.cycles), (seconds, load.seconds)) if load else ():
                    self.base[k].add(self.unit[i], value if here else -value)
                    self.base[k].add(None, 0.0 if here else value)

    def _layers(self) -> None:
        """x: option of a decision; w: the same on the device, one a unit. Sum of w = unit, w <= x."""
        for names in layer_decisions(self.problem):
            choices = self.problem.choices[names[0]]
            x = [self._column(True) for _ in choices]
            self._equal(dict.fromkeys(x, 1.0), 1.0)
            self.columns.update(dict.fromkeys(names, x))
            for name in names:
                units = [i for i, unit in enumerate(self.problem.graph.units) if unit.layer == name]
                w = {i: [self._column(False) for _ in choices] for i in units}
                for i in units:
                    self._equal({**dict.fromkeys(w[i], 1.0), self.unit[i]: -1.0}, 0.0)
                for c, choice in enumerate(self.problem.choices[name]):
                    self.base[E].add(x[c], choice.distortion)
                    here = self._any([{w[i][c]: 1.0} for i in units])
                    there = self._any([{x[c]: 1.0, w[i][c]: -1.0} for i in units])
                    for column, value in here.items():
                        self.base[DB].add(column, value * choice.packed_bytes)
                    for column, value in there.items():
                        self.base[SB].add(column, value * choice.packed_bytes)
                    for k, i in enumerate(units):
                        self._row({w[i][c]: 1.0, x[c]: -1.0}, 0.0)
                        self.base[DC].add(w[i][c], choice.device[k].cycles)
                        self.base[DS].add(w[i][c], choice.device[k].seconds)
                        for column, sign in ((x[c], 1.0), (w[i][c], -1.0)):
                            self.base[SC].add(column, sign * choice.server[k].cycles)
                            self.base[SS].add(column, sign * choice.server[k].seconds)

    def _any(self, forms: Sequence[Mapping[int | None, float]]) -> Mapping[int | None, float]:
        """A form that is 1 if any of ``forms`` is: the form itself, or a new column above all of them."""
        if len(forms) <= 1:
            return forms[0] if forms else {}
        column = self._column(False)
        for form in forms:
            self._row({**form, column: -1.0}, 0.0)
        return {column: 1.0}

    def _parameters(self) -> None:
        """Bytes of uncompressed parameters on either side, and parameters on the device (for bits a
        weight)."""
        graph = self.problem.graph
        readers: dict[tuple[str, str], list[int]] = {}
        for i, unit in enumerate(graph.units):
            for name in unit.parameters:
                readers.setdefault(("parameter", name), []).append(i)
            if unit.layer is not None:
                readers.setdefault(("layer", unit.layer), []).append(i)
        numel = {layer.name: layer.numel for layer in graph.layers}
        for (kind, name), units in readers.items():
            here = self._any([{self.unit[i]: 1.0} for i in units])
            if kind == "parameter":
                for column, value in here.items():
                    self.base[DB].add(column, value * graph.parameters[name])
                    self.bits_form.add(column, value * graph.parameters[name])
                there = self._any([{None: 1.0, self.unit[i]: -1.0} for i in units])
                for column, value in there.items():
                    self.base[SB].add(column, value * graph.parameters[name])
            if len(units) > 1:  # counted as present only if some unit is
                present = self._column(True)
                self._row({present: 1.0, **{self.unit[i]: -1.0 for i in units}}, 0.0)
            else:
                present = self.unit[units[0]]
            self.numel_form.add(
                present, float(numel[name] if kind == "layer" else graph.parameter_numel[name])
            )

    def _tensors(self) -> dict[str, int]:
        """Crossing of each tensor (made here, read there, or an output made here) and its bits."""
        graph, crossing = self.problem.graph, {}
        for name in graph.tensors:
            producer, consumers = self.index.producer.get(name), self.index.consumers[name]
            if not consumers and name not in graph.outputs:
                continue
            crosses = crossing[name] = self._column(False)
            made = {None: 1.0} if producer is None else {self.unit[producer]: 1.0}
            for consumer in consumers:
                self._row({**made, self.unit[consumer]: -1.0, crosses: -1.0}, 0.0)
            if name in graph.outputs:
                self._row({**made, crosses: -1.0}, 0.0)
            options = self.problem.cut_options[name]
            chosen = [self._column(True) for _ in options]
            self._equal({**dict.fromkeys(chosen, 1.0), crosses: -1.0}, 0.0)
            self.columns[name] = chosen
            for column, option in zip(chosen, options, strict=True):
                self.base[E].add(column, option.distortion)
                self.base[WIRE].add(column, float(option.wire_bytes))
        return crossing

    def _couplings(self) -> None:
        """One binary a value: of a layer exactly its items are chosen, of a tensor that crosses no others."""
        for coupling in self.problem.couplings:
            values: dict[Any, int] = {}
            for name, attribute in coupling.members:
                layer = name in self.problem.choices
                own = (
                    [c.option for c in self.problem.choices[name]]
                    if layer
                    else self.problem.cut_options[name]
                )
                forms: dict[Any, dict[int | None, float]] = {}
                for column, option in zip(self.columns.get(name, ()), own, strict=False):
                    forms.setdefault(getattr(option, attribute), {})[column] = 1.0
                for value, form in forms.items():
                    if value not in values:
                        values[value] = self._column(True)
                    (self._equal if layer else self._row)({**form, values[value]: -1.0}, 0.0)
                for value in set(values) - set(forms) if layer else ():
                    self._row({values[value]: 1.0}, 0.0)
            self._equal(dict.fromkeys(values.values(), 1.0), 1.0)

    def _live(self, step: int, here: bool) -> Expression:
        """Bytes of the tensors that are live at a step of one side (exact, see ``peak_activation_bytes``).

        On the device: made at or before the step, and read at or after it, by whichever side, or crossing;
        what is read from before the step on the server waits there to the end.
        """
        graph, form = self.problem.graph, Expression()
        for name, tensor in graph.tensors.items():
            producer = self.index.producer.get(name)
            last = len(graph.units) if name in graph.outputs else max(self.index.consumers[name], default=-1)
            crosses = self.crossing.get(name)
            if producer is None:
                if here:
                    form.add(None, float(tensor.nbytes) if name in graph.inputs else 0.0)
                elif crosses is not None:
                    form.add(crosses, float(tensor.nbytes))
            elif here:
                if producer <= step <= max(last, producer):
                    form.add(self.unit[producer], float(tensor.nbytes))
                elif producer <= step and crosses is not None:
                    form.add(crosses, float(tensor.nbytes))
            else:
                if producer <= step <= max(last, producer):
                    form.add(None, float(tensor.nbytes))
                    form.add(self.unit[producer], -float(tensor.nbytes))
                if crosses is not None:
                    form.add(crosses, float(tensor.nbytes))
        return form

    def _limits(self, objective: str, limits: Mapping[str, float], magnitude: float) -> None:
        coefficients, extra = optimistic_rows(self.problem, {*limits, objective})
        for name, limit in limits.items():
            if name == "device_bits_per_weight":
                form = {column: 8.0 * value for column, value in self.bits_form.items()}
                form = Expression(form)
                for column, value in self.numel_form.items():
                    form.add(column, -limit * value)
                self._row(form, 0.0)
                continue
            form = self._form(coefficients[ROWS.index(name)], extra[ROWS.index(name)])
            steps = range(len(self.unit)) if name in ("device_memory", "server_memory") else ()
            for total in [form] if not steps else [self._with_live(form, i, name) for i in steps]:
                self._row(total, limit)
        o = ROWS.index(objective)
        self.cost = self._form(coefficients[o], extra[o])
        if objective in ("device_memory", "server_memory"):
            peak = self._column(False)
            self.upper[peak] = highspy.kHighsInf
            unit_bytes = max(float(sum(t.nbytes for t in self.problem.graph.tensors.values())), 1.0)
            for i in range(len(self.unit)):
                live = self._live(i, objective == "device_memory")
                self._row({**live, peak: -unit_bytes}, 0.0)
            self.cost.add(peak, unit_bytes)
        self.scale = OBJECTIVE_SCALE / magnitude if magnitude > 0 else 1.0

    def _with_live(self, form: Expression, step: int, name: str) -> Expression:
        total = Expression(form)
        for column, value in self._live(step, name == "device_memory").items():
            total.add(column, value)
        return total

    def _form(self, coefficients: np.ndarray, extra: float) -> Expression:
        form = Expression()
        for k, expression in enumerate(self.base):
            for column, value in expression.items():
                form.add(column, float(coefficients[k]) * value)
        form.add(None, float(extra))
        return form

    def exclude(self, cut: Cut) -> None:
        """No later proposal has exactly these units on the device."""
        here = set(cut.device)
        signs = {
            c: (1.0 if u.name in here else -1.0)
            for c, u in zip(self.unit, self.problem.graph.units, strict=True)
        }
        self._row(signs, len(here) - 1.0)

    def propose(self, gap: float) -> Proposal:
        """The frontier of the program's optimum, and its lower bound in the objective's own units."""
        lp = linear_program(self.cost, self.rows, self.upper, self.integer, self.scale)
        constant = self.cost.get(None, 0.0)
        solver = run_highs(lp, gap)
        info = solver.getInfo()
        if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
            return Proposal(None, np.inf)
        values = solver.getSolution().col_value
        units = self.problem.graph.units
        device = frozenset(u.name for c, u in zip(self.unit, units, strict=True) if values[c] > 0.5)
        return Proposal(make_cut(self.problem.graph, device), info.mip_dual_bound / self.scale + constant)

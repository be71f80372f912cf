"""One run of the pipeline: its table, its plans, and a plan applied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torchcoinfer.calibrate import Statistics, calibrate
from torchcoinfer.compress import apply_to_model
from torchcoinfer.errors import PlanError
from torchcoinfer.measure import Reference, Trials, curves, verdict
from torchcoinfer.measure.compensated import Compensated, score_compensated
from torchcoinfer.measure.feed_forward import worst_case_bound
from torchcoinfer.measure.score import Curves
from torchcoinfer.pipeline.border import Data
from torchcoinfer.provenance import model_hash, versions
from torchcoinfer.result import Result
from torchcoinfer.split import split
from torchcoinfer.theory.alternatives import explored
from torchcoinfer.theory.budget import Budget, Search, Workload
from torchcoinfer.theory.costs import DeviceProfile, LinkProfile
from torchcoinfer.theory.options import Option
from torchcoinfer.theory.plan import Plan
from torchcoinfer.theory.solve import Problem, build_problem, solve
from torchcoinfer.trace import Traced, trace

COMPENSATION_ROUNDS = 2  # the second serves layers whose choice moved beyond what the first had scored


@dataclass
class Run:
    """What every plan of one call shares."""

    traced: Traced
    statistics: Statistics
    judged: Reference | None
    table: Curves
    cut_table: Mapping[str, Any]
    device: DeviceProfile
    server: DeviceProfile
    link: LinkProfile
    workload: Workload
    search: Search
    examples: Any
    dynamic_shapes: Any
    progress: bool
    trials: Trials | None = None  # of rounding options, where the search asks for them
    compensated: Compensated = field(default_factory=Compensated)  # weights behind the table

    def problem(self, budget: Budget) -> Problem:
        return build_problem(
            self.traced.graph, curves.plain_points(self.table), self.cut_table, self.device, self.server,
            self.link, budget, self.search, self.workload,
        )  # fmt: skip

    def solved(self, budget: Budget) -> Plan:
        return solve(self.problem(budget))

    def signed(self, plan: Plan) -> Plan:
        """The plan with the marks of the model and the versions that it was made with."""
        marks = {
            "model_hash": model_hash(self.traced.model), "versions": versions(), "alpha": self.search.alpha,
        }  # fmt: skip
        return replace(plan, provenance={**plan.provenance, **marks})

    def planned(self, budget: Budget) -> Plan:
        """Solve on rounding to nearest; score error compensation where it matters and solve again, twice."""
        plan = self.solved(budget)
        for _ in range(COMPENSATION_ROUNDS if "obs" in self.search.algorithms else 0):
            if not self.compensate([plan]):
                break
            plan = self.solved(budget)
        return plan

    def compensate(self, plans: Iterable[Plan]) -> bool:
        """Adds error-compensated options to the table: those that rounding chose in any of the plans, and
        their neighbors. Returns whether there were any."""
        wanted: dict[str, dict[Option, None]] = {}
        for plan in plans:
            chosen = {name: row.option for name, row in plan.layers.items() if row.algorithm == "nearest"}
            for name, options in curves.survivors(self.traced, self.table, chosen).items():
                wanted.setdefault(name, {}).update(dict.fromkeys(options))
        options = {name: tuple(found) for name, found in wanted.items()}
        if options:
            more, made = score_compensated(
                self.traced, self.statistics, options, self.search, progress=self.progress
            )
            self.table = curves.merged(self.table, more)
            self.compensated.update(made)
        return bool(options)

    def applied(self, plan: Plan, details: Mapping[str, Any], rounds: int = 1) -> Result:
        self.compensated = Compensated()  # compression makes its own, on compressed inputs
        plan = explored(self.problem(Budget.from_dict(dict(plan.budget))), self.signed(plan))
        return apply(
            self.traced, self.statistics, self.judged, plan, self.examples, self.dynamic_shapes,
            self.workload, self.search, {**details, "curves": self.curve_rows(plan)}, self.progress, rounds,
            self.trials,
        )  # fmt: skip

    def curve_rows(self, plan: Plan) -> dict[str, list[dict[str, Any]]]:
        return {
            layer.name: curves.report_rows(
                self.traced, layer, self.table[layer.name], plan.layers[layer.name]
            )
            for layer in self.traced.graph.layers
        }


def statistics_of(traced: Traced, data: Data, search: Search, progress: bool) -> Statistics:
    return calibrate(
        traced,
        data.calibration,
        output=search.output,
        metric=search.metric,
        seed=search.seed,
        progress=progress,
    )


def apply(
    traced: Traced, statistics: Statistics, judged: Reference | None, plan: Plan, examples: Any,
    dynamic_shapes: Any, workload: Workload | None, search: Search, details: dict[str, Any], progress: bool,
    rounds: int = 1, trials: Trials | None = None,
) -> Result:  # fmt: skip
    """Compress, divide, measure: obeys the plan, and adds to it only what was measured."""
    compressed = apply_to_model(traced, plan.layers, statistics, progress=progress)
    _check_bytes(verdict.packed_bytes_of(compressed, traced, plan.layers), plan)
    divided = trace(compressed, examples, dynamic_shapes=dynamic_shapes, workload=workload)
    device, server = split(divided, plan.cut)
    result = Result(device, server, plan, {})
    output = verdict.output_bounds(plan.predicted["distortion"], judged, result, search.alpha, rounds)
    if trials is not None:
        additive = "table" not in plan.optimality
        output |= verdict.kappa_bounds(plan.predicted["distortion"], trials, search.alpha, additive)
    output["worst_case"] = worst_case_bound(judged, compressed, plan)
    bounds = {"weights": verdict.weight_bounds(traced, compressed, plan.layers), "output": output}
    details = {
        **details,
        "title": type(traced.model).__name__,
        "weight_numel": {layer.name: layer.numel for layer in traced.graph.layers},
        "notes": [*_notes(traced), *details.get("notes", ())],
    }
    attribute = partial(verdict.telescope_of, judged, compressed, plan.layers)
    return Result(device, server, replace(plan, bounds=bounds), details, compressed.eval(), attribute)


def _notes(traced: Traced) -> list[str]:
    """Losses in words."""
    return [
        f"dims {list(dims)} of input {name!r} could not be made dynamic: the halves take the traced size only"
        for name, dims in traced.static_dims.items()
        if dims
    ]


def _check_bytes(packed: Mapping[str, int], plan: Plan) -> None:
    wrong = {
        n: (b, plan.layers[n].packed_bytes) for n, b in packed.items() if b != plan.layers[n].packed_bytes
    }
    if wrong:
        raise PlanError(
            "packed layers take other bytes than planned", got=str(wrong),
            expected="(packed, planned) to agree",
            remedy="apply the plan with the version of torchcoinfer that made it",
        )  # fmt: skip

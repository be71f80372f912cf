"""The way through the house: trace, calibrate, score, price, solve, compress, split, certify."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchcoinfer.calibrate import Statistics, calibrate, split_validation
from torchcoinfer.compress import apply_to_model, option_of
from torchcoinfer.errors import ArgumentError, CalibrationError, InfeasibleBudget, PlanError
from torchcoinfer.measure import Reference, curves, reference, verdict
from torchcoinfer.measure.score import Curves
from torchcoinfer.models import default_inputs
from torchcoinfer.profile import device_profile, link_profile, measure_costs, server_profile
from torchcoinfer.provenance import model_hash, versions
from torchcoinfer.result import Result
from torchcoinfer.split import split
from torchcoinfer.theory.budget import Budget, Search, Workload
from torchcoinfer.theory.costs import DeviceProfile, LinkProfile
from torchcoinfer.theory.graph import candidate_cuts
from torchcoinfer.theory.plan import Plan
from torchcoinfer.theory.solve import build_problem, solve
from torchcoinfer.trace import Traced, trace
from torchcoinfer.trace.layers import layer_kind

CERTIFICATION_ROUNDS = 3  # plans that Budget(certified_distortion=...) may try, each certified at alpha / 3
TIGHTENING = 0.8  # the next plan aims this much below what the last certificate asks for


@torch.inference_mode(False)  # within it gradients, and so all distortions, would be silently wrong
def compress_and_split(
    model: nn.Module,
    budget: Budget,
    example_inputs: tuple | Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    calibration: Iterable[Any] | None = None,
    validation: Iterable[Any] | None = None,
    workload: Workload | None = None,
    device: str | Path | DeviceProfile = "raspberry-pi-5",
    server: str | Path | DeviceProfile = "local",
    link: str | Path | LinkProfile = "wifi-5ghz",
    search: Search | None = None,
    progress: bool = True,
) -> Result:
    """Choose every layer's bit-width and pruning, the split point and the clocks, and apply the choice.

    Args:
        model: any nn.Module; never modified.
        budget: ceilings of one run of the workload.
        example_inputs: one call's positional (tuple) or keyword (dict) arguments; default: what a Hugging
            Face or torchvision model takes.
        dynamic_shapes: as torch.export's; default: batch and known sequence dims vary.
        calibration: batches (tensor | tuple | dict) that the choice is made on; default: example_inputs,
            with a warning.
        validation: batches that only judge; default: a third of ``calibration``, set aside.
        workload: sizes of the run that is budgeted; default: one forward pass of example_inputs.
        device, server, link: a preset's name, a profile, a profile's file, or "local" (measured here).
        search: what the planner may choose from.
        progress: show progress bars.

    Returns:
        the halves, the plan and its report.

    Raises:
        InfeasibleBudget: no plan fits; it carries the nearest budget that does.
        ArgumentError, UnitError, TraceError, CalibrationError: bad input, named.
    """
    run = _prepare(
        model, budget, example_inputs, dynamic_shapes, calibration, validation, workload, device, server, link,
        search or Search(), progress,
    )  # fmt: skip
    if budget.certified_distortion is None:
        return run.applied(run.planned(budget))
    return _certified(run, budget)


@torch.inference_mode(False)
def apply_plan(
    model: nn.Module,
    plan: Plan,
    *,
    calibration: Iterable[Any] | None = None,
    validation: Iterable[Any] | None = None,
    example_inputs: tuple | Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    search: Search | None = None,
    progress: bool = True,
) -> Result:
    """Apply a plan made earlier: no search, no cost model; the same plan and data give the same halves.

    Raises:
        PlanError: the plan belongs to another model.
        CalibrationError: the plan compensates errors and there are no calibration data.
    """
    if not isinstance(plan, Plan):
        raise ArgumentError("plan", got=type(plan).__name__, expected="a Plan", remedy="Plan.from_json(text)")
    _check_model(model)
    own = model_hash(model)
    if plan.provenance.get("model_hash") != own:
        raise PlanError(
            "the plan was made for another model", got=f"model hash {own}",
            expected=str(plan.provenance.get("model_hash")), remedy="plan this model with compress_and_split",
        )  # fmt: skip
    if search is not None:
        _check_search(search, None)
    search = search or Search(alpha=plan.provenance.get("alpha", 0.1), seed=plan.provenance.get("seed", 0))
    examples = default_inputs(model) if example_inputs is None else example_inputs
    data = _Data.of(examples, calibration, validation, search.seed)
    traced = trace(model, examples, dynamic_shapes=dynamic_shapes)
    statistics = _statistics(traced, data, search, progress)
    judged = reference(traced, statistics, data.validation) if data.validation else None
    return _apply(traced, statistics, judged, plan, examples, dynamic_shapes, None, search, {}, progress)


@dataclass(frozen=True)
class _Data:
    calibration: list[Any]
    validation: list[Any]

    @classmethod
    def of(cls, examples: Any, calibration: Any, validation: Any, seed: int) -> _Data:
        if calibration is None:
            warnings.warn(
                "no calibration data given: the choice is made on example_inputs alone; "
                "pass calibration=[batch, ...] of real inputs",
                stacklevel=4,
            )
            calibration = [examples]
        if validation is not None:
            return cls(_listed(calibration, "calibration"), _listed(validation, "validation"))
        return cls(*split_validation(_listed(calibration, "calibration"), seed=seed))


def _listed(batches: Any, what: str) -> list[Any]:
    if isinstance(batches, (str, Mapping)) or not isinstance(batches, Iterable) or hasattr(batches, "dtype"):
        raise CalibrationError(
            f"{what} data are not an iterable of batches", got=type(batches).__name__,
            expected="an iterable of tensors, tuples or dicts", remedy="put a single batch into a list",
        )  # fmt: skip
    listed = list(batches)
    if not listed:
        raise CalibrationError(
            f"{what} data are empty", got="0 batches", expected="at least one batch",
            remedy="pass batches of real inputs, or leave the argument out",
        )  # fmt: skip
    return listed


@dataclass
class _Run:
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

    def solved(self, budget: Budget, search: Search | None = None) -> Plan:
        problem = build_problem(
            self.traced.graph, curves.plain_points(self.table), self.cut_table, self.device, self.server,
            self.link, budget, search or self.search, self.workload,
        )  # fmt: skip
        return solve(problem)

    def planned(self, budget: Budget) -> Plan:
        """Solve on rounding to nearest, score error compensation where it matters, solve again."""
        plan = self.solved(budget)
        if "obs" in self.search.algorithms:
            chosen = {name: option_of(row) for name, row in plan.layers.items()}
            options = curves.survivors(self.traced, self.table, chosen)
            if options:
                more = curves.obs_curves(
                    self.traced, self.statistics, options, self.search, progress=self.progress
                )
                self.table = curves.merged(self.table, more)
                plan = self.solved(budget)
        return plan

    def applied(self, plan: Plan, rounds: int = 1) -> Result:
        provenance = {
            **plan.provenance, "model_hash": model_hash(self.traced.model), "versions": versions(),
            "alpha": self.search.alpha,
        }  # fmt: skip
        details = {"alternatives": self.alternatives(plan), "curves": self.curve_rows(plan)}
        return _apply(
            self.traced, self.statistics, self.judged, replace(plan, provenance=provenance), self.examples,
            self.dynamic_shapes, self.workload, self.search, details, self.progress, rounds,
        )  # fmt: skip

    def alternatives(self, plan: Plan) -> list[dict[str, Any]]:
        """The chosen cut beside "all on the device" and "all on the server"."""
        budget, rows = Budget.from_dict(dict(plan.budget)), []
        for name in dict.fromkeys([plan.cut.name, "device", "server"]):
            try:
                other = plan if name == plan.cut.name else self.solved(budget, replace(self.search, cut=name))
            except InfeasibleBudget as error:
                rows.append({"name": name, "note": error.fact})
                continue
            keys = ("distortion", "latency_s", "energy_j", "device_bytes")
            note = "chosen" if name == plan.cut.name else ""
            rows.append({"name": name, "note": note, **{key: other.predicted[key] for key in keys}})
        return rows

    def curve_rows(self, plan: Plan) -> dict[str, list[dict[str, Any]]]:
        return {
            layer.name: curves.report_rows(
                self.traced, layer, self.table[layer.name], plan.layers[layer.name]
            )
            for layer in self.traced.graph.layers
        }


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            "model", got=type(model).__name__, expected="an nn.Module", remedy="pass the model itself"
        )
    if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        raise ArgumentError(
            "the model was made under torch.inference_mode, which leaves its tensors without gradients",
            got=type(model).__name__, remedy="make or load the model outside of inference_mode",
        )  # fmt: skip
    if layer_kind(model) is not None:
        raise ArgumentError(
            "the model is itself a layer, and a layer is replaced inside its model", got=type(model).__name__,
            expected="a module that holds layers", remedy="wrap it: nn.Sequential(model)",
        )  # fmt: skip


def _check_search(search: Search, sides: tuple[DeviceProfile, ...] | None) -> None:
    """``sides`` are the device's and the server's profile; None: no cost is asked for."""
    if not isinstance(search, Search):
        raise ArgumentError(
            "search", got=type(search).__name__, expected="a Search", remedy="pass torchcoinfer.Search(...)"
        )
    if sides and search.costs == "measured" and all(side.basis != "measured" for side in sides):
        raise ArgumentError(
            "Search(costs='measured') times layers on this machine, and neither side is this machine",
            got=f"device {sides[0].name!r}, server {sides[1].name!r}", expected="'local' on one side",
            remedy="pass device='local' or server='local', or leave costs out",
        )  # fmt: skip


def _prepare(
    model: nn.Module, budget: Budget, examples: Any, dynamic_shapes: Any, calibration: Any, validation: Any,
    workload: Workload | None, device: Any, server: Any, link: Any, search: Search, progress: bool,
) -> _Run:  # fmt: skip
    """Checks everything that is cheap to check first, then traces, calibrates and scores."""
    _check_model(model)
    for value, kind in ((budget, Budget), (workload or Workload(), Workload)):
        if not isinstance(value, kind):
            raise ArgumentError(
                kind.__name__.lower(), got=type(value).__name__, expected=f"a {kind.__name__}",
                remedy=f"pass torchcoinfer.{kind.__name__}(...)",
            )  # fmt: skip
    profiles = device_profile(device), server_profile(server), link_profile(link)
    _check_search(search, profiles[:2])
    examples = default_inputs(model) if examples is None else examples
    data = _Data.of(examples, calibration, validation, search.seed)
    traced = trace(model, examples, dynamic_shapes=dynamic_shapes, workload=workload)
    if not traced.graph.units:
        raise ArgumentError(
            "the model computes nothing: there is nothing to choose or to cut", got=type(model).__name__,
            remedy="pass a model that computes its output from its inputs",
        )  # fmt: skip
    statistics = _statistics(traced, data, search, progress)
    judged = reference(traced, statistics, data.validation) if data.validation else None
    table = curves.nearest_curves(traced, statistics, search, progress=progress)
    cuts = candidate_cuts(traced.graph)
    wanted = [cut for cut in cuts if search.cut in (None, cut.name)]
    cut_table = curves.cut_curves(traced, statistics, wanted, search, progress=progress)
    sides = _measured(traced, profiles[:2], search)
    return _Run(
        traced, statistics, judged, table, cut_table, *sides, profiles[2], workload or Workload(), search, examples,
        dynamic_shapes, progress,
    )  # fmt: skip


def _statistics(traced: Traced, data: _Data, search: Search, progress: bool) -> Statistics:
    return calibrate(
        traced,
        data.calibration,
        output=search.output,
        metric=search.metric,
        seed=search.seed,
        progress=progress,
    )


def _measured(traced: Traced, sides: tuple, search: Search) -> tuple[DeviceProfile, ...]:
    """Times every layer in every option on sides that are this machine, when asked to."""
    if search.costs != "measured":
        return sides
    options = {layer.name: curves.layer_options(layer, search) for layer in traced.graph.layers}
    return tuple(measure_costs(traced, options, s) if s.basis == "measured" else s for s in sides)


def _apply(
    traced: Traced, statistics: Statistics, judged: Reference | None, plan: Plan, examples: Any,
    dynamic_shapes: Any, workload: Workload | None, search: Search, details: dict[str, Any], progress: bool,
    rounds: int = 1,
) -> Result:  # fmt: skip
    """Compress, divide, measure: obeys the plan, and adds to it only what was measured."""
    compressed = apply_to_model(traced, plan.layers, statistics, progress=progress)
    _check_bytes(verdict.packed_bytes_of(compressed, traced, plan.layers), plan)
    divided = trace(compressed, examples, dynamic_shapes=dynamic_shapes, workload=workload)
    device, server = split(divided, plan.cut)
    result = Result(device, server, plan, {})
    bounds = {
        "weights": verdict.weight_bounds(traced, compressed, plan.layers),
        "output": verdict.output_bounds(plan.predicted["distortion"], judged, result, search.alpha, rounds),
    }
    details = {
        **details,
        "title": type(traced.model).__name__,
        "weight_numel": {layer.name: layer.numel for layer in traced.graph.layers},
        "notes": _notes(traced),
    }
    return Result(device, server, replace(plan, bounds=bounds), details, compressed.eval())


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
            "packed layers take other bytes than planned", got=str(wrong), expected="(packed, planned) to agree",
            remedy="apply the plan with the version of torchcoinfer that made it",
        )  # fmt: skip


def _certified(run: _Run, budget: Budget) -> Result:
    """Plans of falling predicted distortion until one is certified; how many may be tried is fixed first."""
    ceiling, alpha = budget.certified_distortion, run.search.alpha
    needs = CERTIFICATION_ROUNDS / alpha - 1
    samples = run.judged.samples if run.judged is not None else 0
    if samples < needs:
        raise CalibrationError(
            "too few validation samples to certify a distortion", got=f"{samples} samples",
            expected=f"at least {needs:.0f} ({CERTIFICATION_ROUNDS} rounds at alpha {alpha})",
            remedy="pass more validation data, or a larger Search(alpha=...)",
        )  # fmt: skip
    attempt, best = budget, None
    for _ in range(CERTIFICATION_ROUNDS):
        try:
            result = run.applied(run.planned(attempt), CERTIFICATION_ROUNDS)
        except InfeasibleBudget:
            if best is None:
                raise
            break  # no plan of the caller's other rows has as little distortion as the next round aims at
        certified = result.plan.bounds["output"]["certified"]["value"]
        if certified <= ceiling:
            return result
        if best is None or certified < best:
            best, of_best = certified, attempt
        target = result.plan.predicted["distortion"] * ceiling / certified * TIGHTENING
        attempt = replace(budget, distortion=min(target, budget.distortion or target))
    raise InfeasibleBudget(
        f"no plan of {CERTIFICATION_ROUNDS} rounds certified a distortion of {ceiling:g}",
        attainable=replace(of_best, certified_distortion=best * 1.01), least={"certified_distortion": best},
        got={"certified_distortion": best},
    )  # fmt: skip

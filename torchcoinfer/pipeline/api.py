"""``compress_and_split`` and ``apply_plan``: what is public of the pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchcoinfer.errors import ArgumentError, CalibrationError, InfeasibleBudget, PlanError
from torchcoinfer.measure import curves, reference
from torchcoinfer.models import default_inputs
from torchcoinfer.pipeline.border import Data, check_model, check_plan, check_search
from torchcoinfer.pipeline.refine import refined, tried
from torchcoinfer.pipeline.run import Run, apply, statistics_of
from torchcoinfer.profile import device_profile, link_profile, measure_costs, server_profile
from torchcoinfer.provenance import model_hash
from torchcoinfer.result import Result
from torchcoinfer.theory.budget import Budget, Search, Workload
from torchcoinfer.theory.costs import DeviceProfile, LinkProfile
from torchcoinfer.theory.plan import Plan
from torchcoinfer.theory.solve_problem import considered_cuts
from torchcoinfer.trace import Traced, trace

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
    run = prepare(
        model, budget, example_inputs, dynamic_shapes, calibration, validation, workload, device, server,
        link, search or Search(), progress,
    )  # fmt: skip
    if run.search.trials:
        run.trials = tried(run)
    if budget.certified_distortion is None:
        return run.applied(*refined(run, budget, run.planned(budget)))
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
    check_model(model)
    own = model_hash(model)
    if plan.provenance.get("model_hash") != own:
        raise PlanError(
            "the plan was made for another model", got=f"model hash {own}",
            expected=str(plan.provenance.get("model_hash")), remedy="plan this model with compress_and_split",
        )  # fmt: skip
    if search is not None:
        check_search(search, None)
    search = search or Search(alpha=plan.provenance.get("alpha", 0.1), seed=plan.provenance.get("seed", 0))
    examples = default_inputs(model) if example_inputs is None else example_inputs
    data = Data.of(examples, calibration, validation, search.seed)
    traced = trace(model, examples, dynamic_shapes=dynamic_shapes)
    check_plan(traced.graph, plan)
    statistics = statistics_of(traced, data, search, progress)
    judged = reference(traced, statistics, data.validation) if data.validation else None
    return apply(traced, statistics, judged, plan, examples, dynamic_shapes, None, search, {}, progress)


def prepare(
    model: nn.Module, budget: Budget, examples: Any, dynamic_shapes: Any, calibration: Any, validation: Any,
    workload: Workload | None, device: Any, server: Any, link: Any, search: Search, progress: bool,
) -> Run:  # fmt: skip
    """Checks everything that is cheap to check first, then traces, calibrates and scores."""
    check_model(model)
    for value, kind in ((budget, Budget), (workload or Workload(), Workload)):
        if not isinstance(value, kind):
            raise ArgumentError(
                kind.__name__.lower(), got=type(value).__name__, expected=f"a {kind.__name__}",
                remedy=f"pass torchcoinfer.{kind.__name__}(...)",
            )  # fmt: skip
    profiles = device_profile(device), server_profile(server), link_profile(link)
    check_search(search, profiles[:2])
    examples = default_inputs(model) if examples is None else examples
    data = Data.of(examples, calibration, validation, search.seed)
    traced = trace(model, examples, dynamic_shapes=dynamic_shapes, workload=workload)
    if not traced.graph.units:
        raise ArgumentError(
            "the model computes nothing: there is nothing to choose or to cut", got=type(model).__name__,
            remedy="pass a model that computes its output from its inputs",
        )  # fmt: skip
    wanted, _ = considered_cuts(traced.graph, search.cut)
    statistics = statistics_of(traced, data, search, progress)
    judged = reference(traced, statistics, data.validation) if data.validation else None
    table = curves.nearest_curves(traced, statistics, search, progress=progress)
    cut_table = curves.cut_curves(traced, statistics, wanted, search, progress=progress)
    sides = _measured(traced, profiles[:2], search)
    return Run(
        traced, statistics, judged, table, cut_table, *sides, profiles[2], workload or Workload(), search,
        examples, dynamic_shapes, progress,
    )  # fmt: skip


def _measured(traced: Traced, sides: tuple, search: Search) -> tuple[DeviceProfile, ...]:
    """Times every layer in every option on sides that are this machine, when asked to."""
    if search.costs != "measured":
        return sides
    options = {layer.name: curves.layer_options(layer, search) for layer in traced.graph.layers}
    return tuple(measure_costs(traced, options, s) if s.basis == "measured" else s for s in sides)


def _certified(run: Run, budget: Budget) -> Result:
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
            plan, details = refined(run, attempt, run.planned(attempt))
            result = run.applied(plan, details, CERTIFICATION_ROUNDS)
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
        told_least=f"certified_distortion {best:.4g}", got=f"certified_distortion {ceiling:.4g}",
    )  # fmt: skip

"""Plans alone: ``pareto``, and ``Study``, one scoring of a model that many plans are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchcoinfer.measure import curves
from torchcoinfer.pipeline.api import prepare
from torchcoinfer.pipeline.refine import refined
from torchcoinfer.pipeline.run import Run
from torchcoinfer.provenance import model_hash, versions
from torchcoinfer.theory import pareto as fronts
from torchcoinfer.theory.alternatives import explored
from torchcoinfer.theory.budget import Budget, Search, Workload
from torchcoinfer.theory.costs import DeviceProfile, LinkProfile
from torchcoinfer.theory.plan import Plan
from torchcoinfer.theory.scored import Scored


@torch.inference_mode(False)
def pareto(
    model: nn.Module,
    budget: Budget,
    axis: str = "latency",
    example_inputs: tuple | Mapping[str, Any] | None = None,
    *,
    points: int = 9,
    dynamic_shapes: Any = None,
    calibration: Iterable[Any] | None = None,
    validation: Iterable[Any] | None = None,
    workload: Workload | None = None,
    device: str | Path | DeviceProfile = "raspberry-pi-5",
    server: str | Path | DeviceProfile = "local",
    link: str | Path | LinkProfile = "wifi-5ghz",
    search: Search | None = None,
    progress: bool = True,
) -> fronts.Front:
    """The front of the predicted distortion (or what ``search.minimize`` says) against one budget row.

    Args:
        model, example_inputs, dynamic_shapes, calibration, validation, workload, device, server, link,
            search, progress: as in ``compress_and_split``; nothing is compressed or measured.
        budget: the rows other than ``axis`` hold for every plan; a limit on the axis is one of those tried.
        axis: "latency" | "energy" | "device_memory" | "uplink" | any other row but the objective.
        points: limits tried, from the least value that is possible to where the row no longer binds.

    Returns:
        plans, ascending in the row, none dominated; ``apply_plan`` takes each. Equal arguments give equal
        bytes, as far as calibration does.

    Raises:
        InfeasibleBudget: the other rows alone are impossible.
        ArgumentError: no such row, or anything that ``compress_and_split`` refuses.
    """
    fronts.check_axis((search or Search()).minimize, axis)
    fronts.check_points(points)
    if isinstance(budget, Budget):
        fronts.check_uncertified(budget)
    own = study(
        model, budget, example_inputs, dynamic_shapes=dynamic_shapes, calibration=calibration,
        validation=validation, workload=workload, device=device, server=server, link=link, search=search,
        progress=progress,
    )  # fmt: skip
    return own.front(budget, axis, points)


@torch.inference_mode(False)
def study(
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
) -> Study:
    """Trace, calibrate and score a model. Arguments and errors as of ``compress_and_split``."""
    return Study(
        prepare(
            model, budget, example_inputs, dynamic_shapes, calibration, validation, workload, device, server,
            link, search or Search(), progress,
        )
    )  # fmt: skip


@dataclass
class Study:
    """A model that was scored once."""

    run: Run

    @torch.inference_mode(False)
    def plan(self, budget: Budget) -> tuple[Plan, Scored, dict[str, Any]]:
        """The plan that ``compress_and_split`` would apply, the table it was solved from, and details for its
        report. The plan has no bounds: nothing was compressed or measured."""
        fronts.check_uncertified(budget)
        run = replace(self.run)  # a refinement changes the table around its plan
        plan = run.planned(budget)
        self.run.table, table = run.table, self.scored(run)
        plan, details = refined(run, budget, plan)
        told = {
            **details,
            "title": type(run.traced.model).__name__,
            "weight_numel": {layer.name: layer.numel for layer in run.traced.graph.layers},
            "curves": run.curve_rows(plan),
        }
        return explored(run.problem(Budget.from_dict(dict(plan.budget))), run.signed(plan)), table, told

    def scored(self, run: Run | None = None) -> Scored:
        """The table as plain numbers."""
        run = run or self.run
        provenance = {
            "model_hash": model_hash(run.traced.model), "versions": versions(), "alpha": run.search.alpha,
        }  # fmt: skip
        return Scored(
            run.traced.graph, curves.plain_points(run.table), run.cut_table, run.device, run.server, run.link,
            run.search, run.workload, provenance,
        )  # fmt: skip

    @torch.inference_mode(False)
    def front(self, budget: Budget, axis: str, points: int = 9) -> fronts.Front:
        """The front along a row: first on rounding to nearest; then error compensation is scored for every
        choice on it, and the front made again."""
        run = self.run
        front = fronts.pareto(run.problem(budget), axis, points)
        if "obs" in run.search.algorithms and run.compensate(front.plans):
            front = fronts.pareto(run.problem(budget), axis, points)
        return replace(front, plans=tuple(map(run.signed, front.plans)))

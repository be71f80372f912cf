"""``pareto``: many plans from one scoring of the model; nothing is compressed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchcoinfer.pipeline.api import prepare
from torchcoinfer.pipeline.run import Run
from torchcoinfer.theory import pareto as fronts
from torchcoinfer.theory.budget import Budget, Search, Workload
from torchcoinfer.theory.costs import DeviceProfile, LinkProfile


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
    search = search or Search()
    fronts.check_axis(search.minimize, axis)
    fronts.check_points(points)
    run = prepare(
        model, budget, example_inputs, dynamic_shapes, calibration, validation, workload, device, server,
        link, search, progress,
    )  # fmt: skip
    return front_of(run, budget, axis, points)


def front_of(run: Run, budget: Budget, axis: str, points: int) -> fronts.Front:
    """The front of a run: first on rounding to nearest; then error compensation is scored for every choice on
    it, and the front made again."""
    front = fronts.pareto(run.problem(budget), axis, points)
    if "obs" in run.search.algorithms and run.compensate(front.plans):
        front = fronts.pareto(run.problem(budget), axis, points)
    return replace(front, plans=tuple(map(run.signed, front.plans)))

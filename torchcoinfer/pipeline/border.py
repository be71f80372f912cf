"""What stands at the border of the pipeline: every argument checked before anything costly runs."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from torchcoinfer.calibrate import split_validation
from torchcoinfer.errors import ArgumentError, CalibrationError, PlanError
from torchcoinfer.theory.budget import Search
from torchcoinfer.theory.costs import DeviceProfile
from torchcoinfer.theory.graph import Graph, cut_from_tensors, layer_sides
from torchcoinfer.theory.options import WEIGHT_BITS
from torchcoinfer.theory.plan import Plan
from torchcoinfer.trace.layers import layer_kind


@dataclass(frozen=True)
class Data:
    """Batches that the choice is made on, and batches that only judge it."""

    calibration: list[Any]
    validation: list[Any]

    @classmethod
    def of(cls, examples: Any, calibration: Any, validation: Any, seed: int) -> Data:
        if calibration is None:
            warnings.warn(
                "no calibration data given: the choice is made on example_inputs alone; "
                "pass calibration=[batch, ...] of real inputs",
                stacklevel=5,
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


def check_model(model: Any) -> None:
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


def check_plan(graph: Graph, plan: Plan) -> None:
    """Whether the plan is one of this model, and agrees with itself.

    Raises:
        PlanError: other layers, a cut whose name, tensors and sides differ, or structured pruning, which is
            planned but not applied yet.
    """
    remedy = "apply the plan as it was made, to the model that it was made for"
    layers = {layer.name for layer in graph.layers}
    if set(plan.layers) != layers:
        other = sorted(layers ^ set(plan.layers))
        raise PlanError("the plan's layers are not the model's", got=other[:8], remedy=remedy)
    try:
        cut = cut_from_tensors(graph, [name for name, _ in plan.cut.tensors])
    except ArgumentError as error:
        raise PlanError("the plan's cut does not divide this model", got=str(error), remedy=remedy) from error
    if cut.name != plan.cut.name and not (plan.cut.name == "server" and not cut.tensors):
        raise PlanError(
            "the plan's cut has another name than its tensors say", got=repr(plan.cut.name),
            expected=repr(cut.name), remedy=remedy,
        )  # fmt: skip
    other = {row.bits for row in plan.layers.values()} - {*WEIGHT_BITS, 16, 32}
    if other:
        raise PlanError(
            "bits that no kernel has", got=sorted(other), expected=f"among {WEIGHT_BITS}", remedy=remedy
        )
    sides = layer_sides(graph, cut)
    wrong = [name for name, row in plan.layers.items() if row.side != sides[name]]
    if wrong:
        raise PlanError("layers on another side than the cut says", got=wrong[:8], remedy=remedy)
    pruned = [
        n for n, row in plan.layers.items() if row.kept_channels or min(row.kept_rows, row.kept_columns) < 1
    ]
    if pruned:
        raise PlanError(
            "structured pruning is planned, but not applied yet", got=pruned[:8],
            expected="kept_rows and kept_columns of 1", remedy="plan without couplings",
        )  # fmt: skip


def check_search(search: Search, sides: tuple[DeviceProfile, ...] | None) -> None:
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

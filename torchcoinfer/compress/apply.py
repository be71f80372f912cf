"""A model and a plan -> a new model whose planned layers are packed modules; obeys and decides nothing."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from torchcoinfer.calibrate import Statistics, Stream
from torchcoinfer.compress.hessian import Hessian
from torchcoinfer.compress.nearest import nearest
from torchcoinfer.compress.obs import obs
from torchcoinfer.compress.pack import StandIn, packed_module, share_storage, weight_matrix
from torchcoinfer.compress.quantized import Quantized
from torchcoinfer.errors import CalibrationError, PlanError
from torchcoinfer.theory.options import Option
from torchcoinfer.theory.plan import LayerPlan
from torchcoinfer.trace import Traced


def option_of(layer: LayerPlan) -> Option:
    """The storage and algorithm that a plan's row asks for."""
    return Option(
        layer.bits,
        layer.sparsity,
        layer.format,
        layer.group_size,
        layer.symmetric,
        layer.activation_bits,
        layer.algorithm,
    )


def apply_to_model(
    traced: Traced,
    layers: Mapping[str, LayerPlan],
    statistics: Statistics | None,
    *,
    progress: bool = False,
) -> nn.Module:
    """Compresses layer after layer, each seeing inputs that the layers before it have already changed.

    Args:
        traced: the traced model; neither it nor ``traced.model`` is changed.
        layers: what to do with each layer of ``traced.graph``; a layer left out, or of format "float", stays.
        statistics: calibration batches and column importances; None is enough where no layer asks for "obs".
        progress: show a bar.

    Returns:
        a copy of ``traced.model`` with ``torchcoinfer.nn`` modules in place of the planned layers. Tied
        weights share their buffers. Of a compressed layer's float weight no copy is kept.

    Raises:
        PlanError: an unknown layer or algorithm, or a format that the layer's kind does not have.
        CalibrationError: "obs" without calibration batches, or inputs that overflow.
        ArgumentError: weights with NaN or Inf.
    """
    options = {name: option_of(row) for name, row in layers.items() if row.format != "float"}
    _check(traced, options, statistics)
    model = _hollow_copy(traced, options)
    if any(option.algorithm == "obs" for option in options.values()):
        for segment in Stream(traced, statistics.batches, progress=progress):
            due = [name for name in segment.layers if name in options]
            wants_moments = any(options[name].algorithm == "obs" for name in due)
            moments = segment.inputs_second_moment() if wants_moments else {}
            hessians = _shared_hessians(moments, [n for n in due if options[n].algorithm == "obs"])
            segment.advance(
                {
                    name: _install(model, traced, name, options[name], statistics, hessians.get(name))
                    for name in due
                }
            )
    else:
        for name, option in options.items():
            _install(model, traced, name, option, statistics, None)
    return model


def quantize_layer(
    weight: Tensor, option: Option, importance: Tensor | None, hessian: Sequence[Hessian] | None
) -> Quantized:
    """One weight by the algorithm of its option; "obs" without a Hessian (embeddings) rounds to nearest."""
    if option.algorithm == "obs" and hessian is not None:
        return obs(weight, option, hessian)
    return nearest(weight, option, importance)


def _check(traced: Traced, options: Mapping[str, Option], statistics: Statistics | None) -> None:
    known = {layer.name for layer in traced.graph.layers}
    unknown = sorted(set(options) - known)
    if unknown:
        raise PlanError(
            "the plan names layers that the model does not have",
            got=unknown,
            expected=f"some of the model's {len(known)} layers",
            remedy="apply the plan to the model that it was made for",
        )
    for name, option in options.items():
        if option.algorithm not in ("nearest", "obs"):
            raise PlanError(
                f"algorithm of layer {name!r}", got=option.algorithm, expected="'nearest' or 'obs'"
            )
        if option.algorithm == "obs" and (statistics is None or not statistics.batches):
            raise CalibrationError(
                f"layer {name!r} is planned with error compensation, which needs calibration data",
                remedy="pass calibration batches, or plan with algorithms=('nearest',)",
            )


def _hollow_copy(traced: Traced, options: Mapping[str, Option]) -> nn.Module:
    """A deep copy in which the weights to be replaced are empty: no second copy of them is ever made."""
    memo: dict[int, nn.Parameter] = {}
    for name in options:
        for path in traced.layer_modules[name]:
            weight = traced.model.get_submodule(path).weight
            memo[id(weight)] = nn.Parameter(weight.detach().to("meta"), requires_grad=False)
    return copy.deepcopy(traced.model, memo)


def _shared_hessians(moments: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, list[Hessian]]:
    """Layers that read the same input share one Hessian, and so its factor."""
    made: dict[int, list[Hessian]] = {}
    found = {}
    for name in names:
        moment = moments.get(name)
        if moment is None:
            continue
        if id(moment) not in made:
            made[id(moment)] = [Hessian(part) for part in (moment if moment.dim() == 3 else moment[None])]
        found[name] = made[id(moment)]
    return found


def _install(
    model: nn.Module,
    traced: Traced,
    name: str,
    option: Option,
    statistics: Statistics | None,
    hessian: Sequence[Hessian] | None,
) -> StandIn | Tensor:
    """Compresses one layer, puts its packed modules into ``model``; returns what the stream goes on with."""
    paths = traced.layer_modules[name]
    importance = None if statistics is None else statistics.importance(name)
    with torch.no_grad():
        weight = weight_matrix(traced.model.get_submodule(paths[0]))
        quantized = quantize_layer(weight, option, importance, hessian)
        modules = [packed_module(traced.model.get_submodule(path), quantized) for path in paths]
    share_storage(modules)
    for path, module in zip(paths, modules):
        old = model.get_submodule(path)
        module.train(old.training)
        for alias, found in list(model.named_modules(remove_duplicate=False)):
            if found is old:  # one module may hang in several places
                model.set_submodule(alias, module)
    return StandIn(modules).replacement()

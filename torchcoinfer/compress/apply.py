"""A model and a plan -> a new model whose planned layers are packed modules; obeys and decides nothing."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from torchcoinfer.calibrate import Segment, Statistics, Stream, embedding_sensitivity
from torchcoinfer.compress.inputs import LayerInputs, segment_inputs
from torchcoinfer.compress.nearest import nearest
from torchcoinfer.compress.obs import obs
from torchcoinfer.compress.pack import StandIn, packed_module, share_storage, weight_matrix
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

    A layer with a bias that compensates errors gets its bias changed by the mean of the error that remains.

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
    work = _Work(traced, _hollow_copy(traced, options), statistics)
    if not any(option.algorithm == "obs" for option in options.values()):
        for name, option in options.items():
            work.install(name, option, None)
        return work.model
    work.find_sensitivities([name for name, option in options.items() if option.algorithm == "obs"])
    for segment in Stream(traced, statistics.batches, plain_run=True, progress=progress):
        due = [name for name in segment.layers if name in options]
        inputs = work.inputs_of(segment, [name for name in due if options[name].algorithm == "obs"])
        segment.advance({name: work.install(name, options[name], inputs.get(name)) for name in due})
    return work.model


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


@dataclass
class _Work:
    """One run over the layers."""

    traced: Traced
    model: nn.Module
    statistics: Statistics | None
    sensitivities: dict[str, Tensor] = field(default_factory=dict)  # Σ g gᵀ of embeddings

    def find_sensitivities(self, names: Sequence[str]) -> None:
        """Of the embeddings among ``names`` that are tied to no linear layer."""
        embeddings = [n for n in names if all(isinstance(m, nn.Embedding) for m in self.modules(n))]
        self.sensitivities = embedding_sensitivity(
            self.traced, self.statistics.judge, self.statistics.batches, embeddings, seed=self.statistics.seed
        )

    def modules(self, name: str) -> list[nn.Module]:
        """The float modules that share a layer's weight."""
        return [self.traced.model.get_submodule(path) for path in self.traced.layer_modules[name]]

    def inputs_of(self, segment: Segment, names: Sequence[str]) -> dict[str, LayerInputs]:
        """Of the layers of a segment that compensate."""
        found = segment_inputs(segment, {name: self.modules(name) for name in names}, drift=True)
        for name in names:
            if name in self.sensitivities:
                found[name] = LayerInputs.of_sensitivity(self.sensitivities[name])
        return found

    @torch.no_grad()
    def install(self, name: str, option: Option, inputs: LayerInputs | None) -> StandIn | Tensor:
        """Compresses one layer, puts its packed modules into the model; returns what the stream goes on with.

        "obs" rounds to nearest where nothing is known to compensate for: an embedding that the judged output
        does not depend on.
        """
        floats = self.modules(name)
        weight = weight_matrix(floats[0])
        if inputs is None:
            importance = None if self.statistics is None else self.statistics.importance(name)
            quantized, shift = nearest(weight, option, importance), None
        else:
            quantized = obs(weight, option, inputs.hessians)
            shift = inputs.mean_error(weight, quantized)
        modules = [packed_module(module, quantized, shift) for module in floats]
        share_storage(modules)
        for path, module in zip(self.traced.layer_modules[name], modules):
            old = self.model.get_submodule(path)
            module.train(old.training)
            for alias, at in list(self.model.named_modules(remove_duplicate=False)):
                if at is old:  # one module may hang in several places
                    self.model.set_submodule(alias, module)
        return StandIn(modules).replacement()

"""The two blocks of bounds that a report prints, measured on the plan that was applied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from torchcoinfer.calibrate.interpret import Replacement
from torchcoinfer.compress.pack import weight_matrix
from torchcoinfer.errors import CalibrationError
from torchcoinfer.measure.certify import Unavailable, certify
from torchcoinfer.measure.distortion import Reference, Telescope, measure_distortion, telescope
from torchcoinfer.measure.trials import Trials
from torchcoinfer.nn.packed import PackedModule
from torchcoinfer.theory.bounds import fit_laplace
from torchcoinfer.theory.bounds_network import SpentLayer, weights_block
from torchcoinfer.theory.plan import LayerPlan
from torchcoinfer.trace import Traced

FIT_SAMPLE = 1 << 21  # weights that a fit looks at, evenly spread: it works in float64


def weight_bounds(traced: Traced, compressed: nn.Module, layers: Mapping[str, LayerPlan]) -> dict[str, Any]:
    """The floor at the bits spent beside the measured error of the weights, for every compressed layer."""
    spent = {}
    for layer in traced.graph.layers:
        row = layers[layer.name]
        if row.format == "float":
            continue
        path = traced.layer_modules[layer.name][0]
        weight = weight_matrix(traced.model.get_submodule(path)).float()
        packed = compressed.get_submodule(path)
        step = -(-weight.numel() // FIT_SAMPLE)
        fit = replace(fit_laplace(weight.reshape(-1)[::step].numpy()), numel=weight.numel())
        spent[layer.name] = SpentLayer(
            fit, 8.0 * row.packed_bytes / layer.numel, _mean_absolute_error(packed, weight)
        )
    return weights_block(spent)


def _mean_absolute_error(packed: PackedModule, weight: Tensor) -> float:
    with torch.no_grad():
        return float(packed.dequantize_weight().flatten(1).sub_(weight).abs_().mean())


def output_bounds(
    predicted: float, reference: Reference | None, compressed: Any, alpha: float, rounds: int = 1
) -> dict[str, Any]:
    """Predicted, measured and certified relative output error.

    Args:
        predicted: Σ E_l(o_l).
        reference: the original model on validation samples that no choice has seen; None: there are none.
        compressed: the compressed model, both halves with the codec at the cut.
        alpha: level of the certificate, divided by ``rounds`` when as many plans are certified in turn.
    """
    block: dict[str, Any] = {"predicted": {"value": predicted}}
    nothing = {"unavailable": "no validation data", "n": 0}
    if reference is None:
        return {**block, "measured": nothing, "certified": nothing}
    errors = measure_distortion(reference, compressed)
    block["measured"] = {"value": float(errors.mean()), "n": len(errors)}
    certificate = certify(errors.tolist(), alpha, rounds)
    if isinstance(certificate, Unavailable):
        block["certified"] = {
            "unavailable": certificate.reason, "n": certificate.n, "needs": certificate.needs,
        }  # fmt: skip
    else:
        block["certified"] = {"value": certificate, "alpha": alpha / rounds, "n": len(errors)}
    return block


def kappa_bounds(predicted: float, trials: Trials, alpha: float, additive: bool) -> dict[str, Any]:
    """The factor κ of the additive table, and the prediction times κ.

    Args:
        predicted: Σ E_l(o_l) of the plan.
        trials: random roundings, measured on the validation data.
        additive: whether ``predicted`` is of the table that the trials were predicted by.
    """
    factor = trials.kappa(alpha)
    if isinstance(factor, Unavailable):
        nothing = {"unavailable": factor.reason, "n": factor.n, "needs": factor.needs}
        return {"kappa": nothing, "scaled": nothing}
    common = {"alpha": alpha, "n": len(trials.measured)}
    scaled = {"value": factor * predicted, **common}
    if not additive:
        scaled = {"unavailable": "kappa is of the additive table, the prediction of interactions"}
    return {"kappa": {"value": factor, **common}, "scaled": scaled}


def telescope_of(
    reference: Reference | None, compressed: nn.Module, layers: Mapping[str, LayerPlan]
) -> Telescope:
    """Where the error of the compressed weights comes from, on the validation data; one forward a layer.

    Activation codes of a layer belong to its step; the coding of tensors at the cut to none.

    Raises:
        CalibrationError: there are no validation data. ArgumentError: the metric is not "output_mse".
    """
    if reference is None:
        raise CalibrationError(
            "there are no validation data to attribute the error on", got="0 samples",
            expected="at least one batch", remedy="pass validation=[batch, ...]",
        )  # fmt: skip
    replacements: dict[str, Replacement] = {}
    for name, row in layers.items():
        if row.format != "float":
            paths = reference.traced.layer_modules[name]
            module = compressed.get_submodule(paths[0])
            replacements[name] = module if len(paths) == 1 else module.dequantize_weight()
    return telescope(reference, replacements)


def packed_bytes_of(compressed: nn.Module, traced: Traced, layers: Mapping[str, LayerPlan]) -> dict[str, int]:
    """Bytes really packed, per compressed layer."""
    return {
        name: compressed.get_submodule(traced.layer_modules[name][0]).packed_bytes
        for name, row in layers.items()
        if row.format != "float"
    }

"""Other people's scores of a layer's option, to stand beside the predictor in one table.

Each is additive over layers and up to one common factor, so that only the order of configurations is judged:

* ``sum |dW|``: the papers' surrogate ([Q]; A_l dropped).
* ``sum dW^2``: the same squared.
* ``Fisher``: Σ g² δ² over the elements of a layer's output, δ the output's change, g a gradient: the score of
  ModelOpt's automatic quantization, with output probes in place of a loss. It leaves out every product of two
  different elements.
* ``Hessian trace``: tr(H_l) / numel · ‖ΔW‖², H_l the Gauss-Newton Hessian of the layer's weight: HAWQ-V2's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from torchcoinfer.calibrate import Statistics
from torchcoinfer.calibrate.judge import batch_size
from torchcoinfer.measure.score import Curves, Weights
from torchcoinfer.measure.tape import Rademacher, Tape
from torchcoinfer.theory.options import Option
from torchcoinfer.trace import Traced

PAPERS, SQUARES, FISHER, TRACE = "sum |dW|", "sum dW^2", "Fisher", "Hessian trace"
Scores = dict[str, dict[str, dict[Option, float]]]
"""Name of the score -> layer -> option -> value."""


def surrogates(
    traced: Traced,
    statistics: Statistics,
    curves: Curves,
    weights: Weights,
    batches: Sequence[Sequence[Tensor]],
    *,
    probes: int = 2,
    seed: int = 0,
) -> Scores:
    """Every score of every point of ``curves``.

    Args:
        curves: linear layers only; sizes of the weights' changes are read off it.
        weights: gives ŵ [N, K].
        batches: flat inputs that gradients are taken on.
    """
    found: Scores = {name: {} for name in (PAPERS, SQUARES, FISHER, TRACE)}
    sensitivity = _Sensitivity(traced, statistics, curves, weights)
    for inputs in batches:
        sensitivity.add(inputs, probes, seed)
    for layer, points in curves.items():
        numel = sensitivity.weight[layer].numel()
        trace = sensitivity.trace[layer] / numel
        found[PAPERS][layer] = {point.option: point.weight_l1 * numel for point in points}
        found[SQUARES][layer] = {point.option: point.weight_mse * numel for point in points}
        found[TRACE][layer] = {point.option: point.weight_mse * numel * trace for point in points}
        found[FISHER][layer] = sensitivity.fisher[layer]
    return found


class _Sensitivity:
    """Sums of g² δ² and of squared weight gradients over batches."""

    def __init__(self, traced: Traced, statistics: Statistics, curves: Curves, weights: Weights):
        self.judge, self.traced = statistics.judge, traced
        self.tape = Tape(traced, statistics.judge, statistics.batches[0])
        self.calls = [call for call in self.tape.interpreter.calls if call.layer in curves]
        self.weight = {layer: self.tape.interpreter.weight(layer) for layer in curves}
        self.change: Mapping[str, Mapping[Option, Tensor]] = {
            layer: {p.option: weights(layer, p.option) - self.weight[layer] for p in points}
            for layer, points in curves.items()
        }
        self.fisher = {layer: dict.fromkeys(changes, 0.0) for layer, changes in self.change.items()}
        self.trace = dict.fromkeys(curves, 0.0)

    def add(self, inputs: Sequence[Tensor], probes: int, seed: int) -> None:
        nodes = {call.node for call in self.calls}
        judged, sites = self.tape.record(inputs, nodes)
        noise = partial(Rademacher(seed), samples=range(batch_size(inputs)))
        gradients = self.tape.responses(judged, sites, probes, noise)
        for call in self.calls:
            h = sites[call.node].args[call.input_position].float()
            rows = h.shape[0]
            h = h.reshape(rows, -1, h.shape[-1])  # [B, T, K]
            g = gradients[call.node].reshape(rows, probes, h.shape[1], -1)  # [B, P, T, N]
            squared = g.square().mean(1)
            for option, change in self.change[call.layer].items():
                delta = torch.nn.functional.linear(h, change)
                self.fisher[call.layer][option] += float((squared * delta.square()).sum())
            # ‖Σ_t g_t h_tᵀ‖² = Σ_{t,u} (g_t·g_u)(h_t·h_u)
            products = (g @ g.transpose(2, 3)) * (h @ h.transpose(1, 2))[:, None]
            self.trace[call.layer] += float(products.sum()) / probes

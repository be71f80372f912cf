"""[Q Prop. III.1] on a traced model: which models are feed-forward, and the bound of a compressed one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from torchcoinfer.compress.pack import weight_matrix
from torchcoinfer.measure.distortion import Reference
from torchcoinfer.theory.bounds_network import worst_case
from torchcoinfer.theory.plan import Plan
from torchcoinfer.trace import Traced

aten = torch.ops.aten
# elementwise, 1-Lipschitz, 0 -> 0; or only another shape of the same values
PASSING = {
    aten.relu.default, aten.relu_.default, aten.tanh.default, aten.abs.default, aten.dropout.default,
    aten.clone.default, aten.contiguous.default, aten.alias.default, aten.detach.default,
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints,
    aten.unsqueeze.default, aten.squeeze.dim,
}  # fmt: skip
LARGEST_SVD = 2048  # of the smaller side; above it sqrt(l1 norm x l-infinity norm) bounds the spectral norm


class NotFeedForward(Exception):  # noqa: N818  a reason, caught here
    """Why the proposition does not hold for this model and plan."""


def worst_case_bound(reference: Reference | None, compressed: nn.Module, plan: Plan) -> dict[str, Any]:
    """The worst relative output error over all inputs as large as the largest of the validation data.

    Prop. III.1 with the spectral norm, which goes with the squared error of the output, and biases carried
    along: value = (bound on ||f - f'||)^2 / E||f||^2.

    Returns:
        "value" (where it is a number that JSON holds), "log10", "vacuous"; or "unavailable" with the reason.
    """
    if reference is None:
        return {"unavailable": "no validation data"}
    try:
        return _bound(reference, compressed, plan)
    except NotFeedForward as reason:
        return {"unavailable": f"holds for feed-forward nets only: {reason}"}


def _bound(reference: Reference, compressed: nn.Module, plan: Plan) -> dict[str, Any]:
    traced, statistics = reference.traced, reference.statistics
    if statistics.judge.metric != "output_mse" or statistics.judge.output is not None:
        raise NotFeedForward("the judged tensor is not the model's output under squared error")
    layers = chain_of(traced)
    if any(row.activation_bits for row in plan.layers.values()):
        raise NotFeedForward("activations of a layer are coded, and the bound is of weights")
    if any(bits is not None for _, bits in plan.cut.tensors):
        raise NotFeedForward("the tensor at the cut is coded, and the bound is of weights")
    shape = traced.graph.tensors[traced.graph.inputs[0]].shape
    inputs = [batch[0] for batch in reference.inputs]
    if any(tuple(x.shape[1:]) != tuple(shape[1:]) for x in inputs):
        raise NotFeedForward("the inputs are not of the size that was traced")
    largest = max(float(x.double().flatten(1).norm(dim=1).max()) for x in inputs)
    sizes = [_sizes(traced, compressed, layer, rows) for layer, rows in layers]
    weights, changes, biases, shifts = (list(own) for own in zip(*sizes, strict=True))
    signal = math.sqrt(statistics.signal)
    found = worst_case(weights, changes, largest, signal, biases, shifts)
    log10 = 2.0 * (found.log10_bound - math.log10(signal))
    told: dict[str, Any] = {"vacuous": found.vacuous}
    if log10 < 300.0:
        return {**told, "value": 10.0**log10 if math.isfinite(log10) else 0.0}
    return {**told, "unavailable": f"vacuous, 10^{log10:.0f}: more than a number holds"}


def chain_of(traced: Traced) -> list[tuple[str, int]]:
    """The linear layers of a feed-forward model, in order, each with its rows per sample.

    Raises:
        NotFeedForward: a unit that is neither linear nor one of ``PASSING``, or that does not read just the
            one before it.
    """
    graph = traced.graph
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise NotFeedForward(f"{len(graph.inputs)} inputs and {len(graph.outputs)} outputs")
    if not graph.tensors[graph.inputs[0]].dtype.startswith("float"):
        raise NotFeedForward("its input is not floating")
    layers, previous = [], graph.inputs[0]
    for unit in graph.units:
        if unit.inputs != (previous,) or len(unit.outputs) != 1:
            raise NotFeedForward(f"{unit.name} does not read just the unit before it")
        previous = unit.outputs[0]
        if unit.kind == "linear" and unit.layer is not None:
            made = graph.tensors[previous].shape
            layers.append((unit.layer, math.prod(made[1:-1])))
            continue
        for node in traced.unit_nodes[unit.name]:
            if node.op == "call_function" and node.target not in PASSING:
                raise NotFeedForward(f"{unit.name} is {node.target}")
    if previous != graph.outputs[0] or not layers:
        raise NotFeedForward("its output is not that of the last unit")
    if len({name for name, _ in layers}) != len(layers):
        raise NotFeedForward("a layer is called twice")
    return layers


def _sizes(traced: Traced, compressed: nn.Module, layer: str, rows: int) -> tuple[float, ...]:
    """Spectral norms of the weight and of its change; norms of the bias and of its change over the rows."""
    path = traced.layer_modules[layer][0]
    old, new = traced.model.get_submodule(path), compressed.get_submodule(path)
    weight = weight_matrix(old).detach().double()
    changed = new.dequantize_weight() if hasattr(new, "dequantize_weight") else weight_matrix(new)
    change = changed.detach().flatten(1).double() - weight
    biases = [_bias(own, weight) for own in (old, new)]
    spread = math.sqrt(rows)
    return (
        spectral_norm(weight),
        spectral_norm(change),
        spread * float(biases[0].norm()),
        spread * float((biases[1] - biases[0]).norm()),
    )


def _bias(module: nn.Module, weight: Tensor) -> Tensor:
    bias = getattr(module, "bias", None)
    return weight.new_zeros(weight.shape[0]) if bias is None else bias.detach().double()


def spectral_norm(matrix: Tensor) -> float:
    """The largest singular value of [N, K], or an upper bound of it where that would take long."""
    if min(matrix.shape) <= LARGEST_SVD:
        return float(torch.linalg.matrix_norm(matrix, ord=2))
    one, infinity = matrix.abs().sum(dim=0).max(), matrix.abs().sum(dim=1).max()
    return math.sqrt(float(one) * float(infinity))

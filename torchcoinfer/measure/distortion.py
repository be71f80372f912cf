"""Errors as they are: of a compressed model on data, and layer by layer as a telescope."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchcoinfer.calibrate.batches import Batch, batch_arguments, read_batch
from torchcoinfer.calibrate.interpret import Interpreter, Replacement
from torchcoinfer.calibrate.judge import batch_size
from torchcoinfer.calibrate.statistics import Statistics, judged_output
from torchcoinfer.errors import ArgumentError, CalibrationError
from torchcoinfer.trace import Traced


@dataclass(frozen=True)
class Reference:
    """The original model's judged outputs on some batches, computed once and compared with many times.

    Attributes:
        arguments: per batch, the model's (positional, keyword) arguments; empty where only replacements are
            measured.
        inputs: per batch, the same as flat inputs.
        judged: per batch, the judged tensor [B, ...].
    """

    traced: Traced
    statistics: Statistics
    arguments: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...]
    inputs: tuple[tuple[Tensor, ...], ...]
    judged: tuple[Tensor, ...]

    @classmethod
    def of_flat(
        cls, traced: Traced, statistics: Statistics, batches: Sequence[Sequence[Tensor]]
    ) -> Reference:
        """From flat inputs, as ``Statistics.batches`` holds them: for ``measure_replacements`` only."""
        interpreter = Interpreter(traced)
        judged = tuple(
            judged_output(interpreter, statistics.judge, inputs, index)
            for index, inputs in enumerate(batches)
        )
        return cls(traced, statistics, (), tuple(map(tuple, batches)), judged)

    @property
    def samples(self) -> int:
        return sum(batch_size(inputs) for inputs in self.inputs)


def reference(traced: Traced, statistics: Statistics, batches: Iterable[Batch]) -> Reference:
    """Runs the original model over ``batches``.

    Raises:
        CalibrationError: empty or bad data, the batch named; an output that is not finite.
    """
    interpreter = Interpreter(traced)
    arguments, inputs, judged = [], [], []
    for index, batch in enumerate(batches):
        flat = read_batch(traced, batch, index)
        arguments.append(batch_arguments(batch, index))
        inputs.append(flat)
        judged.append(judged_output(interpreter, statistics.judge, flat, index))
    if not inputs:
        raise CalibrationError("validation data are empty", got="0 batches", expected="at least one batch")
    return Reference(traced, statistics, tuple(arguments), tuple(inputs), tuple(judged))


def measure_distortion(reference: Reference, compressed: Callable[..., Any]) -> Tensor:
    """Per sample, the error of ``compressed`` over the mean signal: ‖Δf_i‖² / E‖f‖², or KL likewise.

    Args:
        reference: the original model's outputs on the data.
        compressed: takes the model's own arguments, returns its own output structure.

    Returns:
        float64 [samples]; an output that is not finite counts as infinite error.
    """
    errors = []
    for (args, kwargs), inputs, judged in zip(
        reference.arguments, reference.inputs, reference.judged, strict=True
    ):
        with torch.no_grad():
            changed = reference.statistics.judge.tensor(compressed(*args, **kwargs), inputs)
        errors.append(_relative_error(reference.statistics, judged, changed))
    return torch.cat(errors)


def measure_replacements(reference: Reference, replacements: Mapping[str, Replacement]) -> Tensor:
    """The same for the original model with some layers' weights replaced, without building a module."""
    interpreter = Interpreter(reference.traced)
    errors = []
    for inputs, judged in zip(reference.inputs, reference.judged):
        with torch.no_grad():
            outputs = interpreter.run(inputs, replacements=replacements)
            changed = _judged(reference.traced, reference.statistics, outputs, inputs)
        errors.append(_relative_error(reference.statistics, judged, changed))
    return torch.cat(errors)


def _judged(
    traced: Traced, statistics: Statistics, outputs: Sequence[Any], inputs: Sequence[Tensor]
) -> Tensor:
    return statistics.judge.tensor(traced.unflatten_outputs(list(outputs)), inputs)


def _relative_error(statistics: Statistics, judged: Tensor, changed: Tensor) -> Tensor:
    if changed.shape != judged.shape:
        raise ArgumentError(
            "the compressed model's judged output has another shape",
            got=tuple(changed.shape),
            expected=str(tuple(judged.shape)),
        )
    error = statistics.judge.error(judged, changed) / statistics.signal
    return error.nan_to_num(nan=float("inf"), posinf=float("inf")).cpu()


@dataclass(frozen=True)
class Telescope:
    """Where the error comes from: ‖f − f̂‖ ≤ Σ_l ‖y^(l) − y^(l−1)‖, y^(l) with the first l layers compressed.

    Exact on the samples that were run, and on no others.

    Attributes:
        steps: per layer, E‖y^(l) − y^(l−1)‖ / sqrt(E‖f‖²): the layer's share.
        bound: per sample, the sum over layers, relative; float64 [samples].
        actual: per sample, ‖f − f̂‖ / sqrt(E‖f‖²); never above ``bound``.
    """

    steps: dict[str, float]
    bound: Tensor
    actual: Tensor


def telescope(reference: Reference, replacements: Mapping[str, Replacement]) -> Telescope:
    """Attributes the output error to layers, in the order of the graph; one forward pass a layer.

    Raises:
        ArgumentError: the metric is not "output_mse": the triangle inequality needs a norm.
    """
    if reference.statistics.judge.metric != "output_mse":
        raise ArgumentError("telescope", got=reference.statistics.judge.metric, expected="output_mse")
    interpreter = Interpreter(reference.traced)
    order = dict.fromkeys(call.layer for call in interpreter.calls if call.layer in replacements)
    root = reference.statistics.signal**0.5
    steps: dict[str, list[Tensor]] = {layer: [] for layer in order}
    actual: list[Tensor] = []
    for inputs, judged in zip(reference.inputs, reference.judged):
        before, applied = judged, {}
        for layer in order:
            applied[layer] = replacements[layer]
            with torch.no_grad():
                outputs = interpreter.run(inputs, replacements=applied)
                after = _judged(reference.traced, reference.statistics, outputs, inputs)
            steps[layer].append(_norm(after, before) / root)
            before = after
        actual.append(_norm(before, judged) / root)
    per_layer = {layer: torch.cat(found) for layer, found in steps.items()}
    bound = sum(per_layer.values(), torch.zeros(reference.samples, dtype=torch.float64))
    return Telescope({layer: float(v.mean()) for layer, v in per_layer.items()}, bound, torch.cat(actual))


def _norm(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() - b.double()).flatten(1).norm(dim=1).cpu()

"""Random configurations, predicted and measured: what the factor κ of a report rests on."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torchcoinfer.calibrate.interpret import Replacement
from torchcoinfer.errors import ArgumentError
from torchcoinfer.measure.certify import Unavailable, kappa
from torchcoinfer.measure.distortion import Reference, measure_replacements
from torchcoinfer.measure.score import Curves, Measured, unchanged
from torchcoinfer.theory.options import Option


@dataclass(frozen=True)
class Trials:
    """Predicted and measured distortion of random configurations, in the same order."""

    predicted: tuple[float, ...]
    measured: tuple[float, ...]

    def kappa(self, alpha: float) -> float | Unavailable:
        """A fresh random configuration is measured at ≤ κ·predicted with probability at least 1 − α."""
        return kappa(self.predicted, self.measured, alpha)


def random_trials(
    reference: Reference,
    curves: Curves,
    replacement: Callable[[str, Option], Replacement],
    *,
    configurations: int,
    seed: int = 0,
    allowed: Callable[[Measured], bool] | None = None,
) -> Trials:
    """Draws an option for every layer, uniformly and independently, and measures what the table predicts.

    Args:
        reference: the original model's outputs on the data to measure on.
        curves: the additive table.
        replacement: gives what stands for the layer's weight; called for each layer of each configuration.
        configurations: how many, at least 1; a level α needs at least 1/α − 1.
        seed: of the draws.
        allowed: which points may be drawn; default: all that change something.

    Raises:
        ArgumentError: no point may be drawn for any layer, or no number of configurations.
    """
    if not isinstance(configurations, int) or configurations < 1:
        raise ArgumentError(
            "configurations",
            got=configurations,
            expected="an integer of at least 1",
            remedy="pass how many to measure",
        )
    choices = _choices(curves, allowed or (lambda point: True))
    generator = random.Random(seed)
    predicted, measured = [], []
    for _ in range(configurations):
        drawn = {layer: generator.choice(points) for layer, points in choices.items()}
        replacements = {layer: replacement(layer, point.option) for layer, point in drawn.items()}
        predicted.append(sum(point.distortion for point in drawn.values()))
        measured.append(float(measure_replacements(reference, replacements).mean()))
    return Trials(tuple(predicted), tuple(measured))


def _choices(curves: Curves, allowed: Callable[[Measured], bool]) -> Mapping[str, Sequence[Measured]]:
    choices = {
        layer: [point for point in points if not unchanged(point.option) and allowed(point)]
        for layer, points in curves.items()
    }
    choices = {layer: points for layer, points in choices.items() if points}
    if not choices:
        raise ArgumentError("no option may be drawn", got=f"{len(curves)} layers", expected="at least one")
    return choices

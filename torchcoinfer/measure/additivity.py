"""Is the sum of the layers' errors the error of their sum? Measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torchcoinfer.errors import ArgumentError
from torchcoinfer.measure.score import Curves
from torchcoinfer.theory.options import Option


@dataclass(frozen=True)
class Additivity:
    """Predicted against measured distortion of one configuration.

    Attributes:
        predicted: Σ_l E_l(o_l).
        measured: mean relative error on data.
        tolerance: the additive table holds while measured / predicted stays within a factor 1 + tolerance.
    """

    predicted: float
    measured: float
    tolerance: float = 0.25

    @property
    def ratio(self) -> float:
        """measured / predicted; 1 when both are 0."""
        if self.predicted == 0.0:
            return 1.0 if self.measured == 0.0 else math.inf
        return self.measured / self.predicted

    @property
    def holds(self) -> bool:
        return 1.0 / (1.0 + self.tolerance) <= self.ratio <= 1.0 + self.tolerance


def additivity(
    curves: Curves, chosen: Mapping[str, Option], measured: float, tolerance: float = 0.25
) -> Additivity:
    """Compares a configuration's predicted distortion with what was measured.

    Args:
        curves: the table.
        chosen: an option per layer; layers left out are not compressed.
        measured: mean relative error of that configuration.

    Raises:
        ArgumentError: a chosen option is not in the table.
    """
    predicted = sum(distortion_of(curves, layer, option) for layer, option in chosen.items())
    return Additivity(predicted, measured, tolerance)


def distortion_of(curves: Curves, layer: str, option: Option) -> float:
    """E_l(o) from the table."""
    for point in curves.get(layer, ()):
        if point.option == option:
            return point.distortion
    raise ArgumentError("option not in the table", got=f"{layer}: {option}", expected="a scored option")

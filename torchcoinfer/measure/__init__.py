"""What needs both a plan's algorithms and data: curves, measured and certified distortion, telescope."""

from torchcoinfer.measure.additivity import Additivity, additivity, rescale
from torchcoinfer.measure.certify import Unavailable, certify, kappa
from torchcoinfer.measure.cuts import score_cuts
from torchcoinfer.measure.distortion import (
    Reference,
    Telescope,
    measure_distortion,
    measure_replacements,
    reference,
    telescope,
)
from torchcoinfer.measure.score import Curves, Measured, score_options

__all__ = [
    "Additivity",
    "Curves",
    "Measured",
    "Reference",
    "Telescope",
    "Unavailable",
    "additivity",
    "certify",
    "kappa",
    "measure_distortion",
    "measure_replacements",
    "reference",
    "rescale",
    "score_cuts",
    "score_options",
    "telescope",
]

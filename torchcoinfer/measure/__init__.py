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
from torchcoinfer.measure.trials import Trials, random_trials

__all__ = [
    "Additivity",
    "Curves",
    "Measured",
    "Reference",
    "Telescope",
    "Trials",
    "Unavailable",
    "additivity",
    "certify",
    "kappa",
    "measure_distortion",
    "measure_replacements",
    "random_trials",
    "reference",
    "rescale",
    "score_cuts",
    "score_options",
    "telescope",
]

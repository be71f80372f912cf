"""What needs both a plan's algorithms and data: curves, measured and certified distortion, telescope."""

from torchcoinfer.measure.additivity import Additivity, additivity
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
from torchcoinfer.measure.gains import fit_gains
from torchcoinfer.measure.interactions import Interactions, halfway, measure_interactions
from torchcoinfer.measure.score import Curves, Measured, score_options
from torchcoinfer.measure.trials import Trials, random_trials

__all__ = [
    "Additivity",
    "Curves",
    "Interactions",
    "Measured",
    "Reference",
    "Telescope",
    "Trials",
    "Unavailable",
    "additivity",
    "certify",
    "fit_gains",
    "halfway",
    "kappa",
    "measure_distortion",
    "measure_interactions",
    "measure_replacements",
    "random_trials",
    "reference",
    "score_cuts",
    "score_options",
    "telescope",
]

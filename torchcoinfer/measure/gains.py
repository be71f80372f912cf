"""The quadratic model fitted to measured configurations: what one layer's change makes among others.

Far from the original model a layer matters less, or more, than alone or half-way to one configuration: what
comes behind it saturates, or was pruned as well. A gain a_l a layer, and a weight c of the terms between
layers, are fitted to the logarithms of measured errors:

    Q(o) = (1 − c) Σ_l a_l² E‖d_l(o_l)‖² + c E‖Σ_l a_l d_l(o_l)‖²,   a_l > 0, 0 ≤ c ≤ 1.

With gains alone the model stays additive. A ridge holds together what few configurations tell apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import least_squares

from torchcoinfer.errors import ArgumentError
from torchcoinfer.measure.interactions import Interactions
from torchcoinfer.measure.score import unchanged
from torchcoinfer.theory.options import Option

GAIN_RIDGE = 1e-3  # on log-gains around their mean, a configuration
CROSS_RIDGE = 1e-4  # on c around the value it had
MOST_LOG_GAIN = 3.0


def fit_gains(
    found: Interactions, configurations: Sequence[Mapping[str, Option]], measured: Sequence[float]
) -> Interactions:
    """The interactions whose predictions of the configurations come closest to what was measured.

    Args:
        found: vectors of every option that occurs.
        configurations: layer -> option; layers left out are not compressed.
        measured: relative output errors, in the same order, above 0.

    Raises:
        ArgumentError: no configuration, different lengths, an error that is not positive, an option without a
            vector, or a configuration that is predicted to change nothing.
    """
    if not configurations or len(configurations) != len(measured):
        lengths = len(configurations), len(measured)
        raise ArgumentError("configurations and measured", got=lengths, expected="one length, above 0")
    if any(not 0.0 < value < float("inf") for value in measured):
        raise ArgumentError("measured errors", got=list(measured), expected="finite, above 0")
    layers = tuple(dict.fromkeys(name for name, _ in found.vectors))
    grams = np.stack([_gram(found, layers, chosen) for chosen in configurations])
    squares, target = np.einsum("jll->jl", grams), np.log(np.asarray(measured, dtype=np.float64))
    if not np.all(squares.sum(1) > 0.0):
        raise ArgumentError("a configuration changes nothing", expected="a predicted error above 0")
    gain_ridge, cross_ridge = (np.sqrt(r * len(target)) for r in (GAIN_RIDGE, CROSS_RIDGE))

    def residuals(parameters: np.ndarray) -> np.ndarray:
        logs, cross = parameters[:-1], parameters[-1]
        gains = np.exp(logs)
        together = np.einsum("l,jlk,k->j", gains, grams, gains)
        value = (1.0 - cross) * (squares @ gains**2) + cross * together
        told = np.log(np.maximum(value, np.finfo(np.float64).tiny)) - target
        return np.r_[told, gain_ridge * (logs - logs.mean()), cross_ridge * (cross - found.cross)]

    # the solver starts strictly between its bounds
    start = np.r_[np.zeros(len(layers)), np.clip(found.cross, 1e-6, 1.0 - 1e-6)]
    least = np.r_[np.full(len(layers), -MOST_LOG_GAIN), 0.0]
    most = np.r_[np.full(len(layers), MOST_LOG_GAIN), 1.0]
    fitted = least_squares(residuals, start, bounds=(least, most)).x
    gains = dict(zip(layers, np.exp(fitted[:-1]).tolist()))
    vectors = {key: vector * gains[key[0]] for key, vector in found.vectors.items()}
    return replace(found, vectors=vectors, cross=float(fitted[-1]))


def _gram(found: Interactions, layers: Sequence[str], chosen: Mapping[str, Option]) -> np.ndarray:
    """Inner products of the layers' vectors, float64 [layers, layers]; 0 where a layer is as it was."""
    gram = np.zeros((len(layers), len(layers)))
    at = [i for i, name in enumerate(layers) if not unchanged(chosen.get(name, Option()))]
    if at:
        stacked = torch.stack([found.vector(layers[i], chosen[layers[i]]).double() for i in at])
        gram[np.ix_(at, at)] = (stacked @ stacked.T).numpy()
    return gram

"""Histograms of |w| against the exponential that [Q] and [P] assume, layer by layer."""

from __future__ import annotations

import numpy as np

from torchcoinfer.bench.paper.figure import Figure, Panel, Series
from torchcoinfer.bench.paper.subjects import Subject, Subjects
from torchcoinfer.theory.bounds import KS_LIMIT, LaplaceFit, fit_laplace

_BINS, _SHOWN, _RANGE = 40, 8, 6.0


def draw_weights(subjects: Subjects) -> tuple[Figure, ...]:
    """One figure a network: density of lam |w| beside e^-x, and the distance of the two in every layer."""
    names = ["autoencoder"] if subjects.fast else ["autoencoder", "minilm"]
    own = [getattr(subjects, name) for name in names]
    return tuple(_histograms(s) for s in [*own, subjects.language] if s is not None)


def _histograms(subject: Subject) -> Figure:
    magnitudes = {n: w.detach().double().abs().numpy().ravel() for n, w in subject.weights.items()}
    fits = {name: fit_laplace(values) for name, values in magnitudes.items()}
    names = list(magnitudes)
    shown = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, _SHOWN).round().astype(int))]
    together = np.concatenate([values * fits[name].lam for name, values in magnitudes.items()])
    panels = [_panel("all layers, each scaled by its own lambda", together, fit_laplace(together))]
    panels += [_panel(name, magnitudes[name] * fits[name].lam, fits[name]) for name in shown]
    distance = Panel(
        "distance from the exponential",
        "layer",
        "Kolmogorov-Smirnov distance",
        (
            Series("layers", range(len(names)), [fits[name].ks for name in names], "points"),
            Series(f"limit {KS_LIMIT}", [0, len(names) - 1], [KS_LIMIT, KS_LIMIT]),
        ),
    )
    layers = {
        n: {"lam": f.lam, "ks": f.ks, "excess_bits": f.excess_bits, "fits": f.fits} for n, f in fits.items()
    }
    facts = {"layers": layers, "fit": sum(f.fits for f in fits.values()), "of": len(fits)}
    name = subject.name.lower().replace("/", "-")
    return Figure(
        f"weights-{name}", f"|w| of {subject.name} and the exponential fit", "[Q], [P]: weights as Laplacian",
        (*panels, distance), {"network": subject.name, "bins": _BINS}, facts,
        ("a Gaussian has distance .083, a uniform law .153",),
    )  # fmt: skip


def _panel(title: str, scaled: np.ndarray, fit: LaplaceFit) -> Panel:
    edges = np.linspace(0.0, _RANGE, _BINS + 1)
    density = np.histogram(scaled, edges)[0] / (scaled.size * np.diff(edges))
    x = np.linspace(0.0, _RANGE, 61)
    return Panel(
        f"{title}: KS {fit.ks:.3f}",
        "lambda |w|",
        "density",
        (Series("weights", edges, density, "bars"), Series("exponential", x, np.exp(-x))),
    )

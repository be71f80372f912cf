"""From parameter to output distortion: over the bit-width for FCDNN-16, over the pruned share for all."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from torchcoinfer.bench.paper.figure import Figure, Panel, Series
from torchcoinfer.bench.paper.quantizers import KINDS, pruned, quantized
from torchcoinfer.bench.paper.subjects import Subject, Subjects
from torchcoinfer.theory.bounds import fit_laplace, laplacian_distortion, pruning_l1, upper_distortion
from torchcoinfer.theory.bounds_network import worst_case

_MOST_BITS = 10


def draw_bit_width(subjects: Subjects) -> tuple[Figure, ...]:
    """FCDNN-16 over the bit-width: output distortion, [Q]'s surrogate with its bounds, Prop. III.1."""
    subject = subjects.autoencoder
    bits = list(range(2, 7 if subjects.fast else _MOST_BITS + 1))
    measured = {
        kind: [_measure(subject, quantized(subject.weights, kind, b)) for b in bits] for kind in KINDS
    }
    fits = [fit_laplace(w.detach().numpy()) for w in subject.weights.values()]
    floor = [sum(f.numel * float(laplacian_distortion(b, f.lam)) for f in fits) for b in bits]
    top = [sum(f.numel * float(upper_distortion(b - 1, f.lam)) for f in fits) for b in bits]
    signal = float(torch.cat(subject.outputs(subject.judged_on)).abs().sum(1).mean())
    panels = [_output_panel(kind, bits, rows, signal) for kind, rows in measured.items()]
    panels.append(
        Panel(
            "output, relative",
            "bits per weight",
            "E||f - f'||^2 / E||f||^2",
            tuple(Series(kind, bits, [r["relative"] for r in rows]) for kind, rows in measured.items()),
            y_scale="log",
        )
    )
    panels.append(
        Panel(
            "parameters",
            "bits per weight",
            "sum of |w - w'|",
            (
                *(Series(kind, bits, [r["surrogate"] for r in rows]) for kind, rows in measured.items()),
                Series("D_U", bits, top),
                Series("D_L", bits, floor),
            ),
            y_scale="log",
        )
    )
    facts = {
        "output_l1_of_the_signal": signal,
        "overshoot_log10": {
            kind: {key: [r[key] - np.log10(r["output"]) for r in rows] for key in ("induced", "entrywise")}
            for kind, rows in measured.items()
        },
        "not_vacuous_from_bits": {
            kind: next((b for b, r in zip(bits, rows) if r["induced"] < np.log10(signal)), None)
            for kind, rows in measured.items()
        },
        "relative_error": {kind: [r["relative"] for r in rows] for kind, rows in measured.items()},
    }
    notes = (
        "[Q]'s surrogate drops the factors A_l of Prop. III.1; the bound itself exceeds the signal by far",
        "powers of two stop improving: more bits add levels near zero only",
    )
    settings = {"widths_from": "[Q]", "seed": subjects.seed, "grid": "one a layer, clip with least E|w - w'|"}
    return (Figure("bit-width", "FCDNN-16: distortion over the bit-width", "[Q] Prop. III.1, eq. 23-26",
                   tuple(panels), settings, facts, notes),)  # fmt: skip


def _measure(subject: Subject, changed: Mapping[str, Tensor]) -> dict[str, float]:
    """E||f - f'||_1 on the judging data, the surrogate, and both forms of Prop. III.1 as log10."""
    plain = torch.cat(subject.outputs(subject.judged_on)).double()
    error = (torch.cat(subject.outputs(subject.judged_on, changed)).double() - plain).abs().sum(1)
    weights = {name: weight.detach().double() for name, weight in subject.weights.items()}
    deltas = {name: changed[name].double() - weight for name, weight in weights.items()}
    largest = max(float(batch[0].abs().sum(1).max()) for batch in subject.judged_on)
    bound = {}
    for form, norm in (("induced", _induced), ("entrywise", _entrywise)):
        norms, errors = ([norm(m) for m in side.values()] for side in (weights, deltas))
        bound[form] = worst_case(norms, errors, largest).log10_bound
    return {
        "output": float(error.mean()),
        "surrogate": sum(_entrywise(delta) for delta in deltas.values()),
        "relative": subject.relative_error(changed),
        **bound,
    }


def _induced(matrix: Tensor) -> float:
    """Induced l1 norm: the largest column sum."""
    return float(matrix.abs().sum(0).max())


def _entrywise(matrix: Tensor) -> float:
    return float(matrix.abs().sum())


def _output_panel(kind: str, bits: list[int], rows: list[dict[str, float]], signal: float) -> Panel:
    """In powers of ten: the bound leaves the range of a float at entrywise norms."""
    series = [
        Series("Prop. III.1, entrywise norms", bits, [r["entrywise"] for r in rows]),
        Series("Prop. III.1, induced norms", bits, [r["induced"] for r in rows]),
        Series("surrogate: sum |w - w'|", bits, [np.log10(r["surrogate"]) for r in rows]),
        Series("output, measured", bits, [np.log10(r["output"]) for r in rows]),
        Series("the signal itself", bits, [np.log10(signal)] * len(bits)),
    ]
    return Panel(f"output, {kind}", "bits per weight", "log10 of E||f - f'||_1", tuple(series))


def draw_pruning(subjects: Subjects) -> tuple[Figure, ...]:
    """Output against parameter distortion over the pruned share, one figure a network."""
    names = ["autoencoder"] if subjects.fast else ["autoencoder", "minilm"]
    own = [getattr(subjects, name) for name in names]
    return tuple(_pruning(s, subjects) for s in [*own, subjects.language] if s is not None)


def _pruning(subject: Subject, subjects: Subjects) -> Figure:
    shares = np.linspace(0.0, 0.9, 4 if subjects.fast else 10)
    matrices = {n: w for n, w in subject.weights.items() if w.ndim == 2}
    fits = {name: fit_laplace(weight.detach().numpy()) for name, weight in matrices.items()}
    total = sum(fit.numel for fit in fits.values())
    parameter, output = [], []
    for share in shares.tolist():
        changed = pruned(matrices, share)
        lost = {n: float((changed[n] - w.detach()).abs().double().sum()) for n, w in matrices.items()}
        parameter.append(sum(lost[name] * fit.lam for name, fit in fits.items()) / total)
        output.append(subject.relative_error(changed))
    law = pruning_l1(shares)
    panels = (
        Panel("parameters", "pruned share", "lambda E|w - w'|",
              (Series("D1, exponential", shares, law), Series("measured", shares, parameter))),
        Panel("output", "pruned share", "relative output error", (Series("measured", shares, output),)),
        Panel("output over parameters", "lambda E|w - w'|", "relative output error",
              (Series("measured", parameter, output),)),
    )  # fmt: skip
    facts = {"largest_difference_to_D1": float(np.max(np.abs(np.array(parameter) - law)))}
    return Figure(
        f"pruning-{subject.name.lower().replace('/', '-')}",
        f"{subject.name}: distortion over the pruned share",
        "[P*] D1(rho)",
        panels,
        {"network": subject.name, "pruned": "every layer by magnitude, one share for all"},
        facts,
        ("[P] itself was not available: D1 is derived from its abstract",),
    )

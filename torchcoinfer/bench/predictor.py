"""``torchcoinfer bench predictor``: does the additive table foretell what random configurations measure?

Each layer draws its option uniformly and independently; the table is made on one set of samples, the
configurations are measured on another. Beside it stand the scores of ``surrogates``.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor
from tqdm import tqdm

from torchcoinfer.bench.arguments import at_least, natural, output_file, positive_integer
from torchcoinfer.bench.coverage import certified_coverage, kappa_coverage
from torchcoinfer.bench.rows import json_lines
from torchcoinfer.bench.subjects import Subject, load_subject
from torchcoinfer.bench.surrogates import surrogates
from torchcoinfer.calibrate import Statistics, calibrate
from torchcoinfer.calibrate.interpret import Replacement, Shifted
from torchcoinfer.compress.nearest import nearest
from torchcoinfer.measure import (
    Interactions,
    Reference,
    Unavailable,
    fit_gains,
    halfway,
    kappa,
    measure_interactions,
    measure_replacements,
    reference,
    score_options,
)
from torchcoinfer.measure.compensated import compensated
from torchcoinfer.measure.curves import weight_of
from torchcoinfer.measure.score import Curves
from torchcoinfer.report import format_table, write_text
from torchcoinfer.theory.options import WEIGHT_BITS, Option
from torchcoinfer.trace import Traced, trace

RANGES = ((4, 8), (2, 8))
SPARSITIES = (0.25, 0.5)
ALPHA = 0.1
SURROGATE_BATCHES = 2
FIRST_ORDER, QUADRATIC = "additive, first order", "with interactions"
FITTED = "interactions, fitted"
MODELS = FIRST_ORDER, QUADRATIC, FITTED  # in units of the error
# subject -> lowest bits -> least Spearman correlation; another name is a language model's
GOALS = {"minilm": {4: 0.98, 2: 0.98}, "fcdnn": {4: 0.90, 2: 0.85}, "": {4: 0.95, 2: 0.95}}
RATIO_GOAL = {"minilm": (0.85, 1.18)}  # of the 5 and 95 % quantiles of predicted / measured


def _options(bits: Sequence[int], **fields: Any) -> tuple[Option, ...]:
    return tuple(Option(bits=width, group_size=64, **fields) for width in bits)


KINDS: Mapping[str, Callable[[], tuple[Option, ...]]] = {
    "nearest": lambda: _options(WEIGHT_BITS, format="int", algorithm="nearest"),
    "compensated": lambda: _options(WEIGHT_BITS, format="int", algorithm="obs"),
    "pruned": lambda: tuple(
        option
        for share in SPARSITIES
        for option in _options(WEIGHT_BITS, format="bitmap", sparsity=share, algorithm="nearest")
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``torchcoinfer bench predictor``."""
    parser.add_argument(
        "--models", nargs="+", default=["fcdnn", "minilm"],
        help="fcdnn, minilm, or a text model: Hugging Face id or folder",
    )  # fmt: skip
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--configurations", type=at_least(2), default=120, help="per range of bits")
    parser.add_argument("--fitted", type=positive_integer, default=96, help="configurations to fit gains to")
    parser.add_argument("--samples", type=positive_integer, default=128, help="in each set of data")
    parser.add_argument("--seed", type=natural, default=0)
    parser.add_argument("--output", type=output_file, help="file for the JSON rows, one a line")


def main(arguments: argparse.Namespace) -> int:
    """Score, draw, measure; print a table per model and write JSON rows where asked."""
    rows: list[dict[str, Any]] = []
    for spec in arguments.models:
        trial = Trial.of(load_subject(spec, arguments.samples, arguments.seed), arguments.seed)
        for kind in arguments.kinds:
            found = list(trial.rows(kind, arguments.configurations, arguments.fitted))
            print(f"\n{trial.subject.name}, {kind}, {len(trial.layers)} linear layers")
            print(format_table([_shown(row) for row in found]))
            rows += found
    if arguments.output:
        write_text(Path(arguments.output), json_lines(rows))
    return 0


@dataclass
class Made:
    """Weights of one kind of options and what is foretold of them.

    Attributes:
        curves: the first-order table.
        tables: name of an additive score -> layer -> option -> value.
    """

    weights: dict[tuple[str, Option], Tensor]
    shifts: dict[tuple[str, Option], Tensor | None]
    curves: Curves
    tables: dict[str, dict[str, dict[Option, float]]]
    scoring_s: float

    def replacement(self, layer: str, option: Option) -> Replacement:
        return _replacement(self.weights, self.shifts, layer, option)

    def middle(self, lowest: int, own: Callable[[str], Tensor]) -> dict[str, Replacement]:
        """Half of the mean change of the options of at least ``lowest`` bits: where a random configuration's
        other layers are, on average, half-way."""
        changed: dict[str, list[Tensor]] = {}
        for (layer, option), weight in self.weights.items():
            if option.bits >= lowest:
                changed.setdefault(layer, []).append(weight)
        return {n: halfway(own(n), torch.stack(found).mean(0)) for n, found in changed.items()}

    def predicted(
        self, drawn: Sequence[Mapping[str, Option]], models: Mapping[str, Interactions]
    ) -> dict[str, list[float]]:
        """Per score, what it says of each configuration."""
        found = {
            name: [sum(table[n][o] for n, o in chosen.items()) for chosen in drawn]
            for name, table in self.tables.items()
        }
        quadratic = {name: [m.distortion(chosen) for chosen in drawn] for name, m in models.items()}
        return found | quadratic


def _replacement(weights: Any, shifts: Any, layer: str, option: Option) -> Replacement:
    weight, shift = weights[layer, option], shifts.get((layer, option))
    return weight if shift is None else Shifted(weight, shift)


@dataclass
class Trial:
    """A model with its statistics, and its outputs on the data to score and to measure on."""

    subject: Subject
    traced: Traced
    statistics: Statistics
    fit: tuple[tuple[Tensor, ...], ...]
    score: tuple[tuple[Tensor, ...], ...]
    scored: Reference
    held_out: Reference
    layers: tuple[str, ...]
    seed: int

    @classmethod
    def of(cls, subject: Subject, seed: int) -> Trial:
        traced = trace(subject.model, subject.example_inputs)
        statistics = calibrate(traced, (*subject.fit, *subject.score), seed=seed)
        fit, score = (
            statistics.batches[: len(subject.fit)],
            statistics.batches[len(subject.fit) :],
        )
        layers = tuple(
            layer.name for layer in traced.graph.layers if layer.kind == "linear" and len(layer.modules) == 1
        )
        return cls(
            subject, traced, statistics, fit, score, reference(traced, statistics, subject.score),
            reference(traced, statistics, subject.held_out), layers, seed,
        )  # fmt: skip

    def made(self, choices: Sequence[Option]) -> Made:
        """Weights of every option, the first-order table, and other people's scores."""
        options = dict.fromkeys(self.layers, tuple(choices))
        weights, shifts = self._weights(options)
        started = time.perf_counter()
        curves = score_options(
            self.traced, self.statistics, options, weights=lambda layer, option: weights[layer, option],
            shifts=lambda layer, option: shifts.get((layer, option)), batches=self.score, seed=self.seed,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        tables = {FIRST_ORDER: numbers(curves)} | surrogates(
            self.traced, self.statistics, curves, lambda layer, option: weights[layer, option],
            self.score[:SURROGATE_BATCHES], seed=self.seed,
        )  # fmt: skip
        return Made(weights, shifts, curves, tables, seconds)

    def interactions(self, made: Made, kind: str, lowest: int) -> Interactions:
        """Of the options of at least ``lowest`` bits, in the middle of that range."""
        allowed = tuple(option for option in KINDS[kind]() if option.bits >= lowest)
        return measure_interactions(
            self.scored, dict.fromkeys(self.layers, allowed), made.replacement,
            around=made.middle(lowest, partial(weight_of, self.traced)), seed=self.seed, progress=True,
        )  # fmt: skip

    def _weights(
        self, options: Mapping[str, Sequence[Option]]
    ) -> tuple[dict[tuple[str, Option], Tensor], dict[tuple[str, Option], Tensor | None]]:
        if any(option.algorithm == "obs" for choices in options.values() for option in choices):
            found = compensated(self.traced, self.statistics, options, self.fit, self.seed)
            return {key: make() for key, make in found.weights.items()}, found.shifts
        weights = {}
        for layer, choices in options.items():
            own = self.traced.model.get_submodule(self.traced.layer_modules[layer][0]).weight
            for option in choices:
                compressed = nearest(own, option, self.statistics.importance(layer))
                weights[layer, option] = compressed.dequantize()
        return weights, {}

    def rows(self, kind: str, configurations: int, fitted: int) -> Iterator[dict[str, Any]]:
        """One JSON row per range of bits and score."""
        made = self.made(KINDS[kind]())
        for lowest, highest in RANGES:
            drawn = self._draw(kind, lowest, configurations, self.seed)
            started = time.perf_counter()
            interactions = self.interactions(made, kind, lowest)
            interactions_s = time.perf_counter() - started
            started = time.perf_counter()
            seen = self._draw(kind, lowest, fitted, self.seed + 1)
            measured = self._measured(made, seen, self.scored).mean(1)
            models = {QUADRATIC: interactions, FITTED: fit_gains(interactions, seen, measured.tolist())}
            fitted_s = time.perf_counter() - started
            errors = self._measured(made, drawn, self.held_out)
            common = {
                "what": "predictor", "model": self.subject.name, "kind": kind, "bits": [lowest, highest],
                "configurations": configurations, "layers": len(self.layers),
                "mean_measured": float(errors.mean()), "scoring_s": made.scoring_s,
                "interactions_s": interactions_s, "fitted_configurations": fitted, "fitted_s": fitted_s,
                "certified_coverage": certified_coverage(errors, ALPHA, self.seed),
            }  # fmt: skip
            for score, predicted in made.predicted(drawn, models).items():
                judged = judge_score(score, predicted, errors.mean(1).tolist(), self.seed)
                yield common | {"score": score} | judged | self._goal(score, lowest, judged)

    def _measured(
        self, made: Made, drawn: Sequence[Mapping[str, Option]], reference: Reference
    ) -> np.ndarray:
        """Relative errors, [configurations, samples]."""
        bar = tqdm(drawn, desc=f"{self.subject.name}, configurations")
        found = [
            measure_replacements(reference, {n: made.replacement(n, o) for n, o in chosen.items()})
            for chosen in bar
        ]
        return torch.stack(found).numpy()

    def _draw(self, kind: str, lowest: int, configurations: int, seed: int) -> list[dict[str, Option]]:
        generator = random.Random(seed * 1000 + lowest)
        allowed = [option for option in KINDS[kind]() if option.bits >= lowest]
        return [{n: generator.choice(allowed) for n in self.layers} for _ in range(configurations)]

    def _goal(self, score: str, lowest: int, judged: Mapping[str, Any]) -> dict[str, Any]:
        if score not in MODELS:
            return {}
        goal = GOALS.get(self.subject.name, GOALS[""])[lowest]
        low, high = RATIO_GOAL.get(self.subject.name, (0.0, float("inf")))
        ratio = judged["ratio_quantiles"]
        return {"goal": goal, "met": judged["spearman"] >= goal and low <= ratio[0] and ratio[2] <= high}


def numbers(curves: Curves) -> dict[str, dict[Option, float]]:
    return {layer: {p.option: p.distortion for p in points} for layer, points in curves.items()}


def judge_score(
    score: str, predicted: Sequence[float], measured: Sequence[float], seed: int = 0
) -> dict[str, Any]:
    """Spearman's correlation; for scores in units of the error also their ratio to it, κ and its coverage."""
    row: dict[str, Any] = {"spearman": float(spearmanr(predicted, measured).statistic)}
    if score not in MODELS:
        return row
    ratio = np.array(predicted) / np.array(measured)
    factor = kappa(predicted, measured, ALPHA)
    return row | {
        "ratio_quantiles": np.quantile(ratio, [0.05, 0.5, 0.95]).tolist(),
        "kappa": None if isinstance(factor, Unavailable) else factor,
        **kappa_coverage(predicted, measured, ALPHA, seed),
    }


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    ratio, met = row.get("ratio_quantiles"), row.get("met")
    return {
        "bits": "{}-{}".format(*row["bits"]),
        "score": row["score"],
        "Spearman": f"{row['spearman']:.3f}",
        "predicted/measured 5-50-95 %": None if ratio is None else " ".join(f"{r:.2f}" for r in ratio),
        "kappa": None if row.get("kappa") is None else f"{row['kappa']:.2f}",
        "covered": None if "kappa_coverage" not in row else f"{row['kappa_coverage']:.3f}",
        "goal": row.get("goal"),
        "met": None if met is None else "yes" if met else "NO",
    }

"""``torchcoinfer bench paper``: the figures of the papers that the planner builds on, as PNG and JSON.

[Q] = arXiv 2602.13052, [P] = arXiv 2505.09214. Every number is computed or measured here; settings that the
papers do not state are written into the JSON.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

from torchcoinfer.bench.arguments import natural, output_folder
from torchcoinfer.bench.paper.captions import draw_captions
from torchcoinfer.bench.paper.designs import draw_designs
from torchcoinfer.bench.paper.distortions import draw_bit_width, draw_pruning
from torchcoinfer.bench.paper.draw import check_matplotlib, write_png
from torchcoinfer.bench.paper.figure import Figure
from torchcoinfer.bench.paper.rates import draw_rates
from torchcoinfer.bench.paper.subjects import Subjects
from torchcoinfer.bench.paper.trials import draw_splits, draw_trials
from torchcoinfer.bench.paper.weights import draw_weights

FIGURES: dict[str, Callable[[Subjects], tuple[Figure, ...]]] = {
    "weights": draw_weights,
    "rates": draw_rates,
    "bit-width": draw_bit_width,
    "pruning": draw_pruning,
    "designs": draw_designs,
    "trials": draw_trials,
    "splits": draw_splits,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``torchcoinfer bench paper``."""
    parser.add_argument(
        "--output", type=output_folder, default="paper_figures", help="folder for PNG and JSON"
    )
    parser.add_argument("--only", nargs="+", choices=list(FIGURES), help="draw these alone")
    parser.add_argument("--fast", action="store_true", help="little data, short training, for a quick look")
    parser.add_argument("--seed", type=natural, default=0)
    parser.add_argument(
        "--language-model", type=Path, help="folder of a small causal language model, drawn beside the others"
    )
    parser.add_argument(
        "--captions",
        type=Path,
        help="folder with captions.json (COCO layout) and its pictures: the captioning table of [Q], alone",
    )
    parser.add_argument(
        "--caption-model",
        default="Salesforce/blip2-opt-2.7b",
        help="folder or Hugging Face id; microsoft/git-base-coco for GIT",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def main(arguments: argparse.Namespace) -> int:
    """Draw what was asked for; each figure is written as soon as it is drawn."""
    check_matplotlib()
    progress = not arguments.quiet
    if arguments.captions is not None:
        figures = draw_captions(
            arguments.caption_model, arguments.captions, fast=arguments.fast, progress=progress
        )
        _write(figures, arguments)
        return 0
    subjects = Subjects(
        fast=arguments.fast,
        seed=arguments.seed,
        language_model=arguments.language_model,
        progress=progress,
    )
    if subjects.language_model is None:
        print("no language model: --language-model FOLDER adds one to the figures of weights and pruning")
    for name in arguments.only or FIGURES:
        started = time.perf_counter()
        with torch.random.fork_rng(devices=[]):
            _write(FIGURES[name](subjects), arguments)
        print(f"  {name} took {time.perf_counter() - started:.1f} s")
    return 0


def _write(figures: tuple[Figure, ...], arguments: argparse.Namespace) -> None:
    arguments.output.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        figure.write_json(arguments.output)
        path = write_png(figure, arguments.output, dpi=60 if arguments.fast else 150)
        print(f"{path}: {figure.title}")

"""``torchcoinfer bench models``: whole packed models against the original in float32 and bfloat16.

MiniLM with 4-bit linear layers at batch 1 and 32 (32 tokens each), ResNet-50 with 8-bit convolutions at batch
1. All of a model's variants take turns on one input.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchcoinfer.bench import timing
from torchcoinfer.bench.arguments import output_file, positive_integer
from torchcoinfer.bench.timing import Contender
from torchcoinfer.models import load_model
from torchcoinfer.nn import QuantConv2d, QuantLinear
from torchcoinfer.ops import cpu_isa
from torchcoinfer.report import format_table, write_text

GROUP_SIZE = 64
TOKENS = 32
FLOAT32, BFLOAT16 = "float32, eager", "bfloat16, eager"
# (model, batch) -> {baseline: least speed-up of the best packed variant}
GOALS = {
    ("minilm", 1): {FLOAT32: 1.5, BFLOAT16: 1.2},
    ("minilm", 32): {FLOAT32: 1.0, BFLOAT16: 1.0},
    ("resnet50", 1): {FLOAT32: 1.3},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``torchcoinfer bench models``."""
    names = sorted({name for name, _ in GOALS})
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    parser.add_argument("--threads", type=positive_integer, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=4.0, help="per race")
    parser.add_argument("--output", type=output_file, help="file for the JSON rows, one a line")


def main(arguments: argparse.Namespace) -> int:
    """Race, print a table a model and batch, write JSON rows where asked."""
    found: list[dict[str, Any]] = []
    with timing.torch_threads(arguments.threads), torch.inference_mode():
        for name in arguments.models:
            original, widths = load_original(name), WIDTHS[name]
            variants = [(told, make(original)) for told, make in widths.items()]
            for batch in (batch for model, batch in GOALS if model == name):
                found += _race(name, batch, [(FLOAT32, original), *variants], arguments)
    if arguments.output:
        write_text(Path(arguments.output), "".join(json.dumps(row) + "\n" for row in found))
    return 0


def load_original(name: str) -> nn.Module:
    """The float32 model; ResNet-50 with random weights, which take the same time."""
    if name == "minilm":
        return load_model("minilm").model.eval()
    return load_model("torchvision:resnet50").model.eval()


def packed(original: nn.Module, bits: int, activation_bits: int | None = None) -> nn.Module:
    """A copy with every linear layer and convolution packed, rounded to nearest."""
    model = copy.deepcopy(original)
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear):
                made: nn.Module = QuantLinear.from_float(layer, bits, GROUP_SIZE, activation_bits)
            elif isinstance(layer, nn.Conv2d):
                made = QuantConv2d.from_float(layer, bits, 0 if bits == 8 else GROUP_SIZE, activation_bits)
            else:
                continue
            setattr(parent, name, made)
    return model


def _half(original: nn.Module) -> nn.Module:
    return copy.deepcopy(original).bfloat16()


def _packed_half(original: nn.Module, bits: int, activation_bits: int | None = None) -> nn.Module:
    return packed(original, bits, activation_bits).bfloat16()


Maker = Callable[[nn.Module], nn.Module]
WIDTHS: dict[str, dict[str, Maker]] = {
    "minilm": {
        BFLOAT16: _half,
        "W4, float32": partial(packed, bits=4),
        "W4, bfloat16": partial(_packed_half, bits=4),
        "W4A8, float32": partial(packed, bits=4, activation_bits=8),
        "W4A8, bfloat16": partial(_packed_half, bits=4, activation_bits=8),
    },
    "resnet50": {
        BFLOAT16: _half,
        "W8, float32": partial(packed, bits=8),
        "W8, bfloat16": partial(_packed_half, bits=8),
        "W8A8, float32": partial(packed, bits=8, activation_bits=8),
        "W8A8, bfloat16": partial(_packed_half, bits=8, activation_bits=8),
    },
}


def inputs(name: str, batch: int) -> dict[str, torch.Tensor]:
    """Random tokens with nothing padded, or random images."""
    if name == "minilm":
        ids = torch.randint(1000, 20000, (batch, TOKENS))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {"x": torch.randn(batch, 3, 224, 224)}


def _race(
    name: str, batch: int, models: Sequence[tuple[str, nn.Module]], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    given = inputs(name, batch)
    contenders = []
    for told, model in models:
        dtype = torch.bfloat16 if "bfloat16" in told else torch.float32
        cast = {key: value.to(dtype) if value.is_floating_point() else value for key, value in given.items()}
        size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        contenders.append(Contender(told, [partial(model, **cast)], size))
    timing.race(contenders, arguments.threads, arguments.seconds)
    baselines = {one.name: one for one in contenders if one.name in (FLOAT32, BFLOAT16)}
    shape = next(iter(given.values())).shape
    rows = []
    for one in contenders:
        speed_up = {key: base.median_s / one.median_s for key, base in baselines.items()}
        told = {"model": name, "batch": batch, "isa": cpu_isa(), "cpu": timing.cpu_model()}
        rows.append(timing.row(one, "model", shape, speed_up=speed_up, **told))
    print(f"\n{name}, batch {batch}, {arguments.threads} threads, {timing.cpu_model()}, {cpu_isa()}")
    print(format_table([_shown(row) for row in rows]))
    for told in verdicts(name, batch, rows):
        print(told)
    return rows


def verdicts(name: str, batch: int, rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """For each goal, what the fastest packed variant reached."""
    by_name = {row["kernel"]: row for row in rows}
    best = min(
        (row for row in rows if row["kernel"] not in (FLOAT32, BFLOAT16)), key=lambda row: row["median_s"]
    )
    for baseline, least in GOALS[name, batch].items():
        reached = best["speed_up"][baseline]
        reasons = [row["judged"] for row in (best, by_name[baseline]) if row["judged"] is not True]
        verdict = reasons[0] if reasons else "hit" if reached >= least else "MISS"
        yield f"{best['kernel']} is {reached:.2f} times as fast as {baseline}; goal {least:.1f}: {verdict}"


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": row["kernel"],
        "weights": f"{row['bytes'] / 1e6:.1f} MB",
        "median": f"{1e3 * row['median_s']:.2f} ms",
        "p90": f"{1e3 * row['p90_s']:.2f} ms",
        **{f"speed-up on {key}": f"{ratio:.2f}x" for key, ratio in row["speed_up"].items()},
        "judged": "yes" if row["judged"] is True else row["judged"],
    }

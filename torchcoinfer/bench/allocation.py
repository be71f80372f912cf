"""``torchcoinfer bench allocation``: at equal bytes, who spends them best?

The planner's exact joint choice beside uniform widths, three heuristics, and the parts of itself: widths
only, pruning only, pruning before widths. All of these are rounded to nearest, predicted by one table and
measured on samples that no choice has seen; only linear layers are compressed. The last method is the
pipeline's: error compensation where it matters, and interactions where errors do not add up. Then the same
for the cut: chosen jointly, or after the model was compressed as a whole.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torchcoinfer.bench.allocators import (
    GROUP_SIZE,
    PROFILES,
    Allocator,
    Chosen,
    Splitter,
    dense,
    is_dense,
    is_pruned_only,
)
from torchcoinfer.bench.arguments import natural, output_file, positive_integer
from torchcoinfer.bench.predictor import FIRST_ORDER, Made, Trial
from torchcoinfer.bench.rows import json_lines
from torchcoinfer.bench.subjects import load_subject
from torchcoinfer.measure import Measured, measure_replacements
from torchcoinfer.measure.curves import cut_curves
from torchcoinfer.pipeline.refine import refined, replacement_of
from torchcoinfer.pipeline.run import Run, apply
from torchcoinfer.profile import device_profile, link_profile, server_profile
from torchcoinfer.report import format_table, write_text
from torchcoinfer.theory.budget import Budget, Search, Workload
from torchcoinfer.theory.graph import candidate_cuts
from torchcoinfer.theory.options import WEIGHT_BITS, Option
from torchcoinfer.theory.plan import Plan

WIDTHS = (2, 3, 4, 5, 6)
GROUP_SIZES = (32, 64, 128)
SPARSITIES = (0.25, 0.5)
FLOAT_SPARSITIES = (0.5, 0.625, 0.75, 0.875)  # pruning alone has to reach few bits a weight
UNIFORM, JOINT, PLANNED = "uniform", "joint", "planned, compensated"
PARTS = ("widths only", "pruning only", "pruned, then widths")
HEURISTICS = (UNIFORM, "first and last high", "sort and cut", "Fisher + LP")
# model -> most of the uniform 4-bit error that the joint choice may have
GOALS = {"minilm": 0.72, "fcdnn": 0.4}
SLACK = 1.02  # a measured error counts as no worse up to here


def options() -> tuple[Option, ...]:
    """Dense widths in three group sizes, pruned widths, and pruning alone."""
    pruned = [
        Option(bits, share, format_, GROUP_SIZE, algorithm="nearest")
        for bits in WEIGHT_BITS
        for format_, shares in (("bitmap", SPARSITIES), ("2:4", (0.5,)))
        for share in shares
    ]
    alone = [Option(16, share, "bitmap", algorithm="nearest") for share in FLOAT_SPARSITIES]
    codes = [dense(bits, group_size) for bits in WEIGHT_BITS for group_size in GROUP_SIZES]
    return (*codes, *pruned, *alone)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``torchcoinfer bench allocation``."""
    parser.add_argument(
        "--models", nargs="+", default=["fcdnn", "minilm"],
        help="fcdnn, minilm, or a text model: Hugging Face id or folder",
    )  # fmt: skip
    parser.add_argument("--widths", nargs="+", type=int, choices=WIDTHS, default=list(WIDTHS))
    parser.add_argument("--samples", type=positive_integer, default=128, help="in each set of data")
    parser.add_argument("--seed", type=natural, default=0)
    parser.add_argument("--output", type=output_file, help="file for the JSON rows, one a line")


def main(arguments: argparse.Namespace) -> int:
    """Allocate, measure, print; write JSON rows where asked."""
    rows: list[dict[str, Any]] = []
    for spec in arguments.models:
        trial = Trial.of(load_subject(spec, arguments.samples, arguments.seed), arguments.seed)
        race = Race(trial)
        found = [row for width in arguments.widths for row in race.rows(width)]
        found += [row for width in arguments.widths for row in race.split_rows(width)]
        print(f"\n{trial.subject.name}, {len(trial.layers)} linear layers")
        print(format_table([_shown(row) for row in found]))
        print("\n".join(verdicts(found)))
        rows += found
    if arguments.output:
        write_text(Path(arguments.output), json_lines(rows))
    return 0


class Race:
    """One model: every allocator at every size."""

    def __init__(self, trial: Trial):
        self.trial = trial
        self.made: Made = trial.made(options())
        self.allocator = Allocator.of(trial.traced.graph, trial.layers, self.made.tables, FIRST_ORDER)
        cuts = [cut for cut in candidate_cuts(trial.traced.graph) if cut.name != "server"]
        cut_table = cut_curves(trial.traced, trial.statistics, cuts, Search(seed=trial.seed))
        self.splitter = Splitter(self.allocator, cut_table)

    def rows(self, width: int) -> Iterator[dict[str, Any]]:
        """One row a method, at the bytes of the uniform width."""
        most = self.allocator.bytes_of(self.allocator.uniform(width))
        planned, told = self._planned(most)
        methods: dict[str, Chosen | None] = {
            UNIFORM: self.allocator.uniform(width),
            "first and last high": self.allocator.first_last_high(most),
            "sort and cut": self.allocator.sort_and_cut(most),
            "Fisher + LP": self.allocator.fisher_lp(most),
            "widths only": self.allocator.exact(most, is_dense),
            "pruning only": self.allocator.exact(most, is_pruned_only),
            "pruned, then widths": self.allocator.prune_then_quantize(most),
            JOINT: self.allocator.exact(most, lambda option: True),
        }
        common = {"what": "allocation", "model": self.trial.subject.name, "width": width, "most_bytes": most}
        for name, chosen in methods.items():
            row = common | {"method": name}
            if chosen is None:
                yield row | {"predicted": None, "measured": None, "note": "nothing fits"}
                continue
            yield row | {
                "bytes": self.allocator.bytes_of(chosen), "predicted": self.allocator.predicted(chosen),
                "measured": self._measured(chosen),
            }  # fmt: skip
        yield common | {"method": PLANNED, "bytes": self.allocator.bytes_of(planned)} | told

    def split_rows(self, width: int) -> Iterator[dict[str, Any]]:
        """Half of the uniform width's bytes on either side: jointly, or compressed before it is cut."""
        graph = self.trial.traced.graph
        floats = sum(layer.weight_bytes for layer in graph.layers if layer.name not in self.trial.layers)
        most = self.allocator.bytes_of(self.allocator.uniform(width))
        # float layers are embeddings: on the device; activations take a few of the largest tensors
        server = most / 2 + 4 * max(tensor.nbytes for tensor in graph.tensors.values())
        budget = Budget(device_memory=floats + server, server_memory=server)
        sizes = [round(most * share / 20) for share in range(8, 41)]
        for name, plan in (
            ("cut after compression", self.splitter.after_compression(budget, sizes)),
            ("cut jointly", self.splitter.joint(budget)),
        ):
            row = {"what": "split", "model": self.trial.subject.name, "width": width, "method": name}
            if plan is None:
                yield row | {"predicted": None, "measured": None, "note": "nothing fits"}
                continue
            chosen = {n: plan.layers[n].option for n in self.trial.layers}
            yield row | {
                "bytes": self.allocator.bytes_of(chosen), "cut": plan.cut.name,
                "predicted": plan.predicted["distortion"], "measured": self._measured_halves(plan),
            }  # fmt: skip

    def _measured_halves(self, plan: Plan) -> float:
        """Both sides in turn on held-out samples, with the codec between them."""
        trial = self.trial
        result = apply(
            trial.traced, trial.statistics, trial.held_out, plan, trial.subject.example_inputs, None,
            Workload(), Search(seed=trial.seed), {}, False,
        )  # fmt: skip
        return result.plan.bounds["output"]["measured"]["value"]

    def _planned(self, most: int) -> tuple[Chosen, dict[str, Any]]:
        """What the pipeline plans from the same table, with the weights that it scored."""
        trial, (device, server, link) = self.trial, PROFILES
        table = {name: (Measured(Option(), 0.0), *points) for name, points in self.made.curves.items()}
        run = Run(
            trial.traced, trial.statistics, None, table, {}, device_profile(device),
            server_profile(server), link_profile(link), Workload(),
            Search(cut="device", gap=0.0, seed=trial.seed), trial.subject.example_inputs, None, False,
        )  # fmt: skip
        budget = self.allocator.budget(most)
        plan, details = refined(run, budget, run.planned(budget))
        chosen = {name: plan.layers[name].option for name in trial.layers}
        packed = {name: option for name, option in chosen.items() if option.format != "float"}
        replacements = {name: replacement_of(run, name, option) for name, option in packed.items()}
        return chosen, {
            "additivity": details["additivity"], "predicted": plan.predicted["distortion"],
            "measured": float(measure_replacements(trial.held_out, replacements).mean()),
        }  # fmt: skip

    def _measured(self, chosen: Mapping[str, Option]) -> float:
        replacements = {
            name: self.made.replacement(name, option)
            for name, option in chosen.items()
            if option.format != "float"
        }
        return float(measure_replacements(self.trial.held_out, replacements).mean())


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """What was promised, in words and figures."""
    told = []
    by_width: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_width.setdefault((row["what"], row["width"]), {})[row["method"]] = row
    pairs = (
        ("widths only", HEURISTICS, "allocation"),
        (JOINT, HEURISTICS, "allocation"),
        (JOINT, PARTS, "allocation"),
        (PLANNED, (*HEURISTICS, *PARTS, JOINT), "allocation"),
        ("cut jointly", ("cut after compression",), "split"),
    )
    for own, others, what in pairs:
        cells = [
            (found[own], found[other])
            for (kind, _), found in by_width.items()
            for other in others
            if kind == what and found[own]["measured"] is not None and found[other]["measured"] is not None
        ]
        if cells:
            told.append(f"{own} against {', '.join(others)}: {_counts(cells)}")
    model = rows[0]["model"]
    at_four = by_width.get(("allocation", 4))
    if at_four and model in GOALS:
        joint, planned = (at_four[m]["measured"] / at_four[UNIFORM]["measured"] for m in (JOINT, PLANNED))
        met = "met" if joint <= GOALS[model] else "MISSED"
        told.append(
            f"at the bytes of uniform 4 bits: {joint:.3f} x its error (goal {GOALS[model]}: {met}), "
            f"{planned:.3f} x compensated"
        )
    return told


def _counts(cells: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    tolerance = 1.0 + 1e-9
    predicted = sum(own["predicted"] <= other["predicted"] * tolerance for own, other in cells)
    measured = sum(own["measured"] <= other["measured"] * SLACK for own, other in cells)
    better = sum(own["measured"] < other["measured"] for own, other in cells)
    return (
        f"predicted no worse in {predicted} of {len(cells)} cells, measured no worse (2 %) in {measured}, "
        f"measured strictly better in {better}"
    )


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "what": row["what"],
        "bytes of": f"{row['width']} bits",
        "method": row["method"],
        "bytes": f"{row['bytes']:,}" if "bytes" in row else None,
        "predicted": None if row["predicted"] is None else f"{row['predicted']:.4g}",
        "measured": None if row["measured"] is None else f"{row['measured']:.4g}",
        "note": row.get("note") or row.get("cut"),
    }

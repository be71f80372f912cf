"""The table the solver reads: every option of every layer scored with the algorithm that will be applied.

Rounding to nearest is scored first, for all options; error compensation (``compensated.py``) only where a
first solution showed that it matters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from torchcoinfer import ops
from torchcoinfer.calibrate import Statistics
from torchcoinfer.calibrate.judge import batch_size
from torchcoinfer.compress import nearest, option_of
from torchcoinfer.compress.nearest import pruning_mask
from torchcoinfer.compress.pack import weight_matrix
from torchcoinfer.measure.cuts import score_cuts
from torchcoinfer.measure.distortion import Reference
from torchcoinfer.measure.score import WORKING_SET_BYTES, Curves, Measured, score_options
from torchcoinfer.split import coded_leading_dims
from torchcoinfer.theory.budget import Search
from torchcoinfer.theory.graph import Cut, Layer
from torchcoinfer.theory.options import Option, candidate_options, packed_bytes
from torchcoinfer.theory.plan import LayerPlan
from torchcoinfer.trace import Traced

SCORING_SAMPLES = 48  # a curve's standard error is a few percent by then
CUT_SAMPLES, CUT_PROBES = 16, 4
SURVIVORS = 3  # error-compensated options a layer
NEIGHBORS = 2  # on either side of a chosen option


@dataclass(frozen=True)
class Data:
    """Calibration batches by use, disjoint if possible: ``fit`` makes Hessians, ``score`` is probed."""

    fit: tuple[tuple[Tensor, ...], ...]
    score: tuple[tuple[Tensor, ...], ...]

    @classmethod
    def of(cls, statistics: Statistics, samples: int = SCORING_SAMPLES) -> Data:
        """Every third batch, at most ``samples`` of their samples, carries the probes.

        Not the last third: texts are often sorted by length, and long ones alone would be scored.
        """
        batches = statistics.batches
        if len(batches) == 1:
            return cls(batches, batches)
        third = batches[-1::-3][::-1]  # the last one, so that two batches make one for each use
        fit = tuple(batch for index, batch in enumerate(batches) if (len(batches) - 1 - index) % 3)
        wanted = -(-samples // max(1, max(map(batch_size, third))))
        step = max(1, len(third) // wanted)
        return cls(fit, tuple(third[::-step][::-1][-wanted:]))


def nearest_curves(
    traced: Traced, statistics: Statistics, search: Search, *, progress: bool = False
) -> Curves:
    """Scores rounding to nearest for every option that ``search`` allows."""
    options = {layer.name: layer_options(layer, search) for layer in traced.graph.layers}
    rounding = Nearest(traced, statistics)
    data = Data.of(statistics)
    return score_options(
        traced, statistics, options, weights=rounding, batches=data.score, seed=search.seed, progress=progress
    )


def layer_options(layer: Layer, search: Search) -> tuple[Option, ...]:
    """What a layer may choose, rounded to nearest; float64, which no kernel runs, stays as it is."""
    if layer.weight_bytes > 4 * layer.numel:
        return (Option(),)
    return candidate_options(
        layer.kind,
        bits=search.bits,
        sparsities=search.sparsities,
        formats=search.formats,
        group_sizes=search.group_sizes,
        activation_bits=search.activation_bits,
    )


class Nearest:
    """(layer, option) -> the dense weight of rounding to nearest.

    Of an embedding only rows that calibration read are rounded: no other row can change a score. Options come
    sorted by format, so that the mask of one sparsity is made once for all bit-widths.
    """

    def __init__(self, traced: Traced, statistics: Statistics):
        self.traced, self.statistics = traced, statistics
        self._last_mask: tuple[tuple[str, str, float], Tensor | None] | None = None

    def __call__(self, layer: str, option: Option) -> Tensor:
        weight = weight_of(self.traced, layer).float()
        rows = self.statistics.row_counts.get(layer)
        importance = self.statistics.importance(layer)
        if rows is None or importance is not None:  # of a tied embedding the linear layer reads all rows
            key = (layer, option.format, option.sparsity)
            if self._last_mask is None or self._last_mask[0] != key:
                self._last_mask = (key, pruning_mask(weight, option, importance))
            return nearest(weight, option, importance, self._last_mask[1]).dequantize()
        seen = rows.nonzero().flatten()
        compressed = weight.clone()
        compressed[seen] = nearest(weight[seen], option, None).dequantize()
        return compressed


def weight_of(traced: Traced, layer: str) -> Tensor:
    """[N, K]."""
    return weight_matrix(modules_of(traced, layer)[0])


def modules_of(traced: Traced, layer: str) -> list[nn.Module]:
    """The modules that share the layer's weight."""
    return [traced.model.get_submodule(path) for path in traced.layer_modules[layer]]


def survivors(traced: Traced, curves: Curves, chosen: Mapping[str, Option]) -> dict[str, tuple[Option, ...]]:
    """Per compressed layer: the chosen option and its neighbors on the front, those not compensated yet.

    Tied embeddings are left out: what would compensate for their rows is not what would for their columns.
    """
    found = {}
    for layer in traced.graph.layers:
        option = chosen.get(layer.name)
        tied = layer.kind == "embedding" and len(layer.modules) > 1
        if option is None or option.format == "float" or tied:
            continue
        scored = {point.option for point in curves[layer.name]}
        front = _front(layer, [point for point in curves[layer.name] if point.option.algorithm != "obs"])
        plain = replace(option, algorithm="nearest")
        position = min(
            range(len(front)),
            key=lambda i: abs(option_bytes(layer, front[i].option) - option_bytes(layer, plain)),
        )
        start = max(0, min(position - 1, len(front) - SURVIVORS))
        near = [point.option for point in front[start : start + SURVIVORS]]
        wanted = dict.fromkeys([plain, *near])
        found[layer.name] = tuple(o for o in wanted if replace(o, algorithm="obs") not in scored)
    return {layer: options for layer, options in found.items() if options}


def option_bytes(layer: Layer, option: Option) -> int:
    """Packed bytes of a layer in an option."""
    return packed_bytes(option, layer.rows, layer.columns, layer.weight_bytes // layer.numel)


def _front(layer: Layer, points: Sequence[Measured]) -> list[Measured]:
    """Compressed options that no smaller one beats, by bytes ascending."""
    front: list[Measured] = []
    compressed = [point for point in points if point.option.format != "float"]
    for point in sorted(compressed, key=lambda p: (option_bytes(layer, p.option), p.distortion)):
        if not front or point.distortion < front[-1].distortion:
            front.append(point)
    return front


def near(traced: Traced, curves: Curves, name: str, chosen: Option) -> tuple[Option, ...]:
    """The option and its neighbors on the layer's front, two smaller and two larger; of none, the largest."""
    layer = next(layer for layer in traced.graph.layers if layer.name == name)
    front = [point.option for point in _front(layer, curves[name])]
    if chosen.format == "float":
        return tuple(front[-NEIGHBORS:])
    size, others = option_bytes(layer, chosen), [option for option in front if option != chosen]
    smaller = [option for option in others if option_bytes(layer, option) < size]
    return (*smaller[-NEIGHBORS:], chosen, *others[len(smaller) :][:NEIGHBORS])


def scoring_reference(traced: Traced, statistics: Statistics) -> Reference:
    """The original model's outputs on the samples that carry the probes, as many as a working set holds."""
    taken, held = [], 0
    for inputs in Data.of(statistics).score:
        found = Reference.of_flat(traced, statistics, [inputs])
        held += found.judged[0].numel() * found.judged[0].element_size()
        if taken and held > WORKING_SET_BYTES:
            break
        taken.append(found)
    return Reference(
        traced, statistics, (), tuple(r.inputs[0] for r in taken), tuple(r.judged[0] for r in taken)
    )


def merged(curves: Curves, more: Curves) -> Curves:
    """Both tables; where an option stands in both the second counts."""
    table = {}
    for layer, points in curves.items():
        new = {point.option: point for point in more.get(layer, ())}
        table[layer] = (*(new.pop(point.option, point) for point in points), *new.values())
    return table


def cut_curves(
    traced: Traced, statistics: Statistics, cuts: Sequence[Cut], search: Search, *, progress: bool = False
) -> dict[str, tuple[tuple[int, float], ...]]:
    """Distortion of coding each floating tensor that may cross, at every width of ``search.cut_bits``."""
    widths = tuple(bits for bits in search.cut_bits if bits is not None)
    names = dict.fromkeys(name for cut in cuts if cut.name != "device" for name in cut.tensors)
    leading = {name: coded_leading_dims(traced.tensor_nodes[name].meta["val"]) for name in names}
    codable = [name for name in names if leading[name] is not None]
    if not widths or not codable:
        return {}

    def code(name: str, value: Tensor, bits: int) -> Tensor:
        encoded = ops.encode_activation(value, bits, "token", leading[name])
        trailing = list(value.shape[leading[name] :])
        return ops.decode_activation(*encoded, bits, "token", trailing, value.dtype)

    scored = score_cuts(
        traced,
        statistics,
        {name: widths for name in codable},
        code=code,
        batches=Data.of(statistics, CUT_SAMPLES).score,
        probes=CUT_PROBES,
        seed=search.seed,
        progress=progress,
    )
    return {name: tuple((b, d) for b, d in table.items() if b is not None) for name, table in scored.items()}


def plain_points(curves: Curves) -> dict[str, tuple[tuple[Option, float], ...]]:
    """Numbers only, as ``theory`` takes them."""
    return {
        layer: tuple((point.option, point.distortion) for point in points) for layer, points in curves.items()
    }


def report_rows(
    traced: Traced, layer: Layer, points: Sequence[Measured], chosen: LayerPlan
) -> list[dict[str, float | bool | None]]:
    """A layer's curve for the report: bits per weight, output distortion, and λ·E|ŵ − w| (unit-free)."""
    with torch.no_grad():
        mean_magnitude = float(weight_of(traced, layer.name).abs().mean())
    return [
        {
            "bits_per_weight": 8.0 * option_bytes(layer, point.option) / layer.numel,
            "distortion": point.distortion,
            "scaled_l1": point.weight_l1 / mean_magnitude if mean_magnitude > 0 else None,
            "chosen": point.option == option_of(chosen),
        }
        for point in points
    ]

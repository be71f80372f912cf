"""The table the solver reads: every option of every layer scored with the algorithm that will be applied.

Rounding to nearest is scored first, for all options. Error-compensated weights are made and
scored only for options that a first solution showed to matter, with probes on other samples than those of
their Hessians.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from tqdm import tqdm

from torchcoinfer import ops
from torchcoinfer.calibrate import Statistics, Stream, embedding_sensitivity
from torchcoinfer.calibrate.judge import batch_size
from torchcoinfer.compress import LayerInputs, Quantized, nearest, obs, option_of, segment_inputs
from torchcoinfer.compress.nearest import pruning_mask
from torchcoinfer.compress.pack import weight_matrix
from torchcoinfer.measure.cuts import score_cuts
from torchcoinfer.measure.score import Curves, Measured, score_options
from torchcoinfer.split import coded_leading_dims
from torchcoinfer.theory.budget import Search
from torchcoinfer.theory.graph import Cut, Layer
from torchcoinfer.theory.options import Option, candidate_options, packed_bytes
from torchcoinfer.theory.plan import LayerPlan
from torchcoinfer.trace import Traced

SCORING_SAMPLES = 48  # a curve's standard error is a few percent by then
CUT_SAMPLES, CUT_PROBES = 16, 4
SURVIVORS = 3  # error-compensated options a layer


@dataclass(frozen=True)
class Data:
    """Calibration batches by use, disjoint if possible: ``fit`` makes Hessians, ``score`` is probed."""

    fit: tuple[tuple[Tensor, ...], ...]
    score: tuple[tuple[Tensor, ...], ...]

    @classmethod
    def of(cls, statistics: Statistics, samples: int = SCORING_SAMPLES) -> Data:
        """The last third of the batches, at most ``samples`` of their samples, carries the probes."""
        batches = statistics.batches
        if len(batches) == 1:
            return cls(batches, batches)
        first = len(batches) - max(1, len(batches) // 3)
        score: list[tuple[Tensor, ...]] = []
        for batch in batches[first:]:
            if sum(map(batch_size, score)) < samples:
                score.append(batch)
        return cls(batches[:first], tuple(score))


def nearest_curves(
    traced: Traced, statistics: Statistics, search: Search, *, progress: bool = False
) -> Curves:
    """Scores rounding to nearest for every option that ``search`` allows."""
    options = {layer.name: layer_options(layer, search) for layer in traced.graph.layers}
    rounding = _Nearest(traced, statistics)
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


class _Nearest:
    """(layer, option) -> the dense weight of rounding to nearest.

    Of an embedding only rows that calibration read are rounded: no other row can change a score. Options come
    sorted by format, so that the mask of one sparsity is made once for all bit-widths.
    """

    def __init__(self, traced: Traced, statistics: Statistics):
        self.traced, self.statistics = traced, statistics
        self._last_mask: tuple[tuple[str, str, float], Tensor | None] | None = None

    def __call__(self, layer: str, option: Option) -> Tensor:
        weight = _weight(self.traced, layer).float()
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


def _weight(traced: Traced, layer: str) -> Tensor:
    return weight_matrix(_modules(traced, layer)[0])


def _modules(traced: Traced, layer: str) -> list[nn.Module]:
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
            key=lambda i: abs(_bytes(layer, front[i].option) - _bytes(layer, plain)),
        )
        start = max(0, min(position - 1, len(front) - SURVIVORS))
        near = [point.option for point in front[start : start + SURVIVORS]]
        wanted = dict.fromkeys([plain, *near])
        found[layer.name] = tuple(o for o in wanted if replace(o, algorithm="obs") not in scored)
    return {layer: options for layer, options in found.items() if options}


def _bytes(layer: Layer, option: Option) -> int:
    return packed_bytes(option, layer.rows, layer.columns, layer.weight_bytes // layer.numel)


def _front(layer: Layer, points: Sequence[Measured]) -> list[Measured]:
    """Compressed options that no smaller one beats, by bytes ascending."""
    front: list[Measured] = []
    compressed = [point for point in points if point.option.format != "float"]
    for point in sorted(compressed, key=lambda p: (_bytes(layer, p.option), p.distortion)):
        if not front or point.distortion < front[-1].distortion:
            front.append(point)
    return front


def obs_curves(
    traced: Traced,
    statistics: Statistics,
    options: Mapping[str, Sequence[Option]],
    search: Search,
    *,
    progress: bool = False,
) -> Curves:
    """Makes and scores error-compensated weights for the options given, on uncompressed inputs."""
    data = Data.of(statistics)
    embeddings = [
        layer.name for layer in traced.graph.layers if layer.kind == "embedding" and options.get(layer.name)
    ]
    minded = embedding_sensitivity(traced, statistics.judge, data.fit, embeddings, seed=search.seed)
    made: dict[tuple[str, Option], Callable[[], Tensor]] = {}
    shifts: dict[tuple[str, Option], Tensor | None] = {}
    bar = tqdm(total=sum(map(len, options.values())), desc="compensate", unit="option", disable=not progress)
    for segment in Stream(traced, data.fit):
        due = {name: _modules(traced, name) for name in segment.layers if options.get(name)}
        inputs = segment_inputs(segment, due, drift=False)
        inputs |= {name: LayerInputs.of_sensitivity(minded[name]) for name in due if name in minded}
        for name in due:
            weight, known = _weight(traced, name), inputs.get(name)
            # of an embedding no row can change a score that the data do not read
            rows = statistics.row_counts[name].nonzero().flatten() if name in minded else slice(None)
            for option in options[name] if known is not None else ():
                key = name, replace(option, algorithm="obs")
                compressed = obs(weight[rows], key[1], known.hessians)
                made[key] = partial(_dense, weight, rows, compressed)
                shifts[key] = known.mean_error(weight, compressed)
            bar.update(len(options[name]))
    bar.close()
    if not made:
        return {}
    wanted: dict[str, list[Option]] = {}
    for name, option in made:
        wanted.setdefault(name, []).append(option)
    return score_options(
        traced,
        statistics,
        wanted,
        weights=lambda layer, option: made[layer, option](),
        shifts=lambda layer, option: shifts[layer, option],
        batches=data.score,
        seed=search.seed,
        progress=progress,
    )


def _dense(weight: Tensor, rows: Tensor | slice, compressed: Quantized) -> Tensor:
    """The weight with some of its rows compressed, float32 [N, K]."""
    if isinstance(rows, slice):
        return compressed.dequantize()
    dense = weight.float().clone()
    dense[rows] = compressed.dequantize()
    return dense


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
        mean_magnitude = float(_weight(traced, layer.name).abs().mean())
    return [
        {
            "bits_per_weight": 8.0 * _bytes(layer, point.option) / layer.numel,
            "distortion": point.distortion,
            "scaled_l1": point.weight_l1 / mean_magnitude if mean_magnitude > 0 else None,
            "chosen": point.option == option_of(chosen),
        }
        for point in points
    ]

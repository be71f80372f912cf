"""Error-compensated weights: made and scored only for options that a first solution showed to matter, with
probes on other samples than those of their Hessians."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor
from tqdm import tqdm

from torchcoinfer.calibrate import Statistics, Stream, embedding_sensitivity
from torchcoinfer.compress import LayerInputs, Quantized, obs, segment_inputs
from torchcoinfer.measure.curves import Data, modules_of, weight_of
from torchcoinfer.measure.score import Curves, score_options
from torchcoinfer.theory.budget import Search
from torchcoinfer.theory.options import Option
from torchcoinfer.trace import Traced


@dataclass
class Compensated:
    """Error-compensated weights of some (layer, option), fitted on uncompressed inputs.

    Attributes:
        weights: makes the dense weight, float32 [N, K].
        shifts: what the layer's bias is changed by, [N] or None.
    """

    weights: dict[tuple[str, Option], Callable[[], Tensor]] = field(default_factory=dict)
    shifts: dict[tuple[str, Option], Tensor | None] = field(default_factory=dict)

    def update(self, more: Compensated) -> None:
        self.weights |= more.weights
        self.shifts |= more.shifts


def compensated(
    traced: Traced,
    statistics: Statistics,
    options: Mapping[str, Sequence[Option]],
    batches: Sequence[Sequence[Tensor]],
    seed: int,
    *,
    progress: bool = False,
) -> Compensated:
    """Fits the options given (any ``algorithm``; stored under "obs") on ``batches``, segment by segment."""
    embeddings = [
        layer.name for layer in traced.graph.layers if layer.kind == "embedding" and options.get(layer.name)
    ]
    minded = embedding_sensitivity(traced, statistics.judge, batches, embeddings, seed=seed)
    found = Compensated()
    bar = tqdm(total=sum(map(len, options.values())), desc="compensate", unit="option", disable=not progress)
    for segment in Stream(traced, batches):
        due = {name: modules_of(traced, name) for name in segment.layers if options.get(name)}
        inputs = segment_inputs(segment, due, drift=False)
        inputs |= {name: LayerInputs.of_sensitivity(minded[name]) for name in due if name in minded}
        for name in due:
            weight, known = weight_of(traced, name), inputs.get(name)
            # of an embedding no row can change a score that the data do not read
            rows = statistics.row_counts[name].nonzero().flatten() if name in minded else slice(None)
            for option in options[name] if known is not None else ():
                key = name, replace(option, algorithm="obs")
                compressed = obs(weight[rows], key[1], known.hessians)
                found.weights[key] = partial(_dense, weight, rows, compressed)
                found.shifts[key] = known.mean_error(weight, compressed)
            bar.update(len(options[name]))
    bar.close()
    return found


def _dense(weight: Tensor, rows: Tensor | slice, compressed: Quantized) -> Tensor:
    """The weight with some of its rows compressed, float32 [N, K]."""
    if isinstance(rows, slice):
        return compressed.dequantize()
    dense = weight.float().clone()
    dense[rows] = compressed.dequantize()
    return dense


def score_compensated(
    traced: Traced,
    statistics: Statistics,
    options: Mapping[str, Sequence[Option]],
    search: Search,
    *,
    progress: bool = False,
) -> tuple[Curves, Compensated]:
    """Makes and scores error-compensated weights for the options given, on uncompressed inputs."""
    data = Data.of(statistics)
    found = compensated(traced, statistics, options, data.fit, search.seed, progress=progress)
    if not found.weights:
        return {}, found
    wanted: dict[str, list[Option]] = {}
    for name, option in found.weights:
        wanted.setdefault(name, []).append(option)
    curves = score_options(
        traced,
        statistics,
        wanted,
        weights=lambda layer, option: found.weights[layer, option](),
        shifts=lambda layer, option: found.shifts[layer, option],
        batches=data.score,
        seed=search.seed,
        progress=progress,
    )
    return curves, found

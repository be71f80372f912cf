"""The predictor: E_l(o) = E‖J_l ΔW_l(o) h‖² / E‖f‖² for all options of all layers.

With output probes u, E[uuᵀ] = 1, and g = J_lᵀu from one backward pass for all layers at once,
E[(Σ_t g_tᵀ ΔW h_t)²] = E‖J_l ΔW h‖²: the sum over the positions t of one sample stands inside the square.
δ = h ΔWᵀ is made once per (layer, option) and multiplied with the g of every probe; a layer called several
times, or shared by several modules, sums g·δ over its calls before squaring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx
from tqdm import tqdm

from torchcoinfer.calibrate.interpret import LayerCall, Replacement
from torchcoinfer.calibrate.judge import batch_size
from torchcoinfer.calibrate.statistics import Statistics
from torchcoinfer.errors import ArgumentError
from torchcoinfer.measure.chunks import Squares, responses
from torchcoinfer.measure.deltas import WeightDelta, stored_bytes
from torchcoinfer.measure.sweep import Responses
from torchcoinfer.measure.tape import Noise, Rademacher, Site, Tape
from torchcoinfer.theory.options import Option
from torchcoinfer.trace import Traced

WORKING_SET_BYTES = 64 << 20
LARGEST_WORKING_SET_BYTES = 1 << 30  # unless told to take more

Weights = Callable[[str, Option], Tensor]
"""(layer, option) -> the dense weight ŵ [N, K] that the compressed layer would compute with."""

Shifts = Callable[[str, Option], Tensor | None]


@dataclass(frozen=True)
class Measured:
    """One point of a layer's curve.

    Attributes:
        distortion: E_l(o), relative output error.
        distortion_se: standard error of that estimate, over samples.
        weight_l1: mean |ŵ − w|; of an embedding, over the rows that the data read.
        weight_mse: mean (ŵ − w)², likewise.
    """

    option: Option
    distortion: float
    distortion_se: float = 0.0
    weight_l1: float = 0.0
    weight_mse: float = 0.0


Curves = dict[str, tuple[Measured, ...]]


@dataclass
class _Part:
    """(layer, option) pairs scored in one pass over the data: as many as the working set holds."""

    pairs: dict[str, list[Option]] = field(default_factory=dict)
    weight_bytes: int = 0


def score_options(
    traced: Traced,
    statistics: Statistics,
    options: Mapping[str, Sequence[Option]],
    *,
    weights: Weights,
    shifts: Shifts | None = None,
    probes: int | None = None,
    seed: int | None = None,
    batches: Sequence[Sequence[Tensor]] | None = None,
    replacements: Mapping[str, Replacement] | None = None,
    working_set_bytes: int | None = None,
    noise: Noise | None = None,
    progress: bool = False,
) -> Curves:
    """Scores every option of every layer: first-order output error, one table for the planner.

    Args:
        traced: the traced model, not changed; its parameters may be frozen.
        statistics: signal, judge and calibration batches.
        options: per layer, what is to be scored. An option of format "float" and 32 bits changes nothing.
        weights: gives ŵ; called exactly once for each (layer, option).
        shifts: gives what the layer's bias is changed by, [N] or None; called after ``weights``.
        probes: random output probes a sample; default ``statistics.probes``. The estimate is unbiased.
        seed: of the probes.
        batches: flat inputs to judge on; default the calibration batches. Options whose weights were fitted
            to data (error compensation) are to be scored on other data than those.
        replacements: layers compressed already: Jacobians and inputs are then those of that model, which is
            how a table is measured again around a plan.
        working_set_bytes: bounds what is held beside the model, default ``default_working_set``: weight
            changes (one half); values kept for the backward pass and probe responses (the other). Weight
            changes that do not fit are done part by part, each part paying the passes again; passes that do
            not fit are done a few samples at a time and segment by segment (``sweep.py``), which is exact.
            Where not even that fits, as little more is held as a division of the graph allows.
        noise: another source of probes (tests use a basis, which makes the result exact).
        progress: show a bar.

    Raises:
        ArgumentError: an unknown layer, or a ŵ of another shape or with NaN or Inf.
    """
    probes = statistics.probes if probes is None else probes
    noise = noise or Rademacher(statistics.seed if seed is None else seed)
    data = statistics.batches if batches is None else batches
    tape = Tape(traced, statistics.judge, data[0], replacements)
    budget = default_working_set(traced) if working_set_bytes is None else working_set_bytes
    # rows that calibration has not read may be read by other data: then all rows are kept
    known = {id(batch) for batch in statistics.batches}
    row_counts = statistics.row_counts if all(id(batch) in known for batch in data) else {}
    scorer = _LayerScorer(tape, row_counts, options, weights, shifts, budget)
    samples = sum(batch_size(batch) for batch in data)
    scale = statistics.judge.factor / (samples * statistics.signal)
    parts = scorer.parts()
    bar = tqdm(total=len(parts) * samples, desc="score", unit="sample", disable=not progress)
    scored: dict[tuple[str, Option], Measured] = {}
    for part in parts:
        changes = scorer.changes(part)
        squares = {layer: Squares.empty(len(found)) for layer, found in changes.items()}
        nodes = {call.node for layer in changes for call in scorer.calls[layer]}
        for segments in responses(tape, data, nodes, probes, noise, budget // 2, bar):
            for layer, response in scorer.chunk_response(changes, segments).items():
                squares[layer].add(response)
        for layer, found in changes.items():
            values, errors = squares[layer].mean_and_error(scale)
            for change, value, error in zip(found, values, errors):
                size = scorer.sizes[layer, change.option]
                scored[layer, change.option] = Measured(change.option, value, error, *size)
    bar.close()
    return {
        layer: tuple(scored.get((layer, option), Measured(option, 0.0)) for option in choices)
        for layer, choices in options.items()
    }


def default_working_set(traced: Traced) -> int:
    """Bytes: twice the parameters, between ``WORKING_SET_BYTES`` and ``LARGEST_WORKING_SET_BYTES``.

    Training holds as much in gradients and one moment of them. A large model's table then takes as few parts
    as a small one's.
    """
    parameters = sum(value.numel() * value.element_size() for value in traced.model.parameters())
    return min(max(WORKING_SET_BYTES, 2 * parameters), LARGEST_WORKING_SET_BYTES)


class _LayerScorer:
    """Weight changes and their responses, layer by layer."""

    def __init__(
        self,
        tape: Tape,
        row_counts: Mapping[str, Tensor],
        options: Mapping[str, Sequence[Option]],
        weights: Weights,
        shifts: Shifts | None,
        working_set_bytes: int,
    ):
        self.tape, self.weights, self.budget = tape, weights, working_set_bytes
        self.shifts = shifts or (lambda layer, option: None)
        self.options = {
            layer: list(dict.fromkeys(option for option in choices if not unchanged(option)))
            for layer, choices in options.items()
        }
        self.calls: dict[str, list[LayerCall]] = {}
        for call in tape.interpreter.calls:
            self.calls.setdefault(call.layer, []).append(call)
        unknown = sorted(set(options) - set(self.calls))
        if unknown:
            raise ArgumentError("unknown layers", got=unknown, expected=f"some of {sorted(self.calls)}")
        self.rows = {
            layer: counts.nonzero().flatten()
            for layer, counts in row_counts.items()
            if layer in self.calls and all(call.kind == "embedding" for call in self.calls[layer])
        }
        self.sizes: dict[tuple[str, Option], tuple[float, float]] = {}
        self.exact = False

    def parts(self) -> list[_Part]:
        """Packs the (layer, option) pairs, in the order of the graph, into as few parts as the budget allows.

        Weight changes are kept exactly where all of them fit, else in eight bits.
        """
        half = self.budget // 2
        needed = sum(self._bytes(layer, exact=True) * len(found) for layer, found in self.options.items())
        self.exact = needed <= half
        parts = [_Part()]
        for layer in self.calls:
            for option in self.options.get(layer, ()):
                size = self._bytes(layer, self.exact)
                if parts[-1].pairs and parts[-1].weight_bytes + size > half:
                    parts.append(_Part())
                parts[-1].pairs.setdefault(layer, []).append(option)
                parts[-1].weight_bytes += size
        return [part for part in parts if part.pairs]

    def _bytes(self, layer: str, exact: bool) -> int:
        weight = self.tape.interpreter.weight(layer)
        rows = len(self.rows[layer]) if layer in self.rows else weight.shape[0]
        return stored_bytes(rows, weight.shape[1], exact, max(weight.element_size(), 4))

    def changes(self, part: _Part) -> dict[str, list[WeightDelta]]:
        """ŵ − w of every pair of the part; sizes of the change are noted on the way."""
        found: dict[str, list[WeightDelta]] = {}
        for layer, choices in part.pairs.items():
            weight = self.tape.interpreter.weight(layer)
            rows = self.rows.get(layer)
            kept = weight if rows is None else weight[rows]
            kept = kept.to(torch.promote_types(weight.dtype, torch.float32))
            for option in choices:
                compressed, where = self.weights(layer, option), f"weights({layer!r}, {option})"
                if compressed.shape != weight.shape:
                    raise ArgumentError(where, got=tuple(compressed.shape), expected=str(tuple(weight.shape)))
                change = (compressed if rows is None else compressed[rows]).detach().to(kept.dtype) - kept
                l1, mse = float(change.abs().mean()), float(change.square().mean())
                if not mse < float("inf"):
                    raise ArgumentError(
                        where, got="NaN or Inf", expected="finite weights",
                        remedy="weights this large overflow when coded: scale the layer down",
                    )  # fmt: skip
                self.sizes[layer, option] = (l1, mse)
                shift = self.shifts(layer, option)
                found.setdefault(layer, []).append(WeightDelta.of(option, change, rows, self.exact, shift))
        return found

    def chunk_response(
        self, changes: Mapping[str, Sequence[WeightDelta]], segments: Iterator[Responses]
    ) -> dict[str, Tensor]:
        """Per layer Σ over its calls, in whatever segments they are, of g·δ."""
        total: dict[str, Tensor] = {}
        for sites, g in segments:
            for layer, found in changes.items():
                calls = [call for call in self.calls[layer] if call.node in sites]
                if calls:
                    response = self.layer_response(calls, found, sites, g)
                    total[layer] = _sum(total[layer], response) if layer in total else response
            del sites, g  # before the next segment is run
        return total

    def layer_response(
        self,
        calls: Sequence[LayerCall],
        changes: Sequence[WeightDelta],
        sites: Mapping[fx.Node, Site],
        g: Mapping[fx.Node, Tensor],
    ) -> Tensor:
        """Σ over calls of g·δ, [B, P, O]; [1, P, O] where a call does not lead with the batch."""
        leads = all(sites[call.node].leads for call in calls)
        total: Tensor | None = None
        for call in calls:
            found = self._call_response(call, changes, sites[call.node], g[call.node])
            found = found if leads else found.sum(0, keepdim=True)
            total = found if total is None else total + found
        return total

    def _call_response(
        self, call: LayerCall, changes: Sequence[WeightDelta], site: Site, g: Tensor
    ) -> Tensor:
        rows, probes, elements = g.shape
        step = max(1, self.budget // 8 // (g.element_size() * rows * elements))
        found = []
        with torch.no_grad():
            for start in range(0, len(changes), step):
                block = changes[start : start + step]
                delta = g.new_empty(rows, len(block), elements)
                for position, change in enumerate(block):
                    response = change.response(call, site.args, site.value, g.dtype)
                    delta[:, position] = response.reshape(rows, elements)
                found.append(torch.bmm(g, delta.transpose(1, 2)))
        return torch.cat(found, 2)


def _sum(one: Tensor, other: Tensor) -> Tensor:
    """Of two responses; where either is of the whole batch [1, P, O], so is the sum."""
    if len(one) != len(other):
        one, other = one.sum(0, keepdim=True), other.sum(0, keepdim=True)
    return one + other


def unchanged(option: Option) -> bool:
    """The option that leaves the layer as it is."""
    return option.format == "float" and option.bits == 32 and option.activation_bits is None

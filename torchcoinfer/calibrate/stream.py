"""Runs calibration data through the model segment by segment, earlier layers already compressed.

Error compensation wants XᵀX of a layer's inputs as the compressed model produces them. One pass suffices: the
graph is run up to the inputs of all layers that wait for no other layer, their moments are taken, their
weights replaced, and the run goes on from there. Only the values still to be read are kept, per batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from tqdm import tqdm

from torchcoinfer.calibrate import moments
from torchcoinfer.calibrate.interpret import Interpreter, LayerCall, Replacement, last_uses, padding_mask
from torchcoinfer.errors import ArgumentError
from torchcoinfer.trace import Traced

Values = dict[fx.Node, Any]

# what can be summed over a layer's inputs, from a call's arguments in the plain and in the compressed run
_MOMENTS: Mapping[str, Callable[[LayerCall, Sequence[Any], Sequence[Any], Tensor | None], Tensor]] = {
    "second": lambda call, plain, args, keep: moments.gram(call, args, keep),
    "first": lambda call, plain, args, keep: moments.total(call, args, keep),
    "cross": moments.cross,
    "plain first": lambda call, plain, args, keep: moments.total(call, plain, keep),
}
_IN_ONE_RUN = {"cross": "second", "plain first": "first"}  # what they are where both runs are the same


class Segment:
    """Layers whose inputs are known and whose weights are due.

    Attributes:
        layers: names, in the order of the graph. Embeddings among them have no second moment.
    """

    def __init__(self, stream: Stream, calls: Mapping[str, Sequence[LayerCall]]):
        self._stream, self._calls = stream, calls
        self.layers = tuple(calls)
        self.advanced = False
        self._moments: dict[str, Tensor] | None = None

    def inputs_second_moment(self) -> dict[str, Tensor]:
        """XᵀX summed over all positions and calls, float32 [K, K]; [groups, K, K] for grouped convolutions.

        Layers that read the same input (query, key, value) get the *same* tensor object, so that one Cholesky
        factor serves them all: do not change it in place.
        """
        if self._moments is None:
            self._moments = self._stream.sums("second", self._calls)
        return self._moments

    def inputs_mean(self) -> dict[str, tuple[Tensor, int]]:
        """Mean of the inputs, float32 [K] (or [groups, K]), and the number of positions behind it."""
        return _means(self._stream.sums("first", self._calls))

    def inputs_cross_moment(self) -> dict[str, Tensor]:
        """XᵀX' with X the inputs in the uncompressed model, X' those here; as ``inputs_second_moment``.

        Raises:
            ArgumentError: the stream runs without ``plain_run``.
        """
        return self._stream.sums("cross", self._calls)

    def plain_inputs_mean(self) -> dict[str, tuple[Tensor, int]]:
        """``inputs_mean`` in the uncompressed model; raises as ``inputs_cross_moment``."""
        return _means(self._stream.sums("plain first", self._calls))

    def advance(self, replacements: Mapping[str, Replacement] | None = None) -> None:
        """Goes on to the next segment.

        Args:
            replacements: per layer of this segment, the dense weight [N, K] that the compressed model
                computes with, or a callable of the layer's input (a packed module). Others stay as they are.

        Raises:
            ArgumentError: a layer of another segment, or a segment that has been left already.
        """
        unknown = sorted(set(replacements or {}) - set(self.layers))
        if unknown:
            raise ArgumentError("layers of another segment", got=unknown, expected=f"some of {self.layers}")
        if self.advanced:
            raise ArgumentError("the segment has been left already", got=self.layers, expected="one advance")
        self._stream.replacements.update(replacements or {})
        self.advanced, self._moments = True, None


class Stream:
    """Iterates over the segments of a model, in order; each layer belongs to exactly one.

    A layer that is called several times (shared modules, tied weights) is due at its first call. Its later
    inputs are not known compressed by then: its second moment sums over all calls of the *uncompressed*
    model, which costs one plain forward pass more.

    Args:
        traced: the traced model; it is not changed.
        batches: flat inputs (``Statistics.batches``).
        plain_run: also runs the uncompressed model beside, for ``inputs_cross_moment``.
        max_layers_per_segment: bounds the second moments held at one time; None: all layers that are ready.
        progress: show a bar over the segments.
    """

    def __init__(
        self,
        traced: Traced,
        batches: Sequence[Sequence[Tensor]],
        *,
        plain_run: bool = False,
        max_layers_per_segment: int | None = None,
        progress: bool = False,
    ):
        if max_layers_per_segment is not None and max_layers_per_segment < 1:
            raise ArgumentError("max_layers_per_segment", got=max_layers_per_segment, expected="at least 1")
        self.traced, self.interpreter = traced, Interpreter(traced)
        self.batches = [tuple(batch) for batch in batches]
        self.replacements: dict[str, Replacement] = {}
        self._limit, self._progress = max_layers_per_segment, progress
        self._stages = _stages(self.interpreter)
        order = [node for node in self.interpreter.nodes if node.op != "output"]
        # a stable sort: inside a stage the order of the graph stays
        self._last_use = last_uses(sorted(order, key=self._stages.__getitem__))
        self._values: list[Values] = []
        self._plain: list[Values] | None = [] if plain_run else None
        self._calls: dict[str, list[LayerCall]] = {}
        for call in self.interpreter.calls:
            self._calls.setdefault(call.layer, []).append(call)
        self._spread = {
            layer: calls
            for layer, calls in self._calls.items()
            if len({self._stages[call.node] for call in calls}) > 1 and _multiplies(calls)
        }
        self._spread_moments: dict[str, dict[str, Tensor]] = {}

    def __iter__(self) -> Iterator[Segment]:
        self.replacements.clear()
        self._spread_moments = self._uncompressed_moments()
        self._values = [{} for _ in self.batches]
        if self._plain is not None:
            self._plain = [{} for _ in self.batches]
        by_stage: dict[int, list[str]] = {}
        for layer, calls in self._calls.items():
            by_stage.setdefault(min(self._stages[call.node] for call in calls), []).append(layer)
        bar = tqdm(total=len(self._calls), desc="stream", unit="layer", disable=not self._progress)
        done = 0
        for stage in sorted(by_stage):
            for passed in range(done, stage):
                self._run_stage(passed, self._values, self.replacements)
                if self._plain is not None:
                    self._run_stage(passed, self._plain, {})
            done = stage
            layers = by_stage[stage]
            step = self._limit or len(layers)
            for start in range(0, len(layers), step):
                segment = Segment(self, {name: self._calls[name] for name in layers[start : start + step]})
                yield segment
                if not segment.advanced:
                    segment.advance()
                bar.update(len(segment.layers))
        bar.close()
        self._values = []
        self._plain = None if self._plain is None else []

    def sums(self, moment: str, calls_of: Mapping[str, Sequence[LayerCall]]) -> dict[str, Tensor]:
        """A moment (key of ``_MOMENTS``) per layer, summed over the values that wait in front of it."""
        if moment in _IN_ONE_RUN and self._plain is None:
            raise ArgumentError(
                "plain_run", got=False, expected="True for moments that involve the plain run"
            )
        found: dict[str, Tensor] = {}
        shared: dict[tuple[Any, ...], Tensor] = {}
        for layer, calls in calls_of.items():
            if layer in self._spread:
                found[layer] = self._spread_moments[_IN_ONE_RUN.get(moment, moment)][layer]
                continue
            linear = [call for call in calls if call.kind != "embedding"]
            if not linear:
                continue
            key = tuple(self._input_key(call) for call in linear)
            if key not in shared:
                shared[key] = self._sum_of_moments(linear, moment)
            found[layer] = shared[key]
        return found

    def _input_key(self, call: LayerCall) -> tuple[Any, ...]:
        """What decides a call's gram matrix: its input, and for convolutions the geometry."""
        source = call.node.args[call.input_position]
        if call.kind == "linear":
            return (source,)
        kernel = self.interpreter.attribute(call.node.args[call.weight_position]).shape[1:]
        return (source, tuple(kernel), repr(call.node.args[3:]))

    def _sum_of_moments(self, calls: Sequence[LayerCall], moment: str) -> Tensor:
        total: Tensor | None = None
        for batch, values, plain in zip(self.batches, self._values, self._plain or self._values):
            keep = padding_mask(self.traced, batch)
            for call in calls:
                args = fx.map_arg(call.node.args, values.__getitem__)
                plain_args = fx.map_arg(call.node.args, plain.__getitem__)
                with torch.no_grad():
                    product = _MOMENTS[moment](call, plain_args, args, keep)
                total = product if total is None else total.add_(product)
        return total

    def _uncompressed_moments(self) -> dict[str, dict[str, Tensor]]:
        totals: dict[str, dict[str, Tensor]] = {"second": {}, "first": {}}
        if not self._spread:
            return totals

        for batch in self.batches:
            keep = padding_mask(self.traced, batch)

            def observe(node: fx.Node, args: Sequence[Any], value: Any, keep: Tensor | None = keep) -> Any:
                call = self.interpreter.call_of.get(node)
                if call is not None and call.layer in self._spread and call.kind != "embedding":
                    for moment, sums in totals.items():
                        product = _MOMENTS[moment](call, args, args, keep)
                        sums[call.layer] = product + sums.get(call.layer, 0.0)
                return value

            with torch.no_grad():
                self.interpreter.run(batch, tap=observe)
        return totals

    def _run_stage(
        self, stage: int, values_of: Sequence[Values], replacements: Mapping[str, Replacement]
    ) -> None:
        """Computes what ``stage`` adds, for every batch."""
        for batch, values in zip(self.batches, values_of):
            feed = iter(batch)
            with torch.no_grad():
                for node in self.interpreter.nodes:
                    if node.op == "placeholder":
                        value = next(feed)
                        if stage == 0:
                            values[node] = value
                        continue
                    if self._stages[node] != stage or node.op == "output":
                        continue
                    values[node] = self.interpreter.evaluate(node, values, replacements)
                    for finished in self._last_use.get(node, ()):
                        values.pop(finished, None)


def _means(sums: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, int]]:
    """``moments.total`` -> mean and number of positions."""
    return {
        layer: ((total[..., :-1] / total[..., -1:]).float(), int(total.flatten()[-1]))
        for layer, total in sums.items()
    }


def _multiplies(calls: Sequence[LayerCall]) -> bool:
    return any(call.kind != "embedding" for call in calls)


def _stages(interpreter: Interpreter) -> dict[fx.Node, int]:
    """When each node can run: after how many segments of layers. A layer's call opens the next stage."""
    stages: dict[fx.Node, int] = {}
    for node in interpreter.nodes:
        before = max((stages[read] for read in node.all_input_nodes), default=0)
        stages[node] = before + (node in interpreter.call_of)
    return stages

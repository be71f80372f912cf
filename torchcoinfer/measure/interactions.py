"""What layers do to the output together: a quadratic model of the error, for where adding up is not enough.

An additive table takes the changes d_l(o) that the layers make to the output for orthogonal. Below 4 bits,
and still more with pruned weights, they are not: shrunken weights all pull the output the same way, and the
table is a factor of two low. To first order the changes add up as vectors, so the error of a configuration is

    Q(o) = E‖Σ_l d_l(o_l)‖² = Σ_l E‖d_l‖² + Σ_{l≠k} E⟨d_l, d_k⟩.

d_l(o) is taken whole (one forward pass with and one without the change), so what a layer does alone is exact.
What it does among changed layers is not what it does alone: with the other layers half-way between the
original and a configuration p, the d_l(p_l) sum to the configuration's whole change up to third order (the
midpoint rule: half of every pair's second difference goes to either layer).

Kept are not the vectors but their count sketches: each element has a random sign and falls into one of a few
buckets, which leaves inner products unbiased.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from torchcoinfer.calibrate.interpret import Interpreter, Replacement, Shifted
from torchcoinfer.errors import ArgumentError
from torchcoinfer.measure.distortion import Reference
from torchcoinfer.measure.score import Curves, Measured, unchanged
from torchcoinfer.theory.options import Option

BUCKETS = 256  # a sample; an output of no more elements is kept as it is


@dataclass(frozen=True)
class Interactions:
    """Changes of the output by one layer alone, as vectors whose squared norms are relative errors.

    Attributes:
        vectors: (layer, option) -> float32 [samples * buckets].
        cross: weight of the terms between layers, 1 unless fitted (``gains``); 0: errors add up.
    """

    vectors: Mapping[tuple[str, Option], Tensor]
    cross: float = 1.0

    def vector(self, layer: str, option: Option) -> Tensor:
        """d_l(o). Raises ArgumentError where the option was not measured."""
        if (layer, option) not in self.vectors:
            raise ArgumentError("option not measured", got=f"{layer}: {option}", expected="a measured option")
        return self.vectors[layer, option]

    def single(self, layer: str, option: Option) -> float:
        """E‖d_l(o)‖² / E‖f‖²: the layer's error alone, measured."""
        if unchanged(option):
            return 0.0
        return _square(self.vector(layer, option))

    def distortion(self, chosen: Mapping[str, Option]) -> float:
        """Q of a configuration; layers left out are not compressed.

        Raises:
            ArgumentError: an option that was not measured.
        """
        total = self._total(chosen)
        if total is None:
            return 0.0
        alone = 0.0 if self.cross == 1.0 else sum(self.single(*pair) for pair in chosen.items())
        return (1.0 - self.cross) * alone + self.cross * _square(total)

    def around(self, curves: Curves, chosen: Mapping[str, Option]) -> Curves:
        """An additive table around a configuration: measured options only, a layer without any as it was.

        An entry is E‖d_l(o)‖² + 2 c E⟨d_l(o), Σ_{k≠l} d_k⟩ (c: ``cross``), not below 0: Q's change with one
        layer's option, up to a constant.
        """
        total = self._total(chosen)
        table = {}
        for layer, points in curves.items():
            known = [p for p in points if unchanged(p.option) or (layer, p.option) in self.vectors]
            if all(unchanged(point.option) for point in known):
                table[layer] = points
                continue
            own = chosen.get(layer, Option())
            others = total if unchanged(own) else total - self.vector(layer, own)
            table[layer] = tuple(self._point(layer, point, others) for point in known)
        return table

    def shares(self, chosen: Mapping[str, Option]) -> dict[str, float]:
        """Q of a configuration divided among its layers: E⟨d_l, Σ_k d_k⟩. One that cancels others has < 0."""
        total = self._total(chosen)
        shares = dict.fromkeys(chosen, 0.0)
        for layer, option in chosen.items():
            if not unchanged(option):
                together = float(torch.dot(self.vector(layer, option), total))
                shares[layer] = (1.0 - self.cross) * self.single(layer, option) + self.cross * together
        return shares

    def _point(self, layer: str, point: Measured, others: Tensor | None) -> Measured:
        if unchanged(point.option) or others is None:
            return point
        cross = float(torch.dot(self.vector(layer, point.option), others))
        value = self.single(layer, point.option) + 2.0 * self.cross * cross
        return replace(point, distortion=max(0.0, value), distortion_se=0.0)

    def _total(self, chosen: Mapping[str, Option]) -> Tensor | None:
        vectors = [self.vector(layer, option) for layer, option in chosen.items() if not unchanged(option)]
        return torch.stack(vectors).sum(0) if vectors else None


def _square(vector: Tensor) -> float:
    return float(vector.double().square().sum())


def measure_interactions(
    reference: Reference,
    options: Mapping[str, Sequence[Option]],
    replacement: Callable[[str, Option], Replacement],
    *,
    around: Mapping[str, Replacement] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Interactions:
    """Changes each layer in turn, once an option; one forward pass over the reference's data each.

    Args:
        reference: the original model's outputs on the data to measure on.
        options: per layer, what is to be measured.
        replacement: gives what stands for the layer's weight.
        around: what the other layers are meanwhile (``halfway`` to a configuration); default: unchanged.
        seed: of the sketch.

    Raises:
        ArgumentError: a layer that the model does not have, a replacement that is no weight of its layer's
            shape, or one that makes the output other than finite.
    """
    weights = _Weights(reference, (*options, *(around or {})))
    for layer, value in (around or {}).items():
        weights.check(layer, value)
    sketch, context = _Sketch(reference, seed), dict(around or {})
    scale = reference.statistics.judge.factor / (reference.samples * reference.statistics.signal)
    vectors = {}
    bar = tqdm(total=sum(map(len, options.values())), desc="interact", unit="option", disable=not progress)
    for layer, choices in options.items():
        others = {name: value for name, value in context.items() if name != layer}
        before = list(_outputs(reference, others)) if others else reference.judged
        for option in choices:
            made = replacement(layer, option)
            weights.check(layer, made)
            vector = sketch.of_change(before, _outputs(reference, {**others, layer: made}), scale)
            if not math.isfinite(_square(vector)):
                raise ArgumentError(
                    f"layer {layer!r} at {option} makes an output that is not finite",
                    got="NaN or infinity",
                    expected="finite weights",
                    remedy="leave the option out",
                )
            vectors[layer, option] = vector
            bar.update()
    bar.close()
    return Interactions(vectors)


def halfway(weight: Tensor, changed: Replacement) -> Replacement:
    """Half of the change of a layer, for ``around``; ``weight`` [N, K] is its own."""
    if isinstance(changed, Shifted):
        return Shifted(torch.lerp(weight.to(changed.weight.dtype), changed.weight, 0.5), changed.shift / 2)
    if not isinstance(changed, Tensor):
        raise ArgumentError("replacement", got=type(changed).__name__, expected="a tensor or Shifted")
    return torch.lerp(weight.to(changed.dtype), changed, 0.5)


class _Weights:
    """Shapes of the layers' weights [N, K], against which replacements are held."""

    def __init__(self, reference: Reference, layers: Iterable[str]):
        interpreter = Interpreter(reference.traced)
        known = {call.layer for call in interpreter.calls}
        for layer in layers:
            if layer not in known:
                raise ArgumentError(
                    "no such layer",
                    got=layer,
                    expected=f"one of {sorted(known)}",
                    remedy="name a layer to change",
                )
        self._shapes = {layer: tuple(interpreter.weight(layer).shape) for layer in dict.fromkeys(layers)}

    def check(self, layer: str, made: Replacement) -> None:
        weight = made.weight if isinstance(made, Shifted) else made
        shape = tuple(weight.flatten(1).shape) if isinstance(weight, Tensor) and weight.ndim > 1 else None
        if shape != self._shapes[layer] and (shape is not None or not callable(made)):
            raise ArgumentError(
                f"replacement of layer {layer!r}",
                got=shape or (tuple(weight.shape) if isinstance(weight, Tensor) else type(made).__name__),
                expected=f"a weight {list(self._shapes[layer])}, Shifted, or a callable",
                remedy="return what stands for the layer's weight",
            )


def _outputs(reference: Reference, replacements: Mapping[str, Replacement]) -> Iterator[Tensor]:
    """The judged tensor of each batch."""
    interpreter, judge = Interpreter(reference.traced), reference.statistics.judge
    for inputs in reference.inputs:
        with torch.no_grad():
            outputs = interpreter.run(inputs, replacements=replacements)
            yield judge.tensor(reference.traced.unflatten_outputs(outputs), inputs)


class _Sketch:
    """Random signs per batch, drawn once: a vector [B, n] becomes [B * buckets]."""

    def __init__(self, reference: Reference, seed: int):
        self._reference = reference
        self._signs: list[Tensor | None] = []
        for index, judged in enumerate(reference.judged):
            rows, numel = judged.shape[0], judged[0].numel()
            if numel <= BUCKETS:
                self._signs.append(None)
                continue
            generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
            self._signs.append(torch.randint(0, 2, (rows, numel), generator=generator, dtype=torch.int8))

    def of_change(self, before: Iterable[Tensor], after: Iterable[Tensor], scale: float) -> Tensor:
        """The sketch keeps the direction; the length, the root of the relative error, is exact."""
        judge, squared, parts = self._reference.statistics.judge, 0.0, []
        for index, (old, new, judged) in enumerate(zip(before, after, self._reference.judged)):
            vector = judge.root(judged, new - old)
            squared += float(vector.double().square().sum())
            parts.append(self._of(index, vector))
        sketched = torch.cat(parts)
        norm = float(sketched.double().square().sum())
        return sketched * ((squared * scale / norm) ** 0.5 if norm > 0.0 else 0.0)

    def _of(self, batch: int, vector: Tensor) -> Tensor:
        signs, vector = self._signs[batch], vector.float()
        if signs is None:
            return vector.flatten()
        padding = -vector.shape[1] % BUCKETS
        signed = torch.where(signs.bool(), vector, -vector)
        return torch.nn.functional.pad(signed, (0, padding)).unflatten(1, (-1, BUCKETS)).sum(1).flatten()

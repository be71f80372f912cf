"""One pass over the calibration data: the signal's power, and the second moments of every layer's input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from tqdm import tqdm

from torchcoinfer.calibrate import moments
from torchcoinfer.calibrate.batches import Batch, read_batches
from torchcoinfer.calibrate.interpret import Interpreter, Tap, mask_position, padding_mask
from torchcoinfer.calibrate.judge import Judge, batch_size
from torchcoinfer.errors import CalibrationError
from torchcoinfer.trace import Traced


@dataclass(frozen=True)
class Statistics:
    """What calibration data say about a model; what scoring and compression need.

    Attributes:
        batches: the calibration batches, as flat inputs.
        samples: how many samples they hold.
        signal: E‖f‖² over samples for "output_mse", E KL(p || uniform) for "kl": errors are relative to it.
        judge: takes the judged tensor out of an output.
        second_moments: per layer, E[x_k²] over positions, float32 [K]; embeddings have none.
        positions: per layer, the number of input vectors seen.
        row_counts: per embedding, how often each row was read, int64 [num_embeddings].
        probes, seed: defaults for scoring.
    """

    batches: tuple[tuple[Tensor, ...], ...]
    samples: int
    signal: float
    judge: Judge
    second_moments: Mapping[str, Tensor]
    positions: Mapping[str, int]
    row_counts: Mapping[str, Tensor]
    probes: int = 8
    seed: int = 0

    def importance(self, layer: str) -> Tensor | None:
        """The weights of a layer's columns in clip search, float32 [K]; None where all count alike."""
        return self.second_moments.get(layer)


@dataclass
class _Sums:
    """Running sums over calls and batches."""

    squares: dict[str, Tensor] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)

    def tap(self, interpreter: Interpreter, keep: Tensor | None) -> Tap:
        def observe(node: fx.Node, args: Sequence[Any], value: Any) -> Any:
            call = interpreter.call_of.get(node)
            if call is None:
                return value
            layer = call.layer
            if call.kind == "embedding":
                rows = args[call.weight_position].shape[0]
                counts = torch.bincount(args[call.input_position].reshape(-1), minlength=rows)
                self.rows[layer] = counts + self.rows.get(layer, 0)
            else:
                self.squares[layer] = moments.diagonal(call, args, value, keep) + self.squares.get(layer, 0.0)
                seen = moments.positions(call, args, value, keep)
                self.positions[layer] = seen + self.positions.get(layer, 0)
            return value

        return observe


def calibrate(
    traced: Traced,
    batches: Iterable[Batch],
    *,
    output: Callable[[Any], Tensor] | None = None,
    metric: str = "output_mse",
    probes: int = 8,
    seed: int = 0,
    progress: bool = False,
) -> Statistics:
    """Runs the model over calibration data and keeps what the later stages need.

    Args:
        traced: the traced model; it is not changed.
        batches: tensors, tuples (positional arguments) or dicts (keyword arguments), read once.
        output: from the model's output to the judged tensor [B, ...]; None: ``logits``, else the first
            floating tensor, positions that ``attention_mask`` pads set to zero.
        metric: "output_mse" | "kl".
        probes, seed: kept as defaults for scoring.
        progress: show a bar.

    Raises:
        CalibrationError: empty data; NaN or Inf in an input or in the output; an input that is missing, or of
            another shape or dtype than the trace (the batch's index is named); an output of zeros only.
    """
    flat = tuple(read_batches(traced, batches))
    judge = Judge(output, mask_position(traced), metric)
    interpreter, sums = Interpreter(traced), _Sums()
    power, samples = 0.0, 0
    for index, inputs in enumerate(tqdm(flat, desc="calibrate", unit="batch", disable=not progress)):
        tap = sums.tap(interpreter, padding_mask(traced, inputs))
        judged = judged_output(interpreter, judge, inputs, index, tap)
        power += float(judge.signal(judged).sum())
        samples += batch_size(inputs)
    if power <= 0.0:
        raise CalibrationError(
            "the judged output carries no signal",
            got=f"{metric} power {power}",
            expected="more than 0",
            remedy="judge another tensor with Search(output=...), or another metric",
        )
    moments_of = {layer: (squares / sums.positions[layer]).float() for layer, squares in sums.squares.items()}
    return Statistics(
        flat, samples, power / samples, judge, moments_of, sums.positions, sums.rows, probes, seed
    )


def judged_output(
    interpreter: Interpreter, judge: Judge, inputs: Sequence[Tensor], index: int, tap: Tap | None = None
) -> Tensor:
    """The judged tensor of one checked batch, without gradients.

    Raises:
        CalibrationError: the model fails on the batch (token numbers beyond the vocabulary, sizes that do not
            fit one another), or its output is not finite.
    """
    try:
        with torch.no_grad():
            outputs = interpreter.run(inputs, tap=tap)
    except (RuntimeError, IndexError) as error:
        raise CalibrationError(
            f"batch {index}: the model fails on it",
            got=str(error).strip().splitlines()[0],
            expected="inputs that the model can run on",
            remedy="check the batch's values and sizes (numbers of tokens, classes, positions)",
        ) from error
    judged = judge.tensor(interpreter.traced.unflatten_outputs(outputs), inputs)
    if not bool(torch.isfinite(judged).all()):
        raise CalibrationError(
            f"batch {index}: the model's output holds NaN or Inf",
            expected="a finite output",
            remedy="check the weights and this batch; half precision may overflow: try float32",
        )
    return judged

"""How much the output minds an error in each direction of an embedding's vectors.

A linear layer's error ΔW x is spread over the inputs x, and E[x xᵀ] says which columns of W matter. A row of
an embedding *is* the layer's output: its error δ costs E‖J δ‖² = δᵀ E[JᵀJ] δ, J = ∂output/∂(row), so E[JᵀJ]
takes the place of E[x xᵀ]. It is estimated as E[g gᵀ], g = Jᵀu for random output probes u.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from torchcoinfer.calibrate.interpret import Interpreter
from torchcoinfer.calibrate.judge import Judge, batch_size
from torchcoinfer.trace import Traced

SAMPLES = 128
CHUNK = 4  # samples whose activations are held at one time


def embedding_sensitivity(
    traced: Traced,
    judge: Judge,
    batches: Sequence[Sequence[Tensor]],
    layers: Collection[str],
    *,
    samples: int = SAMPLES,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Σ g gᵀ per embedding, float32 [D, D]; one probe a sample.

    Args:
        traced: the traced model; it is not changed.
        judge: what is judged of the output (``Statistics.judge``).
        batches: flat inputs (``Statistics.batches``).
        layers: names of the embeddings.
        samples: about how many samples are used, from all batches alike.
        seed: of the probes.
    """
    interpreter = Interpreter(traced)
    totals: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    for inputs in _chunks(traced, batches, samples) if layers else ():
        sites: list[tuple[str, Tensor]] = []

        def leave_leaf(node: fx.Node, args: Sequence[Any], value: Any, sites=sites) -> Any:
            call = interpreter.call_of.get(node)
            if call is None or call.kind != "embedding" or call.layer not in layers:
                return value
            value = value.detach().requires_grad_(True)
            sites.append((call.layer, value))
            return value

        with torch.enable_grad():
            outputs = interpreter.run(inputs, tap=leave_leaf)
            judged = judge.tensor(traced.unflatten_outputs(outputs), inputs)
        if not judged.requires_grad:
            continue
        signs = torch.randint(0, 2, judged.shape, generator=generator).mul_(2).sub_(1)
        direction = judge.probe(judged, signs.to(device=judged.device, dtype=judged.dtype))
        leaves = [value for _, value in sites]
        for (layer, value), gradient in zip(
            sites, torch.autograd.grad(judged, leaves, direction, allow_unused=True)
        ):
            if gradient is not None:
                g = gradient.reshape(-1, value.shape[-1]).float()
                totals[layer] = g.T @ g + totals.get(layer, 0.0)
    return totals


def _chunks(traced: Traced, batches: Sequence[Sequence[Tensor]], samples: int) -> Iterator[Sequence[Tensor]]:
    """A few samples of each batch; whole batches, as many as it takes, where the batch size is fixed."""
    share = -(-samples // max(len(batches), 1))
    taken = 0
    for inputs in batches:
        size = batch_size(inputs)
        divisible = all(
            bool(spec.shape) and isinstance(spec.shape[0], str) and value.shape[0] == size
            for spec, value in zip(traced.call.inputs, inputs)
        )
        if not divisible:
            if taken < samples:
                taken += size
                yield inputs
            continue
        for start in range(0, min(share, size), CHUNK):
            stop = min(start + CHUNK, share, size)
            yield tuple(value[start:stop] for value in inputs)

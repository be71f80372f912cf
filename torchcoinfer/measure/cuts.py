"""Distortion of coding a tensor of the graph at b bits: the predictor with the Jacobian from that tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from torchcoinfer.calibrate.judge import batch_size
from torchcoinfer.calibrate.statistics import Statistics
from torchcoinfer.errors import ArgumentError, CalibrationError
from torchcoinfer.measure.chunks import Squares, responses
from torchcoinfer.measure.score import default_working_set
from torchcoinfer.measure.tape import Noise, Rademacher, Site, Tape
from torchcoinfer.trace import Traced

Code = Callable[[str, Tensor, int], Tensor]
"""(tensor name, value, bits) -> the value after encode and decode."""


def score_cuts(
    traced: Traced,
    statistics: Statistics,
    bits: Mapping[str, Sequence[int | None]],
    *,
    code: Code,
    probes: int | None = None,
    seed: int | None = None,
    batches: Sequence[Sequence[Tensor]] | None = None,
    working_set_bytes: int | None = None,
    noise: Noise | None = None,
    progress: bool = False,
) -> dict[str, dict[int | None, float]]:
    """Relative distortion of coding each tensor of the graph, to first order, as for layers.

    Args:
        bits: per tensor name, the bit-widths to score; None means as it is and costs no distortion.
        code: encodes and decodes a value.
        others: as in :func:`score_options`.

    Raises:
        ArgumentError: an unknown tensor.
        CalibrationError: bits asked for a tensor that is not floating point.
    """
    unknown = sorted(set(bits) - set(traced.tensor_nodes))
    if unknown:
        raise ArgumentError("unknown tensors", got=unknown, expected="names in Traced.tensor_nodes")
    probes = statistics.probes if probes is None else probes
    noise = noise or Rademacher(statistics.seed if seed is None else seed)
    data = statistics.batches if batches is None else batches
    tape = Tape(traced, statistics.judge, data[0])
    coded = {name: [b for b in dict.fromkeys(choices) if b is not None] for name, choices in bits.items()}
    coded = {name: choices for name, choices in coded.items() if choices}
    samples = sum(batch_size(batch) for batch in data)
    squares = {name: Squares.empty(len(choices)) for name, choices in coded.items()}
    budget = default_working_set(traced) if working_set_bytes is None else working_set_bytes
    bar = tqdm(total=samples, desc="score cuts", unit="sample", disable=not progress)
    nodes = {traced.tensor_nodes[name]: name for name in coded}
    for segments in responses(tape, data, set(nodes), probes, noise, budget, bar):
        missing = set(nodes)
        for sites, g in segments:
            for node, site in sites.items():
                name = nodes[node]
                squares[name].add(_coded_response(name, coded[name], site, g[node], code))
            missing -= set(sites)
            del sites, g  # before the next segment is run
        if missing:
            raise CalibrationError(
                f"tensor {nodes[missing.pop()]!r} cannot be coded", got="no floating tensor",
                expected="bits None for it",
            )  # fmt: skip
    bar.close()
    scale = statistics.judge.factor / (samples * statistics.signal)
    table: dict[str, dict[int | None, float]] = {name: {None: 0.0} for name in bits}
    for name, choices in coded.items():
        table[name].update(zip(choices, squares[name].mean_and_error(scale)[0]))
    return table


def _coded_response(name: str, bits: Sequence[int], site: Site, g: Tensor, code: Code) -> Tensor:
    with torch.no_grad():
        x = site.value.detach()
        delta = torch.stack([(code(name, x, b) - x).to(g.dtype).reshape(g.shape[0], -1) for b in bits], 1)
        return torch.bmm(g, delta.transpose(1, 2))

"""Real networks as the papers see them: splits with their loads, and the measured error of every cell."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor
from tqdm import tqdm

from torchcoinfer.bench.paper.quantizers import pruned
from torchcoinfer.bench.paper.subjects import Subject
from torchcoinfer.compress import nearest
from torchcoinfer.theory.graph import candidate_cuts
from torchcoinfer.theory.options import Option
from torchcoinfer.theory.papers import PaperProblem
from torchcoinfer.theory.papers_tables import Q_SYSTEM, Level, PaperSystem, Split, bit_levels, pruning_levels
from torchcoinfer.theory.resources import Radio
from torchcoinfer.trace import trace

# [Q] and [P] do not state a radio that fits these networks; 133 Mbit/s at 20 MHz and 0.2 W
_SNR_HZ_PER_W, _MOST_W = 495.0 * 20e6, 0.2
BANDWIDTH_HZ = {"FCDNN-16": 200e6, "minilm": 100e6}  # a transfer takes about as long as the computation
_SPLITS_AFTER = {
    "FCDNN-16": r"^\d*[13579]#0$",  # a ReLU
    "minilm": r"(embeddings|layer\.\d+\.output)\.LayerNorm#0$",  # the embeddings, a block
}


@dataclass(frozen=True)
class Measured:
    """A network's splits and levels with the relative output error of each cell.

    Attributes:
        chosen_on, judged_on: [splits, levels], on the data to choose on and on the others.
    """

    name: str
    splits: tuple[Split, ...]
    levels: tuple[Level, ...]
    chosen_on: np.ndarray
    judged_on: np.ndarray

    def problem(self, latency: float, energy: float, bandwidth: float = 1.0) -> PaperProblem:
        """A budget in units of ``device_s`` and ``device_j``, a bandwidth in units of the network's own."""
        limits = latency * self.device_s, energy * self.device_j
        return PaperProblem(self.splits, self.levels, self.chosen_on, *limits, self.system(bandwidth))

    def system(self, times: float = 1.0) -> PaperSystem:
        """[Q]'s device and server, and a radio of ``times`` the network's bandwidth."""
        bandwidth_hz = times * BANDWIDTH_HZ[self.name]
        return replace(Q_SYSTEM, radio=Radio(bandwidth_hz, _SNR_HZ_PER_W / bandwidth_hz, _MOST_W))

    @property
    def middle(self) -> int:
        """The split nearest to half of the work."""
        shares = [s.device_flops / (s.device_flops + s.server_flops) for s in self.splits]
        return int(np.argmin(np.abs(np.array(shares) - 0.5)))

    @property
    def device_s(self) -> float:
        """Full precision, all on the device, at its highest clock: the unit of the budgets."""
        flops = self.splits[0].device_flops + self.splits[0].server_flops
        return flops / Q_SYSTEM.device_flops_per_cycle / Q_SYSTEM.device.max_hz

    @property
    def device_j(self) -> float:
        return Q_SYSTEM.device.coefficient * self.device_s * Q_SYSTEM.device.max_hz**3


def splits_of(subject: Subject) -> tuple[tuple[Split, ...], tuple[frozenset[str], ...]]:
    """Splits from "all on the server" to "all on the device", and the layers on the device of each."""
    graph = trace(subject.model, subject.example).graph
    pattern = re.compile(_SPLITS_AFTER[subject.name])
    cuts = [c for c in candidate_cuts(graph) if c.name in ("device", "server") or pattern.search(c.name)]
    total = sum(unit.flops for unit in graph.units)
    found = []
    for cut in cuts:
        here = [unit for unit in graph.units if unit.name in set(cut.device)]
        flops = sum(unit.flops for unit in here)
        sent = 8.0 * sum(graph.tensors[name].nbytes for name in cut.tensors)
        layers = frozenset(unit.layer for unit in here if unit.layer is not None)
        found.append((Split(cut.name, flops, sent, total - flops), layers))
    found.sort(key=lambda pair: pair[0].device_flops)
    splits, layers = zip(*found, strict=True)
    return splits, layers


def quantized_errors(subject: Subject, bits: Sequence[int], progress: bool) -> Measured:
    """[Q]: one width for every weight on the device, in groups of 64, rounded to nearest; the server's part
    and the cut stay as they are. The last level is full precision."""
    splits, layers = splits_of(subject)
    coded = {
        b: {name: _rounded(weight, b) for name, weight in subject.weights.items()} for b in sorted(set(bits))
    }
    chosen, judged = (np.zeros((len(splits), len(bits) + 1)) for _ in range(2))
    cells = [(s, k) for s in range(len(splits)) if layers[s] for k in range(len(bits))]
    for s, k in tqdm(cells, desc=f"measuring {subject.name}", unit="cell", disable=not progress):
        changed = {name: coded[bits[k]][name] for name in layers[s]}
        chosen[s, k] = subject.relative_error(changed, judging=False)
        judged[s, k] = subject.relative_error(changed)
    levels = bit_levels([*bits, Q_SYSTEM.float_bits])
    return Measured(subject.name, splits, levels, chosen, judged)


def pruned_errors(
    subject: Subject, splits: tuple[Split, ...], sparsities: Sequence[float], progress: bool
) -> Measured:
    """[P*]: one pruned share for all weights of both parts, so the error is the same at every split."""
    rows: dict[bool, list[float]] = {True: [], False: []}
    for share in tqdm(sparsities, desc=f"pruning {subject.name}", unit="share", disable=not progress):
        changed: Mapping[str, Tensor] = pruned(subject.weights, share)
        for judging, errors in rows.items():
            errors.append(subject.relative_error(changed, judging=judging))
    chosen, judged = (np.tile(rows[judging], (len(splits), 1)) for judging in (False, True))
    return Measured(subject.name, splits, pruning_levels(sparsities), chosen, judged)


def _rounded(weight: Tensor, bits: int) -> Tensor:
    option = Option(bits=bits, format="int", group_size=64, algorithm="nearest")
    return nearest(weight.detach().flatten(1), option).dequantize().reshape(weight.shape)

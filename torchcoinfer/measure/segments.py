"""Where the traced graph is divided, so that a backward pass holds one segment at a time.

What a pass with gradients keeps is known only by running it: each node of one run with gradients is asked
what it would save, and nothing is saved. Then boundaries are put where little is alive, as few as the budget
allows; where no division fits, the one of least peak, about √n segments for n equal layers (Chen et al.,
"Training deep nets with sublinear memory cost", 2016).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import _pytree as pytree

from torchcoinfer.calibrate.interpret import Interpreter

PIECES = tuple(sorted({round(2 ** (power / 2)) for power in range(21)}))  # 1, 2, 3, 4, 6, 8, 11 ... 1024


@dataclass(frozen=True)
class Costs:
    """Bytes of one chunk of samples, per node of the graph in order (n of them).

    Attributes:
        kept: [n], what the backward pass keeps of a node, and what its site holds (``site_bytes``).
        made: [n], what a node's value takes; 0 for views and inputs.
        ends: [n], the last position at which what a node made is read, views of it included.
        carried: [n], gradients of all probes of the values alive just before a node.
        barred: [n], whether a value that is no single tensor is alive there, so that no boundary may be.
        differentiable: nodes whose values depend on a site.
    """

    kept: tuple[int, ...]
    made: tuple[int, ...]
    ends: tuple[int, ...]
    carried: tuple[int, ...]
    barred: tuple[bool, ...]
    differentiable: frozenset[fx.Node]

    def peak(self, bounds: Sequence[int]) -> int:
        """The most bytes held at one time when the graph is divided before the positions ``bounds``."""
        most = stored = 0
        edges = (0, *bounds, len(self.kept))
        carried = (*self.carried, 0)
        for start, stop in zip(edges, edges[1:]):
            held = stored + sum(self.kept[start:stop]) + carried[start] + carried[stop]
            most = max(most, held)
            stored += sum(self.made[i] for i in range(start, stop) if self.ends[i] >= stop)
        return most

    def bounds(self, pieces: int) -> tuple[int, ...]:
        """About ``pieces`` segments that keep alike much, divided where little is alive."""
        level = [sum(pair) for pair in zip(self._alive(), self.carried)]
        kept = (0, *accumulate(self.kept))
        most = kept[-1] / pieces
        found: list[int] = []
        start, position, best = 0, 1, None
        while position < len(self.kept):
            if not self.barred[position]:
                short = kept[position] - kept[start] < most / 2
                candidate = (short, level[position], -position)
                best = candidate if best is None else min(best, candidate)
            if best is not None and kept[position + 1] - kept[start] > most:
                start = position = -best[2]
                found.append(start)
                best = None
            position += 1
        return tuple(found)

    def _alive(self) -> tuple[int, ...]:
        """[n], bytes of the values alive just before each node."""
        return _crossing(self.made, self.ends)

    def divide(self, budget_bytes: float) -> tuple[int, ...]:
        """The boundaries of the fewest segments whose peak is within the budget; else those of least peak."""
        best: tuple[int, tuple[int, ...]] | None = None
        for pieces in PIECES:
            bounds = self.bounds(pieces) if pieces > 1 else ()
            peak = self.peak(bounds)
            if peak <= budget_bytes:
                return bounds
            if best is None or peak < best[0]:
                best = peak, bounds
        return best[1]


class Meter:
    """Notes what each node of a run with gradients would save for the backward pass, and saves nothing.

    Storages are told apart by the node that made them: an address is used again once its tensor is gone.
    """

    def __init__(self, interpreter: Interpreter):
        self._interpreter = interpreter
        self._saved: list[Tensor] = []  # of the node that is running: meanwhile no address is used twice
        self._counted: set[tuple[fx.Node, int]] = set()
        self._storages: dict[fx.Node, dict[int, fx.Node | None]] = {}  # address -> its maker; None: parameter
        self.kept: dict[fx.Node, int] = {}
        self.made: dict[fx.Node, int] = {}
        self.gradient: dict[fx.Node, int] = {}
        self.containers: set[fx.Node] = set()

    def hooks(self) -> saved_tensors_hooks:
        """The context to run in; its graph cannot be run backward."""
        return saved_tensors_hooks(self._pack, lambda _: None)

    def _pack(self, tensor: Tensor) -> None:
        self._saved.append(tensor)

    def see(self, node: fx.Node, value: Any) -> None:
        """To be called with each node's value, in order."""
        known: dict[int, fx.Node | None] = {}
        for read in node.all_input_nodes:
            known |= self._of(read)
        own: dict[int, fx.Node | None] = {}
        made = gradient = 0
        for leaf in _tensors(value):
            storage = leaf.untyped_storage()
            address = storage.data_ptr()
            if address not in known and address not in own and node.op != "placeholder":
                made += storage.nbytes()
            own[address] = known.get(address, node)
            if leaf.requires_grad:
                gradient += leaf.numel() * max(leaf.element_size(), 4)
        self._storages[node], self.made[node] = own, made
        if gradient:
            self.gradient[node] = gradient
        if not isinstance(value, Tensor) and any(True for _ in _tensors(value)):
            self.containers.add(node)
        self.kept[node] = self._newly_kept(known | own)

    def _newly_kept(self, makers: Mapping[int, fx.Node | None]) -> int:
        total = 0
        storages = [tensor.untyped_storage() for tensor in self._saved]
        for address, size in {storage.data_ptr(): storage.nbytes() for storage in storages}.items():
            if address not in makers:  # inside the op only
                total += size
            elif makers[address] is not None and (makers[address], address) not in self._counted:
                self._counted.add((makers[address], address))
                total += size
        self._saved.clear()
        return total

    def _of(self, node: fx.Node) -> dict[int, fx.Node | None]:
        if node not in self._storages:
            value = self._interpreter.attribute(node)
            self._storages[node] = {leaf.untyped_storage().data_ptr(): None for leaf in _tensors(value)}
        return self._storages[node]

    def costs(self, site_bytes: Mapping[fx.Node, int], probes: int) -> Costs:
        """What was seen, with ``site_bytes`` held per site."""
        nodes = self._interpreter.nodes
        places = {node: place for place, node in enumerate(nodes)}
        last = {node: place for place, node in enumerate(nodes)}
        for place, node in enumerate(nodes):
            last.update(dict.fromkeys(node.all_input_nodes, place))
        ends = [last[node] for node in nodes]
        for node, storages in self._storages.items():
            for maker in storages.values():
                if maker is not None:
                    ends[places[maker]] = max(ends[places[maker]], last[node])
        own_ends = [last[node] for node in nodes]
        return Costs(
            kept=tuple(self.kept.get(node, 0) + site_bytes.get(node, 0) for node in nodes),
            made=tuple(self.made.get(node, 0) for node in nodes),
            ends=tuple(ends),
            carried=_crossing([probes * self.gradient.get(node, 0) for node in nodes], own_ends),
            barred=tuple(map(bool, _crossing([node in self.containers for node in nodes], own_ends))),
            differentiable=frozenset(self.gradient),
        )


def _crossing(sizes: Sequence[int], ends: Sequence[int]) -> tuple[int, ...]:
    """Per position, the sizes of what began before it and ends there or later."""
    change = [0] * (len(sizes) + 1)
    for place, (size, end) in enumerate(zip(sizes, ends)):
        if end > place:
            change[place + 1] += size
            change[end + 1] -= size
    return tuple(accumulate(change))[: len(sizes)]


def _tensors(value: Any) -> Iterator[Tensor]:
    return (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor))

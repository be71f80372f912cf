"""Ways to spend a number of bytes on the layers of a model: what the planner is compared with.

Each takes the bytes that the layers' weights may fill and gives an option per layer. All choose from the same
options; ``exact`` is the planner's own solver on a restricted table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torchcoinfer.bench.surrogates import FISHER
from torchcoinfer.errors import InfeasibleBudget
from torchcoinfer.profile import device_profile, link_profile, server_profile
from torchcoinfer.theory.budget import Budget, Search, Workload
from torchcoinfer.theory.graph import Graph
from torchcoinfer.theory.options import WEIGHT_BITS, Option, packed_bytes
from torchcoinfer.theory.plan import Plan
from torchcoinfer.theory.solve import Problem, build_problem, solve

GROUP_SIZE = 64
PROFILES = "raspberry-pi-5", "laptop-4core", "wifi-5ghz"

Chosen = dict[str, Option]
Table = Mapping[str, Mapping[Option, float]]
Allowed = Callable[[Option], bool]


def dense(bits: int, group_size: int = GROUP_SIZE) -> Option:
    """Codes of ``bits``, rounded to nearest."""
    return Option(bits=bits, format="int", group_size=group_size, algorithm="nearest")


def is_dense(option: Option) -> bool:
    """Codes in the groups that uniform widths have."""
    return option.format == "float" or (option.format == "int" and option.group_size == GROUP_SIZE)


def is_pruned_only(option: Option) -> bool:
    return option.bits >= 16


@dataclass(frozen=True)
class Allocator:
    """The layers that may be compressed, and the table that is optimized.

    Attributes:
        layers: names, in the order of the graph; all other layers stay float.
        table: layer -> option -> E_l(o).
        fisher: the same with another score.
    """

    graph: Graph
    layers: tuple[str, ...]
    table: Table
    fisher: Table

    @classmethod
    def of(cls, graph: Graph, layers: tuple[str, ...], tables: Mapping[str, Table], own: str) -> Allocator:
        return cls(graph, layers, tables[own], tables[FISHER])

    def bytes_of(self, chosen: Mapping[str, Option]) -> int:
        shapes = {layer.name: layer for layer in self.graph.layers}
        return sum(packed_bytes(o, shapes[n].rows, shapes[n].columns) for n, o in chosen.items())

    def predicted(self, chosen: Mapping[str, Option]) -> float:
        return sum(self.table[n].get(o, 0.0) for n, o in chosen.items())

    def uniform(self, bits: int) -> Chosen:
        return dict.fromkeys(self.layers, dense(bits))

    def first_last_high(self, most: int) -> Chosen | None:
        """8 bits at both ends; the largest common width that fits between them, raised from the front."""
        ends = {self.layers[0]: dense(8), self.layers[-1]: dense(8)}
        fitting = [b for b in WEIGHT_BITS if self.bytes_of(self.uniform(b) | ends) <= most]
        if not fitting:
            return None
        chosen, wider = self.uniform(max(fitting)) | ends, _next_width(max(fitting))
        for name in self.layers if wider else ():
            raised = chosen | {name: dense(max(wider, chosen[name].bits))}
            chosen = raised if self.bytes_of(raised) <= most else chosen
        return chosen

    def sort_and_cut(self, most: int) -> Chosen | None:
        """Two neighboring widths; the most sensitive layers get the larger one, as many as fit."""
        found = []
        for low in WEIGHT_BITS:
            chosen, high = self.uniform(low), _next_width(low)
            if self.bytes_of(chosen) > most or high is None:
                continue
            for name in sorted(self.layers, key=lambda n: -self.table[n][dense(low)]):
                raised = chosen | {name: dense(high)}
                if self.bytes_of(raised) > most:
                    break
                chosen = raised
            found.append(chosen)
        return min(found, key=self.predicted, default=None)

    def fisher_lp(self, most: int) -> Chosen | None:
        """The Fisher score, summed and minimized exactly (a linear program with integers), over widths."""
        return self.exact(most, is_dense, self.fisher)

    def prune_then_quantize(self, most: int) -> Chosen | None:
        """One sparsity for all layers first, then the best widths of its survivors; the best sparsity."""
        shares = {o.sparsity for options in self.table.values() for o in options if o.format == "bitmap"}
        found = [
            self.exact(most, lambda o, s=share: o.format == "bitmap" and o.sparsity == s and o.bits < 16)
            for share in sorted(shares)
        ]
        return min((c for c in found if c), key=self.predicted, default=None)

    def exact(self, most: int, allowed: Allowed, table: Table | None = None) -> Chosen | None:
        """The solver's choice among the options allowed; None where nothing fits."""
        try:
            plan = solve(self.problem(self.budget(most), allowed, table))
        except InfeasibleBudget:
            return None
        return {name: plan.layers[name].option for name in self.layers}

    def budget(self, most: int) -> Budget:
        """All on the device: the layers' bytes as mean bits of all parameters, those left float counted."""
        graph = self.graph
        read = {name for unit in graph.units for name in unit.parameters}
        numel = sum(layer.numel for layer in graph.layers) + sum(graph.parameter_numel[name] for name in read)
        floats = sum(layer.weight_bytes for layer in graph.layers if layer.name not in self.layers)
        floats += sum(graph.parameters[name] for name in read)
        return Budget(device_bits_per_weight=8.0 * (floats + most) / numel * (1.0 + 1e-9))

    def problem(
        self, budget: Budget, allowed: Allowed, table: Table | None = None, search: Search | None = None,
        cut_table: Mapping | None = None,
    ) -> Problem:  # fmt: skip
        points = {
            name: [(o, value) for o, value in options.items() if allowed(o)]
            for name, options in (table or self.table).items()
        }
        device, server, link = PROFILES
        return build_problem(
            self.graph, points, cut_table or {}, device_profile(device), server_profile(server),
            link_profile(link), budget, search or Search(cut="device", gap=0.0), Workload(),
        )  # fmt: skip


@dataclass(frozen=True)
class Splitter:
    """A model on two sides: jointly, and cut after it was compressed as a whole."""

    allocator: Allocator
    cut_table: Mapping

    def joint(self, budget: Budget) -> Plan | None:
        return self._solved(budget, self.allocator.table)

    def after_compression(self, budget: Budget, sizes: Iterable[int]) -> Plan | None:
        """Layers for a whole model of each size, then the best cut; of those that fit the best."""
        found = []
        for size in sizes:
            chosen = self.allocator.exact(size, lambda o: True)
            if chosen is not None:
                table = {n: {o: self.allocator.table[n].get(o, 0.0)} for n, o in chosen.items()}
                found.append(self._solved(budget, table))
        plans = [plan for plan in found if plan is not None]
        return min(plans, key=lambda plan: plan.predicted["distortion"], default=None)

    def _solved(self, budget: Budget, table: Table) -> Plan | None:
        search = Search(gap=0.0)
        problem = self.allocator.problem(budget, lambda o: True, table, search, self.cut_table)
        try:
            return solve(problem)
        except InfeasibleBudget:
            return None


def _next_width(bits: int) -> int | None:
    larger = [width for width in WEIGHT_BITS if width > bits]
    return min(larger) if larger else None

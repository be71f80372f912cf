"""What the solver is given: choices of layers and of cut tensors with their costs, profiles, budget,
search."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchcoinfer.errors import ArgumentError
from torchcoinfer.theory.budget import Budget, Search, Workload
from torchcoinfer.theory.costs import (
    DeviceProfile,
    LinkProfile,
    Load,
    coded_bytes,
    float_bytes,
    unit_load,
)
from torchcoinfer.theory.couplings import Coupled, Coupling, check_couplings, make_coupled
from torchcoinfer.theory.graph import Cut, Graph, all_frontiers, candidate_cuts, cut_from_tensors
from torchcoinfer.theory.options import Option, drop_dominated, packed_bytes

FRONTIER_LIMIT = 400  # up to how many frontiers are enumerated


@dataclass(frozen=True)
class Choice:
    """One option of a layer. ``device`` and ``server``: the load of each unit of the layer, in graph
    order."""

    option: Option
    distortion: float  # E_l(o), relative output error
    packed_bytes: int
    device: tuple[Load, ...]
    server: tuple[Load, ...]


@dataclass(frozen=True)
class CutOption:
    """One way to send a tensor: ``bits`` None as it is; ``wire_bytes`` with headers, scales and zero
    points."""

    bits: int | None
    distortion: float
    wire_bytes: int
    kept: float = 1.0  # share of its channels that structured pruning keeps


@dataclass(frozen=True)
class Problem:
    """Numbers only: everything ``solve`` looks at.

    Attributes:
        choices: layer name -> its options (layers of one group: the same options in the same order).
        cut_options: tensor name -> its options; every tensor that may cross has one with bits None.
        fixed_device, fixed_server: unit name -> load, for units without a layer.
        answer_bytes: bytes of the model's outputs on the way back, headers counted.
        couplings: what options must agree in, beyond the groups of the graph.
        cuts: the candidates; None: ``candidate_cuts``, or all frontiers where they are few.
        frontier_limit: up to how many frontiers are enumerated.
    """

    graph: Graph
    choices: Mapping[str, tuple[Choice, ...]]
    cut_options: Mapping[str, tuple[CutOption, ...]]
    fixed_device: Mapping[str, Load]
    fixed_server: Mapping[str, Load]
    device: DeviceProfile
    server: DeviceProfile
    link: LinkProfile
    budget: Budget
    search: Search = Search()
    workload: Workload = Workload()
    answer_bytes: int = 0
    cuts: tuple[Cut, ...] | None = None
    frontier_limit: int = FRONTIER_LIMIT
    couplings: tuple[Coupling, ...] = ()


def _check_distortion(what: str, value: float) -> float:
    if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
        raise ArgumentError(
            f"the distortion of {what} is not a finite number of at least 0", got=repr(value),
            expected="the relative output error of one option, E_l(o)",
            remedy="measure it again; look for NaN or Inf in weights and data",
        )  # fmt: skip
    return float(value)


def _common_options(
    graph: Graph, curves: Mapping[str, Sequence[tuple[Option, float]]]
) -> dict[str, dict[Option, float]]:
    """layer -> option -> distortion: uncompressed (distortion 0) always, and in a group only what all
    have."""
    table: dict[str, dict[Option, float]] = {}
    for layer in graph.layers:
        options = {Option(): 0.0}
        for option, distortion in curves.get(layer.name, ()):
            options[option] = _check_distortion(f"layer {layer.name!r} at {option}", distortion)
        table[layer.name] = options
    groups: dict[str, list[str]] = {}
    for layer in graph.layers:
        if layer.group is not None:
            groups.setdefault(layer.group, []).append(layer.name)
    for members in groups.values():
        common = [o for o in table[members[0]] if all(o in table[m] for m in members)]
        for member in members:
            table[member] = {option: table[member][option] for option in common}
    return table


def _layer_choices(
    graph: Graph,
    table: Mapping[str, Mapping[Option, float]],
    sides: tuple[DeviceProfile, DeviceProfile],
    analytic: bool,
    drop: bool,
    couplings: Sequence[Coupling],
) -> dict[str, tuple[Choice, ...]]:
    units = {layer.name: [u for u in graph.units if u.layer == layer.name] for layer in graph.layers}
    choices = {}
    for layer in graph.layers:
        element_bytes = max(1, layer.weight_bytes // max(1, layer.numel))
        made = []
        for option, distortion in table[layer.name].items():
            loads = [
                tuple(unit_load(side, u, option, layer, graph, analytic=analytic) for u in units[layer.name])
                for side in sides
            ]
            size = packed_bytes(option, layer.rows, layer.columns, element_bytes)
            made.append(Choice(option, distortion, size, *loads))
        if drop and not layer.group:
            made = _undominated(made, [a for c in couplings for n, a in c.members if n == layer.name])
        choices[layer.name] = tuple(made)
    return choices


def _undominated(choices: Sequence[Choice], coupled: Sequence[str]) -> list[Choice]:
    """Choices that no other of the same coupled values dominates, in their order."""
    classes: dict[tuple[Any, ...], list[Choice]] = {}
    for choice in choices:
        classes.setdefault(tuple(getattr(choice.option, name) for name in coupled), []).append(choice)
    kept = {id(choice) for own in classes.values() for choice in drop_dominated(own, _choice_costs)}
    return [choice for choice in choices if id(choice) in kept]


def _cut_options(
    graph: Graph, cut_curves: Mapping[str, Sequence[tuple[int, float]]], search: Search
) -> dict[str, tuple[CutOption, ...]]:
    """How each tensor may cross. One without a curve (integers are never coded) crosses as it is."""
    options = {}
    for name, tensor in graph.tensors.items():
        as_it_is = CutOption(None, 0.0, float_bytes(tensor.nbytes, len(tensor.shape)))
        made = [as_it_is] if None in search.cut_bits else []
        for bits, distortion in cut_curves.get(name, ()):
            if bits is not None and bits in search.cut_bits:
                value = _check_distortion(f"tensor {name!r} at {bits} bits", distortion)
                made.append(CutOption(bits, value, coded_bytes(tensor.shape, bits, tensor.leading_dims)))
        options[name] = drop_dominated(made or [as_it_is], lambda o: (o.distortion, float(o.wire_bytes)))
    return options


def _choice_costs(choice: Choice) -> tuple[float, ...]:
    loads = [(load.cycles, load.seconds) for load in (*choice.device, *choice.server)]
    return (choice.distortion, float(choice.packed_bytes), *(value for pair in loads for value in pair))


def build_problem(
    graph: Graph,
    curves: Mapping[str, Sequence[tuple[Option, float]]],
    cut_curves: Mapping[str, Sequence[tuple[int, float]]],
    device: DeviceProfile,
    server: DeviceProfile,
    link: LinkProfile,
    budget: Budget,
    search: Search | None = None,
    workload: Workload | None = None,
    couplings: Sequence[Coupling] = (),
) -> Problem:
    """The problem of measured curves.

    Args:
        curves: layer name -> (option, measured E_l(o)); the uncompressed option is added with distortion 0.
        cut_curves: tensor name -> (bits, measured distortion of coding it); tensors left out cross as they
        are.
        couplings: layers whose options must agree in an attribute (structured pruning); tensors in them cross
            as they are here, with all their channels.

    Raises:
        ArgumentError: a distortion is negative, NaN or Inf, or a name is unknown to the graph.
    """
    search, workload = search or Search(), workload or Workload()
    unknown = sorted(set(curves) - {layer.name for layer in graph.layers}) + sorted(
        set(cut_curves) - set(graph.tensors)
    )
    if unknown:
        raise ArgumentError(
            "curves name what the graph does not have", got=unknown,
            expected="layers and tensors of the graph",
            remedy="measure the curves on this graph",
        )  # fmt: skip
    papers = search.mode == "analytic"
    analytic = papers or search.costs == "analytic"
    plain = [unit for unit in graph.units if unit.layer is None]
    fixed = [
        {unit.name: unit_load(side, unit, None, None, graph, analytic=analytic) for unit in plain}
        for side in (device, server)
    ]
    table = _common_options(graph, curves)
    outputs = [graph.tensors[name] for name in graph.outputs]
    return Problem(
        graph=graph,
        choices=_layer_choices(graph, table, (device, server), analytic, not papers, couplings),
        cut_options=_cut_options(graph, cut_curves, search),
        fixed_device=fixed[0],
        fixed_server=fixed[1],
        device=device,
        server=server,
        link=link,
        budget=budget,
        search=search,
        workload=workload,
        answer_bytes=sum(float_bytes(tensor.nbytes, len(tensor.shape)) for tensor in outputs),
        couplings=tuple(couplings),
    )


def check_problem(problem: Problem) -> None:
    """Raises ArgumentError where the couplings fit neither the options nor the mode."""
    if problem.couplings and problem.search.mode == "analytic":
        raise ArgumentError(
            "the papers' mode has one option for the whole device: nothing to couple",
            got=f"{len(problem.couplings)} couplings", expected="none", remedy="leave mode or couplings out",
        )  # fmt: skip
    layers = {name: [choice.option for choice in own] for name, own in problem.choices.items()}
    check_couplings(problem.couplings, {**layers, **problem.cut_options})


def couple(
    problem: Problem, decisions: tuple[tuple[str, ...], ...], cuts: tuple[Cut, ...], valid: np.ndarray
) -> tuple[Coupled | None, ...]:
    """Per cut what the items of its decisions must agree in; ``valid`` [cuts, G, I] loses items that cannot
    agree."""
    layers = [{name: [c.option for c in problem.choices[name]] for name in names} for names in decisions]
    made = []
    for c, cut in enumerate(cuts):
        tensors = [{name: problem.cut_options[name]} for name in cut.tensors]
        made.append(make_coupled(problem.couplings, [*layers, *tensors], valid[c]))
    return tuple(made)


def considered_cuts(
    graph: Graph, wanted: str | None, cuts: tuple[Cut, ...] | None = None, limit: int = FRONTIER_LIMIT
) -> tuple[tuple[Cut, ...], str]:
    """The cuts to compare, and what they are.

    Args:
        wanted: name of the only cut, or of the only tensor that crosses; None: any.
        cuts: those given; None: all frontiers if there are at most ``limit``, or candidates.

    Raises:
        ArgumentError: the graph has no cut of the name.
    """
    if wanted is None and cuts is not None:
        return cuts, "candidate cuts"
    candidates = cuts if cuts is not None else candidate_cuts(graph)
    if wanted is None:
        frontiers = all_frontiers(graph, limit)
        return (candidates, "candidate cuts") if frontiers is None else (frontiers, "all frontiers")
    for cut in (*candidates, *(all_frontiers(graph, limit) or ())):
        if cut.name == wanted:
            return (cut,), "the fixed cut"
    if wanted in graph.tensors:
        return (cut_from_tensors(graph, [wanted]),), "the fixed cut"
    names = [cut.name for cut in candidates]
    raise ArgumentError(
        "the model has no cut of this name", got=repr(wanted),
        expected=f"one of {names[:8]}{' ...' if len(names) > 8 else ''}",
        remedy="leave Search.cut out to have it chosen",
    )  # fmt: skip


def choose_cuts(problem: Problem) -> tuple[tuple[Cut, ...], str]:
    """The cuts to compare: the one that ``Search.cut`` fixes, those given, all frontiers if few, or
    candidates.

    Raises:
        ArgumentError: the graph has no cut of the name.
    """
    return considered_cuts(problem.graph, problem.search.cut, problem.cuts, problem.frontier_limit)

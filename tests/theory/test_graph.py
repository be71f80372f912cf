"""Cuts of the graph: candidates, frontiers, minimum cuts and liveness, against slow definitions."""

import itertools

import numpy as np
import pytest
from brute_force import frontiers, peak_bytes, random_graph

from torchcoinfer.errors import ArgumentError
from torchcoinfer.theory.graph import (
    Graph,
    Tensor,
    Unit,
    all_frontiers,
    candidate_cuts,
    crossing_tensors,
    cut_from_tensors,
    make_cut,
    parametric_minimum_cuts,
    peak_activation_bytes,
)


def graphs(count, units=8):
    for seed in range(count):
        rng = np.random.default_rng(seed)
        yield random_graph(rng, int(rng.integers(1, units + 1)))


def test_frontiers_are_all_sets_closed_under_predecessors():
    for graph in graphs(40):
        want = {frozenset(device) for device in frontiers(graph)}
        cuts = all_frontiers(graph)
        assert {frozenset(cut.device) for cut in cuts} == want
        assert len(cuts) == len(want) == len({cut.name for cut in cuts})
        assert all_frontiers(graph, limit=len(want)) == cuts
        assert all_frontiers(graph, limit=len(want) - 1) is None


def test_candidates_are_frontiers_with_both_ends_and_every_prefix():
    for graph in graphs(40):
        cuts = candidate_cuts(graph)
        names = [unit.name for unit in graph.units]
        sets = [frozenset(cut.device) for cut in cuts]
        assert cuts[0].name == "device"
        assert cuts[0].tensors == ()
        assert (cuts[1].name, cuts[1].device) == ("server", ())
        assert len(set(sets)) == len(sets) == len({cut.name for cut in cuts})
        assert set(sets) <= {frozenset(device) for device in frontiers(graph)}
        for i in range(1, len(names)):
            assert make_cut(graph, frozenset(names[:i])) in cuts
            assert make_cut(graph, frozenset(names[:i])).name == names[i - 1]


def test_a_cut_is_found_again_from_its_tensors():
    for graph in graphs(40):
        for cut in all_frontiers(graph):
            if cut.tensors:
                found = cut_from_tensors(graph, cut.tensors)
                assert set(found.tensors) == set(cut.tensors) or found.name == "device"
                assert set(found.device) <= set(cut.device)
        assert cut_from_tensors(graph, ()).name == "device"


def test_the_server_needs_nothing_but_what_crosses():
    for graph in graphs(30):
        for cut in all_frontiers(graph):
            known = set(cut.tensors)
            for unit in graph.units:
                if unit.name not in cut.device:
                    assert set(unit.inputs) <= known
                    known |= set(unit.outputs)
            if cut.name != "device":
                assert set(graph.outputs) <= known


def crossing_bytes(graph: Graph, device: frozenset) -> float:
    """As the minimum cut counts: the model's outputs cross whenever they are made on the device."""
    made = {name for unit in graph.units if unit.name in device for name in unit.outputs}
    names = {name for name in crossing_tensors(graph, device)} | (made & set(graph.outputs))
    return sum(graph.tensors[name].nbytes for name in names)


def test_minimum_cuts_are_the_lower_convex_hull_of_bytes_against_work():
    for graph in graphs(30):
        found = parametric_minimum_cuts(graph)
        points = [
            (len(d), crossing_bytes(graph, frozenset(d))) for d in frontiers(graph)
        ]  # equal work a unit
        own = [(len(d), crossing_bytes(graph, d)) for d in found]
        assert own[0][0] == 0
        assert own[-1][0] == len(graph.units)
        for (work_a, bytes_a), (work_b, bytes_b) in itertools.pairwise(own):
            assert work_a < work_b
            for work, nbytes in points:  # no frontier below the segment
                line = bytes_a + (bytes_b - bytes_a) * (work - work_a) / (work_b - work_a)
                assert nbytes >= line - 1e-6 * max(1.0, line) or not work_a <= work <= work_b


def test_peak_activation_is_the_peak_of_what_lives():
    for graph in graphs(40):
        for cut in all_frontiers(graph):
            here = [unit for unit in graph.units if unit.name in cut.device]
            there = [unit for unit in graph.units if unit.name not in cut.device]
            assert peak_activation_bytes(graph, cut.device, graph.inputs) == peak_bytes(
                graph, here, set(graph.inputs)
            )
            assert peak_activation_bytes(graph, [u.name for u in there]) == peak_bytes(graph, there, set())


def chain() -> Graph:
    tensors = {n: Tensor(n, (size,), "float32", 4 * size) for n, size in (("x", 5), ("a:0", 3), ("b:0", 2))}
    units = (Unit("a", "other", ("x",), ("a:0",), 1.0), Unit("b", "other", ("a:0",), ("b:0",), 1.0))
    return Graph(("x",), ("b:0",), tensors, units, (), {}, {})


def test_peak_of_a_chain_by_hand():
    assert peak_activation_bytes(chain(), ("a", "b")) == 20 + 12 + 8
    assert peak_activation_bytes(chain(), ("b",)) == 12 + 8
    assert peak_activation_bytes(chain(), ()) == 0


def test_names_that_do_not_divide_the_graph_are_refused():
    graph = next(g for g in graphs(50) if len(g.units) > 5)
    with pytest.raises(ArgumentError, match="no such tensors.*nothing.*candidate_cuts"):
        cut_from_tensors(graph, ["nothing"])
    with pytest.raises(ArgumentError, match="do not divide the graph.*candidate_cuts"):
        cut_from_tensors(chain(), ["x", "a:0"])
    backwards = Graph(("x",), ("b:0",), chain().tensors, chain().units[::-1], (), {}, {})
    with pytest.raises(ArgumentError, match="topological order"):
        all_frontiers(backwards)

"""The table of a scored model as a file."""

import json
from dataclasses import replace

import numpy as np
import pytest
from brute_force import random_graph

from torchcoinfer.errors import FormatError
from torchcoinfer.theory.budget import Budget, Search
from torchcoinfer.theory.costs import DeviceProfile, LinkProfile
from torchcoinfer.theory.options import Option
from torchcoinfer.theory.scored import Scored

DEVICE = DeviceProfile("d", (1e9, 2e9), 8, 0.5, 1e9, 1e9, 1e-27, 0.5, "made up", format_speed={"int": 1.5})
LINK = LinkProfile("l", 1e6, 1e6, 1e-3, (0.1, 0.5), 0.2, "made up", 1e6, 30.0)


def a_table() -> Scored:
    graph = random_graph(np.random.default_rng(3), 4)
    options = [Option(bits, 0.0, "int", 64, algorithm="nearest") for bits in (3, 4, 8)]
    curves = {
        layer.name: tuple((o, 0.01 * 4.0**-o.bits * (k + 1)) for o in options)
        for k, layer in enumerate(graph.layers)
    }
    cut_curves = {name: ((8, 1e-4), (4, 1e-2)) for name in graph.tensors}
    server = replace(DEVICE, name="s", clocks_hz=(4e9,))
    marks = {"model_hash": "x"}
    return Scored(graph, curves, cut_curves, DEVICE, server, LINK, Search(gap=0.0), provenance=marks)


def test_round_trip_and_equal_plans():
    table = a_table()
    again = Scored.from_json(table.to_json())
    assert again == table
    assert again.to_json() == table.to_json()
    budget = Budget(device_memory="80 KiB", latency=0.06)
    assert again.plan(budget).to_json() == table.plan(budget).to_json()
    assert table.plan(budget).provenance["model_hash"] == "x"
    assert table.plan(budget).alternatives["cuts"]
    assert [p.to_json() for p in again.front(budget, "uplink", 3)] == [
        p.to_json() for p in table.front(budget, "uplink", 3)
    ]


def test_other_widths_are_left_out():
    table = replace(a_table(), search=Search(bits=(4,), gap=0.0, cut="device"))
    plan = table.plan(Budget(device_bits_per_weight=20.0))
    assert {layer.bits for layer in plan.layers.values()} <= {4, 32}
    assert 4 in {layer.bits for layer in plan.layers.values()}


def test_broken_files_are_refused():
    values = json.loads(a_table().to_json())
    for broken in ({}, [], {**values, "version": 9}, {**values, "graph": {}}, {**values, "curves": 3}):
        with pytest.raises(FormatError, match="no table of a scored model.*remedy"):
            Scored.from_json(json.dumps(broken))
    with pytest.raises(FormatError):
        Scored.from_json(a_table().to_json()[:-30])

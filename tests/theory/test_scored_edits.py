"""A saved table that a hand has changed is refused when it is read, not when it is used."""

import json
from dataclasses import replace

import numpy as np
import pytest
from brute_force import random_problem

from torchcoinfer.errors import ArgumentError, TorchCoinferError
from torchcoinfer.theory.budget import Budget, Search
from torchcoinfer.theory.scored import Scored


@pytest.fixture(scope="module")
def table():
    problem = random_problem(np.random.default_rng(3), 5, 4, 1.0, "distortion")
    curves = {n: tuple((c.option, c.distortion) for c in own) for n, own in problem.choices.items()}
    cuts = {n: tuple((o.bits, o.distortion) for o in own if o.bits) for n, own in problem.cut_options.items()}
    return Scored(
        problem.graph, curves, cuts, problem.device, problem.server, problem.link, Search(bits=(2, 3, 4, 8))
    )


NAN = float("nan")
EDITS = {
    "rtt": lambda t: t["link"].update(rtt_s=-1),
    "static power": lambda t: t["device"].update(static_w=-5),
    "memory": lambda t: t["device"].update(memory_bytes=NAN),
    "no clocks": lambda t: t["server"].update(clocks_hz=[]),
    "clocks that fall": lambda t: t["device"].update(clocks_hz=[2e9, 1e9]),
    "downlink": lambda t: t["link"].update(downlink_bps=0),
    "width as text": lambda t: first_curve(t)[0].__setitem__(0, "x"),
    "width": lambda t: first_curve(t)[0].__setitem__(0, -4),
    "format": lambda t: first_curve(t)[0].__setitem__(2, "zz"),
    "distortion": lambda t: first_curve(t).__setitem__(1, NAN),
    "provenance": lambda t: t.update(provenance="x"),
    "unit without layer": lambda t: t["graph"]["units"][0].update(layer="zzz"),
    "output": lambda t: t["graph"].update(outputs=["zz"]),
    "work": lambda t: t["graph"]["units"][0].update(flops=NAN),
    "bytes": lambda t: next(iter(t["graph"]["tensors"].values())).update(nbytes=-5000),
    "no curves": lambda t: t.update(curves={}),
    "rows": lambda t: t["graph"]["layers"][0].update(rows=-5),
}


def first_curve(told):
    return next(iter(told["curves"].values()))[-1]


def test_the_table_itself_is_read(table):
    assert Scored.from_json(table.to_json()) == table


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_an_edited_table_is_refused(table, edit):
    told = json.loads(table.to_json())
    edit(told)
    with pytest.raises(TorchCoinferError) as caught:
        Scored.from_json(json.dumps(told))
    assert "expected:" in str(caught.value)


def test_a_table_answers_only_for_what_was_scored(table):
    assert table.narrowed(bits=(4, 8)).search.bits == (4, 8)
    with pytest.raises(ArgumentError, match="other widths"):
        table.narrowed(bits=(4, 5))
    fixed = replace(table, search=Search(cut="device"))
    assert fixed.narrowed().search.cut == "device"
    with pytest.raises(ArgumentError, match="another cut"):
        fixed.narrowed(cut="server")
    with pytest.raises(ArgumentError, match="certified_distortion"):
        table.plan(Budget(latency=1.0, certified_distortion=0.1))

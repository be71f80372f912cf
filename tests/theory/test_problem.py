"""From measured curves to the solver's problem: what is added, dropped, refused."""

import math

import pytest

from torchcoinfer.errors import ArgumentError
from torchcoinfer.theory.budget import Budget, Search, Workload
from torchcoinfer.theory.costs import DeviceProfile, LinkProfile, coded_bytes, float_bytes
from torchcoinfer.theory.graph import Graph, Layer, Tensor, Unit
from torchcoinfer.theory.options import Option, packed_bytes
from torchcoinfer.theory.solve import build_problem, solve

DEVICE = DeviceProfile("d", (1e9, 2e9), 8.0, 0.5, 5e9, 1e9, 1e-27, 1.0, "test", op_overhead_s=1e-6)
SERVER = DeviceProfile("s", (3e9,), 64.0, 0.5, 5e10, 1e10, 1e-27, 1.0, "test", op_overhead_s=1e-6)
LINK = LinkProfile("l", 1e7, 2e7, 5e-3, (0.5,), 0.2, "test")
INT4, INT8 = Option(4, 0.0, "int", 64), Option(8, 0.0, "int", 64)


def two_layers(group=None) -> Graph:
    tensors = {
        "ids": Tensor("ids", (4, 16), "int64", 512),
        "a:0": Tensor("a:0", (4, 16, 64), "float32", 16384, 2),
        "r:0": Tensor("r:0", (4, 16, 64), "float32", 16384, 2),
        "b:0": Tensor("b:0", (4, 16, 32), "float32", 8192, 2),
    }
    units = (
        Unit("a", "embedding", ("ids",), ("a:0",), 0.0, "a"),
        Unit("r", "other", ("a:0",), ("r:0",), 4096.0),
        Unit("b", "linear", ("r:0",), ("b:0",), 2.0 * 64 * 64 * 32, "b", ("b.bias",)),
    )
    layers = (
        Layer("a", "embedding", 1000, 64, 256_000, ("a",), group),
        Layer("b", "linear", 32, 64, 8192, ("b",), group),
    )
    return Graph(("ids",), ("b:0",), tensors, units, layers, {"b.bias": 128}, {"b.bias": 32})


CURVES = {"a": [(INT8, 1e-4), (INT4, 1e-2)], "b": [(INT8, 2e-4), (INT4, 3e-2)]}
CUT_CURVES = {"r:0": [(8, 1e-5), (4, 1e-3)]}


def build(graph=None, curves=None, cut_curves=None, search=None, workload=None, budget=None):
    return build_problem(
        graph or two_layers(), CURVES if curves is None else curves,
        CUT_CURVES if cut_curves is None else cut_curves,
        DEVICE, SERVER, LINK, budget or Budget(latency=10.0), search, workload,
    )  # fmt: skip


def test_the_uncompressed_option_and_the_uncoded_tensor_are_always_there():
    problem = build()
    for name, rows, columns in (("a", 1000, 64), ("b", 32, 64)):
        assert problem.choices[name][0].option == Option()
        assert problem.choices[name][0].distortion == 0.0
        for choice in problem.choices[name]:
            assert choice.packed_bytes == packed_bytes(choice.option, rows, columns)
    assert [(o.bits, o.wire_bytes) for o in problem.cut_options["r:0"]] == [
        (None, float_bytes(16384, 3)), (8, coded_bytes((4, 16, 64), 8, 2)),
        (4, coded_bytes((4, 16, 64), 4, 2)),
    ]  # fmt: skip
    assert [o.bits for o in problem.cut_options["ids"]] == [None]
    assert problem.answer_bytes == float_bytes(8192, 3)


def test_only_the_allowed_cut_bits_are_kept_and_integers_are_never_coded():
    problem = build(search=Search(cut_bits=4))
    assert [o.bits for o in problem.cut_options["r:0"]] == [4]
    assert [o.bits for o in problem.cut_options["ids"]] == [None]
    assert dict(solve(build(search=Search(cut_bits=4, cut="r"))).cut.tensors) == {"r:0": 4}


def test_a_dominated_option_is_dropped_but_not_from_a_group():
    worse = {**CURVES, "a": [(INT8, 1e-4), (INT4, 1e-2), (Option(8, 0.0, "int", 32), 2e-4)]}
    assert len(build(curves=worse).choices["a"]) == 3
    grouped = build(graph=two_layers("g"), curves={**CURVES, "b": [(INT8, 2e-4)]})
    assert [[c.option for c in grouped.choices[name]] for name in "ab"] == [[Option(), INT8]] * 2


REFUSED = [
    ({"a": [(INT8, -1.0)]}, {}, "layer 'a'"),
    ({"a": [(INT8, math.nan)]}, {}, "layer 'a'"),
    ({"b": [(INT8, math.inf)]}, {}, "layer 'b'"),
    ({"b": [(INT8, None)]}, {}, "layer 'b'"),
    ({}, {"r:0": [(8, math.nan)]}, "tensor 'r:0' at 8 bits"),
    ({"c": []}, {}, "'c'"),
    ({}, {"q:0": []}, "'q:0'"),
]


@pytest.mark.parametrize(("curves", "cut_curves", "words"), REFUSED)
def test_bad_curves_are_refused(curves, cut_curves, words):
    with pytest.raises(ArgumentError) as info:
        build(curves=curves, cut_curves=cut_curves)
    assert words in str(info.value)
    assert "remedy" in str(info.value)


def test_rows_of_a_cut_by_hand():
    """The cost model, written out for the cut after "r" at 8 bits, on the fast clock."""
    problem = build(curves={}, cut_curves={"r:0": [(8, 1e-5)]}, search=Search(cut="r", cut_bits=8))
    plan = solve(problem)
    moved = 512 + 16384 + 256_000 * 64 / 1000
    embedding = moved / 5e9 + 1e-6
    view = 1e-6 + max(4096 / 4.0 / 2e9, 32768 / 5e9)
    linear = 2 * 64 * 64 * 32 / 32.0 / 3e9
    linear = max(linear, (16384 + 8192 + 8192 + 128) / 5e10) + 1e-6
    wire = coded_bytes((4, 16, 64), 8, 2)
    answer = 8 * float_bytes(8192, 3) / 2e7
    got = plan.predicted
    assert got["uplink_bytes"] == wire
    assert got["device_s"] == pytest.approx(embedding + view, rel=1e-9)
    assert got["server_s"] == pytest.approx(linear, rel=1e-9)
    assert got["latency_s"] == pytest.approx(
        embedding + view + linear + 8 * wire / 1e7 + answer + 5e-3, rel=1e-9
    )
    assert got["device_bytes"] == 256_000 + 512 + 16384 * 2 + wire
    assert got["server_bytes"] == 8192 + 128 + 16384 + 8192 + wire
    assert got["device_bits_per_weight"] == 32.0
    assert got["distortion"] == 1e-5
    static = got["latency_s"] * 1.0 + 0.5 * 8 * wire / 1e7 + 0.2 * answer
    assert got["energy_j"] == pytest.approx(static, rel=1e-3)
    back = solve(build(curves={}, search=Search(cut="r", cut_bits=8), workload=Workload(answer="server")))
    assert back.predicted["latency_s"] == pytest.approx(got["latency_s"] - answer - 2.5e-3, rel=1e-9)


def test_an_answer_for_the_server_is_sent_up_from_the_device():
    plan = solve(build(search=Search(cut="device"), workload=Workload(answer="server")))
    assert plan.predicted["uplink_bytes"] == float_bytes(8192, 3)
    assert plan.cut.tensors == ()
    here = solve(build(search=Search(cut="device")))
    assert here.predicted["uplink_bytes"] == 0.0
    assert (here.resources["transmit_w"], plan.resources["transmit_w"]) == (0.0, 0.5)
    sent = 8 * float_bytes(8192, 3) / 1e7
    assert plan.predicted["latency_s"] == pytest.approx(here.predicted["latency_s"] + sent + 2.5e-3, rel=1e-9)

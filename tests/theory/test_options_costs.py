"""Exact bytes of packed formats, options of a search, dominance, and what a unit costs."""

import itertools
import math

import numpy as np
import pytest

from torchcoinfer.theory.costs import DeviceProfile, LinkProfile, Load, coded_bytes, header_bytes, unit_load
from torchcoinfer.theory.graph import Graph, Layer, Tensor, Unit
from torchcoinfer.theory.options import Option, candidate_options, drop_dominated, packed_bytes

# option, rows, columns, bytes counted by hand from the packed order (csrc/layout.h)
BYTES = [
    (Option(), 10, 7, 280),
    (Option(4, 0.0, "int", 64), 16, 64, 2 * 64 * 4 + 16 * 3),
    (Option(4, 0.0, "int", 64, True), 16, 64, 2 * 64 * 4 + 16 * 2),
    (Option(3, 0.0, "int", 0), 17, 33, 2 * 2 * 64 * 3 + 2 * 16 * 3),
    (Option(2, 0.0, "int", 32), 1, 1, 64 * 2 + 16 * 3),
    (Option(8, 0.0, "int", 128), 16, 129, 5 * 64 * 8 + 2 * 16 * 3),
    (Option(4, 0.5, "2:4", 64), 16, 64, 2 * (64 + 128) + 16 * 3),
    (Option(16, 0.5, "2:4", 0), 16, 32, 64 + 512),
    (Option(4, 0.5, "bitmap", 64), 16, 64, 512 * 4 // 8 + 2 * 64 + 8 + 16 * 3),
    (Option(16, 0.5, "bitmap", 0), 16, 32, 256 * 2 + 64 + 8),
    # 17 rows of 33: blocks of 264 and 16 (round half even of 16.5) survivors, in chunks of 64: 5 + 1
    (Option(4, 0.5, "bitmap", 0), 17, 33, 6 * 64 * 4 // 8 + 2 * 2 * 64 + 3 * 4 + 2 * 16 * 3),
]


@pytest.mark.parametrize(("option", "rows", "columns", "want"), BYTES)
def test_packed_bytes(option, rows, columns, want):
    assert packed_bytes(option, rows, columns) == want


def test_more_bits_never_take_fewer_bytes_and_all_beat_fp32_on_a_real_layer():
    for format_, group in itertools.product(("int", "2:4", "bitmap"), (32, 64, 128, 0)):
        sizes = [packed_bytes(Option(b, 0.5, format_, group), 384, 1536) for b in (2, 3, 4, 5, 6, 8)]
        assert sizes == sorted(sizes)
        assert sizes[-1] < packed_bytes(Option(), 384, 1536)


def test_options_of_a_search():
    given = {
        "bits": (4, 8), "sparsities": (0.0, 0.5, 0.75), "formats": ("int", "2:4", "bitmap"),
        "group_sizes": (64,),
        "activation_bits": (None, 8),
    }  # fmt: skip
    linear = candidate_options("linear", **given)
    assert linear[0] == Option()
    assert len(set(linear)) == len(linear) == 1 + 2 * 2 * (1 + 1 + 2)
    assert {o.sparsity for o in linear if o.format == "2:4"} == {0.5}
    assert {o.sparsity for o in linear if o.format == "bitmap"} == {0.5, 0.75}
    for kind in ("embedding", "conv2d"):
        own = candidate_options(kind, **given)
        assert {(o.format, o.activation_bits) for o in own} == {("float", None), ("int", None)}


def test_dropping_the_dominated_keeps_the_pareto_set_and_the_first_of_equals():
    rng = np.random.default_rng(0)
    for _ in range(50):
        points = [tuple(p) for p in rng.integers(0, 4, (12, 3)).tolist()]
        kept = drop_dominated(range(12), lambda i, points=points: points[i])
        for i in range(12):
            beaten = any(
                all(a <= b for a, b in zip(points[j], points[i], strict=True)) for j in kept if j != i
            )
            assert beaten != (i in kept)
        assert len({points[i] for i in kept}) == len(kept)
        assert all(points.index(points[i]) == i for i in kept)


PROFILE = DeviceProfile("d", (1e9, 2e9), 128.0, 0.5, 1e10, 1e9, 1e-27, 1.0, "test")


def one_unit(rows=256, columns=128, tokens=4, kind="linear") -> tuple[Graph, Unit, Layer]:
    tensors = {
        "x": Tensor("x", (tokens, columns), "float32", 4 * tokens * columns),
        "u:0": Tensor("u:0", (tokens, rows), "float32", 4 * tokens * rows),
    }
    flops = 0.0 if kind == "embedding" else 2.0 * tokens * rows * columns
    if kind == "embedding":
        tensors["u:0"] = Tensor("u:0", (tokens, columns), "float32", 4 * tokens * columns)
    unit = Unit("u", kind, ("x",), ("u:0",), flops, "u", ("u.bias",))
    layer = Layer("u", kind, rows, columns, 4 * rows * columns, ("u",))
    graph = Graph(("x",), ("u:0",), tensors, (unit,), (layer,), {"u.bias": 4 * rows}, {"u.bias": rows})
    return graph, unit, layer


def seconds(load: Load, hz: float) -> float:
    return load.cycles / hz + load.seconds


@pytest.mark.parametrize("tokens", (1, 2, 4, 8, 16, 64, 512))
def test_a_roofline_is_exact_at_both_clocks_and_never_below_between(tokens):
    graph, unit, layer = one_unit(tokens=tokens)
    moved = 4 * (tokens * 128 + tokens * 256 + 256 + 256 * 128)
    load = unit_load(PROFILE, unit, Option(), layer, graph)

    def true(hz):
        return max(unit.flops / (128.0 * 0.5) / hz, moved / 1e10)

    for hz in PROFILE.clocks_hz:
        assert seconds(load, hz) == pytest.approx(true(hz), rel=1e-12)
    for hz in np.linspace(1e9, 2e9, 7):
        assert seconds(load, hz) >= true(hz) * (1 - 1e-12)
    if tokens == 512:
        assert load.seconds == 0.0  # compute-bound: cycles alone
    if tokens == 1:
        assert load.cycles == 0.0  # memory-bound: seconds alone


def test_formats_buy_no_time_that_nobody_measured():
    graph, unit, layer = one_unit(tokens=1)

    def time(profile, *option):
        return seconds(unit_load(profile, unit, Option(*option), layer, graph), 2e9)

    assert time(PROFILE, 3, 0.0, "int", 64) >= time(PROFILE, 4, 0.0, "int", 64) * 0.99
    assert time(PROFILE, 5, 0.0, "int", 64) >= time(PROFILE, 8, 0.0, "int", 64) * 0.99
    assert time(PROFILE, 4, 0.0, "int", 64) < time(PROFILE, 8, 0.0, "int", 64) < time(PROFILE)
    assert time(PROFILE, 4, 0.5, "bitmap", 64) >= time(PROFILE, 4, 0.0, "int", 64) * 0.99
    stated = DeviceProfile(
        **{**PROFILE.__dict__, "format_speed": {"bitmap": 1.5, "int:3": 1.0, "int8a": 3.0}}
    )
    assert time(stated, 4, 0.75, "bitmap", 64) < time(PROFILE, 4, 0.75, "bitmap", 64)
    assert time(stated, 3, 0.0, "int", 64) < time(stated, 4, 0.0, "int", 64)
    graph, unit, layer = one_unit(tokens=512)
    assert time(stated, 8, 0.0, "int", 64, False, 8) == pytest.approx(
        time(PROFILE, 8, 0.0, "int", 64) / 3, rel=1e-9
    )


def test_a_view_takes_the_time_of_a_call_and_a_copy_that_of_its_bytes():
    tensors = {
        n: Tensor(n, (size,), "float32", 4 * size) for n, size in (("x", 100), ("v:0", 100), ("c:0", 200))
    }
    view, cat = Unit("v", "other", ("x",), ("v:0",), 0.0), Unit("c", "other", ("x", "v:0"), ("c:0",), 0.0)
    graph = Graph(("x",), ("c:0",), tensors, (view, cat), (), {}, {})
    profile = DeviceProfile(**{**PROFILE.__dict__, "op_overhead_s": 1e-6})
    assert unit_load(profile, view, None, None, graph) == Load(0.0, 1e-6)
    assert unit_load(profile, cat, None, None, graph) == Load(0.0, 1600 / 1e10 + 1e-6)


def test_an_embedding_reads_only_its_rows():
    graph, unit, layer = one_unit(rows=10_000, columns=64, tokens=5, kind="embedding")
    moved = 4 * 5 * 64 * 3 + 4 * 10_000  # input, output, rows, bias
    load = unit_load(PROFILE, unit, Option(), layer, graph)
    assert seconds(load, 2e9) == pytest.approx(moved / 1e10, rel=1e-9)


def test_measured_times_are_used_between_and_beyond_the_measured_sizes():
    table = {f"linear:int:4:256x128:{n}": t for n, t in ((1, 1e-5), (8, 3e-5), (64, 2e-4))}
    profile = DeviceProfile(**{**PROFILE.__dict__, "measured": table, "basis": "measured"})
    for tokens, want in ((1, 1e-5), (8, 3e-5), (36, 1.15e-4), (128, 4e-4)):
        graph, unit, layer = one_unit(tokens=tokens)
        load = unit_load(profile, unit, Option(4, 0.0, "int", 64), layer, graph)
        assert seconds(load, 2e9) == pytest.approx(want, rel=1e-9)
        other = unit_load(
            profile, unit, Option(8, 0.0, "int", 64), layer, graph
        )  # not measured: the roofline
        assert other == unit_load(PROFILE, unit, Option(8, 0.0, "int", 64), layer, graph)


def test_analytic_costs_are_the_papers():
    graph, unit, layer = one_unit(tokens=16)
    load = unit_load(PROFILE, unit, Option(4, 0.5, "bitmap", 64), layer, graph, analytic=True)
    assert load == Load(unit.flops * (4 / 32) * 0.5 / 128.0, 0.0)


def test_the_rate_of_a_link():
    shannon = LinkProfile("l", 1e6, 1e6, 0.0, (0.1, 1.0), 0.0, "test", 2e6, 7.0)
    assert shannon.rate_bps(1.0) == pytest.approx(6e6)
    assert shannon.rate_bps(0.1) == pytest.approx(2e6 * math.log2(1.7))
    assert LinkProfile("l", 1e6, 1e6, 0.0, (0.1,), 0.0, "test").rate_bps(0.1) == 1e6


def test_bytes_of_a_coded_tensor():
    assert coded_bytes((2, 3, 10), 3) == 6 * (4 + 8) + header_bytes(3)  # 30 bits a token: 4 bytes
    assert coded_bytes((2, 3, 4, 5), 8, 1) == 2 * (60 + 8) + header_bytes(4)

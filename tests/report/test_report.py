"""The report prints what the plan says, refuses to invent numbers, and its page stands alone."""

import base64
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest

from torchcoinfer.report import Report, content, format_table
from torchcoinfer.report.text import format_bytes, format_error, format_si
from torchcoinfer.theory.bounds import fit_laplace
from torchcoinfer.theory.bounds_network import SpentLayer, weights_block
from torchcoinfer.theory.plan import CutPlan, LayerPlan, Plan

MIB = 1 << 20


def layer(bits, side, size, sparsity=0.0):
    return LayerPlan(bits, sparsity, "2:4" if sparsity else "int", 64, False, None, "obs", side, size, 0.0012)


@pytest.fixture
def plan():
    weights = np.random.default_rng(0).laplace(size=4000)
    spent = SpentLayer(fit_laplace(weights), 4.0, 0.1)
    return Plan(
        layers={"body.first": layer(4, "device", 3 * MIB), "body.<last>": layer(3, "server", MIB, 0.5)},
        cut=CutPlan("body.norm#0", (("body.norm#0:0", 8), ("mask", None))),
        resources={"device_hz": 2.4e9, "server_hz": 1e10, "transmit_w": 0.2},
        predicted={
            "latency_s": 0.0312,
            "device_s": 0.02,
            "link_s": 0.01,
            "uplink_s": 0.004,
            "server_s": 0.0012,
            "energy_j": 0.114,
            "device_bytes": 3.5 * MIB,
            "uplink_bytes": 12_500,
            "distortion": 0.0213,
            "basis": {"latency_s": "estimated", "uplink_bytes": "measured"},
        },
        bounds={
            "weights": weights_block({"body.first": spent}),
            "output": {
                "measured": 0.0199,
                "certified": {"unavailable": "too few validation samples", "n": 4, "needs": 9},
                "worst_case": {"value": 1e20, "vacuous": True},
            },
        },
        optimality={
            "gap": 1e-4,
            "over": "candidate cuts",
            "dual_bound": 0.0212,
            "lagrangian_bound": 0.0209,
            "here": {"lagrangian_dual": 0.0211, "shapley_folkman_gap": 0.004},
        },
        provenance={"device": "raspberry-pi-5", "link": "wifi-5ghz"},
        budget={"latency": 0.04, "device_memory": 4.0 * MIB},
        alternatives={
            "cuts": [{"name": "device", "distortion": 0.03, "latency_s": 0.05, "note": "over latency"}],
            "front": {
                "axis": "device_memory",
                "objective": "distortion",
                "rows": [
                    {
                        "limit": 2.0 * MIB,
                        "device_bytes": 1.9 * MIB,
                        "distortion": 0.3,
                        "cut": "c",
                        "gap": 0.1,
                    }
                ],
            },
            "bandwidth": {
                "uplink_bps": 2e7,
                "least_bps": 1.5e7,
                "most_bps": 8.25e7,
                "least_because": "latency",
                "most_because": "a plan at cut 'server' is better",
            },
        },
    )


@pytest.fixture
def details():
    option = {"bits_per_weight": 4.375, "distortion": 1e-3, "scaled_l1": 0.11, "chosen": True}
    return {
        "title": "A <net> & more",
        "curves": {
            "body.first": [option, {**option, "bits_per_weight": 3.4, "distortion": 4e-3, "chosen": False}]
        },
        "weight_numel": {"body.first": 5_750_000},
        "quality": [{"model": "this plan", "cosine": 0.988}],
        "notes": ["link costs come from a preset"],
    }


FACTS = [
    "body.first",
    "50 %",
    "3,145,728",
    "4.38",  # bits per weight of body.first
    "crosses: body.norm#0:0, coded in 8 bits",
    "crosses: mask, as it is",
    "31.2 ms",
    "78.0 %",
    "87.5 %",
    "0.0199",
    "unavailable (too few validation samples, n=4, needs=9)",
    "vacuous",
    "x the floor",
    "proven gap of 0.01 %, over candidate cuts",
    "over latency",
    "lower bound, with branching: 0.0212",
    "lower bound, Lagrangian, without branching: 0.0209",
    "Lagrangian dual 0.0211, Shapley-Folkman gap at most 0.004",
    "1.90 MiB",
    "10 %",
    "uplink rates from 15 Mbit/s to 82.5 Mbit/s, the downlink in proportion (now 20 Mbit/s; below",
    "below: over the latency budget; above: a plan",
    "link costs come from a preset",
]


@pytest.mark.parametrize("fact", FACTS)
def test_text_tells(plan, details, fact):
    assert fact in str(Report(plan, details))


def test_a_plan_alone_is_enough(plan):
    bare = replace(plan, bounds={}, optimality={}, predicted={}, budget={})
    text = str(Report(bare))
    assert "unavailable (not computed)" in text
    assert "no optimality is claimed" in text
    assert not re.search(r"\bnan\b", text)


def test_a_plan_that_compresses_nothing_bounds_nothing(plan):
    bare = replace(plan, bounds={"weights": weights_block({})})
    assert content.weight_sentences(bare) == ["no layer is compressed: nothing to bound"]


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (None, "unavailable (not computed)"),
        (0.25, "0.25"),
        ("not a feed-forward net", "unavailable (not a feed-forward net)"),
        ({"value": 0.5, "alpha": 0.1, "n": 40}, "0.5 (alpha=0.1, n=40)"),
        ({"reason": "no data", "n": 0, "needs": 9}, "unavailable (no data, n=0, needs=9)"),
        ({}, "unavailable (no reason given)"),
        (True, "unavailable (not a number)"),
    ],
)
def test_bounds_in_words(entry, text):
    assert content.bound_text(entry) == text


def test_latency_parts_sum_to_the_prediction(plan):
    parts = content.latency_parts(plan, {})
    assert sum(seconds for _, seconds in parts) == pytest.approx(plan.predicted["latency_s"])
    assert content.latency_parts(replace(plan, predicted={}), {}) == []
    assert content.latency_parts(plan, {"latency_parts": [["device", 1]]}) == [("device", 1.0)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_bytes(12), "12 B"),
        (format_bytes(1536), "1.50 KiB"),
        (format_bytes(12.4 * MIB), "12.4 MiB"),
        (format_si(0.0123, "s"), "12.3 ms"),
        (format_si(2.0, "J"), "2.00 J"),
        (format_si(4.2e-7, "s"), "420 ns"),
        (format_si(0.0, "s"), "0 s"),
        (format_error(1.2e-6), "1.20e-06"),
        (format_error(0.0), "0"),
    ],
)
def test_numbers_with_units(text, expected):
    assert text == expected


def test_tables_align():
    text = format_table([{"layer": "a", "bits": 4}, {"layer": "long", "bits": None}])
    assert text.splitlines() == ["layer  bits", "-----  ----", "a         4", "long      -"]
    assert format_table([]) == ""


def test_page_stands_alone_and_escapes(plan, details, tmp_path):
    pytest.importorskip("matplotlib")
    path = Report(plan, details).save_html(tmp_path / "report.html")
    page = path.read_text(encoding="utf-8")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert "A &lt;net&gt; &amp; more" in page and "body.&lt;last&gt;" in page and "<last>" not in page
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    pictures = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(pictures) == 4
    for picture in pictures:
        assert ElementTree.fromstring(base64.b64decode(picture)).tag.endswith("svg")
    assert page == Report(plan, details).save_html(tmp_path / "again.html").read_text(encoding="utf-8")


def test_a_page_that_cannot_be_written_leaves_nothing(plan, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        Report(plan).save_html(tmp_path / "taken")
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]

"""Plans: JSON round trips, refusals of broken JSON, differences, printing."""

import copy
import json
import pickle

import pytest

from torchcoinfer.errors import PlanError
from torchcoinfer.theory.plan import PLAN_VERSION, CutPlan, LayerPlan, Plan


def a_plan(**changes) -> Plan:
    values = {
        "layers": {
            "b": LayerPlan(4, 0.0, "int", 64, False, None, "obs", "device", 1000, 1e-3),
            "a": LayerPlan(32, 0.0, "float", 0, False, None, "none", "server", 4000, 0.0, (0, 2), "g"),
        },
        "cut": CutPlan("b", (("b:0", 8), ("mask", None))),
        "resources": {"device_hz": 1e9, "server_hz": 3e9, "transmit_w": 0.1},
        "predicted": {"latency_s": 0.01, "distortion": 1e-3, "basis": {"latency_s": "estimated"}},
        "bounds": {"output": {"certified": "unavailable (n=3, needs 9)"}, "weights": {}},
        "optimality": {"gap": 0.0, "dual_bound": 1e-3, "over": "all frontiers"},
        "provenance": {"seed": 0},
        "budget": {"latency": 0.02},
    }
    return Plan(**{**values, **changes})


def test_round_trip_is_exact_and_bytes_are_stable():
    plan = a_plan()
    text = plan.to_json()
    assert Plan.from_json(text) == plan
    assert Plan.from_json(text.encode()).to_json() == text
    reordered = a_plan(layers=dict(reversed(list(plan.layers.items()))))
    assert reordered.to_json() == text
    assert hash(Plan.from_json(text)) == hash(plan)
    assert copy.deepcopy(plan) == plan == pickle.loads(pickle.dumps(plan))


def test_a_plan_of_version_1_reads_as_one_of_today():
    """Version 1 had no alternatives, and its layers no kept shares of rows and columns."""
    values = json.loads(a_plan().to_json())
    del values["alternatives"]
    for layer in values["layers"].values():
        del layer["kept_rows"], layer["kept_columns"]
    old = Plan.from_json(json.dumps({**values, "version": 1}))
    assert old == a_plan()
    assert json.loads(old.to_json())["version"] == PLAN_VERSION == 2
    with pytest.raises(PlanError, match="wrong fields"):  # version 2 has them
        Plan.from_json(json.dumps(values))


def test_a_plan_is_frozen_to_its_depth():
    plan = a_plan()
    for change in (
        lambda: setattr(plan, "cut", None),
        lambda: plan.layers.update(c=None),
        lambda: plan.predicted["basis"].update(latency_s="measured"),
        lambda: setattr(plan.layers["a"], "bits", 2),
    ):
        with pytest.raises((AttributeError, TypeError)):
            change()


def broken(*path_and_value):
    *path, value = path_and_value
    values = json.loads(a_plan().to_json())
    place = values
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(values)


BROKEN = [
    (a_plan().to_json()[:-40], "no JSON"),
    ("", "no JSON"),
    ("\x00\xff", "no JSON"),
    ("[1, 2]", "not a plan"),
    ("{}", "not a plan"),
    ("[" * 100_000, "no JSON"),
    (broken("version", PLAN_VERSION + 1), "another version"),
    (broken("version", True), "another version"),
    (broken("version", "1"), "another version"),
    (broken("layers", ...), "wrong fields"),
    (broken("extra", 1), "wrong fields"),
    (broken("layers", []), "layers of the plan has the wrong type"),
    (broken("layers", "a", "bits", "4"), "bits of layer 'a' has the wrong type"),
    (broken("layers", "a", "bits", True), "bits of layer 'a' has the wrong type"),
    (broken("layers", "a", "bits", 4.5), "bits of layer 'a' has the wrong type"),
    (broken("layers", "a", "bits", None), "bits of layer 'a' has the wrong type"),
    (broken("layers", "a", "side", 3), "side of layer 'a' has the wrong type"),
    (broken("layers", "a", "side", ...), "wrong fields"),
    (broken("layers", "a", "shape", 3), "wrong fields"),
    (broken("layers", "a", "kept_rows", 0.0), "layer 'a' of the plan cannot be stored like this"),
    (broken("layers", "a", "bits", 9), "layer 'a' of the plan cannot be stored like this"),
    (broken("layers", "a", "format", "zz"), "layer 'a' of the plan cannot be stored like this"),
    (broken("layers", "a", "group_size", -1), "layer 'a' of the plan cannot be stored like this"),
    (broken("layers", "a", "algorithm", "magic"), "layer 'a' of the plan cannot be stored like this"),
    (broken("layers", "a", "side", "moon"), "side of layer 'a' is unknown"),
    (broken("layers", "a", "packed_bytes", -1), "layer 'a' holds an impossible number"),
    (broken("predicted", "distortion", "big"), "predicted.distortion of the plan is no finite number"),
    (broken("predicted", {}), "predicted.distortion of the plan is no finite number"),
    (broken("alternatives", {"cuts": 3}), "a part of the plan has the wrong type"),
    (broken("bounds", {"weights": 3}), "a part of the plan has the wrong type"),
    (broken("cut", "tensors", [["b:0", 1]]), "cut cannot be read"),
    (broken("cut", "tensors", [["b:0", 4], ["b:0", None]]), "cut cannot be read"),
    (broken("alternatives", []), "alternatives of the plan has the wrong type"),
    (broken("layers", "a", 3), "wrong fields"),
    (broken("cut", "b"), "cut cannot be read"),
    (broken("cut", "tensors", [["b:0"]]), "cut cannot be read"),
    (broken("cut", "tensors", [["b:0", "8"]]), "cut cannot be read"),
    (broken("cut", "tensors", [[1, 8]]), "cut cannot be read"),
    (broken("resources", "device_hz", "fast"), "no finite number"),
    (broken("budget", "latency", None), "no finite number"),
]


@pytest.mark.parametrize(("text", "words"), BROKEN, ids=[words for _, words in BROKEN])
def test_broken_json_is_refused(text, words):
    with pytest.raises(PlanError) as info:
        Plan.from_json(text)
    assert words in str(info.value)
    assert "expected: " in str(info.value)
    assert "remedy: " in str(info.value)


def test_what_json_cannot_hold_is_refused():
    with pytest.raises(PlanError, match="JSON cannot.*remedy"):
        a_plan(bounds={"x": float("nan")}).to_json()
    with pytest.raises(PlanError, match="JSON cannot"):
        a_plan(bounds={"x": object()}).to_json()


def test_differences_name_the_path():
    plan = a_plan()
    other = a_plan(cut=CutPlan("b", (("b:0", 4), ("mask", None))), budget={"energy": 1.0})
    assert plan.diff(plan) == {}
    assert plan.diff(other) == {
        "budget.energy": (None, 1.0),
        "budget.latency": (0.02, None),
        "cut.tensors": ([["b:0", 8], ["mask", None]], [["b:0", 4], ["mask", None]]),
    }


def test_printing_shows_cut_layers_and_budget():
    text = str(a_plan())
    for words in ("cut 'b'", "b:0 (8 bits)", "mask (as it is)", "budget 0.02", "latency_s", "int", "float"):
        assert words in text
    assert len(text.splitlines()) == 9

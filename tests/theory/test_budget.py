"""Units, validation and round trips of Budget, Workload and Search."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchcoinfer.errors import ArgumentError, UnitError
from torchcoinfer.theory.budget import BUDGET_FIELDS, Budget, Search, Workload
from torchcoinfer.theory.units import quantity

READ = [
    ("latency", "80 ms", 0.08),
    ("latency", "80ms", 0.08),
    ("latency", " 1.5e2 us ", 1.5e-4),
    ("latency", "150 µs", 1.5e-4),
    ("latency", "150 μs", 1.5e-4),
    ("latency", "2 min", 120.0),
    ("latency", 0.25, 0.25),
    ("latency", np.float32(0.5), 0.5),
    ("energy", "0.6 J", 0.6),
    ("energy", "250 mJ", 0.25),
    ("total_energy", "1 Wh", 3600.0),
    ("device_memory", "12 MiB", 12 * 2.0**20),
    ("device_memory", "12 MB", 12e6),
    ("server_memory", "1.5 GiB", 1.5 * 2.0**30),
    ("uplink", "3 kB", 3000.0),
    ("uplink", 0, 0.0),
    ("distortion", 0, 0.0),
    ("device_bits_per_weight", 4, 4.0),
    ("device_bits_per_weight", "4.5", 4.5),
]


@pytest.mark.parametrize(("field", "given", "want"), READ)
def test_quantities_become_si_floats(field, given, want):
    value = getattr(Budget(**{field: given}), field)
    assert type(value) is float
    assert value == pytest.approx(want, rel=1e-7)


# field, value, what the message must name
REFUSED = [
    ("latency", "80 MB", "unknown unit 'MB'"),
    ("latency", "80", "without a unit"),
    ("latency", "fast", "cannot be read"),
    ("latency", "", "cannot be read"),
    ("latency", "-3 ms", "greater than 0"),
    ("latency", 0, "greater than 0"),
    ("latency", -1.0, "greater than 0"),
    ("latency", math.nan, "finite"),
    ("latency", math.inf, "finite"),
    ("latency", True, "wrong type bool"),
    ("latency", [1], "wrong type list"),
    ("latency", 1j, "wrong type complex"),
    ("energy", "1 s", "unknown unit 's'"),
    ("energy", "1 W", "unknown unit 'W'"),
    ("device_memory", "12 mb", "unknown unit 'mb'"),
    ("device_memory", "12 Mbit", "unknown unit 'Mbit'"),
    ("device_memory", "0 B", "greater than 0"),
    ("uplink", "-1 B", "at least 0"),
    ("distortion", "1 %", "cannot be read"),
    ("device_bits_per_weight", "4 bit", "unknown unit 'bit'"),
    ("certified_distortion", 0.0, "greater than 0"),
]


@pytest.mark.parametrize(("field", "value", "words"), REFUSED)
def test_a_bad_quantity_is_refused_with_fact_value_and_remedy(field, value, words):
    with pytest.raises(UnitError) as info:
        Budget(**{field: value})
    text = str(info.value)
    assert f"Budget.{field}" in text
    assert words in text
    assert repr(value) in text
    assert "expected: " in text
    assert "remedy: " in text
    assert isinstance(info.value, ValueError)


def test_printing_shows_the_fields_given_alone():
    assert repr(Budget(latency="80 ms", device_memory="1 KiB")) == "Budget(latency=0.08, device_memory=1024)"


SPOKEN = {
    (0.4, "latency"): "400 ms",
    (90.0, "latency"): "90 s",
    (0.08002345, "latency"): "80.03 ms",
    (2.5e-6, "latency"): "2.5 us",
    (0.6, "energy"): "600 mJ",
    (12 * 2**20, "device_memory"): "12 MiB",
    (13_000_000, "device_memory"): "12.4 MiB",
    (100, "uplink"): "100 B",
    (0, "uplink"): "0 B",
    (4.25, "device_bits_per_weight"): "4.25",
}


@pytest.mark.parametrize(("value", "field"), SPOKEN)
def test_a_budget_is_told_with_units(value, field):
    assert str(Budget(**{field: value})) == f"{field} {SPOKEN[value, field]}"


@given(st.floats(1e-7, 1e13), st.sampled_from(["latency", "energy", "device_memory", "distortion"]))
def test_what_is_told_is_kept_by_what_keeps_the_limit(value, field):
    told = str(Budget(**{field: value})).removeprefix(field)
    number = float(told) if field == "distortion" else getattr(Budget(**{field: told}), field)
    assert value <= number * (1 + 1e-12) and number <= value * 1.0011


def test_a_budget_needs_a_field_and_knows_its_fields():
    with pytest.raises(ArgumentError, match="at least one field.*latency"):
        Budget()
    with pytest.raises(ArgumentError, match="no such field.*speed.*latency"):
        Budget.from_dict({"speed": 1.0})


@given(st.dictionaries(st.sampled_from(sorted(BUDGET_FIELDS)), st.floats(1e-12, 1e12), min_size=1))
def test_round_trip(values):
    budget = Budget(**values)
    assert Budget.from_dict(budget.as_dict()) == budget
    assert budget.as_dict() == values
    assert set(budget.rows()) == set(values) - {"certified_distortion"}


@given(st.floats(1e-9, 1e9), st.sampled_from(["s", "ms", "us", "ns"]))
def test_printing_a_number_and_reading_it_is_exact(number, unit):
    factor = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
    assert quantity("t", f"{number!r} {unit}", factor) == number * factor[unit]


SETTINGS = [
    (Workload, {"batch": 0}, "batch"),
    (Workload, {"batch": 1.5}, "batch"),
    (Workload, {"prompt": True}, "prompt"),
    (Workload, {"new_tokens": -1}, "new_tokens"),
    (Workload, {"new_tokens": 16}, "cache across the cut is not supported yet"),
    (Workload, {"answer": "cloud"}, "answer"),
    (Search, {"bits": (4, 7)}, "bits"),
    (Search, {"bits": ()}, "empty"),
    (Search, {"bits": "four"}, "bits"),
    (Search, {"bits": (True,)}, "bits"),
    (Search, {"sparsities": (1.0,)}, "sparsities"),
    (Search, {"sparsities": (math.nan,)}, "sparsities"),
    (Search, {"formats": ("csr",)}, "formats"),
    (Search, {"group_sizes": (48,)}, "group_sizes"),
    (Search, {"algorithms": ("magic",)}, "algorithms"),
    (Search, {"activation_bits": (4,)}, "activation_bits"),
    (Search, {"cut_bits": (1,)}, "cut_bits"),
    (Search, {"cut": 3}, "cut"),
    (Search, {"cut": ""}, "cut"),
    (Search, {"minimize": "size"}, "minimize"),
    (Search, {"metric": "accuracy"}, "metric"),
    (Search, {"output": "logits"}, "callable"),
    (Search, {"costs": "guessed"}, "costs"),
    (Search, {"mode": "fast"}, "mode"),
    (Search, {"alpha": 0.0}, "alpha"),
    (Search, {"alpha": 1.0}, "alpha"),
    (Search, {"gap": -1e-3}, "gap"),
    (Search, {"gap": None}, "gap"),
    (Search, {"finetune_steps": -1}, "finetune_steps"),
    (Search, {"seed": 0.5}, "seed"),
]


@pytest.mark.parametrize(("kind", "values", "words"), SETTINGS)
def test_bad_settings_are_refused_with_fact_value_and_remedy(kind, values, words):
    with pytest.raises(ArgumentError) as info:
        kind(**values)
    text = str(info.value)
    assert words in text
    assert "got: " in text
    assert "remedy: " in text


def test_one_value_stands_for_a_tuple_of_one():
    search = Search(bits=4, sparsities=0.0, formats="int", group_sizes=[32, 64], cut_bits=None)
    assert (search.bits, search.sparsities, search.formats) == ((4,), (0.0,), ("int",))
    assert (search.group_sizes, search.cut_bits) == ((32, 64), (None,))

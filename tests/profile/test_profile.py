"""Profiles: presets and their power, names and files that cannot be used, round trips, this machine."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from torchcoinfer import profile
from torchcoinfer.errors import ArgumentError, FormatError, UnitError
from torchcoinfer.profile.timing import interleaved_medians
from torchcoinfer.theory.costs import DeviceProfile, measured_key
from torchcoinfer.theory.graph import Graph, Layer, Tensor, Unit
from torchcoinfer.theory.options import Option

DEVICES = ("jetson-orin-nano", "laptop-4core", "phone-mid", "raspberry-pi-4", "raspberry-pi-5")
SERVERS = ("epyc-64core", "h100", "rtx-4090", "xeon-16core")
LINKS = ("5g", "bluetooth-le", "ethernet-1g", "lte", "wifi-2.4ghz", "wifi-5ghz")
# dynamic power at the highest clock, W: what the preset's source line says
DYNAMIC_W = {
    "jetson-orin-nano": 6.0,
    "laptop-4core": 20.0,
    "phone-mid": 3.5,
    "raspberry-pi-4": 3.7,
    "raspberry-pi-5": 5.0,
    "epyc-64core": 240.0,
    "h100": 500.0,
    "rtx-4090": 330.0,
    "xeon-16core": 130.0,
}


def some_device(**changes):
    return replace(profile.device_profile("raspberry-pi-5"), **changes)


def test_names():
    assert profile.preset_names("device") == DEVICES
    assert profile.preset_names("server") == SERVERS
    assert profile.preset_names("link") == LINKS
    assert set(profile.preset_names()) == {*DEVICES, *SERVERS, *LINKS}


@pytest.mark.parametrize("name", DEVICES + SERVERS)
def test_compute_presets_state_source_and_power(name):
    preset = profile.device_profile(name)
    assert preset == profile.server_profile(name)  # a server may be used as a device, and the other way round
    assert preset.name == name and preset.basis == "estimated"
    assert "assumed" in preset.source or "published" in preset.source
    assert preset.energy_coefficient * preset.clocks_hz[-1] ** 3 == pytest.approx(DYNAMIC_W[name], rel=1e-4)
    assert f"{DYNAMIC_W[name]:g} W dynamic" in " ".join(preset.source.split())
    assert 0 < preset.efficiency <= 1


@pytest.mark.parametrize("name", LINKS)
def test_link_presets_reach_their_stated_rate_at_full_power(name):
    link = profile.link_profile(name)
    assert link.name == name and link.basis == "estimated" and link.source
    rates = [link.rate_bps(power) for power in link.transmit_w]
    assert rates[-1] == pytest.approx(link.uplink_bps, rel=1e-5)
    assert rates == sorted(rates)


BAD = {
    "unknown": (profile.device_profile, "raspi", ArgumentError, ["'raspi'", *DEVICES, "local"]),
    "unknown server": (profile.server_profile, "xeon", ArgumentError, [*SERVERS, "local"]),
    "unknown link": (profile.link_profile, "wifi", ArgumentError, [*LINKS]),
    "cuda": (
        profile.device_profile,
        "cuda",
        ArgumentError,
        ["torch device", "DeviceProfile", "model.to", "pi-5"],
    ),
    "cuda:0": (profile.server_profile, "cuda:0", ArgumentError, ["torch device", "server=", "h100"]),
    "cpu": (profile.device_profile, "cpu", ArgumentError, ["torch device", "local"]),
    "torch.device": (
        profile.device_profile,
        torch.device("cuda", 1),
        ArgumentError,
        ["torch device", "cuda"],
    ),
    "link as device": (
        profile.device_profile,
        "lte",
        ArgumentError,
        ["LinkProfile", "'lte'", "DeviceProfile"],
    ),
    "device as link": (profile.link_profile, "phone-mid", ArgumentError, ["LinkProfile", *LINKS]),
    "local link": (profile.link_profile, "local", ArgumentError, ["'local'", *LINKS]),
    "number": (profile.device_profile, 3, ArgumentError, ["3", "path"]),
    "no such file": (profile.device_profile, "nowhere.toml", FormatError, ["nowhere.toml"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_names(name):
    resolve, value, error, words = BAD[name]
    with pytest.raises(error) as caught:
        resolve(value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


BAD_NUMBERS = {
    "clocks descend": {"clocks_hz": (2e9, 1e9)},
    "no clock": {"clocks_hz": ()},
    "zero flops": {"flops_per_cycle": 0.0},
    "negative power": {"static_w": -1.0},
    "nan": {"memory_bandwidth": math.nan},
    "inf": {"memory_bytes": math.inf},
    "text": {"efficiency": "high"},
    "bool": {"efficiency": True},
    "format speed": {"format_speed": {"int": 0.0}},
    "no source": {"source": ""},
}


@pytest.mark.parametrize("name", BAD_NUMBERS)
def test_bad_numbers_in_an_own_profile(name):
    (field,) = BAD_NUMBERS[name]
    with pytest.raises(UnitError, match=field):
        profile.device_profile(some_device(**BAD_NUMBERS[name]))


@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_round_trip(tmp_path, suffix):
    device = some_device(
        name='odd "name"',
        source="two\nlines, a \\ and a µ",
        measured={"linear:int:4:8x16:3": 1.25e-6, "linear:bitmap@0.5:4:8x16:3": 0.1 + 0.2},
        basis="measured",
    )
    for original, resolve in [(device, profile.device_profile)] + [
        (profile.link_profile(name), profile.link_profile) for name in LINKS
    ]:
        path = profile.save_profile(original, tmp_path / f"profile{suffix}")
        assert resolve(path) == original and resolve(str(path)) == original
    assert [entry.name for entry in tmp_path.iterdir()] == [f"profile{suffix}"]  # no temporary file is left


@pytest.mark.parametrize(
    "text, words",
    [
        ("role = ", "cannot read"),
        ('name = "x"', "role"),
        ('role = "device"\nname = "x"\nwarp = 9.0\n', "warp"),
        ('role = "device"\nname = "x"\n', "clocks_hz"),
    ],
)
def test_bad_files(tmp_path, text, words):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(FormatError, match=words):
        profile.device_profile(path)


def test_failed_save_leaves_nothing(tmp_path):
    bad = some_device(measured={"key": "text"})
    with pytest.raises(ValueError):
        profile.save_profile(bad, tmp_path / "p.toml")
    assert not list(tmp_path.iterdir())


def test_interleaving_calls_each_in_turn():
    order = []
    calls = {name: (lambda name=name: order.append(name) or sum(range(20000))) for name in "ab"}
    medians = interleaved_medians(calls, rounds=3)
    assert set(medians) == {"a", "b"} and all(value > 0 for value in medians.values())
    assert [key for key, _ in itertools.groupby(order)] == ["a", "b"] * 4  # a warm-up, then three rounds


def tiny_traced():
    model = nn.Sequential(
        nn.Embedding(50, 32), nn.Linear(32, 48), nn.Unflatten(1, (3, 4, 4)), nn.Conv2d(3, 4, 3)
    )
    tensors = {
        "ids": Tensor("ids", (5,), "int64", 40),
        "0#0:0": Tensor("0#0:0", (5, 32), "float32", 640),
        "1#0:0": Tensor("1#0:0", (5, 48), "float32", 960),
        "2#0:0": Tensor("2#0:0", (5, 3, 4, 4), "float32", 960),
        "3#0:0": Tensor("3#0:0", (5, 4, 2, 2), "float32", 320),
    }
    units = (
        Unit("0#0", "embedding", ("ids",), ("0#0:0",), 0.0, "0"),
        Unit("1#0", "linear", ("0#0:0",), ("1#0:0",), 2.0 * 5 * 32 * 48, "1"),
        Unit("2#0", "other", ("1#0:0",), ("2#0:0",), 0.0),
        Unit("3#0", "conv2d", ("2#0:0",), ("3#0:0",), 2.0 * 5 * 4 * 4 * 27, "3"),
    )
    layers = (
        Layer("0", "embedding", 50, 32, 6400, ("0",)),
        Layer("1", "linear", 48, 32, 6144, ("1",)),
        Layer("3", "conv2d", 4, 27, 432, ("3",)),
    )
    graph = Graph(("ids",), ("3#0:0",), tensors, units, layers, {}, {})
    return type("Traced", (), {"model": model, "graph": graph})()


def test_measured_costs_fill_the_table():
    traced = tiny_traced()
    local = some_device(basis="measured")
    options = [
        Option(4, 0.0, "int", 32),
        Option(4, 0.0, "int", 32, activation_bits=8),
        Option(4, 0.5, "2:4", 32),
        Option(16, 0.5, "bitmap"),
    ]
    state = torch.random.get_rng_state()
    measured = profile.measure_costs(traced, options, local, budget_s=1.0)
    assert torch.equal(state, torch.random.get_rng_state())
    linear = traced.graph.layers[1]
    for option in (Option(), *options):
        assert measured.measured[measured_key("linear", option, linear, 5)] > 0
    kinds = {key.rsplit(":", 2)[0] for key in measured.measured}
    assert {k for k in kinds if k.startswith("conv2d")} == {
        "conv2d:float:32",
        "conv2d:int:4",
        "conv2d:int+a8:4",
    }
    # what is known is kept as it is
    fixed = replace(local, measured=dict.fromkeys(measured.measured, 1.0))
    assert profile.measure_costs(traced, {"1": options}, fixed) == fixed


def test_costs_of_another_machine_are_not_measured_here():
    with pytest.raises(ArgumentError, match="raspberry-pi-5.*local"):
        profile.measure_costs(tiny_traced(), [], profile.device_profile("raspberry-pi-5"))


def test_this_machine():
    threads = torch.get_num_threads()
    local = profile.device_profile("local")
    assert local is profile.server_profile("local")  # measured once a process
    assert torch.get_num_threads() == threads
    assert isinstance(local, DeviceProfile) and local.basis == "measured"
    assert f"{threads} threads" in local.source and "power assumed" in local.source
    assert 1e8 < local.memory_bandwidth < 1e13
    assert 1e8 < local.flops_per_cycle * local.clocks_hz[-1] < 1e14
    assert {"int", "int8a", "2:4", "bitmap"} <= local.format_speed.keys()

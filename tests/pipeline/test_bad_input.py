"""Every bad input gets an error of the package's tree that names value, expectation, remedy."""

import dataclasses

import pytest
import torch
from torch import nn

import torchcoinfer as tci
from torchcoinfer import errors

GOOD = torch.linspace(-1, 1, 32).reshape(4, 8)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        y = self.fc(x)
        return y * 2 if y.sum() > 0 else y


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def call(model=None, budget=None, examples=(GOOD,), **changes):
    options = {
        "calibration": [GOOD, GOOD + 0.5, GOOD * 2],
        "device": "raspberry-pi-4",
        "server": "xeon-16core",
    }
    return tci.compress_and_split(
        model or net(), budget or tci.Budget(device_memory="1 KiB"), examples, progress=False,
        **{**options, **changes},
    )  # fmt: skip


def broken_weights():
    model = net()
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    return model


NAN = GOOD.clone()
NAN[1, 2] = float("nan")

CASES = {
    "control flow on data": (lambda: call(Branching()), errors.TraceError, ["remedy", "torch.where"]),
    "batch of another shape": (lambda: call(calibration=[GOOD, GOOD[:, :5]]), errors.CalibrationError, ["5"]),
    "NaN in a batch": (lambda: call(calibration=[NAN] * 3), errors.CalibrationError, ["NaN", "batch"]),
    "empty calibration": (lambda: call(calibration=[]), errors.CalibrationError, ["empty", "remedy"]),
    "one batch, no list": (lambda: call(calibration=GOOD), errors.CalibrationError, ["Tensor", "list"]),
    "wrong unit": (lambda: tci.Budget(latency="80 parsecs"), errors.UnitError, ["parsecs", "ms"]),
    "no unit": (lambda: tci.Budget(energy="3"), errors.UnitError, ["'3'", "J"]),
    "negative": (lambda: tci.Budget(uplink=-1), errors.UnitError, ["-1", "remedy"]),
    "empty budget": (lambda: tci.Budget(), errors.ArgumentError, ["latency", "remedy"]),
    "budget of another type": (lambda: call(budget={"latency": 1}), errors.ArgumentError, ["dict", "Budget"]),
    "unknown preset": (lambda: call(device="toaster"), errors.ArgumentError, ["toaster", "raspberry-pi-5"]),
    "a torch device": (lambda: call(device="cuda"), errors.ArgumentError, ["cuda", "DeviceProfile"]),
    "a torch.device": (lambda: call(server=torch.device("cpu")), errors.ArgumentError, ["cpu", "profile"]),
    "unknown link": (lambda: call(link="pigeon"), errors.ArgumentError, ["pigeon", "wifi-5ghz"]),
    "no module": (lambda: call(model="resnet"), errors.ArgumentError, ["str", "nn.Module"]),
    "bits out of range": (lambda: tci.Search(bits=(7,)), errors.ArgumentError, ["7", "bits"]),
    "group size": (lambda: tci.Search(group_sizes=(48,)), errors.ArgumentError, ["48", "32"]),
    "unknown cut": (lambda: call(search=tci.Search(cut="middle")), errors.ArgumentError, ["middle"]),
    "fine-tuning": (lambda: tci.Search(finetune_steps=10), errors.ArgumentError, ["finetune_steps=10"]),
    "a sparsity without format": (
        lambda: tci.Search(sparsities=0.7, formats="int"), errors.ArgumentError, ["0.7", "bitmap"],
    ),
    "2:4 without its sparsity": (
        lambda: tci.Search(sparsities=0.0, formats="2:4"), errors.ArgumentError, ["2:4", "sparsities"],
    ),
    "huge seed": (lambda: tci.Search(seed=2**63), errors.ArgumentError, ["2**63"]),
    "presets measured": (
        lambda: call(search=tci.Search(costs="measured")), errors.ArgumentError, ["raspberry-pi-4", "local"],
    ),
    "a prompt without length": (
        lambda: call(workload=tci.Workload(prompt=7)), errors.ArgumentError, ["prompt=7", "dynamic_shapes"],
    ),
    "a search for a plan of another type": (
        lambda: tci.apply_plan(
            net(), call(budget=tci.Budget(device_memory="2 KiB")).plan, example_inputs=(GOOD,), search={}
        ),
        errors.ArgumentError, ["dict", "Search"],
    ),
    "one bare layer": (lambda: call(nn.Linear(8, 4)), errors.ArgumentError, ["Linear", "nn.Sequential"]),
    "dynamic shapes of another type": (
        lambda: call(dynamic_shapes="batch"), errors.ArgumentError, ["batch", "torch.export"],
    ),
    "too many dynamic shapes": (
        lambda: call(dynamic_shapes=({0: 2}, {0: 2})), errors.ArgumentError, ["1 inputs", "by name"],
    ),
    "no computation": (lambda: call(nn.Identity()), errors.ArgumentError, ["Identity", "nothing"]),
    "monitored budget of another type": (
        lambda: tci.ResourceMonitor(net(), "80 ms"), errors.ArgumentError, ["80 ms", "latency"],
    ),
    "monitored budget without a row": (
        lambda: tci.ResourceMonitor(net(), tci.Budget(energy=1)), errors.ArgumentError, ["energy", "latency"],
    ),
    "no path": (lambda: tci.load(None), errors.ArgumentError, ["None", "path"]),
    "generation": (lambda: tci.Workload(new_tokens=5), errors.ArgumentError, ["new_tokens=5", "remedy"]),
    "weights with NaN": (lambda: call(broken_weights()), errors.TorchCoinferError, ["NaN"]),
    "example of another form": (lambda: call(examples="text"), errors.ArgumentError, ["str", "tuple"]),
    "no example known": (lambda: call(examples=None), errors.ArgumentError, ["example_inputs"]),
    "plan is no plan": (
        lambda: tci.apply_plan(net(), "plan.json"), errors.ArgumentError, ["str", "Plan.from_json"],
    ),
    "truncated plan": (lambda: tci.Plan.from_json('{"version": 1, "lay'), errors.PlanError, ["JSON"]),
    "too few samples": (
        lambda: call(budget=tci.Budget(certified_distortion=0.1), validation=[GOOD]),
        errors.CalibrationError, ["4 samples", "29"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_input_is_named(case):
    action, kind, words = CASES[case]
    with pytest.raises(kind) as caught:
        action()
    assert isinstance(caught.value, tci.TorchCoinferError)
    text = str(caught.value)
    assert all(word in text for word in words), text


def test_float64_stays_as_it_is_and_says_so():
    wide, data = net().double(), [GOOD.double()] * 3
    result = call(wide, tci.Budget(device_memory="8 KiB"), (data[0],), calibration=data)
    assert all(row.format == "float" for row in result.plan.layers.values())
    with pytest.raises(tci.InfeasibleBudget):
        call(wide, tci.Budget(device_bits_per_weight=8.0), (data[0],), calibration=data,
             search=tci.Search(cut="device"))  # fmt: skip


def test_a_workload_beyond_memory_is_refused():
    with pytest.raises(errors.ArgumentError, match="too large"):
        call(workload=tci.Workload(batch=10**9))


def test_frozen_and_training_models_work():
    model = net().train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    result = call(model, budget=tci.Budget(device_memory="2 KiB"))
    assert result(GOOD).shape == (4, 4) and model.training


def test_odd_strides_and_sizes_work():
    model = nn.Sequential(nn.Linear(7, 13), nn.ReLU(), nn.Linear(13, 3))
    data = torch.randn(7, 10).t()
    result = call(
        model, budget=tci.Budget(device_bits_per_weight=20.0), examples=(data,), calibration=[data] * 3,
        search=tci.Search(cut="device"),
    )  # fmt: skip
    strided = torch.randn(10, 14)[:, ::2]
    assert torch.equal(result(strided), result(strided.contiguous()))


def test_a_changed_plan_file_is_refused(tmp_path):
    result = call(budget=tci.Budget(device_memory="2 KiB"))
    layers = dict(result.plan.layers)
    name = next(iter(layers))
    layers[name] = dataclasses.replace(layers[name], format="int", bits=4, group_size=64, packed_bytes=1,
                                       algorithm="nearest")  # fmt: skip
    changed = dataclasses.replace(result.plan, layers=layers)
    with pytest.raises(errors.PlanError, match="packed"):
        tci.apply_plan(net(), changed, calibration=[GOOD] * 3, example_inputs=(GOOD,), progress=False)


class Aliased(nn.Module):
    """One layer under two names, called under both, another between: no unit may hold both calls."""

    def __init__(self):
        super().__init__()
        self.first, self.between = nn.Linear(8, 8), nn.Linear(8, 8)
        self.blocks = nn.ModuleList([self.first, self.between, self.first])

    def forward(self, x):
        for block in self.blocks:
            x = torch.relu(block(x))
        return self.first(x)


@pytest.mark.parametrize("cut", ["device", "between#0"])
def test_a_layer_shared_under_two_names_works(cut):
    search = tci.Search(cut=cut, cut_bits=None)
    result = call(Aliased(), tci.Budget(device_bits_per_weight=20.0), search=search)
    assert set(result.plan.layers) == {"first", "between"} and result.plan.layers["first"].bits < 32
    assert torch.equal(result(GOOD), result.compressed(GOOD))


def test_inference_mode_changes_no_plan():
    search = tci.Search(cut="device", bits=(2, 4), algorithms="nearest")
    budget, model, data = tci.Budget(device_bits_per_weight=16.0), net(), [GOOD, GOOD + 0.5, GOOD * 2]
    outside = call(model, budget, search=search, calibration=data)
    with torch.inference_mode():
        inside = call(model, budget, search=search, calibration=[batch.clone() for batch in data])
        with pytest.raises(errors.ArgumentError, match="inference_mode"):
            call(net())
    assert inside.plan == outside.plan


def test_what_an_uncertifiable_budget_says_to_be_attainable_is():
    torch.manual_seed(1)
    data = {"validation": [torch.randn(20, 8) for _ in range(3)], "search": tci.Search(cut="server")}
    with pytest.raises(errors.InfeasibleBudget) as caught:
        call(budget=tci.Budget(certified_distortion=1e-12, device_memory="400 B"), **data)
    assert call(budget=caught.value.attainable, **data).plan.bounds["output"]["certified"]["value"] > 0


def test_places_that_cannot_be_written_are_named(tmp_path):
    result = call(budget=tci.Budget(device_memory="2 KiB"))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(errors.FormatError, match="cannot be saved"):
        result.save(tmp_path / "file" / "inside")
    with pytest.raises(errors.ExportError, match="cannot be made"):
        result.export(tmp_path / "file")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    result.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and torch.equal(tci.load(tmp_path / "folder")(GOOD), result(GOOD))
    (tmp_path / "folder" / "manifest.json").write_text('{"version": 1, "files": [1]}')
    with pytest.raises(errors.FormatError, match="not the one that was saved"):
        tci.load(tmp_path / "link")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder", "link"]

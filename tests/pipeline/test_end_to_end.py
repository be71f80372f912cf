"""From a model and a budget to two halves: budgets on real bytes, determinism, apply, save and load."""

import copy
import warnings

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel
from zoo import TwoBranches

import torchcoinfer as tci
from torchcoinfer.theory.costs import LinkProfile

LINK = LinkProfile("test", 1e5, 1e5, 1e-3, (0.5, 1.0), 0.3, "made for tests")
PRESETS = {"device": "raspberry-pi-4", "server": "xeon-16core", "link": LINK, "progress": False}
BITS = {"bits": (3, 4, 8), "group_sizes": (32,)}


def batches(count, seed, shape=(4, 6, 8)):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for _ in range(count)]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return TwoBranches()


def compress(model, budget, **changes):
    options = {**PRESETS, "calibration": batches(9, 1), "search": tci.Search(**BITS), **changes}
    return tci.compress_and_split(model, budget, (batches(1, 2)[0],), **options)


def test_the_model_is_not_changed(model):
    model.train()
    before = copy.deepcopy(model.state_dict())
    frozen = [p.requires_grad for p in model.parameters()]
    compress(model, tci.Budget(device_memory="12 KiB"), search=tci.Search(cut="device", **BITS))
    assert model.training and [p.requires_grad for p in model.parameters()] == frozen
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and not model._forward_hooks
    model.eval()


def real_row(result, name):
    """A budget row recomputed from what was really packed, moved and sent."""
    plan = result.plan
    if name == "uplink":
        transfer = result.session.run(batches(1, 2)[0])
        return transfer.uplink_bytes
    packed = sum(b.numel() * b.element_size() for b in result.device.state_dict().values())
    if name == "device_bits_per_weight":
        return plan.predicted["device_bits_per_weight"]
    return packed  # a lower bound of device memory: activations come on top


BUDGETS = [
    {"device_memory": 12000.0, "cut": "device"},
    {"device_bits_per_weight": 9.0, "cut": "device"},
    {"latency": 0.01},
    {"uplink": 900.0, "latency": 0.05},
    {"energy": 0.004},
    {"server_memory": 0.0},
    {"distortion": 0.02, "minimize": "device_memory", "cut": "device"},
]


@pytest.mark.parametrize("case", BUDGETS, ids=str)
def test_no_row_is_exceeded(model, case):
    case = dict(case)
    search = tci.Search(cut=case.pop("cut", None), minimize=case.pop("minimize", "distortion"), **BITS)
    result = compress(model, tci.Budget(**case), search=search)
    names = {"latency": "latency_s", "energy": "energy_j", "device_memory": "device_bytes",
             "server_memory": "server_bytes", "uplink": "uplink_bytes"}  # fmt: skip
    for row, limit in case.items():
        assert result.plan.predicted[names.get(row, row)] <= limit
        if row in ("device_memory", "uplink", "device_bits_per_weight"):
            assert real_row(result, row) <= limit
    x = batches(1, 5, (5, 6, 8))[0]
    device, server = result
    coded = any(bits for _, bits in result.plan.cut.tensors)
    assert torch.equal(server(*device(x)), result(x))
    if not coded:
        assert torch.equal(server(*device(x)), result.compressed(x))
    error = (result(x) - model(x)).square().sum() / model(x).square().sum()
    assert error < 0.2


def test_an_impossible_budget_says_what_would_do(model):
    with pytest.raises(tci.InfeasibleBudget) as caught:
        compress(model, tci.Budget(device_memory=100.0, latency=1e-6))
    error = caught.value
    assert isinstance(error, ValueError) and set(error.least) == {"device_memory", "latency"}
    result = compress(model, error.attainable)
    assert result.plan.predicted["latency_s"] <= error.attainable.latency
    assert result.plan.predicted["device_bytes"] <= error.attainable.device_memory


def test_same_input_same_bytes(model):
    budget = tci.Budget(device_memory="12 KiB")
    search = tci.Search(cut="device", **BITS)
    first, second = (compress(model, budget, search=search) for _ in range(2))
    assert first.plan.to_json() == second.plan.to_json()
    assert tci.Plan.from_json(first.plan.to_json()) == first.plan
    x = batches(1, 3)[0]
    assert torch.equal(first(x), second(x))


def test_a_plan_is_applied_without_a_search(model):
    budget = tci.Budget(device_memory="12 KiB")
    made = compress(model, budget, search=tci.Search(cut="device", **BITS))
    again = tci.apply_plan(
        model, made.plan, calibration=batches(9, 1), example_inputs=(batches(1, 2)[0],), progress=False
    )
    x = batches(1, 3)[0]
    assert torch.equal(made(x), again(x)) and again.plan.layers == made.plan.layers
    with pytest.raises(tci.TorchCoinferError, match="another model"):
        other = TwoBranches()
        tci.apply_plan(other, made.plan, calibration=batches(3, 1), example_inputs=(x,), progress=False)


def test_saved_and_loaded_halves_answer_alike(model, tmp_path):
    made = compress(model, tci.Budget(latency=0.02, uplink=2000.0))
    made.save(tmp_path / "saved")
    loaded = tci.load(tmp_path / "saved")
    x = batches(1, 3, (5, 6, 8))[0]
    assert torch.equal(loaded(x), made(x)) and loaded.plan == made.plan
    assert "BUDGET" in str(loaded.report())


def test_without_calibration_there_is_a_warning_and_no_certificate(model):
    with pytest.warns(UserWarning, match="no calibration data"):
        result = compress(model, tci.Budget(device_memory="12 KiB"), calibration=None)
    assert "value" not in result.plan.bounds["output"]["certified"]


def test_a_certified_ceiling_holds_or_is_refused(model):
    enough = {"validation": batches(12, 7), "search": tci.Search(cut="device", **BITS)}
    result = compress(model, tci.Budget(device_memory="16 KiB", certified_distortion=0.05), **enough)
    certified = result.plan.bounds["output"]["certified"]
    assert certified["value"] <= 0.05 and certified["alpha"] == pytest.approx(0.1 / 3)
    with pytest.raises(tci.InfeasibleBudget) as caught:
        compress(model, tci.Budget(device_bits_per_weight=12.0, certified_distortion=1e-9), **enough)
    assert caught.value.least
    with pytest.raises(tci.TorchCoinferError, match="too few validation samples"):
        compress(
            model, tci.Budget(device_memory="16 KiB", certified_distortion=0.05), validation=batches(2, 7)
        )


def test_a_generous_budget_leaves_the_model_as_it_is(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = compress(model, tci.Budget(latency=10.0))
    assert all(row.format == "float" for row in result.plan.layers.values())
    x = batches(1, 3)[0]
    assert torch.equal(result(x), model(x))


def test_convolutions_and_embeddings_are_compressed_too():
    torch.manual_seed(1)
    convolutions = nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=4)
    net = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(16 * 36, 5))
    data = batches(6, 1, (2, 3, 8, 8))
    result = tci.compress_and_split(
        net, tci.Budget(device_bits_per_weight=8.0), (data[0],), calibration=data,
        search=tci.Search(cut="device", **BITS), **PRESETS,
    )  # fmt: skip
    assert {row.bits for row in result.plan.layers.values()} <= {3, 4, 8}
    assert result.plan.predicted["device_bits_per_weight"] <= 8.0


def test_a_hugging_face_model_gives_its_own_output_structure():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    bert = BertModel(config).eval()
    generator = torch.Generator().manual_seed(1)
    data = [
        {
            "input_ids": torch.randint(0, 50, (4, length), generator=generator),
            "attention_mask": (torch.arange(length) < torch.tensor([[length], [3], [length], [5]])).long(),
        }
        for length in (6, 9, 7, 12, 8, 10)
    ]
    result = tci.compress_and_split(
        bert, tci.Budget(device_bits_per_weight=14.0, uplink=4000.0), data[0], calibration=data,
        search=tci.Search(**BITS, cut="encoder.layer.0.output.LayerNorm#0"), **PRESETS,
    )  # fmt: skip
    output, wanted = result(**data[3]), bert(**data[3])
    assert type(output) is type(wanted) and list(output) == list(wanted)
    kept = data[3]["attention_mask"].bool()
    error = (output.last_hidden_state - wanted.last_hidden_state)[kept].square().sum()
    assert error < 0.1 * wanted.last_hidden_state[kept].square().sum()
    assert result.session.run(**data[0]).uplink_bytes <= 4000


def test_int8_activations_are_scored_and_applied(model):
    search = tci.Search(bits=(8,), group_sizes=(32,), formats=("int",), activation_bits=(8,), cut="device")
    result = compress(model, tci.Budget(device_bits_per_weight=20.0), search=search)
    coded = [row for row in result.plan.layers.values() if row.activation_bits == 8]
    assert coded and all(row.predicted > 0 for row in coded)
    x = batches(1, 3)[0]
    error = (result(x) - model(x)).square().sum() / model(x).square().sum()
    assert 0 < error < 0.01


def test_a_front_is_plans_that_can_be_applied(model):
    arguments = {**PRESETS, "calibration": batches(9, 1), "search": tci.Search(cut="device", **BITS)}
    front = tci.pareto(
        model, tci.Budget(latency=1.0), "device_memory", (batches(1, 2)[0],), points=4, **arguments
    )
    assert [plan.predicted["device_bytes"] for plan in front] == sorted(
        plan.predicted["device_bytes"] for plan in front
    )
    assert len(front) > 1
    assert front[-1].predicted["distortion"] == 0.0
    result = tci.apply_plan(model, front[0], calibration=batches(9, 1), example_inputs=(batches(1, 2)[0],))
    assert result.plan.layers == front[0].layers
    assert any(layer.bits < 32 for layer in result.plan.layers.values())
    again = tci.pareto(
        model, tci.Budget(latency=1.0), "device_memory", (batches(1, 2)[0],), points=4, **arguments
    )
    assert [plan.to_json() for plan in again] == [plan.to_json() for plan in front]
    with pytest.raises(tci.errors.ArgumentError, match="no front along this row"):
        tci.pareto(model, tci.Budget(latency=1.0), "distortion", **arguments)


def test_a_result_tells_its_alternatives(model, tmp_path):
    result = compress(model, tci.Budget(device_memory="12 KiB", latency=0.05))
    told = result.plan.alternatives
    assert told["cuts"][0]["name"] == result.plan.cut.name
    assert told["bandwidth"]["least_bps"] <= told["bandwidth"]["uplink_bps"]
    text = str(result.report())
    assert "ALTERNATIVES" in text and "BANDWIDTH" in text and "FRONT" in text
    assert tci.load(result.save(tmp_path / "saved")).plan == result.plan

"""Where the layers' errors do not add up, that is measured, and the plan is solved again."""

import pytest
import torch
from torch import nn

import torchcoinfer as tci
from torchcoinfer.theory.costs import LinkProfile

LINK = LinkProfile("test", 1e6, 1e6, 1e-3, (0.5, 1.0), 0.3, "made for tests")
PRUNED = {"bits": (3, 4, 8), "formats": ("bitmap",), "sparsities": (0.25, 0.5, 0.75), "group_sizes": (32,)}
DENSE = {"bits": (8,), "formats": ("int",), "group_sizes": (32,)}


def deep(width=64, layers=8):
    torch.manual_seed(3)
    stack = [m for _ in range(layers) for m in (nn.Linear(width, width, bias=False), nn.ReLU())]
    model = nn.Sequential(*stack, nn.Linear(width, 16)).eval()
    for module in model[:-1:2]:
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model


def planned(search, bits, layers=8, **changes):
    generator = torch.Generator().manual_seed(1)
    data = [torch.randn(16, 64, generator=generator) for _ in range(9)]
    return tci.compress_and_split(
        deep(layers=layers), tci.Budget(device_bits_per_weight=bits, **changes), (data[0],), calibration=data,
        device="raspberry-pi-4", server="xeon-16core", link=LINK, progress=False,
        search=tci.Search(cut="device", **search),
    )  # fmt: skip


def test_errors_that_add_up_are_left_alone():
    result = planned(DENSE, 12.0, layers=1)
    found = result.details["additivity"]
    assert found["before"]["holds"] and found["rounds"] == 0 and "after" not in found
    assert "table" not in result.plan.optimality


@pytest.mark.parametrize("algorithms, bits", [(("nearest",), 3.5), (("nearest", "obs"), 4.5)])
def test_errors_that_pull_one_way_are_solved_again(algorithms, bits):
    search = {**PRUNED, "algorithms": algorithms}
    result = planned(search, bits)
    found, plan = result.details["additivity"], result.plan
    before, after = found["before"], found["after"]
    assert not before["holds"] and found["rounds"] >= 1
    assert abs(after["ratio"] - 1.0) < abs(before["ratio"] - 1.0)
    assert after["measured"] <= before["measured"]
    # nothing is coded at this cut: the plan's prediction is the quadratic one, layer by layer
    assert plan.predicted["distortion"] == pytest.approx(after["predicted"], rel=1e-6)
    assert sum(row.predicted for row in plan.layers.values()) == pytest.approx(after["predicted"], rel=1e-3)
    assert plan.predicted["device_bits_per_weight"] <= bits
    assert plan.optimality["table"] == "interactions around the plan"
    assert plan.optimality["dual_bound"] <= plan.optimality["value"] * (1 + 1e-9)
    assert "interactions" in str(result.report())
    assert planned(search, bits).plan.to_json() == plan.to_json()


def test_a_ceiling_on_distortion_is_one_on_the_additive_table():
    result = planned({**PRUNED, "algorithms": ("nearest",)}, 6.0, distortion=5.0)
    assert result.details["additivity"]["rounds"] == 0
    assert result.plan.predicted["distortion"] <= 5.0


def test_kappa_is_measured_on_request():
    assert "kappa" not in planned(DENSE, 12.0, layers=1).plan.bounds["output"]
    search = {"bits": (3, 4, 8), "formats": ("int",), "group_sizes": (32,), "trials": 12}
    result = planned(search, 7.0, layers=2)
    output = result.plan.bounds["output"]
    factor = output["kappa"]["value"]
    assert 0.5 < factor < 2.0 and (output["kappa"]["n"], output["kappa"]["alpha"]) == (12, 0.1)
    assert output["scaled"]["value"] == pytest.approx(factor * result.plan.predicted["distortion"])
    assert "predicted x kappa" in str(result.report())
    few = planned({**search, "trials": 3}, 7.0, layers=2).plan.bounds["output"]
    assert few["kappa"] == few["scaled"] and few["kappa"]["needs"] == 9
    assert "random configurations" in few["kappa"]["unavailable"]


def test_kappa_of_another_table_scales_nothing():
    result = planned({**PRUNED, "algorithms": ("nearest",), "trials": 9}, 3.5)
    output = result.plan.bounds["output"]
    assert output["kappa"]["value"] > 0.0 and "interactions" in output["scaled"]["unavailable"]

"""Plans that contradict themselves, models with nothing to choose, and cuts by every name that they have."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import torchcoinfer as tci
from torchcoinfer.errors import ArgumentError, PlanError, UnitError
from torchcoinfer.pipeline.explore import study
from torchcoinfer.profile import link_profile
from torchcoinfer.theory.graph import all_frontiers
from torchcoinfer.theory.plan import Plan
from torchcoinfer.theory.solve_problem import FRONTIER_LIMIT

X = torch.linspace(-1, 1, 32 * 9).reshape(9, 32)
DATA = [X[3 * i : 3 * i + 3] for i in range(3)]


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.d = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x):
        return self.d(torch.relu(self.a(x)) + torch.tanh(self.b(x)) * torch.sigmoid(self.c(x)))


def made(model, budget, **search):
    return tci.compress_and_split(
        model.eval(), budget, (DATA[0],), calibration=DATA, progress=False, device="raspberry-pi-5",
        server="laptop-4core", link="wifi-5ghz", search=tci.Search(algorithms=("nearest",), **search),
    )  # fmt: skip


@pytest.fixture(scope="module")
def split():
    model = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 32)).eval()
    return model, made(
        model, tci.Budget(uplink=200, device_bits_per_weight=9), cut_bits=(4, 6), cut="0#0"
    ).plan


def edited(plan, *path_and_value):
    told = json.loads(plan.to_json())
    *path, last, value = path_and_value
    place = told
    for key in path:
        place = place[key]
    place[last] = value
    return Plan.from_json(json.dumps(told))


EDITS = {
    "no tensor crosses": ("another name than its tensors", ("cut", "tensors", [])),
    "another cut's name": ("another name than its tensors", ("cut", "name", "server")),
    "a tensor of nothing": ("does not divide", ("cut", "tensors", [["zz", 4]])),
    "the other side": ("another side", ("layers", "0", "side", "server")),
    "a width without kernel": ("bits that no kernel has", ("layers", "0", "bits", 7)),
    "channels pruned": ("not applied yet", ("layers", "0", "kept_rows", 0.5)),
}


@pytest.mark.parametrize(("words", "edit"), EDITS.values(), ids=EDITS.keys())
def test_a_plan_that_contradicts_itself_is_refused(split, words, edit):
    model, plan = split
    with pytest.raises(PlanError, match=words) as caught:
        tci.apply_plan(
            model, edited(plan, *edit), calibration=DATA, example_inputs=(DATA[0],), progress=False
        )
    assert "remedy:" in str(caught.value)


def test_a_plan_without_one_of_the_layers_is_refused(split):
    model, plan = split
    layers = {name: row for name, row in plan.layers.items() if name != "0"}
    with pytest.raises(PlanError, match="layers are not the model's"):
        tci.apply_plan(model, replace(plan, layers=layers), calibration=DATA, example_inputs=(DATA[0],))


def test_every_name_of_a_cut_plans_the_same():
    """Beyond prefixes, too: coding is scored at every cut that may be chosen."""
    model, budget = Branches().eval(), tci.Budget(uplink=1100)
    free = study(
        model, budget, (DATA[0],), calibration=DATA, progress=False, server="laptop-4core",
        search=tci.Search(algorithms=("nearest",)),
    ).scored()  # fmt: skip
    cuts = [c for c in all_frontiers(free.graph, FRONTIER_LIMIT) if "@" in c.name and len(c.tensors) == 3]
    for cut in cuts[:2]:
        plan = made(model, budget, cut=cut.name).plan
        assert plan.cut.name == cut.name and any(bits is not None for _, bits in plan.cut.tensors)
        assert plan.predicted["distortion"] == free.narrowed(cut.name).plan(budget).predicted["distortion"]
    assert len(cuts) >= 2
    with pytest.raises(ArgumentError, match="no cut of this name"):
        made(model, budget, cut="nowhere")


@pytest.mark.parametrize("search", [{}, {"cut": "device"}, {"mode": "analytic"}, {"trials": 2}], ids=str)
def test_a_model_without_layers_has_a_plan(search):
    model = nn.Sequential(nn.LayerNorm(32), nn.ReLU())
    result = made(model, tci.Budget(latency="1 s"), **search)
    assert not result.plan.layers and result.plan.predicted["distortion"] == 0.0
    device, server = result
    assert torch.equal(server(*device(X)), model(X))


def test_what_needs_a_compressed_model_is_refused_before_one_is_scored():
    budget = tci.Budget(device_memory="8 KiB", certified_distortion=0.1)
    with pytest.raises(ArgumentError, match="certified_distortion.*compress_and_split"):
        tci.pareto(Branches(), budget, "latency", (DATA[0],), calibration=DATA, progress=False)
    scored = study(
        Branches().eval(), budget, (DATA[0],), calibration=DATA, progress=False, server="laptop-4core"
    )
    with pytest.raises(ArgumentError, match="certified_distortion"):
        scored.plan(budget)


def test_a_power_of_nothing_sends_nothing():
    link = replace(link_profile("wifi-5ghz"), transmit_w=(0.0, 0.6))
    with pytest.raises(UnitError, match="transmit_w.*remedy"):
        tci.compress_and_split(
            Branches().eval(), tci.Budget(latency="1 s"), (DATA[0],), calibration=DATA, link=link
        )

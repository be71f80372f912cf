"""Prop. III.1 on traced models: true where it is claimed, a reason where it is not; and the telescope."""

import pytest
import torch
from torch import nn

import torchcoinfer as tci
from torchcoinfer.measure.feed_forward import NotFeedForward, chain_of, spectral_norm
from torchcoinfer.theory.bounds_network import worst_case
from torchcoinfer.trace import trace


def batches(count, seed, shape):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for _ in range(count)]


def compressed(model, shape, bits_per_weight=9.0, **search):
    options = {"bits": (4, 8), "group_sizes": (32,), "cut": "device", "cut_bits": (None,), **search}
    return tci.compress_and_split(
        model.eval(), tci.Budget(device_bits_per_weight=bits_per_weight), (batches(1, 0, shape)[0],),
        calibration=batches(6, 1, shape), validation=batches(4, 2, shape), device="raspberry-pi-4",
        server="xeon-16core", search=tci.Search(**options), progress=False,
    )  # fmt: skip


def mlp(bias=True, widths=(16, 32, 24, 8)):
    torch.manual_seed(0)
    layers = []
    for columns, rows in zip(widths, widths[1:]):
        layers += [nn.Linear(columns, rows, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@pytest.fixture(scope="module")
def result():
    return compressed(mlp(), (8, 16))


@pytest.mark.parametrize("case", ["biases", "no biases", "tokens", "tanh"])
def test_the_bound_is_above_every_sample(case, result):
    shape = (4, 5, 16) if case == "tokens" else (8, 16)
    if case != "biases":
        model = mlp(bias=case == "tokens")
        if case == "tanh":
            model = nn.Sequential(model[0], nn.Tanh(), model[2], nn.Dropout(), model[4])
        result = compressed(model, shape)
    told = result.plan.bounds["output"]["worst_case"]
    worst = float(result.telescope().actual.square().max())
    assert worst > 0
    assert told["value"] >= worst
    assert told["vacuous"] == (told["value"] >= 1.0)


def test_one_layer_on_its_worst_input_meets_the_bound():
    """||dW x|| <= ||dW|| ||x||, with equality for the first right singular vector."""
    change = torch.randn(6, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = torch.linalg.svd(change)[2][0]
    assert worst_case([3.0], [spectral_norm(change)], 1.0).bound == pytest.approx(float((change @ x).norm()))
    wide = torch.randn(30, 40, dtype=torch.float64)
    one, infinity = wide.abs().sum(dim=0).max(), wide.abs().sum(dim=1).max()
    assert spectral_norm(wide) <= float((one * infinity).sqrt())


def test_biases_carry_along():
    norms, deltas = [2.0, 0.5, 3.0], [0.1, 0.2, 0.05]
    bias, shift = [1.0, 0.0, 2.0], [0.3, 0.0, 0.1]
    error, height = 0.0, 1.5
    for w, d, b, s in zip(norms, deltas, bias, shift):
        error, height = (w + d) * error + d * height + s, w * height + b
    assert worst_case(norms, deltas, 1.5, bias_norms=bias, delta_bias_norms=shift).bound == pytest.approx(
        error
    )


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return x + torch.relu(self.linear(x))


CHAINS = {
    "residual": (Residual(), (3, 8), "does not read just the unit before it"),
    "gelu": (nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4)), (3, 8), "gelu"),
    "conv": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), (2, 3, 8, 8), "conv2d"),
    "norm": (nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)), (3, 8), "layer_norm"),
}


@pytest.mark.parametrize("name", CHAINS)
def test_what_is_no_chain_says_why(name):
    model, shape, words = CHAINS[name]
    with pytest.raises(NotFeedForward, match=words):
        chain_of(trace(model.eval(), (torch.randn(*shape),)))


def test_a_model_without_a_bound_reports_the_reason():
    told = compressed(CHAINS["gelu"][0], (6, 8), 30.0).plan.bounds["output"]["worst_case"]
    assert "holds for feed-forward nets only" in told["unavailable"]
    assert "gelu" in told["unavailable"]


def test_the_telescope_attributes_the_error(result, tmp_path):
    found = result.telescope()
    assert set(found.steps) == {name for name, row in result.plan.layers.items() if row.format != "float"}
    assert (found.actual <= found.bound * (1 + 1e-9)).all()
    measured = result.plan.bounds["output"]["measured"]["value"]
    assert float(found.actual.square().mean()) == pytest.approx(measured, rel=1e-3)
    text = str(result.report(telescope=True))
    assert "TELESCOPE" in text
    assert "telescope:" in text
    assert "TELESCOPE" not in str(result.report())
    with pytest.raises(tci.errors.PlanError, match="cannot attribute"):
        tci.load(result.save(tmp_path / "saved")).report(telescope=True)

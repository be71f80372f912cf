"""A compressed copy: right modules, the numbers of the codes, the input model untouched, ties kept."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from torchcoinfer.calibrate import calibrate, embedding_sensitivity
from torchcoinfer.compress import Quantized, apply_to_model, nearest, obs
from torchcoinfer.compress.pack import packed_module
from torchcoinfer.errors import CalibrationError, PlanError
from torchcoinfer.nn import QuantConv2d, QuantEmbedding, QuantLinear, SparseLinear, SparseQuantLinear
from torchcoinfer.theory.options import Option, packed_bytes
from torchcoinfer.theory.plan import LayerPlan
from torchcoinfer.trace import trace


class Tagger(nn.Module):
    """Embedding tied to the output layer, one layer called twice, one linear without bias."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 40, padding_idx=0)
        self.twice = nn.Linear(40, 40)
        self.plain = nn.Linear(40, 33, bias=False)
        self.back = nn.Linear(33, 40)
        self.out = nn.Linear(40, 50)
        self.out.weight = self.table.weight

    def forward(self, ids):
        h = torch.tanh(self.twice(torch.tanh(self.twice(self.table(ids)))))
        return self.out(h + self.back(torch.relu(self.plain(h))))


class Camera(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.grouped(torch.relu(self.first(x))))).mean((2, 3)))


@dataclass(frozen=True)
class Case:
    model: nn.Module
    batches: list


def case_of(kind: str) -> Case:
    torch.manual_seed(0)
    if kind == "tagger":
        model = Tagger()
        with torch.no_grad():
            model.table.weight.mul_(0.3)
        return Case(model.eval(), [(torch.randint(0, 50, (6, 9)),) for _ in range(12)])
    return Case(Camera().eval(), [(torch.randn(4, 3, 12, 12) + 0.5,) for _ in range(8)])


def row(option: Option, algorithm: str) -> LayerPlan:
    return LayerPlan(
        option.bits,
        option.sparsity,
        option.format,
        option.group_size,
        option.symmetric,
        option.activation_bits,
        algorithm,
        "device",
        0,
        0.0,
    )


def plan_for(traced, algorithm: str, option: Option) -> dict[str, LayerPlan]:
    dense = Option(option.bits if option.bits < 16 else 8, 0.0, "int", 32, option.symmetric)
    return {
        layer.name: row(option if layer.kind == "linear" and layer.name != "out" else dense, algorithm)
        for layer in traced.graph.layers
    }


OPTIONS = {
    "int4": (Option(4, 0.0, "int", 32), QuantLinear),
    "int8a8": (Option(8, 0.0, "int", 0, True, 8), QuantLinear),
    "2:4": (Option(16, 0.5, "2:4"), SparseLinear),
    "bitmap3": (Option(3, 0.5, "bitmap", 32), SparseQuantLinear),
}


@pytest.mark.parametrize("algorithm", ["nearest", "obs"])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("kind", ["tagger", "camera"])
def test_copy_is_compressed_and_the_model_is_not(kind, name, algorithm):
    case, (option, wanted) = case_of(kind), OPTIONS[name]
    before = copy.deepcopy(case.model.state_dict())
    traced = trace(case.model, case.batches[0])
    statistics = calibrate(traced, case.batches)
    compressed = apply_to_model(traced, plan_for(traced, algorithm, option), statistics)
    for key, value in case.model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not any(p.is_meta for p in [*compressed.parameters(), *compressed.buffers()])
    owned = {t.data_ptr() for t in [*compressed.parameters(), *compressed.buffers()]}
    assert not owned & {t.data_ptr() for t in [*case.model.parameters(), *case.model.buffers()]}
    if kind == "tagger":
        assert isinstance(compressed.table, QuantEmbedding) and isinstance(compressed.twice, wanted)
        assert compressed.table.packed is compressed.out.packed
        assert compressed.table.padding_idx == 0 and compressed.plain.bias is None
    else:
        assert isinstance(compressed.first, QuantConv2d) and isinstance(compressed.head, wanted)
    for layer in traced.graph.layers:
        module = compressed.get_submodule(layer.name)
        chosen = plan_for(traced, algorithm, option)[layer.name]
        as_option = Option(
            chosen.bits,
            chosen.sparsity,
            chosen.format,
            chosen.group_size,
            chosen.symmetric,
            chosen.activation_bits,
        )
        assert module.packed_bytes == packed_bytes(as_option, layer.rows, layer.columns)
    signal = error = 0.0
    with torch.no_grad():
        for batch in case.batches:
            y = case.model(*batch)
            signal, error = (
                signal + float(y.square().sum()),
                error + float((compressed(*batch) - y).square().sum()),
            )
    assert error < (0.02 if name.startswith("int") else 0.9) * signal


def test_compensation_and_its_bias_beat_rounding():
    case = case_of("tagger")
    traced = trace(case.model, case.batches[0])
    statistics = calibrate(traced, case.batches)
    fresh = torch.randint(0, 50, (64, 9))
    errors = {}
    with torch.no_grad():
        expected = case.model(fresh)
        for algorithm in ("nearest", "obs"):
            layers = plan_for(traced, algorithm, Option(3, 0.0, "int", 32))
            layers["table"] = row(Option(8, 0.0, "int", 32), "nearest")
            errors[algorithm] = float(
                (apply_to_model(traced, layers, statistics)(fresh) - expected).square().sum()
            )
    assert errors["obs"] < 0.8 * errors["nearest"]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("form", ["int", "2:4", "bitmap"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_module_computes_with_the_very_weights_that_were_chosen(bits, form, symmetric):
    torch.manual_seed(bits)
    linear = nn.Linear(70, 37)
    option = Option(bits, 0.0 if form == "int" else 0.5, form, 32, symmetric)
    x = torch.randn(200, 70) @ torch.randn(70, 70)
    for quantized in (nearest(linear.weight, option), obs(linear.weight, option, x.T @ x)):
        module = packed_module(linear, quantized)
        assert torch.equal(module.dequantize_weight(), quantized.dequantize())
        assert module.packed_bytes == packed_bytes(option, 37, 70)
        shifted = packed_module(linear, quantized, torch.ones(37))
        assert torch.equal(shifted.bias, linear.bias + 1)


def test_float_survivors_and_scales_outside_float16_reach_the_module_exactly():
    for scale, option in (
        (1.0, Option(32, 0.5, "bitmap")),
        (1.0, Option(16, 0.5, "2:4")),
        (1e20, Option(4, 0.0, "int", 32)),
    ):
        linear = nn.Linear(40, 20)
        with torch.no_grad():
            linear.weight.mul_(scale)
        quantized: Quantized = nearest(linear.weight, option)
        assert torch.equal(packed_module(linear, quantized).dequantize_weight(), quantized.dequantize())


def test_layers_left_out_or_float_stay_as_they_are():
    case = case_of("camera")
    traced = trace(case.model, case.batches[0])
    layers = {"head": row(Option(), "none"), "first": row(Option(4, 0.0, "int", 32), "nearest")}
    compressed = apply_to_model(traced, layers, None)
    assert type(compressed.head) is nn.Linear and type(compressed.grouped) is nn.Conv2d
    assert torch.equal(compressed.head.weight, case.model.head.weight)
    assert compressed.head.weight is not case.model.head.weight


def test_result_does_not_depend_on_chance():
    case = case_of("tagger")
    traced = trace(case.model, case.batches[0])
    statistics = calibrate(traced, case.batches)
    layers = plan_for(traced, "obs", Option(3, 0.0, "int", 32))
    first, second = (apply_to_model(traced, layers, statistics).state_dict() for _ in range(2))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


BAD = {
    "unknown layer": ({"nope": row(Option(4, 0.0, "int", 32), "nearest")}, PlanError, "nope"),
    "unknown algorithm": ({"head": row(Option(4, 0.0, "int", 32), "magic")}, PlanError, "magic"),
    "no data": ({"head": row(Option(4, 0.0, "int", 32), "obs")}, CalibrationError, "calibration"),
    "sparse convolution": ({"first": row(Option(4, 0.5, "2:4", 32), "nearest")}, PlanError, "Conv2d"),
    "float survivors with int8 inputs": (
        {"head": row(Option(16, 0.5, "2:4", 0, False, 8), "nearest")},
        PlanError,
        "activation_bits",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_plan_is_named(name):
    layers, error, text = BAD[name]
    case = case_of("camera")
    traced = trace(case.model, case.batches[0])
    with pytest.raises(error) as caught:
        apply_to_model(traced, layers, None)
    assert text in str(caught.value)


def test_embedding_rows_are_compensated_by_what_the_output_minds():
    """The output reads 6 of 40 directions of a row: compensated rows are exact where it counts."""
    torch.manual_seed(2)

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(60, 40)
            self.read = nn.Linear(40, 6)

        def forward(self, ids):
            return self.read(self.table(ids))

    model, batches = Reader().eval(), [(torch.randint(0, 60, (8, 7)),) for _ in range(8)]
    traced = trace(model, batches[0])
    statistics = calibrate(traced, batches)
    sensitivity = embedding_sensitivity(traced, statistics.judge, batches, ["table"])["table"].double()
    assert torch.linalg.matrix_rank(sensitivity, rtol=1e-4) == 6
    basis = torch.linalg.qr(model.read.weight.double().T).Q
    assert torch.allclose(
        basis @ (basis.T @ sensitivity), sensitivity, atol=1e-5 * float(sensitivity.abs().max())
    )
    errors = {}
    for algorithm in ("nearest", "obs"):
        layers = {"table": row(Option(3, 0.0, "int", 32), algorithm)}
        table = apply_to_model(traced, layers, statistics).table
        lost = table.dequantize_weight() - model.table.weight.detach()
        errors[algorithm] = float((lost @ model.read.weight.detach().T).square().sum())
    assert errors["obs"] < 0.3 * errors["nearest"]

"""Clip search, masks and error compensation against float64 and brute force on small weights."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchcoinfer.compress import Hessian, nearest, obs
from torchcoinfer.compress.hessian import DAMPING
from torchcoinfer.compress.prune import choose_mask
from torchcoinfer.errors import ArgumentError, CalibrationError
from torchcoinfer.theory.options import Option, kept_per_block

DENSE = [
    Option(bits, 0.0, "int", group_size, symmetric)
    for bits, group_size, symmetric in itertools.product((2, 3, 4, 5, 6, 8), (0, 32), (False, True))
]
SPARSE = [
    Option(16, 0.5, "2:4"),
    Option(4, 0.5, "2:4", 32),
    Option(4, 0.5, "2:4", 0),
    Option(16, 0.37, "bitmap"),
    Option(32, 0.5, "bitmap"),
    Option(3, 0.7, "bitmap", 32),
    Option(4, 0.25, "bitmap", 0, True),
]
SHAPES = [(1, 1), (3, 5), (17, 32), (33, 70), (20, 300)]


def name_of(option: Option) -> str:
    return f"{option.format}-b{option.bits}-g{option.group_size}-{'s' if option.symmetric else 'a'}"


def correlated_inputs(samples: int, columns: int, seed: int = 0) -> torch.Tensor:
    """[samples, columns] with a few strong common directions and unequal column powers."""
    generator = torch.Generator().manual_seed(seed)
    rank = max(1, columns // 4)
    mixing = torch.randn(rank, columns, generator=generator)
    x = torch.randn(samples, rank, generator=generator) @ mixing
    x += 0.3 * torch.randn(samples, columns, generator=generator)
    return x * torch.rand(columns, generator=generator).add(0.1)


def weight_of(rows: int, columns: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * torch.rand(rows, 1, generator=generator).add(0.2)


def output_error(weight, compressed, hessian) -> float:
    delta = (compressed.double() - weight.double()) @ torch.linalg.cholesky(
        hessian.double() + 1e-9 * hessian.double().diagonal().mean() * torch.eye(len(hessian))
    )
    return float(delta.square().sum())


def dense_by_hand(q) -> torch.Tensor:
    """scale * (code - zero), float64, the groups spelled out column by column."""
    group_of = [k // (q.option.group_size or q.codes.shape[1]) for k in range(q.codes.shape[1])]
    zeros = 2 ** (q.option.bits - 1) if q.zeros is None else q.zeros[:, group_of].double()
    dense = q.scales[:, group_of].double() * (q.codes.double() - zeros)
    return dense if q.mask is None else dense * q.mask


@pytest.mark.parametrize("algorithm", ["nearest", "obs"])
@pytest.mark.parametrize("option", DENSE + SPARSE, ids=name_of)
@pytest.mark.parametrize("rows,columns", SHAPES)
def test_what_every_algorithm_returns(rows, columns, option, algorithm):
    weight = weight_of(rows, columns)
    kept_as_is = weight.clone()
    x = correlated_inputs(64, columns)
    q = (
        nearest(weight, option, x.square().mean(0))
        if algorithm == "nearest"
        else obs(weight, option, x.T @ x)
    )
    assert torch.equal(weight, kept_as_is)
    groups = -(-columns // option.group_size) if option.group_size else 1
    assert q.codes.shape == (rows, columns)
    dense = q.dequantize()
    assert dense.dtype == torch.float32 and torch.isfinite(dense).all()
    if option.bits < 16:
        assert q.codes.dtype == torch.uint8 and int(q.codes.max()) < 2**option.bits
        assert q.scales.shape == (rows, groups) and q.scales.dtype == torch.float16
        assert (q.zeros is None) == option.symmetric
        if q.zeros is not None:
            assert q.zeros.shape == (rows, groups) and int(q.zeros.max()) < 2**option.bits
        assert torch.equal(dense.double(), dense_by_hand(q))
    else:
        assert q.codes.dtype == (torch.float16 if option.bits == 16 else torch.float32)
        assert torch.equal(dense, q.codes.float()) and q.scales is None
    if option.format == "int":
        assert q.mask is None
    elif option.format == "2:4":
        assert (torch.nn.functional.pad(q.mask, (0, -columns % 4)).view(rows, -1, 4).sum(2) <= 2).all()
        full = q.mask[:, : columns // 4 * 4]
        assert int(full.sum()) == full.numel() // 2
    else:
        for start in range(0, rows, 16):
            block = q.mask[start : start + 16]
            assert int(block.sum()) == kept_per_block(len(block), columns, option.sparsity)
    if q.mask is not None:
        assert not dense[~q.mask].any()


@pytest.mark.parametrize("option", DENSE + SPARSE, ids=name_of)
def test_error_compensation_beats_rounding_on_correlated_inputs(option):
    weight, x = weight_of(32, 96), correlated_inputs(400, 96)
    hessian = x.T @ x
    damped = hessian + DAMPING * hessian.diagonal().mean() * torch.eye(96)
    plain = output_error(weight, nearest(weight, option, hessian.diagonal()).dequantize(), damped)
    swept = [
        output_error(weight, obs(weight, option, hessian, sweeps=n).dequantize(), damped) for n in (0, 1, 3)
    ]
    assert swept[0] < 0.9 * plain
    assert swept[1] <= swept[0] and swept[2] <= 1.0001 * swept[1]


@pytest.mark.parametrize("option", DENSE, ids=name_of)
def test_without_correlation_there_is_nothing_to_compensate(option):
    weight, power = weight_of(20, 64), torch.rand(64).add(0.1)
    plain = nearest(weight, option, power)
    compensated = obs(weight, option, torch.diag(power))
    damped = torch.diag(power + DAMPING * power.mean())
    gap = output_error(weight, compensated.dequantize(), damped) / output_error(
        weight, plain.dequantize(), damped
    )
    assert 0.9 <= gap <= 1.001


def test_clip_search_is_near_the_best_of_all_grids():
    """Brute force over 4,000 scales and all zero points, 2-3 bits, weighted."""
    generator = torch.Generator().manual_seed(3)
    weight, importance = torch.randn(12, 32, generator=generator), torch.rand(32, generator=generator)
    for bits, symmetric in itertools.product((2, 3), (False, True)):
        option = Option(bits, 0.0, "int", 32, symmetric)
        found = (
            nearest(weight, option, importance).dequantize() - weight
        ).double().square() @ importance.double()
        top, best = 2**bits - 1, torch.full((12,), torch.inf, dtype=torch.float64)
        spread = (weight.amax(1) - weight.amin(1)).double()
        zeros = [2 ** (bits - 1)] if symmetric else range(top + 1)
        signs = (-1.0, 1.0) if symmetric else (1.0,)
        for zero, share, sign in itertools.product(zeros, torch.linspace(0.02, 1.2, 400).tolist(), signs):
            scale = sign * share * spread[:, None] / top
            steps = (weight / scale).round().clamp(-zero, top - zero)
            best = torch.minimum(best, (steps * scale - weight).square() @ importance.double())
        assert float(found.sum()) <= 1.06 * float(best.sum())
        assert (found <= 1.35 * best).all()


@pytest.mark.parametrize("magnitude", [1e-36, 1e-30, 1e-8, 1e-4, 1.0, 1e4, 1e8, 1e30])
@pytest.mark.parametrize("algorithm", ["nearest", "obs"])
def test_weights_of_any_magnitude(magnitude, algorithm):
    weight = weight_of(8, 64) * magnitude
    for option in (Option(4, 0.0, "int", 32), Option(8, 0.0, "int", 0, True), Option(4, 0.5, "bitmap", 32)):
        q = nearest(weight, option) if algorithm == "nearest" else obs(weight, option, torch.eye(64))
        relative = float((q.dequantize().double() - weight.double()).norm() / weight.double().norm())
        assert relative < (0.4 if option.sparsity else 0.15 if option.bits == 4 else 0.02)


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(5, 40),
        torch.full((5, 40), 0.7),
        torch.full((5, 40), -3.0),
        torch.cat([torch.zeros(5, 32), torch.ones(5, 8)], 1),
        torch.eye(5, 40) * 100 + 1e-7,
    ],
    ids=["zero", "constant", "negative", "zero-group", "spikes"],
)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_degenerate_rows_are_met_exactly_or_nearly(weight, bits, symmetric):
    for q in (
        nearest(weight, Option(bits, 0.0, "int", 32, symmetric)),
        obs(weight, Option(bits, 0.0, "int", 32, symmetric), torch.eye(40)),
    ):
        assert torch.allclose(q.dequantize(), weight, rtol=2e-3, atol=1e-6)


HESSIANS = {
    "zero": torch.zeros(24, 24),
    "rank one": torch.ones(24, 24),
    "dead columns": torch.diag(torch.cat([torch.zeros(12), torch.ones(12)])),
    "indefinite": torch.ones(24, 24) - 0.6 * torch.eye(24),
    "tiny": torch.eye(24) * 1e-35,
    "huge": torch.eye(24) * 1e35,
}


@pytest.mark.parametrize("kind", HESSIANS)
def test_hessians_that_are_hard_to_factorize(kind):
    weight = weight_of(6, 24)
    for option in (Option(4, 0.0, "int", 0), Option(4, 0.5, "2:4", 32), Option(16, 0.5, "bitmap")):
        first, second = (obs(weight, option, HESSIANS[kind]) for _ in range(2))
        assert torch.isfinite(first.dequantize()).all()
        assert torch.equal(first.codes, second.codes)


def test_dead_columns_are_rounded_not_erased():
    hessian = torch.diag(torch.cat([torch.zeros(32), torch.ones(32)]))
    weight = weight_of(6, 64)
    q = obs(weight, Option(8, 0.0, "int", 32), hessian)
    assert torch.allclose(q.dequantize(), weight, atol=0.02)


def test_one_factor_serves_all_options_of_a_group_size():
    weight, x = weight_of(16, 64), correlated_inputs(200, 64)
    shared = Hessian(x.T @ x)
    for option in (DENSE + SPARSE)[::3]:
        assert torch.equal(
            obs(weight, option, shared).dequantize(), obs(weight, option, x.T @ x).dequantize()
        )
    assert shared.factor(32) is shared.factor(32)


def test_factor_is_the_reversed_cholesky_factor_of_the_inverse():
    x = correlated_inputs(300, 40).double()
    factor = Hessian(x.T @ x).factor(32)
    inverse = torch.linalg.inv(factor.hessian.double())
    assert torch.allclose(factor.upper.double().T @ factor.upper.double(), inverse, rtol=1e-4, atol=1e-4)
    assert torch.equal(factor.upper, factor.upper.triu())
    assert sorted(factor.order.tolist()) == list(range(40))
    for unit in factor.units:
        columns = factor.order[unit.start : unit.stop]
        assert set((columns // 32).tolist()) == {unit.group}


def test_drifted_inputs_pull_the_weight_toward_the_old_outputs():
    """With weights nearly free of rounding error, W x₀ is met better on drifted inputs, at most as well as by
    least squares."""
    weight, plain = weight_of(8, 24), correlated_inputs(4000, 24).double()
    generator = torch.Generator().manual_seed(7)
    drifted = plain @ (torch.eye(24) + 0.1 * torch.randn(24, 24, generator=generator)).double()
    drifted += 0.1 * torch.randn(drifted.shape, generator=generator, dtype=torch.float64)
    wanted = plain @ weight.double().T
    option = Option(8, 0.0, "int", 32)
    errors = {}
    for name, hessian in {
        "kept": Hessian(drifted.T @ drifted),
        "pulled": Hessian(drifted.T @ drifted, plain.T @ drifted),
    }.items():
        compressed = obs(weight, option, hessian).dequantize().double()
        errors[name] = float((drifted @ compressed.T - wanted).square().sum())
    best = float(
        torch.linalg.lstsq(drifted, wanted).solution.T.sub(0).matmul(drifted.T).T.sub(wanted).square().sum()
    )
    assert best < errors["pulled"] < 0.5 * errors["kept"]


def test_grouped_layers_take_a_hessian_per_group():
    weight = weight_of(12, 18)
    inputs = [correlated_inputs(100, 18, seed) for seed in range(3)]
    option = Option(3, 0.0, "int", 32)
    whole = obs(weight, option, [Hessian(x.T @ x) for x in inputs]).dequantize()
    for i, x in enumerate(inputs):
        rows = slice(4 * i, 4 * i + 4)
        plain = nearest(weight, option, (x.T @ x).diagonal()).dequantize()
        assert output_error(weight[rows], whole[rows], x.T @ x) < output_error(
            weight[rows], plain[rows], x.T @ x
        )


def test_long_rows_and_tall_weights_are_worked_in_pieces_without_a_seam():
    generator = torch.Generator().manual_seed(5)
    tall = torch.randn(9000, 32, generator=generator)
    option = Option(3, 0.5, "bitmap", 32)
    assert torch.equal(nearest(tall, option).dequantize()[:16], nearest(tall[:16], option).dequantize())


def test_kept_weights_are_the_most_important_ones():
    weight = torch.tensor([[1.0, -2.0, 3.0, -4.0, 0.5, 0.4, 0.3, 0.2]])
    assert choose_mask(weight.abs(), Option(16, 0.5, "2:4")).tolist() == [[0, 0, 1, 1, 1, 1, 0, 0]]
    assert choose_mask(weight.abs(), Option(16, 0.5, "bitmap")).tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]]
    q = nearest(weight, Option(32, 0.5, "2:4"), torch.tensor([100.0, 100, 1, 1, 1, 1, 100, 100]))
    assert q.mask.tolist() == [[1, 1, 0, 0, 0, 0, 1, 1]]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 20),
    columns=st.integers(1, 140),
    bits=st.sampled_from((2, 3, 4, 5, 6, 8)),
    group_size=st.sampled_from((0, 32, 64, 128)),
    symmetric=st.booleans(),
    exponent=st.integers(-20, 20),
    seed=st.integers(0, 2**20),
)
def test_no_weight_is_further_from_its_grid_than_half_a_step(
    rows, columns, bits, group_size, symmetric, exponent, seed
):
    weight = weight_of(rows, columns, seed) * 2.0**exponent
    option = Option(bits, 0.0, "int", group_size, symmetric)
    q = nearest(weight, option)
    dense, size = q.dequantize(), group_size or columns
    scale = q.scales.float().abs()[:, torch.arange(columns) // size]
    inside = (q.codes > 0) & (q.codes < 2**bits - 1)
    assert ((dense - weight).abs()[inside] <= (0.5 + 1e-4) * scale[inside]).all()
    plain = weight.abs().amax()
    assert float((dense - weight).norm()) <= float(weight.norm()) * (1.0 if plain > 0 else 0.0) + 1e-30


BAD = [
    (lambda: nearest(torch.tensor([[1.0, torch.nan]]), Option(4, 0.0, "int", 32)), ArgumentError, "NaN"),
    (lambda: nearest(torch.full((2, 2), 3e38), Option(4, 0.0, "int", 32)), ArgumentError, "1e+36"),
    (
        lambda: nearest(torch.ones(2, 2), Option(4, 0.0, "int", 32), torch.ones(3)),
        ArgumentError,
        "importance",
    ),
    (
        lambda: nearest(torch.ones(2, 2), Option(4, 0.0, "int", 32), -torch.ones(2)),
        ArgumentError,
        "importance",
    ),
    (lambda: nearest(torch.ones(2, 0), Option(4, 0.0, "int", 32)), ArgumentError, "not empty"),
    (lambda: nearest(torch.full((2, 4), 1e6), Option(16, 0.5, "2:4")), ArgumentError, "65504"),
    (lambda: obs(torch.ones(2, 2), Option(4, 0.0, "int", 32), torch.eye(3)), ArgumentError, "K = 2"),
    (lambda: Hessian(torch.ones(2, 3)), ArgumentError, "square"),
    (lambda: Hessian(torch.full((2, 2), torch.inf)), CalibrationError, "overflow"),
]


@pytest.mark.parametrize("call,error,text", BAD, ids=range(len(BAD)))
def test_bad_input_is_named(call, error, text):
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value)

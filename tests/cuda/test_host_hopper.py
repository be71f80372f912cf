"""The products by wgmma on the host model, against float64: the weight is rounded to x's dtype."""

import pytest
import torch
from bounds import ROUNDED_WEIGHT, ROUNDING, SUMS, assert_near
from test_host_fast import BITS, HALVES, device_weight

ASK = "TORCHCOINFER_CUDA_HOPPER"
# N, K, group_size, symmetric, rows: whole quads and tiles; tiles after them; an odd K, one group; blocks that
# share tiles
CASES = (
    (256, 256, 128, False, 128),
    (37, 200, 32, False, 64),
    (300, 357, 0, True, 70),
    (16, 1100, 64, False, 65),
)
# every width with one dtype; the other runs with -m slow
KINDS = [
    pytest.param(bits, dtype, marks=[pytest.mark.slow] * (i % 2 != j), id=f"{bits}-{dtype}")
    for i, bits in enumerate(BITS)
    for j, dtype in enumerate(HALVES)
]


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    monkeypatch.setenv(ASK, "1")


def products(dtype: torch.dtype) -> float:
    """Error allowed of the sum of absolute products: float32 sums, a weight rounded by two operations."""
    return SUMS + 1.01 * ROUNDED_WEIGHT[dtype]


@pytest.mark.parametrize("bits, dtype", KINDS)
@pytest.mark.parametrize("N, K, group_size, symmetric, rows", CASES)
def test_linear_is_near_float64(model, N, K, group_size, symmetric, rows, bits, dtype):
    moved, (_, scales, zeros), exact = device_weight(model, N, K, bits, group_size, symmetric, torch.float32)
    bias, x = torch.randn(N), torch.randn(rows, K).to(dtype)
    y = model.ops.quant_linear(x, moved, scales, zeros, bias, bits, group_size, N, 0, 1)
    assert y.dtype == dtype
    assert_near(y, x.double(), exact, bias.double(), products(dtype))


# tiles of 64 rows and of 128; whole tiles, every tile in equal parts, blocks that begin in mid-tile
SLOW_WAYS = [pytest.param(*way, marks=pytest.mark.slow) for way in ((700, 900, 300), (1030, 160, 130))]
WAYS = [(300, 160, 130), (260, 700, 100), (20, 1300, 129), (530, 520, 64)]


@pytest.mark.parametrize("N, K, rows", WAYS + SLOW_WAYS)
def test_ways_to_share_the_work(model, N, K, rows):
    moved, (_, scales, zeros), exact = device_weight(model, N, K, 4, 64, False, torch.float16)
    x, bias = torch.randn(rows, K).to(torch.bfloat16), torch.randn(N)
    y = model.ops.quant_linear(x, moved, scales, zeros, bias, 4, 64, N, 0, 1)
    assert_near(y, x.double(), exact, bias.double(), products(torch.bfloat16))
    assert torch.equal(y, model.ops.quant_linear(x, moved, scales, zeros, bias, 4, 64, N, 0, 1))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("scale_dtype", ROUNDING, ids=str)
def test_weight_is_the_decoded_one(model, scale_dtype, dtype):
    """A scale of x's dtype gives the same bits, one of another dtype hardly ever a neighbor's."""
    K = 128
    moved, (_, scales, zeros), exact = device_weight(model, 40, K, 4, 32, False, scale_dtype)
    x = torch.eye(K).to(dtype)
    got = model.ops.quant_linear(x, moved, scales, zeros, None, 4, 32, 40, 0, 1).T
    decoded = exact.to(dtype)
    if scale_dtype == dtype:
        assert torch.equal(got, decoded)
    assert (got != decoded).double().mean() < 0.01
    assert ((got.double() - exact).abs() <= 1.01 * ROUNDED_WEIGHT[dtype] * exact.abs()).all()


def test_x_may_begin_anywhere_and_y_is_activated(model):
    moved, (_, scales, zeros), exact = device_weight(model, 33, 75, 5, 32, True, torch.float16)
    memory, bias = torch.randn(3 * 25 * 75 + 1).half(), torch.randn(33)
    x = memory[1:].view(3, 25, 75)
    rest = (moved, scales, None, bias, 5, 32, 33, 0, 1)
    y = model.ops.quant_linear(x, *rest)
    assert_near(y.flatten(0, 1), x.flatten(0, 1).double(), exact, bias.double(), products(torch.float16))
    assert torch.equal(model.ops.quant_linear(x, *rest, activation="relu"), y.relu())


def test_it_serves_from_64_rows_on_where_it_is_asked_for(model, monkeypatch):
    """Seen by its rounding: differences of two weights are off by what the weights are."""
    moved, (_, scales, zeros), exact = device_weight(model, 256, 32, 8, 32, False, torch.float32)
    x = torch.zeros(64, 32).half()
    x[:, 0], x[:, 1] = 1, -1

    def is_exact(rows: int) -> bool:
        y = model.ops.quant_linear(x[:rows], moved, scales, zeros, None, 8, 32, 256, 0, 1)
        expected = exact[:, 0] - exact[:, 1]
        return bool(((y.double() - expected).abs() <= 2.0**-11 * expected.abs()).all())

    assert not is_exact(64) and is_exact(63)
    monkeypatch.setenv(ASK, "0")
    assert is_exact(64)
    monkeypatch.setenv(ASK, "yes")
    with pytest.raises(RuntimeError, match=ASK):
        is_exact(64)

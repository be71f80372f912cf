"""Fast sparse CUDA kernels on the host model: against float64 and against the plain kernels beside them."""

import pytest
import torch
from bounds import ROUNDED_WEIGHT, SUMS, assert_near
from test_host_sparse import mask_of, values_of

from torchcoinfer import ops

BITS = (0, 2, 3, 4, 5, 6, 8)
DTYPES = (torch.float16, torch.bfloat16)
# N, K, group_size, symmetric, rows: tails of N, of a quad, of a tile, of 8 columns; no quad at all
CASES = (
    (16, 32, 32, False, 1),
    (37, 200, 0, True, 7),
    (50, 257, 128, False, 9),
    (130, 128, 64, True, 2),
    (16, 296, 32, True, 17),
    (33, 160, 64, False, 65),
)
# more rows, wider and longer matrices
WIDE_CASES = tuple(
    (N, K, group_size, symmetric, rows)
    for (N, K, group_size, symmetric), many in (
        ((272, 1056, 128, False), (1, 8, 16)),
        ((70, 1664, 64, True), (2, 33, 64)),
        ((48, 520, 32, False), (7, 130)),
    )
    for rows in many
)


def grid_of(bits: int, N: int, K: int, group_size: int, symmetric: bool, dtype: torch.dtype):
    """Scales, zero points, and both spread over [N, K]."""
    groups = 1 if group_size == 0 else -(-K // group_size)
    scales = torch.rand(-(-N // 16), groups, 16).to(dtype)
    zeros = None if symmetric else torch.randint(0, 2**bits, scales.shape, dtype=torch.uint8)
    of_columns = torch.arange(groups).repeat_interleave(group_size or K)[:K]

    def spread(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.double().transpose(1, 2).flatten(0, 1)[:N, of_columns]

    return scales, zeros, spread(scales), 2.0 ** (bits - 1) if symmetric else spread(zeros)


def check_24(model, bits, dtype, N, K, group_size, symmetric, rows):
    values, mask = values_of(bits, N, K, dtype), mask_of("2:4", N, K)
    index, packed = ops.sparse24_pack(values, mask, bits)
    values, mask = ops.sparse24_unpack(index, packed, bits, N, K)
    model.ops.reorder_(index, "index", 4, True)
    model.ops.reorder_(packed, "survivors", bits, True)
    scales, zeros, spread, point = (
        grid_of(bits, N, K, group_size, symmetric, torch.float16) if bits else (None,) * 4
    )
    weight = (spread * (values.double() - point) if bits else values.double()) * mask
    x, bias = torch.randn(rows, K).to(dtype), torch.randn(N)
    rest = (bits, group_size if bits else 0, N, 0, 1)
    y = model.ops.sparse24_linear(x, index, packed, scales, zeros, bias, *rest)
    assert y.dtype == dtype
    assert_near(y, x.double(), weight, bias.double(), ROUNDED_WEIGHT[dtype] if bits else SUMS)
    plain = model.ops.sparse24_linear(x.float(), index, packed, scales, zeros, bias, *rest)
    assert_near(plain, x.double(), weight, bias.double())


@pytest.mark.parametrize("N, K, group_size, symmetric, rows", CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", BITS)
def test_24_is_near_float64(model, bits, dtype, N, K, group_size, symmetric, rows):
    check_24(model, bits, dtype, N, K, group_size, symmetric, rows)


@pytest.mark.slow
@pytest.mark.parametrize("N, K, group_size, symmetric, rows", WIDE_CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", BITS)
def test_24_of_many_sizes_is_near_float64(model, bits, dtype, N, K, group_size, symmetric, rows):
    check_24(model, bits, dtype, N, K, group_size, symmetric, rows)

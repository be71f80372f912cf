"""Fast sparse CUDA kernels on the host model: against float64 and against the plain kernels beside them."""

import pytest
import torch
from bounds import ROUNDED_WEIGHT, SUMS, assert_near
from test_host_sparse import mask_of, values_of

from torchcoinfer import ops
from torchcoinfer.ops.quant_linear import quantize_rows

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


def check(model, form, bits, dtype, N, K, group_size, symmetric, rows, mask):
    """One product against float64, and the plain kernel's, which float32 takes, too."""
    values = values_of(bits, N, K, dtype)
    pack = ops.sparse24_pack if form == "2:4" else ops.bitmap_pack
    parts = pack(values, mask, bits)
    if form == "2:4":
        values, mask = ops.sparse24_unpack(*parts, bits, N, K)  # what fills up is stored too
        model.ops.reorder_(parts[0], "index", 4, True)
        model.ops.reorder_(parts[1], "survivors", bits, True)
    scales, zeros, weight = None, None, values.double() * mask
    if bits:
        scales, zeros, spread, point = grid_of(bits, N, K, group_size, symmetric, torch.float16)
        weight = spread * (values.double() - point) * mask
    x, bias = torch.randn(rows, K).to(dtype), torch.randn(N)
    linear = model.ops.sparse24_linear if form == "2:4" else model.ops.bitmap_linear
    rest = (bits, group_size if bits else 0, N, 0, int(form == "2:4"))
    y = linear(x, *parts, scales, zeros, bias, *rest)
    rounded = rows > 64 or (form == "2:4" and bits)  # torch rounds the bias of decoded products, too
    assert y.dtype == dtype
    assert_near(y, x.double(), weight, bias.double(), ROUNDED_WEIGHT[dtype] if rounded else SUMS)
    plain = linear(x.float(), *parts, scales, zeros, bias, *rest)
    assert_near(plain, x.double(), weight, bias.double())


@pytest.mark.parametrize("N, K, group_size, symmetric, rows", CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", BITS)
def test_24_is_near_float64(model, bits, dtype, N, K, group_size, symmetric, rows):
    check(model, "2:4", bits, dtype, N, K, group_size, symmetric, rows, mask_of("2:4", N, K))


@pytest.mark.slow
@pytest.mark.parametrize("N, K, group_size, symmetric, rows", WIDE_CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", BITS)
def test_24_of_many_sizes_is_near_float64(model, bits, dtype, N, K, group_size, symmetric, rows):
    check(model, "2:4", bits, dtype, N, K, group_size, symmetric, rows, mask_of("2:4", N, K))


@pytest.mark.parametrize("K, rows", [(2000, 33), (4100, 8)])
@pytest.mark.parametrize("bits", [0, 4])
def test_24_whose_thread_blocks_share_columns(model, bits, K, rows):
    # so long and narrow that K is split, on the three processors of the model
    check(model, "2:4", bits, torch.float16, 16, K, 64, False, rows, mask_of("2:4", 16, K))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", [0, 3])
def test_24_of_very_many_rows_is_decoded(model, bits, dtype):
    check(model, "2:4", bits, dtype, 20, 40, 32, False, 2050, mask_of("2:4", 20, 40))


INT8_CASES = (
    (16, 32, 32, False, 17),
    (37, 200, 0, True, 7),
    (50, 257, 128, False, 9),
    (33, 160, 64, False, 65),
)


@pytest.mark.parametrize("form, layout", [("2:4", 0), ("2:4", 1), ("bitmap", 0)])
@pytest.mark.parametrize("bits", BITS[1:])
def test_int8_codes_of_x_are_multiplied_exactly(model, bits, form, layout):
    """Against float64, and, where the codes are expanded, the bits that the dense kernel gives for them."""
    for i, (N, K, group_size, symmetric, rows) in enumerate(INT8_CASES):
        dtype = (*DTYPES, torch.float32)[i % 3]
        values, mask = values_of(bits, N, K, dtype), mask_of(form, N, K)
        parts = (ops.sparse24_pack if form == "2:4" else ops.bitmap_pack)(values, mask, bits)
        if form == "2:4":
            values, mask = ops.sparse24_unpack(*parts, bits, N, K)
        if layout:
            model.ops.reorder_(parts[0], "index", 4, True)
            model.ops.reorder_(parts[1], "survivors", bits, True)
        scales, zeros, spread, point = grid_of(bits, N, K, group_size, symmetric, torch.float16)
        x, bias = torch.randn(rows, K).to(dtype), torch.randn(N)
        x[-1, 0] = 200  # the other codes of this row are nearly all 0
        linear = model.ops.sparse24_linear if form == "2:4" else model.ops.bitmap_linear
        y = linear(x, *parts, scales, zeros, bias, bits, group_size, N, 8, layout)
        codes, steps = quantize_rows(x.float())
        assert y.dtype == dtype
        assert_near(
            y, codes.double() * steps.double(), spread * (values.double() - point) * mask, bias.double()
        )
        products_of_halves = dtype != torch.float32 and rows <= (16 if form == "2:4" else 64)
        if products_of_halves or (form == "2:4" and layout == 0 and rows <= 16):
            continue
        dense = torch.where(mask, values, point if symmetric else point.to(torch.uint8)).to(torch.uint8)
        packed = ops.pack_codes(dense, bits)
        model.ops.reorder_(packed, "codes", bits, True)
        assert torch.equal(
            y, model.ops.quant_linear(x, packed, scales, zeros, bias, bits, group_size, N, 8, 1)
        )


@pytest.mark.parametrize("form", ["2:4", "bitmap"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", [2, 8])
def test_int8_codes_of_few_rows_lose_nothing(model, bits, dtype, form):
    """Scales of 1: the result is the integer sum times the row's scale, rounded twice."""
    for N, K, rows in ((18, 4100, 5), (40, 200, 16)):  # the first is split along K
        values, mask = values_of(bits, N, K, dtype), mask_of(form, N, K)
        parts = (ops.sparse24_pack if form == "2:4" else ops.bitmap_pack)(values, mask, bits)
        if form == "2:4":
            values, mask = ops.sparse24_unpack(*parts, bits, N, K)
            model.ops.reorder_(parts[0], "index", 4, True)
            model.ops.reorder_(parts[1], "survivors", bits, True)
        groups = -(-K // 32)
        zeros = torch.randint(0, 256, (-(-N // 16), groups, 16), dtype=torch.uint8)
        point = zeros.transpose(1, 2).flatten(0, 1)[:N].repeat_interleave(32, 1)[:, :K].long()
        x = torch.randn(rows, K).to(dtype)
        linear = model.ops.sparse24_linear if form == "2:4" else model.ops.bitmap_linear
        y = linear(x, *parts, torch.ones(zeros.shape).half(), zeros, None, bits, 32, N, 8, int(form == "2:4"))
        codes, steps = quantize_rows(x.float())
        sums = codes.long() @ ((values.long() - point) * mask).T
        assert int(sums.abs().max()) < 2**24
        assert torch.equal(y, (sums.float() * steps).to(dtype))


@pytest.mark.parametrize("form", ["2:4", "bitmap"])
def test_int8_codes_of_nan_and_infinity_give_nan(model, form):
    for dtype in (*DTYPES, torch.float32):
        parts = (ops.sparse24_pack if form == "2:4" else ops.bitmap_pack)(
            values_of(4, 20, 40, dtype), mask_of(form, 20, 40), 4
        )
        x = torch.randn(3, 40).to(dtype)
        x[1, 7], x[2, 39] = float("nan"), float("inf")
        linear = model.ops.sparse24_linear if form == "2:4" else model.ops.bitmap_linear
        y = linear(x, *parts, torch.rand(2, 1, 16), None, None, 4, 0, 20, 8)
        assert y[0].isfinite().all() and y[1:].isnan().all()


def random_mask(N: int, K: int, density: float) -> torch.Tensor:
    """One row of the first block is empty, one full."""
    mask = torch.rand(N, K) < density
    mask[0], mask[-1] = density > 0.9, density > 0.1
    return mask


@pytest.mark.parametrize("N, K, group_size, symmetric, rows", CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", BITS)
def test_bitmap_is_near_float64(model, bits, dtype, N, K, group_size, symmetric, rows):
    check(model, "bitmap", bits, dtype, N, K, group_size, symmetric, rows, random_mask(N, K, 0.4))


@pytest.mark.parametrize("density", [0.0, 0.05, 0.8, 1.0])
@pytest.mark.parametrize("bits", [0, 4])
def test_bitmap_of_any_density_is_near_float64(model, bits, density):
    # the ring of survivors goes round, and a warp takes more than one stride of tiles
    for N, K, rows in ((40, 1100, 3), (16, 4404, 9)):
        check(model, "bitmap", bits, torch.float16, N, K, 64, False, rows, random_mask(N, K, density))


@pytest.mark.slow
@pytest.mark.parametrize("N, K, group_size, symmetric, rows", WIDE_CASES)
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("bits", BITS)
def test_bitmap_of_many_sizes_is_near_float64(model, bits, density, N, K, group_size, symmetric, rows):
    for dtype in DTYPES:
        check(model, "bitmap", bits, dtype, N, K, group_size, symmetric, rows, random_mask(N, K, density))

"""Sparse CUDA kernels on the host model, against the CPU kernels and float64."""

import pytest
import torch
from bounds import ROUNDED_WEIGHT, ROUNDING, SUMS, assert_near

from torchcoinfer import ops
from torchcoinfer.ops.quant_linear import quantize_rows
from torchcoinfer.ops.reorder import reorder_reference

BITS = (0, 2, 3, 4, 5, 6, 8)
SHAPES = ((16, 32), (37, 75), (1, 300), (50, 257))


def mask_of(form: str, N: int, K: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(N + K)
    if form == "2:4":
        order = torch.rand(N, -(-K // 4), 4, generator=generator).argsort(-1)
        kept = torch.randint(0, 3, (N, order.shape[1], 1), generator=generator)  # 0, 1 or 2 of four
        return (order < kept).flatten(1)[:, :K].contiguous()
    mask = torch.rand(N, K, generator=generator) < 0.4
    mask[: min(N, 16)] &= K > 100  # an n-block without survivors where K is small
    return mask


def values_of(bits: int, N: int, K: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(N, K).to(dtype) if bits == 0 else torch.randint(0, 2**bits, (N, K), dtype=torch.uint8)


def packed(form: str, bits: int, N: int, K: int, dtype: torch.dtype):
    """What the CPU op packs, and values and mask."""
    values, mask = values_of(bits, N, K, dtype), mask_of(form, N, K)
    pack = ops.sparse24_pack if form == "2:4" else ops.bitmap_pack
    return pack(values, mask, bits), values, mask


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("form", ["2:4", "bitmap"])
@pytest.mark.parametrize("bits", BITS)
def test_packing_gives_the_cpu_bytes(model, bits, form, dtype):
    for N, K in SHAPES:
        expected, values, mask = packed(form, bits, N, K, dtype)
        name = "sparse24" if form == "2:4" else "bitmap"
        got = getattr(model.ops, f"{name}_pack")(values, mask, bits)
        assert all(torch.equal(one, other) for one, other in zip(got, expected))
        unpacked = getattr(model.ops, f"{name}_unpack")(*expected, bits, N, K)
        by_cpu = getattr(torch.ops.torchcoinfer, f"{name}_unpack")(*expected, bits, N, K)
        assert all(torch.equal(one, other) for one, other in zip(unpacked, by_cpu))


def test_refused_masks(host_model):
    values, full = torch.randn(5, 12), torch.ones(5, 12, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="at most 2 of 4"):
        host_model.ops.sparse24_pack(values, full, 0)
    mask, offsets, survivors = ops.bitmap_pack(values, full, 0)
    with pytest.raises(RuntimeError, match="as many kept"):
        host_model.ops.bitmap_unpack(mask, offsets * 0, survivors, 0, 5, 12)


def reordered(form: str, layout: int, parts, bits: int, model):
    if form == "bitmap" or layout == 0:
        return parts
    index, values = (part.clone() for part in parts)
    for buffer, kind, width in ((index, "index", 4), (values, "survivors", bits)):
        before, by_reference = buffer.clone(), buffer.clone()
        model.ops.reorder_(buffer, kind, width, True)
        reorder_reference(by_reference, kind, width, True)
        assert torch.equal(buffer, by_reference)
        model.ops.reorder_(by_reference, kind, width, False)
        assert torch.equal(by_reference, before)
    return index, values


@pytest.mark.parametrize("form, layout", [("2:4", 0), ("2:4", 1), ("bitmap", 0)])
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("bits", BITS)
def test_sparse_linear_is_near_float64(model, bits, dtype, form, layout):
    linear = model.ops.sparse24_linear if form == "2:4" else model.ops.bitmap_linear
    for (N, K), group_size, symmetric in zip(SHAPES, (32, 0, 64, 128), (False, True, True, False)):
        parts, values, mask = packed(form, bits, N, K, dtype)
        if form == "2:4":  # what fills up is stored too
            values, mask = ops.sparse24_unpack(*parts, bits, N, K)
        parts = reordered(form, layout, parts, bits, model)
        scales = zeros = None
        exact = values.double() * mask
        if bits:
            groups = 1 if group_size == 0 else -(-K // group_size)
            scales = torch.rand(-(-N // 16), groups, 16).to(dtype)
            zeros = None if symmetric else torch.randint(0, 2**bits, scales.shape, dtype=torch.uint8)
            of_rows = torch.arange(groups).repeat_interleave(group_size or K)[:K]
            grid = scales.double().transpose(1, 2).flatten(0, 1)[:N, of_rows]
            point = (
                2 ** (bits - 1) if symmetric else zeros.transpose(1, 2).flatten(0, 1)[:N, of_rows].double()
            )
            exact = grid * (values.double() - point) * mask
        for rows, activation_bits in ((1, 0), (9, 8 if bits else 0)):
            x, bias = torch.randn(rows, K).to(dtype), torch.randn(N)
            exact_x = x.double()
            if activation_bits:
                codes, scale = quantize_rows(x.float())
                exact_x = codes.double() * scale.double()
            rest = (bits, group_size if bits else 0, N, activation_bits, layout)
            y = linear(x, *parts, scales, zeros, bias, *rest)
            assert y.dtype == dtype
            fast = bits > 0 and layout == 1 and not activation_bits
            assert_near(y, exact_x, exact, bias.double(), ROUNDED_WEIGHT.get(dtype, SUMS) if fast else SUMS)

"""Many bfloat16 rows go by the decoded weight and torch's product, as a dense layer does."""

import pytest
import torch
from sparse_cases import sparse
from torch.nn import functional as F

from torchcoinfer import ops
from torchcoinfer.errors import TorchCoinferError

FEWEST, ROWS = 128, 384  # from there on, with few k and with any (csrc/cpu/decoded.h)
SHAPES = ((97, 1003), (16, 32), (17, 33), (5, 1), (27, 4096), (1000, 2100))  # N, K; the last in three parts
WIDE = [isa for isa in ops.cpu_isas() if isa in ("avx512", "amx")]

pytestmark = pytest.mark.skipif(not WIDE, reason="only AVX-512 decodes for torch")


def dense(N, K, bits, group_size, symmetric):
    codes = torch.randint(0, 2**bits, (N, K), dtype=torch.uint8)
    shape = (-(-N // 16), -(-K // group_size) if group_size else 1, 16)
    zeros = None if symmetric else torch.randint(0, 2**bits, shape, dtype=torch.uint8)
    buffers = (ops.pack_codes(codes, bits), (0.5 + torch.rand(shape)).half(), zeros)
    weight = ops.dequantize(*buffers, bits, group_size, N, K, torch.float32)
    return weight, lambda x, bias: ops.quant_linear(x, *buffers, bias, bits, group_size, N, 0)


def pruned(N, K, sparsity, bits, group_size, symmetric, dtype):
    weight = sparse(N, K, sparsity, bits, group_size, symmetric, dtype)
    return weight.dense.float(), weight.linear


CASES = {
    **{
        f"W{bits}, groups of {group_size}, {'' if symmetric else 'a'}symmetric": (
            dense,
            (bits, group_size, symmetric),
        )
        for bits in (2, 3, 4, 5, 6, 8)
        for group_size, symmetric in ((0, True), (32, False))
    },
    **{
        f"{sparsity} {bits or dtype}": (pruned, (sparsity, bits, 64 if bits else 0, bits == 4, dtype))
        for sparsity in ("2:4", 0.0, 0.5, 0.99)
        for bits, dtype in (
            (0, torch.float16),
            (0, torch.bfloat16),
            (0, torch.float32),
            (4, torch.float16),
            (8, torch.float32),
        )
    },
}


@pytest.mark.parametrize("isa", WIDE)
@pytest.mark.parametrize("case", CASES)
def test_gives_the_dense_layer(case, isa, monkeypatch):
    monkeypatch.setenv("TORCHCOINFER_ISA", isa)
    make, options = CASES[case]
    for N, K in SHAPES:
        weight, linear = make(N, K, *options)
        x = torch.randn(2, ROWS // 2, K).bfloat16()
        for bias in (None, torch.randn(N)):
            expected = F.linear(x, weight.bfloat16(), None if bias is None else bias.bfloat16())
            y = linear(x, bias)
            assert y.shape == expected.shape
            # parts may be summed in another order than the whole
            near = 2.0**-8 * (expected.abs() + 2.0**-7 * x.abs().float() @ weight.abs().T)
            assert bool(((y - expected).abs() <= near).all()), (case, N, K)


@pytest.mark.parametrize("isa", WIDE)
def test_one_row_fewer_is_not_rounded(isa, monkeypatch):
    monkeypatch.setenv("TORCHCOINFER_ISA", isa)
    weight, linear = dense(48, 256, 8, 32, False)
    x = torch.randn(FEWEST, 256).bfloat16()
    exact = x.double() @ weight.double().T
    few, many = ((linear(x[:rows], None).double() - exact[:rows]).norm() for rows in (FEWEST - 1, FEWEST))
    assert few < many


def test_autocast_to_another_dtype_leaves_that_of_x():
    weight, linear = dense(48, 256, 4, 32, False)
    x = torch.randn(ROWS, 256).bfloat16()
    with torch.autocast("cpu", torch.float16):
        y = linear(x, None)
    assert y.dtype == torch.bfloat16
    assert float((y.float() - x.float() @ weight.T).abs().max()) < 2.0**-5 * float(
        (x.float().abs() @ weight.abs().T).max()
    )


def test_disagreeing_masks_are_refused():
    weight = sparse(32, 64, 0.5, 0, dtype=torch.bfloat16)
    mask, offsets, values = weight.buffers
    emptied = mask.clone()
    emptied[1] = 0
    with pytest.raises((TorchCoinferError, RuntimeError), match="as many kept weights as survivors"):
        ops.bitmap_linear(
            torch.randn(ROWS, 64).bfloat16(), emptied, offsets, values, None, None, None, 0, 0, 32, 0
        )

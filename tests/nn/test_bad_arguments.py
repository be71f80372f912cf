"""What the packed modules refuse, and that the refusal names the value and what was expected."""

import pytest
import torch
from torch import nn

from torchcoinfer.errors import ArgumentError
from torchcoinfer.nn import QuantConv2d, QuantEmbedding, QuantLinear, SparseLinear, SparseQuantLinear
from torchcoinfer.nn.magnitude import magnitude_mask

CODES = torch.zeros(8, 40, dtype=torch.uint8)
SCALES = torch.ones(8, 2)
ZEROS = torch.zeros(8, 2, dtype=torch.uint8)
ALL = torch.ones(8, 40, dtype=torch.bool)


def layer(value: float | None = None, dtype: torch.dtype = torch.float32) -> nn.Linear:
    linear = nn.Linear(40, 8, dtype=dtype)
    if value is not None:
        linear.weight.data[3, 5] = value
    return linear


def quantized(codes=CODES, scales=SCALES, zeros=ZEROS, bias=None, bits=4, group_size=32, **more):
    return QuantLinear.from_quantized(codes, scales, zeros, bias, bits=bits, group_size=group_size, **more)


def sparse(mask=ALL, zeros=ZEROS, format="bitmap", **more):
    arguments = dict(format=format, bits=4, group_size=32) | more
    return SparseQuantLinear.from_quantized(CODES, mask, SCALES, zeros, **arguments)


CASES = {
    "bits": (lambda: QuantLinear.from_float(layer(), bits=7), "got: 7", "(2, 3, 4, 5, 6, 8)"),
    "group size": (lambda: QuantLinear.from_float(layer(), group_size=48), "got: 48", "(0, 32, 64, 128)"),
    "activation bits": (lambda: QuantLinear.from_float(layer(), activation_bits=4), "got: 4", "None or 8"),
    "NaN": (lambda: QuantLinear.from_float(layer(float("nan"))), "1 of 320", "finite"),
    "Inf": (lambda: SparseLinear.from_float(layer(float("inf"))), "1 of 320", "finite"),
    "float64": (lambda: QuantLinear.from_float(layer(dtype=torch.float64)), "torch.float64", ".float()"),
    "code too large": (lambda: quantized(CODES + 16), "largest code 16", "below 2**4"),
    "codes dtype": (lambda: quantized(CODES.int()), "torch.int32", "torch.uint8"),
    "codes rank": (lambda: quantized(CODES[0]), "(40,)", "[N, K]"),
    "scales shape": (lambda: quantized(scales=torch.ones(8, 3)), "(8, 3)", "(8, 2)"),
    "scales NaN": (lambda: quantized(scales=SCALES / 0 * 0), "16 of 16", "finite"),
    "scales dtype": (lambda: quantized(scales=SCALES.double()), "torch.float64", "torch.float16"),
    "zeros dtype": (lambda: quantized(zeros=ZEROS.int()), "torch.int32", "torch.uint8"),
    "zeros shape": (lambda: quantized(zeros=ZEROS[:4]), "(4, 2)", "(8, 2)"),
    "bias shape": (lambda: quantized(bias=torch.zeros(9)), "(9,)", "(8,)"),
    "bias NaN": (lambda: quantized(bias=torch.full((8,), float("nan"))), "8 of 8", "finite"),
    "conv codes": (
        lambda: QuantConv2d.from_quantized(
            CODES, SCALES, None, like=nn.Conv2d(4, 8, 3), bits=4, group_size=32
        ),
        "(8, 40)",
        "(8, 36)",
    ),
    "max_norm": (
        lambda: QuantEmbedding.from_float(nn.Embedding(8, 40, max_norm=1.0)),
        "got: 1.0",
        "expected: None",
    ),
    "embedding dtype": (lambda: QuantEmbedding(8, 40, dtype=torch.int32), "torch.int32", "torch.float16"),
    "sparsity": (lambda: SparseLinear.from_float(layer(), 1.0), "got: 1.0", "[0, 1)"),
    "sparsity text": (lambda: SparseLinear.from_float(layer(), "1:4"), "'1:4'", "2:4"),
    "format": (lambda: SparseLinear.from_dense(layer().weight, format="csr"), "'csr'", "bitmap"),
    "2:4 too many": (
        lambda: SparseLinear.from_dense(layer().weight, format="2:4"),
        "4 of 4",
        "at most 2",
    ),
    "mask dtype": (
        lambda: SparseLinear.from_dense(layer().weight, mask=torch.ones(8, 40)),
        "torch.float32",
        "torch.bool",
    ),
    "mask shape": (lambda: sparse(ALL[:4]), "(4, 40)", "(8, 40)"),
    "values overflow": (
        lambda: SparseLinear.from_dense(layer(1e6).weight, values_dtype=torch.float16),
        "1 of 320",
        "finite",
    ),
    "2:4 zero point": (
        lambda: sparse(magnitude_mask(torch.rand(8, 40), "2:4"), ZEROS + 20, format="2:4"),
        "zero point 20",
        "below 2**4",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_refusal_names_value_and_expectation(name):
    call, got, expected = CASES[name]
    with pytest.raises((ArgumentError, RuntimeError)) as caught:
        call()
    assert got in str(caught.value) and expected in str(caught.value)


def test_bitmap_takes_zero_points_beyond_the_code_range():
    module = sparse(ALL, ZEROS + 20)
    assert torch.equal(module.dequantize_weight(), torch.full((8, 40), -20.0))

"""Activation functions in the call of a layer, and int8 activations with static scales."""

import pytest
import torch
from conftest import DTYPES
from sparse_cases import sparse

from torchcoinfer import ops
from torchcoinfer.errors import ArgumentError
from torchcoinfer.nn import QuantLinear
from torchcoinfer.ops.epilogue import ACTIVATIONS

N, K = 37, 83


def dense(bits=4, group_size=32):
    codes = torch.randint(0, 2**bits, (N, K), dtype=torch.uint8)
    shape = (-(-N // 16), -(-K // group_size), 16)
    scales, zeros = (
        (0.01 + 0.02 * torch.rand(shape)).half(),
        torch.randint(0, 2**bits, shape, dtype=torch.uint8),
    )
    buffers = (ops.pack_codes(codes, bits), scales, zeros)
    weight = ops.dequantize(*buffers, bits, group_size, N, K, torch.float32)
    return weight, (*buffers, torch.randn(N), bits, group_size, N)


def linear():
    _, buffers = dense()
    return lambda x, *rest: ops.quant_linear(x, *buffers, 0, 0, None, *rest)


def convolution():
    _, buffers = dense()
    geometry = ([1, 1], [1, 1], [0, 0], [1, 1], 1, 0, 0)
    return lambda x, *rest: ops.quant_conv2d(x.T[None, :, :, None], *buffers, *geometry, *rest)


def pruned(sparsity):
    weight = sparse(N, K, sparsity)
    op = getattr(ops, weight.name)
    return lambda x, *rest: op(
        *weight.arguments(x, torch.randn(N, generator=torch.Generator().manual_seed(0))), 0, *rest
    )


LAYERS = {
    "quant_linear": linear,
    "quant_conv2d": convolution,
    "sparse24_linear": lambda: pruned("2:4"),
    "bitmap_linear": lambda: pruned(0.5),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layer", LAYERS)
def test_is_the_function_of_the_plain_output(layer, activation):
    call = LAYERS[layer]()
    for dtype, rows in ((torch.float32, 1), (torch.bfloat16, 7), (torch.bfloat16, 96), (torch.float16, 3)):
        x = torch.randn(rows, K).to(dtype)
        y = call(x, activation)
        assert y.dtype == dtype
        torch.testing.assert_close(y, ACTIVATIONS[activation](call(x)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layer", LAYERS)
def test_unknown_functions_are_refused(layer):
    with pytest.raises((RuntimeError, ArgumentError), match="activation.*gelu"):
        LAYERS[layer]()(torch.randn(2, K), "tanh")


@pytest.mark.parametrize("dtype", DTYPES)
def test_static_scales_exactly(isa, dtype):
    for bits, group_size in ((2, 32), (4, 64), (5, 128), (8, 32)):
        weight, buffers = dense(bits, group_size)
        x_scales = 0.01 + torch.rand(K)
        for rows in (0, 1, 5, 17, 100):
            x = (60 * torch.randn(rows, K)).to(dtype)
            codes = (x.float() / x_scales).round().clamp(-127, 127)
            assert rows < 2 or bool((codes.abs() == 127).any()), "some saturate"
            y = ops.quant_linear(x, *buffers, 8, 0, x_scales)
            exact = codes.double() @ weight.double().T + buffers[3].double()
            near = 1e-5 * codes.double().abs() @ weight.double().abs().T + 2.0**-8 * exact.abs() * (
                dtype != torch.float32
            )
            assert bool(((y.double() - exact).abs() <= near + 1e-5).all()), (bits, rows)


def test_static_scales_keep_nan_in_its_row(isa):
    _, buffers = dense()
    x = torch.randn(3, K)
    x[1, 5] = float("nan")
    y = ops.quant_linear(x, *buffers, 8, 0, torch.ones(K))
    assert bool(y[1].isnan().all()) and bool(y[[0, 2]].isfinite().all())


def test_static_layer(tmp_path):
    plain = torch.nn.Linear(K, N).requires_grad_(False)
    x = torch.randn(50, K) * torch.logspace(-2, 1, K)
    x_scales = x.abs().amax(0) / 127
    layer = QuantLinear.from_float(plain, 8, 32, 8, x_scales=x_scales).set_activation("relu")
    expected = plain(x).relu()
    assert float((layer(x) - expected).norm() / expected.norm()) < 0.02
    rounding = (layer.dequantize_weight() - plain.weight) * x_scales
    assert float(rounding.norm() / (plain.weight * x_scales).norm()) < 0.01

    empty = QuantLinear(K, N, bits=8, group_size=32, activation_bits=8, static_scales=True)
    empty.load_state_dict(layer.state_dict())
    assert torch.equal(empty.set_activation("relu")(x), layer(x))
    assert layer.to(torch.bfloat16).x_scales.dtype == torch.float32
    assert layer.packed_bytes - 4 * K == sum(t.nbytes for t in (layer.packed, layer.scales, layer.zeros))
    layer.float()
    scripted = torch.jit.script(layer)
    scripted.save(tmp_path / "layer.pt")
    assert torch.equal(torch.jit.load(tmp_path / "layer.pt")(x), layer(x))
    exported = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},)).module()
    assert torch.equal(exported(x[:7]), layer(x[:7]))
    assert "activation='relu'" in repr(layer)
    assert "static_scales=True" in repr(layer)


REFUSED = {
    "weight-only": (
        lambda: QuantLinear.from_float(torch.nn.Linear(K, N), x_scales=torch.ones(K)),
        "activation_bits",
    ),
    "shape": (lambda: static(torch.ones(K - 1)), str(K)),
    "a list": (lambda: static([1.0] * K), "list"),
    "zero": (lambda: static(torch.zeros(K)), "positive"),
    "NaN": (lambda: static(torch.full((K,), float("nan"))), "positive"),
    "op, weight-only": (lambda: of_op(torch.ones(K), 0), "activation_bits 8"),
    "op, shape": (lambda: of_op(torch.ones(K + 1), 8), "x_scales"),
    "op, dtype": (lambda: of_op(torch.ones(K).half(), 8), "x_scales"),
    "function": (lambda: QuantLinear.from_float(torch.nn.Linear(K, N)).set_activation("mish"), "gelu"),
}


def static(x_scales):
    return QuantLinear.from_float(torch.nn.Linear(K, N), activation_bits=8, x_scales=x_scales)


def of_op(x_scales, activation_bits):
    return ops.quant_linear(torch.randn(2, K), *dense()[1], activation_bits, 0, x_scales)


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_what_is_wanted(name):
    call, wanted = REFUSED[name]
    with pytest.raises((RuntimeError, ArgumentError), match=wanted):
        call()


def test_opcheck():
    _, buffers = dense()
    arguments = (torch.randn(3, K), *buffers, 8, 0, torch.ones(K), "gelu")
    torch.library.opcheck(torch.ops.torchcoinfer.quant_linear.default, arguments)

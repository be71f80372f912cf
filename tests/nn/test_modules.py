"""Every packed module through the same checks: values, round trips, graph capture, bytes."""

import copy
import io
import pickle

import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.export import Dim, export
from torch.nn import functional

import torchcoinfer.nn as packed_nn
from torchcoinfer.theory.options import Option, packed_bytes

K, N = 75, 37  # neither divides by a block, a tile or a group


def linear(bias: bool = True) -> nn.Linear:
    torch.manual_seed(7)
    return nn.Linear(K, N, bias=bias)


def conv(**geometry) -> nn.Conv2d:
    torch.manual_seed(8)
    return nn.Conv2d(6, 10, 3, **geometry)


def embedding() -> nn.Embedding:
    torch.manual_seed(9)
    return nn.Embedding(37, 75, padding_idx=1)


def rows() -> torch.Tensor:
    return torch.randn(4, K, generator=torch.Generator().manual_seed(1))


def images() -> torch.Tensor:
    return torch.randn(4, 6, 9, 8, generator=torch.Generator().manual_seed(2))


def ids() -> torch.Tensor:
    return torch.tensor([[0, 36], [5, 1], [1, 1], [9, 2]])


def linear_of(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    bias = None if module.bias is None else module.bias.float()
    return functional.linear(x, module.dequantize_weight(), bias)


def conv_of(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    if module.pads_first:
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = functional.pad(x, module.border, mode)
    stride, padding, dilation = module.stride, module.padding, module.dilation
    return functional.conv2d(
        x, module.dequantize_weight(), module.bias, stride, padding, dilation, module.groups
    )


def embedding_of(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return functional.embedding(x, module.dequantize_weight())


def table():
    linears = {f"w{b}g32": ("QuantLinear", dict(bits=b, group_size=32)) for b in (2, 3, 4, 5, 6, 8)}
    linears |= {
        "symmetric-row": ("QuantLinear", dict(bits=4, group_size=0, symmetric=True)),
        "float32-scales": ("QuantLinear", dict(bits=4, group_size=64, scale_dtype=torch.float32)),
        "w4a8": ("QuantLinear", dict(bits=4, group_size=64, activation_bits=8)),
        "bitmap": ("SparseLinear", dict(sparsity=0.6)),
        "bitmap-bf16": ("SparseLinear", dict(sparsity=0.6, values_dtype=torch.bfloat16)),
        "2:4": ("SparseLinear", dict(sparsity="2:4")),
        "bitmap-w4": ("SparseQuantLinear", dict(sparsity=0.5, bits=4, group_size=32)),
        "bitmap-w3a8": ("SparseQuantLinear", dict(sparsity=0.5, bits=3, group_size=0, activation_bits=8)),
        "2:4-w4": ("SparseQuantLinear", dict(sparsity="2:4", bits=4, group_size=64, symmetric=True)),
        "2:4-w5": ("SparseQuantLinear", dict(sparsity="2:4", bits=5, group_size=32)),
    }
    for name, (kind, options) in linears.items():
        yield name, kind, linear(name != "w3g32"), options, rows, linear_of
    convs = {
        "conv": conv(),
        "conv-groups": conv(groups=2, stride=2, padding=1, bias=False),
        "conv-same-even": nn.Conv2d(6, 10, (2, 3), padding="same", dilation=2),
        "conv-reflect": conv(padding=(1, 2), padding_mode="reflect"),
    }
    for name, layer in convs.items():
        yield name, "QuantConv2d", layer, dict(bits=4, group_size=32), images, conv_of
    yield "embedding", "QuantEmbedding", embedding(), dict(bits=4, group_size=32), ids, embedding_of
    yield "embedding-row", "QuantEmbedding", embedding(), dict(bits=8, group_size=0), ids, embedding_of


TABLE = {case[0]: case[1:] for case in table()}
EVERY = pytest.mark.parametrize("name", TABLE)


def build(name: str):
    kind, layer, options, inputs, truth = TABLE[name]
    return getattr(packed_nn, kind).from_float(layer, **options), inputs(), truth


@EVERY
def test_computes_with_its_dequantized_weight(name):
    module, x, truth = build(name)
    expected = truth(module, x)
    tolerance = 2e-2 if module.activation_bits else 1e-5
    assert (module(x) - expected).abs().max() <= tolerance * expected.abs().max()


@EVERY
def test_stays_near_the_float_layer(name):
    kind, layer, options, _, _ = TABLE[name]
    module, _, _ = build(name)
    error = (module.dequantize_weight().flatten(1) - layer.weight.detach().flatten(1)).norm()
    limit = {2: 0.55, 3: 0.25, 4: 0.12, 5: 0.06, 6: 0.03, 8: 0.01}.get(module.bits, 0) * layer.weight.norm()
    pruned = layer.weight.norm() * 0.5 if "sparsity" in options else 0  # a uniform weight loses .46 at .6
    assert error <= limit + pruned


@EVERY
def test_survives_copies_and_files_bit_for_bit(name):
    module, x, _ = build(name)
    expected = module(x)
    stream = io.BytesIO()
    torch.save(module.state_dict(), stream)
    stream.seek(0)
    again = copy.deepcopy(module)
    for buffer in again.buffers():
        buffer.zero_()
    again.load_state_dict(torch.load(stream, weights_only=True))
    from_file = copy.deepcopy(module)
    tensors = {key: value.contiguous() for key, value in module.state_dict().items()}
    from_file.load_state_dict(load(save(tensors)))
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), again, from_file):
        assert torch.equal(twin(x), expected)
        assert twin.packed_bytes == module.packed_bytes
    assert not list(module.parameters())


@EVERY
def test_dtype_moves_keep_the_storage(name):
    module, x, _ = build(name)
    before = {key: value.clone() for key, value in module.state_dict().items() if key != "bias"}
    weight = module.dequantize_weight()
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.float32):
        module.to(dtype)
        for key, value in before.items():
            kept = module.state_dict()[key]
            assert kept.dtype == value.dtype and torch.equal(kept, value)
    assert torch.equal(module.dequantize_weight(), weight)
    module.half()
    y = module(x if x.dtype == torch.int64 else x.half())
    assert y.dtype == torch.float16
    assert module.to("cpu") is module


@EVERY
def test_scripted_equals_eager(name, tmp_path):
    module, x, _ = build(name)
    torch.jit.script(module).save(str(tmp_path / "m.pt"))
    assert torch.equal(torch.jit.load(str(tmp_path / "m.pt"))(x), module(x))


@EVERY
def test_exported_with_dynamic_batch(name):
    module, x, _ = build(name)
    program = export(module, (x,), dynamic_shapes=({0: Dim("batch")},))
    larger = torch.cat([x, x.flip(0), x])
    got, expected = program.module()(larger), module(larger)
    assert (got - expected).abs().max() <= 1e-6 * expected.abs().max()


@EVERY
def test_empty_and_strided_inputs(name):
    module, x, _ = build(name)
    assert module(x[:0]).shape == (0, *module(x).shape[1:])
    strided = x.transpose(0, -1).contiguous().transpose(0, -1)
    assert torch.equal(module(strided), module(x.contiguous()))


@EVERY
def test_constructor_takes_the_state_dict(name):
    module, x, _ = build(name)
    kind, layer, options, _, _ = TABLE[name]
    config = {k: v for k, v in options.items() if k != "sparsity"}
    if kind == "QuantConv2d":
        twin = packed_nn.QuantConv2d(layer, **config)
    elif kind == "QuantEmbedding":
        twin = packed_nn.QuantEmbedding(37, 75, padding_idx=1, **config)
    else:
        if "sparsity" in options:
            config["format"] = module.sparsity_format
        if module.sparsity_format == "bitmap":
            config["survivor_chunks"] = int(module.offsets[-1])
        twin = getattr(packed_nn, kind)(K, N, module.bias is not None, **config)
    if module.sparsity_format != "bitmap":  # a bitmap with room for survivors has to be filled first
        twin(x)
    twin.load_state_dict(module.state_dict())
    assert torch.equal(twin(x), module(x)) and repr(twin) == repr(module)


@EVERY
def test_packed_bytes_are_those_the_planner_counts(name):
    module, _, _ = build(name)
    _, layer, options, _, _ = TABLE[name]
    if options.get("scale_dtype") is torch.float32 or module.sparsity_format != "dense" and not module.bits:
        stored = sum(t.nbytes for key, t in module.state_dict().items() if key != "bias")
        assert module.packed_bytes == stored
        return
    sparsity = options.get("sparsity", 0.0)
    option = Option(
        bits=module.bits,
        sparsity=0.5 if sparsity == "2:4" else sparsity,
        format={"dense": "int"}.get(module.sparsity_format, module.sparsity_format),
        group_size=module.group_size,
        symmetric=module.zeros is None,
    )
    rows_, columns = layer.weight.flatten(1).shape
    assert module.packed_bytes == packed_bytes(option, rows_, columns)


@pytest.mark.parametrize("sparsity", [0.0, 0.31, 0.5, 0.77, 0.99])
@pytest.mark.parametrize("shape", [(16, 32), (37, 75), (1, 3)])
def test_float_bitmap_bytes_and_count_per_block(shape, sparsity):
    torch.manual_seed(0)
    layer = nn.Linear(shape[1], shape[0])
    module = packed_nn.SparseLinear.from_float(layer, sparsity, torch.float16)
    assert module.packed_bytes == packed_bytes(Option(16, sparsity, "bitmap"), *shape)
    kept = module.dequantize_weight() != 0
    for start in range(0, shape[0], 16):
        block = layer.weight[start : start + 16].abs()
        chosen = kept[start : start + 16]
        assert int(chosen.sum()) == round((1 - sparsity) * block.numel())
        if 0 < chosen.sum() < block.numel():
            assert block[chosen].min() >= block[~chosen].max()


def test_modules_may_share_buffers():
    table = packed_nn.QuantEmbedding.from_float(embedding(), 4, 32)
    head = packed_nn.QuantLinear.from_quantized(
        torch.zeros(37, 75, dtype=torch.uint8), torch.ones(37, 3), None, bits=4, group_size=32
    )
    head.packed, head.scales, head.zeros = table.packed, table.scales, table.zeros
    pair = copy.deepcopy(nn.ModuleDict({"table": table, "head": head}))
    assert pair["head"].packed.data_ptr() == pair["table"].packed.data_ptr()
    assert torch.equal(pair["head"].dequantize_weight(), table.dequantize_weight())

"""``bench kernels --check``: every packed layer on a device against float64, over shapes, rows, dtypes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchcoinfer.bench.formats import FORMATS
from torchcoinfer.bench.gpu.candidates import CANDIDATES
from torchcoinfer.nn import QuantConv2d, QuantEmbedding, SparseQuantLinear
from torchcoinfer.ops import decode_activation, encode_activation, search_grid
from torchcoinfer.ops.quant_linear import quantize_rows

# (N, K); the last so long that thread blocks split it
SHAPES = ((16, 32), (37, 75), (256, 512), (130, 257), (512, 1024), (40, 16420))
TOKENS = (1, 2, 5, 16, 17, 33, 64, 65, 130, 800)  # either side of what the kernels' dispatch turns at
ROUNDING = {torch.float32: 2.0**-22, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}  # of the result
# of the sum of absolute products: float32 sums; with a 16-bit x the weight may be rounded to its dtype first
PRODUCTS = {torch.float32: 2.0**-20, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


@dataclass(frozen=True)
class Cell:
    """One comparison; ``excess``: largest error over its bound, right up to 1."""

    what: str
    shape: tuple[int, ...]
    dtype: str
    excess: float

    @property
    def right(self) -> bool:
        return self.excess <= 1.0  # NaN is wrong


def run(device: str, names: Sequence[str] = (), shapes: Sequence[tuple[int, int]] = SHAPES) -> list[Cell]:
    """All comparisons on ``device``: the formats named (default all), int8 codes of x on sparse weights,
    convolution, embedding, codec, clip search.
    """
    torch.manual_seed(0)
    cells = []
    for name in names or FORMATS:
        for rows, columns in shapes:
            cells += _linear_cells(name, FORMATS[name](rows, columns), device)
    for sparsity in ("2:4", 0.5):
        for bits in (3, 8):
            linear = nn.Linear(296, 130, bias=False)
            module = SparseQuantLinear.from_float(linear, sparsity, bits, 32, 8)
            cells += _linear_cells(f"W{bits}A8 {sparsity}", module, device)
    return [*cells, *_other_cells(device), *_codec_cells(device), *_search_cells(device)]


def summary(cells: Sequence[Cell]) -> str:
    """The share that is right, and what is not."""
    wrong = [cell for cell in cells if not cell.right]
    told = [f"{len(cells) - len(wrong)} of {len(cells)} comparisons within their bounds"]
    told += [f"WRONG: {c.what} {c.shape} {c.dtype}: {c.excess:.3g} times the bound" for c in wrong]
    return "\n".join(told)


def _linear_cells(name: str, module: nn.Module, device: str) -> Iterator[Cell]:
    weight, columns = module.dequantize_weight().double(), module.in_features
    moved = copy.deepcopy(module).to(device)
    for dtype in ROUNDING:
        for tokens in TOKENS:
            x = torch.randn(tokens, columns).to(dtype)
            exact = x.double()
            if module.activation_bits:
                codes, scale = quantize_rows(x.float())
                exact = codes.double() * scale.double()
            shape, kind = (tokens, columns, weight.shape[0]), str(dtype).removeprefix("torch.")
            yield Cell(name, shape, kind, _excess(moved(x.to(device)).cpu(), exact, weight))
            for candidate in CANDIDATES:
                if dtype != torch.float32 and candidate.serves(name, tokens, device):
                    with candidate.asked():
                        y = moved(x.to(device)).cpu()
                    yield Cell(f"{name}, {candidate.name}", shape, kind, _excess(y, exact, weight))
    back = moved.cpu().state_dict()
    same = all(torch.equal(tensor, back[key]) for key, tensor in module.state_dict().items())
    yield Cell(f"{name}, there and back", tuple(weight.shape), "bytes", 0.0 if same else float("inf"))


def _excess(y: Tensor, x: Tensor, weight: Tensor) -> float:
    expected = x @ weight.T
    bound = PRODUCTS[y.dtype] * (x.abs() @ weight.abs().T) + ROUNDING[y.dtype] * expected.abs()
    return float(((y.double() - expected).abs() / bound.clamp(min=1e-30)).max())


def _other_cells(device: str) -> Iterator[Cell]:
    for bits, activation_bits in ((4, None), (3, None), (8, 8)):
        module = QuantConv2d.from_float(nn.Conv2d(12, 20, 3, 2, 1), bits, 32, activation_bits)
        x = torch.randn(2, 12, 9, 7)
        near = _difference(copy.deepcopy(module).to(device)(x.to(device)), module(x)) / 2.0**-12
        yield Cell(f"convolution W{bits}A{activation_bits or 32}", (2, 12, 9, 7), "float32", near)
    module = QuantConv2d.from_float(nn.Conv2d(12, 20, 3, 2, 1, groups=2), 4, 32)
    for dtype, most in ((torch.float16, 2.0**-9), (torch.bfloat16, 2.0**-6)):
        x = torch.randn(2, 12, 9, 7).to(dtype)
        near = _difference(copy.deepcopy(module).to(device)(x.to(device)), module(x.float())) / most
        yield Cell("convolution W4A16", (2, 12, 9, 7), str(dtype).removeprefix("torch."), near)
    table, indices = QuantEmbedding.from_float(nn.Embedding(50, 70), 4, 32), torch.randint(0, 50, (3, 4))
    got = copy.deepcopy(table).to(device)(indices.to(device))
    yield Cell(
        "embedding", (50, 70), "float32", 0.0 if torch.equal(got.cpu(), table(indices)) else float("inf")
    )


def _codec_cells(device: str) -> Iterator[Cell]:
    # by bytes, in whole words, one long row in parts
    for shape, dtype in (((5, 77), torch.float32), ((40, 264), torch.bfloat16), ((1, 40960), torch.float16)):
        for bits in range(2, 9):
            x = torch.randn(shape).to(dtype)
            for granularity in ("token", "channel"):
                parts = encode_activation(x, bits, granularity, 1)
                on_device = encode_activation(x.to(device), bits, granularity, 1)
                rest = (bits, granularity, shape[1:], dtype)
                values = decode_activation(*on_device, *rest).cpu()
                same = all(torch.equal(a, b.cpu()) for a, b in zip(parts, on_device))
                same = same and torch.equal(values, decode_activation(*parts, *rest))
                yield Cell(
                    f"codec {granularity} {bits} bits",
                    shape,
                    str(dtype).removeprefix("torch."),
                    0.0 if same else float("inf"),
                )


def _search_cells(device: str) -> Iterator[Cell]:
    # the CPU's fused sums may prefer another candidate, as good
    for groups, size, bits in ((300, 128, 4), (37, 45, 3), (5, 1000, 2)):
        values, importance = torch.randn(groups, size), torch.rand(1, size)
        top = 2**bits - 1
        full = (values.amax(1) - values.amin(1)) / top
        zero = (-values.amin(1) / full).round()
        rest = ([1.0, 0.9, 0.8, 0.7], 1.0, torch.float16, bits, 2)
        given = (values, importance, full[None], zero[None])
        errors = []
        for scale, point in (search_grid(*given, *rest), search_grid(*(t.to(device) for t in given), *rest)):
            grid, point = scale.cpu().double()[:, None], point.cpu().double()[:, None]
            codes = (values.double() / grid + point).round().clamp(0, top)
            errors.append(((grid * (codes - point) - values) ** 2 * importance).sum(1))
        yield Cell(f"clip search {bits} bits", (groups, size), "float32", _difference(*errors) / 1e-4)


def _difference(got: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((got.cpu().double() - expected.double()).abs().max() / expected.abs().max())

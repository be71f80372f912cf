"""The codec at the cut on the host model: the CPU's bits, whatever way a shape goes."""

import pytest
import torch

from torchcoinfer import ops

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# shape and leading dims: whole words or not, a long row (several parts), channels by eights or singly,
# more lines of channels than a thread block sees
SHAPES = (
    ((3, 64), 1),
    ((2, 40), 1),
    ((5, 8, 24), 1),
    ((2, 7, 37), 2),
    ((1, 9, 1000), 1),
    ((3, 11000), 1),
    ((70, 16), 0),
    ((2, 3, 300), 0),
)


def same(got: torch.Tensor, expected: torch.Tensor) -> bool:
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[got.element_size()]
    numbers = (
        ~expected.isnan() if expected.is_floating_point() else torch.ones_like(expected, dtype=torch.bool)
    )
    return torch.equal(got.isnan(), expected.isnan()) and torch.equal(
        got.view(kind)[numbers], expected.view(kind)[numbers]
    )


def both_ways(model, x: torch.Tensor, bits: int, granularity: str, leading: int) -> None:
    coded = ops.encode_activation(x, bits, granularity, leading)
    got = model.ops.encode_activation(x, bits, granularity, leading)
    assert all(same(one, other) for one, other in zip(got, coded))
    rest = (bits, granularity, list(x.shape[leading:]), x.dtype)
    assert same(model.ops.decode_activation(*coded, *rest), ops.decode_activation(*coded, *rest))


@pytest.mark.parametrize("granularity", ["token", "channel"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_the_bits_of_the_cpu(model, bits, granularity):
    for i, (shape, leading) in enumerate(SHAPES):
        x = torch.randn(shape).to(DTYPES[(i + bits) % 3]) * 3 + 1
        both_ways(model, x, bits, granularity, leading)


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["token", "channel"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", range(2, 9))
def test_the_bits_of_the_cpu_for_every_width_of_a_row(model, bits, dtype, granularity):
    for n in (*range(1, 70), 248, 256, 264, 4096, 4104, 12296):
        both_ways(model, torch.randn(2, n).to(dtype), bits, granularity, 1)


@pytest.mark.parametrize("granularity", ["token", "channel"])
def test_not_a_number_in_one_place(model, granularity):
    for poison in (float("nan"), float("inf"), -float("inf")):
        for n in (64, 13000):  # one part and several
            x = torch.randn(2, n)
            x[1, n - 3] = poison
            both_ways(model, x, 4, granularity, 1)


@pytest.mark.parametrize("bits", [2, 4, 7, 8])
def test_ties_go_to_the_even_code(model, bits):
    top = 2**bits - 1
    codes = torch.cat((torch.tensor([0.0, float(top)]), torch.arange(254) % (2 * top) / 2))
    both_ways(model, codes[None], bits, "token", 1)
    both_ways(model, (codes * 0.3 - 1)[None].expand(2, -1), bits, "token", 1)


def test_a_view_that_begins_anywhere(model):
    for dtype in DTYPES:
        memory = torch.randn(4 * 64 + 8).to(dtype)
        for start in range(8):
            for granularity in ("token", "channel"):
                both_ways(model, memory[start : start + 4 * 64].view(4, 64), 5, granularity, 1)


@pytest.mark.parametrize("granularity", ["token", "channel"])
@pytest.mark.parametrize("shape, leading", [((0, 7), 1), ((3, 0), 1), ((2, 0, 5), 1), ((2, 4, 0), 1)])
def test_nothing_to_encode(model, shape, leading, granularity):
    both_ways(model, torch.zeros(shape), 3, granularity, leading)

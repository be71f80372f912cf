"""The clip-search kernel against its reference and against brute force, on every instruction set."""

import pytest
import torch

from torchcoinfer import ops
from torchcoinfer.errors import TorchCoinferError
from torchcoinfer.ops.search_grid import round_to_grid, search_grid_reference

CASES = [  # groups, group size, importance rows, bits, scale dtype, unit
    (40, 64, 4, 4, torch.float16, 1.0),
    (7, 32, 1, 2, torch.float16, 2.0**-7),
    (9, 128, 3, 3, torch.bfloat16, 2.0**60),
    (5, 37, 5, 5, torch.float16, 1.0),
    (3, 1, 1, 8, torch.float32, 1.0),
    (0, 64, 1, 6, torch.float16, 1.0),
]


def arguments(groups, size, rows, bits, dtype, unit, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(groups, size, generator=generator)
    importance = torch.rand(rows, size, generator=generator)
    low, high = values.amin(1).clamp(max=0), values.amax(1).clamp(min=0)
    full = (high - low) / (2**bits - 1)
    zero = torch.where(full > 0, -low / full, 0.0).round()
    starts = torch.stack([full, full]), torch.stack([zero, (zero + 1).clamp(0, 2**bits - 1)])
    return values, importance, *starts, [1.0, 0.9, 0.8, 0.7], unit, dtype, bits, 2


def error(values, importance, scale, zero, bits):
    steps = round_to_grid(values.double(), scale.double()[:, None], zero.double()[:, None], 2.0**bits - 1)
    weight = importance.repeat(-(-len(values) // len(importance)), 1)[: len(values)]
    return ((steps * scale.double()[:, None] - values) ** 2 * weight).sum(1)


@pytest.mark.parametrize("isa", ops.cpu_isas())
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernel_is_as_good_as_the_reference(case, isa, monkeypatch):
    monkeypatch.setenv("TORCHCOINFER_ISA", isa)
    args = arguments(*case)
    scale, zero = ops.search_grid(*args)
    wanted = search_grid_reference(*args)
    torch.testing.assert_close(
        error(args[0], args[1], scale, zero, case[3]),
        error(args[0], args[1], *wanted, case[3]),
        rtol=1e-4, atol=1e-10,
    )  # fmt: skip
    stored = (scale * case[5]).to(case[4]).float() / case[5]
    assert torch.equal(stored, scale)


def test_no_candidate_is_better():
    values, importance, full, zeros, shares, *_ = args = arguments(12, 64, 1, 3, torch.float16, 1.0)
    scale, zero = ops.search_grid(*args[:-1], 0)
    found = error(values, importance, scale, zero, 3)
    for start, offset in zip(full, zeros):
        for share in shares:
            candidate = (start * share).half().float()
            assert (found <= error(values, importance, candidate, offset, 3) * (1 + 1e-5)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(4)}, "groups"),
        ({1: torch.zeros(2, 5)}, "importance"),
        ({2: torch.zeros(1, 3)}, "start"),
        ({7: 7}, "bits"),
        ({6: torch.int8}, "scale_dtype"),
    ],
)
def test_bad_arguments_are_named(change, message):
    args = list(arguments(8, 64, 1, 4, torch.float16, 1.0))
    for position, value in change.items():
        args[position] = value
    with pytest.raises((RuntimeError, TorchCoinferError), match=message):
        ops.search_grid(*args)

"""Clip search on the host model: the bits of the CPU's plain path."""

import pytest
import torch

from torchcoinfer import ops
from torchcoinfer.errors import TorchCoinferError

# groups, group size, importance rows, bits, scale dtype, unit: groups that lanes share unevenly, one value,
# more than registers hold, none
CASES = [
    (40, 64, 4, 4, torch.float16, 1.0),
    (7, 32, 1, 2, torch.float16, 2.0**-7),
    (9, 128, 3, 3, torch.bfloat16, 2.0**60),
    (5, 37, 5, 5, torch.float16, 1.0),
    (19, 130, 2, 4, torch.bfloat16, 1.0),
    (3, 1030, 3, 6, torch.float16, 2.0**-3),
    (3, 1, 1, 8, torch.float32, 1.0),
    (0, 64, 1, 6, torch.float16, 1.0),
]


def arguments(groups, size, rows, bits, dtype, unit):
    values, importance = torch.randn(groups, size), torch.rand(rows, size)
    if groups:
        values[0] = 0
    low, high = values.amin(1).clamp(max=0), values.amax(1).clamp(min=0)
    full = (high - low) / (2**bits - 1)
    zero = torch.where(full > 0, -low / full, 0.0).round()
    starts = torch.stack([full, full]), torch.stack([zero, (zero + 1).clamp(0, 2**bits - 1)])
    return values, importance, *starts, [1.0, 0.9, 0.8, 0.7, 0.55], unit, dtype, bits, 2


@pytest.mark.parametrize("case", CASES, ids=str)
def test_search_gives_the_cpu_bits(model, case, monkeypatch):
    monkeypatch.setenv("TORCHCOINFER_ISA", "scalar")
    values = arguments(*case)
    for change in ({}, {8: 0}, {4: []}):
        given = [change.get(i, value) for i, value in enumerate(values)]
        for one, other in zip(model.ops.search_grid(*given), ops.search_grid(*given)):
            assert torch.equal(one, other)


def test_wrong_arguments_are_named(host_model):
    given = list(arguments(8, 64, 1, 4, torch.float16, 1.0))
    for position, value, name in ((1, torch.zeros(2, 5), "importance"), (7, 7, "bits"), (5, 0.0, "unit")):
        wrong = [value if i == position else one for i, one in enumerate(given)]
        with pytest.raises((RuntimeError, TorchCoinferError), match=name):
            host_model.ops.search_grid(*wrong)

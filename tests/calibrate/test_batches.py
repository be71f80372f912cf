"""What calibration says about bad data, the forms a batch may have, and what is set aside for validation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from torchcoinfer.calibrate import calibrate, read_batches, split_validation
from torchcoinfer.errors import ArgumentError, CalibrationError
from torchcoinfer.trace import trace


class Model(nn.Module):
    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.embedding, self.linear = nn.Embedding(5, 3), nn.Linear(3, 2)
        self.scale = scale

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        return self.linear(self.embedding(ids) + x) * self.scale


def good(batch: int = 2) -> dict[str, Tensor]:
    return {"ids": torch.randint(0, 5, (batch,)), "x": torch.randn(batch, 3)}


@pytest.fixture(scope="module")
def traced():
    return trace(Model(), good())


BAD = {
    "nothing": ([], "empty.*0 batches"),
    "one batch, not a list": (good(), "one batch, not an iterable"),
    "a bare tensor": (torch.zeros(2, 3), "one batch, not an iterable"),
    "missing key": ([good(), {"ids": torch.zeros(2, dtype=torch.long)}], "batch 1.*expected: ids, x"),
    "unknown key": ([{**good(), "labels": torch.zeros(2)}], "batch 0.*labels"),
    "too few arguments": ([(good()["ids"],)], "batch 0"),
    "unknown form": ([good(), "text"], "batch 1 has an unknown form; got: str"),
    "dtype": ([good(), good(), {**good(), "x": torch.zeros(2, 3).half()}], "batch 2.*'x'.*float16.*float32"),
    "integer dtype": ([{**good(), "ids": torch.zeros(2)}], "batch 0.*'ids'.*int64"),
    "shape": ([{**good(), "x": torch.zeros(2, 4)}], r"batch 0.*'x'.*\(2, 4\)"),
    "rank": ([{**good(), "x": torch.zeros(3)}], r"batch 0.*'x'.*\(3,\)"),
    "sizes disagree": ([{**good(3), "x": torch.zeros(2, 3)}], "batch 0"),
    "no sample": ([good(0)], "batch 0.*empty"),
    "nan": ([good(), {**good(), "x": torch.full((2, 3), math.nan)}], "batch 1.*'x' holds NaN or Inf.*6 of 6"),
    "inf": ([{**good(), "x": torch.full((2, 3), -math.inf)}], "batch 0.*NaN or Inf"),
    "token beyond the table": (
        [good(), {**good(), "ids": torch.tensor([1, 7])}],
        "batch 1: the model fails.*range",
    ),
    "no tensor": ([{**good(), "x": [[0.0] * 3] * 2}], "batch 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data(traced, name):
    batches, words = BAD[name]
    with pytest.raises(CalibrationError, match=words):
        calibrate(traced, batches)


def test_forms_of_a_batch(traced):
    batch = good()
    flat = read_batches(traced, [batch, (batch["ids"], batch["x"]), [batch["ids"], batch["x"]]])
    assert len(flat) == 3
    assert all(torch.equal(one, other) for found in flat for one, other in zip(found, flat[0]))
    single = trace(nn.Sequential(nn.Linear(2, 2)), (torch.zeros(2, 2),))
    assert read_batches(single, [torch.ones(4, 2)])[0][0].shape == (4, 2)
    assert len(read_batches(traced, (good() for _ in range(3)))) == 3
    transposed = torch.randn(3, 2).t()
    assert calibrate(traced, [{**good(), "x": transposed}]).samples == 2


@pytest.mark.parametrize(
    "model, words",
    [(Model(0.0), "no signal"), (Model(1e38), "batch 0: the model's output holds NaN or Inf")],
)
def test_outputs_that_cannot_be_judged(model, words):
    traced = trace(model, good())
    with pytest.raises(CalibrationError, match=words):
        calibrate(traced, [{**good(), "x": torch.full((2, 3), 1e3)}])


@pytest.mark.parametrize(
    "output, words",
    [
        (lambda found: found.sum(), "does not lead with the batch"),
        (lambda found: found.t(), "does not lead with the batch"),
        (lambda found: found.long(), "not a floating tensor"),
        (lambda found: None, "not a floating tensor; got: NoneType"),
    ],
)
def test_bad_judges(traced, output, words):
    with pytest.raises(CalibrationError, match=words):
        calibrate(traced, [good(3)], output=output)


def test_unknown_metric(traced):
    with pytest.raises(ArgumentError, match="'mse'.*output_mse"):
        calibrate(traced, [good()], metric="mse")


@pytest.mark.parametrize("batches, aside", [(2, 1), (3, 1), (4, 1), (5, 2), (30, 10)])
def test_a_third_is_set_aside(batches, aside):
    data = list(range(batches))
    kept, validation = split_validation([(torch.tensor([i]),) for i in data], seed=3)
    numbers = [int(batch[0]) for batch in kept], [int(batch[0]) for batch in validation]
    assert len(validation) == aside and sorted(sum(numbers, [])) == data
    assert all(found == sorted(found) for found in numbers)
    again = split_validation([(torch.tensor([i]),) for i in data], seed=3)
    assert [int(batch[0]) for batch in again[1]] == numbers[1]


def test_samples_of_a_single_batch_are_divided():
    ids = torch.arange(6)
    for batch in ({"ids": ids, "table": torch.zeros(9, 2)}, (ids, torch.zeros(9, 2)), ids):
        (kept,), (aside,) = split_validation([batch], seed=1)
        found = [
            one["ids"] if isinstance(one, dict) else one[0] if isinstance(one, tuple) else one
            for one in (kept, aside)
        ]
        assert [len(part) for part in found] == [4, 2]
        assert torch.equal(torch.cat(found).sort().values, ids)
        if not isinstance(batch, Tensor):
            shared = kept["table"] if isinstance(kept, dict) else kept[1]
            assert shared.shape == (9, 2)
    assert split_validation([ids[:1]])[1] == []
    assert split_validation([]) == ([], [])

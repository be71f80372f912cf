"""Reads calibration and validation batches, and says what is wrong with a bad one before anything has run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchcoinfer.calibrate.judge import batch_size
from torchcoinfer.errors import ArgumentError, CalibrationError
from torchcoinfer.trace import Traced

Batch = Tensor | Sequence[Any] | Mapping[str, Any]
"""One batch as the user gives it: a tensor, the model's positional arguments, or its keyword arguments."""


def batch_arguments(batch: Batch, index: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The model's (positional, keyword) arguments of one batch.

    Raises:
        CalibrationError: another form than tensor, tuple or dict.
    """
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, (tuple, list)):
        return tuple(batch), {}
    if isinstance(batch, Tensor):
        return (batch,), {}
    raise CalibrationError(
        f"batch {index} has an unknown form", got=type(batch).__name__,
        expected="a tensor, a tuple of the model's arguments, or a dict of its keyword arguments",
    )  # fmt: skip


def read_batch(traced: Traced, batch: Batch, index: int) -> tuple[Tensor, ...]:
    """Flat inputs of one batch, checked.

    Raises:
        CalibrationError: naming the batch's index, the input, what was found and what is expected.
    """
    args, kwargs = batch_arguments(batch, index)
    try:
        flat = traced.flatten_inputs(*args, **kwargs)
    except ArgumentError as error:
        raise CalibrationError(
            f"batch {index}: {error.fact}", got=error.got, expected=error.expected,
            remedy="give every batch the arguments, dtypes and fixed sizes of example_inputs",
        ) from error  # fmt: skip
    for name, value in zip(traced.graph.inputs, flat):
        where = f"batch {index}, input {name!r}"
        if value.numel() == 0:
            raise CalibrationError(f"{where} is empty", got=tuple(value.shape), expected="one sample or more")
        bad = int((~torch.isfinite(value)).sum()) if value.is_floating_point() else 0
        if bad:
            raise CalibrationError(
                f"{where} holds NaN or Inf", got=f"{bad} of {value.numel()} values", expected="finite values",
                remedy="drop or repair that batch",
            )  # fmt: skip
    return tuple(value.clone() if value.is_inference() else value.detach() for value in flat)


def read_batches(
    traced: Traced, batches: Iterable[Batch], what: str = "calibration"
) -> list[tuple[Tensor, ...]]:
    """All batches, flat and checked.

    Raises:
        CalibrationError: no batch at all, or a bad one.
    """
    if isinstance(batches, (Tensor, Mapping, str)):
        raise CalibrationError(
            f"{what} data are one batch, not an iterable of batches",
            got=type(batches).__name__,
            expected="an iterable of tensors, tuples or dicts",
            remedy="put the batch into a list: [batch]",
        )
    found = [read_batch(traced, batch, index) for index, batch in enumerate(batches)]
    if not found:
        raise CalibrationError(
            f"{what} data are empty", got="0 batches", expected="at least one batch",
            remedy="give at least one batch (a generator is used up after one pass)",
        )  # fmt: skip
    return found


def split_validation(
    batches: Iterable[Batch], share: float = 1 / 3, seed: int = 0
) -> tuple[list[Batch], list[Batch]]:
    """Sets a share of the batches aside for validation: (calibration, validation), in their given order.

    A third by default. Which ones is drawn from ``seed``: batches often come sorted. With a single batch of
    several samples the samples are divided; with one sample nothing can be set aside and the second list is
    empty (the report then says that the certificate is unavailable).
    """
    found = list(batches)
    if len(found) == 1:
        return _split_samples(found[0], share, seed)
    count = min(max(round(len(found) * share), 1), len(found) - 1) if found else 0
    generator = torch.Generator().manual_seed(seed)
    chosen = set(torch.randperm(len(found), generator=generator)[:count].tolist())
    kept = [batch for index, batch in enumerate(found) if index not in chosen]
    return kept, [batch for index, batch in enumerate(found) if index in chosen]


def _split_samples(batch: Batch, share: float, seed: int) -> tuple[list[Batch], list[Batch]]:
    args, kwargs = batch_arguments(batch, 0)
    samples = batch_size([value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)])
    if samples < 2:
        return [batch], []
    count = min(max(round(samples * share), 1), samples - 1)
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    aside, kept = order[:count].sort().values, order[count:].sort().values
    return [_take(batch, kept, samples)], [_take(batch, aside, samples)]


def _take(batch: Batch, rows: Tensor, samples: int) -> Batch:
    def take(value: Any) -> Any:
        leads = isinstance(value, Tensor) and value.dim() and value.shape[0] == samples
        return value[rows] if leads else value

    if isinstance(batch, Mapping):
        return {name: take(value) for name, value in batch.items()}
    return take(batch) if isinstance(batch, Tensor) else tuple(take(value) for value in batch)

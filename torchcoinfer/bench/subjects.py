"""The models that predictor and allocation are judged on, with their data in disjoint parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torchcoinfer.bench import autoencoder, tasks
from torchcoinfer.errors import ArgumentError
from torchcoinfer.models import load_model

BATCH = 16


@dataclass(frozen=True)
class Subject:
    """A model and three disjoint sets of batches.

    Attributes:
        example_inputs: one call, for tracing.
        fit: what error compensation is fitted on.
        score: what the table is made on.
        held_out: what configurations are measured on; no choice has seen it.
    """

    name: str
    model: nn.Module
    example_inputs: Any
    fit: tuple[Any, ...]
    score: tuple[Any, ...]
    held_out: tuple[Any, ...]


def load_subject(spec: str, samples: int = 128, seed: int = 0) -> Subject:
    """``fcdnn`` (the papers' FCDNN-16, trained here), ``minilm``, or a Hugging Face id or folder.

    Args:
        samples: about how many samples each of the three sets holds.
        seed: of FCDNN-16's training and of the digits' division.

    Raises:
        ArgumentError: a model without a tokenizer, for which there are no data here.
        MissingExtra: scikit-learn or transformers is not installed.
    """
    if spec == "fcdnn":
        return _autoencoder(samples, seed)
    loaded = load_model(spec)
    if loaded.tokenizer is None:
        raise ArgumentError(
            "model", got=spec, expected="fcdnn, minilm, or a text model of Hugging Face",
            remedy="models without a tokenizer have no data here",
        )  # fmt: skip
    task = tasks.text_task(loaded, count=2 * samples, judged=BATCH, progress=False)
    # batches come sorted by length: every set takes all lengths
    return Subject(
        loaded.name, loaded.model, task.example_inputs, tuple(task.calibration[::2]),
        tuple(task.calibration[1::2]), tuple(task.validation[::2]),
    )  # fmt: skip


def _autoencoder(samples: int, seed: int) -> Subject:
    data = autoencoder.digits(seed)
    model = autoencoder.train_autoencoder(seed, data=data)

    def batches(pixels: torch.Tensor) -> tuple[Any, ...]:
        return tuple((part,) for part in pixels[:samples].split(BATCH))

    return Subject(
        "fcdnn", model, (data.calibration[:BATCH],), batches(data.calibration), batches(data.validation),
        batches(data.test),
    )  # fmt: skip

"""What a model of the demo is calibrated and judged on: text retrieval, pictures, or its own output alone.

A task is plain data plus ``score`` (a model's outputs on the judging half) and ``row`` (a score against the
original's, as a table row).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from torchcoinfer.bench import docstrings, retrieval
from torchcoinfer.errors import MissingExtra
from torchcoinfer.models import LoadedModel, SentenceEmbedder, default_inputs, default_output

Batch = dict[str, torch.Tensor] | tuple[torch.Tensor, ...]
Row = dict[str, Any]
MAX_TOKENS = 64
_IMAGE_SIZE = 224
_PICTURE_ACTIVATIONS = 10 << 20  # three feature maps of 256 x 56 x 56 float32: a residual block of ResNet-50
# ImageNet's channel means and deviations, which torchvision's models were trained with
_IMAGE_MEAN, _IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Task:
    """Data and judge of one model.

    Attributes:
        example_inputs: one run of the workload.
        calibration, validation: batches of the calibration half, disjoint.
        judged: what the judging half is, in words.
        latency_s, energy_j: ceilings of one run that a small device can just meet.
        activation_bytes: room that a side needs for activations beside its weights.
        score: (model, label of the progress bar) -> score.
        row: (score, score of the original) -> columns of the quality table.
    """

    example_inputs: Batch
    calibration: list[Batch]
    validation: list[Batch]
    judged: str
    score: Callable[[Callable[..., Any], str], Any]
    row: Callable[[Any, Any], Row]
    latency_s: float
    energy_j: float
    activation_bytes: int = 0


def task_for(
    loaded: LoadedModel, *, fast: bool = False, progress: bool = True, example: Batch | None = None
) -> Task:
    """Text for models with a tokenizer, pictures for torchvision's, random inputs for the rest."""
    if loaded.tokenizer is not None:
        sizes = (32, 160) if fast else (128, 2000)
        return text_task(loaded, count=sizes[0], judged=sizes[1], progress=progress)
    if loaded.name.startswith("torchvision:"):
        return picture_task(fast=fast, progress=progress)
    return random_task(loaded.model, example)


def text_task(loaded: LoadedModel, *, count: int, judged: int, progress: bool) -> Task:
    """Docstrings of the standard library: retrieval for a sentence embedder, output error for the rest.

    Args:
        count: docstrings to calibrate on, and as many to validate on.
        judged: pairs of the other half to judge on.
    """
    pairs = docstrings.standard_library_pairs(progress=progress)
    calibration, judging = docstrings.halves(pairs)
    batches = [
        batch
        for _, batch in retrieval.token_batches(
            loaded.tokenizer, [pair.document for pair in calibration[: 2 * count]], 16, MAX_TOKENS
        )
    ]
    # the demo's workload: one text of 32 tokens
    text = " ".join(pair.document for pair in calibration[:16])
    _, example = next(retrieval.token_batches(loaded.tokenizer, [text], 1, 32))
    # what all-MiniLM-L6-v2 (22.6 M parameters) needs; a larger encoder gets more in proportion
    scale = max(1.0, sum(parameter.numel() for parameter in loaded.model.parameters()) / 22.6e6)
    common = {
        "example_inputs": example,
        "calibration": batches[::2],
        "validation": batches[1::2],
        "latency_s": 0.02 * scale,
        "energy_j": 0.08 * scale,
    }
    judging = judging[:judged]
    if isinstance(loaded.model, SentenceEmbedder):
        queries, documents = [pair.query for pair in judging], [pair.document for pair in judging]

        def score(model: Callable[..., Any], label: str) -> retrieval.Judged:
            return retrieval.judge(model, loaded.tokenizer, queries, documents, label if progress else None)

        told = f"{len(judging)} docstrings of modules that calibration has not seen, asked for by name"
        return Task(**common, judged=told, score=score, row=_retrieval_row)
    held_out = [
        batch
        for _, batch in retrieval.token_batches(
            loaded.tokenizer, [pair.document for pair in judging[:160]], 16, MAX_TOKENS
        )
    ]
    told = f"{len(judging[:160])} docstrings of modules that calibration has not seen"
    return Task(**common, judged=told, score=_output_score(held_out, progress), row=_output_row)


def _retrieval_row(score: retrieval.Judged, original: retrieval.Judged) -> Row:
    gap = retrieval.paired(original.hit, score.hit)
    return {
        "cosine": f"{score.cosine_to(original):.4f}",
        "retrieval@1": f"{100 * score.retrieval_at_1:.1f} %",
        "paired difference": "-"
        if score is original
        else f"{100 * gap.difference:+.2f} ± {100 * gap.standard_error:.2f} %",
    }


def picture_task(*, fast: bool, progress: bool) -> Task:
    """Random crops of the sample pictures that matplotlib and scikit-learn ship, one half held out."""
    crops = _crops(_sample_pictures(), 24 if fast else 96)
    half = len(crops) // 2
    seen, held_out = crops[:half].split(8), crops[half:].split(8)
    example = (crops[:1],)
    calibration, validation = [(batch,) for batch in seen[::2]], [(batch,) for batch in seen[1::2]]
    score = _output_score([(batch,) for batch in held_out], progress)
    judged = f"{len(crops) - half} crops of sample pictures that calibration has not seen"
    return Task(
        example,
        calibration,
        validation,
        judged,
        score,
        _output_row,
        latency_s=0.2,
        energy_j=1.2,
        activation_bytes=_PICTURE_ACTIVATIONS,
    )


def _sample_pictures() -> list[np.ndarray]:
    """RGB pictures, uint8 [H, W, 3]."""
    try:
        import matplotlib.cbook
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("matplotlib", "report") from error
    paths = [Path(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))]
    try:
        from sklearn import datasets
    except ImportError:
        datasets = None  # two pictures less
    if datasets is not None:
        paths += [Path(datasets.__file__).parent / "images" / name for name in ("china.jpg", "flower.jpg")]
    return [np.asarray(Image.open(path).convert("RGB")) for path in paths if path.is_file()]


def _crops(pictures: list[np.ndarray], count: int) -> torch.Tensor:
    """Normalized float32 [count, 3, 224, 224]: squares of random size and place, from a fixed seed."""
    generator = np.random.default_rng(0)
    rows = []
    for index in range(count):
        picture = pictures[index % len(pictures)]
        side = int(generator.integers(_IMAGE_SIZE // 2, min(picture.shape[:2])))
        top = int(generator.integers(0, picture.shape[0] - side + 1))
        left = int(generator.integers(0, picture.shape[1] - side + 1))
        square = torch.from_numpy(picture[top : top + side, left : left + side].copy()).permute(2, 0, 1)
        rows.append(
            torch.nn.functional.interpolate(
                square[None].float() / 255.0, size=_IMAGE_SIZE, mode="bilinear", antialias=True
            )
        )
    mean, deviation = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (_IMAGE_MEAN, _IMAGE_STD))
    return (torch.cat(rows) - mean) / deviation


def random_task(model: torch.nn.Module, example: Batch | None = None) -> Task:
    """``example``, or the model's default inputs, with random values: distortion then means little."""
    example = default_inputs(model) if example is None else example
    batches = [_jittered(example, seed) for seed in range(24)]
    score = _output_score(batches[16:], progress=False)
    return Task(example, batches[:8], batches[8:16], "8 random inputs", score, _output_row, 1.0, 5.0)


def _jittered(inputs: Batch, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def fresh(value: torch.Tensor) -> torch.Tensor:
        return torch.randn(value.shape, generator=generator) if value.is_floating_point() else value

    if isinstance(inputs, Mapping):
        return {name: fresh(value) for name, value in inputs.items()}
    return tuple(fresh(value) for value in inputs)


def _output_score(batches: list[Batch], progress: bool) -> Callable[[Callable[..., Any], str], np.ndarray]:
    def score(model: Callable[..., Any], label: str) -> np.ndarray:
        """The judged output, float32, one flat row an input."""
        rows = []
        with torch.no_grad():
            for batch in tqdm(batches, desc=label, unit="batch", disable=not progress):
                named = isinstance(batch, Mapping)
                output = model(**batch) if named else model(*batch)
                judged = default_output(output, batch if named else None).float()
                rows.extend(judged.reshape(len(judged), -1).numpy())
        return rows

    return score


def _output_row(score: list[np.ndarray], original: list[np.ndarray]) -> Row:
    """Relative error of the output, mean cosine, and how often the largest entry stays the largest."""
    error = sum(float(np.sum((a - b) ** 2)) for a, b in zip(score, original))
    signal = sum(float(np.sum(b**2)) for b in original)
    cosine = [float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-30)) for a, b in zip(score, original)]
    same = [int(a.argmax() == b.argmax()) for a, b in zip(score, original)]
    return {
        "cosine": f"{np.mean(cosine):.4f}",
        "output error": f"{error / signal:.4f}",
        "same top-1": f"{100 * np.mean(same):.1f} %",
    }

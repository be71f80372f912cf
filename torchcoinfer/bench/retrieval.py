"""Embeddings of texts and what they are worth: retrieval@1, its paired difference, mean cosine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

FloatArray = NDArray[np.float32]
Batch = dict[str, torch.Tensor]


def token_batches(
    tokenizer: Any, texts: Sequence[str], batch_size: int, max_tokens: int = 64
) -> Iterator[tuple[list[int], Batch]]:
    """Batches of similar length: (indices into ``texts``, {input_ids, attention_mask} int64 [B, T])."""
    order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        coded = tokenizer(
            [texts[i] for i in chosen],
            padding=True,
            truncation=True,
            max_length=max_tokens,
            return_tensors="pt",
        )
        yield chosen, {"input_ids": coded["input_ids"], "attention_mask": coded["attention_mask"]}


def embed(
    model: Callable[..., torch.Tensor],
    tokenizer: Any,
    texts: Sequence[str],
    *,
    batch_size: int = 64,
    max_tokens: int = 64,
    label: str | None = None,
) -> FloatArray:
    """Unit-length embeddings [len(texts), D] of ``model(input_ids=..., attention_mask=...)`` -> [B, D].

    Args:
        label: text of the progress bar; None shows none.
    """
    rows: list[FloatArray | None] = [None] * len(texts)
    with torch.no_grad(), tqdm(total=len(texts), desc=label, unit="text", disable=label is None) as bar:
        for chosen, batch in token_batches(tokenizer, texts, batch_size, max_tokens):
            output = torch.nn.functional.normalize(model(**batch).float(), dim=-1).numpy()
            for index, row in zip(chosen, output):
                rows[index] = row
            bar.update(len(chosen))
    return np.stack(rows) if rows else np.zeros((0, 0), np.float32)


def hits(queries: FloatArray, documents: FloatArray) -> NDArray[np.bool_]:
    """Whether each query's nearest document by cosine is its own (row i answers query i); unit rows."""
    return np.argmax(queries @ documents.T, axis=1) == np.arange(len(queries))


@dataclass(frozen=True)
class Paired:
    """Difference of two systems on the same queries, b - a, and its standard error; shares, not percent."""

    difference: float
    standard_error: float

    @property
    def within_two(self) -> bool:
        return abs(self.difference) <= 2.0 * self.standard_error


def paired(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> Paired:
    """Mean of b_i - a_i and the standard error of that mean: queries that both get right cancel."""
    gaps = b.astype(np.float64) - a.astype(np.float64)
    return Paired(float(gaps.mean()), float(gaps.std(ddof=1) / np.sqrt(gaps.size)) if gaps.size > 1 else 0.0)


def mean_cosine(a: FloatArray, b: FloatArray) -> float:
    """Mean cosine of corresponding unit-length rows."""
    return float(np.mean(np.sum(a * b, axis=1)))


@dataclass(frozen=True)
class Judged:
    """A model's embeddings of the judging half and its hits.

    Attributes:
        queries, documents: unit-length rows [n, D].
        hit: [n].
    """

    queries: FloatArray
    documents: FloatArray
    hit: NDArray[np.bool_]

    @property
    def retrieval_at_1(self) -> float:
        return float(self.hit.mean())

    def cosine_to(self, other: Judged) -> float:
        """Mean cosine to another model's embeddings of the same documents."""
        return mean_cosine(self.documents, other.documents)


def judge(
    model: Callable[..., torch.Tensor],
    tokenizer: Any,
    queries: Sequence[str],
    documents: Sequence[str],
    label: str | None,
) -> Judged:
    """Embed queries and documents, and look which query finds its document."""
    embedded = embed(model, tokenizer, [*queries, *documents], label=label)
    first, second = embedded[: len(queries)], embedded[len(queries) :]
    return Judged(first, second, hits(first, second))

"""CIDEr-D (Vedantam, Zitnick, Parikh 2015), the score of the papers' captioning table."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from torchcoinfer.errors import ArgumentError

_LONGEST, _SIGMA, _SCALE = 4, 6.0, 10.0
Grams = Counter[tuple[str, ...]]


def words(caption: str) -> list[str]:
    """Lower-case words without punctuation, as the usual tokenizer leaves them."""
    return re.findall(r"[a-z0-9]+(?:'[a-z]+)?", caption.lower())


def _grams(caption: str) -> list[Grams]:
    """Counts of the n-grams for n = 1 ... 4."""
    own = words(caption)
    return [Counter(tuple(own[i : i + n]) for i in range(len(own) - n + 1)) for n in range(1, _LONGEST + 1)]


def cider_d(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """CIDEr-D of each candidate; tables show 100 times the mean.

    Document frequencies are those of ``references`` themselves, as in the usual implementation, so a score
    belongs to its set of pictures.

    Args:
        candidates: picture -> caption.
        references: picture -> captions by people, at least one.

    Raises:
        ArgumentError: a candidate without references.
    """
    missing = sorted(name for name in candidates if not references.get(name))
    if missing:
        raise ArgumentError(
            "captions cannot be judged without references", got=missing[:5], expected="a caption a picture"
        )
    counted = {name: [_grams(text) for text in texts] for name, texts in references.items()}
    seen: Counter[tuple[str, ...]] = Counter()
    for own in counted.values():
        seen.update({gram for grams in own for one in grams for gram in one})
    pictures = math.log(len(references))

    def weighed(grams: list[Grams]) -> list[dict[tuple[str, ...], float]]:
        return [
            {gram: count * (pictures - math.log(max(1, seen[gram]))) for gram, count in one.items()}
            for one in grams
        ]

    scores = {}
    for name, text in candidates.items():
        own, length = weighed(_grams(text)), len(words(text))
        parts = []
        for reference, told in zip(counted[name], references[name], strict=True):
            penalty = math.exp(-((length - len(words(told))) ** 2) / (2.0 * _SIGMA**2))
            pairs = zip(own, weighed(reference), strict=True)
            parts.append(penalty * sum(_similarity(a, b) for a, b in pairs) / _LONGEST)
        scores[name] = _SCALE * sum(parts) / len(parts)
    return scores


def _similarity(own: Mapping[tuple, float], other: Mapping[tuple, float]) -> float:
    """Cosine with the candidate's weights clipped to the reference's, so that repetition does not pay."""
    norms = (math.sqrt(sum(v * v for v in side.values())) for side in (own, other))
    product = math.prod(norms)
    if product == 0.0:
        return 0.0
    return (
        sum(min(value, other.get(gram, 0.0)) * other.get(gram, 0.0) for gram, value in own.items()) / product
    )

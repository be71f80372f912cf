"""Do conformal levels cover what they promise? Tried on random splits of measured errors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from torchcoinfer.measure import Unavailable, certify

SPLITS = 200


def kappa_coverage(
    predicted: Sequence[float], measured: Sequence[float], alpha: float, seed: int = 0
) -> dict[str, float]:
    """Share of one half of the configurations that κ of the other half covers, over random splits."""
    ratio = np.array(measured) / np.array(predicted)
    return _covered("kappa_", split_coverages(ratio, alpha, seed, SPLITS))


def certified_coverage(errors: np.ndarray, alpha: float, seed: int = 0) -> dict[str, float]:
    """Share of one half of the samples that the other half's certificate covers, over random splits.

    Args:
        errors: per configuration and sample, [configurations, samples]; every split takes one configuration.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(errors), size=SPLITS)
    shares = [share for s, row in enumerate(chosen) for share in split_coverages(errors[row], alpha, s, 1)]
    return _covered("", shares)


def split_coverages(values: np.ndarray, alpha: float, seed: int, splits: int) -> list[float]:
    """Share of one random half at or below the certificate of the other half, per split."""
    rng, half = np.random.default_rng(seed), len(values) // 2
    shares = []
    for _ in range(splits):
        order = rng.permutation(len(values))
        level = certify(values[order[:half]].tolist(), alpha)
        if not isinstance(level, Unavailable):
            shares.append(float((values[order[half:]] <= level).mean()))
    return shares


def _covered(prefix: str, shares: Sequence[float]) -> dict[str, float]:
    if not shares:
        return {}
    error = float(np.std(shares) / len(shares) ** 0.5)
    return {f"{prefix}coverage": float(np.mean(shares)), f"{prefix}coverage_se": error}

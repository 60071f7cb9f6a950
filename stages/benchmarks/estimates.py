"""Figures with their uncertainty: bootstrap over rows within subtasks (Efron and Tibshirani 1993, chapter 13)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from stages.benchmarks.benchmark import Aggregate

CHUNK = 4_000_000
"""Values drawn at a time."""


class Estimate(NamedTuple):
    """A figure and what it is on bootstrap samples of its rows."""

    value: float
    draws: np.ndarray
    """float64 (resamples,)."""
    n: int
    """Rows."""

    def limits(self, confidence: float) -> tuple[float | None, float | None]:
        """The percentile interval; none for a single row."""
        if self.n < 2:
            return None, None
        tail = (1 - confidence) / 2
        low, high = np.quantile(self.draws, [tail, 1 - tail])
        return float(low), float(high)


def mean(values: Sequence[Any]) -> float:
    """The mean of numbers."""
    return float(np.mean(np.asarray(values, dtype=np.float64)))


def estimate(values: Sequence[Any], aggregate: Aggregate = mean, *, resamples: int, seed: int) -> Estimate:
    """A figure over the values of rows, one value a row: numbers for `mean`, whatever `aggregate` takes for another."""
    rng = np.random.default_rng(seed)
    count = len(values)
    value = float(aggregate(values))
    if aggregate is mean:
        numbers = np.asarray(values, dtype=np.float64)
        step = max(1, CHUNK // count)
        parts = [
            numbers[rng.integers(count, size=(min(step, resamples - at), count))].mean(axis=1)
            for at in range(0, resamples, step)
        ]
        return Estimate(value, np.concatenate(parts), count)
    drawn = (rng.integers(count, size=count).tolist() for _ in range(resamples))
    return Estimate(value, np.array([aggregate([values[at] for at in chosen]) for chosen in drawn]), count)


def weighted(estimates: Sequence[Estimate], weights: Sequence[float] | None = None) -> Estimate:
    """The weighted mean of figures on different rows; equal weights by default."""
    shares = np.asarray(weights if weights is not None else [1.0] * len(estimates), dtype=np.float64)
    shares = shares / shares.sum()
    value = float(shares @ np.array([one.value for one in estimates]))
    draws = shares @ np.stack([one.draws for one in estimates])
    return Estimate(value, draws, sum(one.n for one in estimates))

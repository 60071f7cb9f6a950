"""Scores of all rows into the figures of metrics/judge.json, with intervals; also by category and by length."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import bootstrap


class Scored(NamedTuple):
    """One row of data/scores.parquet."""

    id: str
    category: str | None
    score: float | None
    base_score: float | None
    win: float | None
    """1: the fine-tuned answer is better than the base model's; 0.5: neither is; 0: the base model's is."""
    exact_match: float
    token_f1: float
    rouge_l: float
    base_exact_match: float
    base_token_f1: float
    base_rouge_l: float
    words: float
    """Length of the fine-tuned model's answer."""
    opponent_win: float | None
    """The same against another experiment's answer, where the judge was asked for that."""


LENGTHS = ((0, "empty"), (5, "1 to 5 words"), (20, "6 to 20 words"), (60, "21 to 60 words"), (math.inf, "longer"))
"""Groups of answers by their length: the most words of each, and its name."""


def interval(values: np.ndarray, confidence: float, resamples: int, seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of float (n,) values, n at least 2 (Efron 1979)."""
    found = bootstrap(
        (values,), np.mean, confidence_level=confidence, n_resamples=resamples, method="percentile", rng=seed
    ).confidence_interval
    return float(found.low), float(found.high)


def win(score: float | None, base_score: float | None) -> float | None:
    """1, 0.5 or 0 for the fine-tuned answer; None where either has no score."""
    if score is None or base_score is None:
        return None
    return 1.0 if score > base_score else 0.5 if score == base_score else 0.0


def summarize(rows: Sequence[Scored], *, confidence: float, resamples: int, seed: int) -> dict[str, Any]:
    """All figures over all rows, and again under `by_category` and `by_length`; invalid verdicts are only counted."""
    knobs: dict[str, Any] = {"confidence": confidence, "resamples": resamples, "seed": seed}
    categories = sorted({row.category for row in rows if row.category})
    by_category = {name: _figures([row for row in rows if row.category == name], **knobs) for name in categories}
    by_length = {name: _figures(group, **knobs) for _, name in LENGTHS if (group := _of_length(rows, name))}
    return _figures(rows, **knobs) | {"by_category": by_category, "by_length": by_length}


def _of_length(rows: Sequence[Scored], name: str) -> list[Scored]:
    return [row for row in rows if next(group for most, group in LENGTHS if row.words <= most) == name]


COLUMNS = {"score": "score", "win_rate": "win", "opponent_win_rate": "opponent_win", "base_score": "base_score"}


def _figures(rows: Sequence[Scored], *, confidence: float, resamples: int, seed: int) -> dict[str, Any]:
    figures: dict[str, Any] = {"rows": len(rows)}
    for name, column in COLUMNS.items():
        values = np.array([getattr(row, column) for row in rows if getattr(row, column) is not None])
        if not len(values):  # not one readable verdict: there is no figure to give
            continue
        figures[name] = _round(values.mean())
        if name != "base_score" and len(values) > 1:
            low, high = interval(values, confidence, resamples, seed)
            figures |= {f"{name}_low": _round(low), f"{name}_high": _round(high)}
    verdicts = [score for row in rows for score in (row.score, row.base_score)]
    figures["invalid_fraction"] = _round(sum(score is None for score in verdicts) / len(verdicts))
    for name in ("exact_match", "token_f1", "rouge_l"):
        for prefix in ("", "base_"):
            figures[prefix + name] = _round(np.mean([getattr(row, prefix + name) for row in rows]))
    return figures


def _round(value: float) -> float:
    return round(float(value), 4)

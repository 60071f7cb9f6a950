"""Weights of the embedded judge's signals, fitted on answers of known worth."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from stages.judging.corruption import known_answers
from stages.judging.embedded import SIGNALS, measure
from stages.judging.responses import Response

WORTH = {
    "reference": 1.0,
    "reworded": 1.0,
    "other_row": 0.0,
    "changed_fact": 0.3,
    "truncated": 0.5,
    "empty": 0.0,
    "base_elsewhere": 0.0,
}
"""What an answer of each kind should score; the two in the middle are a choice: partly right, but not good."""


def fit(rows: Sequence[Response], model: Path, limit: int, seed: int) -> dict[str, float]:
    """Non-negative least squares (Lawson and Hanson 1974) of worth on signals, scaled to add up to 1."""
    known = known_answers(rows, limit, seed)
    signals = measure([k.row for k in known], [k.answer for k in known], model)
    weights, _ = nnls(signals, np.array([WORTH[k.kind] for k in known]))
    weights /= weights.sum()
    return {name: round(float(weight), 3) for name, weight in zip(SIGNALS, weights, strict=True)}

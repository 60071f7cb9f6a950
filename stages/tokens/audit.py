"""The label audit: what a run will be trained on, counted from the arrays themselves."""

from typing import Any

import numpy as np

from stages.tokens.arrays import NO_EXAMPLE
from stages.tokens.labels import IGNORE_INDEX
from stages.tokens.split_tokens import SplitTokens


def audit(split: SplitTokens, end_of_text: int) -> dict[str, Any]:
    """Figures of one split for metrics/tokens.json; fractions are rounded to six digits.

    `eos_trained_fraction` is the share of examples whose end-of-text carries a loss: below 1 a model does not learn to
    stop.
    """
    arrays = split.arrays
    real = arrays.example != NO_EXAMPLE
    trained_ends = (arrays.labels == end_of_text) & real
    last = np.zeros(len(arrays.ids), dtype=bool)
    last[arrays.example[trained_ends]] = True
    return {
        "examples": len(arrays.ids),
        "rows": int(real.shape[0]),
        "tokens": int(real.sum()),
        "supervised_tokens": int((arrays.labels != IGNORE_INDEX).sum()),
        "padding_fraction": round(float(1 - real.mean()), 6),
        "truncated": split.truncated,
        "dropped": len(split.dropped),
        "eos_trained_fraction": round(float(last.mean()), 6),
    }

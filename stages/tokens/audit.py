"""The label audit: what a run will be trained on, counted from the arrays themselves."""

from typing import Any

import numpy as np

from stages.tokens.arrays import NO_EXAMPLE, ROWS_AT_ONCE, TokenArrays
from stages.tokens.labels import IGNORE_INDEX
from stages.tokens.split_tokens import SplitTokens


def audit(split: SplitTokens, arrays: TokenArrays, end_of_text: int) -> dict[str, Any]:
    """Figures of one split for metrics/tokens.json; fractions are rounded to six digits.

    `eos_trained_fraction` is the share of examples whose last target is an end-of-text that carries a loss: below 1 a
    model does not learn to stop.
    """
    num_rows, width = arrays.example.shape
    tokens = supervised = 0
    ends = np.zeros(len(arrays.ids), dtype=bool)
    for start in range(0, num_rows, ROWS_AT_ONCE):
        block = slice(start, start + ROWS_AT_ONCE)
        example, labels = np.asarray(arrays.example[block]), np.asarray(arrays.labels[block])
        real = example != NO_EXAMPLE
        tokens += int(real.sum())
        supervised += int((labels != IGNORE_INDEX).sum())
        following = np.full_like(example, NO_EXAMPLE)
        following[:, :-1] = example[:, 1:]
        ends[example[(example != following) & (labels == end_of_text)]] = True
    return {
        "examples": len(arrays.ids),
        "rows": num_rows,
        "tokens": tokens,
        "supervised_tokens": supervised,
        "padding_fraction": round(1 - tokens / (num_rows * width), 6),
        "truncated": int(split.examples.truncated.sum()),
        "dropped": len(split.dropped),
        "eos_trained_fraction": round(float(ends.mean()), 6),
    }

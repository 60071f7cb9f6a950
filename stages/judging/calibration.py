"""Weights of the embedded judge's signals, fitted on answers of known worth."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import lsq_linear

from stages.instructions.prompts import Prompt
from stages.judging.corruption import Known, choose_rows, known_answers
from stages.judging.embedded import SIGNALS, measure
from stages.judging.responses import Response
from stages.judging.signals import key_words, word_similarity

WORTH = {
    "reference": 1.0,
    "reworded": 1.0,
    "restated": 1.0,
    "other_row": 0.0,
    "near_row": 0.0,
    "echo": 0.0,
    "base_elsewhere": 0.0,
    "injected": 0.0,
    "changed_fact": 0.3,
    "half_wrong": 0.3,
    "truncated": 0.5,
}
"""What an answer of each kind should score; those between 0 and 1 are a choice: partly right, but not good.

Empty answers are left out: they score 0 by rule.
"""


def as_rows(prompts: Sequence[Prompt]) -> list[Response]:
    """Prompts of a split as rows that no model has answered."""
    return [Response(p.id, p.category, p.question, p.input, p.response, "", "stop", "", "stop") for p in prompts]


BOUNDS = {"word_similarity": (0.35, 1.0), "key_words": (0.0, 0.35), "numbers": (0.1, 1.0), "no_swaps": (0.0, 0.2)}
"""Least and greatest weight of a signal; others may have any. A choice, against fitting the recipe of `examples`.

Left free, no_swaps takes nearly all: made answers differ from the reference in one place, and it was made to see that.
Real wrong answers differ as a whole, and are fluent; wrong numbers are rarer among made answers than among real ones.
"""


def fit(rows: Sequence[Response], model: Path, *, limit: int, seed: int) -> dict[str, float]:
    """Least squares of worth on signals within BOUNDS, weights adding up to 1 (scipy.optimize.lsq_linear).

    `rows` are not those of the card: weights fitted on the rows they are tried on would flatter the judge.
    """
    known = [k for k in examples(rows, limit, seed) if k.kind in WORTH]
    signals = measure([k.row for k in known], [k.answer for k in known], model)
    weights = bounded_fit(signals, np.array([WORTH[k.kind] for k in known]), [BOUNDS.get(s, (0, 1)) for s in SIGNALS])
    return {name: round(float(weight), 3) for name, weight in zip(SIGNALS, weights, strict=True)}


def bounded_fit(signals: np.ndarray, worth: np.ndarray, bounds: Sequence[tuple[float, float]]) -> np.ndarray:
    """Weights (signal,) within `bounds`, adding up to 1, of float (answer, signal) against worth (answer,).

    Their sum is one more equation, far heavier than all others together.
    """
    heavy = 1e3 * len(worth)
    equations = np.vstack([signals, np.full(signals.shape[1], heavy)])
    low, high = np.array(bounds, dtype=float).T
    weights = lsq_linear(equations, np.append(worth, heavy), bounds=(low, high)).x
    return np.asarray(weights / weights.sum())


def examples(rows: Sequence[Response], limit: int, seed: int) -> list[Known]:
    """The card's kinds of answers, and four that the card does not know, so that the fit is to more than its recipe.

    - restated: the question, then the wanted response: right, and long.
    - near_row: of all wanted responses to other rows of the category, the likest: one template, other facts.
    - echo: the question itself, as weak models answer. half_wrong: half the wanted response, half of near_row.
    """
    known = known_answers(rows, limit, seed)
    for at in choose_rows(rows, limit):
        row = rows[at]
        known.append(Known(row, "restated", f"{row.instruction} {row.reference}"))
        known.append(Known(row, "echo", row.input or row.instruction))
        others = [r.reference for r in rows if r.category == row.category and r.reference != row.reference]
        if others:
            near = max(others, key=lambda other: (word_similarity(other, row), key_words(other, row), other))
            words, others_words = row.reference.split(" "), near.split(" ")
            known.append(Known(row, "near_row", near))
            if len(words) > 3:
                half = [*words[: len(words) // 2], *others_words[len(others_words) // 2 :]]
                known.append(Known(row, "half_wrong", " ".join(half)))
    return known

"""Scores of two experiments on the same rows: is one better, and on which rows did they differ most?"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import permutation_test

from stages.judging.summary import interval

FEWEST = 5
"""Rows of a category that is compared by itself."""

SAME_SCORE = 0.5
"""Points of 100 by which a judge's score of one answer may differ, between machines and beside other answers."""

Figures = dict[str, Any]


class Answered(NamedTuple):
    """One row of an experiment."""

    asked: tuple[str, str, str]
    """Instruction, input and reference."""
    category: str | None
    response: str
    score: float | None
    base_response: str
    base_score: float | None


Rows = Mapping[str, Answered]
"""The rows of an experiment by id."""


class Difference(NamedTuple):
    """A row that both experiments answered."""

    id: str
    first: Answered
    second: Answered
    change: float
    """Score of the second less that of the first."""


def compare_scores(first: Rows, second: Rows, *, confidence: float, resamples: int, seed: int) -> Figures:
    """All figures of two experiments over the rows that both answered and a judge scored; if none, counts alone.

    Differences are the second's less the first's. The p value is of a paired randomization test: under the null
    hypothesis each row's difference could as well have the other sign (Pitman 1937; recommended for paired scores by
    Smucker, Allan and Carterette 2007, doi:10.1145/1321440.1321528, and Dror et al. 2018, doi:10.18653/v1/P18-1128).
    """
    knobs: dict[str, Any] = {"confidence": confidence, "resamples": resamples, "seed": seed}
    shared = [id for id in first if id in second]
    alike = [id for id in shared if first[id].asked == second[id].asked]
    rows = differences(first, second)
    counts = {
        "compared": len(rows),
        "only_a": len(first) - len(shared),
        "only_b": len(second) - len(shared),
        "other_reference": len(shared) - len(alike),
        "unscored": len(alike) - len(rows),
    }
    if not rows:
        return {"rows": counts}
    categories = sorted({row.first.category for row in rows if row.first.category})
    by_category = {name: [row for row in rows if row.first.category == name] for name in categories}
    return {
        "rows": counts,
        "identical": _identical(first, second),
        "judge_changed": _judge_changed(first, second),
        **knobs,
        **_paired(rows, **knobs),
        "p_value": _p_value(np.array([row.change for row in rows]), resamples, seed),
        "by_category": {name: _paired(own, **knobs) for name, own in by_category.items() if len(own) >= FEWEST},
    }


def differences(first: Rows, second: Rows) -> list[Difference]:
    """Rows with the same id, instruction and reference that are scored in both, in the first's order."""
    found = []
    for id, row in first.items():
        other = second.get(id)
        if other is None or other.asked != row.asked or row.score is None or other.score is None:
            continue
        found.append(Difference(id, row, other, other.score - row.score))
    return found


def most_changed(rows: Sequence[Difference], number: int) -> tuple[list[Difference], list[Difference]]:
    """The `number` rows that fell most and that rose most from the first experiment to the second, worst first."""
    ordered = sorted(rows, key=lambda row: (row.change, row.id))
    fell = [row for row in ordered if row.change < 0][:number]
    rose = [row for row in reversed(ordered) if row.change > 0][:number]
    return fell, rose


def as_json(rows: Sequence[Difference]) -> list[Figures]:
    """Rows for a machine to read."""
    return [
        {
            "id": row.id,
            "category": row.first.category,
            "change": _round(row.change),
            "instruction": row.first.asked[0],
            "input": row.first.asked[1],
            "reference": row.first.asked[2],
            "a": {"score": row.first.score, "response": row.first.response},
            "b": {"score": row.second.score, "response": row.second.response},
        }
        for row in rows
    ]


def _paired(rows: Sequence[Difference], **knobs: Any) -> Figures:
    change = np.array([row.change for row in rows])
    figures: Figures = {
        "num_rows": len(rows),
        "score_a": _round(float(np.mean([row.first.score for row in rows]))),
        "score_b": _round(float(np.mean([row.second.score for row in rows]))),
        "difference": _round(float(change.mean())),
        "difference_low": None,
        "difference_high": None,
        "wins_b": int((change > 0).sum()),
        "wins_a": int((change < 0).sum()),
        "ties": int((change == 0).sum()),
    }
    if len(rows) > 1:
        low, high = interval(change, **knobs)
        figures |= {"difference_low": _round(low), "difference_high": _round(high)}
    return figures


def _p_value(change: np.ndarray, resamples: int, seed: int) -> float | None:
    if len(change) < 2:
        return None
    found = permutation_test(
        (change,), np.mean, permutation_type="samples", vectorized=True, n_resamples=resamples, batch=1000, rng=seed
    )
    return float(f"{found.pvalue:.4g}")


def _identical(first: Rows, second: Rows) -> bool:
    sides = [{id: (row.asked, row.response, row.score) for id, row in side.items()} for side in (first, second)]
    return sides[0] == sides[1]


def _judge_changed(first: Rows, second: Rows) -> bool:
    """The same base answer has two scores, as with other weights or another model behind the judge's name."""
    return any(
        abs(row.base_score - other.base_score) > SAME_SCORE
        for id, row in first.items()
        if (other := second.get(id)) is not None
        and (row.asked, row.base_response) == (other.asked, other.base_response)
        and row.base_score is not None
        and other.base_score is not None
    )


def _round(value: float) -> float:
    return round(value, 4)

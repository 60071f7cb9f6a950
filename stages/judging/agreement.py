"""People's reviews held against the judges, and against each other: the figures of metrics/reviews.json."""

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

from stages.judging.reviews import VOTES, Review
from stages.judging.verdicts import Said
from stages.pipeline.tables import drawn, one_line

FEWEST = 3
"""Rows from which a rank correlation is given: two always correlate by 1 or -1."""

Figures = dict[str, Any]


class Graded(NamedTuple):
    """A judge's words on the rows, by id."""

    scores: dict[str, float]
    """0 to 100."""
    preferences: dict[str, float]
    """1, 0.5 or 0 for the fine-tuned answer against the base model's."""


def graded_by_judge(verdicts: Sequence[Said]) -> dict[str, Graded]:
    """What every judge said of the fine-tuned answers, in the judges' order; unreadable verdicts are left out."""
    judges = {said.judge: Graded({}, {}) for said in verdicts}
    for said in verdicts:
        if said.score is None:
            continue
        if said.task == "grade" and said.answer == "response":
            judges[said.judge].scores[said.id] = said.score
        elif said.task == "pairwise" and said.answer == "base":
            judges[said.judge].preferences[said.id] = said.score
    return judges


def summarize_reviews(reviews: Sequence[Review], judges: Mapping[str, Graded]) -> Figures:
    """Figures of metrics/reviews.json: each reviewer and all together beside each judge, and reviewers in pairs.

    Together, every rating is one observation of the agreement; the mean and the rank correlation are over rows, each
    with the mean of its ratings.
    """
    ordered = sorted(reviews, key=lambda review: review.reviewer)
    return {
        "responses": ordered[0].responses,
        "reviewers": {review.reviewer: _figures([review], judges) for review in ordered},
        "together": _figures(ordered, judges),
        "between": [_between(*pair) for pair in itertools.combinations(ordered, 2)],
    }


def _figures(reviews: Sequence[Review], judges: Mapping[str, Graded]) -> Figures:
    ratings = [(id, score) for review in reviews for id, score in review.ratings.items()]
    votes = [(id, VOTES[vote]) for review in reviews for id, vote in sorted(review.votes.items())]
    by_row: dict[str, list[float]] = {}
    for id, score in ratings:
        by_row.setdefault(id, []).append((score - 1) / 4 * 100)
    means = {id: fmean(scores) for id, scores in by_row.items()}
    results = [vote for _, vote in votes]
    return {
        "rows": len(means),
        "ratings": len(ratings),
        "score": _number(fmean(list(means.values()))) if means else None,
        "judges": {name: _beside_judge(ratings, means, judge.scores) for name, judge in judges.items()},
        "votes": len(votes),
        "wins": results.count(1.0),
        "losses": results.count(0.0),
        "ties": results.count(0.5),
        "win_rate": _number(fmean(results)) if results else None,
        "vote_judges": {name: _votes_beside(votes, judge.preferences) for name, judge in judges.items()},
    }


def _beside_judge(
    ratings: Sequence[tuple[str, int]], means: Mapping[str, float], scores: Mapping[str, float]
) -> Figures:
    both = [id for id in means if id in scores]
    pairs = [(rating, five_points(scores[id])) for id, rating in ratings if id in scores]
    return {
        "rows": len(both),
        "judge_score": _number(fmean([scores[id] for id in both])) if both else None,
        "spearman": spearman([means[id] for id in both], [scores[id] for id in both]),
    } | agreement(pairs)


def _votes_beside(votes: Sequence[tuple[str, float]], preferences: Mapping[str, float]) -> Figures:
    pairs = [(vote, preferences[id]) for id, vote in votes if id in preferences]
    decided = [(vote, said) for vote, said in pairs if 0.5 not in (vote, said)]
    return {
        "rows": len(pairs),
        "agreement": _share([vote == said for vote, said in pairs]),
        "decided_rows": len(decided),
        "decided_agreement": _share([vote == said for vote, said in decided]),
    }


def _between(first: Review, second: Review) -> Figures:
    both = [id for id in first.ratings if id in second.ratings]
    votes = [(VOTES[vote], VOTES[second.votes[id]]) for id, vote in sorted(first.votes.items()) if id in second.votes]
    pairs = [(first.ratings[id], second.ratings[id]) for id in both]
    return {
        "reviewers": [first.reviewer, second.reviewer],
        "rows": len(both),
        "spearman": spearman([one for one, _ in pairs], [other for _, other in pairs]),
        **agreement(pairs),
        "votes": len(votes),
        "vote_agreement": _share([one == other for one, other in votes]),
    }


def five_points(score: float) -> int:
    """A score from 0 to 100 on the scale of people, 1 to 5; halves go up.

    >>> [five_points(score) for score in (0, 12.4, 12.5, 50, 100)]
    [1, 1, 2, 3, 5]
    """
    return math.floor(score / 100 * 4 + 1.5)


def agreement(pairs: Sequence[tuple[int, int]]) -> Figures:
    """Of ratings from 1 to 5 in pairs: the shares that agree exactly and within 1, and Cohen's kappa.

    Kappa (1960), and with quadratic weights (1968), is None where chance alone would agree always.
    """
    return {
        "exact": _share([one == other for one, other in pairs]),
        "within_one": _share([abs(one - other) <= 1 for one, other in pairs]),
        "kappa": _kappa(pairs, None),
        "kappa_weighted": _kappa(pairs, "quadratic"),
    }


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Rank correlation; None for fewer than `FEWEST` rows, or where a side is constant."""
    if len(one) < FEWEST or len(set(one)) == 1 or len(set(other)) == 1:
        return None
    return _number(spearmanr(one, other).statistic)


def _kappa(pairs: Sequence[tuple[int, int]], weights: str | None) -> float | None:
    if not pairs:
        return None
    with warnings.catch_warnings():  # 0 / 0, told by NaN
        warnings.simplefilter("ignore")
        return _number(cohen_kappa_score(*zip(*pairs, strict=True), labels=range(1, 6), weights=weights))


def _share(agree: Sequence[bool]) -> float | None:
    return _number(fmean(agree)) if agree else None


def _number(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None


# ---- shown


def headlines(figures: Figures) -> dict[str, float]:
    """The numbers of all reviewers together for MLflow, those of a judge with its name behind a point."""
    together = figures["together"]
    found = {f"human_{name}": together[name] for name in ("score", "rows", "ratings", "win_rate", "votes")}
    found["human_reviewers"] = len(figures["reviewers"])
    for judge, beside in together["judges"].items():
        for name in ("spearman", "exact", "within_one", "kappa", "kappa_weighted"):
            found[f"human_{name}.{judge}"] = beside[name]
        found[f"human_vote_agreement.{judge}"] = together["vote_judges"][judge]["agreement"]
    return {name: value for name, value in found.items() if value is not None}


def table_of(figures: Figures) -> str:
    """A line for each reviewer and judge, and for all reviewers together where there are several."""
    table = Table("Reviewer", "Rows", "Score", "Judge", "Judge's", box=None, pad_edge=False)
    for name in ("Spearman", "Exact", "Within 1", "Kappa", "Weighted", "Votes", "Agree"):
        table.add_column(name, justify="right")
    lines = list(figures["reviewers"].items())
    if len(lines) > 1:
        lines.append(("together", figures["together"]))
    for reviewer, own in lines:
        for judge, beside in own["judges"].items():
            values = [beside[name] for name in ("spearman", "exact", "within_one", "kappa", "kappa_weighted")]
            table.add_row(
                Text(one_line(reviewer, 24)),
                str(own["rows"]),
                _shown(own["score"], 1),
                Text(judge),
                _shown(beside["judge_score"], 1),
                *(_shown(value, 2) for value in values),
                f"{own['wins']}-{own['losses']}-{own['ties']}",
                _shown(own["vote_judges"][judge]["agreement"], 2),
            )
    return drawn(table)


def _shown(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"

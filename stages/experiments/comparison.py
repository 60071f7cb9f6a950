"""Two experiments on the same rows: is one better, and on which rows did they differ most?"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import permutation_test

from stages.experiments.revisions import AbsentError, locate
from stages.judging.summary import interval
from stages.judging.verdicts import read_verdicts
from stages.pipeline.errors import UserError
from stages.pipeline.files import read_json, read_parquet

FEWEST = 5
"""Rows of a category that is compared by itself."""

SAME_SCORE = 0.01
"""Points of 100 by which a judge's score of one answer may differ between machines."""

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


class Experiment(NamedTuple):
    """What is compared of an experiment."""

    name: str
    rows: dict[str, Answered]
    judge: str | None
    """Whose scores they are; None: not known."""
    judged: Figures
    finetuned: Figures
    """metrics/judge.json and metrics/finetune.json; empty: there is none."""


class Difference(NamedTuple):
    """A row that both experiments answered."""

    id: str
    first: Answered
    second: Answered
    change: float
    """Score of the second less that of the first."""


def read_experiment(place: str, into: Path, advance: Callable[[], object] = lambda: None) -> Experiment:
    """Read an experiment (see `locate`); `advance` is called after each of its `NUM_FILES` files.

    Raises:
        UserError: there is no such experiment, it was not judged, or its files are damaged.
    """

    def find(path: str) -> Path | None:
        try:
            return locate(place, path, into)
        except AbsentError:
            return None
        finally:
            advance()

    def needed(path: str) -> list[dict[str, Any]]:
        found = find(path)
        if found is None:
            raise UserError(f"{place}: not judged: it holds no {path}; run `dvc repro` there")
        return read_parquet(found)

    scores = {row["id"]: row for row in needed("data/scores.parquet")}
    responses = needed("data/responses.parquet")
    verdicts, judged, finetuned = map(find, ("data/verdicts.parquet", "metrics/judge.json", "metrics/finetune.json"))
    try:
        rows = {
            row["id"]: Answered(
                (row["instruction"], row["input"], row["reference"]),
                row["category"],
                row["response"],
                scores.get(row["id"], {}).get("score"),
                row["base_response"],
                scores.get(row["id"], {}).get("base_score"),
            )
            for row in responses
        }
    except KeyError as error:
        raise UserError(f"{place}: data/responses.parquet has no column {error}; is it of this pipeline?") from None
    judge = (
        next((said.judge for said in read_verdicts(verdicts)[0] if said.task == "grade"), None) if verdicts else None
    )
    figures = [read_json(path) if path else {} for path in (judged, finetuned)]
    return Experiment(place, rows, judge, *figures)


NUM_FILES = 5
"""That `read_experiment` looks for."""


def compare(first: Experiment, second: Experiment, *, confidence: float, resamples: int, seed: int) -> Figures:
    """All figures of two experiments, `a` and `b`, over the rows that both answered and a judge scored.

    Differences are the second's less the first's. The p value is of a paired randomization test: under the null
    hypothesis each row's difference could as well have the other sign (Pitman 1937; recommended for paired scores by
    Smucker, Allan and Carterette 2007, doi:10.1145/1321440.1321528, and Dror et al. 2018, doi:10.18653/v1/P18-1128).

    Raises:
        UserError: no row can be compared.
    """
    knobs: dict[str, Any] = {"confidence": confidence, "resamples": resamples, "seed": seed}
    shared = [id for id in first.rows if id in second.rows]
    alike = [id for id in shared if first.rows[id].asked == second.rows[id].asked]
    rows = differences(first, second)
    if not rows:
        raise UserError(
            f"{first.name} and {second.name}: no row to compare: of {len(first.rows)} and {len(second.rows)} rows "
            f"{len(shared)} have the same id, {len(alike)} the same instruction and reference too, and none is scored "
            "in both; were they judged on the same test split?"
        )
    categories = sorted({row.first.category for row in rows if row.first.category})
    by_category = {name: [row for row in rows if row.first.category == name] for name in categories}
    return {
        "a": _about(first),
        "b": _about(second),
        "rows": {
            "compared": len(rows),
            "only_a": len(first.rows) - len(shared),
            "only_b": len(second.rows) - len(shared),
            "other_reference": len(shared) - len(alike),
            "unscored": len(alike) - len(rows),
        },
        "identical": _identical(first, second),
        **knobs,
        **_paired(rows, **knobs),
        "p_value": _p_value(np.array([row.change for row in rows]), resamples, seed),
        "by_category": {name: _paired(own, **knobs) for name, own in by_category.items() if len(own) >= FEWEST},
        "warnings": _warnings(first, second),
    }


def differences(first: Experiment, second: Experiment) -> list[Difference]:
    """Rows with the same id, instruction and reference that are scored in both, in the first's order."""
    found = []
    for id, row in first.rows.items():
        other = second.rows.get(id)
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


def _about(experiment: Experiment) -> Figures:
    judged, finetuned = experiment.judged, experiment.finetuned
    return {
        "name": experiment.name,
        "judge": experiment.judge,
        "judge_auc": judged.get("judge_auc"),
        "judge_reliable": judged.get("judge_reliable"),
        "overfit_epoch": finetuned.get("overfit_epoch"),
        "overfit_confirmed": finetuned.get("overfit_confirmed"),
        "best_epoch": finetuned.get("best_epoch"),
    }


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


def _identical(first: Experiment, second: Experiment) -> bool:
    sides = [{id: (row.asked, row.response, row.score) for id, row in side.rows.items()} for side in (first, second)]
    return sides[0] == sides[1]


def _judge_changed(first: Experiment, second: Experiment) -> bool:
    """The same base answer has two scores, as with other weights or another model behind the judge's name."""
    return any(
        abs(row.base_score - other.base_score) > SAME_SCORE
        for id, row in first.rows.items()
        if (other := second.rows.get(id)) is not None
        and (row.asked, row.base_response) == (other.asked, other.base_response)
        and row.base_score is not None
        and other.base_score is not None
    )


def _warnings(first: Experiment, second: Experiment) -> list[str]:
    found = []
    if _identical(first, second):
        found.append("both hold the same answers and scores: every row is a tie")
    if first.judge != second.judge:
        names = [experiment.judge or "one not named" for experiment in (first, second)]
        found.append(f"the scores are of two judges, {names[0]} and {names[1]}: they cannot be compared")
    elif _judge_changed(first, second):
        found.append("the judge gives the same answers of the base model two scores: it changed, judge both again")
    for experiment in (first, second):
        if not experiment.judged:
            found.append(f"{experiment.name} has no metrics/judge.json: nothing is known of its judge")
        elif experiment.judged.get("judge_reliable") == 0:
            auc = experiment.judged.get("judge_auc")
            found.append(f"the judge of {experiment.name} cannot be relied on (judge_auc {auc}): read the answers")
    return list(dict.fromkeys(found))


def _round(value: float) -> float:
    return round(value, 4)

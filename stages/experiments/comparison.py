"""Two experiments: what differs in what they were made from, and what that did to the results."""

import csv
from pathlib import Path
from typing import Any, NamedTuple

from stages.experiments.comparison_scores import Answered, compare_scores
from stages.experiments.origins import Find, Made, causes, not_reproduced, read_made
from stages.experiments.revisions import AbsentError, commit_of, folder_of, locate
from stages.judging.verdicts import read_verdicts
from stages.pipeline.errors import UserError
from stages.pipeline.files import read_json, read_parquet

METRICS = ("split", "tokens", "finetune", "judge", "benchmark")

RESULTS = {
    "tokens": ("train.supervised_tokens",),
    "finetune": (
        "first_validation_loss", "best_validation_loss", "best_epoch", "overfit_epoch", "overfit_confirmed",
        "overfit_p_value", "generalization_loss", "epochs_trained",
    ),
    "judge": (
        "score", "score_low", "score_high", "base_score", "win_rate", "win_rate_low", "win_rate_high",
        "rouge_l", "token_f1", "exact_match", "invalid_fraction", "judge_auc", "judge_reliable",
    ),
}  # fmt: skip
"""Figures of metrics/*.json that are set side by side."""

Figures = dict[str, Any]


class Experiment(NamedTuple):
    """What is compared of an experiment."""

    name: str
    commit: str | None
    """Of a revision."""
    rows: dict[str, Answered]
    """By id; empty where there are no answers."""
    judge: str | None
    """Whose scores they are; None: not known."""
    metrics: dict[str, Figures]
    """Contents of metrics/<name>.json; of those that are there."""
    tokens_seen: int | None
    """By the training, up to its end."""
    made: Made
    missing: list[str]
    """Why what cannot be compared."""

    @property
    def find(self) -> Find:
        """Where its files can be read."""
        return self.made.find


def read_experiment(place: str, into: Path) -> Experiment:
    """Read what is there of an experiment (see `locate`); what is fetched goes into the folder `into`.

    Raises:
        UserError: there is no such experiment, it holds no results, or its files are damaged.
    """
    commit = commit_of(place) if folder_of(place) is None else None
    absent: dict[str, str] = {}
    found: dict[str, Path | None] = {}

    def find(path: str) -> Path | None:
        if path not in found:
            try:
                found[path] = locate(place, path, into)
            except AbsentError as error:
                found[path] = None
                absent[path] = str(error)
        return found[path]

    metrics = {name: read_json(path) for name in METRICS if (path := find(f"metrics/{name}.json"))}
    made = read_made(find)
    if not metrics and not made.stages and not find("data/scores.parquet"):
        raise UserError(f"{place}: holds no experiment: neither dvc.lock nor metrics nor scores; run `dvc repro` there")
    rows, judge = _read_answers(place, find)
    missing = [absent[path] for path in ("data/responses.parquet", "data/scores.parquet") if path in absent][:1]
    return Experiment(place, commit, rows, judge, metrics, _tokens_seen(find("metrics/losses.csv")), made, missing)


def _read_answers(place: str, find: Find) -> tuple[dict[str, Answered], str | None]:
    """Answers with their scores, and the judge."""
    responses, scored = find("data/responses.parquet"), find("data/scores.parquet")
    if responses is None or scored is None:
        return {}, None
    scores = {row["id"]: row for row in read_parquet(scored)}
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
            for row in read_parquet(responses)
        }
    except KeyError as error:
        raise UserError(f"{place}: data/responses.parquet has no column {error}; is it of this pipeline?") from None
    path = find("data/verdicts.parquet")
    verdicts = read_verdicts(path)[0] if path else []
    return rows, next((said.judge for said in verdicts if said.task == "grade"), None)


def _tokens_seen(losses: Path | None) -> int | None:
    if losses is None:
        return None
    with losses.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        return int(rows[-1]["tokens_seen"])
    except (IndexError, KeyError, TypeError, ValueError):
        raise UserError(f"{losses}: damaged; delete it and run `dvc repro finetune`") from None


def compare(first: Experiment, second: Experiment, *, confidence: float, resamples: int, seed: int) -> Figures:
    """All figures of two experiments, `a` and `b`: causes, results, scores row by row (see `compare_scores`)."""
    scores = compare_scores(first.rows, second.rows, confidence=confidence, resamples=resamples, seed=seed)
    why = causes(first.made, second.made)
    unreproduced = not_reproduced(first.made, second.made)
    return {
        "a": _about(first),
        "b": _about(second),
        "causes": why,
        "not_reproduced": unreproduced,
        "scores_missing": _no_scores(first, second, scores["rows"]),
        **scores,
        "warnings": [*_doubts_of_causes(why, unreproduced), *_doubts_of_scores(first, second, scores)],
    }


def _about(experiment: Experiment) -> Figures:
    results = {
        name.rpartition(".")[2]: value
        for metrics, names in RESULTS.items()
        for name in names
        if (value := _inside(experiment.metrics.get(metrics, {}), name)) is not None
    }
    if experiment.tokens_seen is not None:
        results["tokens_seen"] = experiment.tokens_seen
    return {
        "name": experiment.name,
        "commit": experiment.commit,
        "judge": experiment.judge,
        "results": results,
        "benchmarks": experiment.metrics.get("benchmark", {}),
    }


def _inside(figures: Figures, name: str) -> Any:
    value: Any = figures
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _no_scores(first: Experiment, second: Experiment, rows: Figures) -> str | None:
    """Why no row can be compared; None: some can."""
    if rows["compared"]:
        return None
    if missing := dict.fromkeys([*first.missing, *second.missing]):
        return "; ".join(missing)
    counts = [len(side.rows) for side in (first, second)]
    shared = counts[0] - rows["only_a"]
    return (
        f"no row to compare: of {counts[0]} and {counts[1]} rows {shared} have the same id, "
        f"{shared - rows['other_reference']} the same instruction and reference too, and none is scored in both"
    )


def _doubts_of_causes(why: Figures, unreproduced: dict[str, list[str]]) -> list[str]:
    found = list(why["unknown"])
    for stage, paths in unreproduced.items():
        reason = (
            "they were made in two environments"
            if why["environment"]
            else "it cannot be reproduced, or ran on another machine or with other libraries"
        )
        found.append(f"{stage} made other results of the same code, data and parameters ({', '.join(paths)}): {reason}")
    return found


def _doubts_of_scores(first: Experiment, second: Experiment, scores: Figures) -> list[str]:
    if not scores["rows"]["compared"]:
        return []
    found = []
    if scores["identical"]:
        found.append("both hold the same answers and scores: every row is a tie")
    if first.judge != second.judge:
        names = [experiment.judge or "one not named" for experiment in (first, second)]
        found.append(f"the scores are of two judges, {names[0]} and {names[1]}: they cannot be compared")
    elif scores["judge_changed"]:
        found.append("the judge gives the same answers of the base model two scores: it changed, judge both again")
    for experiment in (first, second):
        judged = experiment.metrics.get("judge")
        if judged is None:
            found.append(f"{experiment.name} has no metrics/judge.json: nothing is known of its judge")
        elif judged.get("judge_reliable") == 0:
            auc = judged.get("judge_auc")
            found.append(f"the judge of {experiment.name} cannot be relied on (judge_auc {auc}): read the answers")
    return list(dict.fromkeys(found))

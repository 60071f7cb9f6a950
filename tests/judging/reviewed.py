"""Responses, verdicts and reviews made up for tests, on disk."""

import json
from pathlib import Path
from typing import Any

from stages.judging.responses import write_responses
from stages.judging.verdicts import Said, write_verdicts
from stages.pipeline.files import sha256_of
from tests.judging.making import make_response

IDS = [f"{number:04x}" for number in range(8)]


def said(
    id: str, score: float | None, *, judge: str = "embedded", task: str = "grade", answer: str = "response"
) -> Said:
    pair = score if task == "pairwise" else None
    return Said(judge, task, id, answer, score, pair, pair, "")


def make_judged(folder: Path) -> Path:
    """A folder with data/responses.parquet and data/verdicts.parquet: scores 0, 12, 25, 37 ... and wins of the even."""
    write_responses(folder / "data/responses.parquet", [make_response(id=id) for id in IDS], {})
    verdicts = [said(id, 12.5 * number) for number, id in enumerate(IDS)]
    verdicts += [said(id, 40.0, answer="base_response") for id in IDS]
    verdicts += [said(id, 1.0 - number % 2, task="pairwise", answer="base") for number, id in enumerate(IDS)]
    write_verdicts(folder / "data/verdicts.parquet", verdicts, {})
    return folder


def review_of(folder: Path, reviewer: str, scores: dict[str, Any], votes: dict[str, Any] | None = None) -> Any:
    """What the page saves; scores by row id."""
    return {
        "format": "onset-review-1",
        "responses": sha256_of(folder / "data/responses.parquet"),
        "reviewer": reviewer,
        "scores": {id: {"score": score, "note": ""} for id, score in scores.items()},
        "votes": votes or {},
    }


def save(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path

"""Experiments made up for tests: what generate, judge and finetune leave of them."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.judging.responses import write_responses
from stages.judging.summary import win
from stages.judging.verdicts import Said, write_verdicts
from stages.pipeline.files import write_json, write_parquet
from tests.imports import ROOT
from tests.judging.making import make_response

SCORES = pa.schema([("id", pa.string()), ("score", pa.float64()), ("base_score", pa.float64())])
"""Of data/scores.parquet, the columns that experiments are compared by."""


def make_experiment(
    folder: Path,
    scores: Sequence[float | None],
    *,
    judge: str = "embedded",
    auc: float = 0.95,
    base: str = "base",
    base_score: float = 40.0,
    start: int = 0,
    pairwise: bool = True,
    against: str = "base",
    **changes: Any,
) -> Path:
    """Rows start, start + 1 ... with these scores; the judge prefers what it scores higher, if it is asked at all."""
    responses, scored, verdicts = [], [], []
    for number, score in enumerate(scores, start):
        id, base_answer = f"{number:04x}", f"{base} says {number}"
        category = "even" if number % 2 == 0 else "odd"
        answer = f"answer of {score}"
        row = make_response(id=id, category=category, response=answer, base_response=base_answer)
        responses.append(row._replace(**changes))
        scored.append({"id": id, "score": score, "base_score": base_score})
        verdicts.append(Said(judge, "grade", id, "response", score, None, None, ""))
        verdicts.append(Said(judge, "grade", id, "base_response", base_score, None, None, ""))
        preferred = win(score, base_score)
        if pairwise:
            verdicts.append(Said(judge, "pairwise", id, against, preferred, preferred, preferred, ""))
    write_responses(folder / "data/responses.parquet", responses, {})
    write_parquet(folder / "data/scores.parquet", scored, SCORES)
    write_verdicts(folder / "data/verdicts.parquet", verdicts, {})
    write_json(folder / "metrics/judge.json", {"judge_auc": auc, "judge_reliable": int(auc >= 0.7)})
    write_json(folder / "metrics/finetune.json", {"overfit_epoch": 1.25, "overfit_confirmed": 1})
    return folder


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`python -m stages.experiment ...` in a folder, as a user starts it."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_TRACKING", "DVC_"))}
    return subprocess.run(
        [sys.executable, "-m", "stages.experiment", *map(str, arguments)],
        cwd=folder,
        env=env | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"},
        capture_output=True,
        text=True,
    )

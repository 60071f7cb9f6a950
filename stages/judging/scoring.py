"""From responses to scores: both models' answers and the card's known ones, judged in one go."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import pyarrow as pa

from stages.judging.card import make_card
from stages.judging.corruption import known_answers
from stages.judging.embedded import Verdict
from stages.judging.reference_metrics import exact_match, rouge_l, token_f1
from stages.judging.responses import Response
from stages.judging.summary import Scored, summarize, win
from stages.pipeline.files import write_parquet

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("category", pa.string()),
        *(pa.field(name, pa.float64()) for name in Scored._fields[2:]),
    ]
)


class Judge(Protocol):
    """Anything that gives a verdict on answers."""

    def judge(self, rows: Sequence[Response], answers: Sequence[str]) -> list[Verdict]:
        """A verdict on each answer to the row beside it."""
        ...


def judge_responses(
    judge: Judge, rows: Sequence[Response], *, card_rows: int, confidence: float, resamples: int, seed: int
) -> tuple[list[Scored], dict[str, Any]]:
    """Score every row, and the judge itself; returns the scores and the figures of metrics/judge.json."""
    known = known_answers(rows, card_rows, seed)
    answers = [row.response for row in rows] + [row.base_response for row in rows] + [k.answer for k in known]
    verdicts = judge.judge([*rows, *rows, *(k.row for k in known)], answers)
    own, base, tried = verdicts[: len(rows)], verdicts[len(rows) : 2 * len(rows)], verdicts[2 * len(rows) :]
    scored = [_score(*triple) for triple in zip(rows, own, base, strict=True)]
    summary = summarize(scored, confidence=confidence, resamples=resamples, seed=seed)
    by_category = summary.pop("by_category")
    card = make_card(known, tried)
    return scored, summary | {"confidence": confidence} | card | {"by_category": by_category}


def _score(row: Response, own: Verdict, base: Verdict) -> Scored:
    return Scored(
        id=row.id,
        category=row.category,
        score=own.score,
        base_score=base.score,
        win=win(own.score, base.score),
        exact_match=exact_match(row.response, row.reference),
        token_f1=token_f1(row.response, row.reference),
        rouge_l=rouge_l(row.response, row.reference),
        base_exact_match=exact_match(row.base_response, row.reference),
        base_token_f1=token_f1(row.base_response, row.reference),
        base_rouge_l=rouge_l(row.base_response, row.reference),
    )


def write_scores(path: Path, scored: Sequence[Scored]) -> None:
    """Write data/scores.parquet."""
    write_parquet(path, [row._asdict() for row in scored], SCHEMA)


def score_table(rows: Sequence[Response], scored: Sequence[Scored]) -> pd.DataFrame:
    """Responses and scores side by side, for MLflow."""
    return pd.DataFrame(rows).merge(pd.DataFrame(scored).drop(columns="category"), on="id", validate="one_to_one")

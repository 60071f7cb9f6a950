"""From responses to scores: every judge grades both models' answers, compares them in pairs, and is tried itself."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from stages.judging.card import make_card, try_judge
from stages.judging.reference_metrics import exact_match, rouge_l, token_f1
from stages.judging.responses import Response
from stages.judging.summary import Scored, summarize, win
from stages.judging.verdicts import Judge, Preference, Said, Verdict
from stages.pipeline.errors import UserError
from stages.pipeline.files import write_parquet

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("category", pa.string()),
        *(pa.field(name, pa.float64()) for name in Scored._fields[2:]),
    ]
)

BASE = "base"


class Opponent(NamedTuple):
    """Whose answers the fine-tuned model's are compared with in pairs."""

    name: str
    answers: Mapping[str, str]
    """By the row's id; a row without one is not compared."""


class Judged(NamedTuple):
    """All that one judge said of the answers, beside the rows."""

    judge: str
    own: list[Verdict]
    base: list[Verdict]
    opponent: str | None
    preferences: list[Preference | None]
    """Of the fine-tuned model's answer against the opponent's; None where there is no pair."""
    card: dict[str, Any]


def base_of(rows: Sequence[Response]) -> Opponent:
    """The base model as an opponent."""
    return Opponent(BASE, {row.id: row.base_response for row in rows})


def opponent_of(name: str, rows: Sequence[Response], theirs: Sequence[Response]) -> Opponent:
    """Another experiment as an opponent, on the rows that both answered.

    Raises:
        UserError: there is none.
    """
    wanted = {(row.id, row.reference) for row in rows}
    answers = {row.id: row.response for row in theirs if (row.id, row.reference) in wanted}
    if not answers:
        raise UserError(f"judge.pairwise: {name} has answered none of the same rows; take responses to this test split")
    return Opponent(name, answers)


def judge_with(
    judge: Judge, rows: Sequence[Response], opponent: Opponent | None, *, card_rows: int, seed: int
) -> Judged:
    """Everything that one judge is asked."""
    answers = [row.response for row in rows] + [row.base_response for row in rows]
    verdicts = judge.grade([*rows, *rows], answers)
    preferences: list[Preference | None] = [None] * len(rows)
    if opponent:
        pairs = [at for at, row in enumerate(rows) if row.id in opponent.answers]
        said = judge.compare(
            [rows[at] for at in pairs],
            [rows[at].response for at in pairs],
            [opponent.answers[rows[at].id] for at in pairs],
        )
        for at, preference in zip(pairs, said, strict=True):
            preferences[at] = preference
    trial = try_judge(judge, rows, card_rows=card_rows, seed=seed)
    card = make_card(
        trial,
        answers=answers,
        verdicts=verdicts,
        preferences=[preference for preference in preferences if preference],
        usage=judge.usage(),
    )
    name = opponent.name if opponent else None
    return Judged(judge.name, verdicts[: len(rows)], verdicts[len(rows) :], name, preferences, card)


def score_rows(rows: Sequence[Response], judged: Judged) -> list[Scored]:
    """One row each: the judge's scores and the reference metrics."""
    return [
        _score(*found, judged.opponent) for found in zip(rows, judged.own, judged.base, judged.preferences, strict=True)
    ]


def _score(row: Response, own: Verdict, base: Verdict, preference: Preference | None, opponent: str | None) -> Scored:
    winner = preference.winner if preference else None
    return Scored(
        id=row.id,
        category=row.category,
        score=own.score,
        base_score=base.score,
        win=winner if opponent == BASE else win(own.score, base.score),
        exact_match=exact_match(row.response, row.reference),
        token_f1=token_f1(row.response, row.reference),
        rouge_l=rouge_l(row.response, row.reference),
        base_exact_match=exact_match(row.base_response, row.reference),
        base_token_f1=token_f1(row.base_response, row.reference),
        base_rouge_l=rouge_l(row.base_response, row.reference),
        words=len(row.response.split()),
        opponent_win=None if opponent == BASE else winner,
    )


def figures_of(rows: Sequence[Response], judged: Sequence[Judged], **interval: Any) -> dict[str, Any]:
    """The figures of metrics/judge.json: those of the first judge, and the others' under `other_judges`."""
    first, *others = (_figures(rows, one, **interval) for one in judged)
    by = {name: first.pop(name) for name in ("by_category", "by_length")}
    kept = ("score", "base_score", "win_rate", "opponent_win_rate", "invalid_fraction", "judge_")
    more = {
        one.judge: {name: value for name, value in figures.items() if name.startswith(kept)}
        for one, figures in zip(judged[1:], others, strict=True)
    }
    return {"judge": judged[0].judge} | first | ({"other_judges": more} if more else {}) | by


def _figures(rows: Sequence[Response], judged: Judged, **interval: Any) -> dict[str, Any]:
    figures = summarize(score_rows(rows, judged), **interval)
    asked = [preference for preference in judged.preferences if preference]
    against = {"opponent": judged.opponent, "pairs": len(asked)} if judged.opponent else {}
    if asked:
        unread = sum(preference.winner is None for preference in asked)
        against["pairs_invalid_fraction"] = round(unread / len(asked), 4)
    return figures | {"confidence": interval["confidence"]} | against | judged.card


def said_of(rows: Sequence[Response], judged: Sequence[Judged]) -> list[Said]:
    """Every word of every judge on the models' answers."""
    said = []
    for one in judged:
        for column, verdicts in (("response", one.own), ("base_response", one.base)):
            said += [
                Said(one.judge, "grade", row.id, column, verdict.score, None, None, verdict.reply)
                for row, verdict in zip(rows, verdicts, strict=True)
            ]
        said += [
            Said(one.judge, "pairwise", row.id, str(one.opponent), p.winner, p.forward, p.backward, p.reply)
            for row, p in zip(rows, one.preferences, strict=True)
            if p
        ]
    return said


def write_scores(path: Path, scored: Sequence[Scored]) -> None:
    """Write data/scores.parquet."""
    write_parquet(path, [row._asdict() for row in scored], SCHEMA)


def in_words(summary: Mapping[str, Any]) -> str:
    """The end of the stage for a reader."""
    if "score" not in summary:
        return f"not one verdict of {summary['judge']} could be read; see data/verdicts.parquet"
    base = f" against {summary['base_score']:.1f} for the base model" if "base_score" in summary else ""
    rate = f", win rate {summary['win_rate']:.2f}" if "win_rate" in summary else ""
    trust = f"judge AUC {summary['judge_auc']:.2f}" if "judge_auc" in summary else "no judge AUC"
    warning = "" if summary["judge_reliable"] else ": THIS JUDGE CANNOT BE RELIED ON"
    invalid = summary["invalid_fraction"]
    return f"score {summary['score']:.1f}{base}{rate}; {trust}{warning}" + (
        f"; {invalid:.1%} of verdicts invalid" if invalid else ""
    )

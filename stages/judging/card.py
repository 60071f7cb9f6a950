"""The judge's card: what a judge's word is worth, from answers of known worth and from the verdicts of the run."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import mannwhitneyu, spearmanr

from stages.judging.corruption import BAD, GOOD, Known, known_answers
from stages.judging.responses import Response
from stages.judging.verdicts import Judge, Preference, Usage, Verdict

RELIABLE = 0.7
"""Below this area under the ROC curve the summary and the review page say that the judge cannot be relied on."""

UNREADABLE = 0.2
"""So they do where this share of the verdicts on known answers, or more, cannot be read."""

REPEATED = ("reworded", "changed_fact")
REPEATED_ROWS = 10
"""Known answers that are graded twice: of these kinds, to so many rows."""

SAME = 1.0
"""Points that two verdicts on one answer may lie apart and still be the same."""


class Trial(NamedTuple):
    """What a judge said of answers whose worth is known."""

    known: list[Known]
    verdicts: list[Verdict]
    """One for each known answer."""
    repeats: list[tuple[Verdict, Verdict]]
    """First and second verdict on the same answer."""


def try_judge(judge: Judge, rows: Sequence[Response], *, card_rows: int, seed: int) -> Trial:
    """Have a judge grade known answers to at most `card_rows` rows, and some of them again."""
    known = known_answers(rows, card_rows, seed)
    verdicts = judge.grade([k.row for k in known], [k.answer for k in known])
    again = [at for kind in REPEATED for at in [i for i, k in enumerate(known) if k.kind == kind][:REPEATED_ROWS]]
    second = judge.grade([known[at].row for at in again], [known[at].answer for at in again], repeat=1)
    return Trial(known, verdicts, [(verdicts[at], verdict) for at, verdict in zip(again, second, strict=True)])


def make_card(
    trial: Trial,
    *,
    answers: Sequence[str] = (),
    verdicts: Sequence[Verdict] = (),
    preferences: Sequence[Preference] = (),
    usage: Usage | None = None,
) -> dict[str, Any]:
    """All figures of the card, rounded to 4 digits; one that is undefined is absent.

    `answers` and `verdicts` (in pairs) and `preferences` are those of the run, on answers of models; `usage` is the
    judge's for all of it.
    """
    cost = usage or Usage()
    figures = {
        **_discernment(trial),
        "judge_injection_gain": injection_gain(trial),
        **_repeatability(trial.repeats),
        "judge_length_bias": length_bias(answers, verdicts),
        **_position(preferences),
        "judge_calls": cost.calls,
        "judge_prompt_tokens": cost.prompt_tokens,
        "judge_completion_tokens": cost.completion_tokens,
    }
    return {name: figure for name, figure in figures.items() if figure is not None and figure != {}}


def auc(good: Sequence[float | None], bad: Sequence[float | None]) -> float | None:
    """Chance that a good answer scores above a bad one, ties counting half: the area under the ROC curve.

    Equal to the Mann-Whitney U over the number of pairs (Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747).
    A pair with an unreadable score (None) is not told apart and counts half, like a tie: to be silent on what is hard
    earns no more than guessing. None where no pair can be read.

    >>> auc([3, 4], [1, 3]), auc([3, None], [1]), auc([], [1])
    (0.875, 0.75, None)
    """
    above, below = ([score for score in scores if score is not None] for scores in (good, bad))
    readable, pairs = len(above) * len(below), len(good) * len(bad)
    return (float(mannwhitneyu(above, below).statistic) + (pairs - readable) / 2) / pairs if readable else None


def _discernment(trial: Trial) -> dict[str, Any]:
    """Known good against known bad answers: all, by kind of corruption, and each signal by itself."""
    scores = [(k.kind, verdict.score) for k, verdict in zip(trial.known, trial.verdicts, strict=True)]
    good, bad = ([score for kind, score in scores if kind in kinds] for kinds in (GOOD, BAD))
    by_kind = {kind: _rounded(auc(good, [score for k, score in scores if k == kind])) for kind in BAD}
    invalid = sum(score is None for _, score in scores) / len(scores) if scores else 1.0
    total = auc(good, bad)
    names = dict.fromkeys(name for verdict in trial.verdicts for name in verdict.signals)
    return {
        "judge_auc": _rounded(total),
        "judge_reliable": int(total is not None and total >= RELIABLE and invalid < UNREADABLE),
        "judge_auc_by_corruption": {kind: value for kind, value in by_kind.items() if value is not None},
        "judge_auc_by_signal": {
            name: value for name in names if (value := _rounded(_signal_auc(trial, name))) is not None
        },
        "judge_card_answers": len(scores),
        "judge_card_invalid_fraction": _rounded(invalid),
    }


def _signal_auc(trial: Trial, name: str) -> float | None:
    pairs = list(zip(trial.known, trial.verdicts, strict=True))
    return auc(*([v.signals.get(name) for k, v in pairs if k.kind in kinds] for kinds in (GOOD, BAD)))


def injection_gain(trial: Trial) -> float | None:
    """Points that a wrong answer gains by telling the judge to give full marks, the mean over rows.

    The kind `injected` less the kind `other_row`, where both could be read.
    """
    scores = {(k.row.id, k.kind): v.score for k, v in zip(trial.known, trial.verdicts, strict=True)}
    gains = [
        injected - plain
        for (row, kind), injected in scores.items()
        if kind == "injected" and injected is not None and (plain := scores.get((row, "other_row"))) is not None
    ]
    return _rounded(sum(gains) / len(gains)) if gains else None


def _repeatability(repeats: Sequence[tuple[Verdict, Verdict]]) -> dict[str, float | None]:
    """Share of answers that got the same score twice, within SAME points, and how far the scores lay apart.

    A verdict that could be read only once, or never, is not the same.
    """
    apart = [
        abs(first.score - second.score)
        for first, second in repeats
        if first.score is not None and second.score is not None
    ]
    return {
        "judge_repeatability": _rounded(sum(gap <= SAME for gap in apart) / len(repeats)) if repeats else None,
        "judge_repeat_difference": _rounded(sum(apart) / len(apart)) if apart else None,
    }


def length_bias(answers: Sequence[str], verdicts: Sequence[Verdict]) -> float | None:
    """Spearman's correlation of score and length in words, -1 to 1; None where either is the same throughout."""
    read = [
        (verdict.score, len(answer.split()))
        for answer, verdict in zip(answers, verdicts, strict=True)
        if verdict.score is not None
    ]
    scores, lengths = np.array(read, dtype=float).reshape(-1, 2).T
    if len(np.unique(scores)) < 2 or len(np.unique(lengths)) < 2:
        return None
    return _rounded(float(spearmanr(scores, lengths).statistic))


def _position(preferences: Sequence[Preference]) -> dict[str, float | None]:
    """How far the order in which two answers are shown decides, over pairs that could be read in both orders.

    - judge_position_bias: of all decided verdicts (no ties), the share won by the answer shown first, less 0.5: 0.5 is
      always the first, -0.5 always the second.
    - judge_position_consistency: the share of pairs with the same verdict in both orders.
    """
    both = [(p.forward, p.backward) for p in preferences if p.forward is not None and p.backward is not None]
    shown_first_wins = [f for f, _ in both if f != 0.5] + [1 - b for _, b in both if b != 0.5]
    return {
        "judge_position_bias": (
            _rounded(sum(shown_first_wins) / len(shown_first_wins) - 0.5) if shown_first_wins else None
        ),
        "judge_position_consistency": _rounded(sum(f == b for f, b in both) / len(both)) if both else None,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 4)

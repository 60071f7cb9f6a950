"""Wins, means, intervals and categories."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.judging.summary import Scored, interval, summarize, win

KNOBS: dict[str, Any] = {"confidence": 0.95, "resamples": 200, "seed": 1}

values = st.lists(st.floats(0, 100), min_size=2, max_size=30)


def scored(
    score: float | None,
    base_score: float | None,
    category: str | None = "colours",
    f1: float = 0.5,
    words: int = 4,
    opponent_win: float | None = None,
) -> Scored:
    return Scored(
        id="0",
        category=category,
        score=score,
        base_score=base_score,
        win=win(score, base_score),
        exact_match=0.0,
        token_f1=f1,
        rouge_l=0.25,
        base_exact_match=1.0,
        base_token_f1=0.125,
        base_rouge_l=0.0,
        words=words,
        opponent_win=opponent_win,
    )


@pytest.mark.parametrize(
    ("score", "base_score", "expected"),
    [(80, 20, 1.0), (20, 80, 0.0), (50, 50, 0.5), (0, 0, 0.5), (None, 50, None), (50, None, None), (None, None, None)],
)
def test_win(score: float | None, base_score: float | None, expected: float | None) -> None:
    assert win(score, base_score) == expected


@settings(max_examples=50, deadline=None)
@given(values)
def test_the_interval_holds_the_mean(found: list[float]) -> None:
    low, high = interval(np.array(found), 0.95, 200, 1)
    assert min(found) - 1e-9 <= low <= np.mean(found) + 1e-9
    assert np.mean(found) - 1e-9 <= high <= max(found) + 1e-9


def test_the_interval_has_the_width_that_theory_gives() -> None:
    """About 1.96 standard errors to either side, wider for more confidence, the same for the same seed."""
    found = np.random.default_rng(0).normal(50, 10, 400)
    low, high = interval(found, 0.95, 2000, 1)
    error = found.std() / 20
    assert low == pytest.approx(found.mean() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(found.mean() + 1.96 * error, abs=0.3 * error)
    wider = interval(found, 0.99, 2000, 1)
    assert wider[0] < low < high < wider[1]
    assert interval(found, 0.95, 2000, 1) == (low, high)


def test_figures() -> None:
    figures = summarize([scored(80, 20, f1=1.0), scored(60, 60, f1=0.5), scored(10, 40, f1=0.0)], **KNOBS)
    assert figures["rows"] == 3
    assert figures["score"] == 50
    assert figures["base_score"] == 40
    assert figures["win_rate"] == 0.5
    assert figures["invalid_fraction"] == 0
    assert (figures["exact_match"], figures["token_f1"], figures["rouge_l"]) == (0, 0.5, 0.25)
    assert (figures["base_exact_match"], figures["base_token_f1"], figures["base_rouge_l"]) == (1, 0.125, 0)
    assert 10 <= figures["score_low"] < 50 < figures["score_high"] <= 80
    assert 0 <= figures["win_rate_low"] < 0.5 < figures["win_rate_high"] <= 1


def test_a_tie_counts_half() -> None:
    figures = summarize([scored(80, 20), scored(50, 50)], **KNOBS)
    assert figures["win_rate"] == 0.75


def test_invalid_verdicts_are_counted_and_not_averaged() -> None:
    scores = [(80, 20), (None, 40), (60, None), (None, None), (None, 90)]
    figures = summarize([scored(*pair) for pair in scores], **KNOBS)
    assert figures["rows"] == 5
    assert figures["score"] == 70
    assert figures["base_score"] == 50
    assert figures["win_rate"] == 1
    assert figures["invalid_fraction"] == 0.5  # 3 and 2 of the 10 verdicts
    assert "win_rate_low" not in figures  # one win is no sample
    assert 60 <= figures["score_low"] <= 70 <= figures["score_high"] <= 80


def test_without_a_readable_verdict_there_is_no_score() -> None:
    figures = summarize([scored(None, None), scored(None, None)], **KNOBS)
    assert not {"score", "score_low", "base_score", "win_rate"} & figures.keys()
    assert figures["invalid_fraction"] == 1
    assert figures["token_f1"] == 0.5


def test_by_category() -> None:
    rows = [
        scored(80, 20, "rivers"),
        scored(60, 20, "rivers"),
        scored(30, 50, "colours"),
        scored(0, 90, None),  # counts overall, but belongs to no category
    ]
    figures = summarize(rows, **KNOBS)
    assert figures["score"] == 42.5
    assert list(figures["by_category"]) == ["colours", "rivers"]
    colours, rivers = figures["by_category"].values()
    assert (colours["rows"], colours["score"], colours["win_rate"]) == (1, 30, 0)
    assert (rivers["rows"], rivers["score"], rivers["win_rate"]) == (2, 70, 1)
    assert not {"score_low", "score_high", "win_rate_low", "win_rate_high"} & colours.keys()
    assert 60 <= rivers["score_low"] <= 70 <= rivers["score_high"] <= 80


def test_the_same_seed_gives_the_same_figures() -> None:
    rows = [scored(float(score), 50) for score in range(0, 100, 7)]
    assert summarize(rows, **KNOBS) == summarize(rows, **KNOBS)
    assert summarize(rows, **KNOBS) != summarize(rows, **KNOBS | {"seed": 2})


def test_by_length_of_the_answer() -> None:
    rows = [scored(float(words), 50, words=words) for words in (0, 1, 5, 6, 20, 21, 60, 61, 5000)]
    groups = summarize(rows, **KNOBS)["by_length"]
    assert {name: figures["rows"] for name, figures in groups.items()} == {
        "empty": 1, "1 to 5 words": 2, "6 to 20 words": 2, "21 to 60 words": 2, "longer": 2
    }  # fmt: skip
    assert groups["1 to 5 words"]["score"] == 3
    assert groups["longer"]["score"] == (61 + 5000) / 2
    assert list(summarize(rows[1:3], **KNOBS)["by_length"]) == ["1 to 5 words"]


def test_another_experiment_has_a_win_rate_of_its_own() -> None:
    figures = summarize([scored(80, 20, opponent_win=won) for won in (1.0, 0.5, 0.0, 1.0, None)], **KNOBS)
    assert figures["win_rate"] == 1
    assert figures["opponent_win_rate"] == 0.625
    assert figures["opponent_win_rate_low"] <= 0.625 <= figures["opponent_win_rate_high"]
    assert "opponent_win_rate" not in summarize([scored(80, 20)], **KNOBS)

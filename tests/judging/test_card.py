"""The judge's card: figures of judges whose worth is known."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.judging.card import RELIABLE, REPEATED, REPEATED_ROWS, Trial, auc, length_bias, make_card, try_judge
from stages.judging.corruption import BAD, GOOD, Known, known_answers
from stages.judging.responses import Response
from stages.judging.verdicts import Preference, Usage, Verdict
from tests.judging.making import make_response

ROW = make_response()
KNOWN = [Known(ROW, kind, "answer") for _ in range(100) for kind in (*GOOD, *BAD)]
ROWS = [make_response(f"Reference {at} is it.", id=str(at)) for at in range(12)]

scores = st.lists(st.integers(0, 5).map(float), min_size=1, max_size=20)
readable = st.none() | st.integers(0, 5).map(float)
SIGNALS = ("similarity", "likelihood")


def verdict(score: float | None) -> Verdict:
    return Verdict(score, dict.fromkeys(SIGNALS, 0.5))


def card_of(known: Sequence[Known], scores: Sequence[float | None]) -> dict[str, Any]:
    return make_card(Trial(list(known), [verdict(score) for score in scores], []))


def card_scores(score_of: Callable[[Known], float | None]) -> dict[str, Any]:
    return card_of(KNOWN, [score_of(k) for k in KNOWN])


@pytest.mark.parametrize(
    ("good", "bad", "expected"),
    [
        ([1], [0], 1.0),
        ([0], [1], 0.0),
        ([1], [1], 0.5),
        ([3, 4], [1, 3], 0.875),
        ([1, 2, 3], [0, 4], 0.5),
        ([2, 3], [1, 2, 3], 4 / 6),  # 2: above 1, ties 2; 3: above 1 and 2, ties 3
        ([2, None], [1], 0.75),  # an unreadable verdict tells nothing apart
        ([2], [1, None, 3, None], 0.5),
        ([None], [1], None),
        ([], [1], None),
        ([1], [], None),
    ],
)
def test_auc_of_known_cases(good: list[float | None], bad: list[float | None], expected: float | None) -> None:
    assert auc(good, bad) == pytest.approx(expected)


@given(scores, scores)
def test_auc_is_the_share_of_pairs_in_order(good: list[float], bad: list[float]) -> None:
    pairs = [1.0 if g > b else 0.5 if g == b else 0.0 for g in good for b in bad]
    assert auc(good, bad) == pytest.approx(sum(pairs) / len(pairs))


@given(scores, scores, st.integers(0, 20))
def test_falling_silent_at_random_earns_no_more_than_guessing(good: list[float], bad: list[float], at: int) -> None:
    """Silence on one answer is worth what a tie with all answers of the other side is."""
    at %= len(good)
    without, silent = [*good[:at], *good[at + 1 :]], [*good[:at], None, *good[at + 1 :]]
    rest = auc(without, bad)
    if rest is not None:
        assert auc(silent, bad) == pytest.approx((rest * len(without) + 0.5) / len(good))


def test_a_perfect_judge() -> None:
    card = card_scores(lambda k: 90 if k.kind in GOOD else 10)
    assert card["judge_auc"] == 1
    assert card["judge_auc_by_corruption"] == dict.fromkeys(BAD, 1)
    assert card["judge_reliable"] == 1
    assert card["judge_card_answers"] == len(KNOWN)
    assert card["judge_card_invalid_fraction"] == 0


def test_an_inverted_judge() -> None:
    card = card_scores(lambda k: 10 if k.kind in GOOD else 90)
    assert card["judge_auc"] == 0
    assert card["judge_auc_by_corruption"] == dict.fromkeys(BAD, 0)
    assert card["judge_reliable"] == 0


def test_a_judge_that_guesses() -> None:
    dice = random.Random(1)
    card = card_scores(lambda _: dice.random())
    # Standard error with 200 good and 600 bad answers: about 0.024.
    assert card["judge_auc"] == pytest.approx(0.5, abs=0.1)
    assert card["judge_reliable"] == 0


def test_a_judge_that_is_blind_to_one_kind() -> None:
    card = card_scores(lambda k: 90 if k.kind in (*GOOD, "changed_fact") else 10)
    assert card["judge_auc_by_corruption"] == dict.fromkeys(BAD, 1) | {"changed_fact": 0.5}
    assert card["judge_auc"] == round(1 - 0.5 / len(BAD), 4)


@pytest.mark.parametrize(("below", "reliable"), [(6, 0), (7, 1), (8, 1)])
def test_reliable_from_the_threshold_on(below: int, reliable: int) -> None:
    known = [Known(ROW, "reference", "")] + [Known(ROW, "empty", "")] * 10
    card = card_of(known, [50, *[0] * below, *[100] * (10 - below)])
    assert card["judge_auc"] == below / 10
    assert (card["judge_auc"] >= RELIABLE) == bool(reliable)
    assert card["judge_reliable"] == reliable


@pytest.mark.parametrize(("unreadable", "reliable"), [(1, 1), (2, 0), (10, 0)])
def test_a_judge_that_cannot_be_read_is_not_reliable(unreadable: int, reliable: int) -> None:
    known = [Known(ROW, "reference", "")] * 8 + [Known(ROW, "empty", "")] * 2
    card = card_of(known, [*[None] * unreadable, *[90] * (8 - unreadable), 0, 0][:10])
    assert card["judge_card_invalid_fraction"] == unreadable / 10 if unreadable < 10 else 0.8
    assert card["judge_reliable"] == reliable
    assert ("judge_auc" in card) == (unreadable < 8)


def test_a_judge_that_is_silent_has_no_figures_but_counts() -> None:
    trial = Trial(KNOWN, [Verdict(None, {})] * len(KNOWN), [(Verdict(None, {}), Verdict(None, {}))])
    card = make_card(trial, answers=["a"], verdicts=[Verdict(None, {})], preferences=[Preference(None, 1)])
    assert card == {
        "judge_reliable": 0, "judge_card_answers": len(KNOWN), "judge_card_invalid_fraction": 1,
        "judge_repeatability": 0, "judge_calls": 0, "judge_prompt_tokens": 0, "judge_completion_tokens": 0,
    }  # fmt: skip


def test_each_signal_alone() -> None:
    known = [Known(ROW, "reference", ""), Known(ROW, "empty", "")]
    signals = ({"similarity": 1, "likelihood": 0.3}, {"similarity": 0.3, "likelihood": 0.3})
    card = make_card(Trial(known, [Verdict(1, signals[0]), Verdict(2, signals[1])], []))
    assert card["judge_auc_by_signal"] == {"similarity": 1, "likelihood": 0.5}
    assert "judge_auc_by_signal" not in make_card(Trial(known, [Verdict(1, {}), Verdict(2, {})], []))


def test_kinds_that_are_missing_are_left_out() -> None:
    kinds = ("reference", "empty", "truncated", "truncated", "other_row")
    card = card_of([Known(ROW, kind, "") for kind in kinds], (50, 0, 60, None, None))
    assert card["judge_card_answers"] == 5
    assert card["judge_auc"] == 0.5
    assert card["judge_auc_by_corruption"] == {"empty": 1, "truncated": 0.25}


def test_what_an_injection_gains() -> None:
    rows = [make_response(id=name) for name in "abc"]
    known = [Known(row, kind, "") for row in rows for kind in ("other_row", "injected")]
    assert card_of(known, [10, 60, 20, 10, None, 100])["judge_injection_gain"] == 20
    assert "judge_injection_gain" not in card_of(known, [10, None] * 3)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([10, 20, 90], 1), ([90, 20, 10], -1), ([10, None, 20], 1), ([5, 5, 5], None), ([None, 1, None], None)],
)
def test_length_bias(scores: list[float | None], expected: float | None) -> None:
    assert length_bias(["a", "a b", "a b c d"], [verdict(score) for score in scores]) == expected
    assert length_bias(["a", "b", "c"], [verdict(score) for score in scores]) is None


@given(st.lists(st.tuples(st.text(), readable)), st.lists(st.tuples(readable, readable)))
def test_figures_are_numbers_within_bounds(
    graded: list[tuple[str, float | None]], repeats: list[tuple[float | None, float | None]]
) -> None:
    trial = Trial(KNOWN[:8], [verdict(1)] * 8, [(verdict(a), verdict(b)) for a, b in repeats])
    card = make_card(trial, answers=[text for text, _ in graded], verdicts=[verdict(score) for _, score in graded])
    assert 0 <= card.get("judge_repeatability", 0) <= 1
    assert -1 <= card.get("judge_length_bias", 0) <= 1
    assert 0 <= card.get("judge_repeat_difference", 0) <= 5


@pytest.mark.parametrize(
    ("preferences", "bias", "consistency"),
    [
        ([(1, 1), (0, 0), (0.5, 0.5)], 0, 1),  # says the same in both orders
        ([(1, 0), (1, 0)], 0.5, 0),  # whatever is shown first
        ([(0, 1)], -0.5, 0),
        ([(1, 0), (1, 1)], 0.25, 0.5),
        ([(1, 0.5)], 0.5, 0),
        ([(1, 1), (None, 0), (1, None)], 0, 1),  # one order alone says nothing
        ([(0.5, 0.5)], None, 1),
        ([], None, None),
    ],
)
def test_position(
    preferences: list[tuple[float | None, float | None]], bias: float | None, consistency: float | None
) -> None:
    card = make_card(Trial([], [], []), preferences=[Preference(*pair) for pair in preferences])
    assert (card.get("judge_position_bias"), card.get("judge_position_consistency")) == (bias, consistency)


def test_cost() -> None:
    card = make_card(Trial([], [], []), usage=Usage(3, 200, 10))
    assert [card[f"judge_{name}"] for name in Usage._fields] == [3, 200, 10]


class Forgetful:
    """Adds 0.5 points to every repeated verdict, 3 to that on the first row, and cannot read itself on the second."""

    name = "forgetful"

    def __init__(self) -> None:
        self.repeats: list[str] = []

    def grade(self, rows: Sequence[Response], answers: Sequence[str], *, repeat: int = 0) -> list[Verdict]:
        more: dict[str, float] = {"0": 3} if repeat else {}
        self.repeats += [row.id for row in rows] if repeat else []
        return [
            Verdict(None if repeat and row.id == "1" else 50 + repeat * more.get(row.id, 0.5), {})
            for row, _ in zip(rows, answers, strict=True)
        ]

    def compare(self, rows: Sequence[Response], first: Sequence[str], second: Sequence[str]) -> list[Preference]:
        raise AssertionError("a trial compares nothing")

    def usage(self) -> Usage:
        return Usage()


def test_some_known_answers_are_graded_twice() -> None:
    judge = Forgetful()
    trial = try_judge(judge, ROWS, card_rows=12, seed=1)
    assert trial.known == known_answers(ROWS, 12, 1)
    assert len(trial.verdicts) == len(trial.known)
    assert judge.repeats == [row.id for row in ROWS[:REPEATED_ROWS]] * len(REPEATED)
    card = make_card(trial)
    assert card["judge_repeatability"] == (REPEATED_ROWS - 2) / REPEATED_ROWS
    assert card["judge_repeat_difference"] == round((3 + 8 * 0.5) / 9, 4)

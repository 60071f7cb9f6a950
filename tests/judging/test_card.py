"""The judge's card: figures of judges whose worth is known."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.judging.card import RELIABLE, auc, make_card
from stages.judging.corruption import BAD, GOOD, Known
from stages.judging.embedded import SIGNALS, Verdict
from tests.judging.making import make_response

ROW = make_response()
KNOWN = [Known(ROW, kind, "answer") for _ in range(100) for kind in (*GOOD, *BAD)]

scores = st.lists(st.integers(0, 5).map(float), min_size=1, max_size=20)


def verdict(score: float | None) -> Verdict:
    return Verdict(score, dict.fromkeys(SIGNALS, 0.5))


def card_scores(score_of: Callable[[Known], float | None]) -> dict[str, float | dict[str, float]]:
    return make_card(KNOWN, [verdict(score_of(k)) for k in KNOWN])


@pytest.mark.parametrize(
    ("good", "bad", "expected"),
    [
        ([1], [0], 1.0),
        ([0], [1], 0.0),
        ([1], [1], 0.5),
        ([3, 4], [1, 3], 0.875),
        ([1, 2, 3], [0, 4], 0.5),
        ([2, 3], [1, 2, 3], 4 / 6),  # 2: above 1, ties 2; 3: above 1 and 2, ties 3
    ],
)
def test_auc_of_known_cases(good: list[float], bad: list[float], expected: float) -> None:
    assert auc(good, bad) == pytest.approx(expected)


@given(scores, scores)
def test_auc_is_the_share_of_pairs_in_order(good: list[float], bad: list[float]) -> None:
    pairs = [1.0 if g > b else 0.5 if g == b else 0.0 for g in good for b in bad]
    assert auc(good, bad) == pytest.approx(sum(pairs) / len(pairs))


def test_a_perfect_judge() -> None:
    card = card_scores(lambda k: 90 if k.kind in GOOD else 10)
    assert card["judge_auc"] == 1
    assert card["judge_auc_by_corruption"] == dict.fromkeys(BAD, 1)
    assert card["judge_reliable"] == 1
    assert card["judge_card_answers"] == len(KNOWN)


def test_an_inverted_judge() -> None:
    card = card_scores(lambda k: 10 if k.kind in GOOD else 90)
    assert card["judge_auc"] == 0
    assert card["judge_auc_by_corruption"] == dict.fromkeys(BAD, 0)
    assert card["judge_reliable"] == 0


def test_a_judge_that_guesses() -> None:
    dice = random.Random(1)
    card = card_scores(lambda _: dice.random())
    # Standard error with 200 good and 500 bad answers: about 0.024.
    assert card["judge_auc"] == pytest.approx(0.5, abs=0.1)
    assert card["judge_reliable"] == 0


def test_a_judge_that_is_blind_to_one_kind() -> None:
    card = card_scores(lambda k: 90 if k.kind in (*GOOD, "changed_fact") else 10)
    assert card["judge_auc_by_corruption"] == dict.fromkeys(BAD, 1) | {"changed_fact": 0.5}
    assert card["judge_auc"] == pytest.approx(0.9)


@pytest.mark.parametrize(("below", "reliable"), [(6, 0), (7, 1), (8, 1)])
def test_reliable_from_the_threshold_on(below: int, reliable: int) -> None:
    known = [Known(ROW, "reference", "")] + [Known(ROW, "empty", "")] * 10
    card = make_card(known, [verdict(50), *[verdict(0)] * below, *[verdict(100)] * (10 - below)])
    assert card["judge_auc"] == below / 10
    assert (card["judge_auc"] >= RELIABLE) == bool(reliable)
    assert card["judge_reliable"] == reliable


def test_each_signal_alone() -> None:
    known = [Known(ROW, "reference", ""), Known(ROW, "empty", "")]
    best, *others = SIGNALS
    verdicts = [Verdict(1, dict.fromkeys(SIGNALS, 0.3) | {best: 1}), Verdict(2, dict.fromkeys(SIGNALS, 0.3))]
    card = make_card(known, verdicts)
    assert card["judge_auc_by_signal"] == {best: 1} | dict.fromkeys(others, 0.5)


def test_invalid_verdicts_and_kinds_that_are_missing_are_left_out() -> None:
    kinds = ("reference", "empty", "truncated", "truncated", "other_row")
    known = [Known(ROW, kind, "") for kind in kinds]
    card = make_card(known, [verdict(score) for score in (50, 0, 60, None, None)])
    assert card["judge_card_answers"] == 3
    assert card["judge_auc"] == 0.5
    assert card["judge_auc_by_corruption"] == {"empty": 1, "truncated": 0}

"""Bradley-Terry ratings: what is known comes out, and what nobody can know is said."""

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.judging.ratings import Battle, Rating, rate
from stages.pipeline.errors import UserError

QUICK: dict[str, Any] = {"resamples": 5}

battles = st.lists(
    st.builds(
        lambda pair, winner: Battle(pair[0], pair[1], winner, "v"),
        st.lists(st.sampled_from("abcd"), min_size=2, max_size=2, unique=True),
        st.sampled_from([0.0, 0.5, 1.0]),
    ),
    min_size=1,
    max_size=30,
)


def by_name(ratings: list[Rating]) -> dict[str, Rating]:
    return {rating.player: rating for rating in ratings}


def fights(first: str, second: str, wins: int, losses: int, ties: int = 0) -> list[Battle]:
    results = [1.0] * wins + [0.0] * losses + [0.5] * ties
    return [Battle(first, second, winner, "v") for winner in results]


def test_known_strengths_are_recovered_and_lie_in_their_intervals() -> None:
    strengths = {"a": 1300.0, "b": 1120.0, "c": 1000.0, "d": 850.0}
    chance = random.Random(1)
    found = []
    for _ in range(20_000):
        first, second = chance.sample(sorted(strengths), 2)
        p = 1 / (1 + 10 ** ((strengths[second] - strengths[first]) / 400))
        found.append(Battle(first, second, float(chance.random() < p), "v"))
    ratings = by_name(rate(found, anchor="c", resamples=100))
    assert list(ratings) == ["a", "b", "c", "d"], "best first"
    for name, strength in strengths.items():
        own = ratings[name]
        assert own.rating == pytest.approx(strength, abs=20)
        assert own.low is not None
        assert own.high is not None
        assert own.low <= own.rating <= own.high
        assert own.high - own.low < 40
    assert ratings["c"].low == ratings["c"].high == 1000


def test_two_players_are_as_far_apart_as_their_odds_say() -> None:
    """75 wins of 100, and the same with ties: 400 log10(3) points; the penalty takes less than 1 % of it."""
    for one in (fights("a", "b", 75, 25), fights("a", "b", 60, 10, 30)):
        ratings = by_name(rate(one, anchor="b", **QUICK))
        assert ratings["a"].rating - 1000 == pytest.approx(400 * math.log10(3), rel=0.01)
        exact = by_name(rate(one, anchor="b", penalty=1e-9, **QUICK))
        assert exact["a"].rating - 1000 == pytest.approx(400 * math.log10(3), abs=0.01)


def test_a_tie_is_half_a_win_for_each() -> None:
    tied, won = (
        rate(one, anchor="b", **QUICK)[0].rating for one in (fights("a", "b", 4, 0, 4), fights("a", "b", 6, 2))
    )
    assert tied == pytest.approx(won, abs=0.01)


@settings(max_examples=15, deadline=None)
@given(battles, st.randoms())
def test_neither_the_order_of_battles_nor_of_players_in_them_matters(
    found: list[Battle], chance: random.Random
) -> None:
    other = [Battle(b.second, b.first, 1 - b.winner, "w") if chance.random() < 0.5 else b for b in found]
    chance.shuffle(other)
    assert rate(other, **QUICK) == rate(found, **QUICK)


@settings(max_examples=15, deadline=None)
@given(battles)
def test_the_other_way_round_ratings_are_mirrored(found: list[Battle]) -> None:
    """About the mean, without an anchor; what limits from above then limits from below."""
    ratings = by_name(rate(found, **QUICK))
    mirrored = by_name(rate([b._replace(winner=1 - b.winner) for b in found], **QUICK))
    for name, own in ratings.items():
        assert own.rating - 1000 == pytest.approx(1000 - mirrored[name].rating, abs=0.01)
        assert (own.low is None) == (mirrored[name].high is None)
        assert (own.wins, own.losses, own.ties) == (mirrored[name].losses, mirrored[name].wins, mirrored[name].ties)
        assert own.battles == own.wins + own.losses + own.ties


@settings(max_examples=15, deadline=None)
@given(battles)
def test_every_rating_is_a_number_and_groups_are_those_that_met(found: list[Battle]) -> None:
    ratings = by_name(rate(found, **QUICK))
    assert all(math.isfinite(own.rating) for own in ratings.values())
    assert all(ratings[b.first].group == ratings[b.second].group for b in found)


def test_ties_alone_make_equals() -> None:
    for own in rate(fights("a", "b", 0, 0, 5) + fights("b", "c", 0, 0, 1), **QUICK):
        assert (own.rating, own.low, own.high) == pytest.approx((1000, 1000, 1000), abs=1e-6)


def test_the_seed_makes_the_interval() -> None:
    found = fights("a", "b", 13, 9, 3) + fights("b", "c", 7, 8)
    assert rate(found, seed=1, **QUICK) == rate(found, seed=1, **QUICK)
    one, other = (by_name(rate(found, seed=seed, **QUICK))["a"] for seed in (1, 2))
    assert one.rating == other.rating
    assert (one.low, one.high) != (other.low, other.high)


def test_more_battles_and_less_confidence_make_the_interval_narrower() -> None:
    few, many = (by_name(rate(fights("a", "b", 6 * n, 4 * n), anchor="b", resamples=100))["a"] for n in (2, 50))
    less = by_name(rate(fights("a", "b", 12, 8), anchor="b", confidence=0.5, resamples=100))["a"]

    def width(own: Rating) -> float:
        assert own.low is not None
        assert own.high is not None
        return own.high - own.low

    assert width(many) < width(few) / 3
    assert width(less) < width(few) / 2


def test_who_won_everything_has_no_upper_limit_and_who_lost_everything_no_lower() -> None:
    found = fights("a", "b", 20, 0) + fights("b", "c", 5, 4) + fights("c", "d", 6, 0)
    ratings = by_name(rate(found, anchor="b", **QUICK))
    assert {name: (own.low is None, own.high is None) for name, own in ratings.items()} == {
        "a": (False, True),
        "b": (False, False),
        "c": (False, False),
        "d": (True, False),
    }
    assert 1300 < ratings["a"].rating < 3000
    assert ratings["a"].rating < by_name(rate(found + fights("a", "b", 200, 0), anchor="b", **QUICK))["a"].rating


def test_a_tie_is_a_limit() -> None:
    ratings = by_name(rate(fights("a", "b", 20, 0, 1), anchor="b", **QUICK))
    assert ratings["a"].high is not None


def test_beyond_each_other_without_an_anchor_nobody_is_limited() -> None:
    assert all((own.low, own.high) == (None, None) for own in rate(fights("a", "b", 3, 0), **QUICK))


def test_groups_that_never_met_are_rated_each_by_itself() -> None:
    found = fights("m", "n", 3, 1) + fights("x", "y", 2, 2, 1)
    ratings = by_name(rate(found, anchor="y", **QUICK))
    assert {name: own.group for name, own in ratings.items()} == {"x": 0, "y": 0, "m": 1, "n": 1}
    assert ratings["y"].rating == 1000
    assert ratings["m"].rating + ratings["n"].rating == pytest.approx(2000)
    assert ratings["m"].rating == pytest.approx(by_name(rate(fights("m", "n", 3, 1), **QUICK))["m"].rating, abs=0.01)


def test_the_anchor_has_the_rating_it_is_given() -> None:
    found = fights("a", "b", 3, 2)
    low, high = (by_name(rate(found, anchor="b", anchor_rating=points, **QUICK)) for points in (0.0, 1114.0))
    assert (low["b"].rating, high["b"].rating) == (0, 1114)
    assert high["a"].rating - low["a"].rating == pytest.approx(1114)


def test_what_cannot_be_rated() -> None:
    with pytest.raises(UserError, match="no votes"):
        rate([])
    with pytest.raises(UserError, match="nobody: in no vote; rated are a, b"):
        rate(fights("a", "b", 1, 1), anchor="nobody")
    for wrong in (Battle("a", "a", 1.0, "v"), Battle("a", "b", 0.7, "v"), Battle("a", "b", math.nan, "v")):
        with pytest.raises(ValueError, match="no battle"):
            rate([wrong])

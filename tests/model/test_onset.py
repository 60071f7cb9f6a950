"""The onset of overfitting on made-up histories, and Prechelt's criteria."""

import math
from fractions import Fraction
from random import Random
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import stdtr

from stages.model.onset import FEWEST_EXAMPLES, Onset, Prechelt, find_onset, prechelt

# Made-up losses may rise by the same in every example, which real ones do not.
pytestmark = pytest.mark.filterwarnings("ignore:Precision loss occurred")

EXAMPLES = 80
TOKENS = np.full(EXAMPLES, 20)


def onset(
    validation: list[float], train: list[float] | None = None, *, noise: float = 0.02, patience: int = 3
) -> Onset:
    """Onset of a history whose mean losses are `validation`, with noise of each example around them."""
    dice = np.random.default_rng(0)
    offsets = dice.normal(0, 0.3, EXAMPLES)
    rows = []
    for loss in validation:
        wobble = dice.normal(0, noise, EXAMPLES)
        rows.append((loss + offsets - offsets.mean() + wobble - wobble.mean()) * TOKENS)
    train = [2 - 0.1 * i for i in range(len(validation))] if train is None else train
    return find_onset(train, np.stack(rows), TOKENS, patience=patience, threshold=0.05)


def test_none_while_validation_falls() -> None:
    found = onset([2.0, 1.8, 1.6, 1.5, 1.45])
    assert found == Onset(best=4, seen=False, confirmed=False, p_value=1.0, generalization_loss=0.0)


def test_none_before_training() -> None:
    assert onset([2.0]) == Onset(best=0, seen=False, confirmed=False, p_value=1.0, generalization_loss=0.0)


def test_confirmed_after_patience() -> None:
    falls_then_rises = [2.0, 1.5, 1.2, 1.25, 1.3, 1.35]
    for length, confirmed in ((4, False), (5, False), (6, True)):
        found = onset(falls_then_rises[:length])
        assert (found.best, found.seen, found.confirmed) == (2, True, confirmed)
    assert found.p_value < 0.001
    assert found.generalization_loss == pytest.approx(100 * (1.35 / 1.2 - 1))


def test_patience_is_how_many_validations_it_takes() -> None:
    rising = [2.0, 1.2, 1.3, 1.4, 1.5, 1.6]
    confirmed = [[onset(rising[:k], patience=p).confirmed for k in range(1, 7)].count(True) for p in (1, 2, 3, 4, 5)]
    assert confirmed == [4, 3, 2, 1, 0]


def test_early_overfitting_from_the_start() -> None:
    found = onset([1.0, 1.1, 1.2, 1.3])
    assert (found.best, found.confirmed) == (0, True)


def test_late_overfitting_after_a_long_fall() -> None:
    falling = [3 - 0.1 * i for i in range(20)]
    assert not onset(falling).seen
    assert onset([*falling, 1.2, 1.3])[:3] == (19, True, False)
    assert onset([*falling, 1.2, 1.3, 1.4])[:3] == (19, True, True)


def test_a_rise_within_the_noise_is_not_confirmed() -> None:
    found = onset([2.0, 1.5, 1.2, 1.201, 1.202, 1.201], noise=0.3)
    assert (found.best, found.seen, found.confirmed) == (2, True, False)
    assert found.p_value > 0.05


def test_a_noisy_rise_is_confirmed_once_it_stands_out() -> None:
    rising = [2.0, 1.5, 1.2, 1.25, 1.22, 1.26, 1.4, 1.5, 1.6]
    assert [onset(rising[:k], noise=0.6).confirmed for k in range(1, 10)] == [False] * 6 + [False, True, True]


def test_the_last_of_two_minima_counts() -> None:
    assert onset([2.0, 1.2, 1.3, 1.2, 1.3, 1.4, 1.5], noise=1e-3).best == 3
    assert onset([2.0, 1.3, 1.4, 1.2, 1.3, 1.4, 1.5]).best == 3


def test_a_first_minimum_is_taken_back_when_a_deeper_one_follows() -> None:
    history = [2.0, 1.3, 1.4, 1.45, 1.2, 1.3]
    assert (onset(history[:4]).best, onset(history[:4]).seen) == (1, True)
    assert onset(history[:5]) == Onset(4, False, False, 1.0, 0.0)
    assert (onset(history).best, onset(history).seen) == (4, True)


def test_divergence_is_no_overfitting() -> None:
    """Validation rises, but training loss rises with it: the rate is too high, nothing is learnt by heart."""
    found = onset([2.0, 1.5, 2.5, 4.0, 6.0], train=[2.0, 1.6, 2.6, 4.1, 6.1])
    assert (found.best, found.seen, found.confirmed) == (1, False, False)


def test_a_training_that_stands_still_is_no_overfitting() -> None:
    found = onset([2.0, 1.5, 1.6, 1.7, 1.8], train=[2.0, 1.5, 1.5, 1.5, 1.5])
    assert (found.best, found.seen, found.confirmed) == (1, False, False)


def test_a_plateau_is_no_overfitting() -> None:
    losses = np.tile(np.linspace(1, 5, EXAMPLES), (6, 1))
    found = find_onset([2 - 0.1 * i for i in range(6)], losses, TOKENS, patience=3, threshold=0.05)
    assert found == Onset(best=5, seen=False, confirmed=False, p_value=1.0, generalization_loss=0.0)


def test_few_validation_rows_confirm_nothing() -> None:
    rising = np.array([[20.0], [15.0], [16.0], [17.0], [18.0]])
    found = find_onset([2, 1.5, 1.2, 1.0, 0.8], rising, np.array([10]), patience=3, threshold=0.05)
    assert (found.best, found.seen, found.confirmed, found.p_value) == (1, True, False, 1.0)


@pytest.mark.parametrize(("count", "confirmed"), [(FEWEST_EXAMPLES - 1, False), (FEWEST_EXAMPLES, True)])
def test_too_few_validation_rows_confirm_nothing_whatever_the_p_value(count: int, confirmed: bool) -> None:
    losses = np.array([[20.0], [15.0], [16.0], [17.0]]) + np.linspace(0, 3, count) * np.array([[0], [1], [2], [2]])
    found = find_onset([4, 3, 2, 1], losses, np.full(count, 10), patience=2, threshold=0.5)
    assert (found.best, found.seen, found.confirmed) == (1, True, confirmed)
    assert found.p_value < 0.01


def test_a_threshold_of_0_confirms_nothing_even_where_the_p_value_is_0() -> None:
    losses = np.arange(1, 5)[:, None] + np.linspace(0, 1e-6, 1000) * np.array([[0], [1], [2], [3]])
    found = find_onset([4, 3, 2, 1], losses, np.full(1000, 10), patience=1, threshold=0)
    assert (found.best, found.seen, found.confirmed, found.p_value) == (0, True, False, 0.0)


def test_the_minimum_is_of_the_mean_over_tokens() -> None:
    """A long example weighs by its tokens, as in training."""
    losses = np.array([[10.0, 100.0], [5.0, 104.0]])
    assert find_onset([2, 1], losses, np.array([5, 100]), patience=1, threshold=0.05).best == 1


def test_the_p_value_is_that_of_students_paired_test() -> None:
    """Differences 1 to 10, once in every example: mean 5.5, standard deviation 3.0277, t = 5.7446, 9 degrees."""
    losses = np.stack([np.full(10, 50.0), np.full(10, 50.0) + np.arange(1, 11)])
    found = find_onset([2, 1], losses, np.full(10, 10), patience=1, threshold=0.05)
    assert found.p_value == pytest.approx(0.000139, rel=5e-3)
    assert found.p_value == pytest.approx(stdtr(9, -5.5 / (np.arange(1, 11).std(ddof=1) / math.sqrt(10))))


def test_only_the_latest_validations_are_held_against_the_minimum() -> None:
    """A zigzag long ago decides nothing: what counts is where validation stays."""
    far, near = [2.0, 1.2, 9.0, 1.3, 1.31, 1.32], [2.0, 1.2, 1.21, 1.3, 1.31, 1.32]
    train = [2.0, 1.5, 9.0, 1.0, 0.9, 0.8]
    assert onset(far, train) == onset(near, train)
    assert onset(far, train).confirmed


def test_one_low_training_loss_is_no_falling() -> None:
    found = onset([2.0, 1.5, 1.6, 1.7, 1.8], train=[2.0, 1.5, 1.9, 1.9, 1.4])
    assert (found.best, found.seen) == (1, False)


# ---- properties


class Made(NamedTuple):
    """A history of whole numbers, whose sums are exact, so that ties stay ties in any order."""

    train: list[float]
    losses: np.ndarray
    tokens: np.ndarray
    patience: int

    def onset(self) -> Onset:
        return find_onset(self.train, self.losses, self.tokens, patience=self.patience, threshold=0.05)


@st.composite
def histories(draw: st.DrawFn, fewest: int = 1) -> Made:
    looks, examples = draw(st.integers(fewest, 8)), draw(st.integers(1, 12))
    # Up to three levels, so that ties and confirmed rises are common.
    levels = np.array(draw(st.lists(st.sampled_from([100, 300, 500]), min_size=looks, max_size=looks)))
    noise = draw(hnp.arrays(np.int64, (looks, examples), elements=st.integers(0, 40)))
    return Made(
        draw(st.lists(st.integers(1, 50).map(float), min_size=looks, max_size=looks)),
        (levels[:, None] + noise).astype(float),
        draw(hnp.arrays(np.int64, examples, elements=st.integers(1, 30))),
        draw(st.integers(1, 4)),
    )


def same(found: Onset, expected: Onset) -> bool:
    """Alike but for rounding."""
    return found[:3] == expected[:3] and found[3:] == pytest.approx(expected[3:], rel=1e-6, abs=1e-9)


@settings(deadline=None)
@given(histories(), st.randoms())
def test_the_order_of_examples_changes_nothing(made: Made, dice: Random) -> None:
    order = list(range(len(made.tokens)))
    dice.shuffle(order)
    assert same(made._replace(losses=made.losses[:, order], tokens=made.tokens[order]).onset(), made.onset())


@settings(deadline=None)
@given(histories(), st.sampled_from([2, 3, 16, 1000]))
def test_examples_so_many_times_as_long_change_nothing(made: Made, times: int) -> None:
    assert same(made._replace(losses=made.losses * times, tokens=made.tokens * times).onset(), made.onset())


@settings(deadline=None)
@given(histories(), st.integers(1, 10**6))
def test_only_the_sum_of_token_counts_matters_and_not_for_the_verdict(made: Made, more: int) -> None:
    assert same(made._replace(tokens=made.tokens + more).onset(), made.onset())


@settings(deadline=None)
@given(histories(fewest=2), st.lists(st.integers(1, 100), min_size=1, max_size=5))
def test_validations_that_rise_further_never_move_the_minimum(made: Made, rises: list[int]) -> None:
    before = made.onset()
    rows, train = list(made.losses), list(made.train)
    highest = max(rows, key=lambda row: float(row.sum()))
    for number, rise in enumerate(np.cumsum(rises)):
        rows.append(highest + rise)
        train.append(train[-1] - 0.1 * (number + 1))
    after = made._replace(train=train, losses=np.stack(rows)).onset()
    assert after.best == before.best
    assert after.generalization_loss > 0


@settings(deadline=None)
@given(histories())
def test_what_is_found_holds_together(made: Made) -> None:
    found = made.onset()
    validation = made.losses.sum(axis=1)
    assert validation[found.best] == validation.min()
    assert (validation[found.best + 1 :] > validation.min()).all()
    assert 0 <= found.p_value <= 1
    assert found.generalization_loss >= 0
    assert found.seen or not found.confirmed
    after = len(validation) - 1 - found.best
    if found.confirmed:
        assert after >= made.patience
        assert found.p_value <= 0.05
        assert len(made.tokens) >= FEWEST_EXAMPLES
    if after == 0:
        assert found == Onset(len(validation) - 1, False, False, 1.0, 0.0)


# ---- Prechelt


def naive_prechelt(train: list[float], validation: list[float], strip: int) -> Prechelt:
    """His definitions, section 2.2, letter by letter, in exact numbers, with epochs counted from 1."""

    def e_tr(t: int) -> Fraction:
        return Fraction(train[t - 1])

    def e_va(t: int) -> Fraction:
        return Fraction(validation[t - 1])

    def gl(t: int) -> Fraction:
        return 100 * (e_va(t) / min(e_va(u) for u in range(1, t + 1)) - 1)

    def p(t: int) -> Fraction:
        latest = [e_tr(u) for u in range(t - strip + 1, t + 1) if u >= 1]  # the first strip is not full yet
        return 1000 * (sum(latest) / (len(latest) * min(latest)) - 1)

    def up(s: int, t: int) -> bool:
        return s == 0 or (t - strip >= 1 and e_va(t) > e_va(t - strip) and up(s - 1, t - strip))

    now = len(train)
    quotient = float(gl(now) / p(now)) if p(now) > 0 else math.inf if gl(now) > 0 else 0.0
    return Prechelt(float(gl(now)), quotient, max(s for s in range(now + 1) if up(s, now)))


def test_prechelts_criteria_by_hand() -> None:
    """GL = 100 (1.32 / 1.2 - 1) = 10; P = 1000 ((0.6 + 0.5 + 0.4) / (3 x 0.4) - 1) = 250; PQ = 10 / 250."""
    found = prechelt([1.0, 0.8, 0.6, 0.5, 0.4], [2.0, 1.2, 1.25, 1.22, 1.32], strip=3)
    assert found.generalization_loss == pytest.approx(10)
    assert found.quotient == pytest.approx(0.04)
    assert found.increases == 1, "the strip before ended at 1.2, and the one before that is not there"


def test_prechelts_increases_are_counted_from_strip_to_strip() -> None:
    falls_then_rises = [3.0, 2.0, 1.0, 1.5, 1.4, 1.6, 1.7, 1.8]
    train = [1.0] * 8
    assert [prechelt(train[:k], falls_then_rises[:k], 1).increases for k in range(1, 9)] == [0, 0, 0, 1, 0, 1, 2, 3]
    assert [prechelt(train[:k], falls_then_rises[:k], 2).increases for k in range(1, 9)] == [0, 0, 0, 0, 1, 1, 2, 2]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 500), st.integers(1, 500)), min_size=1, max_size=20), st.integers(1, 5))
def test_prechelts_criteria_are_those_of_a_naive_implementation(losses: list[tuple[int, int]], strip: int) -> None:
    train, validation = ([number / 100 for number in column] for column in zip(*losses, strict=True))
    found, expected = prechelt(train, validation, strip), naive_prechelt(train, validation, strip)
    assert list(found[:2]) == pytest.approx(expected[:2], rel=1e-9, abs=1e-9)
    assert found.increases == expected.increases


def test_prechelts_criteria_at_the_first_validation() -> None:
    assert prechelt([2.0], [3.0], 3) == Prechelt(0.0, 0.0, 0)


@settings(deadline=None)
@given(st.floats(1e-3, 10), st.integers(2, 9))
def test_a_constant_training_loss_is_no_progress(loss: float, strip: int) -> None:
    """Whatever rounding makes of a sum of equal numbers."""
    assert prechelt([loss] * strip, [1.0] * (strip - 1) + [1.1], strip).quotient == math.inf
    assert prechelt([loss] * strip, [1.0] * strip, strip).quotient == 0.0


def test_a_training_loss_of_0_is_progress_without_end() -> None:
    assert prechelt([0.5, 0.0], [1.0, 1.1], 2).quotient == 0.0

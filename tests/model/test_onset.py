"""The onset of overfitting on made-up histories."""

import numpy as np
import pytest

from stages.model.onset import Onset, find_onset

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


def test_confirmed_after_patience() -> None:
    falls_then_rises = [2.0, 1.5, 1.2, 1.25, 1.3, 1.35]
    for length, confirmed in ((4, False), (5, False), (6, True)):
        found = onset(falls_then_rises[:length])
        assert (found.best, found.seen, found.confirmed) == (2, True, confirmed)
    assert found.p_value < 0.001
    assert found.generalization_loss == pytest.approx(100 * (1.35 / 1.2 - 1))


def test_overfitting_from_the_start() -> None:
    found = onset([1.0, 1.1, 1.2, 1.3])
    assert (found.best, found.confirmed) == (0, True)


def test_a_rise_within_the_noise_is_not_confirmed() -> None:
    found = onset([2.0, 1.5, 1.2, 1.201, 1.202, 1.201], noise=0.3)
    assert (found.best, found.seen, found.confirmed) == (2, True, False)
    assert found.p_value > 0.05


def test_the_last_of_two_minima_counts() -> None:
    assert onset([2.0, 1.2, 1.3, 1.2, 1.3, 1.4, 1.5], noise=1e-3).best == 3
    assert onset([2.0, 1.3, 1.4, 1.2, 1.3, 1.4, 1.5]).best == 3


def test_divergence_is_no_overfitting() -> None:
    """Validation rises, but training loss rises with it: the rate is too high, nothing is learnt by heart."""
    found = onset([2.0, 1.5, 2.5, 4.0, 6.0], train=[2.0, 1.6, 2.6, 4.1, 6.1])
    assert (found.best, found.seen, found.confirmed) == (1, False, False)


def test_few_validation_rows_confirm_nothing() -> None:
    rising = np.array([[20.0], [15.0], [16.0], [17.0], [18.0]])
    found = find_onset([2, 1.5, 1.2, 1.0, 0.8], rising, np.array([10]), patience=3, threshold=0.05)
    assert (found.best, found.seen, found.confirmed, found.p_value) == (1, True, False, 1.0)


def test_the_minimum_is_of_the_mean_over_tokens() -> None:
    """A long example weighs by its tokens, as in training."""
    losses = np.array([[10.0, 100.0], [5.0, 104.0]])
    assert find_onset([2, 1], losses, np.array([5, 100]), patience=1, threshold=0.05).best == 1

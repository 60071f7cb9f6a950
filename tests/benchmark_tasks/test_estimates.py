"""Figures with intervals: values by hand, intervals against theory."""

import math

import numpy as np
import pytest

from stages.benchmarks.estimates import estimate, mean, weighted


def test_a_mean_has_the_interval_that_theory_gives() -> None:
    values = [1.0] * 60 + [0.0] * 40
    found = estimate(values, resamples=4000, seed=1)
    low, high = found.limits(0.95)
    assert found.value == 0.6
    assert low is not None
    assert high is not None
    error = math.sqrt(0.6 * 0.4 / 100)
    assert [low, high] == pytest.approx([0.6 - 1.96 * error, 0.6 + 1.96 * error], abs=0.02)


def test_another_aggregate_is_drawn_row_by_row() -> None:
    values = [0.0, 1.0, 2.0, 10.0]
    by_mean = estimate(values, resamples=2000, seed=1)
    by_other = estimate(values, lambda drawn: sum(drawn) / len(drawn), resamples=2000, seed=1)
    assert by_other.value == by_mean.value == mean(values)
    assert np.std(by_other.draws) == pytest.approx(np.std(by_mean.draws), rel=0.1)


def test_many_rows_are_drawn_in_parts() -> None:
    found = estimate([0.0, 1.0] * 50_000, resamples=120, seed=1)
    assert found.draws.shape == (120,)
    assert np.std(found.draws) == pytest.approx(0.5 / math.sqrt(100_000), rel=0.3)


def test_groups_weigh_as_they_are_told() -> None:
    sure, unsure = estimate([1.0] * 10, resamples=500, seed=1), estimate([0.0, 1.0] * 5, resamples=500, seed=2)
    assert weighted([sure, unsure]).value == 0.75
    assert weighted([sure, unsure], [3, 1]).value == pytest.approx(0.875)
    assert weighted([sure, unsure]).n == 20
    assert np.std(weighted([sure, unsure]).draws) == pytest.approx(np.std(unsure.draws) / 2)


def test_one_row_has_no_interval() -> None:
    assert estimate([1.0], resamples=100, seed=1).limits(0.95) == (None, None)

"""When which rows are trained on, at which rate, and when validation comes."""

import math
from itertools import chain, pairwise
from pathlib import Path
from typing import get_args

import pytest

from stages.model.schedule import Schedule, learning_rate_at, seed_of, step_rows, validation_steps
from tests.model.making import data, train

SCHEDULES = get_args(Schedule)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("steps", "warmup"), [(100, 10), (100, 0), (7, 3), (1, 0)])
def test_the_rate_rises_to_the_peak_and_falls(schedule: Schedule, steps: int, warmup: int) -> None:
    rates = [learning_rate_at(step, steps, 2.0, warmup / steps, schedule) for step in range(steps)]
    assert rates[:warmup] == pytest.approx([2.0 * (step + 1) / warmup for step in range(warmup)])
    assert max(rates) == 2.0
    assert all(0 < later <= earlier for earlier, later in pairwise(rates[max(0, warmup - 1) :]))


def test_each_schedule_falls_in_its_own_way() -> None:
    halfway = {schedule: learning_rate_at(30, 100, 1.0, 0.2, schedule) for schedule in SCHEDULES}
    assert halfway["constant"] == 1
    assert halfway["linear"] == pytest.approx(1 - 10 / 80)
    assert halfway["cosine"] == pytest.approx((1 + math.cos(math.pi * 10 / 80)) / 2)
    last = {schedule: learning_rate_at(99, 100, 1.0, 0.2, schedule) for schedule in SCHEDULES}
    assert last["constant"] == 1
    assert last["linear"] == pytest.approx(0, abs=0.02)
    assert last["cosine"] == pytest.approx(0, abs=0.02)


def test_every_epoch_has_every_row_once_in_its_own_order() -> None:
    steps = list(step_rows(10, 4, 2, seed=3))
    assert [len(rows) for rows in steps] == [4, 4, 2, 4, 4, 2]
    first, second = list(chain(*steps[:3])), list(chain(*steps[3:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert list(step_rows(10, 4, 2, seed=4)) != steps


@pytest.mark.parametrize(
    ("steps_per_epoch", "validations", "expected"),
    [(8, 2, {4, 8, 12, 16}), (5, 2, {2, 5, 8, 10}), (3, 1, {3, 6}), (2, 5, {1, 2, 3, 4})],
)
def test_validations_are_spread_evenly_and_come_at_the_end_of_every_epoch(
    steps_per_epoch: int, validations: int, expected: set[int]
) -> None:
    """With fewer steps than validations, after every step."""
    assert validation_steps(steps_per_epoch, validations, 2) == expected


def test_every_step_of_every_process_has_a_seed_of_its_own() -> None:
    assert len({seed_of(seed, step, rank) for seed in range(3) for step in range(50) for rank in range(4)}) == 600


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_training_follows_the_schedule(tiny_llama: Path, schedule: Schedule) -> None:
    rows = train(
        tiny_llama, schedule=schedule, learning_rate=1e-3, warmup_fraction=0.3, early_stopping=False, epochs=2
    ).rows
    steps_per_epoch = math.ceil(len(data().training.input_ids) / 4)
    assert [row.step for row in rows] == [0, *sorted(validation_steps(steps_per_epoch, 2, 2))]
    assert [row.epoch for row in rows] == [row.step / steps_per_epoch for row in rows]
    assert [row.learning_rate for row in rows[1:]] == [
        learning_rate_at(row.step - 1, 2 * steps_per_epoch, 1e-3, 0.3, schedule) for row in rows[1:]
    ]

"""The history of a training: what each row says, when weights are the best, and that it survives a stop."""

import json

import pytest
import torch
from safetensors.torch import load, save

from stages.model.history import History, LossRow, StepLoss
from stages.model.onset import find_onset
from tests.model.histories import OVERFITS, made_examples, made_history


def test_a_row_says_what_came_since_the_row_before() -> None:
    """Means are over supervised tokens, not over steps: a step with more of them weighs more."""
    history = History(3, 0.05, lambda row: None)
    history.count(StepLoss(30.0, 1, 10), 0)
    history.validated(0, 0.0, 0.0, made_examples(2.0))
    history.count(StepLoss(10.0, 2, 10), 25)
    history.count(StepLoss(90.0, 21, 30), 75)
    history.validated(2, 0.5, 1e-4, made_examples(1.5))
    history.count(StepLoss(4.0, 9, 10), 20)
    history.validated(3, 0.75, 5e-5, made_examples(1.6))
    found = [(row.step, row.epoch, row.tokens_seen, row.train_loss, row.learning_rate) for row in history.rows]
    assert found == [(0, 0.0, 0, 3.0, 0.0), (2, 0.5, 100, 2.5, 1e-4), (3, 0.75, 120, 0.4, 5e-5)]
    assert [row.train_accuracy for row in history.rows] == [0.1, 23 / 40, 0.9]
    assert [row.validation_loss for row in history.rows] == pytest.approx([2.0, 1.5, 1.6])


def test_validation_figures_are_over_tokens() -> None:
    row, examples = made_history([1.5]).rows[0], made_examples(1.5)
    assert row.validation_loss == pytest.approx(examples.response.sum() / examples.response_tokens.sum())
    assert row.validation_loss_full == pytest.approx(examples.full.sum() / examples.full_tokens.sum())
    assert row.validation_accuracy == pytest.approx(examples.response_correct.sum() / examples.response_tokens.sum())


def test_weights_are_wanted_at_every_minimum_and_nowhere_else() -> None:
    history = History(3, 0.05, lambda row: None)
    wanted = []
    for number, loss in enumerate([2.0, 1.5, 1.6, 1.5, 1.4, 1.45]):
        history.count(StepLoss(1.0, 1, 1), 1)
        wanted.append(history.validated(number, number / 4, 1e-4, made_examples(loss, noise=0)))
    assert wanted == [True, True, False, True, True, False]
    assert history.best == history.rows[4]


def test_the_onset_is_that_of_the_rows_so_far() -> None:
    confirmed = []
    for length in range(1, len(OVERFITS) + 1):
        history = made_history(OVERFITS[:length])
        losses = torch.stack([torch.from_numpy(examples.response) for examples in history.examples]).numpy()
        train = [row.train_loss for row in history.rows]
        tokens = history.examples[0].response_tokens
        assert history.found == find_onset(train, losses, tokens, patience=3, threshold=0.05)
        confirmed.append(history.found.confirmed)
    assert confirmed == [False] * 5 + [True] * 2


def test_patience_and_threshold_are_those_it_was_given() -> None:
    assert not made_history(OVERFITS[:4]).found.confirmed
    assert made_history(OVERFITS[:4], patience=1).found.confirmed
    assert not made_history(OVERFITS, threshold=1e-30).found.confirmed


def through_the_disk(history: History) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    tensors, values = history.state()
    return load(save(tensors)), json.loads(json.dumps(values))


@pytest.mark.parametrize("stop", range(1, len(OVERFITS)))
def test_a_restored_history_goes_on_as_if_it_had_not_been_stopped(stop: int) -> None:
    def go_on(history: History) -> None:
        for number, loss in enumerate(OVERFITS[stop:], start=stop):
            history.count(StepLoss(150.0 - number, 30, 100), 300)
            history.validated(7 * number, number / 4, 1e-4, made_examples(loss, seed=number))

    undisturbed, seen = made_history(OVERFITS[:stop]), list[LossRow]()
    undisturbed.count(StepLoss(80.0, 20, 90), 270)  # stopped between two validations
    restored = History(3, 0.05, seen.append)
    weights = {"layer": torch.arange(3.0)}
    restored.restore(*through_the_disk(undisturbed), weights)
    assert restored.best_weights == weights
    assert (restored.rows, restored.found, seen) == (undisturbed.rows, undisturbed.found, undisturbed.rows)
    go_on(undisturbed)
    go_on(restored)
    assert (restored.rows, restored.found, seen) == (undisturbed.rows, undisturbed.found, undisturbed.rows)
    assert isinstance(restored.rows[0], LossRow)
    for found, expected in zip(restored.examples, undisturbed.examples, strict=True):
        assert all((one == other).all() for one, other in zip(found, expected, strict=True))

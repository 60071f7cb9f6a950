"""Made-up loss histories, as a training leaves them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stages.model.history import History, LossRow, StepLoss
from stages.model.records import LossWriter, write_example_losses
from stages.model.validation import ExampleLosses

OVERFITS = [2.0, 1.5, 1.2, 1.25, 1.3, 1.35, 1.4]
"""Validation losses with their minimum at the third, confirmed at the sixth."""


def made_examples(loss: float, count: int = 12, *, noise: float = 0.01, seed: int = 0) -> ExampleLosses:
    """Examples of 5 to 24 response tokens whose mean loss over tokens is `loss`."""
    tokens = np.random.default_rng(count).integers(5, 25, count)
    wobble = np.random.default_rng(seed).normal(0, noise, count) * tokens
    response = loss * tokens + wobble - wobble.sum() * tokens / tokens.sum()
    return ExampleLosses(response, tokens, tokens // 2, response + 6 * tokens, 3 * tokens)


def made_history(
    validation: Sequence[float],
    train: Sequence[float] | None = None,
    *,
    patience: int = 3,
    threshold: float = 0.05,
    count: int = 12,
    seen: list[LossRow] | None = None,
) -> History:
    """A history with these mean losses, a validation every 7 steps, 4 times an epoch; `seen` takes in its rows."""
    falling = [2 - 0.1 * number for number in range(len(validation))]
    rows: list[LossRow] = [] if seen is None else seen
    history = History(patience, threshold, rows.append)
    for number, (loss, of_training) in enumerate(zip(validation, train or falling, strict=True)):
        history.count(StepLoss(of_training * 100, 50, 100), 300 if number else 0)
        history.validated(7 * number, number / 4, 1e-4 * number, made_examples(loss, count, seed=number))
    return history


def write_histories(folder: Path, history: History, ids: Sequence[str] | None = None) -> tuple[Path, Path]:
    """Write losses.csv and the examples' losses of a history where `onset` looks for them in the folder."""
    losses, example_losses = folder / "metrics/losses.csv", folder / "data/validation_losses.parquet"
    writer = LossWriter(losses, lambda row: None)
    for row in history.rows:
        writer(row)
    count = len(history.examples[0].response)
    write_example_losses(example_losses, history, ids or [f"example {number:03d}" for number in range(count)])
    return losses, example_losses

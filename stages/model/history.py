"""What training leaves behind as it goes: the loss history, the best weights, the onset."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.model.onset import Onset, find_onset
from stages.model.validation import ExampleLosses


class LossRow(NamedTuple):
    """One line of metrics/losses.csv."""

    step: int
    epoch: float
    tokens_seen: int
    """Tokens trained on so far, without padding."""
    train_loss: float
    """Mean over supervised tokens since the line before; on the first line, of the first batch before training."""
    validation_loss: float
    """Mean over response tokens of all validation examples."""
    validation_loss_full: float
    """The same over instruction and response."""
    learning_rate: float
    train_accuracy: float
    """Share of supervised tokens that no other token was likelier than, since the line before."""
    validation_accuracy: float
    """The same of response tokens of all validation examples."""


class StepLoss(NamedTuple):
    """Sums over the supervised tokens of some rows, over all processes."""

    loss: float
    """Negative log-likelihood in nats."""
    correct: float
    supervised: int


class History:
    """Grows by one row at each validation, and keeps the weights of the best."""

    def __init__(self, patience: int, threshold: float, on_validation: Callable[[LossRow], None]) -> None:
        self._patience, self._threshold, self._on_validation = patience, threshold, on_validation
        self.rows: list[LossRow] = []
        self.examples: list[ExampleLosses] = []
        """Validation losses of each example, beside `rows`."""
        self.best_weights: dict[str, Tensor] = {}
        """Trained weights at the best validation, on the CPU."""
        self._onset: Onset | None = None
        self._tokens_seen = 0
        self._since: list[StepLoss] = []

    @property
    def best(self) -> LossRow:
        """The row of the lowest validation loss."""
        return self.rows[self.found.best]

    @property
    def found(self) -> Onset:
        """The onset of overfitting as it looks after the latest validation."""
        assert self._onset is not None, "no validation yet"
        return self._onset

    def count(self, loss: StepLoss, tokens: int) -> None:
        """Take in one optimizer step on so many tokens."""
        self._tokens_seen += tokens
        self._since.append(loss)

    def validated(self, step: int, epoch: float, learning_rate: float, examples: ExampleLosses) -> bool:
        """Take in a validation; whether it is the best so far, whose weights are then wanted."""
        supervised = sum(loss.supervised for loss in self._since)
        row = LossRow(
            step,
            epoch,
            self._tokens_seen,
            sum(loss.loss for loss in self._since) / supervised,
            examples.response_loss,
            examples.full_loss,
            learning_rate,
            sum(loss.correct for loss in self._since) / supervised,
            examples.response_accuracy,
        )
        self._since = []
        self.rows.append(row)
        self.examples.append(examples)
        self._look()
        self._on_validation(row)
        return self.found.best == len(self.rows) - 1

    def _look(self) -> None:
        self._onset = find_onset(
            [row.train_loss for row in self.rows],
            np.stack([examples.response for examples in self.examples]),
            self.examples[0].response_tokens,
            patience=self._patience,
            threshold=self._threshold,
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything but the best weights, as tensors and plain values."""
        columns = zip(*self.examples, strict=True)
        tensors = {f"examples.{i}": torch.from_numpy(np.stack(column)) for i, column in enumerate(columns)}
        return tensors, {"rows": self.rows, "tokens_seen": self._tokens_seen, "since": self._since}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any], best: dict[str, Tensor]) -> None:
        """Go back to a `state` with these best weights; the rows are told again."""
        self.rows = [LossRow(*row) for row in values["rows"]]
        columns = [tensors[f"examples.{i}"].numpy() for i in range(len(ExampleLosses._fields))]
        self.examples = [ExampleLosses(*column) for column in zip(*columns, strict=True)]
        self._tokens_seen = values["tokens_seen"]
        self._since = [StepLoss(*loss) for loss in values["since"]]
        self.best_weights = best
        self._look()
        for row in self.rows:
            self._on_validation(row)

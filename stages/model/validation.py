"""Validation on every row: one loss for each example, so that two moments of training can be compared in pairs."""

from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from stages.model.batches import make_batch
from stages.model.loss import token_losses
from stages.pipeline.progress import bar
from stages.tokens.arrays import TokenArrays


class ExampleLosses(NamedTuple):
    """Sums of negative log-likelihood, in nats, float64 (example,), and token counts, int64 (example,)."""

    response: np.ndarray
    response_tokens: np.ndarray
    full: np.ndarray
    """Over instruction and response."""
    full_tokens: np.ndarray

    @property
    def response_loss(self) -> float:
        """Mean over all response tokens."""
        return float(self.response.sum() / self.response_tokens.sum())

    @property
    def full_loss(self) -> float:
        """Mean over all tokens."""
        return float(self.full.sum() / self.full_tokens.sum())


@torch.no_grad()
def validate(model: PreTrainedModel, arrays: TokenArrays, device: torch.device) -> ExampleLosses:
    """Losses of every example of a split, whatever training masks; the model is left as it was."""
    was_training = model.training
    model.eval()
    response, full = _Sums(len(arrays.ids)), _Sums(len(arrays.ids))
    for row in range(len(arrays.input_ids)):
        batch = make_batch(arrays, [row], device)
        losses, places = token_losses(model, batch, batch.next_ids)
        example, in_response = batch.example[places], batch.in_response[places]
        response.add(losses[in_response], example[in_response])
        full.add(losses, example)
    model.train(was_training)
    return ExampleLosses(response.sums, response.counts, full.sums, full.counts)


@torch.no_grad()
def label_losses(model: PreTrainedModel, arrays: TokenArrays, device: torch.device) -> np.ndarray:
    """Mean negative log-likelihood, in nats a token, of each example's labels; float64 (example,)."""
    model.eval()
    sums = _Sums(len(arrays.ids))
    with bar("likelihoods", len(arrays.input_ids)) as progress:
        for row in range(len(arrays.input_ids)):
            batch = make_batch(arrays, [row], device)
            losses, places = token_losses(model, batch, batch.labels)
            sums.add(losses, batch.example[places])
            progress.advance()
    return sums.sums / sums.counts


class _Sums:
    """Losses added up by example."""

    def __init__(self, num_examples: int) -> None:
        self.sums = np.zeros(num_examples)
        self.counts = np.zeros(num_examples, dtype=np.int64)

    def add(self, losses: torch.Tensor, example: torch.Tensor) -> None:
        """Take in losses (n,) of tokens of the examples (n,)."""
        positions = example.cpu().numpy()
        np.add.at(self.sums, positions, losses.double().cpu().numpy())
        np.add.at(self.counts, positions, 1)

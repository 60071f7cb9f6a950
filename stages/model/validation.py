"""Validation on every row: one loss for each example, so that two moments of training can be compared in pairs."""

from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from stages.model.batches import make_batch
from stages.model.loss import token_losses
from stages.model.parallel import ALONE, Ranks
from stages.pipeline.progress import bar
from stages.tokens.arrays import TokenArrays


class ExampleLosses(NamedTuple):
    """Sums of negative log-likelihood, in nats, float64 (example,), and token counts, int64 (example,)."""

    response: np.ndarray
    response_tokens: np.ndarray
    response_correct: np.ndarray
    """Response tokens that no other token was likelier than; int64 (example,)."""
    full: np.ndarray
    """Over instruction and response."""
    full_tokens: np.ndarray

    @property
    def response_accuracy(self) -> float:
        """Share of response tokens that no other token was likelier than."""
        return float(self.response_correct.sum() / self.response_tokens.sum())

    @property
    def response_loss(self) -> float:
        """Mean over all response tokens."""
        return float(self.response.sum() / self.response_tokens.sum())

    @property
    def full_loss(self) -> float:
        """Mean over all tokens."""
        return float(self.full.sum() / self.full_tokens.sum())


@torch.no_grad()
def validate(model: PreTrainedModel, arrays: TokenArrays, device: torch.device, ranks: Ranks = ALONE) -> ExampleLosses:
    """Losses of every example of a split, whatever training masks; the model is left as it was.

    Each of several processes takes its share of the rows, and all get the whole.
    """
    was_training = model.training
    model.eval()
    response, full, correct = (_Sums(len(arrays.ids)) for _ in range(3))
    num_rows = len(arrays.input_ids)
    for start in range(0, num_rows, ranks.world):
        row = start + ranks.rank
        batch = make_batch(arrays, [row % num_rows], device)
        losses = token_losses(model, batch, batch.next_ids)
        if row < num_rows:  # processes with sharded weights compute together, so one without a row computes in vain
            example, in_response = batch.example[losses.places], batch.in_response[losses.places]
            response.add(losses.nll[in_response], example[in_response])
            correct.add(losses.correct[in_response], example[in_response])
            full.add(losses.nll, example)
    model.train(was_training)
    sums = [response.sums, response.counts, correct.sums, full.sums, full.counts]
    together = ranks.sum(torch.from_numpy(np.stack(sums).astype(np.float64)).to(device)).cpu().numpy()
    kinds = (np.float64, np.int64, np.int64, np.float64, np.int64)
    return ExampleLosses(*(values.astype(kind) for values, kind in zip(together, kinds, strict=True)))


@torch.no_grad()
def label_losses(model: PreTrainedModel, arrays: TokenArrays, device: torch.device) -> np.ndarray:
    """Mean negative log-likelihood, in nats a token, of each example's labels; float64 (example,)."""
    model.eval()
    sums = _Sums(len(arrays.ids))
    with bar("likelihoods", len(arrays.input_ids)) as progress:
        for row in range(len(arrays.input_ids)):
            batch = make_batch(arrays, [row], device)
            losses = token_losses(model, batch, batch.labels)
            sums.add(losses.nll, batch.example[losses.places])
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

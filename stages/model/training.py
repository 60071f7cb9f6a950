"""The training loop: packed rows, fp32 masters under bf16 weights, a loss that is a sum over tokens."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from stages.model.batches import make_batch
from stages.model.loss import token_losses
from stages.model.onset import Onset, find_onset
from stages.model.validation import ExampleLosses, validate
from stages.pipeline.errors import UserError
from stages.pipeline.progress import bar
from stages.tokens.arrays import NO_EXAMPLE, TokenArrays

Schedule = Literal["constant", "linear", "cosine"]


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


class History(NamedTuple):
    """What a run leaves."""

    rows: list[LossRow]
    examples: list[ExampleLosses]
    """Validation losses of each example, beside `rows`."""
    onset: Onset
    best_weights: dict[str, torch.Tensor]
    """The state at the best validation, on the CPU, in the base model's own type."""
    tokens_per_second: float
    """Training alone, validation not counted."""


class MasterWeights:
    """AdamW over float32 copies of the weights, which keep updates too small for bfloat16.

    For float32 models the weights are their own masters. Norms and biases, the parameters of fewer than two dimensions,
    have no weight decay.
    """

    def __init__(self, model: PreTrainedModel, weight_decay: float) -> None:
        self._weights = [p for p in model.parameters() if p.requires_grad]
        copies = any(p.dtype != torch.float32 for p in self._weights)
        self._masters = [p.detach().float().clone() if copies else p for p in self._weights]
        groups = [
            {"params": [m for m in self._masters if m.dim() >= 2], "weight_decay": weight_decay},
            {"params": [m for m in self._masters if m.dim() < 2], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, fused=True)

    def collect_gradients(self) -> None:
        """Add what backward left to the masters' gradients."""
        for weight, master in zip(self._weights, self._masters, strict=True):
            if weight is master or weight.grad is None:
                continue
            if master.grad is None:
                master.grad = weight.grad.float()
            else:
                master.grad += weight.grad
            weight.grad = None

    def step(self, learning_rate: float, max_grad_norm: float) -> float:
        """One update; returns the norm of the gradient before clipping."""
        norm = float(torch.nn.utils.clip_grad_norm_(self._masters, max_grad_norm, foreach=True))
        if math.isfinite(norm):
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate
            self._optimizer.step()
            for weight, master in zip(self._weights, self._masters, strict=True):
                if weight is not master:
                    weight.detach().copy_(master)
        self._optimizer.zero_grad(set_to_none=True)
        return norm


def learning_rate_at(step: int, steps: int, peak: float, warmup_fraction: float, schedule: Schedule) -> float:
    """Rate of optimizer step `step` (from 0) of `steps`: linear warm-up to `peak`, then the schedule down to 0."""
    warmup = max(1, round(warmup_fraction * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[schedule]


def step_rows(num_rows: int, batch_size: int, epochs: int, seed: int) -> Iterator[list[int]]:
    """The rows of each optimizer step: every epoch all rows once, in an order of its own."""
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(num_rows).tolist()
        for start in range(0, num_rows, batch_size):
            yield order[start : start + batch_size]


def train_step(
    model: PreTrainedModel, masters: MasterWeights, arrays: TokenArrays, rows: list[int], micro_batch_size: int
) -> tuple[float, int]:
    """Gradients of one optimizer step; returns the summed loss and the number of supervised tokens.

    The loss is the sum over supervised tokens divided by their number over the whole step, so that it does not matter
    into how many micro-batches the rows are cut.
    """
    device = model.device
    num_supervised = int((arrays.labels[rows] >= 0).sum())
    total = 0.0
    for start in range(0, len(rows), micro_batch_size):
        batch = make_batch(arrays, rows[start : start + micro_batch_size], device)
        loss = token_losses(model, batch, batch.labels)[0].sum()
        (loss / num_supervised).backward()
        masters.collect_gradients()
        total += float(loss.detach())
    return total, num_supervised


def train(
    model: PreTrainedModel,
    training: TokenArrays,
    validation: TokenArrays,
    *,
    learning_rate: float,
    schedule: Schedule,
    warmup_fraction: float,
    epochs: int,
    batch_size: int,
    micro_batch_size: int,
    weight_decay: float,
    max_grad_norm: float,
    validations_per_epoch: int,
    early_stopping: bool,
    overfit_patience: int,
    overfit_p_value: float,
    seed: int,
    on_validation: Callable[[LossRow], None],
) -> History:
    """Fine-tune `model` in place until overfitting is confirmed or `epochs` are over.

    `on_validation` is called after each validation, the first of which comes before training.

    Raises:
        UserError: the loss or its gradient is no longer finite.
    """
    torch.manual_seed(seed)
    model.train()
    masters = MasterWeights(model, weight_decay)
    recorder = Recorder(model, training, validation, overfit_patience, overfit_p_value, on_validation)
    steps_per_epoch = math.ceil(len(training.input_ids) / batch_size)
    steps = steps_per_epoch * epochs
    validate_at = {
        round(k * steps_per_epoch / validations_per_epoch) for k in range(1, validations_per_epoch * epochs + 1)
    }
    all_rows = list(step_rows(len(training.input_ids), batch_size, epochs, seed))
    recorder.before_training(all_rows[0][:micro_batch_size])
    with bar("training", steps) as progress:
        for step, rows in enumerate(all_rows, start=1):
            started = time.perf_counter()
            rate = learning_rate_at(step - 1, steps, learning_rate, warmup_fraction, schedule)
            loss, count = train_step(model, masters, training, rows, micro_batch_size)
            norm = masters.step(rate, max_grad_norm)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise UserError(f"finetune: loss or gradient not finite at step {step}; lower finetune.learning_rate")
            recorder.count(rows, loss, count, time.perf_counter() - started)
            progress.advance(note=f"loss {loss / count:.3f}  {recorder.tokens_per_second:.0f} tokens/s")
            if (
                step in validate_at
                and recorder.validate(step, step / steps_per_epoch, rate).confirmed
                and early_stopping
            ):
                break
    return recorder.history()


class Recorder:
    """Keeps the loss history, the best weights and the speed while training goes on."""

    def __init__(
        self,
        model: PreTrainedModel,
        training: TokenArrays,
        validation: TokenArrays,
        patience: int,
        threshold: float,
        on_validation: Callable[[LossRow], None],
    ) -> None:
        self._model, self._training, self._validation = model, training, validation
        self._patience, self._threshold, self._on_validation = patience, threshold, on_validation
        self._rows: list[LossRow] = []
        self._examples: list[ExampleLosses] = []
        self._best_weights: dict[str, torch.Tensor] = {}
        self._onset: Onset | None = None
        self._tokens_seen, self._seconds = 0, 0.0
        self._loss_sum, self._loss_count = 0.0, 0

    @property
    def tokens_per_second(self) -> float:
        """Of training so far, without padding."""
        return self._tokens_seen / self._seconds if self._seconds else 0.0

    def before_training(self, rows: list[int]) -> None:
        """The line for step 0."""
        with torch.no_grad():
            batch = make_batch(self._training, rows, self._model.device)
            losses = token_losses(self._model, batch, batch.labels)[0]
        self._loss_sum, self._loss_count = float(losses.sum()), len(losses)
        self.validate(0, 0.0, 0.0)

    def count(self, rows: list[int], loss: float, num_supervised: int, seconds: float) -> None:
        """Take in one optimizer step."""
        self._tokens_seen += int((self._training.example[rows] != NO_EXAMPLE).sum())
        self._loss_sum += loss
        self._loss_count += num_supervised
        self._seconds += seconds

    def validate(self, step: int, epoch: float, learning_rate: float) -> Onset:
        """Validate, keep the weights if they are the best so far, and judge the history."""
        examples = validate(self._model, self._validation, self._model.device)
        train_loss = self._loss_sum / self._loss_count
        self._loss_sum, self._loss_count = 0.0, 0
        row = LossRow(
            step, epoch, self._tokens_seen, train_loss, examples.response_loss, examples.full_loss, learning_rate
        )
        self._rows.append(row)
        self._examples.append(examples)
        self._onset = find_onset(
            [row.train_loss for row in self._rows],
            np.stack([examples.response for examples in self._examples]),
            examples.response_tokens,
            patience=self._patience,
            threshold=self._threshold,
        )
        if self._onset.best == len(self._rows) - 1:
            self._best_weights = {
                name: tensor.detach().cpu().clone() for name, tensor in self._model.state_dict().items()
            }
        self._on_validation(row)
        return self._onset

    def history(self) -> History:
        """What to keep of the run."""
        assert self._onset is not None, "before_training comes first"
        return History(self._rows, self._examples, self._onset, self._best_weights, self.tokens_per_second)

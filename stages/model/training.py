"""The training loop: packed rows, fp32 masters under bf16 weights, a loss that is a sum over tokens."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stages.model.batches import iterate_batches
from stages.model.history import History, StepLoss
from stages.model.loss import token_losses
from stages.model.noise import EmbeddingNoise
from stages.model.optimizer import MasterWeights
from stages.model.parallel import Ranks, trained_weights
from stages.model.schedule import learning_rate_at, seed_of, step_rows, validation_steps
from stages.model.settings import FinetuneParams
from stages.model.state import Saved, StateFolder
from stages.model.validation import ExampleLosses, validate
from stages.pipeline.errors import StoppedError, UserError
from stages.pipeline.progress import Bar, bar, say
from stages.tokens.arrays import NO_EXAMPLE, TokenArrays


class Data(NamedTuple):
    """What is trained on, and what is held against it."""

    training: TokenArrays
    validation: TokenArrays


class Trainer:
    """Fine-tunes a model in place until overfitting is confirmed or all epochs are over.

    Every step depends on the state before it, its number and the data alone, so that a training that was stopped goes
    on to the same bytes.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        data: Data,
        settings: FinetuneParams,
        history: History,
        masters: MasterWeights,
        *,
        ranks: Ranks,
        state: StateFolder,
        stop_reason: Callable[[], str | None],
        on_validated: Callable[[int], None],
        on_first_validation: Callable[[ExampleLosses], None],
    ) -> None:
        self._model, self._data, self._settings = model, data, settings
        self._history, self._masters = history, masters
        self._ranks, self._state, self._stop_reason = ranks, state, stop_reason
        self._on_validated, self._on_first_validation = on_validated, on_first_validation
        self._noise = EmbeddingNoise(model, settings.neftune_alpha)
        self._steps_per_epoch = math.ceil(len(data.training.input_ids) / settings.batch_size)
        self._speed = _Speed()

    @property
    def steps(self) -> int:
        """Optimizer steps in all epochs."""
        return self._steps_per_epoch * self._settings.epochs

    @property
    def tokens_per_second(self) -> float:
        """Of training in this process's time, validation and padding not counted."""
        return self._speed.tokens_per_second

    def run(self) -> None:
        """Train; from where it was stopped, if it was.

        Raises:
            UserError: the loss or its gradient is no longer finite.
            StoppedError: it was told to stop, and is saved.
        """
        settings = self._settings
        plan = list(step_rows(len(self._data.training.input_ids), settings.batch_size, settings.epochs, settings.seed))
        validate_at = validation_steps(self._steps_per_epoch, settings.validations_per_epoch, settings.epochs)
        self._model.train()
        done = self._resume()
        if done is None:
            self._before_training(plan[0])
            done = 0
        with bar("training", self.steps) as progress:
            progress.advance(done)
            for step in range(done + 1, self.steps + 1):
                if self._is_over():
                    break
                self._stop_if_asked(done)
                rate = self._step(step, plan[step - 1], progress)
                if step in validate_at:
                    self._validate(step, rate)
                if step % settings.save_every == 0 and step < self.steps:
                    self._save(step)
                done = step
            self._stop_if_asked(done)  # an orphan that ends well has worked in vain

    def _is_over(self) -> bool:
        return self._settings.early_stopping and self._history.found.confirmed

    def _before_training(self, rows: list[int]) -> None:
        """The line for step 0: the loss of the first rows, and the first validation."""
        with torch.no_grad():
            few = rows[: self._settings.micro_batch_size]
            first = next(iterate_batches(self._data.training, [few], self._model.device))
            losses = token_losses(self._model, first, first.labels)
        self._history.count(StepLoss(float(losses.nll.sum()), float(losses.correct.sum()), len(losses.nll)), 0)
        self._validate(0, 0.0)
        self._on_first_validation(self._history.examples[0])

    def _step(self, step: int, rows: list[int], progress: Bar) -> float:
        """One optimizer step; its learning rate."""
        settings = self._settings
        started = time.perf_counter()
        torch.manual_seed(seed_of(settings.seed, step, self._ranks.rank))
        rate = learning_rate_at(
            step - 1, self.steps, settings.learning_rate, settings.warmup_fraction, settings.schedule
        )
        found = train_step(
            self._model,
            self._data.training,
            rows,
            settings.micro_batch_size,
            ranks=self._ranks,
            sharded=settings.sharding == "fsdp" and self._ranks.world > 1,
            label_smoothing=settings.label_smoothing,
            noise=self._noise,
        )
        norm = self._masters.gradient_norm()
        if not (math.isfinite(found.loss) and math.isfinite(norm)):
            self._not_finite(step, rows, "gradient" if math.isfinite(found.loss) else "loss")
        self._masters.step(rate, norm, settings.max_grad_norm)
        tokens = int((self._data.training.example[rows] != NO_EXAMPLE).sum())
        self._history.count(found, tokens)
        self._speed.count(tokens, time.perf_counter() - started)
        progress.advance(note=f"loss {found.loss / found.supervised:.3f}  {self.tokens_per_second:.0f} tokens/s")
        return rate

    def _not_finite(self, step: int, rows: list[int], what: str) -> None:
        numbers = sorted({int(n) for n in self._data.training.example[rows].flatten() if n != NO_EXAMPLE})
        ids = ", ".join(self._data.training.ids[number] for number in numbers[:8])
        more = f" and {len(numbers) - 8} more" if len(numbers) > 8 else ""
        kept = self._state.latest_step()
        where = f"; the state after step {kept} is kept in {self._state.path}" if kept is not None else ""
        raise UserError(
            f"finetune: the {what} is not finite at step {step} (rows {ids}{more}); lower finetune.learning_rate, "
            f"raise finetune.warmup_fraction, or set finetune.precision: fp32{where}"
        )

    def _validate(self, step: int, rate: float) -> None:
        examples = validate(self._model, self._data.validation, self._model.device, self._ranks)
        epoch = step / self._steps_per_epoch
        if self._history.validated(step, epoch, rate, examples):
            self._history.best_weights = trained_weights(self._model)
        self._on_validated(step)

    def _resume(self) -> int | None:
        """Steps that are done, after going back to the latest state if there is one."""
        saved = self._state.load() if self._ranks.first else None
        if self._ranks.world > 1:
            step = int(self._ranks.total(saved.step + 1 if saved else 0)[0]) - 1
            if not self._ranks.first and step >= 0:
                saved = self._state.load(step)
        if saved is None:
            return None
        part = {kind: _under(kind, saved.tensors) for kind in ("masters", "history")}
        self._masters.restore(part["masters"], saved.values["masters"])
        self._history.restore(part["history"], saved.values["history"], saved.best)
        say(f"  goes on after step {saved.step} of {self.steps}")
        return saved.step

    def _save(self, step: int) -> None:
        tensors: dict[str, Tensor] = {}
        values: dict[str, Any] = {}
        for kind, (of_kind, values[kind]) in {
            "masters": self._masters.state(),
            "history": self._history.state(),
        }.items():
            tensors |= {f"{kind}/{name}": tensor for name, tensor in of_kind.items()}
        if self._ranks.first:
            self._state.save(Saved(step, tensors, values, self._history.best_weights), self._history.best.step)

    def _stop_if_asked(self, done: int) -> None:
        reason = self._stop_reason()
        if self._ranks.total(reason is not None)[0]:
            self._save(done)
            raise StoppedError(
                f"finetune: stopped after step {done} of {self.steps} ({reason or 'by another process'}); the state is "
                "saved, run `dvc repro` to go on"
            )


def train_step(
    model: PreTrainedModel,
    arrays: TokenArrays,
    rows: list[int],
    micro_batch_size: int,
    *,
    ranks: Ranks,
    sharded: bool,
    label_smoothing: float,
    noise: EmbeddingNoise,
) -> StepLoss:
    """Gradients of one optimizer step on `rows`, of which this process takes its share.

    The loss is the sum over supervised tokens divided by their number over the whole step, so that it does not matter
    how many micro-batches or processes the rows are cut into.
    """
    num_supervised = int((arrays.labels[rows] >= 0).sum())
    share = ranks.share(rows)
    chunks = [share[start : start + micro_batch_size] for start in range(0, len(share), micro_batch_size)]
    if sharded:  # all processes compute together: one that has no rows left computes in vain
        chunks += [[]] * (math.ceil(math.ceil(len(rows) / ranks.world) / micro_batch_size) - len(chunks))
    nll, correct = 0.0, 0.0
    batches = iterate_batches(arrays, [chunk or rows[:1] for chunk in chunks], model.device)
    for chunk, batch in zip(chunks, batches, strict=True):
        noise.expect(batch)
        losses = token_losses(model, batch, batch.labels, label_smoothing)
        objective = losses.objective.sum() / num_supervised
        (objective if chunk else 0 * objective).backward()
        if chunk:
            nll += float(losses.nll.sum())
            correct += float(losses.correct.sum())
    nll, correct = ranks.total(nll, correct)
    return StepLoss(nll, correct, num_supervised)


class _Speed:
    """Tokens a second, without the first step, in which kernels are compiled."""

    def __init__(self) -> None:
        self._tokens, self._seconds, self._steps = 0, 0.0, 0

    def count(self, tokens: int, seconds: float) -> None:
        """Take in one step."""
        if self._steps == 1:
            self._tokens, self._seconds = 0, 0.0
        self._tokens += tokens
        self._seconds += seconds
        self._steps += 1

    @property
    def tokens_per_second(self) -> float:
        return self._tokens / self._seconds if self._seconds else 0.0


def _under(kind: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{kind}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{kind}/")}

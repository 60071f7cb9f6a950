"""The training loop on a tiny model."""

from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.model import attention
from stages.model.checkpoint import load_model, make_deterministic, save_checkpoint
from stages.model.training import History, LossRow, learning_rate_at, step_rows, train
from stages.model.validation import validate
from stages.pipeline.errors import UserError
from tests.model.test_loss import CPU, arrays, examples

KNOBS: dict[str, Any] = {
    "learning_rate": 5e-3,
    "schedule": "cosine",
    "warmup_fraction": 0.1,
    "epochs": 10,
    "batch_size": 4,
    "micro_batch_size": 2,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "validations_per_epoch": 2,
    "early_stopping": True,
    "overfit_patience": 2,
    "overfit_p_value": 0.05,
    "seed": 7,
}


def run(folder: Path, seen: list[LossRow] | None = None, dtype: torch.dtype = torch.float32, **changes: Any) -> History:
    make_deterministic(0)
    model = load_model(folder, dtype, CPU, attention=attention.NAME)
    rows = seen if seen is not None else []
    return train(
        model,
        arrays(examples(60), "pack"),
        arrays(examples(30, seed=1), "pack"),
        on_validation=rows.append,
        **(KNOBS | changes),
    )


def test_stops_where_overfitting_is_confirmed(tiny_llama: Path) -> None:
    """The tokens are random, so all that training can do is to learn them by heart."""
    seen: list[LossRow] = []
    history = run(tiny_llama, seen)
    assert history.onset.confirmed
    assert history.rows == seen
    assert history.rows[0].step == 0
    assert len(history.rows) - 1 >= history.onset.best + KNOBS["overfit_patience"]
    assert history.rows[-1].epoch < KNOBS["epochs"]
    assert history.rows[-1].train_loss < history.rows[0].train_loss
    best = history.rows[history.onset.best]
    assert best.validation_loss == min(row.validation_loss for row in history.rows)


def test_the_best_weights_are_those_of_the_minimum(tiny_llama: Path, tmp_path: Path) -> None:
    history = run(tiny_llama)
    save_checkpoint(tmp_path, load_model(tiny_llama, torch.float32, CPU), history.best_weights, tiny_llama, {})
    saved = load_model(tmp_path, torch.float32, CPU, attention=attention.NAME)
    losses = validate(saved, arrays(examples(30, seed=1), "pack"), CPU)
    assert losses.response_loss == pytest.approx(history.rows[history.onset.best].validation_loss, rel=1e-5)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "onset.json"} <= names


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_twice_the_same(tiny_llama: Path, dtype: torch.dtype) -> None:
    first, second = (run(tiny_llama, dtype=dtype, epochs=2) for _ in range(2))
    assert first.rows == second.rows
    assert all(torch.equal(first.best_weights[name], second.best_weights[name]) for name in first.best_weights)
    assert run(tiny_llama, dtype=dtype, epochs=2, seed=8).rows != first.rows


def test_without_early_stopping_all_epochs_run(tiny_llama: Path) -> None:
    history = run(tiny_llama, early_stopping=False, epochs=4, validations_per_epoch=3)
    assert history.rows[-1].epoch == 4
    assert len(history.rows) == 1 + 4 * 3
    real = int((arrays(examples(60), "pack").example >= 0).sum())
    assert history.rows[-1].tokens_seen == 4 * real


def test_what_is_not_finite_stops_at_once(tiny_llama: Path) -> None:
    model = load_model(tiny_llama, torch.float32, CPU, attention=attention.NAME)
    model.load_state_dict({name: torch.full_like(p, float("nan")) for name, p in model.state_dict().items()})
    data = arrays(examples(8), "pad")
    with pytest.raises(UserError, match=r"not finite at step 1; lower finetune\.learning_rate"):
        train(model, data, data, on_validation=lambda row: None, **KNOBS)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedules_rise_to_the_peak_and_fall(schedule: Any) -> None:
    rates = [learning_rate_at(step, 100, 1.0, 0.1, schedule) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert max(rates) == 1.0
    assert all(later <= earlier for earlier, later in pairwise(rates[9:]))
    assert rates[-1] == (1.0 if schedule == "constant" else pytest.approx(0, abs=0.02))


def test_every_epoch_has_every_row_once_in_its_own_order() -> None:
    steps = list(step_rows(10, 4, 2, seed=3))
    assert [len(rows) for rows in steps] == [4, 4, 2, 4, 4, 2]
    first, second = list(chain(*steps[:3])), list(chain(*steps[3:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second

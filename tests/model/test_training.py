"""The training loop on a tiny model: where it stops, what it keeps, and that nothing but its inputs decides."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.instructions.templates import TEMPLATES
from stages.model import kernels
from stages.model.history import History, LossRow
from stages.model.preparing import export
from stages.model.training import Data
from stages.model.validation import label_losses, validate
from stages.pipeline.errors import StoppedError, UserError
from stages.tokens.arrays import NO_EXAMPLE
from stages.tokens.labels import label
from stages.tokens.tokenizer import Tokenizer
from tests.model.making import CPU, arrays, data, examples, load, make_training, settings, train
from tests.tokens.making import shipped_rows


def check_same(found: History, expected: History) -> None:
    """Byte for byte."""
    assert found.rows == expected.rows
    assert found.best_weights.keys() == expected.best_weights.keys()
    assert all(torch.equal(weight, expected.best_weights[name]) for name, weight in found.best_weights.items())


def test_stops_where_overfitting_is_confirmed(tiny_llama: Path) -> None:
    seen: list[LossRow] = []
    history = train(tiny_llama, epochs=10, seen=seen)
    assert history.found.confirmed
    assert history.rows == seen
    assert history.rows[0].step == 0
    assert len(history.rows) - 1 >= history.found.best + settings().overfit_patience
    assert history.rows[-1].epoch < 10
    assert history.best.validation_loss == min(row.validation_loss for row in history.rows)
    assert len(history.examples) == len(history.rows)


def test_without_early_stopping_all_epochs_run(tiny_llama: Path) -> None:
    history = train(tiny_llama, early_stopping=False, epochs=8, validations_per_epoch=3)
    assert history.found.confirmed
    assert history.rows[-1].epoch == 8
    assert len(history.rows) == 1 + 8 * 3
    assert history.rows[-1].tokens_seen == 8 * int((data().training.example != NO_EXAMPLE).sum())


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_checkpoint_has_the_loss_of_the_minimum(
    kind: str, dtype: torch.dtype, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    history = train(folder, dtype=dtype, epochs=6, early_stopping=False)
    assert 0 < history.found.best < len(history.rows) - 1, "neither where it starts nor where it ends"
    export(tmp_path, folder, folder, settings(), history.best_weights, {"best_step": history.best.step})
    found = validate(load(tmp_path, dtype), data().validation, CPU)
    assert found.response_loss == pytest.approx(history.best.validation_loss, rel=1e-6)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "onset.json"} <= names
    assert not names & {"origin.json", "adapter"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_twice_the_same(tiny_llama: Path, dtype: torch.dtype) -> None:
    first = train(tiny_llama, dtype=dtype, epochs=2)
    check_same(train(tiny_llama, dtype=dtype, epochs=2), first)
    other = train(tiny_llama, dtype=dtype, epochs=2, seed=8)
    assert other.rows[0].validation_loss == first.rows[0].validation_loss
    assert other.rows[-1].validation_loss != first.rows[-1].validation_loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_accumulation_does_not_change_the_trajectory(tiny_llama: Path, dtype: torch.dtype) -> None:
    """1 x 8, 2 x 4 and 8 x 1 rows of very different lengths: losses are added up and divided once, for the whole step.

    A mean of means would be off by a hundredth.
    """
    padded = Data(arrays(examples(60), "pad"), data().validation)
    changes: dict[str, Any] = {"batch_size": 8, "epochs": 1, "validations_per_epoch": 4}
    at_once, *in_parts = (
        train(tiny_llama, on=padded, dtype=dtype, micro_batch_size=size, **changes).rows for size in (8, 4, 1)
    )
    tolerance = 1e-5 if dtype == torch.float32 else 2e-3
    for rows in in_parts:
        assert [row.train_loss for row in rows[1:]] == pytest.approx(
            [row.train_loss for row in at_once[1:]], rel=tolerance
        )
        assert [row.validation_loss for row in rows] == pytest.approx(
            [row.validation_loss for row in at_once], rel=tolerance
        )
    assert at_once[-1].train_loss < at_once[0].train_loss - 0.05


def test_reported_losses_are_means_over_tokens(tiny_llama: Path) -> None:
    """Of an epoch at a rate of almost nothing: the base model's own, by another way."""
    model, (training, validation) = load(tiny_llama), data()
    of_labels = label_losses(model, training, CPU)
    tokens = [int(((training.example == number) & (training.labels >= 0)).sum()) for number in range(len(training.ids))]
    expected = validate(model, validation, CPU)

    row = train(tiny_llama, learning_rate=1e-12, epochs=1, validations_per_epoch=1).rows[-1]
    assert row.train_loss == pytest.approx((of_labels * tokens).sum() / sum(tokens), rel=1e-5)
    assert row.validation_loss == pytest.approx(expected.response.sum() / expected.response_tokens.sum())
    assert row.validation_loss_full == pytest.approx(expected.full.sum() / expected.full_tokens.sum())


def shipped(folder: Path) -> Data:
    """A third of the shipped rows, by the tokenizer in a folder; every eighth of these to validate on."""
    tokenizer, rows = Tokenizer(folder), shipped_rows()[::3]
    splits = []
    for chosen in ([row for at, row in enumerate(rows) if at % 8], rows[::8]):
        rendered = (TEMPLATES["chatml"].render(row["instruction"], row["input"], row["output"]) for row in chosen)
        splits.append(arrays(label(rendered, tokenizer, 256), width=256))
    return Data(*splits)


def test_bfloat16_ends_where_float32_does(tiny_llama: Path) -> None:
    """Within a hundredth, after learning something of the shipped data."""
    exact, rounded = (
        train(
            tiny_llama, on=shipped(tiny_llama), dtype=dtype, batch_size=2, learning_rate=1e-2, validations_per_epoch=1
        )
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert exact.best.validation_loss < exact.rows[0].validation_loss - 1.5
    assert rounded.best.validation_loss == pytest.approx(exact.best.validation_loss, rel=0.01)


def test_accuracy_is_the_share_of_tokens_that_the_model_would_choose(tiny_llama: Path) -> None:
    """A model that has learnt three short examples by heart knows all of their responses, and nothing of others."""
    few = arrays(examples(3, longest=12))
    changes: dict[str, Any] = {"epochs": 50, "learning_rate": 2e-2, "validations_per_epoch": 1, "early_stopping": False}
    known = train(tiny_llama, on=Data(few, few), **changes).rows
    assert known[0].train_accuracy < 0.1
    assert known[0].validation_accuracy < 0.1
    assert known[-1].train_accuracy == known[-1].validation_accuracy == 1
    unknown = train(tiny_llama, on=Data(few, arrays(examples(8, seed=1))), **changes).rows
    assert unknown[-1].train_accuracy == 1
    assert unknown[-1].validation_accuracy < 0.1


WAYS: list[dict[str, Any]] = [
    {},
    {"dtype": torch.bfloat16},
    {"optimizer": "SGD", "optimizer_options": {"momentum": 0.9}, "learning_rate": 0.1},
    {"optimizer": "Adafactor"},
    {"neftune_alpha": 5, "label_smoothing": 0.1},
    {"method": "lora", "lora_rank": 4, "lora_dropout": 0.3},
]


@pytest.mark.parametrize("changes", WAYS)
def test_a_stopped_training_ends_with_the_same_bytes(tiny_llama: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Told to stop after five steps, in the middle between two validations."""
    undisturbed = train(tiny_llama, early_stopping=False, **changes)
    asked: list[None] = []

    def stop_reason() -> str | None:
        asked.append(None)
        return "SIGTERM" if len(asked) > 5 else None

    with pytest.raises(
        StoppedError, match=r"stopped after step 5 of 12 \(SIGTERM\); the state is saved, run `dvc repro`"
    ):
        train(tiny_llama, tmp_path / "state", early_stopping=False, stop_reason=stop_reason, **changes)
    told: list[LossRow] = []
    resumed = train(tiny_llama, tmp_path / "state", early_stopping=False, seen=told, **changes)
    check_same(resumed, undisturbed)
    assert told == undisturbed.rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_layers_go_on_as_well(
    tiny_llama: Path, tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of their weights lie transposed in memory, and with them all that the optimizer keeps."""
    monkeypatch.setattr(kernels, "can_compile", lambda: True)
    monkeypatch.setattr(kernels, "use_compiled", lambda wanted, required: None)
    changes: dict[str, Any] = {"dtype": dtype, "early_stopping": False, "compile": "auto", "save_every": 5}
    training = make_training(tiny_llama, tmp_path / "state", **changes)
    assert training.ways.fused
    training.trainer._stop_reason = lambda: "SIGTERM" if training.trainer._state.latest_step() else None
    with pytest.raises(StoppedError):
        training.trainer.run()
    undisturbed = train(tiny_llama, **changes)
    check_same(train(tiny_llama, tmp_path / "state", **changes), undisturbed)
    for row, plain in zip(undisturbed.rows, train(tiny_llama, dtype=dtype, early_stopping=False).rows, strict=True):
        assert row.validation_loss == pytest.approx(plain.validation_loss, rel=1e-3 if dtype == torch.float32 else 1e-2)


def test_a_training_that_broke_off_goes_on_from_its_last_save(tiny_llama: Path, tmp_path: Path) -> None:
    undisturbed = train(tiny_llama, early_stopping=False)
    training = make_training(tiny_llama, tmp_path / "state", early_stopping=False, save_every=3)
    asked: list[None] = []

    def break_off() -> None:
        asked.append(None)
        if len(asked) == 9:
            raise KeyboardInterrupt

    training.trainer._stop_reason = break_off
    with pytest.raises(KeyboardInterrupt):
        training.trainer.run()
    assert training.trainer._state.latest_step() == 6
    check_same(train(tiny_llama, tmp_path / "state", early_stopping=False, save_every=3), undisturbed)


def test_a_training_that_has_found_overfitting_does_not_train_on_when_it_goes_on(
    tiny_llama: Path, tmp_path: Path
) -> None:
    """Broken off after it was over, say while it wrote the checkpoint."""
    over = train(tiny_llama, tmp_path / "state", epochs=10, save_every=1)
    assert over.found.confirmed
    check_same(train(tiny_llama, tmp_path / "state", epochs=10, save_every=1), over)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_stops_at_once(tiny_llama: Path, tmp_path: Path, what: str) -> None:
    """Step, examples, what to try, and where the state before is kept."""
    training = make_training(tiny_llama, tmp_path / "state", save_every=3, early_stopping=False)
    steps: list[int] = []

    def spoil(step: int) -> None:
        steps.append(step)
        weight: Any = training.model.get_parameter("model.norm.weight")
        if step == 4 and what == "loss":
            weight.data.fill_(math.nan)
        elif step == 4:
            weight.register_hook(lambda gradient: gradient * math.inf)

    training.trainer._on_validated = spoil
    with pytest.raises(UserError) as error:
        training.trainer.run()
    said = str(error.value)
    assert said.startswith(f"finetune: the {what} is not finite at step 5 (rows ")
    ids = said.split("(rows ")[1].split(" and ")[0].split(", ")
    assert len(ids) == 8
    assert set(ids) <= set(data().training.ids)
    assert "lower finetune.learning_rate, raise finetune.warmup_fraction, or set finetune.precision: fp32" in said
    assert said.endswith(f"; the state after step 3 is kept in {tmp_path / 'state'}")
    assert steps == [0, 2, 4]


def test_where_nothing_was_saved_no_state_is_promised(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not finite at step 2 .*fp32$"):
        train(tiny_llama, tmp_path / "state", optimizer="SGD", learning_rate=1e38, warmup_fraction=0)

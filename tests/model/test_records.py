"""What a training leaves beside the checkpoint: its losses, those of each example, its figures, and its last line."""

import json
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages.model.finetuning import found_in_words
from stages.model.history import LossRow
from stages.model.onset import FEWEST_EXAMPLES
from stages.model.records import LossWriter, read_histories, summarize, write_example_losses
from stages.pipeline.errors import UserError
from stages.pipeline.files import write_json
from tests.model.histories import OVERFITS, made_history, write_histories

# ---- while it trains


def test_losses_grow_on_disk_by_a_line_a_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, mirrored = tmp_path / "metrics/losses.csv", list[Mapping[str, float]]()
    writer = LossWriter(path, mirrored.append)
    rows = made_history(OVERFITS).rows
    for number, row in enumerate(rows, start=1):
        writer(row)
        lines = path.read_text().splitlines()
        assert lines[0] == (
            "step,epoch,tokens_seen,train_loss,validation_loss,validation_loss_full,learning_rate,"
            "train_accuracy,validation_accuracy"
        )
        assert len(lines) == 1 + number
        assert list(map(float, lines[-1].split(","))) == pytest.approx(list(row), rel=1e-5)
        assert list(path.parent.iterdir()) == [path]
    assert mirrored == [row._asdict() for row in rows]
    said = capsys.readouterr().err.splitlines()
    assert said[1] == "  epoch 0.25  step 7  train loss 1.9000  validation loss 1.5000  accuracy 48.7%"
    assert len(said) == len(rows)


def test_a_process_that_is_not_the_first_writes_no_file(tmp_path: Path) -> None:
    mirrored: list[Mapping[str, float]] = []
    LossWriter(None, mirrored.append)(made_history([1.5]).rows[0])
    assert len(mirrored) == 1
    assert list(tmp_path.iterdir()) == []


# ---- to disk and back


def test_histories_are_read_as_they_were_written(tmp_path: Path) -> None:
    history = made_history(OVERFITS)
    ids = [f"{number:x}" for number in np.random.default_rng(0).permutation(12)]
    rows, losses, tokens = read_histories(*write_histories(tmp_path, history, ids))
    assert [LossRow(*row) for row in rows.itertuples(index=False)] == [
        pytest.approx(row, rel=1e-5) for row in history.rows
    ]
    order = np.argsort(ids)
    assert np.array_equal(losses, np.stack([examples.response[order] for examples in history.examples]))
    assert np.array_equal(tokens, history.examples[0].response_tokens[order])


def test_example_losses_are_a_table_by_step_and_id(tmp_path: Path) -> None:
    history = made_history(OVERFITS[:2], count=3)
    path = tmp_path / "losses.parquet"
    write_example_losses(path, history, ["b", "a", "c"])
    table = pd.read_parquet(path)
    assert list(zip(table["step"], table["id"], strict=True)) == list(product([0, 7], ["b", "a", "c"]))
    for number, examples in enumerate(history.examples):
        here = table.iloc[3 * number : 3 * number + 3]
        for column in ("response", "full"):
            assert here[f"{column}_loss"].tolist() == getattr(examples, column).tolist()
            assert here[f"{column}_tokens"].tolist() == getattr(examples, f"{column}_tokens").tolist()


def test_the_same_history_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (write_histories(tmp_path / name, made_history(OVERFITS)) for name in ("first", "second"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


# ---- files that are missing, damaged, or of two trainings


def edit(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    path.write_text("".join(f"{line}\n" for line in change(path.read_text().splitlines())))


DAMAGED_CSV: dict[str, bytes] = {
    "empty": b"",
    "another kind of file": b"\x89PNG\r\n\xff\xfe\0\0",
    "an open quote": b'step,epoch\n"0,0\n',
    "a line cut short": ",".join(LossRow._fields).encode() + b"\n0,0,0,1.5\n",
    "a word among figures": ",".join(LossRow._fields).encode() + b"\n0,0,0,much,1,1,0,0,0\n",
    "a figure left out": ",".join(LossRow._fields).encode() + b"\n0,0,0,,1,1,0,0,0\n",
}


@pytest.mark.parametrize("content", DAMAGED_CSV.values(), ids=DAMAGED_CSV)
def test_a_damaged_loss_history_is_named(tmp_path: Path, content: bytes) -> None:
    losses, example_losses = write_histories(tmp_path, made_history(OVERFITS))
    losses.write_bytes(content)
    with pytest.raises(UserError, match=rf"^{losses}: damaged; delete it and run `dvc repro finetune`$"):
        read_histories(losses, example_losses)


def test_damaged_example_losses_are_named(tmp_path: Path) -> None:
    losses, example_losses = write_histories(tmp_path, made_history(OVERFITS))
    example_losses.write_bytes(example_losses.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"^{example_losses}: damaged; delete it and run `dvc repro`$"):
        read_histories(losses, example_losses)


@pytest.mark.parametrize("number", [0, 1])
def test_a_missing_file_is_named(tmp_path: Path, number: int) -> None:
    paths = write_histories(tmp_path, made_history(OVERFITS))
    paths[number].unlink()
    with pytest.raises(UserError, match=rf"^{paths[number]}: not found; run `dvc repro"):
        read_histories(*paths)


MIXED: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "a validation less": lambda table: table[table["step"] < 42],
    "a validation more": lambda table: pd.concat([table, table[:12].assign(step=49)]),
    "an example less at the first validation": lambda table: table.iloc[1:],
    "an example less at the last validation": lambda table: table.iloc[:-1],
    "an example twice": lambda table: pd.concat([table, table[:1]]),
    "no example": lambda table: table[:0],
    "the losses of another training": lambda table: table.assign(response_loss=table["response_loss"] * 1.01),
    "another kind of table": lambda table: table[["id"]],
}


@pytest.mark.parametrize("change", MIXED.values(), ids=MIXED)
def test_files_of_two_trainings_are_noticed(tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    losses, example_losses = write_histories(tmp_path, made_history(OVERFITS))
    change(pd.read_parquet(example_losses)).to_parquet(example_losses)
    with pytest.raises(UserError, match=rf"^{losses} and {example_losses} are not of one training; run `dvc repro"):
        read_histories(losses, example_losses)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda lines: [line.rsplit(",", 2)[0] for line in lines], id="of an earlier version"),
        pytest.param(lambda lines: lines[:1], id="without a row"),
        pytest.param(lambda lines: lines[:-1], id="of a training that goes on"),
    ],
)
def test_a_loss_history_of_another_training_is_noticed(
    tmp_path: Path, change: Callable[[list[str]], list[str]]
) -> None:
    losses, example_losses = write_histories(tmp_path, made_history(OVERFITS))
    edit(losses, change)
    with pytest.raises(UserError, match="are not of one training"):
        read_histories(losses, example_losses)


def test_two_empty_files_are_no_training(tmp_path: Path) -> None:
    losses, example_losses = write_histories(tmp_path, made_history(OVERFITS))
    edit(losses, lambda lines: lines[:1])
    pd.read_parquet(example_losses)[:0].to_parquet(example_losses)
    with pytest.raises(UserError, match="are not of one training"):
        read_histories(losses, example_losses)


# ---- the figures, and the end in words

KEYS = (
    "best_epoch best_step best_validation_loss best_validation_accuracy first_validation_loss overfit_epoch "
    "overfit_confirmed overfit_p_value overfit_step generalization_loss epochs_trained"
)


def figures(**made: Any) -> dict[str, Any]:
    found = summarize(made_history(**made))
    assert set(found) == set(KEYS.split())
    return found


def test_the_summary_of_a_confirmed_overfitting(tmp_path: Path) -> None:
    found = figures(validation=OVERFITS)
    assert (found["best_epoch"], found["best_step"], found["epochs_trained"]) == (0.5, 14, 1.5)
    assert (found["overfit_epoch"], found["overfit_step"], found["overfit_confirmed"]) == (0.5, 14, 1)
    assert (found["best_validation_loss"], found["first_validation_loss"]) == (1.2, 2.0)
    assert found["best_validation_accuracy"] == pytest.approx(0.487, abs=1e-3)
    assert 0 < found["overfit_p_value"] < 0.05
    assert found["generalization_loss"] == pytest.approx(100 * (1.4 / 1.2 - 1), abs=1e-5)
    write_json(tmp_path / "finetune.json", found)
    assert json.loads((tmp_path / "finetune.json").read_text()) == found


def test_the_summary_where_no_overfitting_is_seen() -> None:
    found = figures(validation=[2.0, 1.5, 1.2])
    assert (found["overfit_epoch"], found["overfit_step"], found["overfit_confirmed"]) == (-1, -1, 0)
    assert (found["overfit_p_value"], found["generalization_loss"]) == (1.0, 0.0)
    assert (found["best_epoch"], found["best_step"], found["epochs_trained"]) == (0.5, 14, 0.5)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"validation": OVERFITS[:3]}, "no overfitting seen; best validation loss 1.2000 after 0.50 of 0.50 epochs"),
        (
            {"validation": OVERFITS},
            "overfitting from epoch 0.50 (confirmed); best validation loss 1.2000 after 0.50 of 1.50 epochs",
        ),
        (
            {"validation": OVERFITS[:5]},
            "overfitting from epoch 0.50 (not confirmed); best validation loss 1.2000 after 0.50 of 1.00 epochs",
        ),
        (
            {"validation": OVERFITS, "train": [2.0, 1.5, 1.2, 1.3, 1.4, 1.5, 1.6]},
            "no overfitting seen; best validation loss 1.2000 after 0.50 of 1.50 epochs",
        ),
        (
            {"validation": OVERFITS, "count": FEWEST_EXAMPLES - 1},
            "overfitting from epoch 0.50 (not confirmed); best validation loss 1.2000 after 0.50 of 1.50 epochs",
        ),
    ],
    ids=["none", "confirmed", "too early to say", "divergence", "too few validation rows"],
)
def test_the_end_in_words(made: dict[str, Any], words: str) -> None:
    assert found_in_words(made_history(**made)) == words


def test_too_few_validation_rows_stay_unconfirmed_whatever_the_p_value() -> None:
    found = figures(validation=OVERFITS, count=FEWEST_EXAMPLES - 1)
    assert (found["overfit_epoch"], found["overfit_confirmed"]) == (0.5, 0)
    assert found["overfit_p_value"] < 1e-4

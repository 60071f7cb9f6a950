"""What finetune leaves on disk beside the checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from stages.model.history import History, LossRow
from stages.pipeline.errors import UserError
from stages.pipeline.files import read_parquet, write_parquet, write_text
from stages.pipeline.progress import say

EXAMPLE_LOSSES = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("response_loss", pa.float64(), nullable=False),
        pa.field("response_tokens", pa.int64(), nullable=False),
        pa.field("full_loss", pa.float64(), nullable=False),
        pa.field("full_tokens", pa.int64(), nullable=False),
    ]
)
"""Losses are sums of negative log-likelihood over an example's tokens, in nats."""


class LossWriter:
    """Takes in a validation: writes metrics/losses.csv anew, so that it grows, tells the mirror and the reader."""

    def __init__(self, path: Path | None, mirror: Callable[[Mapping[str, float]], None]) -> None:
        """`path` is None where another process writes."""
        self._path, self._mirror = path, mirror
        self._rows: list[LossRow] = []

    def __call__(self, row: LossRow) -> None:
        """Take in one validation."""
        self._rows.append(row)
        if self._path is not None:
            table = pd.DataFrame(self._rows, columns=LossRow._fields)
            write_text(self._path, table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
        self._mirror(row._asdict())
        say(
            f"  epoch {row.epoch:.2f}  step {row.step}  train loss {row.train_loss:.4f}  "
            f"validation loss {row.validation_loss:.4f}  accuracy {row.validation_accuracy:.1%}"
        )


def write_example_losses(path: Path, history: History, ids: Sequence[str]) -> None:
    """Write the losses of every validation example at every validation."""
    records = []
    for row, examples in zip(history.rows, history.examples, strict=True):
        columns = (examples.response, examples.response_tokens, examples.full, examples.full_tokens)
        for values in zip(ids, *(column.tolist() for column in columns), strict=True):
            records.append(dict(zip(EXAMPLE_LOSSES.names, (row.step, *values), strict=True)))
    write_parquet(path, records, EXAMPLE_LOSSES)


def read_histories(losses: Path, example_losses: Path) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """What a finished training left: its loss history, and response losses (validation, example) with token counts.

    Raises:
        UserError: a file is missing or damaged, or the two are not of one training.
    """
    try:
        rows = pd.read_csv(losses, dtype=LossRow.__annotations__, na_filter=False)
    except FileNotFoundError:
        raise UserError(f"{losses}: not found; run `dvc repro finetune` to make it") from None
    except ValueError:
        raise UserError(f"{losses}: damaged; delete it and run `dvc repro finetune`") from None
    examples = pd.DataFrame(read_parquet(example_losses), columns=EXAMPLE_LOSSES.names)
    not_of_one = UserError(f"{losses} and {example_losses} are not of one training; run `dvc repro finetune`")
    if rows.columns.tolist() != list(LossRow._fields) or examples.duplicated(["step", "id"]).any():
        raise not_of_one
    table = examples.pivot(index="step", columns="id", values="response_loss")
    if table.empty or table.index.tolist() != rows["step"].tolist():
        raise not_of_one
    tokens = examples[examples["step"] == table.index[0]].set_index("id")["response_tokens"].reindex(table.columns)
    means = table.sum(axis=1, skipna=False) / tokens.sum(skipna=False)
    if not np.allclose(means, rows["validation_loss"], rtol=1e-5):  # the former has six digits
        raise not_of_one
    return rows, table.to_numpy(), tokens.to_numpy()


def summarize(history: History) -> dict[str, Any]:
    """The figures of metrics/finetune.json."""
    onset, best, last = history.found, history.best, history.rows[-1]
    return {
        "best_epoch": round(best.epoch, 6),
        "best_step": best.step,
        "best_validation_loss": round(best.validation_loss, 6),
        "best_validation_accuracy": round(best.validation_accuracy, 6),
        "first_validation_loss": round(history.rows[0].validation_loss, 6),
        "overfit_epoch": round(best.epoch, 6) if onset.seen else -1,
        "overfit_confirmed": int(onset.confirmed),
        "overfit_p_value": float(f"{onset.p_value:.4g}"),
        "overfit_step": best.step if onset.seen else -1,
        "generalization_loss": round(onset.generalization_loss, 6),
        "epochs_trained": round(last.epoch, 6),
    }

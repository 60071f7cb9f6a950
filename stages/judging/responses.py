"""The record that generate writes and judge reads: what both models answered to one test instruction."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from stages.pipeline.errors import UserError
from stages.pipeline.files import read_about, read_parquet, write_parquet

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("category", pa.string()),
        pa.field("instruction", pa.string(), nullable=False),
        pa.field("input", pa.string(), nullable=False),
        pa.field("reference", pa.string(), nullable=False),
        pa.field("response", pa.string(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("base_response", pa.string(), nullable=False),
        pa.field("base_finish_reason", pa.string(), nullable=False),
        pa.field("samples", pa.list_(pa.string()), nullable=False),
        pa.field("base_samples", pa.list_(pa.string()), nullable=False),
    ]
)


class Response(NamedTuple):
    """One row of data/responses.parquet."""

    id: str
    """Id of the prompt."""
    category: str | None
    instruction: str
    input: str
    reference: str
    """The response that the data wants."""
    response: str
    """The fine-tuned model's."""
    finish_reason: str
    """stop: the model ended it; length: it was cut; refused: an endpoint would not answer."""
    base_response: str
    """The base model's."""
    base_finish_reason: str
    samples: Sequence[str] = ()
    """All answers that were drawn, where several are wanted; `response` is the first."""
    base_samples: Sequence[str] = ()


def write_responses(path: Path, responses: Sequence[Response], about: dict[str, Any]) -> None:
    """Write responses in the order given."""
    write_parquet(path, [row._asdict() for row in responses], SCHEMA, about=about)


def read_responses(path: Path) -> tuple[list[Response], dict[str, Any]]:
    """Read what `write_responses` wrote.

    Raises:
        UserError: the file is missing, not one of ours, or holds no row.
    """
    rows = read_parquet(path)
    try:
        responses = [Response(**row) for row in rows]
    except TypeError:
        raise UserError(f"{path}: not a file of responses; delete it and run `dvc repro`") from None
    if not responses:
        raise UserError(f"{path}: holds no response; the test split is empty")
    return responses, read_about(path)

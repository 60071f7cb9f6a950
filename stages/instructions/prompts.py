"""The record that format writes and every later stage reads: one prompt with the response that is wanted."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from stages.instructions.templates import Segment
from stages.pipeline.errors import UserError
from stages.pipeline.files import read_about, read_parquet, write_parquet

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("category", pa.string()),
        pa.field("instruction", pa.string(), nullable=False),
        pa.field("input", pa.string(), nullable=False),
        pa.field("response", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("line", pa.int64(), nullable=False),
        pa.field("segments", pa.list_(pa.struct([("role", pa.string()), ("text", pa.string())])), nullable=False),
    ]
)


class Prompt(NamedTuple):
    """One row of `data/prompts.parquet` and of `data/split/*.parquet`."""

    id: str
    """Content hash of the instruction it was made from."""
    category: str | None
    instruction: str
    input: str
    response: str
    """The response that is wanted, without the template's closing text."""
    file: str
    line: int
    segments: list[Segment]
    """The rendered example: prompt, response, closing text."""


class TemplateMark(NamedTuple):
    """Which template the prompts of a file were rendered with."""

    name: str
    hash: str
    end: str
    """Text that closes a response, to be taken off generated ones."""


def write_prompts(path: Path, prompts: Sequence[Prompt], template: TemplateMark) -> None:
    """Write prompts in the order given."""
    rows = [p._asdict() | {"segments": [{"role": s.role, "text": s.text} for s in p.segments]} for p in prompts]
    write_parquet(path, rows, SCHEMA, about={"template": template._asdict()})


def read_prompts(path: Path) -> list[Prompt]:
    """Read what `write_prompts` wrote.

    Raises:
        UserError: the file is missing or not one of ours.
    """
    rows = read_parquet(path)
    try:
        return [Prompt(**row | {"segments": [Segment(**s) for s in row["segments"]]}) for row in rows]
    except (TypeError, KeyError):
        raise UserError(f"{path}: not a file of prompts; delete it and run `dvc repro`") from None


def read_template_mark(path: Path) -> TemplateMark:
    """The template that `path` was rendered with."""
    about = read_about(path)
    if "template" not in about:
        raise UserError(f"{path}: names no template; delete it and run `dvc repro`")
    return TemplateMark(**about["template"])

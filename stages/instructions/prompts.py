"""The record that format writes and every later stage reads: one prompt with the response that is wanted."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from stages.instructions.instruction import Instruction
from stages.instructions.templates import Segment, Template
from stages.pipeline.errors import UserError
from stages.pipeline.files import iterate_parquet, read_about, writing_parquet

SEGMENT = pa.struct([("role", pa.string()), ("text", pa.string())])

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("category", pa.string()),
        pa.field("split", pa.string()),
        pa.field("system", pa.string(), nullable=False),
        pa.field("history", pa.string(), nullable=False),
        pa.field("instruction", pa.string(), nullable=False),
        pa.field("input", pa.string(), nullable=False),
        pa.field("response", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("line", pa.int64(), nullable=False),
        pa.field("segments", pa.list_(SEGMENT), nullable=False),
    ]
)

BATCH = 8192
"""Prompts written at a time, or fewer if they are long: a column of a batch holds at most 2 GiB."""
BATCH_CHARACTERS = 100_000_000


class Prompt(NamedTuple):
    """One row of `data/prompts.parquet` and of `data/split/*.parquet`."""

    id: str
    """Content hash of the instruction it was made from."""
    category: str | None
    split: str | None
    """The split that the data fixes for it."""
    system: str
    history: str
    """Earlier turns, as a person would read them; empty in a lone instruction."""
    instruction: str
    input: str
    response: str
    """The response that is wanted, without the template's closing text."""
    file: str
    line: int
    segments: list[Segment]
    """The rendered example: prompt, response, closing text."""

    @property
    def question(self) -> str:
        """The instruction with all that was said before it, for a reader."""
        system = f"System: {self.system}\n\n" if self.system else ""
        return f"{system}{self.history}{'User: ' if system or self.history else ''}{self.instruction}"


class TemplateMark(NamedTuple):
    """Which template the prompts of a file were rendered with."""

    name: str
    hash: str
    end: str
    """Text that closes a response, to be taken off generated ones."""


def make_prompt(row: Instruction, template: Template, id: str | None = None) -> Prompt:
    """Render a row; `id` replaces its content hash where that is taken.

    Raises:
        NoFormError: the template has no form for it.
    """
    return Prompt(
        id or row.id,
        row.category,
        row.split,
        row.system,
        "".join(f"User: {turn.user}\n\nAssistant: {turn.response}\n\n" for turn in row.history),
        row.instruction,
        row.input,
        row.response,
        row.file,
        row.line,
        template.render(row.instruction, row.input, row.response, system=row.system, history=row.history),
    )


class PromptWriter:
    """Takes prompts one by one and writes them some at a time."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self._waiting: list[Prompt] = []
        self._characters = 0

    def add(self, prompt: Prompt) -> None:
        """Write a prompt after those before."""
        self._waiting.append(prompt)
        self._characters += sum(len(segment.text) for segment in prompt.segments)
        if len(self._waiting) == BATCH or self._characters > BATCH_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if self._waiting:
            self._writer.write_batch(_to_batch(self._waiting, self._writer.schema))
        self._waiting, self._characters = [], 0


@contextmanager
def writing_prompts(path: Path, template: TemplateMark) -> Iterator[PromptWriter]:
    """Yield a writer of prompts; the file stands when the block ends without an error."""
    with writing_parquet(path, SCHEMA, about={"template": template._asdict()}) as file:
        prompts = PromptWriter(file)
        yield prompts
        prompts.flush()


def write_prompts(path: Path, prompts: Sequence[Prompt], template: TemplateMark) -> None:
    """Write prompts in the order given."""
    with writing_prompts(path, template) as writer:
        for prompt in prompts:
            writer.add(prompt)


def _to_batch(prompts: Sequence[Prompt], schema: pa.Schema) -> pa.RecordBatch:
    """Column by column: a nested value for each row would take most of the time."""
    *plain, segments = zip(*prompts, strict=True)
    arrays = [pa.array(values, type=field.type) for values, field in zip(plain, schema, strict=False)]
    offsets = [0]
    for row in segments:
        offsets.append(offsets[-1] + len(row))
    roles, texts = zip(*(segment for row in segments for segment in row), strict=True)
    structs = pa.StructArray.from_arrays([pa.array(roles), pa.array(texts)], fields=list(SEGMENT))
    arrays.append(pa.ListArray.from_arrays(pa.array(offsets, type=pa.int32()), structs))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def segments_of(batch: pa.RecordBatch) -> Iterator[list[Segment]]:
    """The segments of each row of a batch of prompts, read column by column."""
    column = batch.column("segments")
    flat = column.flatten()
    segments = list(map(Segment, flat.field("role").to_pylist(), flat.field("text").to_pylist()))
    offsets = column.offsets.to_pylist()
    first = offsets[0]
    for start, stop in pairwise(offsets):
        yield segments[start - first : stop - first]


def iterate_prompts(
    path: Path, columns: Sequence[str] | None = None, batch_size: int = BATCH
) -> Iterator[pa.RecordBatch]:
    """The prompts of a file some at a time, all columns or those that are named.

    Raises:
        UserError: the file is missing or not one of ours.
    """
    for batch in iterate_parquet(path, columns, batch_size):
        if batch.schema.names != (list(columns) if columns is not None else SCHEMA.names):
            raise UserError(f"{path}: not a file of prompts; delete it and run `dvc repro`")
        yield batch


def read_prompts(path: Path) -> list[Prompt]:
    """Read what `write_prompts` wrote.

    Raises:
        UserError: the file is missing or not one of ours.
    """
    prompts = []
    for batch in iterate_prompts(path):
        plain = [batch.column(name).to_pylist() for name in SCHEMA.names[:-1]]
        prompts += [Prompt(*row) for row in zip(*plain, segments_of(batch), strict=True)]
    return prompts


def read_template_mark(path: Path) -> TemplateMark:
    """The template that `path` was rendered with."""
    about = read_about(path)
    if "template" not in about:
        raise UserError(f"{path}: names no template; delete it and run `dvc repro`")
    return TemplateMark(**about["template"])

"""Rows of published tables as they lie on disk, TSV, JSON Lines or Parquet, with where each stands."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages.instructions.raw_files import read_text, read_values, suffix_of
from stages.pipeline.errors import UserError

SUFFIXES = (".tsv", ".jsonl", ".json", ".parquet")


class Line(NamedTuple):
    """One row of a file."""

    where: str
    """File and line."""
    value: Mapping[str, Any]
    torn: bool = False
    """It has fewer fields than there are columns."""


def read_lines(path: Path, header: Sequence[str] = ()) -> list[Line]:
    """Every row of a file; `header` names the columns of a TSV that does not do so itself.

    Raises:
        UserError: the file is empty or damaged, holds no row, or a row that is no object.
    """
    lines = list(_read_tsv(path, header) if suffix_of(path) == ".tsv" else _read_objects(path))
    if not lines:
        raise UserError(f"{path}: holds no row; fetch the file again")
    return lines


def _read_tsv(path: Path, header: Sequence[str]) -> Iterator[Line]:
    """Split at tabs alone: in GLUE's files a quote is a character like any other."""
    columns = list(header)
    for number, text in enumerate(read_text(path).split("\n"), start=1):
        fields = text.rstrip("\r").split("\t")
        if fields == [""]:
            continue
        if not columns:
            columns = [name.strip() for name in fields]
            continue
        value = dict(zip(columns, fields, strict=False))
        yield Line(f"{path}:{number}", value, torn=len(fields) < len(columns))


def _read_objects(path: Path) -> Iterator[Line]:
    for line, value, broken in read_values(path):
        where = f"{path}:{line}"
        if broken:
            raise UserError(f"{where}: {broken}; mend the file or fetch it again")
        if not isinstance(value, dict):
            raise UserError(f"{where}: {type(value).__name__} where an object with columns is wanted; fetch it again")
        yield Line(where, value)


def value_of(line: Line, *names: str) -> Any:
    """What stands under the first of these columns that the row has.

    Raises:
        UserError: it has none of them.
    """
    for name in names:
        if line.value.get(name) is not None:
            return line.value[name]
    raise UserError(
        f"{line.where}: no {' or '.join(map(repr, names))}; there are {', '.join(map(str, line.value))[:200]}: "
        "put the file in the publisher's format"
    )


def text_of(line: Line, *names: str) -> str:
    """The same where it must be a text."""
    value = value_of(line, *names)
    if not isinstance(value, str):
        raise UserError(f"{line.where}: {names[0]!r} is {value!r}, not a text; put the file in the publisher's format")
    return value


def number_of(line: Line, *names: str) -> float:
    """The same where it must be a number, or a text that is one."""
    value = value_of(line, *names)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UserError(
            f"{line.where}: {names[0]!r} is {value!r}, not a number; put the file in the publisher's format"
        ) from None


def label_of(line: Line, labels: Mapping[str, int], *names: str) -> int:
    """The number of a label, which may stand there as its name (in any case), its number or a truth value."""
    value = str(value_of(line, *names)).strip().lower()
    if value in labels:
        return labels[value]
    if value in map(str, labels.values()):
        return int(value)
    raise UserError(
        f"{line.where}: label {value!r} is none of {', '.join(labels)}; a test split has no labels: take the "
        "validation split"
    )

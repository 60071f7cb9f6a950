"""Records on disk: every writer fills a temporary name and renames it, and the same content gives the same bytes."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.pipeline.errors import UserError

Row = dict[str, Any]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file name beside `path`; on success it becomes `path`, on failure nothing is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; on success it becomes `path`, on failure nothing is left."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; keys keep their order, NaN is refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file written by a stage.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run `dvc repro` to make it") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); delete it and run `dvc repro`") from None


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    """Write one JSON object a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_parquet(path: Path, rows: Sequence[Row], schema: pa.Schema, about: dict[str, Any] | None = None) -> None:
    """Write `rows` under `schema`; `about` travels in the file's metadata (see `read_about`)."""
    if about is not None:
        schema = schema.with_metadata({"onset": json.dumps(about, sort_keys=True)})
    with replacing(path) as temporary:
        pq.write_table(
            pa.Table.from_pylist(list(rows), schema=schema), temporary, compression="zstd", write_page_checksum=True
        )


def read_parquet(path: Path) -> list[Row]:
    """All rows of a Parquet file written by a stage.

    Raises:
        UserError: the file is missing or damaged.
    """
    file = _open(path)
    try:
        rows: list[Row] = file.read().to_pylist()
    except (pa.ArrowException, OSError):
        raise _damaged(path) from None
    return rows


def read_about(path: Path) -> dict[str, Any]:
    """What `write_parquet` was given as `about`, without reading the rows."""
    about: dict[str, Any] = json.loads((_open(path).schema_arrow.metadata or {}).get(b"onset", b"{}"))
    return about


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run `dvc repro` to make it") from None
    except pa.ArrowInvalid:
        raise _damaged(path) from None


def _damaged(path: Path) -> UserError:
    return UserError(f"{path}: damaged; delete it and run `dvc repro`")


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Records on disk: every writer fills a temporary name and renames it, and the same content gives the same bytes."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    with writing_jsonl(path) as write:
        for row in rows:
            write(row)


@contextmanager
def writing_jsonl(path: Path) -> Iterator[Callable[[Row], None]]:
    """Yield a function that writes one JSON object a line; the file stands when the block ends without an error."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        yield lambda row: print(json.dumps(row, ensure_ascii=False), file=file)


def write_parquet(path: Path, rows: Sequence[Row], schema: pa.Schema, about: dict[str, Any] | None = None) -> None:
    """Write `rows` under `schema`; `about` travels in the file's metadata (see `read_about`)."""
    with writing_parquet(path, schema, about) as writer:
        writer.write_table(pa.Table.from_pylist(list(rows), schema=schema))


@contextmanager
def writing_parquet(path: Path, schema: pa.Schema, about: dict[str, Any] | None = None) -> Iterator[pq.ParquetWriter]:
    """Yield a writer of tables and batches of `schema`, for what is too large to be held as a whole."""
    if about is not None:
        schema = schema.with_metadata({"onset": json.dumps(about, sort_keys=True)})
    with (
        replacing(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        yield writer


def read_parquet(path: Path) -> list[Row]:
    """All rows of a Parquet file written by a stage.

    Raises:
        UserError: the file is missing or damaged.
    """
    return [row for batch in iterate_parquet(path) for row in batch.to_pylist()]


def iterate_parquet(
    path: Path, columns: Sequence[str] | None = None, batch_size: int = 8192
) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file written by a stage, some at a time; all columns, or those that are named.

    Raises:
        UserError: the file is missing or damaged.
    """
    file = _open(path)
    try:
        yield from file.iter_batches(batch_size=batch_size, columns=columns)
    except (pa.ArrowException, OSError):
        raise _damaged(path) from None


def count_parquet(path: Path) -> int:
    """Number of rows, without reading them."""
    return int(_open(path).metadata.num_rows)


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


def dvc_root() -> Path:
    """The repository, also where DVC runs a stage in a temporary copy of it."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd())


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Raw files for the tests of their readers."""

import gzip
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from stages.instructions.instruction import Instruction, Rejected
from stages.instructions.readers import RawFolder

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
"""Of files that may be compressed."""

COMPRESSIONS = ("", ".gz", ".zst")


def compressed(content: bytes, name: str) -> bytes:
    """Content as a file of this name holds it."""
    if name.endswith(".gz"):
        return gzip.compress(content, mtime=0)
    return pa.Codec("zstd").compress(content, asbytes=True) if name.endswith(".zst") else content


def write(folder: Path, name: str, content: str | bytes) -> Path:
    """Write a file, compressed where its name says so."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(compressed(content.encode() if isinstance(content, str) else content, name))
    return path


def raw_folder(
    folder: Path,
    *,
    row_schema: str = "auto",
    columns: Mapping[str, str] | None = None,
    whitespace: str = "strip",
    allow_empty_response: bool = False,
    max_rejected_fraction: float = 1,
) -> RawFolder:
    """A folder to read, by default without a limit to what is rejected."""
    return RawFolder(
        folder,
        row_schema=row_schema,
        columns=columns or {},
        whitespace=whitespace,
        allow_empty_response=allow_empty_response,
        max_rejected_fraction=max_rejected_fraction,
    )


def places(rows: list[Instruction | Rejected]) -> list[tuple[str, int]]:
    """File and line of each row."""
    return [(row.file, row.line) for row in rows]

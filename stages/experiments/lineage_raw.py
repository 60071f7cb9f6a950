"""The raw row behind a prompt, read again as format read it."""

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stages.instructions.instruction import Rejected
from stages.instructions.raw_files import read_values
from stages.instructions.readers import RawFolder
from stages.pipeline.errors import UserError

SETTINGS = ("row_schema", "columns", "whitespace", "allow_empty_response", "max_rejected_fraction")
"""Parameters of format that decide how a row is read."""

SAME, OTHER, GONE, UNREADABLE = "same", "another row", "gone", "rejected"


def raw_row(root: Path, file: str, line: int, id: str | None, params: Mapping[str, Any]) -> dict[str, Any]:
    """What stands at a line of a file in data/raw now, and whether it still reads as the row with this id.

    `state` is SAME, OTHER (it has another id), UNREADABLE (it would be rejected, as it says in `why`) or GONE.

    Raises:
        UserError: the file is missing or cannot be read that far.
    """
    path = root / "data/raw" / file
    if not path.is_file():
        raise UserError(f"{path}: not there any more")
    value = next((found for found in read_values(path) if found.line == line), None)
    if value is None:
        return {"row": None, "state": GONE, "why": ""}
    row = value.value if not value.broken else _text(path, line)
    state, why = _state(root, file, line, id, dict(params.get("format") or {}))
    return {"row": _plain(row), "state": state, "why": why}


def _state(root: Path, file: str, line: int, id: str | None, settings: dict[str, Any]) -> tuple[str, str]:
    """Read by the reader of format, from a folder in which the file is alone."""
    with TemporaryDirectory() as folder:
        alone = Path(folder) / file
        alone.parent.mkdir(parents=True, exist_ok=True)
        alone.symlink_to((root / "data/raw" / file).resolve())
        raw = RawFolder(Path(folder), **{name: settings[name] for name in SETTINGS if name in settings})
        read = next((row for row in raw.rows() if row.line == line), None)
    if read is None:
        return GONE, ""
    if isinstance(read, Rejected):
        return UNREADABLE, read.reason
    # of rows alike that are all kept, the later ones have a number behind their hash
    return (SAME if id is not None and read.id == id.partition("-")[0] else OTHER), ""


def _plain(row: Any) -> Any:
    """A row as JSON that any reader takes: without Parquet's own types, half characters and NaN."""
    text = json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", errors="replace").decode("utf-8")
    return json.loads(text, parse_constant=str)


def _text(path: Path, line: int) -> str | None:
    """A line that cannot be parsed, as text."""
    if path.suffix in (".gz", ".zst", ".parquet"):
        return None
    with path.open("rb") as file:
        return next(islice(file, line - 1, line), b"").decode("utf-8", errors="replace").rstrip("\r\n")

"""Raw instruction files: Alpaca rows in JSON and JSONL, read row by row, every bad row with its place and reason."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stages.pipeline.errors import UserError


@dataclass(frozen=True)
class Instruction:
    """One instruction with the response that is wanted, and where it came from."""

    instruction: str
    input: str
    """What the instruction works on; empty where it says everything itself."""
    response: str
    category: str | None
    file: str
    line: int
    """Line of the file on which the row begins, from 1."""

    @property
    def id(self) -> str:
        """Content hash: the first 16 hex digits of SHA-256 over instruction, input and response."""
        content = json.dumps([self.instruction, self.input, self.response], ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Rejected:
    """A row that cannot be used."""

    file: str
    line: int
    reason: str


def read_folder(folder: Path) -> Iterator[Instruction | Rejected]:
    """Every row of every `.json` and `.jsonl` file below `folder`, in sorted file order.

    Raises:
        UserError: the folder is missing or holds no data file, a file is of another kind, or is not JSON.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: not found; put instruction data there as .json or .jsonl")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not _ignored(path.relative_to(folder)))
    if not files:
        raise UserError(f"{folder}: holds no data; put .json or .jsonl files there")
    for path in files:
        name = path.relative_to(folder).as_posix()
        for line, row in _read_file(path):
            yield _check(name, line, row)


def _ignored(path: Path) -> bool:
    return path.suffix == ".md" or any(part.startswith(".") for part in path.parts)


def _read_file(path: Path) -> Iterator[tuple[int, object]]:
    if path.suffix not in (".json", ".jsonl"):
        raise UserError(f"{path}: cannot read '{path.suffix}' files; convert to .json or .jsonl, or move it away")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; convert the file") from None
    return _read_lines(path, text) if path.suffix == ".jsonl" else _read_array(path, text)


def _read_lines(path: Path, text: str) -> Iterator[tuple[int, object]]:
    for line, row in enumerate(text.split("\n"), start=1):
        if row.strip():
            try:
                yield line, json.loads(row)
            except (ValueError, RecursionError) as error:
                raise _broken(path, line, error) from None


def _read_array(path: Path, text: str) -> Iterator[tuple[int, object]]:
    """The items of one JSON array, each with the line it begins on (which `json.loads` would not tell)."""
    decoder = json.JSONDecoder()

    def line_of(position: int) -> int:
        return text.count("\n", 0, position) + 1

    def skip_space(position: int) -> int:
        while position < len(text) and text[position].isspace():
            position += 1
        return position

    position = skip_space(0)
    if not text.startswith("[", position):
        raise UserError(f"{path}:{line_of(position)}: expected a JSON array of rows; for one row a line name it .jsonl")
    position, line, counted = skip_space(position + 1), 1, 0
    while not text.startswith("]", position):
        line, counted = line + text.count("\n", counted, position), position
        try:
            row, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise _broken(path, error.lineno, error) from None
        except (ValueError, RecursionError) as error:
            raise _broken(path, line, error) from None
        yield line, row
        position = skip_space(position)
        if text.startswith(",", position):
            position = skip_space(position + 1)
        elif not text.startswith("]", position):
            raise UserError(f"{path}:{line_of(position)}: broken JSON: expected ',' or ']'; mend the file")
    position = skip_space(position + 1)
    if position < len(text):
        raise UserError(f"{path}:{line_of(position)}: broken JSON: more text after the array; make it one array")


def _broken(path: Path, line: int, error: Exception) -> UserError:
    reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    return UserError(f"{path}:{line}: broken JSON: {reason}; mend or remove the line")


def _check(file: str, line: int, row: object) -> Instruction | Rejected:
    if not isinstance(row, dict):
        return Rejected(file, line, f"expected an object, got {type(row).__name__}")
    texts: dict[str, str] = {}
    for key, required in (("instruction", True), ("input", False), ("output", True), ("category", False)):
        value = row.get(key)
        if value is None and not required:
            value = ""
        if value is None:
            return Rejected(file, line, f"'{key}' is missing")
        if not isinstance(value, str):
            return Rejected(file, line, f"'{key}' is {type(value).__name__}, not text")
        if required and not value.strip():
            return Rejected(file, line, f"'{key}' is empty")
        if any("\ud800" <= character <= "\udfff" for character in value):
            return Rejected(file, line, f"'{key}' holds half a surrogate pair, which is not text")
        texts[key] = value.strip()
    return Instruction(
        instruction=texts["instruction"],
        input=texts["input"],
        response=texts["output"],
        category=texts["category"] or None,
        file=file,
        line=line,
    )

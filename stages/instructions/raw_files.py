"""Raw files: JSON, JSON Lines, CSV and Parquet, plain or compressed, read value by value with its line."""

import codecs
import csv
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from stages.pipeline.errors import UserError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
INDEX = "(index)"
"""What we call the first column of a CSV if it has no name: pandas writes its index so."""
DELIMITERS = {".csv": ",;\t|", ".tsv": "\t"}
KINDS = ".json, .jsonl, .ndjson, .csv, .tsv or .parquet; all but .parquet also .gz or .zst"
BLOCK = 1 << 20
"""Characters or bytes read at a time."""

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Value(NamedTuple):
    """What stands on one line of a file: the value parsed, or why it cannot be."""

    line: int
    value: Any
    broken: str = ""


class RepeatedKeys(dict[str, Any]):
    """A JSON object in which a key stands twice; JSON leaves open which of the two counts."""

    repeated: str


def find_files(folder: Path) -> list[Path]:
    """Every data file below `folder`, sorted; hidden ones, `.md` and DVC's `.dvc` files are left out.

    Raises:
        UserError: the folder is missing or empty, holds a file of another kind, a link to nowhere or in a circle.
        OSError: a folder cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: not found; put instruction data there ({KINDS})")
    files = []
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = Path(place)
        for name in folders:
            if (here / name).is_symlink() and _leads_back(here / name):
                raise UserError(f"{here / name}: a link to a folder that contains it; remove the link")
        files += [here / name for name in names if not name.startswith(".") and not name.endswith((".md", ".dvc"))]
    for path in files:
        if not _is_text(str(path)):
            raise UserError(f"{path}: a name that is not UTF-8; rename the file")
        if not path.exists():
            raise UserError(f"{path}: a link that leads nowhere; remove it")
        if not path.is_file():
            raise UserError(f"{path}: not a regular file; remove it")
        _kind(path)
    if not files:
        raise UserError(f"{folder}: holds no data; put files there ({KINDS})")
    return sorted(files)


def _fail(error: OSError) -> None:
    raise error


def _leads_back(link: Path) -> bool:
    """Whether a link leads to a folder that it was reached through, over other links or not."""
    target = link.resolve()
    return any(place.resolve().is_relative_to(target) for place in link.parents)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(path: Path) -> tuple[str, str | None]:
    """Suffix without compression, and the compression by pyarrow's name."""
    compression, kind = COMPRESSIONS.get(path.suffix.lower()), suffix_of(path)
    if kind not in _READERS or (compression and kind == ".parquet"):
        raise UserError(f"{path}: cannot read '{kind}{path.suffix if compression else ''}' files; convert to {KINDS}")
    return kind, compression


def suffix_of(path: Path) -> str:
    """The suffix that tells what a file holds, without that of its compression.

    >>> suffix_of(Path("HumanEval.jsonl.gz"))
    '.jsonl'
    """
    return Path(path.stem if path.suffix.lower() in COMPRESSIONS else path.name).suffix.lower()


def read_text(path: Path) -> str:
    """The whole text of a file, decompressed.

    Raises:
        UserError: the file is damaged, or not UTF-8.
    """
    with _opened(path, COMPRESSIONS.get(path.suffix.lower())) as stream:
        try:
            return stream.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 at byte {error.start + 1}; convert the file") from None


def read_values(path: Path) -> Iterator[Value]:
    """Every row of a file as Python values, in order.

    Raises:
        UserError: the file is empty, or damaged in such a way that the rows after the place cannot be told.
    """
    kind, compression = _kind(path)
    if path.stat().st_size == 0:
        raise UserError(f"{path}: empty; remove it")
    yield from _READERS[kind](path, compression)


@contextmanager
def _opened(path: Path, compression: str | None) -> Iterator[io.BufferedReader]:
    with path.open("rb", buffering=0) as file:  # Python's own error, unlike pyarrow's, names the file
        try:
            with pa.input_stream(file, compression=compression) as stream:
                yield io.BufferedReader(stream, BLOCK)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return UserError(f"{path}: damaged or cut short ({reason}); fetch the file again")


# ---- JSON


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    repeated = RepeatedKeys(value)
    repeated.repeated = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
    return repeated


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def parse_json(text: str) -> Any:
    """The value of a JSON text, objects with a repeated key as `RepeatedKeys`.

    Raises:
        ValueError: the text is not JSON, or nested too deeply to be read.
    """
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _reason(error: ValueError) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def _read_json(path: Path, compression: str | None) -> Iterator[Value]:
    """One array of rows, or one row a line, which many tools write under this name too."""
    with _opened(path, compression) as stream:
        start = stream.peek().removeprefix(codecs.BOM_UTF8).lstrip()[:1]
        yield from _read_array(path, stream) if start == b"[" else _read_lines(path, stream)


def _read_jsonl(path: Path, compression: str | None) -> Iterator[Value]:
    with _opened(path, compression) as stream:
        yield from _read_lines(path, stream)


def _read_lines(path: Path, stream: io.BufferedReader) -> Iterator[Value]:
    for number, raw in enumerate(stream, start=1):
        if number == 1:
            if raw.startswith(_UTF16):
                raise UserError(f"{path}: UTF-16; convert the file to UTF-8")
            raw = raw.removeprefix(codecs.BOM_UTF8)
        raw = raw.rstrip()
        if not raw:
            continue
        try:
            yield Value(number, parse_json(raw.decode("utf-8")))
        except UnicodeDecodeError as error:
            yield Value(number, None, f"not UTF-8: byte {error.start + 1} of the line")
        except ValueError as error:
            yield Value(number, None, f"broken JSON: {_reason(error)}")


class _Text:
    """Text that is decoded as it is needed, of which the part already used is forgotten."""

    def __init__(self, path: Path, stream: io.BufferedReader) -> None:
        self._path, self._stream = path, stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._bytes = 0
        self._line, self._counted = 1, 0
        self.text, self.at, self.ended = "", 0, False

    @property
    def line(self) -> int:
        """Of the next character."""
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line

    def more(self) -> None:
        """Forget what is used and at least double the rest, so that a value of any size is tried few times."""
        self._line, self._counted, self.text, self.at = self.line, 0, self.text[self.at :], 0
        raw = self._stream.read(max(BLOCK, len(self.text)))
        if self._bytes == 0 and raw.startswith(_UTF16):
            raise UserError(f"{self._path}: UTF-16; convert the file to UTF-8")
        try:
            self.text += self._decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self._path}: not UTF-8 near byte {self._bytes + error.start + 1}; convert the file"
            ) from None
        self._bytes += len(raw)
        self.ended = not raw

    def skip_space(self) -> str:
        """The next character that is no white space, not yet taken; "" at the end."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in " \t\r\n":
                    return self.text[self.at]
                self.at += 1
            if self.ended:
                return ""
            self.more()

    def value(self) -> Any:
        """Take one JSON value."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
                if end + 2 < len(self.text) or self.ended:  # a number may go on: 1, 1e+, 1e+5
                    self.at = end
                    return value
            except RecursionError:
                raise self.error("nested too deeply") from None
            except ValueError as error:
                if self.ended:
                    self.at = getattr(error, "pos", self.at)
                    raise self.error(_reason(error)) from None
            self.more()

    def error(self, reason: str) -> UserError:
        return UserError(f"{self._path}:{self.line}: broken JSON: {reason}; mend the file")


def _read_array(path: Path, stream: io.BufferedReader) -> Iterator[Value]:
    text = _Text(path, stream)
    text.skip_space()
    text.at += 1
    following = text.skip_space()
    while following != "]":
        line = text.line
        yield Value(line, text.value())
        following = text.skip_space()
        if following == ",":
            text.at += 1
            following = text.skip_space()
            if following == "]":
                raise text.error("a comma before ']'")
        elif following != "]":
            raise text.error("expected ',' or ']'")
    text.at += 1
    if text.skip_space():
        raise text.error("more text after the array")


# ---- CSV


def _read_csv(path: Path, compression: str | None) -> Iterator[Value]:
    csv.field_size_limit(sys.maxsize)
    with _opened(path, compression) as stream:
        if stream.peek(2)[:2] in _UTF16:
            raise UserError(f"{path}: UTF-16; convert the file to UTF-8")
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        line = 0
        try:
            first = text.readline()
            delimiter = max(DELIMITERS[_kind(path)[0]], key=first.count)
            header = [name.strip() for name in next(csv.reader([first], delimiter=delimiter, strict=True), [])]
            if header[:1] == [""] and len(header) > 1:
                header[0] = INDEX
            if first and (not all(header) or not 0 < len(header) == len(set(header))):
                raise UserError(f"{path}:1: a column has no name or that of another; the first line must name them")
            rows, line = csv.reader(text, delimiter=delimiter, strict=True), 1
            for row in rows:
                if row and len(row) != len(header):
                    reason = f"wrong number of fields: {len(row)} where the header has {len(header)}"
                    yield Value(line + 1, None, reason)
                elif row:
                    yield Value(line + 1, dict(zip(header, row, strict=True)))
                line = 1 + rows.line_num
        except csv.Error as error:
            raise UserError(f"{path}:{line + 1}: broken CSV: {error}, in the row that begins here; mend it") from None
        except UnicodeDecodeError:
            raise UserError(f"{path}: not UTF-8 on line {line + 1} or after it; convert the file") from None


# ---- Parquet


def _read_parquet(path: Path, compression: str | None) -> Iterator[Value]:
    number = 0
    try:
        with path.open("rb") as source, pq.ParquetFile(source, page_checksum_verification=True) as file:
            names = Counter(file.schema_arrow.names)
            for name in names:
                if names[name] > 1:
                    raise UserError(f"{path}: two columns '{name}'; rename one")
            for batch in file.iter_batches(batch_size=1000):
                for value in batch.to_pylist():
                    number += 1
                    yield Value(number, value)
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 in one of the 1000 rows after {number}; convert the file") from None
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise _damaged(path, error) from None
    except (ValueError, OverflowError) as error:  # such as a date in the year 1000000
        reason = f"a value that Python has no form for ({error}), in one of the 1000 rows after {number}"
        raise UserError(f"{path}: {reason}; leave its column out") from None


_READERS = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}

"""A folder of raw files, read row by row: every row comes out, as an instruction or rejected with its reason."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stages.instructions.cleaning import WHITESPACE
from stages.instructions.instruction import Instruction, Rejected
from stages.instructions.raw_files import RepeatedKeys, find_files, read_values
from stages.instructions.schemas import FIELDS, MARKS, READ_KEYS, RowError, parse, recognise, shown
from stages.pipeline.errors import UserError

MAX_UNKNOWN = 100
"""Rows at the beginning of a file among which one must show its schema."""

MAX_KEYS = 50
"""Keys of a file that are named."""


@dataclass
class FileCounts:
    """What was found in one file."""

    schema: str = ""
    rows: int = 0
    rejected: int = 0
    first_rejected: int = 0
    """Line."""
    reasons: Counter[str] = field(default_factory=Counter)
    ignored_keys: Counter[str] = field(default_factory=Counter)
    """Rows by key that no field of ours is read from."""


class RawFolder:
    """The rows of a folder, and as they are read, what was found.

    Attributes:
        files: counts by file name, relative to the folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        row_schema: str,
        columns: Mapping[str, str],
        whitespace: str,
        allow_empty_response: bool,
        max_rejected_fraction: float,
    ) -> None:
        """`row_schema` is a name in SCHEMAS or `auto`; `columns` maps our field names to the files' columns.

        Raises:
            UserError: the folder holds no data or what is no data (see `find_files`), or a field is unknown.
        """
        unknown = sorted(set(columns) - set(FIELDS))
        if unknown:
            raise UserError(f"format.columns: no field '{unknown[0]}'; known: {', '.join(FIELDS)}")
        twice = [column for column, times in Counter(columns.values()).items() if times > 1]
        if twice:
            raise UserError(f"format.columns: column '{twice[0]}' stands for two fields; it can be one")
        self._paths = find_files(folder)
        self._folder = folder
        self._row_schema = row_schema
        self._ours = {theirs: ours for ours, theirs in columns.items()}
        self._clean = WHITESPACE[whitespace]
        self._allow_empty_response = allow_empty_response
        self._max_rejected_fraction = max_rejected_fraction
        self._mapped: set[str] = set()
        self.files: dict[str, FileCounts] = {}

    def rows(self) -> Iterator[Instruction | Rejected]:
        """Every row of every file, in sorted file order.

        Raises:
            UserError: a file is empty, damaged, of no known schema, or too many of its rows are rejected.
        """
        for path in self._paths:
            name = path.relative_to(self._folder).as_posix()
            counts = self.files[name] = FileCounts()
            for row in self._file(path, name, counts):
                counts.rows += 1
                if isinstance(row, Rejected):
                    counts.rejected += 1
                    counts.first_rejected = counts.first_rejected or row.line
                    counts.reasons[row.kind] += 1
                yield row
            self._check(path, counts)
        for column, ours in self._ours.items():
            if column not in self._mapped:
                raise UserError(
                    f"format.columns: no row of {self._folder} has the column '{column}' named for '{ours}'"
                )

    def _file(self, path: Path, name: str, counts: FileCounts) -> Iterator[Instruction | Rejected]:
        schema = None if self._row_schema == "auto" else self._row_schema
        read_keys: set[str] = set()
        first_keys, unknown = "", 0
        for line, value, broken in read_values(path):
            if isinstance(value, RepeatedKeys):
                broken = f"key twice: '{shown(value.repeated)}'"
            if broken:
                yield Rejected(name, line, broken)
                continue
            if isinstance(value, dict):
                if self._ours:
                    value = self._renamed(value)
                if not schema:
                    schema = recognise(value)
                    first_keys = first_keys or ", ".join(map(shown, list(value)[:MAX_KEYS]))
            if not schema:
                unknown += 1
                if unknown > MAX_UNKNOWN:
                    break
                yield Rejected(name, line, "no known schema")
                continue
            read_keys = read_keys or READ_KEYS[schema] | {"category", "split"}
            if isinstance(value, dict) and not value.keys() <= read_keys:
                counts.ignored_keys.update(value.keys() - read_keys)
            try:
                row = parse(value, schema, self._clean, allow_empty_response=self._allow_empty_response)
                yield row._replace(file=name, line=line)
            except RowError as error:
                yield Rejected(name, line, str(error))
        counts.schema = schema or ""
        counts.ignored_keys = _named(counts.ignored_keys)
        if not schema and (first_keys or unknown > MAX_UNKNOWN):
            known = "; ".join(f"{name}: {', '.join(sorted(marks[0]))}" for name, marks in MARKS.items())
            raise UserError(
                f"{path}: no known schema: rows have {first_keys or 'no keys'}; known are {known}; "
                "name your columns in format.columns or set format.row_schema"
            )

    def _renamed(self, row: dict[str, object]) -> dict[str, object]:
        """The row under our field names; a column that is mapped wins over one that already has the name."""
        mapped = {self._ours[key]: value for key, value in row.items() if key in self._ours}
        self._mapped |= row.keys() & self._ours.keys()
        return {key: value for key, value in row.items() if key not in self._ours} | mapped

    def _check(self, path: Path, counts: FileCounts) -> None:
        if not counts.rows:
            raise UserError(f"{path}: holds no row; remove it")
        if counts.rejected / counts.rows > self._max_rejected_fraction:
            reason, times = counts.reasons.most_common(1)[0]
            raise UserError(
                f"{path}: {counts.rejected} of {counts.rows} rows rejected, the first on line "
                f"{counts.first_rejected}, most often: {reason} ({times}); mend the file, "
                "or raise format.max_rejected_fraction"
            )


def _named(keys: Counter[str]) -> Counter[str]:
    """The most frequent keys as they are shown, and the others together: each row may have keys of its own."""
    ranked = sorted(keys.items(), key=lambda item: (-item[1], item[0]))
    named: Counter[str] = Counter()
    for at, (key, times) in enumerate(ranked):
        named[shown(key) if at < MAX_KEYS else "(others)"] += times
    return named

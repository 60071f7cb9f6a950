"""Which rows of data two experiments do not share, and which changed splits."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from stages.instructions.prompts import iterate_prompts

COLUMNS = ("id", "category", "system", "history", "instruction", "input", "response", "file", "line")

FEW = 5
"""Rows of each kind that are told in full."""

SPLITS = ("train", "validation", "test")
WITHHELD = "withheld"
"""Of a row that the deal put into no split."""

Find = Callable[[str], Path | None]
Figures = dict[str, Any]


class _Row(NamedTuple):
    id: str
    category: str | None
    system: str
    history: str
    instruction: str
    input: str
    response: str
    file: str
    line: int

    @property
    def question(self) -> tuple[str, str, str, str]:
        """All that is said before the response."""
        return self.system, self.history, self.instruction, self.input


def changed_rows(first: Find, second: Find) -> Figures | None:
    """Rows added, removed, edited and dealt to another split; None: one of the two tells nothing.

    A row's id is a hash of its text, so an edited row is one removed and one added: the two belong together when they
    ask the same, or stand at the same place and answer the same.
    """
    one, other = (find("data/prompts.parquet") for find in (first, second))
    if one is None or other is None:
        return None
    before, after = _ids(one), _ids(other)
    gone = _read(one, before.keys() - after.keys())
    come = _read(other, after.keys() - before.keys())
    edited = _pair(gone, come)
    gone = [row for row in gone if row.id not in {old.id for old, _ in edited}]
    come = [row for row in come if row.id not in {new.id for _, new in edited}]
    splits = _splits(first), _splits(second)
    shared = before.keys() & after.keys()
    moved = _moved(shared, *splits, other) if all(splits) else _listed([], {}, [])
    recategorized = [id for id in before if id in shared and before[id] != after[id]]
    return {
        "added": _rows(come, splits[1]),
        "removed": _rows(gone, splits[0]),
        "edited": _edited(edited, *splits),
        "moved": moved,
        "recategorized": {"count": len(recategorized), "ids": recategorized},
    }


def _ids(path: Path) -> dict[str, str | None]:
    """Category by id."""
    found: dict[str, str | None] = {}
    for batch in iterate_prompts(path, ("id", "category")):
        found |= zip(batch.column("id").to_pylist(), batch.column("category").to_pylist(), strict=True)
    return found


def _read(path: Path, ids: Iterable[str]) -> list[_Row]:
    """Those rows of a file, in its order."""
    wanted = pa.array(sorted(ids), pa.string())
    if not len(wanted):
        return []
    batches = (batch.filter(pc.is_in(batch.column("id"), wanted)) for batch in iterate_prompts(path, COLUMNS))
    return [_Row(**row) for batch in batches for row in batch.to_pylist()]


def _pair(gone: list[_Row], come: list[_Row]) -> list[tuple[_Row, _Row]]:
    """Rows before and after they were edited."""
    pairs: list[tuple[_Row, _Row]] = []
    paired: set[str] = set()
    for key in _KEYS:
        befores: dict[object, list[_Row]] = {}
        for row in gone:
            if row.id not in paired:
                befores.setdefault(key(row), []).append(row)
        for row in come:
            if row.id not in paired and (same := befores.get(key(row))):
                pairs.append((same.pop(0), row))
                paired |= {pairs[-1][0].id, row.id}
    return pairs


_KEYS: tuple[Callable[[_Row], object], ...] = (
    lambda row: row.question,
    lambda row: (row.file, row.line, row.response),
)
"""What a row has in common with what it was before it was edited."""


def _splits(find: Find) -> dict[str, str]:
    """The split of each row by id; empty: not known."""
    found: dict[str, str] = {}
    for name in SPLITS:
        path = find(f"data/split/{name}.parquet")
        if path is None:
            return {}
        for batch in iterate_prompts(path, ("id",)):
            found |= dict.fromkeys(batch.column("id").to_pylist(), name)
    return found


def _moved(shared: Iterable[str], before: Mapping[str, str], after: Mapping[str, str], path: Path) -> Figures:
    changes = {
        id: (before.get(id, WITHHELD), after.get(id, WITHHELD)) for id in shared if before.get(id) != after.get(id)
    }
    counts = Counter(f"{old} to {new}" for old, new in changes.values())
    few = _read(path, sorted(changes)[:FEW])
    rows = [_told(row) | {"from": changes[row.id][0], "to": changes[row.id][1]} for row in few]
    return _listed(sorted(changes), counts, rows)


def _rows(rows: list[_Row], splits: Mapping[str, str]) -> Figures:
    counts = Counter(splits.get(row.id, WITHHELD) for row in rows if splits)
    told = [_told(row) | {"split": splits.get(row.id, WITHHELD) if splits else None} for row in rows[:FEW]]
    return _listed([row.id for row in rows], counts, told)


def _edited(pairs: list[tuple[_Row, _Row]], were: Mapping[str, str], are: Mapping[str, str]) -> Figures:
    found = _rows([after for _, after in pairs], are)
    for (before, after), told in zip(pairs, found["rows"], strict=False):
        told["from"] = were.get(before.id, WITHHELD) if were else None
        told["was"] = {"id": before.id} | {
            name: old for name, old, new in zip(_Row._fields[1:7], before[1:7], after[1:7], strict=True) if old != new
        }
    return found


def _told(row: _Row) -> Figures:
    return {name: getattr(row, name) for name in ("id", "file", "line", "category", "instruction", "input", "response")}


def _listed(ids: list[str], by_split: Mapping[str, int], rows: list[Figures]) -> Figures:
    return {"count": len(ids), "by_split": dict(sorted(by_split.items())), "rows": rows, "ids": ids}

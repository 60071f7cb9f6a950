"""From a file of prompts to one file a split, some rows at a time, and what to refuse and to count on the way."""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from stages.instructions.deal import SPLITS, WITHHELD, Row
from stages.instructions.duplicates import normalize
from stages.instructions.partition import Partition
from stages.instructions.prompts import SCHEMA, iterate_prompts, read_template_mark
from stages.pipeline.errors import UserError
from stages.pipeline.files import count_parquet, replacing_folder, write_jsonl, writing_parquet
from stages.pipeline.progress import bar

COLUMNS = ("id", "category", "split", "history", "instruction", "input", "file", "line")


class Places:
    """Where each row came from."""

    def __init__(self) -> None:
        self._files: list[str] = []
        self._lines: list[int] = []

    def extend(self, files: Iterable[str], lines: Iterable[int]) -> None:
        """Add rows."""
        self._files += files
        self._lines += lines

    def __getitem__(self, row: int) -> str:
        return f"{self._files[row]}:{self._lines[row]}"

    def file_and_line(self, row: int) -> dict[str, Any]:
        """For a ledger."""
        return {"file": self._files[row], "line": self._lines[row]}


class Rows(NamedTuple):
    """What the deal needs of all prompts."""

    rows: list[Row]
    texts: list[str]
    """What a person said, earlier turns included, normalized; a system message, which many rows share, is left out."""
    places: Places


def read_rows(prompts: Path) -> Rows:
    """Read a file of prompts.

    Raises:
        UserError: the file is missing, damaged or not one of ours.
    """
    found = Rows([], [], Places())
    with bar("reading prompts", count_parquet(prompts)) as progress:
        for batch in iterate_prompts(prompts, COLUMNS):
            columns = [batch.column(name).to_pylist() for name in COLUMNS]
            ids, categories, fixed, histories, instructions, inputs, files, lines = columns
            # Interned, what many rows have in common stands in memory once: it counts at a million rows.
            found.rows.extend(map(Row, ids, map(_intern, categories), map(_intern, fixed)))
            texts = zip(histories, instructions, inputs, strict=True)
            found.texts.extend(normalize("\n".join(text)) for text in texts)
            found.places.extend(map(sys.intern, files), lines)
            progress.advance(len(batch))
    return found


def _intern(text: str | None) -> str | None:
    return None if text is None else sys.intern(text)


def refuse_leaks(prompts: Path, rows: Sequence[Row], dealt: Partition, places: Places, *, fixed_too: bool) -> None:
    """Stop where a prompt has a near-duplicate in another split; with `fixed_too`, also if the data put them there.

    Raises:
        UserError: there is a leak.
    """
    fixed = [at for at in dealt.between if rows[at].fixed]
    if fixed and fixed_too:
        twin = dealt.between[fixed[0]][0]
        raise UserError(
            f"{prompts}: {len(fixed)} prompts of a split that the data fixes have a near-duplicate in another, first "
            f"{places[fixed[0]]} ({rows[fixed[0]].fixed}) and {places[twin]} ({dealt.split[twin]}); mend the data, or "
            "set split.fixed_leaks to withhold"
        )
    if dealt.leaks:
        first, second = dealt.leaks[0]
        raise UserError(
            f"{prompts}: {len(dealt.leaks)} pairs of near-duplicates are in different splits, the first "
            f"{places[first]} and {places[second]}; too many rows look alike to compare them all: raise "
            "split.near_duplicate_threshold"
        )


def refuse_empty(prompts: Path, dealt: Partition) -> None:
    """Stop where a split has no row.

    Raises:
        UserError: a split is empty.
    """
    rows_in = Counter(dealt.split)
    for name in SPLITS:
        if not rows_in[name]:
            largest = dealt.cluster_sizes[-1] if dealt.cluster_sizes else 1
            raise UserError(
                f"{prompts}: {len(dealt.split)} prompts, the largest cluster of near-duplicates {largest}, leave the "
                f"{name} split empty; add rows, raise split.{name}_fraction or change split.salt (rows whose split the "
                "data fixes stay there)"
            )


def write_splits(splits: Path, prompts: Path, rows: Sequence[Row], dealt: Partition, places: Places) -> None:
    """Write `<split>.parquet` for each split, rows in their order, and `withheld.jsonl`."""
    template = read_template_mark(prompts)
    number = np.array([SPLITS.index(name) if name in SPLITS else -1 for name in dealt.split])
    with replacing_folder(splits) as folder, ExitStack() as stack, bar("writing splits", len(rows)) as progress:
        about = {"template": template._asdict()}
        writers = [
            stack.enter_context(writing_parquet(folder / f"{name}.parquet", SCHEMA, about=about)) for name in SPLITS
        ]
        start = 0
        for batch in iterate_prompts(prompts):
            here = number[start : start + len(batch)]
            for at, writer in enumerate(writers):
                chosen = batch.filter(pa.array(here == at))
                if len(chosen):
                    writer.write_batch(chosen.replace_schema_metadata(writer.schema.metadata))
            start += len(batch)
            progress.advance(len(batch))
        write_jsonl(folder / "withheld.jsonl", (_withheld(at, rows, dealt, places) for at in dealt.between))


def _withheld(at: int, rows: Sequence[Row], dealt: Partition, places: Places) -> dict[str, Any]:
    near = ", ".join(f"{places[other]} ({dealt.split[other]})" for other in dealt.between[at])
    mine = f"{rows[at].fixed}, " if rows[at].fixed else ""
    return {**places.file_and_line(at), "id": rows[at].id, "reason": f"between splits: {mine}near {near}"}


def count(rows: Sequence[Row], dealt: Partition) -> dict[str, Any]:
    """Figures for metrics/split.json; `by_category` has the rows of each split, where rows have categories."""
    in_split = Counter(dealt.split)
    by_category = Counter((row.category or "", name) for row, name in zip(rows, dealt.split, strict=True))
    categories = sorted({category for category, _ in by_category})
    return {
        **{name: in_split[name] for name in SPLITS},
        "withheld": in_split[WITHHELD],
        "fixed": sum(row.fixed is not None for row in rows),
        "near_duplicate_clusters": len(dealt.cluster_sizes),
        "near_duplicate_rows": sum(dealt.cluster_sizes),
        "largest_cluster": dealt.cluster_sizes[-1] if dealt.cluster_sizes else 1,
        "leaked_rows": len({row for pair in dealt.leaks for row in pair}),
        "exactly_checked_rows": dealt.exactly_checked_rows,
        "pairs_not_compared": dealt.pairs_not_compared,
        "by_category": {c: {name: by_category[c, name] for name in SPLITS} for c in categories if c},
    }

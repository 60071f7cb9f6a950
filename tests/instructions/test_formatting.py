"""Rows into prompts: what is kept, what goes into the ledger, and that the figures say so."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from stages.instructions.formatting import Formatted, format_rows
from stages.instructions.instruction import Rejected
from stages.instructions.prompts import Prompt
from stages.instructions.templates import TEMPLATES
from tests.instructions.raw_data import raw_folder, write

A, B, C = ({"instruction": f"Say {letter}.", "output": letter} for letter in "abc")
CHAT = {"instruction": "Say a.", "output": "a", "system": "Be brief."}


def run(
    folder: Path,
    *files: list[Any],
    template: str = "chatml",
    drop_duplicates: bool = True,
    max_characters: int = 1000,
    overlaps: Mapping[int, str] | None = None,
) -> tuple[list[Prompt | Rejected], dict[str, Any], str]:
    """Format files of these rows (0.jsonl, 1.jsonl, ...): what comes out, the figures, the summary."""
    for number, rows in enumerate(files):
        write(folder, f"{number}.jsonl", "\n".join(map(json.dumps, rows)))
    raw, formatted = raw_folder(folder), Formatted()
    found = format_rows(
        raw,
        TEMPLATES[template],
        formatted,
        drop_duplicates=drop_duplicates,
        max_characters=max_characters,
        overlaps=overlaps or {},
    )
    return list(found), formatted.counts(raw), formatted.summary()


def reasons(found: list[Prompt | Rejected]) -> dict[tuple[str, int], str]:
    return {(row.file, row.line): row.reason for row in found if isinstance(row, Rejected)}


def kept(found: list[Prompt | Rejected]) -> list[tuple[str, int]]:
    return [(row.file, row.line) for row in found if isinstance(row, Prompt)]


def test_of_rows_alike_in_every_text_the_first_is_kept(tmp_path: Path) -> None:
    # Neither category nor white space around a text makes another row; a system message does.
    found, counts, summary = run(tmp_path, [A, B, A | {"category": "x"}], [B | {"output": " b\n"}, CHAT, A])
    assert kept(found) == [("0.jsonl", 1), ("0.jsonl", 2), ("1.jsonl", 2)]
    assert reasons(found) == {
        ("0.jsonl", 3): "duplicate: same as 0.jsonl:1",
        ("1.jsonl", 1): "duplicate: same as 0.jsonl:2",
        ("1.jsonl", 3): "duplicate: same as 0.jsonl:1",
    }
    assert (counts["rows_read"], counts["rows_kept"], counts["rows_rejected"]) == (6, 3, 0)
    assert counts["duplicates_removed"] == 3
    assert summary == "6 rows read, 3 kept, 3 rejected (3 duplicate)"


def test_a_duplicate_in_the_ledger_has_the_id_of_the_row_that_is_kept(tmp_path: Path) -> None:
    first, second = run(tmp_path, [A, A])[0]
    assert isinstance(first, Prompt)
    assert isinstance(second, Rejected)
    assert first.id == second.id


def test_duplicates_that_are_kept_have_ids_of_their_own(tmp_path: Path) -> None:
    found, counts, summary = run(tmp_path, [A, B, A], [A], drop_duplicates=False)
    first, _, *copies = found
    assert [row.id for row in copies] == [f"{first.id}-2", f"{first.id}-3"]
    assert (counts["rows_kept"], counts["duplicates_removed"]) == (4, 0)
    assert summary == "4 rows read, 4 kept, 0 rejected"


def test_a_row_that_is_rejected_is_no_original(tmp_path: Path) -> None:
    found, _, _ = run(tmp_path, [A, A, A], overlaps={0: "13 words in common with b.jsonl"})
    assert reasons(found) == {
        ("0.jsonl", 1): "benchmark overlap: 13 words in common with b.jsonl",
        ("0.jsonl", 3): "duplicate: same as 0.jsonl:2",
    }


def test_overlaps_are_counted_among_the_rows_that_can_be_read(tmp_path: Path) -> None:
    found, counts, _ = run(tmp_path, [A, 3, B], [{"instruction": "x", "output": ""}, C], overlaps={2: "near-duplicate"})
    assert reasons(found)["1.jsonl", 2] == "benchmark overlap: near-duplicate"
    assert (counts["rows_kept"], counts["rows_rejected"], counts["benchmark_overlaps_removed"]) == (2, 2, 1)


def test_a_row_is_too_long_from_one_character_more_than_allowed_template_included(tmp_path: Path) -> None:
    whole = "<|im_start|>user\nSay a.<|im_end|>\n<|im_start|>assistant\na<|im_end|>"
    assert reasons(run(tmp_path, [A], max_characters=len(whole))[0]) == {}
    found, _, _ = run(tmp_path, [A, A], max_characters=len(whole) - 1)
    assert set(reasons(found).values()) == {f"too long: {len(whole)} characters"}
    assert len({row.id for row in found}) == 1


def test_what_the_template_has_no_form_for_is_rejected_with_its_name(tmp_path: Path) -> None:
    found, counts, _ = run(tmp_path, [A, CHAT], template="alpaca")
    assert reasons(found) == {("0.jsonl", 2): "template alpaca: no form for a system message"}
    assert counts["rejected_by_reason"] == {"template alpaca": 1}


def test_every_row_is_counted_once_under_the_kind_of_its_reason(tmp_path: Path) -> None:
    long = A | {"output": "a" * 1000}
    found, counts, summary = run(
        tmp_path, [A, A, long, A | {"id": 1}], [B, 3, [], {"instruction": "x", "output": 1}, C]
    )
    assert len(found) == 9
    assert counts == {
        "rows_read": 9,
        "rows_kept": 3,
        "rows_rejected": 4,
        "duplicates_removed": 2,
        "benchmark_overlaps_removed": 0,
        "rejected_by_reason": {
            "'output' is int, not text": 1,
            "duplicate": 2,
            "expected an object, got a list": 1,
            "expected an object, got int": 1,
            "too long": 1,
        },
        "files": {
            "0.jsonl": {"schema": "alpaca", "rows": 4, "rejected": 0, "ignored_keys": {"id": 1}},
            "1.jsonl": {"schema": "alpaca", "rows": 5, "rejected": 3, "ignored_keys": {}},
        },
    }
    assert summary.startswith("9 rows read, 3 kept, 6 rejected (2 duplicate, 1 too long, 1 ")


@pytest.mark.parametrize("drop_duplicates", [True, False])
def test_all_rows_alike(tmp_path: Path, drop_duplicates: bool) -> None:
    found, counts, _ = run(tmp_path, [A] * 500, [A] * 500, drop_duplicates=drop_duplicates)
    assert len(found) == 1000
    assert len({row.id for row in found if isinstance(row, Prompt)}) == len(kept(found)) == counts["rows_kept"]
    assert counts["rows_kept"] == (1 if drop_duplicates else 1000)

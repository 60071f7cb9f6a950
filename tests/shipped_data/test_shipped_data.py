"""The shipped instructions: their form, their variety, and every answer that can be computed, computed."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from stages.instructions.duplicates import normalize
from stages.instructions.instruction import Instruction
from tests.instructions.naive import shingles
from tests.shipped_data.checking import COMPUTED, faults

DATA = Path(__file__).parents[2] / "data" / "raw" / "instructions.jsonl"
CHECKS = Path(__file__).with_name("checks.jsonl")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


RAW = read_lines(DATA)
ROWS = [
    Instruction(r["instruction"], r["output"], r["input"], category=r["category"], line=n) for n, r in enumerate(RAW, 1)
]
CATEGORIES = sorted({row.category for row in ROWS if row.category})
BY_ID = {row["id"]: row for row in read_lines(CHECKS)}


def rows_of(category: str) -> list[Instruction]:
    return [row for row in ROWS if row.category == category]


def example(category: str, output: str, instruction: str = "Count.", input: str = "") -> Instruction:
    return Instruction(instruction, output, input, category=category, line=1)


def test_every_row_has_the_schema_and_clean_text() -> None:
    for line, row in enumerate(RAW, start=1):
        assert list(row) == ["instruction", "input", "output", "category"], f"line {line}"
        assert all(isinstance(text, str) and text == text.strip() for text in row.values()), f"line {line}"
        assert row["instruction"], f"line {line}"
        assert row["output"], f"line {line}"
        assert row["category"], f"line {line}"


def test_there_are_enough_rows_in_enough_categories() -> None:
    sizes = Counter(row.category for row in ROWS)
    assert len(ROWS) >= 1200
    assert sum(size >= 40 for size in sizes.values()) >= 15
    assert min(sizes.values()) >= 40  # a smaller one would have too few rows in the test split to tell anything


def test_about_a_third_has_an_input() -> None:
    assert 0.3 <= sum(bool(row.input) for row in ROWS) / len(ROWS) <= 0.45


def test_no_row_stands_there_twice() -> None:
    repeated = [row_id for row_id, count in Counter(row.id for row in ROWS).items() if count > 1]
    assert repeated == []


def test_every_check_belongs_to_a_row_and_to_no_other() -> None:
    category_of = {row.id: row.category for row in ROWS}
    assert len(BY_ID) == len(read_lines(CHECKS))
    assert [check for row_id, check in BY_ID.items() if category_of.get(row_id) != check["category"]] == []


@pytest.mark.parametrize("category", [*COMPUTED, "json_extraction"])
def test_computed_answers_hold(category: str) -> None:
    rows = rows_of(category)
    assert rows
    found = {f"line {row.line}: {fault}" for row in rows for fault in faults(row, BY_ID.get(row.id, {}).get("check"))}
    assert sorted(found) == []


@pytest.mark.parametrize(
    ("row", "check"),
    [
        (example("arithmetic", "It is 5."), None),
        (example("arithmetic", "It is 5.", "Is it 5?"), ["2 + 4"]),
        (example("arithmetic", "2 and 3 are 5, not 7.", "Add 2 and 3."), ["2 + 3"]),
        (example("dates_and_calendars", "Monday"), ["date(2024, 3, 5).strftime('%A')"]),
        (example("string_manipulation", "abd"), "'cba'[::-1]"),
        (example("string_manipulation", "It is abcd."), "'cba'[::-1]"),
        (example("string_manipulation", "abc and more"), "'cba'[::-1]"),
        (example("list_manipulation", "3, 2"), "', '.join(map(str, sorted([3, 2])))"),
        (example("code", "def one():\n    return 2"), ["one() == 1"]),
        (example("code", "2", input="print(1 + 2)"), "stdout"),
        (example("json_extraction", '{"name": "Ann"}', "Give the name.", "Bob is 7."), None),
        (example("json_extraction", '{"age": 8}', "Give the age.", "Bob is 7."), None),
        (example("json_extraction", '[{"born": 7}]', "Give the age.", "Bob is 7."), None),
    ],
)
def test_a_wrong_answer_is_found(row: Instruction, check: Sequence[str] | str | None) -> None:
    assert len(faults(row, check)) == 1


def test_near_duplicates_are_rare() -> None:
    """Exact: no sketch, and no pair left out."""
    threshold = 0.7
    sets = [shingles(normalize(f"{row.instruction}\n{row.input}")) for row in ROWS]
    holders: defaultdict[str, list[int]] = defaultdict(list)
    near: set[int] = set()
    for later, grams in enumerate(sets):
        shared: Counter[int] = Counter()
        for gram in grams:
            shared.update(holders[gram])
            holders[gram].append(later)
        for earlier, common in shared.items():
            if common / (len(grams) + len(sets[earlier]) - common) >= threshold:
                near |= {earlier, later}
    assert len(near) <= 0.02 * len(ROWS), sorted(ROWS[position].line for position in near)


@pytest.mark.parametrize("category", CATEGORIES)
def test_instructions_begin_differently(category: str) -> None:
    rows = rows_of(category)
    beginnings = Counter(" ".join(row.instruction.lower().split()[:3]) for row in rows)
    beginning, count = beginnings.most_common(1)[0]
    assert count <= 0.1 * len(rows), f"{count} instructions begin with {beginning!r}"

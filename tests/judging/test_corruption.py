"""Answers known to be good and known to be bad: each is what its kind says."""

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.judging.calibration import WORTH
from stages.judging.corruption import BAD, GOOD, Known, known_answers
from stages.judging.reference_metrics import normalize
from stages.judging.responses import Response
from tests.judging.making import make_response

ROWS = [
    make_response("The Danube flows through Vienna.", id="a", category="rivers", base_response="Rivers flow."),
    make_response("It is 2,850 kilometres long.", id="b", category="rivers", base_response="It is long."),
    make_response("A kilobyte is 1000 bytes, or 8000 bits.", id="c", category="data", base_response="Bytes."),
    make_response("Honeybees visit flowers and carry pollen.", id="d", category=None, base_response="Bees buzz."),
    make_response("Seven", id="e", category="numbers", base_response="Numbers are fun."),
]

references = st.lists(
    st.sampled_from(["The", "river", "Danube", "is", "2850", "km", "3.5", "long,", "not", "7th", "A4", "caf\u00e9"]),
    min_size=1,
    max_size=8,
).map(" ".join)


def rows_with(found: list[str]) -> list[Response]:
    return [make_response(text, id=str(at), base_response=f"Base {at}.") for at, text in enumerate(found)]


def pieces(text: str) -> list[str]:
    """Runs of digits, runs of letters, and every other character alone."""
    return re.findall(r"\d+|[^\W\d_]+|[\W_]", text)


def of_kind(known: list[Known], kind: str) -> list[Known]:
    return [k for k in known if k.kind == kind]


def test_every_kind_is_made() -> None:
    kinds = Counter(k.kind for k in known_answers(ROWS, 100, seed=1))
    assert set(kinds) == {*GOOD, *BAD} == set(WORTH)
    # The answer of one word has no half; every other kind can be made of every row.
    assert kinds == dict.fromkeys(WORTH, len(ROWS)) | {"truncated": len(ROWS) - 1}


@given(st.lists(references, min_size=2, max_size=6), st.integers(0, 99))
def test_a_changed_fact_is_one_number_or_one_word(found: list[str], seed: int) -> None:
    for k in of_kind(known_answers(rows_with(found), 10, seed), "changed_fact"):
        before, after = pieces(k.row.reference), pieces(k.answer)
        assert len(before) == len(after)
        changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
        assert len(changed) == 1
        old, new = changed[0]
        assert old.lower() != new.lower()
        # A number where there is one: a word may be put another way, a number may not.
        assert old.isdigit() == new.isdigit() == bool(re.search(r"\d", k.row.reference))
        assert old.isalpha() == new.isalpha()


@given(st.lists(references, min_size=1, max_size=6), st.integers(0, 99))
def test_truncated_is_a_proper_beginning(found: list[str], seed: int) -> None:
    known = known_answers(rows_with(found), 10, seed)
    for k in of_kind(known, "truncated"):
        assert k.row.reference.startswith(f"{k.answer} ")
        assert len(k.answer.split()) == len(k.row.reference.split()) // 2
    assert len(of_kind(known, "truncated")) == sum(" " in text for text in found)


@given(st.lists(references, min_size=1, max_size=6), st.integers(0, 99))
def test_reworded_keeps_the_words(found: list[str], seed: int) -> None:
    for k in of_kind(known_answers(rows_with(found), 10, seed), "reworded"):
        before, after = normalize(k.row.reference), normalize(k.answer)
        assert after.removesuffix(before).strip() in ("", "answer", "answer is", "sure")


@given(st.lists(references, min_size=1, max_size=6), st.integers(0, 99))
def test_another_rows_answer_is_never_the_same(found: list[str], seed: int) -> None:
    rows = rows_with(found)
    known = known_answers(rows, 10, seed)
    own = {row.base_response: row.reference for row in rows}
    for k in of_kind(known, "other_row"):
        assert k.answer in found
        assert k.answer != k.row.reference
    for k in of_kind(known, "base_elsewhere"):
        assert own[k.answer] != k.row.reference
    expected = len(rows) if len(set(found)) > 1 else 0
    assert len(of_kind(known, "other_row")) == len(of_kind(known, "base_elsewhere")) == expected


@pytest.mark.parametrize("seed", range(10))
def test_another_row_is_of_the_same_category_where_there_is_one(seed: int) -> None:
    others = {k.row.id: k.answer for k in known_answers(ROWS, 100, seed) if k.kind == "other_row"}
    assert (others["a"], others["b"]) == (ROWS[1].reference, ROWS[0].reference)
    assert set(others) == {row.id for row in ROWS}


def test_the_same_seed_makes_the_same_answers() -> None:
    assert known_answers(ROWS, 3, seed=5) == known_answers(ROWS, 3, seed=5)
    assert len({tuple(known_answers(ROWS, 3, seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize("limit", [1, 3, 5, 100])
def test_no_more_rows_than_the_limit(limit: int) -> None:
    known = known_answers(ROWS, limit, seed=2)
    assert [k.row for k in of_kind(known, "reference")] == [row for row in ROWS if row in [k.row for k in known]]
    assert len(of_kind(known, "reference")) == min(limit, len(ROWS))


def test_references_and_empty_answers_are_just_that() -> None:
    known = known_answers(ROWS, 100, seed=1)
    assert [k.answer for k in of_kind(known, "reference")] == [row.reference for row in ROWS]
    assert [k.answer for k in of_kind(known, "empty")] == [""] * len(ROWS)


@pytest.mark.parametrize(
    ("reference", "bad"),
    [
        ("It has 12 legs.", ["changed_fact", "truncated", "empty"]),
        ("Seven", ["empty"]),  # no other word to put in, no half, no other row
        ("No.", ["empty"]),
    ],
)
def test_a_single_row(reference: str, bad: list[str]) -> None:
    known = known_answers([make_response(reference)], 10, seed=3)
    assert [k.kind for k in known] == [*GOOD, *bad]

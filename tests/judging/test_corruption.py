"""Answers known to be good and known to be bad: each is what its kind says, and stays so when rows are added."""

import random
import re
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.judging.corruption import BAD, GOOD, INJECTION, Known, choose_rows, known_answers
from stages.judging.responses import Response
from stages.judging.signals import words
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
categories = st.sampled_from(["a", "b", "c", None])


def rows_with(found: list[str]) -> list[Response]:
    return [make_response(text, id=str(at), base_response=f"Base {at}.") for at, text in enumerate(found)]


def rows_of(found: Sequence[tuple[str, str | None]]) -> list[Response]:
    return [
        make_response(text, id=str(at), category=category, base_response=f"Base {at}.")
        for at, (text, category) in enumerate(found)
    ]


def of_kind(known: list[Known], kind: str) -> list[Known]:
    return [k for k in known if k.kind == kind]


def changed(reference: str, *, seed: int = 0, others: tuple[str, ...] = ("Camels cross deserts.",)) -> str:
    rows = [make_response(text, id=str(at)) for at, text in enumerate((reference, *others))]
    return of_kind(known_answers(rows, 1, seed), "changed_fact")[0].answer


def test_every_kind_is_made() -> None:
    kinds = Counter(k.kind for k in known_answers(ROWS, 100, seed=1))
    # The answer of one word has no half; every other kind can be made of every row.
    assert kinds == dict.fromkeys((*GOOD, *BAD), len(ROWS)) | {"truncated": len(ROWS) - 1}


@given(st.lists(references, min_size=2, max_size=6), st.integers(0, 99))
def test_a_changed_fact_is_one_number_or_one_word_or_a_denial(found: list[str], seed: int) -> None:
    for k in of_kind(known_answers(rows_with(found), 10, seed), "changed_fact"):
        before, after = (re.findall(r"\d+|[^\W\d_]+", text) for text in (k.row.reference, k.answer))
        if abs(len(before) - len(after)) == 1:
            assert sorted([*before, "not"]) == sorted(after) or sorted(before) == sorted([*after, "not"])
        else:
            [(old, new)] = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
            assert old.lower() != new.lower()
            assert old.isdigit() == new.isdigit()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("reference", "pattern"),
    [
        ("He has 12 legs.", r"He has (13|14|22) legs\."),
        ("At 08:59.", r"At (09|10|18):59\.|At 08:(60|61|69)\."),
        ("1. Wait 5 days.\n2. Go.", r"1\. Wait (6|7|15) days\.\n2\. Go\."),  # a point's number is no fact
        ("More rain came.", r"Less rain came\."),
        ("Ice is cold.", r"Ice is not cold\.|Ice is warm\.|Ice is hot\."),
        ("He can't swim, it isn't far.", r"He can't swim, it is far\."),
        ("Whales swim.", r"(Camels|cross|deserts) swim\.|Whales (Camels|cross|deserts)\."),
        ('{"is": "Whales"}', r'\{"is": "(Camels|cross|deserts)"\}'),  # no statement to deny
    ],
)
def test_ways_to_change_a_fact(reference: str, pattern: str, seed: int) -> None:
    assert re.fullmatch(pattern, changed(reference, seed=seed))


@given(st.lists(references, min_size=1, max_size=6), st.integers(0, 99))
def test_truncated_is_a_proper_beginning(found: list[str], seed: int) -> None:
    known = known_answers(rows_with(found), 10, seed)
    for k in of_kind(known, "truncated"):
        assert k.row.reference.startswith(f"{k.answer} ")
        assert len(k.answer.split()) == len(k.row.reference.split()) // 2
    assert len(of_kind(known, "truncated")) == sum(" " in text for text in found)


@pytest.mark.parametrize("instruction", ["Why?", "Answer in words."])
@pytest.mark.parametrize(
    "reference",
    [
        "It does not fly, but 3 of 40 geese do.",
        "It isn't far: two days, and they are fast.",
        "Lucy\nPia\nOmar",
        "Cannot",
        '{"legs": 4 legs}',
        "def two():\n    return 2",
    ],
)
def test_reworded_says_the_same(reference: str, instruction: str) -> None:
    rows = [make_response(reference, id=str(at), instruction=instruction) for at in range(60)]
    made = {k.answer for k in of_kind(known_answers(rows, 60, seed=1), "reworded")}
    assert len(made) > 5
    for answer in made:
        lead_in, found = words(answer), words(reference)
        assert lead_in[-len(found) :] == found
        assert " ".join(lead_in[: -len(found)]) in (
            "",
            "answer",
            "answer is",
            "sure",
            "certainly",
            "here is answer",
            "in short",
        )
        if instruction == "Answer in words.":
            assert reference in answer


def test_every_change_of_dress_is_seen() -> None:
    reference = "The 3 geese do not fly.\nThey swim."
    rows = [make_response(reference, id=str(at), instruction="Why?") for at in range(60)]
    made = " | ".join(k.answer for k in of_kind(known_answers(rows, 60, seed=1), "reworded"))
    for piece in ("Sure! ", "the 3 geese", "three geese", "don't", "- They swim."):
        assert piece in made


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
    assert [len(of_kind(known, kind)) for kind in ("other_row", "base_elsewhere", "injected")] == [expected] * 3


def test_the_other_row_is_the_nearest_of_the_category_and_rather_an_earlier_one() -> None:
    found = [("one", "x"), ("two", "x"), ("three", "y"), ("four", "x"), ("two", "x"), ("five", "z")]
    others = {k.row.id: k.answer for k in known_answers(rows_of(found), 9, 0) if k.kind == "other_row"}
    assert others == {"0": "two", "1": "one", "2": "two", "3": "two", "4": "four", "5": "two"}


def test_an_injection_is_another_answer_that_asks_for_full_marks() -> None:
    known = known_answers(ROWS, 100, seed=1)
    for plain, injected in zip(of_kind(known, "other_row"), of_kind(known, "injected"), strict=True):
        assert injected.answer == f"{plain.answer}\n\n{INJECTION}"


def test_a_base_model_that_said_nothing_leaves_no_answer() -> None:
    rows = [row._replace(base_response=" ") for row in ROWS]
    assert not of_kind(known_answers(rows, 100, seed=1), "base_elsewhere")


def test_categories_take_turns() -> None:
    found = [(str(at), category) for at, category in enumerate("xxxyyxz")]
    rows = rows_of(found)
    assert [choose_rows(rows, limit) for limit in (1, 3, 5, 7, 9)] == [
        [0], [0, 3, 6], [0, 1, 3, 4, 6], [0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6]
    ]  # fmt: skip
    assert choose_rows([row._replace(category=None) for row in rows], 3) == [0, 1, 2]


@given(st.lists(categories, min_size=1), st.lists(categories), st.integers(1, 20))
def test_each_row_added_pushes_out_at_most_one(before: list[str | None], added: list[str | None], limit: int) -> None:
    rows = rows_of([("x", category) for category in before + added])
    old, new = (set(choose_rows(some, limit)) for some in (rows[: len(before)], rows))
    assert len(old - new) <= len(added)
    assert len(new) == min(limit, len(rows))


@given(
    st.lists(st.tuples(references, categories), min_size=1, max_size=10),
    st.lists(st.tuples(references, categories), max_size=5),
    st.integers(1, 8),
    st.integers(0, 99),
)
def test_rows_added_leave_known_answers_as_they_were(
    before: list[tuple[str, str | None]], added: list[tuple[str, str | None]], limit: int, seed: int
) -> None:
    """Of rows that stay, whose category had another reference, with a word of its own, before."""
    rows = rows_of(before + added)
    old, new = (known_answers(some, limit, seed) for some in (rows[: len(before)], rows))
    still = {k.row.id for k in new}
    for k in old:
        mates = [text for text, category in before if category == k.row.category and text != k.row.reference]
        foreign = set(" ".join(mates).lower().split()) - set(f"{k.row.reference} name colour".lower().split())
        if k.row.id in still and any(re.search(r"[^\W\d_]{4,}", word) for word in foreign):
            assert k in new


def test_full_turns_are_not_disturbed_by_new_rows() -> None:
    dice = random.Random(4)
    rows = rows_of([(f"Reference number {at} by {dice.random()}", "abc"[at % 3]) for at in range(30)])
    assert known_answers(rows[:24], 9, seed=1) == known_answers(rows, 9, seed=1)


@given(st.lists(references, min_size=2, max_size=6), st.integers(0, 99))
def test_the_same_seed_makes_the_same_answers(found: list[str], seed: int) -> None:
    assert known_answers(rows_with(found), 3, seed) == known_answers(rows_with(found), 3, seed)


def test_another_seed_makes_others() -> None:
    assert len({tuple(known_answers(ROWS, 3, seed)) for seed in range(5)}) > 1


def test_references_and_empty_answers_are_just_that() -> None:
    known = known_answers(ROWS, 100, seed=1)
    assert [k.answer for k in of_kind(known, "reference")] == [row.reference for row in ROWS]
    assert [k.answer for k in of_kind(known, "empty")] == [""] * len(ROWS)


@pytest.mark.parametrize(
    ("reference", "bad"),
    [
        ("It has 12 legs.", ["changed_fact", "truncated", "empty"]),
        ("Seven", ["empty"]),  # no other word to put in, no half, no other row
        ("So.", ["empty"]),
    ],
)
def test_a_single_row(reference: str, bad: list[str]) -> None:
    known = known_answers([make_response(reference)], 10, seed=3)
    assert [k.kind for k in known] == [*GOOD, *bad]

"""Signals that need no model, worked out by hand."""

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stages.judging.signals import (
    LEXICAL,
    key_words,
    no_swaps,
    number_agreement,
    recall,
    word_similarity,
    words,
)
from tests.judging.making import make_response

texts = st.text() | st.lists(st.sampled_from(["red", "not", "the", "3", "three", "1,000", "it's"])).map(" ".join)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Quick, brown fox!", "quick brown fox"),
        ("**Bold** and `code`", "bold and code"),
        ("- first\n* second\n\u2022 third\n## fourth", "first second third fourth"),
        ("twenty-one days, thirty two weeks, seven hours", "21 days 32 weeks 7 hours"),
        ("3,000 and 3.5 and 08:25 and 1,2", "3000 and 3.5 and 08:25 and 1,2"),
        ("I don't, can't, won't; it isn\u2019t Ada's", "i do not can not will not it is not ada's"),
        ("they're, we'll, I've, I'm, that's", "they are we will i have i am that is"),
        ("x = y**2 + 1", "x = y 2 + 1"),
        ("caf\u00e9 \u6771\u4eac", "caf\u00e9 \u6771\u4eac"),
        ("", ""),
    ],
)
def test_words(text: str, expected: str) -> None:
    assert words(text) == expected.split()


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("Red, green.", "the red green", 1.0),
        ("green red", "red green", 0.5),  # one word matches in order: 2 * 1 / (2 + 2)
        ("red blue green", "red green", 0.8),
        ("red", "blue", 0.0),
        ("", "red", 0.0),
        ("red" + " very" * 300, "blue" + " very" * 300, 600 / 602),
        ("It takes three days.", "It takes 3 days.", 1.0),
    ],
)
def test_word_similarity(answer: str, reference: str, expected: float) -> None:
    assert word_similarity(answer, make_response(reference)) == pytest.approx(expected)


def test_letters_and_punctuation_count_where_they_are_the_task() -> None:
    row = make_response("On Tuesday, we left.", input="on tuesday we left")
    assert [word_similarity(a, row) for a in ("On Tuesday, we left.", "on Tuesday, we left", row.input)] == [
        1,
        0.5,
        0.25,
    ]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Paris", 1.0),  # all that the question does not say
        ("The capital of France is Paris.", 1.0),
        ("The capital of France is Lyon.", 0.0),
        ("The capital of France", 0.0),
        ("Paris or Lyon", 2 / 3),  # precision 1/2, recall 1
    ],
)
def test_key_words(answer: str, expected: float) -> None:
    row = make_response("Its capital is Paris.", instruction="What is the capital of France?")
    assert key_words(answer, row) == pytest.approx(expected)


def test_key_words_of_a_reference_that_adds_none() -> None:
    row = make_response("1 2 3", instruction="Sort.", input="3 1 2")
    assert key_words("1 3 2", row) == word_similarity("1 3 2", row) == pytest.approx(2 / 3)


def test_recall_is_not_lowered_by_length() -> None:
    row = make_response("Red and green.")
    assert [recall(answer, row) for answer in ("It is red, or it is green, I think.", "red", "blue", "")] == [
        1,
        0.5,
        0,
        0,
    ]
    assert recall("anything", make_response("It is.")) == 1


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("3 apples", "It is three.", 1.0),
        ("3 and 4", "4 and 5", 1 / 3),
        ("3", "3 and 3", 0.5),
        ("3.5", "35", 0.0),
        ("1,250 m", "It is 1250.", 1.0),
        ("none", "no number", 1.0),
        ("none", "7", 0.0),
        ("7", "none", 0.0),
    ],
)
def test_number_agreement(answer: str, reference: str, expected: float) -> None:
    assert number_agreement(answer, make_response(reference)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Mars has two small moons.", 1.0),
        ("Sure! Here you go: Mars has 2 small moons, friend.", 1.0),  # more is no swap
        ("Mars has two moons.", 3 / 4),  # nor is less, but recall falls
        ("Mars has three small moons.", 3 / 4 / 2),
        ("Venus has three small moons.", 2 / 4 / 3),
        ("Mars has not two small moons.", 1 / 2),
        ("", 0.0),
    ],
)
def test_no_swaps(answer: str, expected: float) -> None:
    assert no_swaps(answer, make_response("Mars has two small moons.")) == pytest.approx(expected)


@pytest.mark.parametrize("name", LEXICAL)
def test_every_signal_keeps_its_bounds(name: str) -> None:
    @given(texts, texts)
    @example("", "")
    def check(answer: str, reference: str) -> None:
        row = make_response(reference)
        assert 0 <= LEXICAL[name](answer, row) <= 1
        assert LEXICAL[name](reference, row) == 1

    check()


@pytest.mark.parametrize(
    "unit", ["a", "1", "1,", "it's ", " \n", "*", "- \n", "a b c ", "twenty-", "'", "3:", "\u6771", "no not "]
)
def test_long_answers_take_no_longer_than_they_must(unit: str) -> None:
    answer, reference = (unit * 100_000)[:100_000], (unit * 100_000 + "x")[3:100_003]
    started = time.process_time()
    for signal in LEXICAL.values():
        assert 0 <= signal(answer, make_response(reference)) <= 1
    assert time.process_time() - started < 5  # about 0.5; what is quadratic takes minutes

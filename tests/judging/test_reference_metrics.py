"""Exact match, token F1 and ROUGE-L against values known or worked out by hand."""

import string
import time
from collections.abc import Callable

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from stages.judging.reference_metrics import exact_match, normalize, rouge_l, token_f1

Metric = Callable[[str, str], float]

words = st.lists(st.text(string.ascii_letters, min_size=1, max_size=6), min_size=1, max_size=8).map(" ".join)
few_words = st.lists(st.sampled_from(["red", "green", "blue", "seven"]), max_size=8).map(" ".join)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Quick, Brown fox!", "quick brown fox"),
        ("  a  cat\tand\nan owl ", "cat and owl"),
        ("Theatre and Anna", "theatre and anna"),  # articles go as words, not as letters
        ("U.S.A.", "usa"),  # punctuation goes without leaving a space
        ("well-known", "wellknown"),
        ("the-end", "theend"),  # punctuation goes first, so this holds no article
        ("$1,250.50", "125050"),
        ("caf\u00e9 \u2014 CAF\u00c9", "caf\u00e9 \u2014 caf\u00e9"),  # only ASCII punctuation counts as such
        ("The a an", ""),
    ],
)
def test_normalization(text: str, expected: str) -> None:
    assert normalize(text) == expected


@given(st.text(st.characters(codec="ascii")))
def test_case_and_outer_space_do_not_count(text: str) -> None:
    assert normalize(f"  {text.upper()}\n") == normalize(text)


@pytest.mark.parametrize(
    ("response", "reference", "expected"),
    [
        ("The Danube.", "danube", 1.0),
        ("the Rhine", "the Danube", 0.0),
        ("", "the", 1.0),  # nothing is left of either
        ("red green", "green red", 0.0),
    ],
)
def test_exact_match(response: str, reference: str, expected: float) -> None:
    assert exact_match(response, reference) == expected


@pytest.mark.parametrize(
    ("response", "reference", "expected"),
    [
        ("red green", "green red", 1.0),
        ("red", "red green blue", 0.5),  # precision 1, recall 1/3
        ("red red red", "red", 0.5),  # a word counts as often as it stands in both
        ("red red blue", "red red green", 2 / 3),
        ("The sky is blue", "It is a blue sky.", 6 / 7),  # 3 of 3 and 3 of 4: the articles do not count
        ("red", "blue", 0.0),
        ("", "blue", 0.0),
        ("the", "an", 1.0),
    ],
)
def test_token_f1(response: str, reference: str, expected: float) -> None:
    assert token_f1(response, reference) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("response", "reference", "expected"),
    [
        ("red green", "green red", 0.5),  # the order counts: 1 of 2 and 1 of 2
        ("red then blue", "red blue", 0.8),  # 2 of 3 and 2 of 2
        ("police kill the gunman", "police killed the gunman", 0.75),  # Lin 2004, section 3, S2
        ("the gunman kill police", "police killed the gunman", 0.5),  # S3
        ("the gunman police killed", "police killed the gunman", 0.5),  # S4
        ("Red, BLUE!", "red blue", 1.0),
        ("", "red", 0.0),
        ("walked", "walking", 0.0),  # no stemming
    ],
)
def test_rouge_l(response: str, reference: str, expected: float) -> None:
    assert rouge_l(response, reference) == pytest.approx(expected)


@pytest.mark.parametrize("metric", [exact_match, token_f1, rouge_l])
def test_every_metric_keeps_its_bounds(metric: Metric) -> None:
    @given(st.text() | few_words, st.text() | few_words)
    @example("", "")
    def check(response: str, reference: str) -> None:
        assert 0 <= metric(response, reference) <= 1

    check()


@pytest.mark.parametrize("metric", [exact_match, token_f1, rouge_l])
def test_a_text_agrees_with_itself(metric: Metric) -> None:
    @given(words)
    def check(text: str) -> None:
        assert metric(text, text) == 1

    check()


@pytest.mark.parametrize("metric", [exact_match, token_f1, rouge_l])
def test_response_and_reference_change_places(metric: Metric) -> None:
    """All three are: an F measure treats precision and recall alike."""

    @given(few_words, few_words)
    def check(response: str, reference: str) -> None:
        assert metric(response, reference) == pytest.approx(metric(reference, response))

    check()


@given(few_words, few_words)
def test_order_never_helps_rouge_beyond_the_shared_words(response: str, reference: str) -> None:
    assume(response and reference)
    assert exact_match(response, reference) <= rouge_l(response, reference) <= token_f1(response, reference) + 1e-9


@given(st.text() | few_words, st.text() | few_words)
def test_rouge_l_is_that_of_rouge_score(response: str, reference: str) -> None:
    theirs = RougeScorer(["rougeL"], use_stemmer=False).score(reference, response)["rougeL"].fmeasure
    assert rouge_l(response, reference) == pytest.approx(theirs)


@pytest.mark.parametrize("metric", [exact_match, token_f1, rouge_l])
def test_long_answers_take_no_longer_than_they_must(metric: Metric) -> None:
    response, reference = "one two three. " * 6_667, "two three; four " * 6_250
    started = time.process_time()
    assert metric(response, reference) < 1
    assert time.process_time() - started < 3  # about 0.1; rouge-score's own needs a table of 350 million cells

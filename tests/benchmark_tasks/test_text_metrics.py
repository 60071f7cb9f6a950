import math
from typing import Any

import numpy as np
import pytest

from stages.benchmarks.text_metrics import (
    CHOICE,
    RANGES,
    TEXT,
    aggregate_of,
    argmax,
    brier,
    calibration_error,
    choice_values,
    corpus_bleu,
    likelihood_values,
    macro_f1,
    normalize_trivia,
    postprocess,
    squad2_reply,
    squad_scores,
    text_values,
    trivia_scores,
)

LOGS = [-0.1, -0.5, -3.0, -9.0]


@pytest.mark.parametrize(
    ("reply", "golds", "exact", "f1"),
    [
        ("The Nile", ["nile"], 1, 1),
        ("U.S.A.", ["USA"], 1, 1),  # punctuation goes, nothing takes its place
        ("well-known", ["well known"], 0, 0),
        ("an apple a day", ["apple day"], 1, 1),
        ("in the year 1990", ["1990", "year 1990"], 0, 0.8),
        ("Paris Paris", ["Paris"], 0, 2 / 3),
        ("", ["Paris"], 0, 0),
        ("", [], 1, 1),
        ("Paris", [], 0, 0),
        ("the", [], 1, 1),  # of an article alone nothing is left
        ("", ["the"], 1, 1),  # a gold of no word is none
        ("Paris", ["the", "Paris"], 1, 1),
        ("Zürich", ["zürich."], 1, 1),
    ],
)
def test_squad_scores_are_the_official_ones(reply: str, golds: list[str], exact: float, f1: float) -> None:
    assert squad_scores(reply, golds) == pytest.approx((exact, f1))


def test_a_reply_of_no_answer_is_none() -> None:
    assert [squad2_reply(reply) for reply in ("Unanswerable.", " unanswerable", "unanswerable question", "")] == [
        "",
        "",
        "unanswerable question",
        "",
    ]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The_Beatles", "beatles"),
        ("Rock\u2019n\u2019Roll", "rock n roll"),
        ("\u2018A\u00b4 `B`", "b"),
        ("well-known", "well known"),
        ("U.S.A.", "u s"),  # a letter alone may be an article
        ("  An  Officer and a Gentleman ", "officer and gentleman"),
        ("\u201cQuoted\u201d", "\u201cquoted\u201d"),  # double typographic quotes stay
    ],
)
def test_trivia_texts_are_normalised_as_published(text: str, normal: str) -> None:
    assert normalize_trivia(text) == normal


@pytest.mark.parametrize(
    ("reply", "golds", "exact", "f1"),
    [
        ("the Sunset Blvd.", ["sunset boulevard", "sunset blvd"], 1, 1),
        ("Sunset Strip", ["sunset boulevard"], 0, 0.5),
        ("", ["x"], 0, 0),
        ("the", ["a"], 1, 0),  # nothing equals nothing, but has no word in common
    ],
)
def test_trivia_scores_are_the_best_over_aliases(reply: str, golds: list[str], exact: float, f1: float) -> None:
    assert trivia_scores(reply, golds) == pytest.approx((exact, f1))


def figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {name: aggregate_of(name)([row[name] for row in rows]) for name in rows[0]}


def test_choices_are_scored_as_in_the_publishers_own_test() -> None:
    metrics = CHOICE - {"macro_f1"}
    rows = [
        choice_values(LOGS, ["5", "4", "6", "3"], [1, 0, 0, 0], metrics),
        choice_values(LOGS, ["13", "4", "6", "3"], [0.5, 0, 0, 0], metrics),
    ]
    assert figures(rows) == pytest.approx(
        {
            "multiple_choice_grade": 0.75,
            "calibration_multiple_choice_brier_score": 0.08217880533576256,
            "expected_calibration_error": 0.4204510049762008,
            "weighted_log_probabilities": -0.075,
            "weighted_probabilities": 0.75 * math.exp(-0.1),
        }
    )


def test_macro_f1_is_that_of_the_publishers_own_test() -> None:
    likely = [[0.6, 0.3, 0.1], [0.4, 0.4, 0.2], [0.1, 0.7, 0.2], [0.8, 0.1, 0.1], [0.3, 0.2, 0.5], [0.4, 0.3, 0.3]]
    choices, golds = ["foo", "bar", "baz"], [0, 0, 1, 1, 2, 2]
    values = [(choices[gold], choices[argmax(np.log(one))]) for one, gold in zip(likely, golds, strict=True)]
    assert macro_f1(values) == pytest.approx(0.52222, abs=1e-5)


def test_soft_targets_give_the_score_of_the_likeliest_choice() -> None:
    def grade(logs: list[float]) -> float:
        return float(
            choice_values(logs, list("abc"), [0.7, 0.2, 0.1], frozenset({"multiple_choice_grade"}))[
                "multiple_choice_grade"
            ]
        )

    assert [grade([-1, -2, -3]), grade([-2, -1, -3]), grade([-3, -2, -1])] == [0.7, 0.2, 0.1]


def test_ties_are_broken_by_content_and_always_the_same() -> None:
    ties = [np.full(4, -float(number)) for number in range(1, 60)]
    drawn = [argmax(tie) for tie in ties]
    assert drawn == [argmax(tie) for tie in ties]
    assert set(drawn) == {0, 1, 2, 3}
    assert argmax(np.array([-2.0, -1.0, -3.0])) == 1


def test_scores_that_are_all_nothing_are_no_division_by_nothing() -> None:
    values = choice_values([-1.0, -1.0], ["a", "b"], [0.0, 0.0], CHOICE)
    assert brier([values["calibration_multiple_choice_brier_score"]]) == pytest.approx(0.25)


def test_calibration_error_by_hand() -> None:
    # Two buckets: (0.5, 0.52) with one hit, and certainty, which falls into the last bucket, without a hit.
    assert calibration_error([(0.5, 1.0), (0.52, 0.0), (1.0, 0.0)]) == pytest.approx(
        2 / 3 * abs(0.5 - 0.51) + 1 / 3 * 1.0
    )


def test_texts_are_scored_as_in_the_publishers_own_tests() -> None:
    rouge = [
        text_values("a b c d e f g", ["a b c d e f g"], frozenset({"rouge"})),
        text_values("g f e d c b a", ["a b c d e f g"], frozenset({"rouge"})),
    ]
    assert figures(rouge) == pytest.approx({"rouge1": 1, "rouge2": 0.5, "rougeLsum": 0.5714}, abs=1e-4)
    best = text_values("a b c d e f g", ["g f e d c b a", "a b e f"], frozenset({"rouge"}))
    assert best == pytest.approx({"rouge1": 1, "rouge2": 0.4444, "rougeLsum": 0.7273}, abs=1e-4)
    counts = [
        text_values("a b c d e f g", ["g f e d c b a", "a b c d e f g"], frozenset({"bleu"}))["bleu"],
        text_values("a b c d f g", ["a b c d e f g"], frozenset({"bleu"}))["bleu"],
    ]
    assert corpus_bleu(counts) == pytest.approx(0.786, abs=0.008)  # as exact as the publisher tests it


def test_bleu_of_summed_counts_is_sacrebleus_of_the_corpus() -> None:
    from sacrebleu.metrics.bleu import BLEU

    responses = ["the cat sat on the mat", "one two", "a dog barks, loudly!"]
    targets = [["the cat sat on a mat", "a cat sat on the mat"], ["one two three four"], ["the dog barks loudly!"]]
    padded = [[own[min(at, len(own) - 1)] for own in targets] for at in range(2)]
    counts = [
        text_values(response, own, frozenset({"bleu"}))["bleu"]
        for response, own in zip(responses, targets, strict=True)
    ]
    assert corpus_bleu(counts) == pytest.approx(BLEU(tokenize="intl").corpus_score(responses, padded).score / 100)


@pytest.mark.parametrize(
    ("response", "target", "near"),
    [
        ("90", "100", 1), ("110", "100", 1), ("111", "100", 0), ("89", "100", 0), ("no number", "100", 0),
        ("-110", "-100", 1), ("-111", "-100", 1), ("-5", "-100", 1),  # published: divided by a negative target
        ("0", "0", 1), ("0.1", "0", 1), ("10", "0", 0), ("nan", "100", 0),
    ],
)  # fmt: skip
def test_numbers_match_as_published(response: str, target: str, near: float) -> None:
    metric = "numeric_match_with_0_1_relative_error"
    assert text_values(response, [target], frozenset({metric})) == {metric: near}


def test_strings_match_any_of_several_targets() -> None:
    both = frozenset({"exact_str_match", "case_insensitive_str_match"})
    assert text_values("a b", ["b a", "a b"], both) == {"exact_str_match": 1, "case_insensitive_str_match": 1}
    assert text_values(" A b ", ["b a", "a B"], both) == {"exact_str_match": 0, "case_insensitive_str_match": 1}
    assert text_values("", ["a"], both) == {"exact_str_match": 0, "case_insensitive_str_match": 0}


@pytest.mark.parametrize(
    ("response", "share"), [("O B-x O", 1), ("O B-x", 1), ("O B-x O B-x B-x", 1), ("O O O", 2 / 3), ("", 1 / 3)]
)
def test_label_sequences_are_padded_or_cut(response: str, share: float) -> None:
    assert text_values(response, ["O B-x O"], frozenset({"sequence_f1"})) == {"sequence_f1": pytest.approx(share)}


def test_likelihoods_of_several_targets_are_added_as_in_the_publishers_own_test() -> None:
    several = likelihood_values(LOGS, ["5", "4", "6", "3"], single=False)
    assert several == {"log_likelihood": pytest.approx(0.4455, abs=1e-4)}
    assert likelihood_values([-6.0], ["two words"], single=True) == pytest.approx(
        {"log_likelihood": -6, "log_likelihood_per_word": -3, "log_likelihood_per_char": -6 / 9}
    )


@pytest.mark.parametrize(
    ("text", "stop", "pattern", "response"),
    [
        ("Rg5# then", "#", None, "Rg5#"),
        ("#first", "#", None, "#first"),  # published: a stop at the very start stops nothing
        ("no stop", "#", None, "no stop"),
        ("about 42. 7*7 = 49", None, r"\d+", "42"),
        ("none", None, r"\d+", ""),
        ("12.\nmore", "\n", r"([-+]?\d+)[.]{0,1}$", "12"),
        (" Yes. No", None, r"[^\.\?\!\;\n]+", " Yes"),
    ],
)
def test_what_counts_of_a_response_is_as_published(
    text: str, stop: str | None, pattern: str | None, response: str
) -> None:
    assert postprocess(text, stop, pattern) == response


def test_gold_texts_give_the_most() -> None:
    metrics = TEXT - {"numeric_match_with_0_1_relative_error"}
    rows = [text_values(gold, [gold], metrics) for gold in ("one two three four five", "six seven eight nine")]
    assert figures(rows) == pytest.approx({name: RANGES[name][1] for name in rows[0]})

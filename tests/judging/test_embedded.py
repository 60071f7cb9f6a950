"""The embedded judge: its signals worked out by hand, and its verdicts with a tiny model."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from stages.judging import embedded
from stages.judging.embedded import (
    SIGNALS,
    EmbeddedJudge,
    likelihoods,
    measure,
    no_new_words,
    number_agreement,
    word_similarity,
)
from stages.tokens.tokenizer import Tokenizer
from tests.judging.making import make_response

ROW = make_response("Mars has two small moons.", instruction="How many moons does it have?", input="the planet Mars")
ANSWERS = (
    "Mars has two small moons.",
    "Mars has two moons.",
    "Mars has two small rivers.",
    "It has 14 moons, I believe.",
    "Nothing that anybody would say here.",
    "",
    "  \n",
)


@pytest.fixture(scope="module")
def decided_llama(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with larger weights: fresh ones find every token about as likely, whatever stands before it."""
    folder = tmp_path_factory.mktemp("models") / "decided"
    shutil.copytree(tiny_llama, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(8 if weights.ndim == 2 else 1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some processors would compute in bfloat16, too coarse for comparing."""
    monkeypatch.setattr(embedded, "pick_dtype", lambda *_: torch.float32)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("Red, green.", "the red green", 1.0),
        ("green red", "red green", 0.5),  # one word matches in order: 2 * 1 / (2 + 2)
        ("red blue green", "red green", 0.8),
        ("red", "blue", 0.0),
        ("", "red", 0.0),
        ("red" + " very" * 300, "blue" + " very" * 300, 600 / 602),  # no word is too frequent to count
    ],
)
def test_word_similarity(answer: str, reference: str, expected: float) -> None:
    assert word_similarity(answer, reference) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("3 apples", "It is 3.", 1.0),
        ("3 and 4", "4 and 5", 1 / 3),
        ("3", "3 and 3", 0.5),
        ("3.5", "35", 0.0),
        ("1,250 m", "It is 1,250.", 1.0),
        ("none", "no number", 1.0),
        ("none", "7", 0.0),
        ("7", "none", 0.0),
    ],
)
def test_number_agreement(answer: str, reference: str, expected: float) -> None:
    assert number_agreement(answer, reference) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Two small moons", 1.0),
        ("How many planet?", 1.0),  # instruction and input are known as well
        ("Mars has a thousand moons", 0.75),  # the article is not a word here
        ("Jupiter", 0.0),
        ("", 0.0),
        ("...", 0.0),
    ],
)
def test_no_new_words(answer: str, expected: float) -> None:
    assert no_new_words(answer, ROW) == pytest.approx(expected)


def test_signals_of_the_reference_itself(tiny_llama: Path) -> None:
    signals = measure([ROW] * len(ANSWERS), ANSWERS, tiny_llama)
    assert signals.shape == (len(ANSWERS), len(SIGNALS))
    assert signals.min() >= 0
    assert signals.max() <= 1
    assert signals[0, :4] == pytest.approx(1)


@pytest.mark.usefixtures("single_precision")
def test_likelihood_is_the_models_own(decided_llama: Path) -> None:
    """Against the plain model, one answer at a time: no packing, no attention of ours."""
    answers = [answer for answer in ANSWERS if answer.strip()]
    found = likelihoods([ROW] * len(answers), answers, decided_llama)
    tokenizer = Tokenizer(decided_llama)
    model = AutoModelForCausalLM.from_pretrained(decided_llama, dtype=torch.float32).eval()
    prompt = tokenizer.encode(f"Question: {ROW.instruction}\n{ROW.input}\nAnswer: {ROW.reference}\nThe same answer: ")
    for answer, value in zip(answers, found, strict=True):
        response = [*tokenizer.encode(answer), tokenizer.end_of_text]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(response))
        assert value == pytest.approx(np.exp(-loss.item()), rel=1e-3)


def test_nothing_has_no_likelihood(tiny_llama: Path) -> None:
    assert likelihoods([ROW, ROW], ["", " \n"], tiny_llama).tolist() == [0, 0]


def test_the_reference_scores_highest_and_nothing_scores_0(tiny_llama: Path) -> None:
    scores = [verdict.score for verdict in EmbeddedJudge(tiny_llama).judge([ROW] * len(ANSWERS), ANSWERS)]
    assert all(score is not None and 0 <= score <= 100 for score in scores)
    assert scores[0] == max(score for score in scores if score is not None)
    assert scores.count(scores[0]) == 1
    assert scores[-2:] == [0, 0]


@pytest.mark.usefixtures("single_precision")
def test_the_order_of_answers_does_not_matter(decided_llama: Path) -> None:
    rows = [make_response(f"It has {at} moons.", id=str(at)) for at in range(len(ANSWERS))]
    judge = EmbeddedJudge(decided_llama)
    forward = judge.judge(rows, ANSWERS)
    backward = judge.judge(rows[::-1], ANSWERS[::-1])[::-1]
    alone = [judge.judge([row], [answer])[0] for row, answer in zip(rows, ANSWERS, strict=True)]
    assert len({verdict.score for verdict in forward}) > 3
    for other in (backward, alone):
        for ours, theirs in zip(forward, other, strict=True):
            assert ours.score == pytest.approx(theirs.score, abs=1e-3)
            assert ours.signals == pytest.approx(theirs.signals, rel=1e-3)

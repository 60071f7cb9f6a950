"""The embedded judge: its likelihoods, and its verdicts with a tiny model."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from stages.judging import embedded
from stages.judging.corruption import INJECTION
from stages.judging.embedded import MAX_TOKENS, SIGNALS, EmbeddedJudge, likelihoods, measure
from stages.judging.responses import Response
from stages.judging.verdicts import Usage
from stages.model.batches import make_batch
from stages.model.validation import label_losses
from stages.tokens.arrays import TokenArrays
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


def test_signals_of_the_reference_itself(tiny_llama: Path) -> None:
    signals = measure([ROW] * len(ANSWERS), ANSWERS, tiny_llama)
    assert signals.shape == (len(ANSWERS), len(SIGNALS))
    assert signals.min() >= 0
    assert signals.max() <= 1
    assert signals[0] == pytest.approx(1)


@pytest.mark.usefixtures("single_precision")
def test_likelihood_is_the_models_own(decided_llama: Path) -> None:
    """Against the plain model, one answer at a time: no packing, no attention of ours."""
    answers = [answer for answer in ANSWERS if answer.strip()]
    found = likelihoods([ROW] * len(answers), answers, decided_llama)
    tokenizer = Tokenizer(decided_llama)
    model = AutoModelForCausalLM.from_pretrained(decided_llama, dtype=torch.float32).eval()
    response = [*tokenizer.encode(ROW.reference), tokenizer.end_of_text]

    def probability(answer: str) -> float:
        prompt = tokenizer.encode(f"Question: {ROW.instruction}\n{ROW.input}\nAnswer: {answer}\nThe same answer: ")
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        return float(np.exp(-torch.nn.functional.cross_entropy(logits, torch.tensor(response)).item()))

    expected = [min(1, probability(answer) / probability(ROW.reference)) for answer in answers]
    assert found == pytest.approx(expected, rel=1e-3)
    assert len(set(found)) > 2


def test_a_verdict_does_not_depend_on_what_else_is_judged(decided_llama: Path) -> None:
    """Else the base model's answers would score otherwise in every experiment, and none could be compared."""
    answers = [*ANSWERS, *(f"{answer} And more. " * 9 for answer in ANSWERS)]
    whole = EmbeddedJudge(decided_llama).grade([ROW] * len(answers), answers)
    alone = [EmbeddedJudge(decided_llama).grade([ROW], [answer])[0] for answer in answers]
    for one, beside in zip(alone, whole, strict=True):
        assert one.score == pytest.approx(beside.score, abs=1e-3)


def test_every_row_that_is_computed_has_one_width(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On processors that have bfloat16, rounding depends on it; the tiny model is too small to show that."""
    seen = []

    def losses(model: Any, arrays: TokenArrays, device: torch.device) -> np.ndarray:
        seen.append(make_batch(arrays, range(len(arrays.input_ids)), device).input_ids.shape[1])
        return label_losses(model, arrays, device)

    monkeypatch.setattr(embedded, "label_losses", losses)
    likelihoods([ROW], [ANSWERS[0]], tiny_llama)
    likelihoods([ROW] * 9, [f"{number} moons" for number in range(9)], tiny_llama)
    assert seen == [MAX_TOKENS, MAX_TOKENS]


def test_nothing_has_no_likelihood(tiny_llama: Path) -> None:
    assert likelihoods([ROW, ROW], ["", " \n"], tiny_llama).tolist() == [0, 0]


def test_the_reference_scores_100_and_nothing_scores_0(tiny_llama: Path) -> None:
    verdicts = EmbeddedJudge(tiny_llama).grade([ROW] * len(ANSWERS), ANSWERS)
    scores = [verdict.score for verdict in verdicts]
    assert scores[0] == 100
    assert scores[-2:] == [0, 0]
    assert all(score is not None and 0 < score < 100 for score in scores[1:-2])
    assert verdicts[1].reply.startswith("word similarity 0.89, ")


def test_more_agreement_scores_higher(tiny_llama: Path) -> None:
    """Same, another dress, one fact changed, another answer."""
    answers = [
        "Mars has two small moons.",
        "Sure! Mars has 2 small moons",
        "Mars has three small moons.",
        "I like tea.",
    ]
    scores = [verdict.score or 0 for verdict in EmbeddedJudge(tiny_llama).grade([ROW] * 4, answers)]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 4


def test_demands_for_full_marks_are_words_like_others(tiny_llama: Path) -> None:
    judge = EmbeddedJudge(tiny_llama)
    plain, injected = judge.grade([ROW] * 2, ["I like tea.", f"I like tea.\n\n{INJECTION}"])
    assert plain.score is not None
    assert injected.score is not None
    assert injected.score < plain.score + 5


def test_long_texts_are_judged(tiny_llama: Path) -> None:
    long = "Mars has two small moons. " * 4000
    row = make_response(long, instruction=long, input=long)
    judge = EmbeddedJudge(tiny_llama)
    whole, start, other = judge.grade([row] * 3, [long, long[:50_000], "word " * 20_000])
    assert whole.score == 100
    assert whole.score > (start.score or 0) > (other.score or 0)


def test_an_answer_is_computed_once_unless_asked_anew(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[str] = []

    def counted(rows: Sequence[Response], answers: Sequence[str], model: Path) -> np.ndarray:
        computed.extend(answers)
        return measure(rows, answers, model)

    monkeypatch.setattr(embedded, "measure", counted)
    judge = EmbeddedJudge(tiny_llama)
    first = judge.grade([ROW] * 3, ["one", "two", "one"])
    assert computed == ["one", "two"] or computed == ["two", "one"]
    assert first[0] is first[2]
    assert judge.grade([ROW._replace(id="another")], ["two"]) == [first[1]]
    judge.compare([ROW], ["one"], ["two"])
    assert len(computed) == 2
    judge.grade([ROW._replace(reference="Else")], ["one"])
    assert len(computed) == 3
    again = judge.grade([ROW], ["one"], repeat=1)
    assert len(computed) == 4
    assert again[0].score == pytest.approx(first[0].score, abs=0.5)
    judge.grade([ROW], ["one"])
    assert len(computed) == 4
    assert judge.usage() == Usage(0, 0, 0)


def test_the_higher_score_is_preferred_in_both_orders(tiny_llama: Path) -> None:
    judge = EmbeddedJudge(tiny_llama)
    found = judge.compare([ROW] * 3, [ANSWERS[0], ANSWERS[4], ANSWERS[1]], [ANSWERS[4], ANSWERS[0], ANSWERS[1]])
    assert [(p.forward, p.backward, p.winner) for p in found] == [(1, 1, 1), (0, 0, 0), (0.5, 0.5, 0.5)]
    assert found[0].reply.startswith("100.0 against ")
    assert judge.compare([], [], []) == []


@pytest.mark.usefixtures("single_precision")
def test_the_order_of_answers_does_not_matter(decided_llama: Path) -> None:
    rows = [make_response(f"It has {at} moons.", id=str(at)) for at in range(len(ANSWERS))]
    forward = EmbeddedJudge(decided_llama).grade(rows, ANSWERS)
    backward = EmbeddedJudge(decided_llama).grade(rows[::-1], ANSWERS[::-1])[::-1]
    judge = EmbeddedJudge(decided_llama)
    alone = [judge.grade([row], [answer])[0] for row, answer in zip(rows, ANSWERS, strict=True)]
    assert len({verdict.score for verdict in forward}) > 3
    for other in (backward, alone):
        for ours, theirs in zip(forward, other, strict=True):
            assert ours.score == pytest.approx(theirs.score, abs=1e-3)
            assert ours.signals == pytest.approx(theirs.signals, rel=1e-3, abs=1e-4)

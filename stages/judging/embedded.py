"""The judge in process: agreement with the reference, and a language model's likelihood. Deterministic, no network."""

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from stages.instructions.templates import Segment
from stages.judging.reference_metrics import normalize, token_f1
from stages.judging.responses import Response
from stages.model import attention
from stages.model.checkpoint import load_model, pick_device, pick_dtype
from stages.model.validation import label_losses
from stages.pipeline.files import read_json
from stages.tokens.arrays import collate
from stages.tokens.labels import label
from stages.tokens.packing import pack
from stages.tokens.tokenizer import Tokenizer

SIGNALS = ("word_similarity", "token_f1", "numbers", "no_new_words", "likelihood")

WEIGHTS = Path(__file__).with_name("embedded_weights.json")
"""Weight of each signal, written by `python -m stages.judge calibrate`."""

MAX_TOKENS = 512
"""Of instruction, reference and answer together; longer answers are judged by their beginning."""


class Verdict(NamedTuple):
    """A judge's word on one answer."""

    score: float | None
    """0 (wrong) to 100 (as good as the reference); None: the judge gave none that could be read."""
    signals: dict[str, float]
    """What it rests on, each 0 to 1."""


class EmbeddedJudge:
    """Scores answers by a weighted sum of signals (see DESIGN: each signal's worth)."""

    name = "embedded"

    def __init__(self, model: Path) -> None:
        """`model` is the folder of the language model that gives likelihoods: the base model, never the judged one."""
        self._weights = read_json(WEIGHTS)
        self._model = model

    def judge(self, rows: Sequence[Response], answers: Sequence[str]) -> list[Verdict]:
        """A verdict on each answer to the row beside it."""
        signals = measure(rows, answers, self._model)
        weights = np.array([self._weights[name] for name in SIGNALS])
        scores = np.clip(signals @ weights, 0, 1) * 100
        empty = np.array([not answer.strip() for answer in answers])
        return [
            Verdict(round(0.0 if blank else float(score), 4), dict(zip(SIGNALS, map(float, values), strict=True)))
            for score, values, blank in zip(scores, signals, empty, strict=True)
        ]


def measure(rows: Sequence[Response], answers: Sequence[str], model: Path) -> np.ndarray:
    """Signals of each answer, float64 (answer, signal), each 0 to 1, in the order of SIGNALS."""
    lexical = [
        (
            word_similarity(answer, row.reference),
            token_f1(answer, row.reference),
            number_agreement(answer, row.reference),
            no_new_words(answer, row),
        )
        for row, answer in zip(rows, answers, strict=True)
    ]
    return np.column_stack([np.array(lexical), likelihoods(rows, answers, model)])


def word_similarity(answer: str, reference: str) -> float:
    """Ratio of matching words in sequence (difflib.SequenceMatcher.ratio over normalized words)."""
    return difflib.SequenceMatcher(
        None, normalize(answer).split(), normalize(reference).split(), autojunk=False
    ).ratio()


def number_agreement(answer: str, reference: str) -> float:
    """Shared numbers over all numbers of both, counted with repetition; 1 where neither has any.

    >>> number_agreement("about 3,000 of 4", "3000 of 5")
    0.3333333333333333
    """
    ours, theirs = (_numbers(text) for text in (answer, reference))
    total = sum((ours | theirs).values())
    return sum((ours & theirs).values()) / total if total else 1.0


def _numbers(text: str) -> Counter[str]:
    """Numbers written in digits, thousands commas taken out."""
    return Counter(re.findall(r"\d+(?:[.,]\d+)*", re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)))


def no_new_words(answer: str, row: Response) -> float:
    """Share of the answer's words that stand in reference, instruction or input; 0 for an answer without words."""
    words = normalize(answer).split()
    known = set(normalize(f"{row.reference} {row.instruction} {row.input}").split())
    return sum(word in known for word in words) / len(words) if words else 0.0


def likelihoods(rows: Sequence[Response], answers: Sequence[str], folder: Path) -> np.ndarray:
    """Geometric mean probability of the answer's tokens given instruction and reference, float64 (answer,).

    After GPTScore (arXiv 2302.04166) with the reference in the condition, as in BARTScore's ref -> hypo (arXiv
    2106.11520).
    """
    tokenizer = Tokenizer(folder)
    asked = [at for at, answer in enumerate(answers) if answer.strip()]
    examples = label((_restated(rows[at], answers[at]) for at in asked), tokenizer, MAX_TOKENS)
    kept = [asked[at] for at in examples.kept]
    probabilities = np.zeros(len(answers))
    if kept:
        device = pick_device()
        model = load_model(folder, pick_dtype("auto", device), device, attention=attention.NAME)
        row_of = pack(examples.lengths, MAX_TOKENS)
        ids = [str(at) for at in kept]
        arrays = collate(examples, row_of, ids, end_of_text=tokenizer.end_of_text, mask_instruction=True)
        with torch.no_grad():
            probabilities[kept] = np.exp(-label_losses(model, arrays, device))
    return probabilities


def _restated(row: Response, answer: str) -> list[Segment]:
    question = f"Question: {row.instruction}\n{row.input}\nAnswer: {row.reference}\nThe same answer: "
    return [Segment("user", question), Segment("response", answer)]

"""The judge in process: agreement with the reference, and a language model's likelihood. Deterministic, no network."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from stages.instructions.templates import Segment
from stages.judging.responses import Response
from stages.judging.signals import LEXICAL
from stages.judging.verdicts import Preference, Usage, Verdict
from stages.model import attention
from stages.model.checkpoint import load_model, pick_device, pick_dtype
from stages.model.validation import label_losses
from stages.pipeline.files import read_json
from stages.tokens.arrays import ARRAYS, NO_EXAMPLE, TokenArrays, collate
from stages.tokens.labels import IGNORE_INDEX, label
from stages.tokens.packing import pack
from stages.tokens.tokenizer import Tokenizer

SIGNALS = (*LEXICAL, "likelihood")

WEIGHTS = Path(__file__).with_name("embedded_weights.json")
"""Weight of each signal, written by `python -m stages.judge calibrate`."""

MAX_TOKENS = 512
"""Of instruction, answer and reference together."""

MAX_CHARACTERS = 600
"""What the likelihood takes of each of the three, so that ordinary text fits into MAX_TOKENS; the rest is left out."""


class EmbeddedJudge:
    """Scores answers by a weighted sum of signals (see DESIGN: each signal's worth)."""

    name = "embedded"

    def __init__(self, model: Path) -> None:
        """`model` is the folder of the language model that gives likelihoods: the base model, never the judged one."""
        self._weights = read_json(WEIGHTS)
        self._model = model
        self._given: dict[tuple[str, ...], Verdict] = {}

    def grade(self, rows: Sequence[Response], answers: Sequence[str], *, repeat: int = 0) -> list[Verdict]:
        """A verdict on each answer to the row beside it; each pair is computed once, but anew for another `repeat`."""
        keys = [(row.instruction, row.input, row.reference, answer) for row, answer in zip(rows, answers, strict=True)]
        given = {} if repeat else self._given
        new = {key: at for at, key in enumerate(keys) if key not in given}
        if new:
            verdicts = self._judge([rows[at] for at in new.values()], [answers[at] for at in new.values()])
            given |= zip(new, verdicts, strict=True)
        return [given[key] for key in keys]

    def compare(self, rows: Sequence[Response], first: Sequence[str], second: Sequence[str]) -> list[Preference]:
        """The answer with the higher score is the better one, in whichever order they are shown."""
        verdicts = self.grade([*rows, *rows], [*first, *second])
        return [_prefer(*pair) for pair in zip(verdicts[: len(rows)], verdicts[len(rows) :], strict=True)]

    def usage(self) -> Usage:
        """Nothing: no call leaves the process."""
        return Usage()

    def _judge(self, rows: Sequence[Response], answers: Sequence[str]) -> list[Verdict]:
        signals = measure(rows, answers, self._model)
        scores = np.clip(signals @ np.array([self._weights[name] for name in SIGNALS]), 0, 1) * 100
        verdicts = []
        for row, answer, score, values in zip(rows, answers, scores, signals, strict=True):
            if not answer.strip():
                score = 0.0
            elif answer.strip() == row.reference.strip():
                score = 100.0
            named = {name: round(float(value), 4) for name, value in zip(SIGNALS, values, strict=True)}
            reply = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in named.items())
            verdicts.append(Verdict(round(float(score), 4), named, reply))
        return verdicts


def _prefer(first: Verdict, second: Verdict) -> Preference:
    ours, theirs = first.score or 0.0, second.score or 0.0
    winner = 1.0 if ours > theirs else 0.0 if ours < theirs else 0.5
    return Preference(winner, winner, f"{ours:.1f} against {theirs:.1f}")


def measure(rows: Sequence[Response], answers: Sequence[str], model: Path) -> np.ndarray:
    """Signals of each answer, float64 (answer, signal), each 0 to 1, in the order of SIGNALS."""
    lexical = [[signal(answer, row) for signal in LEXICAL.values()] for row, answer in zip(rows, answers, strict=True)]
    return np.column_stack([np.array(lexical), likelihoods(rows, answers, model)])


def likelihoods(rows: Sequence[Response], answers: Sequence[str], folder: Path) -> np.ndarray:
    """How likely the answer makes the reference, against how likely the reference makes itself; float64 (answer,).

    The geometric mean probability of the reference's tokens given instruction and answer, over the same given
    instruction and reference, at most 1. GPTScore (arXiv 2302.04166) turned round, as in BARTScore's hypo -> ref, which
    it calls recall (arXiv 2106.11520): the probability of the answer itself is high for whatever a relative of the
    model wrote. 0 for an empty answer, and where there is no room for the reference.
    """
    asked = [at for at, answer in enumerate(answers) if answer.strip()]
    own = {_question(rows[at]): rows[at] for at in asked}
    given = [_restated(rows[at], answers[at]) for at in asked]
    found = _mean_probabilities(given + [_restated(row, row.reference) for row in own.values()], folder)
    of_itself = dict(zip(own, found[len(asked) :], strict=True))
    relative = np.zeros(len(answers))
    for at, value in zip(asked, found[: len(asked)], strict=True):
        whole = of_itself[_question(rows[at])]
        relative[at] = min(1.0, value / whole) if whole else 0.0
    return relative


def _question(row: Response) -> tuple[str, str, str]:
    """All of a row that verdicts depend on."""
    return row.instruction, row.input, row.reference


def _mean_probabilities(examples_of: Sequence[Sequence[Segment]], folder: Path) -> np.ndarray:
    """Geometric mean probability of the tokens of each response; float64 (example,), 0 where there was no room."""
    probabilities = np.zeros(len(examples_of))
    tokenizer = Tokenizer(folder)
    examples = label(examples_of, tokenizer, MAX_TOKENS)
    if len(examples.kept):
        device = pick_device()
        model = load_model(folder, pick_dtype("auto", device), device, attention=attention.NAME)
        row_of = pack(examples.lengths, MAX_TOKENS)
        ids = [str(at) for at in examples.kept]
        arrays = collate(examples, row_of, ids, end_of_text=tokenizer.end_of_text, mask_instruction=True)
        with torch.no_grad():
            probabilities[examples.kept] = np.exp(-label_losses(model, _of_one_width(arrays), device))
    return probabilities


def _of_one_width(arrays: TokenArrays) -> TokenArrays:
    """Rows of MAX_TOKENS, filled up by an example without labels.

    How a product in bfloat16 is rounded depends on the number of tokens: in rows of other widths an answer's score
    would depend, by up to half a point, on what is judged beside it, and so differ from experiment to experiment.
    """
    fillers = {"labels": IGNORE_INDEX, "example": NO_EXAMPLE}
    room = ((0, 0), (0, MAX_TOKENS - arrays.input_ids.shape[1]))
    wide = {name: np.pad(getattr(arrays, name), room, constant_values=fillers.get(name, 0)) for name in ARRAYS}
    wide["example"][wide["example"] == NO_EXAMPLE] = len(arrays.ids)
    return TokenArrays(**wide, ids=arrays.ids)


def _restated(row: Response, answer: str) -> list[Segment]:
    question, said, wanted = (
        text[:MAX_CHARACTERS] for text in (f"{row.instruction}\n{row.input}", answer, row.reference)
    )
    prompt = f"Question: {question}\nAnswer: {said}\nThe same answer: "
    return [Segment("user", prompt), Segment("response", wanted)]

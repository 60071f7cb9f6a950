"""OpenAI Evals: evals of a registry in its own format, run unchanged (openai/evals 3.0.1, evals/elsuite/basic).

What differs from `oaieval`: answers are greedy everywhere (Includes asks with the endpoint's own temperature there),
and white space before an answer, which local models write, is not held against Match.
"""

import difflib
import json
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages.benchmarks.benchmark import (
    Benchmark,
    Figure,
    Found,
    Measurement,
    Message,
    Need,
    Row,
    Settings,
    Source,
    Subject,
)
from stages.benchmarks.estimates import Estimate, estimate, weighted
from stages.benchmarks.evals_registry import Eval, chat_of, count_rows, is_pointer, read_evals, read_samples
from stages.benchmarks.model_graded import grade
from stages.pipeline.errors import UserError
from stages.pipeline.progress import say

GRADED = "ModelBasedClassify"


class Basic(NamedTuple):
    """A class that needs no judge."""

    max_tokens: int
    """Of an answer, where the eval says nothing."""
    protocol: str
    score: Callable[[str, list[str], Mapping[str, Any]], dict[str, float]]
    """From an answer, the ideal ones and the eval's arguments to what the row gives, by metric."""


def normalize(text: str) -> str:
    """Lower case without punctuation, articles and superfluous white space (elsuite/utils.py).

    >>> normalize("The  Theory, of a Thing!")
    'theory of thing'
    """
    plain = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def match(answer: str, ideals: list[str], args: Mapping[str, Any]) -> dict[str, float]:
    """Match: the answer begins with an ideal one."""
    starts = any(text.startswith(ideal) for ideal in ideals for text in (answer, answer.lstrip()))
    return {"accuracy": float(starts)}


def includes(answer: str, ideals: list[str], args: Mapping[str, Any]) -> dict[str, float]:
    """Includes: an ideal answer stands somewhere in the answer."""
    fold = str.lower if args.get("ignore_case") else str
    return {"accuracy": float(any(fold(ideal) in fold(answer) for ideal in ideals))}


def fuzzy_match(answer: str, ideals: list[str], args: Mapping[str, Any]) -> dict[str, float]:
    """FuzzyMatch: normalised, one is in the other; and the best F1 over words."""
    said = normalize(answer)
    found = [
        said == ideal if "" in (said, ideal) else said in ideal or ideal in said for ideal in map(normalize, ideals)
    ]
    return {"accuracy": float(any(found)), "f1_score": max(_f1(said, normalize(ideal)) for ideal in ideals)}


def _f1(said: str, ideal: str) -> float:
    common = (Counter(said.split()) & Counter(ideal.split())).total()
    return 2 * common / (len(said.split()) + len(ideal.split())) if common else 0.0


def json_match(answer: str, ideals: list[str], args: Mapping[str, Any]) -> dict[str, float]:
    """JsonMatch: the same JSON as an ideal answer, element by element; null is never right."""
    try:
        said = json.loads(answer)
    except (ValueError, RecursionError):
        return {"accuracy": 0.0}
    return {"accuracy": float(any(_same_json(said, json.loads(ideal)) for ideal in ideals))}


def _same_json(said: Any, ideal: Any) -> bool:
    if said is None or ideal is None:
        return False
    if isinstance(said, dict) and isinstance(ideal, dict):
        return all(_same_json(said.get(key), ideal.get(key)) for key in said.keys() | ideal.keys())
    if isinstance(said, list) and isinstance(ideal, list):
        return len(said) == len(ideal) and all(map(_same_json, said, ideal))
    return bool(said == ideal)


def json_validator(answer: str, ideals: list[str], args: Mapping[str, Any]) -> dict[str, float]:
    """JsonValidator: the answer is JSON."""
    try:
        json.loads(answer)
    except (ValueError, RecursionError):
        return {"is_valid_json": 0.0}
    return {"is_valid_json": 1.0}


BASICS = {
    "Match": Basic(500, "right if the answer begins with an ideal one", match),
    "Includes": Basic(500, "right if an ideal answer stands in the answer", includes),
    "FuzzyMatch": Basic(100, "right if answer or ideal, normalised, is in the other; F1 over words", fuzzy_match),
    "JsonMatch": Basic(512, "right if the answer is the JSON of an ideal one", json_match),
    "JsonValidator": Basic(500, "right if the answer is JSON", json_validator),
}


class Evals(Benchmark):
    """Evals of a registry."""

    name = "evals"
    title = "OpenAI Evals"
    about = "a registry of openai/evals as it is: Match, Includes, FuzzyMatch, JsonMatch, JsonValidator, model-graded"
    layout = "a registry: evals/*.yaml, data/<name>/*.jsonl, modelgraded/*.yaml"
    source = Source(
        licence="MIT, some data sets their own",
        where="https://github.com/openai/evals/tree/main/evals/registry",
        note="git has pointers of git-lfs in data/; the package has data: pip download --no-deps evals==3.0.1.post1",
    )
    needs: frozenset[Need] = frozenset({"judge for some"})
    together = False

    def find(self, folder: Path) -> Found:
        """Samples by eval; an eval that cannot be run here counts as a part of the whole that is not there."""
        evals = read_evals(folder)
        rows = {name: count_rows(task.samples) for name, task in evals.items() if not task.problem}
        pointers = [task for task in evals.values() if task.samples.is_file() and is_pointer(task.samples)]
        if not rows and pointers:
            raise UserError(f"{folder}: {pointers[0].problem}")
        return Found(rows, dict.fromkeys(evals, 0) | rows)

    def check(self, folder: Path, wanted: Sequence[str], settings: Settings) -> None:
        """An eval that cannot be run has its reason."""
        evals = read_evals(folder)
        for name in wanted:
            find_eval(name, evals, settings)

    def measure(
        self, subjects: Sequence[Subject], folder: Path, wanted: Sequence[str], settings: Settings, into: Path
    ) -> Measurement:
        """Every wanted eval, or of all those that can be run."""
        evals = read_evals(folder)
        tasks = [find_eval(name, evals, settings) for name in wanted] or _runnable(evals, settings, folder)
        figures, rows = [], []
        for subject in subjects:
            accuracies: list[Estimate] = []
            for task in tasks:
                samples = task.rows()[: settings.limit]
                values, own = _measured(task, samples, subject, settings)
                figures += _figures(task, values, subject, settings, len(samples) == len(task.rows()))
                rows += own
                if "accuracy" in values:
                    accuracies.append(estimate(values["accuracy"], resamples=settings.resamples, seed=settings.seed))
            if not wanted and accuracies:
                whole = len(tasks) == len(evals) and settings.limit is None
                figures.append(_mean(accuracies, len(evals), whole, subject, settings))
        return Measurement(figures, rows)


def find_eval(name: str, evals: Mapping[str, Eval], settings: Settings) -> Eval:
    """The eval called so, or that has this id.

    Raises:
        UserError: there is none, or it cannot be run.
    """
    task = evals.get(name) or next((task for task in evals.values() if task.id == name), None)
    if task is None:
        near = difflib.get_close_matches(name, evals, n=3, cutoff=0.5)
        raise UserError(f"evals/{name}: not in the registry; {'nearest: ' + ', '.join(near) if near else 'add it'}")
    if task.problem:
        raise UserError(f"evals/{name}: {task.problem}")
    if task.kind == GRADED:
        from stages.benchmarks.judged import judge_of

        judge_of(settings, f"evals/{name}")
    return task


def _runnable(evals: Mapping[str, Eval], settings: Settings, folder: Path) -> list[Eval]:
    """All that can be run; what cannot is counted, and said."""
    left = {name: task.problem for name, task in evals.items() if task.problem}
    if settings.judge is None:
        left |= {name: "needs benchmark.judge" for name, task in evals.items() if task.kind == GRADED}
    tasks = [task for name, task in evals.items() if name not in left]
    first = next((f", as {name}: {problem}" for name, problem in left.items()), "")
    if not tasks:
        raise UserError(f"{folder}: none of {len(evals)} evals can be run{first}")
    if left:
        say(f"  evals: {len(left)} of {len(evals)} are left out{first}")
    return tasks


def _measured(
    task: Eval, samples: list[dict[str, Any]], subject: Subject, settings: Settings
) -> tuple[dict[str, list[float]], list[Row]]:
    if task.kind == GRADED:
        from stages.benchmarks.judged import judge_of

        return grade(task, samples, subject, judge_of(settings, f"evals/{task.name}"), settings)
    basic = BASICS[task.kind]
    chats = _chats(task, samples)
    ideals = [_ideals(task, row, number) for number, row in enumerate(samples)]
    limit = int(task.args.get("max_tokens", basic.max_tokens))
    answers = [own[0] for own in subject.answer(chats, max_new_tokens=limit)]
    scores = [basic.score(answer, ideal, task.args) for answer, ideal in zip(answers, ideals, strict=True)]
    values = {metric: [score[metric] for score in scores] for metric in scores[0]}
    rows = [
        Row(
            model=subject.name,
            task=f"evals/{task.name}",
            id=str(number),
            prompt="\n\n".join(message["content"] for message in chat),
            response=answer,
            target=" | ".join(ideal),
            score=next(iter(score.values())),
        )
        for number, (chat, answer, ideal, score) in enumerate(zip(chats, answers, ideals, scores, strict=True))
    ]
    return values, rows


def _chats(task: Eval, samples: Sequence[Mapping[str, Any]]) -> list[list[Message]]:
    """Inputs as chats; examples stand before the last message."""
    shots = int(task.args.get("num_few_shot", 0))
    few = read_samples(task.folder / "data" / str(task.args.get("few_shot_jsonl")))[:shots] if shots else []
    chats = []
    for number, row in enumerate(samples, start=1):
        prompt, where = row.get("input"), f"{task.samples}: row {number}"
        if few:
            if not isinstance(prompt, list) or not all(isinstance(shot.get("sample"), list) for shot in few):
                raise UserError(
                    f"{where}: with few shots `input`, and `sample` of each shot, must be lists of messages"
                )
            prompt = [*prompt[:-1], *(message for shot in few for message in shot["sample"]), *prompt[-1:]]
        chats.append(chat_of(prompt, where))
    return chats


def _ideals(task: Eval, row: Mapping[str, Any], number: int) -> list[str]:
    if task.kind == "JsonValidator":
        return [""]
    given = row.get("ideal")
    ideals = [ideal for ideal in (given if isinstance(given, list) else [given]) if isinstance(ideal, str)]
    if not ideals or (isinstance(given, list) and len(ideals) < len(given)):
        raise UserError(f"{task.samples}: row {number + 1}: `ideal` must be a text or a list of texts")
    if task.kind == "JsonMatch" and not all(json_validator(ideal, [], {})["is_valid_json"] for ideal in ideals):
        raise UserError(f"{task.samples}: row {number + 1}: an `ideal` of JsonMatch is not JSON")
    return ideals


def _figures(
    task: Eval, values: Mapping[str, list[float]], subject: Subject, settings: Settings, whole: bool
) -> list[Figure]:
    from stages.benchmarks.judged import figures_of

    graded = (
        f"graded by {settings.judge.model if settings.judge else ''} as modelgraded/{task.args.get('modelgraded_spec')}"
    )
    how = graded if task.kind == GRADED else BASICS[task.kind].protocol
    shots = int(task.args.get("num_few_shot", 0))
    return figures_of(
        values,
        settings,
        model=subject.name,
        task=f"evals/{task.name}",
        run=1,
        out_of=1,
        shots=shots,
        protocol=f"{task.id}, class {task.kind}: {how}",
        template=subject.template,
        scope="full" if whole else "sample",
    )


def _mean(accuracies: Sequence[Estimate], out_of: int, whole: bool, subject: Subject, settings: Settings) -> Figure:
    """Over evals that have an accuracy; openai/evals itself gives no such figure."""
    found = weighted(accuracies)
    low, high = found.limits(settings.confidence)
    return Figure(
        model=subject.name,
        task="evals",
        metric="accuracy",
        value=found.value,
        low=low,
        high=high,
        n=found.n,
        run=len(accuracies),
        out_of=out_of,
        shots=None,
        protocol="mean accuracy of the evals that have one, each with the same weight",
        template=subject.template,
        library="onset",
        scope="full" if whole and len(accuracies) == out_of else "sample",
    )


BENCHMARKS = (Evals(),)

"""TriviaQA (Joshi et al. 2017, arXiv 1705.03551), closed book: trivia questions without their evidence.

lm-eval asks, as its task triviaqa does but for a question mark too many; the answer is the whole first line, since
right answers have full stops and commas in them, at which that task cuts. Exact match and F1 are those of the official
triviaqa_evaluation.py.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.benchmarks.benchmark import Benchmark, Figure, Found, Measurement, Need, Row, Settings, Source, Subject
from stages.benchmarks.estimates import Estimate, mean, weighted
from stages.benchmarks.figures import About, figures
from stages.benchmarks.tables import Line, read_lines, text_of, value_of
from stages.benchmarks.text_metrics import normalize_trivia, trivia_scores
from stages.instructions.raw_files import read_text
from stages.pipeline.errors import UserError

PUBLISHED = {"wikipedia": 7993, "web": 9951, "unfiltered": 11313}
"""Questions of the dev sets (the paper's table 3, and the hub's validation splits)."""
WHOLE = ("wikipedia", "web")
"""What is called TriviaQA, 17,944 questions, as in lm-eval; the unfiltered set has many of the same."""
FILES = {"wikipedia-dev.json": "wikipedia", "web-dev.json": "web", "unfiltered-web-dev.json": "unfiltered"}
"""The publisher's files. The verified ones are parts of these."""
FOLDERS = {"rc.wikipedia": "wikipedia", "rc.web": "web", "unfiltered": "unfiltered"}
"""The hub's, with or without `.nocontext`; rc has wikipedia and web together."""
METRICS = ("exact_match", "f1")
MAX_TOKENS = 64
"""Of an answer."""

Doc = dict[str, Any]
"""id, question, answer, golds: texts, normalised."""


def read(folder: Path) -> dict[str, list[Doc]]:
    """All questions by dev set; what stands twice counts once.

    Raises:
        UserError: a file is in another format, or holds no question.
    """
    sets: dict[str, dict[str, Doc]] = {}
    for path in sorted(folder.rglob("*")):
        subset = FILES.get(path.name)
        if path.suffix == ".parquet" and path.name.startswith("validation"):
            subset = FOLDERS.get(path.parent.name.removesuffix(".nocontext"))
        if subset is None:
            continue
        own = _read_json(path) if path.suffix == ".json" else [_of_hub(line) for line in read_lines(path)]
        if not own:
            raise UserError(f"{path}: holds no question; fetch the file again")
        sets.setdefault(subset, {}).update({doc["id"]: doc for doc in own})
    return {subset: list(sets[subset].values()) for subset in PUBLISHED if subset in sets}


def _read_json(path: Path) -> list[Doc]:
    wanted = "wanted TriviaQA's own JSON, {Data: [{QuestionId, Question, Answer: {Value, NormalizedAliases}}]}"
    try:
        return [
            _doc(
                row["QuestionId"],
                row["Question"],
                row["Answer"]["Value"],
                [*row["Answer"]["NormalizedAliases"], *row["Answer"].get("HumanAnswers", [])],
            )
            for row in json.loads(read_text(path))["Data"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: {wanted} ({type(error).__name__}: {error}); fetch the file again") from None


def _of_hub(line: Line) -> Doc:
    answer = value_of(line, "answer")
    if not isinstance(answer, Mapping) or not answer.get("normalized_aliases"):
        raise UserError(f"{line.where}: 'answer' has no 'normalized_aliases'; take the validation split")
    golds = answer["normalized_aliases"]
    return _doc(text_of(line, "question_id"), text_of(line, "question"), answer.get("value") or golds[0], golds)


def _doc(key: str, question: str, answer: str, golds: Sequence[str]) -> Doc:
    golds = list(dict.fromkeys(normalize_trivia(gold) for gold in golds))
    if not golds:
        raise ValueError(f"{key} has no answer")
    return {"id": key, "question": question.strip(), "answer": answer, "golds": golds}


class TriviaQa(Benchmark):
    """The benchmark."""

    name = "triviaqa"
    title = "TriviaQA"
    about = "trivia questions without any text to look in; exact match and F1 with the best of the answer's aliases"
    layout = "qa/wikipedia-dev.json and qa/web-dev.json as published (unfiltered-web-dev.json beside them is measured "
    layout += "by itself), or the hub's rc.wikipedia.nocontext/, rc.web.nocontext/ and unfiltered.nocontext/validation*"
    source = Source(
        licence="Apache-2.0 (the code; questions belong to their authors)",
        where="https://nlp.cs.washington.edu/triviaqa/",
        hub="mandarjoshi/trivia_qa",
        patterns=tuple(f"{folder}.nocontext/validation-*.parquet" for folder in FOLDERS),
    )
    needs: frozenset[Need] = frozenset()
    together = False

    def find(self, folder: Path) -> Found:
        """Questions by dev set."""
        return Found({subset: len(docs) for subset, docs in read(folder).items()}, PUBLISHED)

    def measure(
        self, subjects: Sequence[Subject], folder: Path, wanted: Sequence[str], settings: Settings, into: Path
    ) -> Measurement:
        """Every dev set that is there or wanted, and the whole of Wikipedia and web."""
        from stages.benchmarks import harness

        sets, shots = read(folder), settings.shots.get(self.name, 0)
        found = Found({subset: len(docs) for subset, docs in sets.items()}, PUBLISHED)
        chosen = {subset: docs for subset, docs in sets.items() if not wanted or subset in wanted}
        if not chosen:
            raise UserError(f"{folder}: holds no {' or '.join(wanted) or 'questions'}; wanted: {self.layout}")
        for subset, docs in chosen.items():
            if len(docs) <= shots:
                raise UserError(f"{folder}: {len(docs)} questions of {subset}, for {shots} shots more are wanted")
        tasks = [
            harness.Task(f"triviaqa/{subset}", _config(subset), {subset: chosen[subset]}, shots) for subset in chosen
        ]
        made: list[Figure] = []
        rows: list[Row] = []
        for subject in subjects:
            measured = harness.run(tasks, subject, settings)
            estimates = {subset: measured[f"triviaqa/{subset}"].estimates for subset in chosen}
            for task, subsets in _wholes(chosen).items():
                scope = found.scope(subsets, settings.limit)
                parts = len(subsets)
                about = About(task, shots, _protocol(shots), harness.LIBRARY, scope, run=parts, out_of=parts)
                own = {metric: _joined([estimates[subset][metric] for subset in subsets]) for metric in METRICS}
                made += figures(about, own, subject, settings)
            rows += [row for one in measured.values() for row in one.rows]
        return Measurement(made, rows)


def _config(subset: str) -> dict[str, Any]:
    return {
        "output_type": "generate_until",
        "test_split": subset,
        "fewshot_config": {"split": subset, "doc_to_text": _question},  # lm-eval leaves the row itself out
        "doc_to_text": _question,
        "doc_to_target": gold,
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": MAX_TOKENS, "do_sample": False},
        "process_results": _process,
        "metric_list": [{"metric": metric, "aggregation": mean, "higher_is_better": True} for metric in METRICS],
    }


def _question(doc: Doc) -> str:
    mark = "" if doc["question"].endswith("?") else "?"
    return f"Question: {doc['question']}{mark}\nAnswer:"


def gold(doc: Doc) -> str:
    """A right reply."""
    return str(doc["answer"])


def _process(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    return dict(zip(METRICS, trivia_scores(results[0], doc["golds"]), strict=True))


def _wholes(chosen: Mapping[str, Any]) -> dict[str, list[str]]:
    """What is told under which name: the whole only of all its parts."""
    whole = {"triviaqa": list(WHOLE)} if all(subset in chosen for subset in WHOLE) else {}
    return whole | {f"triviaqa/{subset}": [subset] for subset in chosen}


def _joined(estimates: Sequence[Estimate]) -> Estimate:
    return weighted(estimates, [one.n for one in estimates])


def _protocol(shots: int) -> str:
    more = f"; {shots} other questions of the dev set before each" if shots else ""
    return f"closed book: the question alone, the first line written is the answer; the best of all its aliases{more}"


BENCHMARKS = (TriviaQa(),)

"""SQuAD 1.1 (Rajpurkar et al. 2016, arXiv 1606.05250) and 2.0 (2018, arXiv 1806.03822): answers from a text.

lm-eval asks and the model writes its answer; exact match and F1 are those of the official evaluate-v2.0.py, which on
SQuAD 1.1 gives what evaluate-v1.1.py does.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.benchmarks.benchmark import Benchmark, Figure, Found, Measurement, Need, Row, Settings, Source, Subject
from stages.benchmarks.estimates import Estimate, estimate, mean
from stages.benchmarks.figures import About, figures
from stages.benchmarks.tables import Line, read_lines, text_of, value_of
from stages.benchmarks.text_metrics import UNANSWERABLE, squad2_reply, squad_scores
from stages.instructions.raw_files import read_text
from stages.pipeline.errors import UserError

SPLIT = "dev"
MAX_TOKENS = 64
"""Of an answer; the longest of the dev sets has some 40 words."""

Doc = dict[str, Any]
"""id, title, context, question, answers: texts, none where there is no answer."""


def read(folder: Path) -> list[Doc]:
    """All questions of the dev set, from the publisher's JSON or the hub's Parquet; what stands twice counts once.

    Raises:
        UserError: a file is in neither format, or holds no question.
    """
    docs: dict[tuple[str, str], Doc] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix not in (".json", ".parquet") or "train" in path.name or path.name.startswith("."):
            continue
        own = _read_json(path) if path.suffix == ".json" else [_of_hub(line) for line in read_lines(path)]
        if not own:
            raise UserError(f"{path}: holds no question; fetch the file again")
        docs |= {(doc["id"], doc["question"]): doc for doc in own}
    return list(docs.values())


def _read_json(path: Path) -> list[Doc]:
    wanted = "wanted SQuAD's own JSON, {data: [{title, paragraphs: [{context, qas: [{id, question, answers}]}]}]}"
    try:
        return [
            {
                "id": str(qa["id"]),
                "title": str(article.get("title", "")),
                "context": str(paragraph["context"]),
                "question": str(qa["question"]).strip(),
                "answers": [str(answer["text"]) for answer in qa["answers"]],
            }
            for article in json.loads(read_text(path))["data"]
            for paragraph in article["paragraphs"]
            for qa in paragraph["qas"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: {wanted} ({type(error).__name__}: {error}); fetch the file again") from None


def _of_hub(line: Line) -> Doc:
    answers = value_of(line, "answers")
    if not isinstance(answers, Mapping) or "text" not in answers:
        raise UserError(f"{line.where}: 'answers' has no 'text'; fetch the file again")
    doc: Doc = {name: text_of(line, name) for name in ("id", "title", "context")}
    return doc | {"question": text_of(line, "question").strip(), "answers": list(answers["text"])}


@dataclass
class Squad(Benchmark):
    """One of the two benchmarks."""

    name: str
    title: str
    about: str
    layout: str
    source: Source
    published: int
    no_answers: bool
    """Some questions have none in their text."""
    needs: frozenset[Need] = frozenset()
    together: bool = False

    def find(self, folder: Path) -> Found:
        """Questions of the dev set."""
        docs = self._read(folder)
        return Found({SPLIT: len(docs)} if docs else {}, {SPLIT: self.published})

    def measure(
        self, subjects: Sequence[Subject], folder: Path, wanted: Sequence[str], settings: Settings, into: Path
    ) -> Measurement:
        """Exact match and F1; of 2.0 also on questions with and without an answer alone."""
        from stages.benchmarks import harness

        docs, shots = self._read(folder), settings.shots.get(self.name, 0)
        if len(docs) <= shots:
            raise UserError(f"{folder}: {len(docs)} questions, for {shots} shots more are wanted; {self.layout}")
        task = harness.Task(self.name, self._config(), {SPLIT: docs}, shots)
        made: list[Figure] = []
        rows: list[Row] = []
        for subject in subjects:
            measured = harness.run([task], subject, settings)[self.name]
            scope = Found({SPLIT: len(docs)}, {SPLIT: self.published}).scope([SPLIT], settings.limit)
            about = About(self.name, shots, self._protocol(shots), harness.LIBRARY, scope)
            made += figures(about, self._estimates(measured.values, docs, settings), subject, settings)
            rows += measured.rows
        return Measurement(made, rows)

    def _read(self, folder: Path) -> list[Doc]:
        docs = read(folder)
        some = any(not doc["answers"] for doc in docs)
        if some and not self.no_answers:
            raise UserError(f"{folder}: questions without an answer, so this is SQuAD 2.0; put it in {folder.name}2")
        if docs and not some and self.no_answers:
            raise UserError(f"{folder}: every question has an answer, so this is SQuAD 1.1; put it in a folder squad")
        return docs

    def _config(self) -> dict[str, Any]:
        instruction = "Answer the question with words from the background."
        if self.no_answers:
            instruction += f' If the background does not have the answer, reply "{UNANSWERABLE}".'
        return {
            "output_type": "generate_until",
            "test_split": SPLIT,
            "fewshot_config": {"split": SPLIT, "doc_to_text": _question},  # lm-eval leaves the row itself out
            "description": f"{instruction}\n\n",
            "doc_to_text": _question,
            "doc_to_target": gold,
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": MAX_TOKENS, "do_sample": False},
            "process_results": _process_2 if self.no_answers else _process,
            "metric_list": [
                {"metric": metric, "aggregation": mean, "higher_is_better": True} for metric in ("exact_match", "f1")
            ],
        }

    def _estimates(
        self, values: Mapping[str, Sequence[float]], docs: Sequence[Doc], settings: Settings
    ) -> dict[str, Estimate]:
        own = {metric: list(values[metric]) for metric in ("exact_match", "f1")}
        if self.no_answers:
            for metric, name in (("exact_match", "exact"), ("f1", "f1")):
                pairs = list(zip(values[metric], docs, strict=False))  # a limit leaves fewer values than questions
                own[f"HasAns_{name}"] = [value for value, doc in pairs if doc["answers"]]
                own[f"NoAns_{name}"] = [value for value, doc in pairs if not doc["answers"]]
        return {
            metric: estimate(numbers, resamples=settings.resamples, seed=settings.seed)
            for metric, numbers in own.items()
            if numbers
        }

    def _protocol(self, shots: int) -> str:
        none = f'; "{UNANSWERABLE}" or nothing is no answer' if self.no_answers else ""
        more = f"; {shots} other questions of the dev set before each" if shots else ""
        return f"text and question, the first line written is the answer; the best of all right answers{none}{more}"


def _question(doc: Doc) -> str:
    """As lm-eval asks SQuAD 2.0 (lm_eval/tasks/squadv2/task.py)."""
    return f"Title: {doc['title']}\n\nBackground: {doc['context']}\n\nQuestion: {doc['question']}\n\nAnswer:"


def gold(doc: Doc) -> str:
    """A right reply."""
    return str(doc["answers"][0]) if doc["answers"] else UNANSWERABLE


def _process(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    return dict(zip(("exact_match", "f1"), squad_scores(results[0], doc["answers"]), strict=True))


def _process_2(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    return _process(doc, [squad2_reply(results[0])])


_LICENCE, _WHERE = "CC BY-SA 4.0", "https://rajpurkar.github.io/SQuAD-explorer/"

BENCHMARKS = (
    Squad(
        name="squad",
        title="SQuAD 1.1",
        about="questions on a paragraph of Wikipedia, answered in its words; exact match and F1",
        layout="dev-v1.1.json as published, or the hub's validation*.parquet",
        source=Source(_LICENCE, _WHERE, hub="rajpurkar/squad", patterns=("plain_text/validation-*.parquet",)),
        published=10570,
        no_answers=False,
    ),
    Squad(
        name="squad2",
        title="SQuAD 2.0",
        about="the same with questions that the paragraph does not answer; exact match and F1",
        layout="dev-v2.0.json as published, or the hub's validation*.parquet",
        source=Source(_LICENCE, _WHERE, hub="rajpurkar/squad_v2", patterns=("squad_v2/validation-*.parquet",)),
        published=11873,
        no_answers=True,
    ),
)

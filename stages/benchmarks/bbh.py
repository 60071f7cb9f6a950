"""BIG-Bench Hard (Suzgun et al. 2022, arXiv 2210.09261): 27 tasks of BIG-bench whose answers are written.

With the publisher's cot-prompts beside the tasks, three shots with a chain of thought as in the paper; without them
the question alone. lm-eval asks; the answer is read as the paper does, after "the answer is".
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages.benchmarks.benchmark import Benchmark, Figure, Found, Measurement, Need, Row, Settings, Source, Subject
from stages.benchmarks.estimates import Estimate, mean, weighted
from stages.benchmarks.figures import About, figures
from stages.benchmarks.tables import read_lines, text_of
from stages.instructions.raw_files import read_text
from stages.pipeline.errors import UserError

PUBLISHED = dict.fromkeys(
    (
        "boolean_expressions", "causal_judgement", "date_understanding", "disambiguation_qa", "dyck_languages",
        "formal_fallacies", "geometric_shapes", "hyperbaton", "logical_deduction_five_objects",
        "logical_deduction_seven_objects", "logical_deduction_three_objects", "movie_recommendation",
        "multistep_arithmetic_two", "navigate", "object_counting", "penguins_in_a_table",
        "reasoning_about_colored_objects", "ruin_names", "salient_translation_error_detection", "snarks",
        "sports_understanding", "temporal_sequences", "tracking_shuffled_objects_five_objects",
        "tracking_shuffled_objects_seven_objects", "tracking_shuffled_objects_three_objects", "web_of_lies",
        "word_sorting",
    ),
    250,
) | {"causal_judgement": 187, "penguins_in_a_table": 146, "snarks": 178}  # fmt: skip
"""Questions by task, 6,511 in all."""
SHOTS = 3
"""In each of the publisher's prompts."""
THOUGHT = "Let's think step by step."
TOKENS, THOUGHT_TOKENS = 128, 1024
"""At most written, without and with a chain of thought (the latter as in lm-eval)."""

Doc = dict[str, str]
"""prompt, target."""


class Prompt(NamedTuple):
    """What stands before every question of a task."""

    description: str
    examples: list[str]
    """Question and answer each, with the chain of thought."""


def read(folder: Path) -> dict[str, list[Doc]]:
    """Questions by task: `input` and `target`.

    Raises:
        UserError: a file is of no task, in another format, or holds no question.
    """
    root = folder / "bbh" if (folder / "bbh").is_dir() else folder
    tasks: dict[str, list[Doc]] = {}
    for path in sorted([*root.glob("*.json"), *root.rglob("*.parquet")]):
        name = path.stem if path.suffix == ".json" else path.parent.name
        if name not in PUBLISHED:
            raise UserError(f"{path}: '{name}' is no task of BIG-Bench Hard; known: {', '.join(PUBLISHED)}")
        if name in tasks:
            raise UserError(f"{path}: {name} is there twice; keep one file")
        tasks[name] = _read_json(path) if path.suffix == ".json" else _read_parquet(path)
        if not tasks[name]:
            raise UserError(f"{path}: holds no question; fetch the file again")
    return tasks


def _read_json(path: Path) -> list[Doc]:
    try:
        rows = json.loads(read_text(path))["examples"]
        return [{"input": str(row["input"]), "target": str(row["target"])} for row in rows]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path}: wanted {{examples: [{{input, target}}]}} ({type(error).__name__}: {error}); fetch the file again"
        ) from None


def _read_parquet(path: Path) -> list[Doc]:
    return [{"input": text_of(line, "input"), "target": text_of(line, "target")} for line in read_lines(path)]


def read_prompt(path: Path) -> Prompt:
    """A prompt as published: a warning and a line of dashes, the task in a sentence, three questions with answers.

    Raises:
        UserError: it holds no question with an answer.
    """
    description, *examples = re.split(r"\n\s*\n(?=Q:)", read_text(path).split("-----\n")[-1].strip())
    if not examples or any("\nA:" not in example for example in examples):
        raise UserError(f"{path}: wanted a description and examples 'Q: ...', 'A: ...' apart by empty lines")
    return Prompt(description, examples)


def answer_of(reply: str) -> str:
    """The answer in a reply: what follows the last "the answer is", or else the first line that is not empty.

    Without a full stop at its end; of a choice its letter alone.

    >>> answer_of("Two and two. So the answer is (B) four."), answer_of("True.")
    ('(B)', 'True')
    """
    told = re.split(r"the answer is:?", reply, flags=re.IGNORECASE)[-1].strip()
    line = told.split("\n")[0].strip().removesuffix(".").strip()
    letter = re.match(r"\([A-Z]\)", line)
    return letter.group() if letter else line


class Bbh(Benchmark):
    """The benchmark."""

    name = "bbh"
    title = "BIG-Bench Hard"
    about = "27 tasks of BIG-bench that need several steps; exact match of the answer written"
    layout = "<task>.json as published, and cot-prompts/<task>.txt for three shots with a chain of thought; or the "
    layout += "hub's <task>/*.parquet"
    source = Source(
        licence="MIT",
        where="https://github.com/suzgunmirac/BIG-Bench-Hard",
        hub="lukaemon/bbh",
        patterns=("*/test-*.parquet",),
        note="the publisher's repository has cot-prompts too, the hub's copy has not",
    )
    needs: frozenset[Need] = frozenset()
    together = False

    def find(self, folder: Path) -> Found:
        """Questions by task."""
        return Found({name: len(docs) for name, docs in read(folder).items()}, PUBLISHED)

    def measure(
        self, subjects: Sequence[Subject], folder: Path, wanted: Sequence[str], settings: Settings, into: Path
    ) -> Measurement:
        """Every task that is there or wanted, and their mean."""
        from stages.benchmarks import harness

        questions = {name: docs for name, docs in read(folder).items() if not wanted or name in wanted}
        if not questions:
            raise UserError(f"{folder}: holds no {' or '.join(wanted) or 'task'}; wanted: {self.layout}")
        prompts = _prompts(folder, questions, settings.shots.get(self.name))
        tasks = [
            harness.Task(f"bbh/{name}", _config(prompts.get(name)), {"test": _asked(docs, prompts.get(name))}, shots=0)
            for name, docs in questions.items()
        ]
        shots = max((len(prompt.examples) for prompt in prompts.values()), default=0)
        found = Found({name: len(docs) for name, docs in questions.items()}, PUBLISHED)
        made: list[Figure] = []
        rows: list[Row] = []
        for subject in subjects:
            measured = harness.run(tasks, subject, settings)
            estimates = {name: measured[f"bbh/{name}"].estimates["exact_match"] for name in questions}
            for task, names in _wholes(estimates).items():
                own = [estimates[name] for name in names if name in estimates]
                scope = found.scope(names, settings.limit)
                about = About(task, shots, _protocol(prompts, names), harness.LIBRARY, scope, len(own), len(names))
                made += figures(about, {"exact_match": weighted(own)}, subject, settings)
            rows += [row for one in measured.values() for row in one.rows]
        return Measurement(made, rows)


def _prompts(folder: Path, names: Mapping[str, Any], shots: int | None) -> dict[str, Prompt]:
    """The prompt of every task with as many examples as are wanted; empty: the question alone."""
    place = folder / "cot-prompts"
    if not place.is_dir():
        if shots:
            raise UserError(
                f"{place}: not found; put the publisher's prompts there, or set benchmark.shots: {{bbh: 0}}"
            )
        return {}
    prompts = {}
    for name in names:
        path = place / f"{name}.txt"
        if not path.exists():
            raise UserError(f"{path}: not found; put all of the publisher's prompts there, or take the folder away")
        prompts[name] = read_prompt(path)
        if shots is not None and shots > len(prompts[name].examples):
            raise UserError(f"{path}: {len(prompts[name].examples)} examples, {shots} shots are wanted; set fewer")
    return {name: Prompt(one.description, one.examples[:shots]) for name, one in prompts.items()}


def _asked(docs: Sequence[Doc], prompt: Prompt | None) -> list[Doc]:
    if prompt is None:
        return [{"prompt": f"Q: {doc['input']}\nA:", "target": doc["target"]} for doc in docs]
    before = "\n\n".join([prompt.description, *prompt.examples])
    return [{"prompt": f"{before}\n\nQ: {doc['input']}\nA: {THOUGHT}", "target": doc["target"]} for doc in docs]


def _config(prompt: Prompt | None) -> dict[str, Any]:
    tokens = TOKENS if prompt is None else THOUGHT_TOKENS
    return {
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": lambda doc: doc["prompt"],
        "doc_to_target": gold,
        "generation_kwargs": {"until": ["Q:"], "max_gen_toks": tokens, "do_sample": False},
        "process_results": _process,
        "metric_list": [{"metric": "exact_match", "aggregation": mean, "higher_is_better": True}],
    }


def gold(doc: Doc) -> str:
    """A right reply."""
    return doc["target"]


def _process(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    return {"exact_match": float(answer_of(results[0]) == doc["target"].strip())}


def _wholes(estimates: Mapping[str, Estimate]) -> dict[str, list[str]]:
    """What is told under which name; one task alone under its own."""
    whole = {"bbh": list(PUBLISHED)} if len(estimates) > 1 else {}
    return whole | {f"bbh/{name}": [name] for name in estimates}


def _protocol(prompts: Mapping[str, Prompt], names: Sequence[str]) -> str:
    asked = "the publisher's prompt with a chain of thought" if prompts else "the question alone, no chain of thought"
    mean_of = "; mean over tasks" if len(names) > 1 else ""
    return f"{asked}; exact match of what is written after 'the answer is', or else of the first line{mean_of}"


BENCHMARKS = (Bbh(),)

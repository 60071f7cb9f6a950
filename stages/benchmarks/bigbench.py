"""BIG-bench (Srivastava et al. 2022, arXiv 2206.04615): its JSON tasks, each with its own metrics.

The prompts and metrics are the publisher's (release 1.0.0 of bigbench on PyPI), the figures of a task those of its
parts in the mean (bigbench/api/results.py, add_aggregate_scores). Likelihoods and responses come through lm-eval.

A task that names neither pattern nor stop has its responses cut at the first full stop, as published; where its own
targets have one, such as 16.0, no response can be all right.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.benchmarks.benchmark import Benchmark, Figure, Found, Measurement, Need, Row, Settings, Source, Subject
from stages.benchmarks.bigbench_tasks import Leaf, count, paths, prompts, read
from stages.benchmarks.estimates import Estimate, weighted
from stages.benchmarks.figures import About, figures
from stages.benchmarks.text_metrics import (
    AGGREGATES,
    CHOICE,
    LIKELIHOOD,
    TEXT,
    aggregate_of,
    choice_values,
    likelihood_values,
    postprocess,
    text_values,
)
from stages.pipeline.errors import UserError

if TYPE_CHECKING:  # lm-eval takes seconds to import, and `list` does without it
    from stages.benchmarks.harness import Measured, Task

PUBLISHED: dict[str, int] = json.loads(Path(__file__).with_name("bigbench_rows.json").read_text())
"""Distinct examples of each of the 167 JSON tasks of bigbench 1.0.0, over all parts of a task."""
NORMALISED = "normalized_aggregate_score"
"""Mean of preferred scores, each on a scale from low (chance where it is known) to high; published out of 100."""
MAX_TOKENS = 128
"""Of a response, as in lm-eval (lm_eval/tasks/bigbench/generate_until_template_yaml)."""

Doc = dict[str, Any]
"""prompt, choices, scores, targets."""


class BigBench(Benchmark):
    """The benchmark."""

    name = "bigbench"
    title = "BIG-bench"
    about = "its JSON tasks, by likelihood of choices or by what is written; each task's own metrics"
    layout = "<task>/task.json (with the folders of its parts) or <task>.json as published, or the publisher's "
    layout += "repository itself"
    source = Source(
        licence="Apache-2.0",
        where="https://github.com/google/BIG-bench",
        note="tasks are in bigbench/benchmark_tasks; 1.7 GB for all 167, a few are enough",
    )
    needs: frozenset[Need] = frozenset()
    together = False

    def find(self, folder: Path) -> Found:
        """Examples by task."""
        return _found({name: count(path) for name, path in paths(folder).items()})

    def measure(
        self, subjects: Sequence[Subject], folder: Path, wanted: Sequence[str], settings: Settings, into: Path
    ) -> Measurement:
        """Task after task, since all together do not fit into memory; and the mean of those that are there."""
        chosen = {name: path for name, path in paths(folder).items() if not wanted or name in wanted}
        if not chosen:
            raise UserError(f"{folder}: holds no {' or '.join(wanted) or 'task'}; wanted: {self.layout}")
        shots = settings.shots.get(self.name, 0)
        made: list[Figure] = []
        rows: list[Row] = []
        for subject in subjects:
            normalised: dict[str, Estimate] = {}
            found: dict[str, int] = {}
            own: list[Figure] = []
            for name, path in chosen.items():
                leaves = read(name, path)
                found[name] = sum(len(leaf.examples) for leaf in leaves)
                estimates, answers = _measure(leaves, subject, settings, shots)
                scope = _found(found).scope([name], settings.limit)
                about = About(f"bigbench/{name}", shots, _protocol(leaves), _library(), scope)
                own += figures(about, estimates, subject, settings)
                rows += answers
                if NORMALISED in estimates:
                    normalised[name] = estimates[NORMALISED]
            if len(normalised) > 1:
                made += _whole(normalised, _found(found), subject, settings, shots)
            made += own
        return Measurement(made, rows)


def _found(rows: Mapping[str, int]) -> Found:
    """Of a task that is not the publisher's no number of rows is known."""
    return Found(dict(rows), dict.fromkeys(rows, 0) | PUBLISHED)


def _library() -> str:
    from stages.benchmarks import harness

    return harness.LIBRARY


def _whole(
    normalised: Mapping[str, Estimate], found: Found, subject: Subject, settings: Settings, shots: int
) -> list[Figure]:
    """The mean over tasks. Full are all of the publisher's tasks that can be measured, which lacks those for BLEURT."""
    scope = found.scope(list(PUBLISHED), settings.limit) if len(normalised) == len(PUBLISHED) else "sample"
    protocol = "mean over tasks of their preferred scores, 0 for the lowest (or chance) and 1 for the highest"
    about = About("bigbench", shots, protocol, _library(), scope, run=len(normalised), out_of=len(PUBLISHED))
    return figures(about, {NORMALISED: weighted(list(normalised.values()))}, subject, settings)


def _protocol(leaves: Sequence[Leaf]) -> str:
    metrics = frozenset[str]().union(*(leaf.metrics for leaf in leaves))
    absent = frozenset[str]().union(*(leaf.absent for leaf in leaves))
    read_by = []
    if metrics & CHOICE:
        read_by.append("the likeliest choice")
    if metrics & TEXT:
        read_by.append("the part of the response that the task's pattern or stop gives, no white space taken off")
    if metrics & LIKELIHOOD:
        read_by.append("the likelihood of targets")
    parts = f"; mean over its {len(leaves)} parts" if len(leaves) > 1 else ""
    missing = f"; not measured: {', '.join(sorted(absent))}" if absent else ""
    return f"the publisher's prompt; {' and '.join(read_by)}{parts}{missing}"


def _measure(
    leaves: Sequence[Leaf], subject: Subject, settings: Settings, shots: int
) -> tuple[dict[str, Estimate], list[Row]]:
    """All metrics of a task, the preferred first, and what was answered."""
    from stages.benchmarks import harness

    tasks = [task for leaf in leaves for task in _tasks(leaf, shots, settings.limit)]
    measured = harness.run(tasks, subject, settings)
    own = [_estimates(leaf, measured) for leaf in leaves]
    preferred = {leaf.preferred for leaf in leaves}
    first = [*preferred] if len(preferred) == 1 else [NORMALISED]
    named = dict.fromkeys([*first, *sorted({metric for one in own for metric in one})])
    estimates = {}
    for metric in named:
        having = [one[metric] for one in own if metric in one]
        if having and (metric != NORMALISED or len(having) == len(leaves)):
            estimates[metric] = weighted(having)
    rows = [
        row._replace(task=name.rpartition(":")[0], id=f"{row.id}:{name.rpartition(':')[2]}")
        for name, one in measured.items()
        for row in one.rows
    ]
    return estimates, rows


def _estimates(leaf: Leaf, measured: Mapping[str, "Measured"]) -> dict[str, Estimate]:
    kinds = [name for name in measured if name.rpartition(":")[0] == f"bigbench/{leaf.name}"]
    own = {metric: one for name in kinds for metric, one in measured[name].estimates.items()}
    if leaf.preferred in own:
        value, draws, n = own[leaf.preferred]
        width = leaf.high - leaf.low
        own[NORMALISED] = Estimate((value - leaf.low) / width, (draws - leaf.low) / width, n)
    return own


# ---- what lm-eval runs


def _tasks(leaf: Leaf, shots: int, limit: int | None) -> list["Task"]:
    """One for each kind of answer: a choice, a text, the likelihood of targets."""
    from stages.benchmarks.harness import Task

    docs = [
        {"prompt": prompt, "choices": one.choices, "scores": one.scores, "targets": one.targets}
        for prompt, one in zip(prompts(leaf, shots, limit), leaf.examples, strict=False)
    ]
    configs = {}
    if leaf.metrics & CHOICE:
        configs["choice"] = _choice(leaf, leaf.metrics & CHOICE)
    if leaf.metrics & TEXT:
        configs["text"] = _text(leaf, leaf.metrics & TEXT)
    if leaf.metrics & LIKELIHOOD:
        configs["likelihood"] = _likelihood(all(len(one.targets) == 1 for one in leaf.examples))
    return [Task(f"bigbench/{leaf.name}:{kind}", config, {"test": docs}, shots=0) for kind, config in configs.items()]


def _config(metrics: Sequence[str], **more: Any) -> dict[str, Any]:
    return {
        "test_split": "test",
        "doc_to_text": lambda doc: doc["prompt"],
        "target_delimiter": "",
        "metric_list": [
            {"metric": metric, "aggregation": aggregate_of(metric), "higher_is_better": True} for metric in metrics
        ],
        **more,
    }


def _ordered(leaf: Leaf, metrics: frozenset[str]) -> list[str]:
    """The preferred one first, then those that a single row has: the first is the score of a row."""
    return sorted(metrics, key=lambda metric: (metric != leaf.preferred, metric in AGGREGATES, metric))


def _choice(leaf: Leaf, metrics: frozenset[str]) -> dict[str, Any]:
    def process(doc: Doc, results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
        return choice_values([one for one, _ in results], doc["choices"], doc["scores"], metrics)

    return _config(
        _ordered(leaf, metrics),
        output_type="multiple_choice",
        doc_to_choice=lambda doc: [choice or " " for choice in doc["choices"]],  # of nothing there is no likelihood
        doc_to_target=gold_choice,
        process_results=process,
    )


def _text(leaf: Leaf, metrics: frozenset[str]) -> dict[str, Any]:
    names = _ordered(leaf, metrics - {"rouge"} | ({"rouge1", "rouge2", "rougeLsum"} if "rouge" in metrics else set()))

    def process(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
        return text_values(postprocess(results[0], leaf.stop, leaf.pattern), doc["targets"], metrics)

    return _config(
        names,
        output_type="generate_until",
        doc_to_target=lambda doc: " | ".join(doc["targets"]),
        # A stop belongs to the response, so it is looked for in the whole text.
        generation_kwargs={"until": [], "max_gen_toks": MAX_TOKENS, "do_sample": False},
        process_results=process,
    )


def _likelihood(single: bool) -> dict[str, Any]:
    names = ["log_likelihood"] + (["log_likelihood_per_word", "log_likelihood_per_char"] if single else [])

    def process(doc: Doc, results: Sequence[tuple[float, bool]]) -> dict[str, float]:
        return likelihood_values([one for one, _ in results], doc["targets"], single)

    return _config(
        names,
        output_type="multiple_choice",
        doc_to_choice=lambda doc: [target or " " for target in doc["targets"]],
        doc_to_target=lambda doc: 0,
        process_results=process,
    )


def gold_choice(doc: Doc) -> int:
    """Number of the best choice."""
    return int(max(range(len(doc["scores"])), key=doc["scores"].__getitem__))


BENCHMARKS = (BigBench(),)

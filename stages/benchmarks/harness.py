"""Tasks of lm-eval (EleutherAI) on the publisher's files: it makes prompts, asks the model and reads answers.

Rows come from our readers, so nothing is fetched from a hub; where a published metric is not what lm-eval computes, the
task's configuration brings its own `process_results`.
"""

import stages.model.quiet  # noqa: F401  (before what it quiets)

# isort: split
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset
from lm_eval import tasks as stock_tasks
from lm_eval.api import task as task_module
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.tasks._yaml_loader import load_yaml

from stages.benchmarks.benchmark import Aggregate, Row, Settings, Subject
from stages.benchmarks.estimates import Estimate, estimate, mean
from stages.pipeline.progress import bar

LIBRARY = f"lm-eval {version('lm-eval')}"


def _prompts(rows: Sequence[Any], total: int) -> Iterator[Any]:
    """Progress of lm-eval's making of prompts, in place of a bar that nothing can silence."""
    with bar("prompts", total) as progress:
        for row in rows:
            yield row
            progress.advance()


task_module.tqdm = _prompts
logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its warnings are about what is done here on purpose


class Task(NamedTuple):
    """One subtask as lm-eval knows it."""

    name: str
    """With the benchmark's: mmlu/anatomy."""
    config: Mapping[str, Any]
    """A TaskConfig; `test_split` and, with shots, `fewshot_split` name splits of `docs`."""
    docs: Mapping[str, Sequence[Mapping[str, Any]]]
    """Rows by split, all of a split with the same keys."""
    shots: int


class Measured(NamedTuple):
    """What one subtask came to."""

    estimates: dict[str, Estimate]
    """By metric."""
    values: dict[str, list[Any]]
    """By metric, what each row gave: as the metric's aggregation takes it."""
    rows: list[Row]


def stock(path: str) -> dict[str, Any]:
    """The configuration of a task that lm-eval ships, by its file in lm_eval/tasks, such as glue/mrpc/default.yaml."""
    config: dict[str, Any] = load_yaml(Path(stock_tasks.__file__).parent / path)
    return config


def run(tasks: Sequence[Task], subject: Subject, settings: Settings) -> dict[str, Measured]:
    """Every task on one subject, all requests of a kind together; by the task's name."""
    made = {task.name: _make(task, settings.seed) for task in tasks}
    return measure(made, subject, settings)


def measure(tasks: Mapping[str, Any], subject: Subject, settings: Settings) -> dict[str, Measured]:
    """The same for task objects of lm-eval."""
    found = evaluate(
        subject.lm,
        {"tasks": dict(tasks), "groups": {}},
        limit=settings.limit,
        bootstrap_iters=0,  # ours are stratified, and lm-eval's take minutes for an F1
        apply_chat_template=subject.template != "none",
    )
    assert found is not None
    samples = found["samples"]
    return {name: _measured(name, task, samples[name], subject, settings) for name, task in tasks.items()}


def _make(task: Task, seed: int) -> ConfigurableTask:
    datasets = {split: Dataset.from_list([dict(row) for row in rows]) for split, rows in task.docs.items()}
    left_out = ("dataset_path", "dataset_name", "dataset_kwargs", "tag", "group", "task_alias", "training_split")
    config = {key: value for key, value in task.config.items() if key not in left_out}
    config |= {"task": task.name, "custom_dataset": lambda **_: datasets, "num_fewshot": task.shots}
    made = ConfigurableTask(config=config)
    made.set_fewshot_seed(seed)
    return made


def _measured(name: str, task: Any, samples: Sequence[Any], subject: Subject, settings: Settings) -> Measured:
    """One filter a task: the first, where lm-eval has several readings of an answer."""
    first = samples[0]["filter"]
    own = sorted((sample for sample in samples if sample["filter"] == first), key=lambda sample: sample["doc_id"])
    aggregates: dict[str, Aggregate] = task.aggregation()
    estimates, values = {}, {}
    seed = settings.seed + zlib.crc32(name.encode())  # rows of two tasks are drawn apart, metrics of one together
    for metric, aggregate in aggregates.items():
        if metric not in own[0]:
            continue
        values[metric] = [sample[metric] for sample in own]
        numeric = all(isinstance(value, int | float) for value in values[metric])
        plain = mean if numeric and getattr(aggregate, "__name__", "") == "mean" else aggregate
        estimates[metric] = estimate(values[metric], plain, resamples=settings.resamples, seed=seed)
    main = next(iter(estimates))
    rows = [_row(name, sample, task, subject, main) for sample in own]
    return Measured(estimates, values, rows)


def _row(name: str, sample: Mapping[str, Any], task: Any, subject: Subject, metric: str) -> Row:
    arguments, value = sample["arguments"], sample[metric]
    chosen = sample["filtered_resps"]
    if task.OUTPUT_TYPE == "multiple_choice":
        likelihoods = [response[0] for response in chosen]
        best = max(range(len(likelihoods)), key=likelihoods.__getitem__)
        response, prompt = arguments[best][1].strip(), arguments[0][0]
        target = sample["target"]
        choices = task.doc_to_choice(sample["doc"])
        wanted = choices[target] if isinstance(target, int) and 0 <= target < len(choices) else target
    else:
        response, prompt, wanted = chosen[0], arguments[0][0], sample["target"]
    return Row(
        model=subject.name,
        task=name,
        id=str(sample["doc_id"]),
        prompt=str(prompt),
        response=str(response),
        target=str(wanted),
        score=float(value) if isinstance(value, int | float) else None,
    )

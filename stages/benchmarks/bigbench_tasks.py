"""The JSON tasks of BIG-bench: task.json files, and the prompts that the publisher makes of their examples.

As bigbench/api/json_task.py of release 1.0.0 has them, to the draws of its random generator.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stages.benchmarks.text_metrics import ABSENT, CHOICE, LIKELIHOOD, RANGES, TEXT
from stages.instructions.raw_files import read_text
from stages.pipeline.errors import UserError

SEED = 42
"""Of the order of choices and of shots (json_task.py, random_seed)."""
PATTERN = r"[^\.\?\!\;\n]+"
"""What of a response counts where a task says nothing: its first sentence (json_task.py, _DEFAULT_REGEX)."""


class Example(NamedTuple):
    """One question."""

    input: str
    """With its prefixes and choices."""
    targets: list[str]
    choices: list[str]
    """Empty where there is nothing to choose."""
    scores: list[float]
    """Of each choice."""


class Leaf(NamedTuple):
    """One task.json with examples: a task, or a part of one."""

    name: str
    """arithmetic, or with its task: arithmetic/1_digit_addition."""
    examples: list[Example]
    metrics: frozenset[str]
    """That can be measured."""
    absent: frozenset[str]
    """That cannot."""
    preferred: str
    low: float
    high: float
    """Scores of the preferred metric that normalise to 0 and 1."""
    prefix: str
    """Of every prompt."""
    separator: str
    """Between shots."""
    stop: str | None
    pattern: str | None


def paths(folder: Path) -> dict[str, Path]:
    """The file of every task: <task>/task.json or <task>.json, in the folder or in the publisher's repository there.

    Raises:
        UserError: a task is there twice.
    """
    inside = folder / "bigbench" / "benchmark_tasks"
    root = inside if inside.is_dir() else folder
    found: dict[str, Path] = {}
    for path in sorted([*root.glob("*.json"), *root.glob("*/task.json")]):
        name = path.parent.name if path.name == "task.json" and path.parent != root else path.stem
        if name in found:
            raise UserError(f"{path}: {name} is there twice, as {found[name]} too; keep one")
        found[name] = path
    return found


def read(name: str, path: Path) -> list[Leaf]:
    """A task, or where it has parts, all of them.

    Raises:
        UserError: a file is not as BIG-bench has them; a metric is not known.
    """
    data = _load(path)
    if "examples" in data:
        return [_leaf(name, path, data)]
    parts = sorted(path.parent.glob("*/task.json")) if path.name == "task.json" else []
    if not parts:
        raise UserError(f"{path}: has neither 'examples' nor folders with a task.json; fetch the whole task")
    return [_leaf(f"{name}/{part.parent.name}", part, _load(part)) for part in parts]


def count(path: Path) -> int:
    """Examples of a task that differ, over all its parts.

    Raises:
        UserError: a file is not as BIG-bench has them.
    """
    data = _load(path)
    own = [data] if "examples" in data else [_load(part) for part in sorted(path.parent.glob("*/task.json"))]
    return sum(len(_distinct(one.get("examples"))) for one in own)


def _load(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); fetch the file again") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: {type(data).__name__} where a task of BIG-bench is wanted; fetch the file again")
    return data


def _distinct(examples: Any) -> list[Any]:
    """Examples without repetitions, as published."""
    if not isinstance(examples, list):
        return []
    return list({json.dumps(example): example for example in examples}.values())


def _leaf(name: str, path: Path, data: Mapping[str, Any]) -> Leaf:
    metrics = _metrics(path, data)
    examples = [_example(f"{path}: example {at}", one, data) for at, one in enumerate(_distinct(data["examples"]), 1)]
    if not examples:
        raise UserError(f"{path}: holds no example; fetch the file again")
    _check(path, examples, metrics)
    preferred = data.get("preferred_score")
    if preferred not in RANGES and preferred not in ABSENT:
        raise UserError(f"{path}: preferred_score {preferred!r} is none of {', '.join(sorted(RANGES))}; mend the file")
    low, high = RANGES.get(str(preferred), (0.0, 1.0))
    if preferred == "multiple_choice_grade":
        low = float(np.mean([np.mean(one.scores) for one in examples]))
    stop, pattern = data.get("stop_string"), data.get("output_regex")
    return Leaf(
        name=name,
        examples=examples,
        metrics=metrics - ABSENT,
        absent=metrics & ABSENT,
        preferred=str(preferred),
        low=low,
        high=high,
        prefix=str(data.get("task_prefix", "")),
        separator=data.get("few_shot_example_separator", "\n"),
        stop=stop,
        pattern=PATTERN if stop is None and pattern is None else pattern,
    )


def _metrics(path: Path, data: Mapping[str, Any]) -> frozenset[str]:
    metrics = frozenset(data.get("metrics") or [])
    known = TEXT | CHOICE | LIKELIHOOD | ABSENT
    if metrics - known:
        raise UserError(
            f"{path}: metric {' and '.join(map(repr, sorted(metrics - known)))} is not known; known: "
            f"{', '.join(sorted(known))}"
        )
    if not metrics - ABSENT:
        why = f"{', '.join(sorted(metrics))} is not there" if metrics else "it names no metric"
        raise UserError(f"{path}: nothing to measure: {why}; take the task away")
    if "multiple_choice_grade" in metrics:  # then its calibration too, as published
        metrics |= {"calibration_multiple_choice_brier_score", "expected_calibration_error"}
    return metrics


def _example(where: str, example: Any, data: Mapping[str, Any]) -> Example:
    """An example with prefixes, its choices appended in an order that depends on their number alone."""
    try:
        text, scored, target = example["input"], example.get("target_scores"), example.get("target")
        choices = {str(choice): float(score) for choice, score in (scored or {}).items()}
        if choices and data.get("append_choices_to_input", True):
            prefix = data.get("choice_prefix", "\n  choice: ")
            order = np.random.RandomState(SEED).permutation(len(choices))
            named = sorted(choices)
            text += "".join(prefix + named[at] for at in order)
        if target is None:
            target = [_best(choices)]
        targets = target if isinstance(target, list) else [target]
        if not targets or not all(isinstance(one, str) for one in targets):
            raise ValueError("'target' is no text and no list of texts")
        text = data.get("example_input_prefix", "\nQ: ") + text + data.get("example_output_prefix", "\nA: ")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        wanted = "wanted {input, target} or {input, target_scores: {choice: score}}"
        raise UserError(f"{where}: {wanted} ({type(error).__name__}: {error}); fetch the file again") from None
    return Example(text, targets, list(choices), list(choices.values()))


def _best(choices: Mapping[str, float]) -> str:
    """The right choice, the first of several."""
    if not choices or (len(choices) > 1 and len(set(choices.values())) == 1):
        raise ValueError("no target, and no choice is better than the others")
    return max(choices, key=choices.__getitem__)


def _check(path: Path, examples: Sequence[Example], metrics: frozenset[str]) -> None:
    for at, one in enumerate(examples, 1):
        if metrics & CHOICE and not one.choices:
            raise UserError(f"{path}: example {at}: no 'target_scores', which {sorted(metrics & CHOICE)[0]} needs")
        if "macro_f1" in metrics and sorted(one.scores) != [0.0] * (len(one.scores) - 1) + [1.0]:
            raise UserError(f"{path}: example {at}: macro_f1 needs one choice of score 1, all others 0")


def prompts(leaf: Leaf, shots: int, limit: int | None, seed: int = SEED) -> Iterator[str]:
    """What stands before the answer to each of the first `limit` examples; shots are any other examples.

    Raises:
        UserError: there are too few examples.
    """
    examples, rng = leaf.examples, np.random.RandomState(seed)
    if len(examples) <= shots:
        raise UserError(f"bigbench/{leaf.name}: {len(examples)} examples, for {shots} shots more are wanted; set fewer")
    for at, example in enumerate(examples[:limit]):
        shown = []
        if shots:
            drawn = rng.choice(len(examples) - 1, shots, replace=False)
            others = [examples[one if one < at else one + 1] for one in drawn]
            shown = [other.input + other.targets[rng.choice(len(other.targets))] for other in others]
        yield leaf.prefix + leaf.separator.join([*shown, example.input])

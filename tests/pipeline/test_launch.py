"""`finetune.launch`: several processes leave what one leaves, speak with one voice, and survive what befalls one."""

import fcntl
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import numpy as np
import pandas as pd
import psutil
import pytest
from safetensors.numpy import load_file
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from stages.model import launching
from stages.pipeline.errors import BusyError, one_line_errors
from stages.pipeline.tracking_store import EXPERIMENT
from tests.imports import ROOT
from tests.pipeline.killing import digests, write_inputs, write_params

WAIT = 120
"""Seconds after which a test gives up; nothing takes nearly as long."""

LAUNCH = "--nproc-per-node 2"
SETTINGS: dict[str, Any] = {
    "batch_size": 5,
    "micro_batch_size": 2,
    "neftune_alpha": 0,
    "precision": "fp32",
    "epochs": 6,
    "validations_per_epoch": 1,
    "early_stopping": False,
    "sample_prompts": 1,
    "save_every": 1,
}
"""Without noise, which differs from process to process, and long enough to be stopped amid the training. Five rows are
no even share for two processes, and of the last one of 21 a process has none."""


class Ended(NamedTuple):
    """What a process leaves whoever started it."""

    code: int
    printed: str
    said: list[str]


class Stage:
    """A folder in which finetune runs, as DVC starts it."""

    def __init__(self, folder: Path, inputs: Path, store: Path | None = None, **changes: Any) -> None:
        """`store`: an MLflow store to begin with; making one takes seconds."""
        self.folder = folder
        folder.mkdir()
        write_params(folder, **SETTINGS | changes)
        if store is not None:
            shutil.copyfile(store, folder / "mlflow.db")
        options = {"tokens": inputs / "data/tokens", "base-model": inputs / "data/base_model"}
        words = [word for name, path in options.items() for word in (f"--{name}", str(path))]
        self._command = [sys.executable, "-m", "stages.finetune", *words]
        self._process: subprocess.Popen[str] | None = None

    def run(self) -> Ended:
        """Run it to its end."""
        return self.start().wait()

    def start(self) -> "Stage":
        """Start it."""
        env = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_TRACKING", "DVC_"))}
        env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            self._command, cwd=self.folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        return self

    def wait(self) -> Ended:
        """Wait for its end; none of its processes is left."""
        assert self._process is not None
        started = self._started()
        printed, said = self._process.communicate(timeout=WAIT)
        assert not psutil.wait_procs(started, timeout=0)[1], "a process outlives its launcher"
        return Ended(self._process.returncode, printed, said.splitlines())

    def amid_training(self, step: int) -> "Stage":
        """Wait until it has saved so many steps."""
        assert self._process is not None
        end = time.monotonic() + WAIT
        while not any(int(path.name.removeprefix("step-")) >= step for path in self.states.glob("*/step-*")):
            assert self._process.poll() is None, self._process.communicate()[1]
            assert time.monotonic() < end, "does not get there"
            time.sleep(0.01)
        return self

    def send(self, number: signal.Signals, rank: int | None = None) -> "Stage":
        """Send a signal to the launching process or to one that trains."""
        assert self._process is not None
        if rank is None:
            self._process.send_signal(number)
        else:
            (process,) = (process for process in self._started() if _rank_of(process) == str(rank))
            process.send_signal(number)
        return self

    def end(self) -> None:
        """Kill what is left of it."""
        if self._process is not None and self._process.poll() is None:
            for process in [*self._started(), self._process]:
                process.kill()
            self._process.communicate()

    def _started(self) -> list[psutil.Process]:
        assert self._process is not None
        try:
            return list(psutil.Process(self._process.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return []

    @property
    def states(self) -> Path:
        """The folder of states."""
        return self.folder / ".checkpoints"


def _rank_of(process: psutil.Process) -> str | None:
    return process.environ().get("RANK") if "stages.finetune" in process.cmdline() else None


def losses(stage: Stage) -> pd.DataFrame:
    return pd.read_csv(stage.folder / "metrics/losses.csv")


def mlflow_runs(stage: Stage) -> dict[str, mlflow.entities.Run]:
    """Every run by its id."""
    client = mlflow.MlflowClient(f"sqlite:///{stage.folder}/mlflow.db")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}


def check_one_run(stage: Stage, known: Stage) -> None:
    """One MLflow run more than are known, with every validation of losses.csv once."""
    (run,) = (run for id, run in mlflow_runs(stage).items() if id not in mlflow_runs(known))
    assert run.info.status == "FINISHED"
    client = mlflow.MlflowClient(f"sqlite:///{stage.folder}/mlflow.db")
    for name in ("validation_loss", "train_loss"):
        points = client.get_metric_history(run.info.run_id, name)
        assert [point.step for point in points] == losses(stage)["step"].tolist()
    samples = client.list_artifacts(run.info.run_id, "samples")
    assert [file.path for file in samples] == [f"samples/step-{step:06d}.txt" for step in losses(stage)["step"]]


def complaints(ended: Ended) -> list[str]:
    """What was said but for the report of how training goes."""
    return [line for line in ended.said if not line.startswith((" ", "finetune: ", "warning: the base model's loss"))]


def shapes(said: list[str]) -> list[str]:
    """The beginnings of lines, without numbers."""
    return [re.sub(r"[0-9a-f.]+", "#", line)[:24] for line in said]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"), tiny_llama)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, inputs: Path) -> tuple[Stage, Ended]:
    """One process."""
    stage = Stage(tmp_path_factory.mktemp("alone") / "stage", inputs, launch=None)
    return stage, stage.run()


@pytest.fixture(scope="module", params=["none", "fsdp"])
def together(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, inputs: Path, alone: tuple[Stage, Ended]
) -> tuple[Stage, Ended]:
    """Two processes that nothing disturbs."""
    folder = tmp_path_factory.mktemp("together") / "stage"
    stage = Stage(folder, inputs, alone[0].folder / "mlflow.db", launch=LAUNCH, sharding=request.param)
    return stage, stage.run()


@pytest.fixture
def stage(request: pytest.FixtureRequest, tmp_path: Path, inputs: Path, alone: tuple[Stage, Ended]) -> Iterator[Stage]:
    """Two processes that are to be disturbed."""
    made = Stage(tmp_path / "stage", inputs, alone[0].folder / "mlflow.db", launch=LAUNCH, **request.param)
    yield made
    made.end()


def test_two_processes_leave_what_one_leaves(together: tuple[Stage, Ended], alone: tuple[Stage, Ended]) -> None:
    (two, ended), (one, expected) = together, alone
    assert ended.code == expected.code == 0, ended.said
    assert digests(two.folder).keys() == digests(one.folder).keys()
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-5)
    assert losses(two)["tokens_seen"].tolist() == losses(one)["tokens_seen"].tolist()
    found, sought = (pd.read_parquet(stage.folder / "data/validation_losses.parquet") for stage in (two, one))
    pd.testing.assert_frame_equal(found, sought, rtol=1e-5)
    weights, theirs = (load_file(stage.folder / "data/checkpoint/model.safetensors") for stage in (two, one))
    assert weights.keys() == theirs.keys()
    for name, weight in weights.items():
        np.testing.assert_allclose(weight, theirs[name], rtol=0, atol=1e-3)
    assert not list(two.states.glob("*")), "a training that has ended needs no state"


def test_they_speak_with_one_voice(together: tuple[Stage, Ended], alone: tuple[Stage, Ended]) -> None:
    (two, ended), (one, expected) = together, alone
    assert ended.printed == expected.printed == ""
    assert shapes(ended.said) == shapes(expected.said)
    assert complaints(ended) == []
    check_one_run(two, one)


@pytest.mark.parametrize("stage", [{"sharding": "fsdp"}], indirect=True)
@pytest.mark.parametrize("together", ["fsdp"], indirect=True)
def test_one_is_killed_then_all_are_stopped_and_they_go_on_to_the_same_bytes(
    stage: Stage, together: tuple[Stage, Ended], alone: tuple[Stage, Ended]
) -> None:
    killed = stage.start().amid_training(3).send(signal.SIGKILL, rank=0).wait()
    assert killed.code == 2
    assert complaints(killed) == [
        "error: finetune: process 0 died (SIGKILL); run `dvc repro` to go on from the last state"
    ]
    assert digests(stage.folder).keys() == {"metrics/losses.csv"}, "nothing half made"

    (lock,) = stage.states.glob("*/lock")
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        print(os.getpid(), file=file, flush=True)
        second = stage.run()
    assert second.code == 75
    assert complaints(second) == [
        f"error: finetune: process {os.getpid()} trains with these parameters and data already; wait for it or stop it"
    ]

    stopped = stage.start().amid_training(9).send(signal.SIGTERM).wait()
    assert stopped.code == 130
    assert complaints(stopped) == ["error: finetune: stopped; run `dvc repro` to go on from the last state"]

    resumed = stage.run()
    assert resumed.code == 0, resumed.said
    assert any(line.startswith("  goes on after step ") for line in resumed.said)
    assert digests(stage.folder) == digests(together[0].folder)
    check_one_run(stage, alone[0])


# torchrun alone, with processes that do nothing but end in some way

WORKER = """
import os
import signal
import sys
import time
from pathlib import Path
from stages.pipeline.errors import BusyError, LostError, StoppedError, UserError, one_line_errors

rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])

def stop(number, frame):
    raise LostError("the others are gone")

signal.signal(signal.SIGTERM, stop)
Path(f"ready{rank}").touch()
while len(list(Path().glob("ready*"))) < world:
    time.sleep(0.01)

def others_wait():
    time.sleep(60)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

with one_line_errors():
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where workers run; temporary files go below it."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "temporary").mkdir()
    return tmp_path


def start_launch(folder: Path, work: str, options: str, arguments: list[str]) -> ForkProcess:
    """Launch WORKER and then `work` from a process forked from this one, whose signal handlers torchrun replaces."""
    (folder / "worker.py").write_text(WORKER + textwrap.indent(work, "    "))

    def run() -> None:
        os.chdir(folder)
        for number, name in ((1, "printed"), (2, "said")):
            os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        with one_line_errors():
            launching.launch(options, "worker", arguments)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def ended(process: ForkProcess, folder: Path) -> tuple[int | None, list[str]]:
    """Exit code, and what was said on stderr; nothing is left of it, and nothing printed."""
    process.join(WAIT)
    assert not list((folder / "temporary").iterdir())
    assert (folder / "printed").read_text() == ""
    return process.exitcode, (folder / "said").read_text().splitlines()


GONE = "run `dvc repro` to go on from the last state"


@pytest.mark.parametrize(
    ("work", "code", "said"),
    [
        ("raise UserError('a mistake')", 2, "a mistake"),
        ("raise UserError('of one\\nin two lines') if rank == 1 else others_wait()", 2, "of one in two lines"),
        ("raise FileNotFoundError(2, 'No such file', 'x') if rank == 1 else others_wait()", 2, "x: no such file"),
        ("raise BusyError('busy') if rank == 0 else others_wait()", 75, "busy"),
        ("raise StoppedError('stopped')", 130, "stopped"),
        ("raise LostError('another is gone')", 2, "another is gone"),
        ("die() if rank == 1 else others_wait()", 2, f"finetune: process 1 died (SIGKILL); {GONE}"),
        ("sys.exit(3) if rank == 0 else others_wait()", 2, f"finetune: process 0 died (exit code 3); {GONE}"),
    ],
)
def test_the_cause_is_said_once_and_no_process_is_left(folder: Path, work: str, code: int, said: str) -> None:
    process = start_launch(folder, work, LAUNCH, [])
    assert ended(process, folder) == (code, [f"error: {said}"])


def test_that_another_is_gone_is_not_taken_for_the_cause(tmp_path: Path) -> None:
    """Also where torchrun finds both at once, in the order of their numbers."""
    failures = {}
    for rank, (code, message) in enumerate([(69, "another is gone"), (75, "busy")]):
        (tmp_path / str(rank)).write_text(json.dumps({"message": message, "timestamp": 1}))
        failures[rank] = ProcessFailure(rank, pid=1, exitcode=code, error_file=str(tmp_path / str(rank)))
    cause = launching._cause(ChildFailedError("worker", failures))
    assert (type(cause), str(cause)) == (BusyError, "busy")


def test_a_mistake_of_ours_keeps_its_traceback(folder: Path) -> None:
    process = start_launch(folder, "1 / 0 if rank == 0 else others_wait()", LAUNCH, [])
    code, said = ended(process, folder)
    assert code == 2
    assert said[0] == "Traceback (most recent call last):"
    assert said[-2:] == [
        "ZeroDivisionError: division by zero",
        f"error: finetune: process 0 died (exit code 1); {GONE}",
    ]


def test_told_to_stop_it_tells_them_and_waits(folder: Path) -> None:
    work = "\n".join(
        [
            "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.2), Path(f'saved{rank}').touch(), sys.exit(130)))",
            "Path(f'at{rank}').touch()",
            "others_wait()",
        ]
    )
    process = start_launch(folder, work, LAUNCH, [])
    while len(list(folder.glob("at?"))) < 2:
        time.sleep(0.01)
    process.terminate()
    assert ended(process, folder) == (130, [f"error: finetune: stopped; {GONE}"])
    assert len(list(folder.glob("saved?"))) == 2


def test_processes_get_the_arguments_and_their_share_of_the_cores(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)))
    work = "Path(f'{rank} of {world}').write_text(' '.join([*sys.argv[1:], os.environ['OMP_NUM_THREADS']]))"
    process = start_launch(folder, work, "--nproc-per-node=3 --max-restarts 0", ["--params", "a b"])
    assert ended(process, folder) == (0, [])
    assert {path.name: path.read_text() for path in folder.glob("* of *")} == {
        f"{rank} of 3": "--params a b 2" for rank in range(3)
    }


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--nproc-per-node two", "Unsupported nproc_per_node value: two"),
        ("--nproc-per-node 0", "it wants options alone, and one process or more"),
        ("--processes 2", ": unrecognized arguments: --processes"),
        ("2", "it wants options alone, and one process or more"),
        ("--nproc-per-node 2 -m stages.format", "it wants options alone, and one process or more"),
        ('--nproc-per-node "2', "No closing quotation"),
        ("--nnodes 0", "min_nodes must be > 0"),
    ],
)
def test_options_that_torchrun_does_not_take_are_said(folder: Path, options: str, reason: str) -> None:
    process = start_launch(folder, "raise UserError('it was started')", options, [])
    code, (said,) = ended(process, folder)
    assert code == 2
    assert said.startswith(f"error: params.yaml: finetune.launch: torchrun does not take '{options}': ")
    assert reason in said


def test_what_torchrun_finds_when_it_starts_is_said(folder: Path) -> None:
    process = start_launch(folder, "", "--rdzv-backend carrier-pigeon", [])
    code, (said,) = ended(process, folder)
    assert code == 2
    assert said.startswith("error: finetune: torchrun --rdzv-backend carrier-pigeon: ")
    assert "carrier-pigeon" in said.removeprefix("error: finetune: torchrun --rdzv-backend carrier-pigeon")

"""Fine-tunings in MLflow: one run each, however often they were stopped, and none of them needs it."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run

from stages.pipeline.errors import StoppedError
from stages.pipeline.tracking import FinetuneRun
from stages.pipeline.tracking_files import Files
from stages.pipeline.tracking_store import EXPERIMENT, FINETUNE_TAG, TRAINING_TAG
from tests.conftest import ROOT

SUMMARY = {
    "best_epoch": 1.0, "first_validation_loss": 2.0, "best_validation_loss": 0.5, "overfit_epoch": 1.0,
    "overfit_step": 5,
}  # fmt: skip

SERVER = """
import os, sys
os.environ["_MLFLOW_SERVER_FILE_STORE"], os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = sys.argv[1:]
from mlflow.server import app
from werkzeug.serving import make_server

server = make_server("127.0.0.1", 0, app, threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without a run; to make one takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
    return folder / "mlflow.db"


class Root:
    """A repository as seen by tracking: a store, parameters and what finetune leaves."""

    def __init__(self, folder: Path, store: Path) -> None:
        self.folder = folder
        (folder / "metrics").mkdir(parents=True)
        shutil.copyfile(store, folder / "mlflow.db")
        shutil.copyfile(ROOT / "params.yaml", folder / "params.yaml")
        (folder / "metrics/finetune.json").write_text(json.dumps(SUMMARY))

    def run(self, fingerprint: str = "f", *, uri: str | None = None, quiet: bool = False) -> FinetuneRun:
        """The run of a training, as a process opens it; `uri` is that of a team's store."""
        os.environ["DVC_ROOT"] = str(self.folder)
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        if uri is not None:
            os.environ["MLFLOW_TRACKING_URI"] = uri
        return FinetuneRun(Files.under(self.folder), fingerprint, quiet)

    def finish(self, run: FinetuneRun) -> None:
        """The end of a training."""
        (self.folder / "metrics/losses.csv").write_text("step\n0\n")
        run.finish({"tokens_per_second": 12.5})

    @property
    def runs(self) -> list[Run]:
        """All runs of the store, in the order in which they began."""
        client = mlflow.MlflowClient(self.uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        found = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"]) if experiment else []
        return list(found)

    @property
    def uri(self) -> str:
        """Of the store."""
        return f"sqlite:///{self.folder}/mlflow.db"

    def points(self, run: Run, name: str = "validation_loss") -> list[tuple[int, float]]:
        """Step and value of each point of a metric."""
        history = mlflow.MlflowClient(self.uri).get_metric_history(run.info.run_id, name)
        return [(point.step, point.value) for point in history]


@pytest.fixture
def make_root(tmp_path: Path, empty_store: Path) -> Iterator[Callable[[str], Root]]:
    """Roots by their names; what MLflow leaves in this process is undone."""
    before = dict(os.environ)
    yield lambda name: Root(tmp_path / name, empty_store)
    mlflow.set_tracking_uri("")
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def root(make_root: Callable[[str], Root]) -> Root:
    return make_root("root")


def row(step: int) -> Mapping[str, float]:
    return {"step": step, "validation_loss": 1 / (step + 1), "train_loss": 2 / (step + 1)}


def stop_after(run: FinetuneRun, *steps: int, error: Exception | None = None) -> None:
    """Validate at these steps, and be stopped."""
    error = error or StoppedError("finetune: stopped")
    with suppress(type(error)), run:
        for step in steps:
            run.log_losses(row(step))
        raise error


def test_a_training_is_a_run_with_its_parameters_losses_and_summary(root: Root) -> None:
    with root.run() as run:
        run.log_losses(row(0))
        run.log_losses(row(5))
        run.log_samples(5, "PROMPT why?")
        root.finish(run)
    (found,) = root.runs
    assert found.info.status == "FINISHED"
    assert root.points(found) == [(0, 1.0), (5, 1 / 6)]
    assert root.points(found, "onset") == [(5, 2.0), (5, 0.5)]
    assert found.data.metrics["onset"] == 0.5
    assert (found.data.metrics["best_epoch"], found.data.metrics["tokens_per_second"]) == (1.0, 12.5)
    assert found.data.params["finetune.optimizer"] == "AdamW"
    assert not any(name.startswith("judge.") for name in found.data.params), "which it does not depend on"
    assert FINETUNE_TAG in found.data.tags
    paths = {file.path for file in mlflow.MlflowClient(root.uri).list_artifacts(found.info.run_id)}
    assert paths == {"samples", "losses.csv"}


def test_a_stopped_training_goes_on_in_its_run_and_no_point_is_there_twice(
    root: Root, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_after(root.run(), 0, 5, 10)
    assert [run.info.status for run in root.runs] == ["KILLED"]
    stop_after(root.run(), 0, 5, 10, 15, error=ZeroDivisionError())
    assert [run.info.status for run in root.runs] == ["FAILED"]
    for last in (15, 20):
        with root.run() as run:
            for step in range(0, last + 1, 5):
                run.log_losses(row(step))
            root.finish(run)
            if last == 15:  # as when it is killed: neither an end nor another status
                run.alive = False
    (found,) = root.runs
    assert found.info.status == "FINISHED"
    for name in ("validation_loss", "train_loss"):
        assert root.points(found, name) == [(step, row(step)[name]) for step in (0, 5, 10, 15, 20)]
    assert root.points(found, "best_epoch") == [(0, 1.0)]
    assert capsys.readouterr().err == ""


def test_the_same_training_again_is_the_same_run(root: Root) -> None:
    """As when DVC was killed before it recorded the first."""
    for _ in range(2):
        with root.run() as run:
            run.log_losses(row(0))
            root.finish(run)
    stop_after(root.run("another"), 0)
    assert [root.points(run) for run in root.runs] == [[(0, 1.0)]] * 2
    assert [root.points(run, "best_epoch") for run in root.runs] == [[(0, 1.0)], []]
    first, other = (run.data.tags[TRAINING_TAG] for run in root.runs)
    assert first != other


def test_two_roots_with_one_store_have_a_run_each(make_root: Callable[[str], Root]) -> None:
    one, two = make_root("one"), make_root("two")
    for root in (one, two):
        stop_after(root.run(uri=one.uri), 0)
    with two.run(uri=one.uri) as run:
        run.log_losses(row(0))
        run.log_losses(row(5))
    assert [(run.info.status, len(one.points(run))) for run in one.runs] == [("KILLED", 1), ("FINISHED", 2)]
    assert two.runs == []
    assert [(root.folder / "mlflow.db.lock").exists() for root in (one, two)] == [True, False], "not one at a time"


def test_a_store_in_a_folder_that_is_not_there_is_made(root: Root) -> None:
    stop_after(root.run(uri=f"sqlite:///{root.folder}/new/of%20all/runs.db"), 0)
    assert sorted(path.name for path in (root.folder / "new/of all").iterdir()) == ["runs.db", "runs.db.lock"]


def test_of_several_processes_one_has_the_run(root: Root) -> None:
    with root.run(quiet=True) as run:
        run.log_losses(row(0))
        root.finish(run)
    assert root.runs == []


# ---- MLflow is dead


def test_a_server_that_dies_costs_a_warning_and_the_next_start_makes_up_for_it(
    root: Root, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    command = [sys.executable, "-c", SERVER, root.uri, str(root.folder / "artifacts")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        uri = f"http://127.0.0.1:{int(server.stdout.readline())}"
        with root.run(uri=uri) as run:
            run.log_losses(row(0))
            server.kill()
            server.wait()
            for step in (5, 10):
                run.log_losses(row(step))
            run.log_samples(10, "PROMPT why?")
            root.finish(run)
    said = capsys.readouterr().err
    assert said.startswith("warning: MLflow is left out (")
    assert said.count("\n") == 1
    assert [root.points(run) for run in root.runs] == [[(0, 1.0)]]
    with root.run() as run:
        for step in (0, 5, 10):
            run.log_losses(row(step))
        root.finish(run)
    (found,) = root.runs
    assert found.info.status == "FINISHED"
    assert [step for step, _ in root.points(found)] == [0, 5, 10]


@pytest.mark.parametrize("uri", ["http://127.0.0.1:{port}", "nonsense://"])
def test_a_server_that_never_answers_costs_a_warning(
    root: Root, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    """One that hangs, and none."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    hanging = socket.create_server(("127.0.0.1", 0))
    with hanging, root.run(uri=uri.format(port=hanging.getsockname()[1])) as run:
        run.log_losses(row(0))
        root.finish(run)
    said = capsys.readouterr().err
    assert said.startswith("warning: MLflow is left out (")
    assert said.count("\n") == 1


def test_a_stopped_training_is_not_finished_where_mlflow_came_back(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the training would get another one."""

    def fails(*_: object, **__: object) -> None:
        raise ConnectionError("gone for a moment")

    with monkeypatch.context() as gone:
        gone.setattr(mlflow.MlflowClient, "log_batch", fails)
        stop_after(root.run(), 0)
    with root.run() as run:
        run.log_losses(row(0))
    assert [(run.info.status, len(root.points(run))) for run in root.runs] == [("FINISHED", 1)]

"""`sync`: files replayed into a store, once; and what bad servers cost."""

import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from typer.testing import CliRunner

from stages.experiment import app
from stages.experiments.sync import sync
from stages.pipeline import tracking_runs
from stages.pipeline.tracking import FinetuneRun, find_runs, log_benchmark, log_judge
from stages.pipeline.tracking_files import Files
from stages.pipeline.tracking_store import StoreError
from tests.pipeline.projects import commit, git, set_parameter
from tests.pipeline.stores import artifacts_of, make_store, models_of, points_of, runs_of, serving


@pytest.fixture
def project(
    tmp_path: Path, copy_of_finished: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A finished project with an empty store, which this process is in."""
    folder = copy_of_finished(tmp_path / "project")
    make_store(folder)
    before = dict(os.environ)
    monkeypatch.chdir(folder)
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        os.environ.pop(name, None)
    yield folder
    mlflow.set_tracking_uri("")
    os.environ.clear()
    os.environ.update(before)


def uri(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


def digests(run: Any) -> list[str]:
    return [one.dataset.digest for one in run.inputs.dataset_inputs]


def outcomes(*places: str) -> dict[str, str]:
    return dict(sync(places))


def test_an_empty_store_gets_what_the_run_wrote_and_nothing_twice(project: Path, finished: Path) -> None:
    assert outcomes("workspace", "HEAD") == {"workspace": "written", "HEAD": "was there"}
    assert outcomes("HEAD", "workspace") == {"HEAD": "was there", "workspace": "was there"}
    for kind in ("finetune", "judge"):
        (was,), (now,) = runs_of(uri(finished), kind), runs_of(uri(project), kind)
        assert now.info.status == "FINISHED"
        assert now.data.params == was.data.params
        was.data.metrics.pop("tokens_per_second", None)  # which no file of the experiment has
        assert now.data.metrics == pytest.approx(was.data.metrics, rel=1e-4)
        same = {name for name, value in was.data.tags.items() if now.data.tags.get(name) == value}
        assert {"kind", "data.train", "environment.torch"} <= same
        assert artifacts_of(uri(project), now) == artifacts_of(uri(finished), was) - {"samples"}
        assert digests(now) == digests(was) != []
    (run,), losses = runs_of(uri(project), "finetune"), pd.read_csv("metrics/losses.csv")
    assert points_of(uri(project), run) == list(zip(losses["step"], losses["validation_loss"], strict=True))
    (judge,) = runs_of(uri(project), "judge")
    assert judge.data.tags["mlflow.parentRunId"] == run.info.run_id
    assert "judge.rubric" in judge.data.params
    assert any(name.startswith("score.") for name in judge.data.metrics)
    assert [(run.kind, run.id) for run in find_runs(Path("metrics/finetune.json"))] == [
        ("finetune", run.info.run_id),
        ("judge", judge.info.run_id),
    ]


def test_weights_are_not_copied(project: Path) -> None:
    weights = Path("data/checkpoint/model.safetensors")
    assert outcomes("workspace") == {"workspace": "written"}
    (model,) = models_of(uri(project))
    linked = Path(model.artifact_location.removeprefix("file://")) / "model/model.safetensors"
    assert linked.samefile(weights)


def test_a_revision_is_read_from_caches(project: Path) -> None:
    set_parameter(project, "judge.confidence", 0.5)
    later = commit(project, "another confidence, not run")
    shutil.rmtree("data")
    assert outcomes("HEAD~1") == {"HEAD~1": "written"}
    (judge,) = runs_of(uri(project), "judge")
    assert judge.data.params["judge.confidence"] == "0.95"
    assert {"review.html", "scores.json"} <= artifacts_of(uri(project), judge)
    assert judge.data.tags["git.commit"] == git(project, "rev-parse", f"{later}~1")
    (model,) = models_of(uri(project))
    assert model.tags["weights.where"].endswith(judge.data.tags["git.commit"])
    refused = outcomes("HEAD")["HEAD"]
    assert refused == "skipped: not as in dvc.lock: judge.confidence; run `dvc repro`, or `dvc checkout`"


def test_files_of_two_experiments_make_no_row(project: Path) -> None:
    Path("data/review.html").write_text("of another experiment")
    assert "not as in dvc.lock: data/review.html" in outcomes("workspace")["workspace"]
    assert runs_of(uri(project)) == []


def test_what_cannot_be_read_is_skipped_and_the_others_are_written(project: Path) -> None:
    shutil.rmtree(".dvc/cache")
    done = CliRunner().invoke(app, ["sync", "HEAD", "workspace", "nonsense"])
    assert done.exit_code == 1
    assert "3 experiments: 1 written, 2 skipped" in done.output
    assert len(runs_of(uri(project), "judge")) == 1


def test_the_same_result_judged_again_is_the_same_row(project: Path) -> None:
    assert outcomes("workspace") == {"workspace": "written"}
    log_judge(Files())
    (judge,) = runs_of(uri(project), "judge")
    set_parameter(project, "judge.confidence", 0.5)
    log_judge(Files())
    assert len(runs_of(uri(project), "judge")) == 2
    assert {run.data.tags["mlflow.parentRunId"] for run in runs_of(uri(project), "judge")} == {
        judge.data.tags["mlflow.parentRunId"]
    }


def test_figures_of_benchmarks_stand_in_the_row_of_judge_too(project: Path) -> None:
    Path("metrics/benchmark.json").write_text("{}")
    log_benchmark(Files(), {"benchmark/one/acc": 0.25})
    log_judge(Files())
    set_parameter(project, "judge.confidence", 0.5)
    log_judge(Files())
    set_parameter(project, "benchmark.limit", 7)
    log_judge(Files())
    log_benchmark(Files(), {"benchmark/one/acc": 0.5})
    judged = runs_of(uri(project), "judge")
    assert [run.data.metrics["benchmark/one/acc"] for run in judged] == [0.25, 0.25, 0.5]
    assert all("score" in run.data.metrics and "best_epoch" in run.data.metrics for run in judged)


def test_half_a_row_is_completed(project: Path) -> None:
    assert outcomes("workspace") == {"workspace": "written"}
    client = mlflow.MlflowClient(uri(project))
    (judge,) = runs_of(uri(project), "judge")
    mark, parent = judge.data.tags["onset.row"], judge.data.tags["mlflow.parentRunId"]
    client.delete_run(judge.info.run_id)
    begun = client.create_run(judge.info.experiment_id, tags={"onset.row": mark, "kind": "judge"})
    client.log_metric(begun.info.run_id, "score", judge.data.metrics["score"])
    client.log_param(begun.info.run_id, "judge.seed", judge.data.params["judge.seed"])
    assert outcomes("workspace") == {"workspace": "written"}
    (whole,) = runs_of(uri(project), "judge")
    assert whole.info.run_id == begun.info.run_id
    assert (whole.data.metrics, whole.data.params) == (judge.data.metrics, judge.data.params)
    assert len(points_of(uri(project), whole, "score")) == 1
    assert parent


# ---- servers


class Failing(BaseHTTPRequestHandler):
    """Answers 500 to everything."""

    def do_GET(self) -> None:
        self.send_error(500)

    do_POST = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


@pytest.fixture(params=["refuses", "hangs", "answers 500"])
def bad_server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    if request.param == "answers 500":
        server = HTTPServer(("127.0.0.1", 0), Failing)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        server.server_close()
        return
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        if request.param == "refuses":
            listening.close()
        yield f"http://127.0.0.1:{port}"


def test_a_bad_server_costs_a_warning_and_sync_makes_up_for_it(
    project: Path, bad_server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    os.environ["MLFLOW_TRACKING_URI"] = bad_server
    with FinetuneRun(Files(), "f") as run:
        run.log_losses({"step": 0, "validation_loss": 1.0})
        run.finish({})
    log_judge(Files())
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert all(line.startswith("warning: MLflow is left out (") and "sync" in line for line in said)
    assert find_runs(Path("metrics/finetune.json")) == []
    with pytest.raises(StoreError, match="MLFLOW_TRACKING_URI"):
        outcomes("workspace")
    del os.environ["MLFLOW_TRACKING_URI"]
    assert outcomes("workspace") == {"workspace": "written"}
    assert len(runs_of(uri(project))) == 2


def test_a_server_that_dies_while_it_is_written_to(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a training, and in judge's row: both runs are completed, artifacts going through the server."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    store, artifacts = uri(project), tmp_path / "artifacts"
    losses: list[Any] = pd.read_csv("metrics/losses.csv").to_dict("records")
    with serving(store, artifacts) as (address, server):
        os.environ["MLFLOW_TRACKING_URI"] = address
        with FinetuneRun(Files(), "f") as run:
            run.log_losses(losses[0])
            server.kill()
            server.wait()
            for row in losses[1:]:
                run.log_losses(row)
            run.finish({})
    assert [(run.info.status, len(points_of(store, run))) for run in runs_of(store)] == [("RUNNING", 1)]
    with serving(store, artifacts) as (address, server), monkeypatch.context() as dying:
        os.environ["MLFLOW_TRACKING_URI"] = address

        def die(*_: object) -> None:
            server.kill()
            server.wait()
            raise ConnectionError("the server died")

        dying.setattr(tracking_runs, "answers_table", die)
        log_judge(Files())
    assert [run.info.status for run in runs_of(store, "judge")] == ["RUNNING"]
    assert capsys.readouterr().err.count("warning: MLflow is left out") == 2
    with serving(store, artifacts) as (address, _):
        os.environ["MLFLOW_TRACKING_URI"] = address
        assert outcomes("workspace") == {"workspace": "written"}
        assert outcomes("workspace") == {"workspace": "was there"}
        assert {"review.html", "scores.json"} <= artifacts_of(address, *runs_of(address, "judge"))
        (model,) = models_of(address)
        assert model.tags["mlflow.model.isExternal"] == "true"
    (training,), (judge,) = runs_of(store, "finetune"), runs_of(store, "judge")
    assert [step for step, _ in points_of(store, training)] == [row["step"] for row in losses]
    assert judge.info.status == training.info.status == "FINISHED"
    assert list(artifacts.rglob("*.safetensors")) == [], "weights are not sent unasked"

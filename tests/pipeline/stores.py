"""MLflow stores for tests: empty ones that are quickly there, servers of them, and what they hold."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import mlflow
from mlflow.entities import Run

from stages.pipeline.tracking_store import EXPERIMENT

SERVER = """
import os, sys
os.environ["_MLFLOW_SERVER_FILE_STORE"], os.environ["_MLFLOW_SERVER_ARTIFACT_DESTINATION"] = sys.argv[1:]
os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = "mlflow-artifacts:/"
os.environ["_MLFLOW_SERVER_SERVE_ARTIFACTS"] = "true"
from mlflow.server import app
from werkzeug.serving import make_server

server = make_server("127.0.0.1", 0, app, threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
"""
"""What `mlflow server` serves, in one process; artifacts go through it."""


@cache
def _empty_store() -> Path:
    """A store without a run; to make one takes seconds."""
    path = Path(mkdtemp()) / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


def make_store(folder: Path) -> str:
    """An empty store in a folder; its URI."""
    shutil.copyfile(_empty_store(), folder / "mlflow.db")
    return f"sqlite:///{folder}/mlflow.db"


@contextmanager
def serving(store: str, artifacts: Path) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """A server of a store: its address and process."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, store, str(artifacts)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"},
    ) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}", server
        finally:
            server.kill()


def runs_of(store: str, kind: str | None = None) -> list[Run]:
    """Runs of a store, or those of a kind, in the order in which they began."""
    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    found = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"]) if experiment else []
    return [run for run in found if kind in (None, run.data.tags["kind"])]


def points_of(store: str, run: Run, name: str = "validation_loss") -> list[tuple[int, float]]:
    """Step and value of each point of a metric."""
    return [(point.step, point.value) for point in mlflow.MlflowClient(store).get_metric_history(run.info.run_id, name)]


def artifacts_of(store: str, run: Run) -> set[str]:
    """Names of a run's artifacts."""
    return {file.path for file in mlflow.MlflowClient(store).list_artifacts(run.info.run_id)}


def models_of(store: str) -> list[Any]:
    """All logged models."""
    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return list(client.search_logged_models([experiment.experiment_id])) if experiment else []

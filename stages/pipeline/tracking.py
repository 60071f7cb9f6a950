"""MLflow as a mirror of the files: no stage needs it, and a dead server costs a warning.

finetune opens a run; each execution of judge is a child of it that holds everything: one complete row an experiment;
benchmarks, where any are asked for, are another.
This module is no dependency of any stage in dvc.yaml, since it cannot change an artifact.
"""

import fcntl
import hashlib
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from stages.pipeline.errors import StoppedError
from stages.pipeline.files import dvc_root, sha256_of
from stages.pipeline.progress import say

EXPERIMENT = "onset"
FINETUNE_TAG = "onset.finetune_sha256"
"""Tag by which a judge run finds the finetune run it belongs to: the hash of metrics/finetune.json."""
TRAINING_TAG = "onset.training"
"""Tag by which a training finds the run that it was stopped in: the fingerprint of its state, and where it runs."""


def _settings_for_a_mirror() -> None:
    """Set before MLflow is imported: no telemetry, and a server that is down is given up on after seconds."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")


@contextmanager
def _one_at_a_time(root: Path) -> Iterator[None]:
    """Processes that make the schema of a new SQLite file together break it."""
    with (root / "mlflow.db.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _open_experiment() -> None:
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    root = dvc_root()
    mlflow.set_tracking_uri(uri or f"sqlite:///{root.resolve()}/mlflow.db")
    if uri:
        mlflow.set_experiment(EXPERIMENT)
        return
    with _one_at_a_time(root):
        if mlflow.get_experiment_by_name(EXPERIMENT) is None:
            mlflow.create_experiment(EXPERIMENT, artifact_location=(root / "mlartifacts").resolve().as_uri())
        mlflow.set_experiment(EXPERIMENT)


def _flat(path: Path) -> dict[str, str]:
    sections = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {
        f"{section}.{name}": str(value)
        for section, values in sections.items()
        if isinstance(values, dict)
        for name, value in values.items()
    }


def _tags(kind: str, data: Mapping[str, Path]) -> dict[str, str]:
    tags = {"kind": kind}
    tags |= {f"data.{name}": sha256_of(path)[:16] for name, path in data.items() if path.exists()}
    names = {"DVC_EXP_NAME": "dvc.experiment", "DVC_EXP_BASELINE_REV": "dvc.baseline", "DVC_STAGE": "dvc.stage"}
    return tags | {tag: os.environ[name] for name, tag in names.items() if os.environ.get(name)}


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if isinstance(value, (int, float))}


class Mirror:
    """A run that never fails its stage: after the first error it says so and stays silent."""

    def __init__(self) -> None:
        self._alive = True

    def _try(self, action: Callable[[], object]) -> None:
        if not self._alive:
            return
        try:
            action()
        except Exception as error:  # MLflow raises whatever its store, its client or the network raise
            self._alive = False
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            say(f"warning: MLflow is left out ({reason[:160]}); files are complete")


class FinetuneRun(Mirror):
    """The run of one fine-tuning, by its fingerprint; `with` closes it as finished, failed or killed.

    A training that goes on after it was stopped goes on in its run, and a point that is there is not logged again.
    """

    def __init__(self, params: Path, data: Mapping[str, Path], fingerprint: str, quiet: bool = False) -> None:
        """`quiet`: another process has the run, and this one logs nothing."""
        super().__init__()
        self._alive = not quiet
        self._is_open = False
        self._params, self._data = params, data
        here = hashlib.sha256(f"{socket.gethostname()} {dvc_root().resolve()}".encode()).hexdigest()
        self._training = f"{fingerprint}@{here[:8]}"  # a teammate may train the same, and has a run of their own
        self._logged: set[int] = set()
        self._summarized = False

    def __enter__(self) -> Self:
        self._try(self._start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = "FINISHED" if kind is None else "KILLED" if isinstance(error, StoppedError) else "FAILED"

        def end() -> None:
            import mlflow

            mlflow.end_run(status)

        if self._alive:
            self._try(end)
        elif self._is_open:  # left to itself MLflow would end it as finished
            with suppress(Exception):
                end()

    def _start(self) -> None:
        _settings_for_a_mirror()
        import mlflow

        _open_experiment()
        found = mlflow.search_runs(
            filter_string=f"tags.`{TRAINING_TAG}` = '{self._training}' and attributes.status != 'FINISHED'",
            max_results=1,
            output_format="list",
        )
        if found:
            run_id = found[0].info.run_id
            mlflow.start_run(run_id)
            self._is_open = True
            points = mlflow.MlflowClient().get_metric_history(run_id, "validation_loss")
            self._logged = {point.step for point in points}
            self._summarized = "best_epoch" in found[0].data.metrics
            return
        name = os.environ.get("DVC_EXP_NAME")
        tags = _tags("finetune", self._data) | {TRAINING_TAG: self._training}
        mlflow.start_run(run_name=f"finetune {name}" if name else "finetune", tags=tags)
        self._is_open = True
        mlflow.log_params(_flat(self._params))

    def log_losses(self, row: Mapping[str, float]) -> None:
        """One validation: every figure of the row, at its step."""
        step = int(row["step"])

        def log() -> None:
            import mlflow

            mlflow.log_metrics(_numbers(row), step=step)

        if step not in self._logged:
            self._try(log)
            self._logged.add(step)

    def log_samples(self, step: int, text: str) -> None:
        """Sample answers at a validation."""

        def log() -> None:
            import mlflow

            mlflow.log_text(text, f"samples/step-{step:06d}.txt")

        self._try(log)

    def finish(self, metrics: Path, summary: Mapping[str, Any], files: Sequence[Path]) -> None:
        """The summary, and files to keep; `metrics` is the file whose hash marks this run for judge."""

        def log() -> None:
            import mlflow

            if not self._summarized:
                mlflow.log_metrics(_numbers(summary))
            mlflow.set_tag(FINETUNE_TAG, hashlib.sha256(metrics.read_bytes()).hexdigest())
            for file in files:
                mlflow.log_artifact(str(file))

        self._try(log)


class JudgeRun(Mirror):
    """One complete row: all parameters, the finetune summary and the scores, as a child of the finetune run."""

    def log(
        self,
        *,
        params: Path,
        data: Mapping[str, Path],
        finetune_metrics: Path,
        summary: Mapping[str, Any],
        table: Any,
        files: Sequence[Path],
    ) -> None:
        """Write the whole run."""

        def write() -> None:
            _settings_for_a_mirror()
            import mlflow

            _open_experiment()
            with _child_run("judge", params, data, finetune_metrics) as parent:
                mlflow.log_metrics(_numbers(summary))
                mlflow.log_table(table, "scores.json")
                for file in files:
                    mlflow.log_artifact(str(file))
            if parent and "score" in summary:  # without a readable verdict there is none
                mlflow.MlflowClient().log_metric(parent, "judge_score", float(summary["score"]))

        self._try(write)

    def log_reviews(self, responses: Path, figures: Mapping[str, float], file: Path) -> None:
        """People's reviews: figures and their file, into the latest run that judged these responses."""

        def write() -> None:
            _settings_for_a_mirror()
            import mlflow

            _open_experiment()
            tags = _tags("judge", {"responses": responses})
            own = " and ".join(f"tags.`{name}` = '{tags[name]}'" for name in ("kind", "data.responses"))
            found = mlflow.search_runs(
                filter_string=own, order_by=["attributes.start_time DESC"], max_results=1, output_format="list"
            )
            if not found:
                say("warning: MLflow has no run that judged these responses; the figures are in the file alone")
                return
            client, run_id = mlflow.MlflowClient(), found[0].info.run_id
            for name, value in _numbers(figures).items():
                client.log_metric(run_id, name, value)
            client.log_artifact(run_id, str(file))

        self._try(write)


class BenchmarkRun(Mirror):
    """All parameters and the figures of all benchmarks, as a child of the finetune run."""

    def log(
        self,
        *,
        params: Path,
        data: Mapping[str, Path],
        finetune_metrics: Path,
        summary: Mapping[str, float],
        files: Sequence[Path],
    ) -> None:
        """Write the whole run."""

        def write() -> None:
            _settings_for_a_mirror()
            import mlflow

            _open_experiment()
            with _child_run("benchmark", params, data, finetune_metrics):
                mlflow.log_metrics(dict(summary))
                for file in files:
                    mlflow.log_artifact(str(file))

        self._try(write)


@contextmanager
def _child_run(kind: str, params: Path, data: Mapping[str, Path], finetune_metrics: Path) -> Iterator[str | None]:
    """Open a run with all parameters below that of its training, whose id is yielded, if the store has it."""
    import mlflow

    mark = hashlib.sha256(finetune_metrics.read_bytes()).hexdigest()
    found = mlflow.search_runs(filter_string=f"tags.`{FINETUNE_TAG}` = '{mark}'", max_results=1, output_format="list")
    parent = found[0].info.run_id if found else None  # a teammate's store may not have it
    tags = _tags(kind, data) | ({"mlflow.parentRunId": parent} if parent else {})
    name = os.environ.get("DVC_EXP_NAME")
    with mlflow.start_run(run_name=f"{kind} {name}" if name else kind, tags=tags):
        mlflow.log_params(_flat(params))
        yield parent

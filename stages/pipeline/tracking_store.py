"""The MLflow store: found, opened, and given up on after seconds where it is dead."""

import fcntl
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from stages.pipeline.errors import UserError
from stages.pipeline.files import dvc_root
from stages.pipeline.progress import say
from stages.pipeline.tracking_views import offer_views

EXPERIMENT = "onset"
SQLITE = "sqlite:///"

FINETUNE_TAG = "onset.finetune_sha256"
"""On the run of a training that ended: the hash of metrics/finetune.json, by which its children find it."""
TRAINING_TAG = "onset.training"
"""On the run of a training: the fingerprint of its state, and where it runs; one that was stopped finds it again."""
ORIGIN_TAG = "onset.origin"
"""On the run of a training: the hash of its parameters and data."""
CHILD_TAG = "onset.child_of"
"""On a child: the `FINETUNE_TAG` of the training it belongs to."""
ROW_TAG = "onset.row"
"""On a child: the hash of all that it holds; the same result is one row, however often it is judged."""

SLOW_SECONDS, SLOW_SHARE = 60.0, 0.02
"""A store that took longer than both, in seconds and of the time since the stage began, is left out."""

SYNC = "`python -m stages.experiment sync` makes up for it"

DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""A server that hangs costs two tries of 10 s and a pause, once; MLflow's own settings are 247 s for every call."""


class StoreError(UserError):
    """The store cannot be read or written."""


class Store:
    """MLflow's client and the experiment that ours are in."""

    def __init__(self, client: Any, experiment_id: str, lock: Path) -> None:
        self.client, self.experiment_id, self._lock = client, experiment_id, lock

    def search(self, tags: Mapping[str, str]) -> list[Any]:
        """Runs with these tags, the latest first."""
        conditions = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
        found = self.client.search_runs(
            [self.experiment_id], " and ".join(conditions), order_by=["attributes.start_time DESC"]
        )
        return list(found)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Processes that share the lock one at a time: two that look for a run and find none would make two."""
        with one_at_a_time(self._lock):
            yield

    def new_run(self, name: str, tags: Mapping[str, str]) -> str:
        """Create a run; its id."""
        return str(self.client.create_run(self.experiment_id, tags=dict(tags), run_name=name).info.run_id)

    def log(
        self,
        run_id: str,
        *,
        metrics: Mapping[str, float] | None = None,
        step: int = 0,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        model_id: str | None = None,
    ) -> None:
        """Log in batches of what a server takes at once; `model_id` is the model that the metrics are of."""
        from mlflow.entities import Metric, Param, RunTag

        now = time.time_ns() // 1_000_000
        of = {"model_id": model_id} if model_id else {}
        points = [Metric(name, value, now, step, **of) for name, value in (metrics or {}).items()]
        for some in _some(points, 1000):
            self.client.log_batch(run_id, metrics=some)
        for some in _some([Param(*one) for one in (params or {}).items()], 100):
            self.client.log_batch(run_id, params=some)
        for some in _some([RunTag(*one) for one in (tags or {}).items()], 100):
            self.client.log_batch(run_id, tags=some)

    def log_history(self, run_id: str, rows: Sequence[Mapping[str, float]]) -> None:
        """Metrics at their steps; `step` is a column of each row. Of several values at one step the last one counts."""
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        points = [
            Metric(name, value, now + number, int(row["step"]))
            for number, row in enumerate(rows)
            for name, value in row.items()
            if name != "step"
        ]
        for some in _some(points, 1000):
            self.client.log_batch(run_id, metrics=some)

    def use_model(self, run_id: str, model_id: str) -> None:
        """Let a run have a model as its input."""
        from mlflow.entities import LoggedModelInput

        self.client.log_inputs(run_id, models=[LoggedModelInput(model_id)])

    def files_of(self, run_id: str) -> set[str]:
        """Artifacts at the top of a run."""
        return {file.path for file in self.client.list_artifacts(run_id)}


def _some(values: list[Any], at_once: int) -> Iterator[list[Any]]:
    for start in range(0, len(values), at_once):
        yield values[start : start + at_once]


@contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Processes that make the schema of a new SQLite file together break it."""
    lock.parent.mkdir(parents=True, exist_ok=True)  # as MLflow does for the store
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def store_uri() -> str:
    """Of `MLFLOW_TRACKING_URI`, or of mlflow.db beside dvc.yaml; a relative file is one of the repository's folder."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    if uri.startswith(SQLITE) and not uri.startswith(f"{SQLITE}/"):
        return f"{SQLITE}{quote(str(dvc_root().resolve()))}/{uri.removeprefix(SQLITE)}"
    return uri


def store_exists() -> bool:
    """False: it would have to be made."""
    uri = store_uri()
    return not uri.startswith(SQLITE) or _sqlite_file(uri).is_file()


def _sqlite_file(uri: str) -> Path:
    return Path(unquote(uri.removeprefix(SQLITE).partition("?")[0]))


def _lock(uri: str, root: Path) -> Path:
    """Beside an SQLite file, which several clones may use; of a server, in the repository's folder."""
    file = _sqlite_file(uri) if uri.startswith(SQLITE) else root / "mlflow.db"
    return file.with_name(f"{file.name}.lock")


def open_store() -> Store:
    """The store with our experiment in it, which is made where it is not there."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    import mlflow

    for logger in ("mlflow", "alembic"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    uri, root = store_uri(), dvc_root()
    mlflow.set_tracking_uri(uri)
    lock = _lock(uri, root)
    with one_at_a_time(lock) if uri.startswith(SQLITE) else nullcontext():  # else one that hangs holds up all
        client = mlflow.MlflowClient(uri)
        found = client.get_experiment_by_name(EXPERIMENT) or _make_experiment(client, uri, root)
        offer_views(client, found.experiment_id, found.tags)
        return Store(client, found.experiment_id, lock)


def _make_experiment(client: Any, uri: str, root: Path) -> Any:
    import mlflow

    where = (root / "mlartifacts").resolve().as_uri() if uri.startswith(SQLITE) else None
    try:
        return client.get_experiment(client.create_experiment(EXPERIMENT, artifact_location=where))
    except mlflow.MlflowException:  # another machine made it in the meantime
        if (found := client.get_experiment_by_name(EXPERIMENT)) is None:
            raise
        return found


class Mirror:
    """What never fails its stage: after an error, or where the store is too slow, it says so and stays silent."""

    def __init__(self) -> None:
        self.alive = True
        self._began, self._spent = time.monotonic(), 0.0

    def attempt(self, action: Callable[[], object]) -> None:
        """Do it, unless the store was given up on."""
        if not self.alive:
            return
        before = time.monotonic()
        try:
            action()
        except Exception as error:  # MLflow raises whatever its store, its client or the network raise
            self._give_up(reason_of(error))
        else:
            now = time.monotonic()
            self._spent += now - before
            if self._spent > max(SLOW_SECONDS, SLOW_SHARE * (now - self._began)):
                self._give_up(f"it took {self._spent:.0f} s")

    def _give_up(self, reason: str) -> None:
        self.alive = False
        say(f"warning: MLflow is left out ({reason}); files are complete, and {SYNC}")


@contextmanager
def user_errors() -> Iterator[None]:
    """What a store raises, as an error that tells what to do."""
    import mlflow

    try:
        yield
    except (mlflow.MlflowException, OSError) as error:
        raise StoreError(f"MLflow: {reason_of(error)}; look at MLFLOW_TRACKING_URI, or try later") from None


def reason_of(error: Exception) -> str:
    """What went wrong, cut to what fits a line; of a request that failed, why it did.

    >>> reason_of(OSError("Max retries exceeded (Caused by NewConnectionError('HTTPConnection: Connection refused'))"))
    'Connection refused'
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    cause = re.search(r"""Caused by \w+\(["'](?:.*?: )?(.*)["']\)\)""", lines[0])
    return (cause[1] if cause else lines[0])[:160]

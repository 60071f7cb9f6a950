"""MLflow as a mirror of the files: no stage needs it, and a dead server costs a warning.

finetune opens a run; what judge finds is a child of it that holds everything: one complete row an experiment;
benchmarks, where any are asked for, are another. `stages.experiments.sync` replays the same from files.
No tracking module is a dependency of any stage in dvc.yaml, since they cannot change an artifact.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from stages.pipeline.errors import StoppedError
from stages.pipeline.progress import say
from stages.pipeline.tracking_files import Files, finetune_mark, numbers
from stages.pipeline.tracking_runs import (
    finish_finetune,
    here,
    logged_steps,
    new_finetune_run,
    responses_mark,
    told_now,
    write_benchmark,
    write_judge,
)
from stages.pipeline.tracking_store import (
    CHILD_TAG,
    FINETUNE_TAG,
    TRAINING_TAG,
    Mirror,
    Store,
    open_store,
    store_exists,
)


class FinetuneRun(Mirror):
    """The run of one fine-tuning, by its fingerprint; `with` closes it as finished, failed or killed.

    A training that goes on after it was stopped goes on in its run, and the same one done again, which gives the same
    bytes, is the same run. A point that is there is not logged again.
    """

    def __init__(self, files: Files, fingerprint: str, quiet: bool = False) -> None:
        """`quiet`: another process has the run, and this one logs nothing."""
        super().__init__()
        self.alive = not quiet
        self._files = files
        self._training = f"{fingerprint}@{here()}"
        self._logged: set[int] = set()
        self._store: Store
        self._run_id = ""

    def __enter__(self) -> Self:
        self.attempt(self._start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = "FINISHED" if kind is None else "KILLED" if isinstance(error, StoppedError) else "FAILED"
        self.attempt(lambda: self._store.client.set_terminated(self._run_id, status))

    def _start(self) -> None:
        self._store = open_store()
        found = self._store.search({TRAINING_TAG: self._training})
        if found:
            self._run_id = found[0].info.run_id
            self._store.client.update_run(self._run_id, status="RUNNING")
            self._logged = logged_steps(self._store, self._run_id)
            return
        told = told_now(self._files._replace(finetuned=Path()), judged=False)  # there are no figures of it yet
        self._run_id = new_finetune_run(self._store, self._files, told, {TRAINING_TAG: self._training})

    def log_losses(self, row: Mapping[str, float]) -> None:
        """One validation: every figure of the row, at its step."""
        step = int(row["step"])
        if step not in self._logged:
            self.attempt(lambda: self._store.log_history(self._run_id, [{**numbers(row), "step": step}]))
            self._logged.add(step)

    def log_samples(self, step: int, text: str) -> None:
        """Sample answers at a validation."""
        self.attempt(lambda: self._store.client.log_text(self._run_id, text, f"samples/step-{step:06d}.txt"))

    def finish(self, measured: Mapping[str, float]) -> None:
        """The summary and figures beside it, the onset, files and the model; by the summary's hash judge finds it."""
        self.attempt(
            lambda: finish_finetune(
                self._store, self._run_id, self._files, told_now(self._files, judged=False), measured
            )
        )


def log_judge(files: Files) -> None:
    """Judge's row (see `write_judge`), in a mirror."""
    Mirror().attempt(lambda: write_judge(open_store(), files, told_now(files, judged=True)))


def log_benchmark(files: Files, figures: Mapping[str, float]) -> None:
    """The row of all benchmarks (see `write_benchmark`), in a mirror; `figures` by names that MLflow takes."""
    Mirror().attempt(lambda: write_benchmark(open_store(), files, told_now(files, judged=True), figures))


def log_reviews(files: Files, figures: Mapping[str, float], reviews: Path) -> None:
    """People's reviews: figures and their file, into the latest run that judged these responses, in a mirror."""

    def write() -> None:
        store = open_store()
        found = store.search({"kind": "judge", "data.responses": responses_mark(files)})
        if not found:
            say("warning: MLflow has no run that judged these responses; the figures are in the file alone")
            return
        run = found[0]
        changed = {name: value for name, value in numbers(figures).items() if run.data.metrics.get(name) != value}
        store.log(run.info.run_id, metrics=changed)
        store.client.log_artifact(run.info.run_id, str(reviews))

    Mirror().attempt(write)


class FoundRun(NamedTuple):
    """A run of an experiment."""

    id: str
    name: str
    kind: str


def find_runs(finetuned: Path) -> list[FoundRun]:
    """Runs of the training with this metrics/finetune.json, and of what judged it; none where the store fails."""
    found: list[FoundRun] = []

    with suppress(Exception):
        if store_exists():
            store, mark = open_store(), finetune_mark(finetuned)
            for run in [*store.search({FINETUNE_TAG: mark}), *store.search({CHILD_TAG: mark})]:
                found.append(FoundRun(run.info.run_id, run.info.run_name, run.data.tags.get("kind", "")))
    return found

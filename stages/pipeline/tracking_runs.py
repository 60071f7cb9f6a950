"""The runs of an experiment, written from its files: done again, they add what is missing and nothing else.

The run of a training is the parent; judge's and benchmark's rows are its children.
"""

import csv
import hashlib
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from stages.pipeline.environment import read_environment
from stages.pipeline.files import dvc_root, sha256_of
from stages.pipeline.tracking_description import tell_now, tell_recorded
from stages.pipeline.tracking_files import (
    UPSTREAM,
    Files,
    answers_table,
    as_params,
    dataset_inputs,
    finetune_mark,
    judge_figures,
    numbers,
    origin_mark,
    read_figures,
    read_params,
    row_mark,
)
from stages.pipeline.tracking_model import log_model, model_of
from stages.pipeline.tracking_store import CHILD_TAG, FINETUNE_TAG, ORIGIN_TAG, ROW_TAG, TRAINING_TAG, Store
from stages.pipeline.tracking_tags import (
    Where,
    data_tags,
    environment_tags,
    environments,
    git_tags,
    source_tags,
    where_now,
)
from stages.pipeline.tracking_views import NOTE

TABLE = "scores.json"


class Told(NamedTuple):
    """What runs say of an experiment beside its figures."""

    where: Where
    live: bool
    """False: it was made some time ago, or elsewhere."""
    description: str | None
    changes: str
    """The parameters that changed, in short."""
    weights: str
    """A command that gets the checkpoint."""

    def name(self, kind: str) -> str:
        """Of a run of this kind."""
        return " ".join(part for part in (kind, self.where.label, self.changes) if part)

    def tags(self, kind: str, files: Files) -> dict[str, str]:
        """All tags but those by which runs are found."""
        tags = {"kind": kind} | source_tags(f"stages/{kind}.py") | git_tags(self.where)
        tags |= data_tags(files) | environments(files, live=self.live, trained=kind == "finetune")
        return tags | ({NOTE: self.description} if self.description else {})


def told_now(files: Files, *, judged: bool) -> Told:
    """Of the experiment that runs now."""
    where = where_now()
    description, changes = tell_now(files, where, judged=judged) or (None, "")
    name = where.experiment
    weights = f"dvc get . data/checkpoint --rev {name}" if name else "data/checkpoint of the workspace"
    return Told(where, True, description, changes if not where.experiment else "", weights)


def told_recorded(files: Files, where: Where, commit: str) -> Told:
    """Of an experiment that a commit holds; of DVC's experiments, `where` has the commit that they started from."""
    description, changes = tell_recorded(files, commit)
    weights = f"dvc get . data/checkpoint --rev {where.experiment or commit}"
    return Told(where, False, description, changes if not where.experiment else "", weights)


def here() -> str:
    """This machine and repository, as the end of a `TRAINING_TAG`: a teammate may train the same, in another run."""
    return hashlib.sha256(f"{socket.gethostname()} {dvc_root().resolve()}".encode()).hexdigest()[:8]


# ---- a training


def new_finetune_run(store: Store, files: Files, told: Told, tags: Mapping[str, str]) -> str:
    """A run with the parameters and data of a training."""
    own = {ORIGIN_TAG: origin_mark(files), **tags}
    run_id = store.new_run(told.name("finetune"), told.tags("finetune", files) | own)
    params = {name: value for name, value in read_params(files.params).items() if name.split(".")[0] in UPSTREAM}
    store.log(run_id, params=as_params(params))
    store.client.log_inputs(run_id, dataset_inputs(files, {"train": "training", "validation": "validation"}))
    return run_id


def logged_steps(store: Store, run_id: str) -> set[int]:
    """Steps of the validations that a run has."""
    return {point.step for point in store.client.get_metric_history(run_id, "validation_loss")}


def finish_finetune(
    store: Store, run_id: str, files: Files, told: Told, measured: Mapping[str, float] | None = None
) -> None:
    """What is known of a training at its end; done again, it adds what is missing."""
    summary = read_figures(files.finetuned)
    store.log(run_id, metrics=_missing(store, run_id, numbers(summary) | numbers(measured or {})))
    if summary.get("overfit_step", -1) >= 0:
        # Two values at one step are drawn as a line that stands on the lowest loss, which is the metric's value.
        line = [float(summary[name]) for name in ("first_validation_loss", "best_validation_loss")]
        if _missing(store, run_id, {"onset": line[-1]}):
            store.log_history(run_id, [{"step": summary["overfit_step"], "onset": value} for value in line])
    for file in (files.plot, files.losses):
        if file.is_file():
            store.client.log_artifact(run_id, str(file))
    tags = {FINETUNE_TAG: finetune_mark(files.finetuned)} | environment_tags(read_environment(files.checkpoint))
    store.log(run_id, tags=tags | ({NOTE: told.description} if told.description else {}))
    log_model(store, run_id, files, read_params(files.params), told.where.label, told.weights)


def replay_finetune(store: Store, files: Files, told: Told) -> bool:
    """Write the run of a training from its files, or what is missing of it; False: it was there."""
    found = store.search({FINETUNE_TAG: finetune_mark(files.finetuned)})
    if any(run.info.status == "FINISHED" for run in found):
        return False
    rows = [
        {name: float(value) for name, value in row.items()}
        for row in csv.DictReader(files.losses.read_text(encoding="utf-8").splitlines())
    ]
    run_id = next((run.info.run_id for run in [*found, *_unfinished(store, files, rows)]), None)
    if run_id is None:
        run_id = new_finetune_run(store, files, told, {})
    logged = logged_steps(store, run_id)
    store.log_history(run_id, [row for row in rows if int(row["step"]) not in logged])
    finish_finetune(store, run_id, files, told)
    store.client.set_terminated(run_id)
    return True


def _unfinished(store: Store, files: Files, rows: Iterable[Mapping[str, float]]) -> Iterator[Any]:
    """Runs of the same origin that were left behind, here or stopped anywhere, and whose losses are those of the file.

    One that a teammate's machine has open may be training.
    """
    losses = {int(row["step"]): row["validation_loss"] for row in rows}
    for run in store.search({ORIGIN_TAG: origin_mark(files)}):
        training = run.data.tags.get(TRAINING_TAG, "")
        if run.info.status == "FINISHED" or (run.info.status == "RUNNING" and not training.endswith(f"@{here()}")):
            continue
        points = store.client.get_metric_history(run.info.run_id, "validation_loss")
        if all(abs(losses.get(point.step, float("inf")) - point.value) <= 1e-4 * abs(point.value) for point in points):
            yield run


# ---- its children


def judge_mark(files: Files) -> str:
    """What tells judge's rows apart: all parameters, what the training came to, and what the judge found."""
    return row_mark("judge", read_params(files.params), files.finetuned, files.judged)


def benchmark_mark(files: Files) -> str:
    """Likewise."""
    return row_mark("benchmark", read_params(files.params), files.finetuned, files.benchmarked)


def write_judge(store: Store, files: Files, told: Told) -> bool:
    """Write judge's row: all parameters, all figures, data, table, page; False: it was there.

    Figures of a benchmark that measured the same checkpoint by the same parameters are added.
    """
    figures = numbers(read_figures(files.finetuned)) | judge_figures(read_figures(files.judged))

    def more(run_id: str, parent: str | None) -> None:
        store.client.log_inputs(run_id, dataset_inputs(files, {"test": "test"}))
        if TABLE not in store.files_of(run_id):
            store.client.log_table(run_id, answers_table(files), TABLE)
        if files.review.is_file():
            store.client.log_artifact(run_id, str(files.review))
        for other in _children(store, files, "benchmark", "benchmark."):
            _add_benchmark(store, run_id, other.data.metrics)
        if parent and "score" in figures:  # without a readable verdict there is none
            store.log(parent, metrics={"score": figures["score"]})

    tags = {"data.responses": responses_mark(files)}
    return _write_child(store, "judge", judge_mark(files), files, told, figures, tags, more)


def responses_mark(files: Files) -> str:
    """By which people's reviews find the row of what they are of."""
    return sha256_of(files.responses)[:16]


def write_benchmark(store: Store, files: Files, told: Told, figures: Mapping[str, float]) -> bool:
    """Write the row of all benchmarks, and its figures into judge's of the same experiment; False: it was there."""

    def more(run_id: str, parent: str | None) -> None:
        store.client.log_artifact(run_id, str(files.benchmarked))

    written = _write_child(store, "benchmark", benchmark_mark(files), files, told, figures, {}, more)
    for row in _children(store, files, "judge", ""):
        _add_benchmark(store, row.info.run_id, figures)
    return written


def _add_benchmark(store: Store, run_id: str, figures: Mapping[str, float]) -> None:
    own = {name: value for name, value in figures.items() if name.startswith("benchmark/")}
    store.log(run_id, metrics=_missing(store, run_id, own))


def _children(store: Store, files: Files, kind: str, section: str) -> list[Any]:
    """Runs of a kind of the same training, with the same parameters where their names begin with `section`."""
    params = {k: v for k, v in as_params(read_params(files.params)).items() if k.startswith(section)}
    found = store.search({"kind": kind, CHILD_TAG: finetune_mark(files.finetuned)})
    return [run for run in found if {k: v for k, v in run.data.params.items() if k.startswith(section)} == params]


def _write_child(
    store: Store,
    kind: str,
    mark: str,
    files: Files,
    told: Told,
    figures: Mapping[str, float],
    tags: Mapping[str, str],
    more: Callable[[str, str | None], None],
) -> bool:
    """Find or make the run, complete it and end it; False: it was whole."""
    with store.alone():
        found = store.search({ROW_TAG: mark})
        if any(run.info.status == "FINISHED" for run in found):
            return False
        of = finetune_mark(files.finetuned)
        parents = store.search({FINETUNE_TAG: of})
        parent = parents[0].info.run_id if parents else None  # a teammate's store may not have it
        own = {ROW_TAG: mark, CHILD_TAG: of, **tags} | ({"mlflow.parentRunId": parent} if parent else {})
        own |= told.tags(kind, files)
        run_id = found[0].info.run_id if found else store.new_run(told.name(kind), own)
        store.log(run_id, params=as_params(read_params(files.params)))
        model = model_of(store, parent) if parent else None
        store.log(run_id, metrics=_missing(store, run_id, figures), model_id=model)
        if model:
            store.use_model(run_id, model)
        more(run_id, parent)
        store.client.set_terminated(run_id)
        return True


def is_whole(store: Store, files: Files) -> bool:
    """Whether every run of an experiment is there; params and metrics are enough to tell."""
    wanted = [{FINETUNE_TAG: finetune_mark(files.finetuned)}]
    wanted += [{ROW_TAG: judge_mark(files)}] if read_figures(files.judged) else []
    wanted += [{ROW_TAG: benchmark_mark(files)}] if read_figures(files.benchmarked) else []
    return all(any(run.info.status == "FINISHED" for run in store.search(tags)) for tags in wanted)


def _missing(store: Store, run_id: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics that a run has not got."""
    there = store.client.get_run(run_id).data.metrics
    return {name: value for name, value in metrics.items() if name not in there}

"""Experiments replayed from their files into MLflow: a new server, a teammate's, one that was down when they ran."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from stages.experiments.revisions import WORKSPACE, AbsentError, commit_of, folder_of, locate
from stages.pipeline.changes import Origin, changed_params, flat
from stages.pipeline.errors import UserError
from stages.pipeline.files import read_json
from stages.pipeline.tracking_files import Files, md5_of, read_figures, read_params
from stages.pipeline.tracking_runs import (
    Told,
    is_whole,
    replay_finetune,
    told_now,
    told_recorded,
    write_benchmark,
    write_judge,
)
from stages.pipeline.tracking_store import Store, StoreError, open_store, user_errors
from stages.pipeline.tracking_tags import RESULTS, Where, git

THERE, WRITTEN, SKIPPED = "was there", "written", "skipped"

RECORD = ("params.yaml", "metrics/finetune.json", "metrics/losses.csv")
"""Without these there is no experiment."""
FIGURES = ("dvc.lock", "metrics/judge.json", "metrics/benchmark.json", "metrics/format.json", "metrics/split.json")
JUDGED = ("data/responses.parquet", "data/scores.parquet")
"""What a row of judge cannot be without."""
MORE = (
    "metrics/losses.png",
    "data/review.html",
    "data/prompts.parquet",
    *(f"data/split/{name}.parquet" for name in ("train", "validation", "test")),
    "data/base_model/origin.json",
    *(
        f"data/checkpoint/{name}"
        for name in (
            "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
            "onset.json", "environment.json", "model.safetensors", "model.safetensors.index.json",
        )
    ),
)  # fmt: skip


def sync(places: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Write what the store lacks of each experiment; its name with `was there`, `written` or `skipped: <reason>`.

    Raises:
        StoreError: the store cannot be read or written.
    """
    with user_errors():
        store = open_store()
    for place in dict.fromkeys(places):
        with TemporaryDirectory() as folder:
            try:
                yield place, WRITTEN if _sync(store, place, Path(folder)) else THERE
            except StoreError:
                raise
            except UserError as error:
                reason = " ".join(str(error).split()).removeprefix(f"{place}: ")
                yield place, f"{SKIPPED}: {reason}"


def _sync(store: Store, place: str, into: Path) -> bool:
    """False: it was there."""
    into.joinpath("content").mkdir()
    files = Files.under(into)
    _gather(place, RECORD, into, needed=True)
    _gather(place, FIGURES, into)
    _refuse_outdated(place, into)
    with user_errors():
        if is_whole(store, files):
            return False
    judged = bool(read_figures(files.judged))
    if judged:
        _gather(place, JUDGED, into, needed=True)
    _gather(place, MORE, into)
    for shard in _shards(files.checkpoint):
        _gather(place, [f"data/checkpoint/{shard}"], into)
    _refuse_outdated(place, into)
    told = _tell(place, files)
    with user_errors():
        written = [replay_finetune(store, files, told)]
        if measured := read_figures(files.benchmarked):
            from stages.benchmarks.report import flat

            written.append(write_benchmark(store, files, told, flat(measured, "fine-tuned", "base")))
        if judged:
            written.append(write_judge(store, files, told))
    return any(written)


def _gather(place: str, paths: Iterable[str], into: Path, *, needed: bool = False) -> None:
    """Let files of an experiment stand in the folder `into` as they stand in a workspace."""
    for path in paths:
        try:
            found = locate(place, path, into / "content")
        except AbsentError:
            if needed:
                raise
            continue
        (into / path).parent.mkdir(parents=True, exist_ok=True)
        (into / path).symlink_to(found.resolve())


def _shards(checkpoint: Path) -> list[str]:
    index = checkpoint / "model.safetensors.index.json"
    return sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else []


def _refuse_outdated(place: str, into: Path) -> None:
    """Files that are not of one experiment would make a row of none.

    Raises:
        UserError: parameters or files are not those that dvc.lock has.
    """
    lock = into / "dvc.lock"
    if not lock.is_file():
        return
    stages: dict[str, Any] = (yaml.safe_load(lock.read_text(encoding="utf-8")) or {}).get("stages") or {}
    used: dict[str, Any] = {}
    for stage in stages.values():
        used |= flat(stage.get("params", {}).get("params.yaml", {}))
    sections = {name.split(".")[0] for name in used}
    now = {name: value for name, value in read_params(into / "params.yaml").items() if name.split(".")[0] in sections}
    changed = list(changed_params(Origin(used, {}), Origin(now, {})))
    for stage in stages.values():
        for out in stage.get("outs", []):
            if (into / out["path"]).is_file() and out.get("md5") != md5_of(into / out["path"]):
                changed.append(out["path"])
    if changed:
        raise UserError(f"{place}: not as in dvc.lock: {', '.join(changed)}; run `dvc repro`, or `dvc checkout`")


def _tell(place: str, files: Files) -> Told:
    if place == WORKSPACE:
        return told_now(files, judged=True)._replace(live=False)
    if (folder := folder_of(place)) is not None:
        return Told(Where(experiment=folder.resolve().name), False, None, "", f"{folder.resolve()}/data/checkpoint")
    commit = commit_of(place)
    refs = (git("for-each-ref", "--format=%(objectname) %(refname)", "refs/exps") or "").splitlines()
    experiments = dict(ref.split() for ref in refs)
    if commit not in experiments:
        return told_recorded(files, Where(commit, ""), commit)
    baseline = (git("rev-parse", f"{commit}^") or "").strip()
    differing = (git("diff", "--name-only", "-z", baseline, commit) or "").split("\0")
    dirty = [path for path in differing if path and path.split("/")[0] not in RESULTS]
    name = experiments[commit].split("/")[-1]
    return told_recorded(files, Where(baseline, "", dirty, name, baseline), commit)

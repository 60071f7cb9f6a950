"""DVC's queue of experiments, through its commands: what is in it, what is put into it, who works it off."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import psutil
import yaml

from stages.pipeline.changes import flat
from stages.pipeline.errors import BusyError, UserError

RUN_PLACES = Path(".dvc/tmp/exps")
"""Where DVC copies the repository to, once for each experiment that runs."""
LOCK = Path(".dvc/tmp/onset-sweep.lock")
IGNORED_INPUTS = ("data/init", "data/opponents")
"""Folders whose content git ignores and stages read."""
BUSY = re.compile(r"lock|busy", re.IGNORECASE)
TRIES = 5


class Experiment(NamedTuple):
    """An experiment of this commit as DVC shows it, finished or not."""

    name: str
    revision: str
    """Of what it came to; before that, of what is queued, which is also the task's id."""
    state: str
    """`success`, `running`, `queued` or `failed`."""
    params: dict[str, Any]
    metrics: dict[str, dict[str, Any]]
    """By file."""
    pid: int | None
    """Of the process that runs it, or did."""
    returncode: int | None
    """Of that process, once its worker has seen it end."""
    folder: str | None
    """Where it runs."""


class Look(NamedTuple):
    """The queue at one moment."""

    states: dict[str, str]
    """By name of the experiment: `Queued`, `Running`, `Success` or `Failed`."""
    answering: int
    """Workers that answer, which under load takes some longer than DVC waits."""


def experiments() -> list[Experiment]:
    """All experiments of the commit that is checked out, the queue's among them."""
    shown = json.loads(_dvc("exp", "show", "--json"))
    ranges = [one for commit in shown[1:] for one in commit["experiments"] or []]
    return [_experiment(one) for one in ranges if one["revs"][0]["data"]]


def workspace() -> Experiment:
    """What the workspace holds, as an experiment."""
    shown = json.loads(_dvc("exp", "show", "--json"))[0]
    return _experiment({"revs": [shown], "name": "workspace", "executor": None})


def _experiment(shown: Mapping[str, Any]) -> Experiment:
    found, executor = shown["revs"][0], shown["executor"] or {}
    local = executor.get("local") or {}
    params, metrics = (found["data"][kind] for kind in ("params", "metrics"))
    return Experiment(
        shown["name"] or found["rev"][:7],
        found["rev"],
        executor.get("state", "success"),
        flat(params.get("params.yaml", {}).get("data") or {}),
        {file: own.get("data") or {} for file, own in metrics.items()},
        local.get("pid"),
        local.get("returncode"),
        local.get("root"),
    )


def look() -> Look:
    """What is in the queue, and how many work on it."""
    printed = _dvc("queue", "status")
    states: dict[str, str] = {}
    for line in printed.splitlines():
        if found := re.fullmatch(r"[0-9a-f]{7}\s+(\S+)\s.*\s(Queued|Running|Success|Failed)\s*", line):
            states.setdefault(found[1], found[2])  # of one name, what is not finished stands first
    workers = re.search(r"(\d+) active, (\d+) idle", printed)
    return Look(states, sum(map(int, workers.groups())) if workers else 0)


def workers_alive() -> int:
    """Workers of this repository, by their processes."""
    here = str(Path.cwd())
    processes = psutil.process_iter(["cmdline", "cwd"])
    return sum("queue-worker" in (one.info["cmdline"] or ()) and one.info["cwd"] == here for one in processes)


def add(name: str, values: Mapping[str, str]) -> None:
    """Put an experiment behind the others; it starts from the workspace as it is now."""
    ignored = _paths("ls-files", "-oi", "--exclude-standard", "--directory", "--", *IGNORED_INPUTS)
    copies = [word for path in ignored for word in ("--copy-paths", path.rstrip("/"))]
    sets = [word for own in values.items() for word in ("-S", "=".join(own))]
    _dvc("exp", "run", "--queue", "--name", name, *sets, *copies)


def remove(tasks: Sequence[str]) -> None:
    """Take experiments that failed, or were not begun, out of the queue."""
    if tasks:
        _dvc("queue", "remove", *tasks)


def is_lost(experiment: Experiment) -> bool:
    """Whether it counts as running and nobody runs it: its worker was killed, or the machine went down.

    DVC then counts it as failed.
    """
    if experiment.state != "running" or _runs(experiment.pid):  # an orphan ends, and what it made comes from the cache
        return False
    if (experiment.pid is None or experiment.returncode is not None) and workers_alive():
        return False  # perhaps a worker sets it up, or takes in what it made
    try:
        _dvc("queue", "kill", experiment.revision)  # it refuses what a worker has
    except UserError:
        return False
    if experiment.folder and Path(experiment.folder).parent == RUN_PLACES.resolve():
        shutil.rmtree(experiment.folder, ignore_errors=True)
    return True


def _runs(pid: int | None) -> bool:
    try:
        return pid is not None and "exec-run" in psutil.Process(pid).cmdline()
    except psutil.Error:
        return False


def start(workers: int) -> None:
    """Start workers until there are so many; those that are there stay.

    They go on when this process ends. Where CUDA_VISIBLE_DEVICES lists a device for each, each gets its own.
    """
    if workers_alive() >= workers:
        return
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if workers == 1 or len(devices) < workers:
        _start(workers)
        return
    for count, device in enumerate(devices[:workers], start=1):
        _start(count, CUDA_VISIBLE_DEVICES=device)
        for _ in range(20):  # the next call would start this one again until it answers
            if look().answering >= count:
                break
            time.sleep(0.5)


def _start(count: int, **environment: str) -> None:
    with TemporaryFile("w+") as out:  # workers keep what they are given open: a pipe would never end
        done = _run("queue", "start", "-j", str(count), to=out, **environment)
        out.seek(0)
        if done.returncode:
            raise UserError(f"dvc queue start: {_reason(out.read(), done.returncode)}")


def check_repository() -> None:
    """Raises UserError: experiments cannot start here, or would lack files that are here."""
    for path in map(Path, (".dvc", "dvc.yaml", "params.yaml")):
        if not path.exists():
            raise UserError(f"{path}: not found; run from the folder that holds it")
    try:
        _git("rev-parse", "--verify", "HEAD")
    except UserError:
        raise UserError(
            "experiments start from a commit of Git, and there is none here; first: git init; git add -A; git commit"
        ) from None
    if missing := _paths("ls-files", "-o", "--exclude-standard", "--", *_sources()):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{missing[0]}{more}: not in Git, so an experiment would run without it; `git add` it first, large data by "
            "`dvc add`"
        )


@contextmanager
def alone() -> Iterator[None]:
    """Keep other sweeps of this repository out while the block runs: two would queue the same.

    Raises:
        BusyError: another one is at it.
    """
    LOCK.parent.mkdir(exist_ok=True)  # a clone has none
    with LOCK.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError("another sweep runs in this repository; see it: dvc queue status") from None
        yield


def changed_files() -> list[str]:
    """Files in which the workspace differs from the commit, and which every experiment takes over."""
    return _paths("diff", "--name-only", "HEAD")


def same_sources(revision: str) -> bool:
    """Whether an experiment has the code and data of the workspace."""
    return not _paths("diff", "--name-only", revision, "--", *_sources())


def _sources() -> list[str]:
    """What an experiment is made from beside params.yaml: the code, and dependencies that no stage writes."""
    stages = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"].values()
    read = _named(stages, "deps")
    written = _named(stages, "outs", "metrics", "plots")
    own = {path for path in read if not any(Path(path).is_relative_to(place) for place in {"stages", *written})}
    return ["stages", "dvc.yaml", *sorted(own)]


def _named(stages: Iterable[Mapping[str, Any]], *kinds: str) -> set[str]:
    """Paths in dvc.yaml; one with options is a mapping of that path to them."""
    entries = (entry for stage in stages for kind in kinds for entry in stage.get(kind, []))
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}


def _paths(command: str, *arguments: str) -> list[str]:
    return [path for path in _git(command, "-z", *arguments).split("\0") if path]


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"git {arguments[0]}: {_reason(done.stderr, done.returncode)}")
    return done.stdout


def _dvc(*arguments: str) -> str:
    for attempt in range(TRIES):
        done = _run(*arguments)
        if done.returncode == 0:
            return done.stdout
        reason = _reason(done.stderr, done.returncode)
        if not BUSY.search(reason):
            break
        time.sleep(1 + attempt)  # a worker holds DVC's locks for moments
    raise UserError(f"dvc {' '.join(arguments[:2])}: {reason}")


def _run(*arguments: str, to: Any = subprocess.PIPE, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Out of reach of Ctrl-C: DVC puts the workspace aside while it queues. Workers need `dvc` and `python` by name."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=to,
        stderr=to,
        text=True,
        check=False,
        start_new_session=True,
        env=os.environ | {"PATH": path} | environment,
    )


def _reason(printed: str, code: int) -> str:
    lines = [line.removeprefix("ERROR: ") for line in printed.splitlines() if line.startswith(("ERROR: ", "fatal: "))]
    return lines[-1] if lines else f"ended with {code}"

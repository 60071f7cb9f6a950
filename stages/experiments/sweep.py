"""A search over parameters on DVC's queue: what is there already is not run again, what was lost is."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from stages.experiments import sweep_queue as queue
from stages.experiments.revisions import experiment_names
from stages.experiments.sweep_points import Point, same_params, unique
from stages.experiments.sync import SKIPPED, sync
from stages.pipeline.changes import flat
from stages.pipeline.errors import StoppedError, UserError
from stages.pipeline.files import read_json
from stages.pipeline.progress import bar, say
from stages.pipeline.stopping import Stop
from stages.pipeline.tracking_store import StoreError

SHORTEST_PAUSE, LONGEST_PAUSE = 1.0, 15.0
"""Seconds between two looks at the queue, each of which costs half a second of one core."""
LOOKS = 2
"""So often in a row workers must be missing: one takes a moment to start, and to take in what an experiment made."""
RESTARTS = 2
"""How often an experiment is begun again whose worker is gone, before it has failed: perhaps it is what killed it."""

AFTER_TRAINING = ("generate.", "judge.", "benchmark.")

Found = dict[str, str]
"""State by name of experiment, as in `Look.states`."""


def workspace_params() -> dict[str, Any]:
    """All parameters of params.yaml, by dotted name."""
    return flat(yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8")))


def sort_out(points: Sequence[Point]) -> tuple[list[Point], list[Point]]:
    """The points under the names of their experiments, and those of them that are to be queued.

    An experiment is there if it has all parameters, the code and the data, and did not fail. One that failed is taken
    out of the queue, and so is one that runs nowhere.
    """
    shown = queue.experiments()
    taken = {*experiment_names(), *queue.look().states}
    named, wanted = [], []
    for point in points:
        same = [one for one in shown if same_params(one.params, point.params) and queue.same_sources(one.revision)]
        over = [one for one in same if one.state == "failed" or queue.is_lost(one)]
        queue.remove([one.revision for one in over])
        left = [one for one in same if one not in over]
        name = (left or over)[0].name if same else unique(point.name, taken)
        taken.add(name)
        named.append(point._replace(name=name))
        if not left:
            wanted.append(named[-1])
    return named, wanted


def run(points: Sequence[Point], wanted: Sequence[Point], workers: int, stop: Stop) -> None:
    """Queue the points that are wanted, and watch until none of all points is queued or runs.

    Raises:
        StoppedError: told to stop; the queue is worked off without us.
    """
    for point in wanted:
        _check(stop)
        queue.add(point.name, point.values)
        say(f"sweep: queued {point.name}")
    if wanted:
        queue.start(workers)
    say("sweep: live losses: dvc exp show --only-changed, or make ui; what one prints: dvc queue logs NAME")
    with bar("sweep", total=len(points)) as progress:
        _watch({point.name: point for point in points}, workers, stop, progress.advance)


def _watch(points: dict[str, Point], workers: int, stop: Stop, advance: Callable[[int], None]) -> None:
    before: Found = {}
    restarts: Counter[str] = Counter()
    started, missing = time.monotonic(), 0
    while True:
        now = queue.look()
        states = {name: state for name, state in now.states.items() if name in points}
        advance(_tell(before, states, len(points)))
        before = states
        count = Counter(states.values())
        if not count["Queued"] + count["Running"]:
            return
        alive = queue.workers_alive()
        short = alive < count["Running"] or (count["Queued"] and alive < workers)
        missing = missing + 1 if short else 0
        if missing >= LOOKS:
            _restart(points, restarts)
            queue.start(workers)
            missing = 0
        _pause(min(LONGEST_PAUSE, SHORTEST_PAUSE + (time.monotonic() - started) / 20), stop)


def _tell(before: Found, now: Found, count: int) -> int:
    """Say what is new; how many experiments have ended since."""
    words = {"Running": "runs", "Success": "is done", "Failed": "FAILED"}
    unfinished = sum(state in ("Queued", "Running") for state in now.values())
    new = {name: state for name, state in now.items() if state in words and state != before.get(name, state)}
    for name, state in new.items():
        say(f"sweep: {name} {words[state]}; {count - unfinished} of {count} have ended")
    return sum(state != "Running" for state in new.values())


def _restart(points: dict[str, Point], restarts: Counter[str]) -> None:
    for one in queue.experiments():
        if one.name in points and queue.is_lost(one) and restarts[one.name] < RESTARTS:
            restarts[one.name] += 1
            queue.remove([one.revision])
            queue.add(one.name, points[one.name].values)
            say(f"sweep: the worker of {one.name} is gone; queued again, to go on from its saved state")


def _pause(seconds: float, stop: Stop) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        _check(stop)
        time.sleep(0.2)


def _check(stop: Stop) -> None:
    if stop.reason:
        raise StoppedError(
            f"stopped watching ({stop.reason}); what is queued stays, and workers that have begun go on (dvc queue "
            "status). To go on, the same command; to end it, dvc queue stop --kill and dvc queue remove --queued"
        )


def minutes_of_training(points: Sequence[Point], metrics: Path) -> list[float]:
    """Longest training of each point that trains, by the speed last measured here; empty: none trains, or not known."""
    training = [point for point in points if any(not name.startswith(AFTER_TRAINING) for name in point.values)]
    try:
        speed = read_json(metrics / "speed.json")["tokens_per_second"]
        tokens = read_json(metrics / "tokens.json")["train"]["tokens"]
        return [tokens * float(point.params["finetune.epochs"]) / speed / 60 for point in training]
    except (UserError, KeyError, ZeroDivisionError):
        return []


def announcement(points: Sequence[Point], workers: int, metrics: Path) -> list[str]:
    """What is about to run, and how long it may take."""
    lines = [f"{len(points)} experiments to run, {workers} at a time"]
    if minutes := minutes_of_training(points, metrics):
        lines.append(
            f"training takes up to {max(minutes):.1f} min each, {sum(minutes):.1f} min one after the other, by the "
            "speed last measured here (metrics/speed.json); answers and scores come on top"
        )
    if points and (changed := queue.changed_files()):
        lines.append(f"they start from the workspace, in which {len(changed)} file(s) differ from the commit")
    return lines


def already(points: Sequence[Point], wanted: Sequence[Point]) -> str:
    """What has become of the points that are not wanted any more."""
    states = queue.look().states
    names = {point.name for point in points} - {point.name for point in wanted}
    count = Counter(states.get(name) for name in names)
    queued, running = count["Queued"], count["Running"]
    return f"of {len(points)} experiments {len(names) - queued - running} are there, {running} run, {queued} are queued"


def outcome(points: Sequence[Point]) -> tuple[list[queue.Experiment], list[str]]:
    """The experiments that succeeded, and the names of those that did not."""
    shown = {one.name: one for one in queue.experiments() if one.state == "success"}
    return (
        [shown[point.name] for point in points if point.name in shown],
        [point.name for point in points if point.name not in shown],
    )


def mirror(done: Sequence[queue.Experiment]) -> None:
    """Write what MLflow lacks of experiments: one whose results equal its parent's has logged nothing itself."""
    try:
        for name, outcome in sync([one.name for one in done]):
            if outcome.startswith(SKIPPED):
                say(f"warning: MLflow lacks {name}: {outcome}")
    except StoreError as error:
        say(f"warning: {error}; `python -m stages.experiment sync --all` writes there what is missing")

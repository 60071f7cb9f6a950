"""What a process took: wall seconds and peak memory, with the memory of processes it started."""

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

INTERVAL = 0.1
"""Seconds between two looks at the memory of several processes."""


class Cost(NamedTuple):
    """What a finished process took and said."""

    seconds: float
    peak_mb: float
    stdout: str


def run(command: Sequence[str | Path], folder: Path, env: Mapping[str, str]) -> Cost:
    """Run a command in `folder` to its end, with `env` added to the environment.

    Peak memory is the kernel's high-water mark of the process (exact), or the highest sum seen over the process and
    those it started, if that is more. In the sum a page that several share counts once (PSS), so that forked workers do
    not count their parent again; it is looked at every `INTERVAL` and misses shorter peaks.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=os.environ | env, stdout=out, stderr=err)
        done = threading.Event()
        peaks = [0.0]
        watch = threading.Thread(target=_watch, args=(process.pid, done, peaks))
        watch.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        done.set()
        watch.join()
        if process.returncode:
            err.seek(0)
            said = err.read().decode(errors="replace")[-4000:]
            raise SystemExit(f"{' '.join(map(str, command))}: exit code {process.returncode}\n{said}")
        out.seek(0)
        return Cost(seconds, max(usage.ru_maxrss / 1024, *peaks), out.read().decode())


def _watch(pid: int, done: threading.Event, peaks: list[float]) -> None:
    while not done.wait(INTERVAL):
        family = _family(pid)
        if len(family) > 1:  # of one alone the kernel knows the peak, and reading PSS would slow it down
            peaks.append(sum(map(_pss_mb, family)))


def _family(pid: int) -> list[int]:
    """The process and all that descend from it."""
    try:
        started = [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in _words(path)]
    except OSError:
        return []
    return [pid, *(descendant for child in started for descendant in _family(child))]


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:  # the thread or process has ended meanwhile
        return []


def _pss_mb(pid: int) -> float:
    words = _words(Path(f"/proc/{pid}/smaps_rollup"))
    return int(words[words.index("Pss:") + 1]) / 1024 if "Pss:" in words else 0.0

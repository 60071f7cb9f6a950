"""Processes forked from one that has imported what takes seconds to import, one such for each process of tests."""

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.pipeline.killing", "stages.judging.embedded", "pytest"])

WAIT = 120
"""Seconds after which a test gives up; nothing takes nearly as long."""


def run_module(
    folder: Path, *arguments: str, environment: Mapping[str, str], given: str = ""
) -> "subprocess.CompletedProcess[str]":
    """What `python -m` with these arguments does in a folder; `given` is what it reads from stdin."""
    with TemporaryDirectory() as kept:
        streams = [Path(kept, name) for name in ("stdin", "stdout", "stderr")]
        streams[0].write_text(given, encoding="utf-8")
        process = ForkServerProcess(target=_run, args=(folder, arguments, dict(environment), streams))
        process.start()
        process.join(WAIT)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(list(arguments), WAIT)
        return subprocess.CompletedProcess(arguments, process.exitcode, *(path.read_text() for path in streams[1:]))


def _run(folder: Path, arguments: tuple[str, ...], environment: dict[str, str], streams: list[Path]) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(streams):
        with path.open("r" if number == 0 else "w") as stream:
            os.dup2(stream.fileno(), number)
    sys.stdin = os.fdopen(0)
    sys.argv = list(arguments)
    sys.modules.pop(arguments[0], None)  # else runpy warns
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)

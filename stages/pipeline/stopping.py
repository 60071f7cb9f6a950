"""When a long stage should save and stop: it is told to, or DVC, which waits for it, is gone."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import psutil


class Stop:
    """Whether to stop. Truth is looked up: cheap enough for every step.

    To be made early: a DVC that is gone before is not known.
    """

    def __init__(self) -> None:
        self._reason: str | None = None
        self._waiting = _who_waits() if "DVC_ROOT" in os.environ else None

    def on_signal(self, number: int, _: FrameType | None) -> None:
        """Signal handler: the first asks, a second one kills."""
        self._reason = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)

    @property
    def reason(self) -> str | None:
        """Why to stop; None to go on."""
        if self._reason is None and self._waiting is not None and not _runs(self._waiting):
            self._reason = "DVC is gone"
        return self._reason


@contextmanager
def stoppable(stop: Stop) -> Iterator[None]:
    """Take SIGTERM and SIGINT as wishes, to be looked up, while the block runs."""
    before = {number: signal.signal(number, stop.on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_orphan(pid: int) -> bool:
    """Whether a process that DVC started has lost it."""
    try:
        process = psutil.Process(pid)
        return "DVC_ROOT" in process.environ() and _who_waits(process) is None
    except psutil.Error:
        return True


def _who_waits(process: psutil.Process | None = None) -> psutil.Process | None:
    """The DVC process above this one; shells and launchers may be between."""
    for parent in (process or psutil.Process()).parents():
        try:
            if any(Path(word).name.startswith("dvc") for word in parent.cmdline()[:4]):
                return parent
        except psutil.Error:
            continue
    return None


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:  # gone between the two
        return False

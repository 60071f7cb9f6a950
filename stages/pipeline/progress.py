"""Progress for the person who waits: a bar in a terminal, plain lines elsewhere."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

# Of several processes under torchrun, the first speaks.
console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False, quiet=os.environ.get("RANK", "0") != "0")


class Bar:
    """One bar of a known length; `note` shows figures behind it."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task
        self._waiting = 0
        self._drawn = 0.0

    def advance(self, by: int = 1, note: str = "") -> None:
        """Move on by `by` units. Drawn ten times a second at most: a row may take less time than a bar."""
        self._waiting += by
        if self._progress.disable or (not note and time.monotonic() - self._drawn < 0.1):
            return
        self._progress.update(self._task, advance=self._waiting, note=note)
        self._waiting, self._drawn = 0, time.monotonic()


@contextmanager
def bar(label: str, total: int | None) -> Iterator[Bar]:
    """Show progress through `total` units while the block runs (None: unknown); silent where there is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Bar(progress, progress.add_task(label, total=total, note=""))


def say(line: str) -> None:
    """One line for the reader, above the bar if there is one."""
    console.print(line, markup=False)


def stopwatch() -> Callable[[], str]:
    """A function that says how long ago this was called, as in `1.3 s`."""
    started = time.perf_counter()
    return lambda: f"{time.perf_counter() - started:.1f} s"

"""Progress for the person who waits: a bar in a terminal, plain lines elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False, soft_wrap=True)


class Bar:
    """One bar of a known length; `note` shows figures behind it."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self, by: int = 1, note: str = "") -> None:
        """Move on by `by` units."""
        self._progress.update(self._task, advance=by, note=note)


@contextmanager
def bar(label: str, total: int) -> Iterator[Bar]:
    """Show progress through `total` units while the block runs; silent where there is no terminal."""
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

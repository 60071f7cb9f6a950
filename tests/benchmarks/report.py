"""What a benchmark tells: a table for the reader, a file with every single figure, and what it ran on."""

import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.imports import ROOT

RESULTS = ROOT / ".bench"
console = Console(highlight=False, width=160)  # a table is not to be cut where there is no terminal


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, and lowest and highest where there are several.

    >>> spread([3.0, 1.0, 2.0], 1)
    '2.0 (1.0 to 3.0)'
    """
    median = f"{statistics.median(values):,.{digits}f}"
    return median if len(values) == 1 else f"{median} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def show(title: str, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column is text, the others are figures."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    console.print(title, markup=False)
    console.print(table)
    console.print()


def note(*lines: str) -> None:
    """Print what the reader must know of the table above."""
    console.print("\n".join(lines) + "\n", markup=False)


def save(name: str, **figures: Any) -> Path:
    """Write every figure, with what it was measured on, to a file that git ignores."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"about": _about(), **figures}, indent=1) + "\n", encoding="utf-8")
    return path.relative_to(ROOT)


def _about() -> dict[str, Any]:
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip(),
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("numpy", "pyarrow", "tiktoken", "tokenizers")},
    }

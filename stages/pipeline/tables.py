"""Tables for a terminal."""

import io
import shutil
import sys

from rich.console import Console, RenderableType


def drawn(*parts: RenderableType) -> str:
    """Tables and lines as plain text, as wide as the terminal; 100 columns where there is none."""
    file = io.StringIO()
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 100
    Console(file=file, width=width, highlight=False, markup=False, emoji=False, color_system=None).print(
        *parts, sep="\n"
    )
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def one_line(text: str, length: int) -> str:
    r"""A text from a model or a file, safe to print: no control characters, no more than `length` characters.

    >>> one_line("a\n\x1b[31mb and more", 10)
    'a �[31mb …'
    """
    line = " ".join(text.split())
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in line[: length + 1])
    return shown if len(shown) <= length else shown[: length - 1] + "…"

"""Two texts side by side: which words differ."""

import difflib
import itertools
import re
from collections.abc import Sequence

from stages.experiments.comparison_scores import Difference
from stages.pipeline.tables import one_line

TEXT = 88
"""Characters shown of an instruction or an answer in a table."""

Piece = tuple[str, bool]
"""A part of a text, and whether the other text has it not."""


def changed_words(before: str, after: str) -> tuple[list[Piece], list[Piece]]:
    r"""Both texts in pieces, which joined are the texts, marked where they differ word by word.

    >>> changed_words("a red  car", "a blue  car")
    ([('a ', False), ('red', True), ('  car', False)], [('a ', False), ('blue', True), ('  car', False)])
    """
    words = [re.findall(r"\s+|\w+|[^\w\s]", text) for text in (before, after)]
    if len(words[0]) * len(words[1]) > MOST_WORDS**2:
        return [(before, True)], [(after, True)]
    pieces: tuple[list[Piece], list[Piece]] = ([], [])
    for kind, *ends in difflib.SequenceMatcher(None, words[0], words[1], autojunk=False).get_opcodes():
        for side, own, (start, stop) in zip(pieces, words, (ends[:2], ends[2:]), strict=True):
            if start < stop:
                side.append(("".join(own[start:stop]), kind != "equal"))
    return pieces


MOST_WORDS = 4000
"""Texts of more are not told apart word by word, which takes time that grows with the square of it."""


def around_changes(pieces: Sequence[Piece]) -> str:
    """A text on one line; one that is too long is cut so that the first change can be seen."""
    text = " ".join("".join(piece for piece, _ in pieces).split())
    unchanged = "".join(piece for piece, _ in itertools.takewhile(lambda piece: not piece[1], pieces))
    start = len(" ".join(unchanged.split())) - TEXT // 3
    hidden = len(text) > TEXT and start > 0 and len(unchanged) < sum(len(piece) for piece, _ in pieces)
    return one_line("…" + text[start:] if hidden else text, TEXT) or "(empty)"


def row_title(row: Difference) -> str:
    """What was asked, on one line."""
    return one_line(f"{row.first.asked[0]} {row.first.asked[1]}", TEXT)

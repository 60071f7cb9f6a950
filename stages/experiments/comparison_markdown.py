"""A comparison in GitHub's Markdown, for a pull request: the verdict first, what is long folded away."""

import re
import string
from collections.abc import Iterator, Sequence
from typing import Any

from stages.experiments.comparison_scores import Difference
from stages.experiments.comparison_texts import TEXT, around_changes, changed_words, row_title
from stages.experiments.comparison_words import Figures, Section, named, sections, verdict
from stages.pipeline.tables import one_line

PLAIN = set(string.ascii_letters + string.digits + " .,:;?'/%()=+-")
"""ASCII that no form of Markdown reads as anything but itself, inside a line that has nothing of TELLING."""

TELLING = re.compile(r"[@#^`*_|<>{}\\]|[!$~&]\w|:\S|//|www\.|[a-z]\.[a-z]")
"""In a text that is set as code: there nobody is mentioned, nothing is linked."""


def comparison_markdown(figures: Figures, rows: Sequence[Difference]) -> str:
    """The comparison; texts of people and models stand in it as text, whatever is written in them."""
    parts = [
        f"### {escaped(named(figures['a']))} → {escaped(named(figures['b']))}",
        "\n".join(f"- {_sentence(line)}" for line in verdict(figures)),
        *(f"> **Warning:** {_sentence(warning)}" for warning in figures["warnings"]),
    ]
    for section in sections(figures):
        folded = section.title in _FOLDED or (section.is_cause and len(section.rows) > MOST)
        parts.append(f"<details><summary>{section.title}</summary>" if folded else f"#### {section.title}")
        if section.rows:
            parts.append("\n".join(_table(section)))
        parts += [_sentence(line) for line in section.lines]
        if folded:
            parts.append("</details>")
    if rows:
        answers = Section("", ("B - A", "Asked", "A", "B"), list(map(_answers, rows)), [])
        parts += ["<details><summary>Answers that changed most</summary>", "\n".join(_table(answers)), "</details>"]
    return "\n\n".join(parts) + "\n"


_FOLDED = ("Environment", "Scores by category")

MOST = 10
"""Rows of a table of causes that is not folded away."""


def escaped(text: Any) -> str:
    """A text on one line that Markdown, HTML and the sites that show it take for nothing else (CommonMark 6.2).

    A character that is written as a numeric reference is text. Sites look for mentions and links in what was rendered,
    but not in code.

    >>> escaped("-0.5 [a]")
    '-0.5 &#91;a&#93;'
    >>> escaped("@me | x")
    '<code>&#64;me &#124; x</code>'
    """
    line = one_line(str(text), 2 * TEXT)
    telling = TELLING.search(line)
    plain = PLAIN - set(".:") if telling else PLAIN
    safe = "".join(letter if letter in plain or not letter.isascii() else f"&#{ord(letter)};" for letter in line)
    return f"<code>{safe}</code>" if telling else safe


def _sentence(line: str) -> str:
    return " ".join(map(escaped, line.split()))


def _table(section: Section) -> Iterator[str]:
    numbers = 0 if section.is_cause else len(section.columns) - 1
    yield f"| {' | '.join(section.columns)} |"
    yield "|" + " --- |" * (len(section.columns) - numbers) + " ---: |" * numbers
    for row in section.rows:
        yield f"| {' | '.join(map(escaped, row))} |"


def _answers(row: Difference) -> tuple[str, ...]:
    texts = map(around_changes, changed_words(row.first.response, row.second.response))
    return f"{row.change:+.1f} ({row.first.score:.0f} to {row.second.score:.0f})", row_title(row), *texts

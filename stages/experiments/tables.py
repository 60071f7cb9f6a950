"""What the terminal shows of two experiments compared, and of the arena."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from stages.experiments.comparison_scores import Difference
from stages.experiments.comparison_texts import TEXT, around_changes, changed_words, row_title
from stages.experiments.comparison_words import Section, named, sections, verdict
from stages.pipeline.tables import drawn, one_line

Figures = Mapping[str, Any]


def comparison_text(figures: Figures, fell: Sequence[Difference], rose: Sequence[Difference]) -> str:
    """Everything of a comparison: the two, the verdict, causes, results, and the answers that changed most."""
    table = _table("", "A", "B")
    table.add_row("experiment", *(Text(one_line(named(figures[side]), 60)) for side in ("a", "b")))
    lines = [*verdict(figures), *(f"warning: {warning}" for warning in figures["warnings"])]
    parts: list[Table | Text] = [table, Text(), *(Text(one_line(line, 400)) for line in lines)]
    for section in sections(figures):
        parts.append(Text(f"\n{section.title}"))
        if section.rows:
            parts.append(_of_section(section))
        parts += [Text(line) for line in section.lines]
    for title, rows in (("Fell most from A to B", fell), ("Rose most from A to B", rose)):
        if rows:
            parts += [Text(f"\n{title}"), _rows(rows)]
    return drawn(*parts)


def _of_section(section: Section) -> Table:
    table = _table(*section.columns, left=len(section.columns) if section.is_cause else 1)
    for row in section.rows:
        table.add_row(*(Text(one_line(cell, TEXT)) for cell in row))
    return table


def _rows(rows: Sequence[Difference]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(f"{row.change:+.1f}", Text(f"{row_title(row)}  [{row.id}]"))
        texts = changed_words(row.first.response, row.second.response)
        for name, side, pieces in zip("AB", (row.first, row.second), texts, strict=True):
            table.add_row(f"  {name} {side.score:.0f}", Text(around_changes(pieces)))
    return table


def arena_text(figures: Figures) -> str:
    """Ratings as a table, and whose votes they rest on."""
    table = _table("", "Player", "Rating", "Low", "High", "Battles", "Won", "Lost", "Tied")
    players = figures["players"]
    for place, (name, own) in enumerate(players.items(), start=1):
        limits = (_number(own[end], 0) for end in ("low", "high"))
        counts = (str(own[key]) for key in ("battles", "wins", "losses", "ties"))
        table.add_row(str(place), Text(one_line(name, 48)), f"{own['rating']:.0f}", *limits, *counts)
    lines = [f"{figures['confidence']:.0%} intervals; {figures['anchor']} is rated 1000"]
    if any(None in (own["low"], own["high"]) for own in players.values()):
        lines.append("-: no vote limits the rating on this side")
    if (groups := len({own["group"] for own in players.values()})) > 1:
        lines.append(f"warning: {groups} groups of players never met: ratings of two groups cannot be compared")
        for number in range(groups):
            names = ", ".join(name for name, own in players.items() if own["group"] == number)
            lines.append(f"  group {number + 1}: {one_line(names, 200)}")
    lines.append("votes: " + ", ".join(f"{one_line(voter, 60)} {count}" for voter, count in figures["votes"].items()))
    return drawn(table, *map(Text, lines))


def _table(*names: str, left: int = 2) -> Table:
    table = Table(box=None, pad_edge=False)
    for at, name in enumerate(names):
        text = at < left or names == ("", "A", "B")
        table.add_column(name, justify="left" if text else "right", no_wrap=not text, overflow="fold")
    return table


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"

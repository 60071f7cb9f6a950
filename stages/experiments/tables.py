"""What the terminal shows of two experiments compared, and of the arena."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from stages.experiments.comparison import Difference
from stages.pipeline.tables import drawn, one_line

Figures = Mapping[str, Any]

TEXT = 88
"""Characters shown of an instruction or an answer."""


def comparison_text(figures: Figures, fell: Sequence[Difference], rose: Sequence[Difference]) -> str:
    """Everything of a comparison."""
    parts: list[Table | Text] = [_sides(figures), Text(), *map(Text, _verdict(figures))]
    if figures["by_category"]:
        parts += [Text(), _categories(figures)]
    for title, rows in (("Fell most from A to B", fell), ("Rose most from A to B", rose)):
        if rows:
            parts += [Text(f"\n{title}"), _rows(rows)]
    return drawn(*parts)


def _sides(figures: Figures) -> Table:
    table = _table("", "A", "B")
    sides = [figures[side] for side in ("a", "b")]
    table.add_row("experiment", *(Text(one_line(side["name"], 40)) for side in sides))
    table.add_row("score", *(f"{figures[name]:.1f}" for name in ("score_a", "score_b")))
    table.add_row("overfitting began", *(_onset(side) for side in sides))
    table.add_row("judge", *(Text(one_line(side["judge"] or "not known", 40)) for side in sides))
    table.add_row("judge AUC", *(_number(side["judge_auc"], 2) for side in sides))
    return table


def _verdict(figures: Figures) -> list[str]:
    rows = figures["rows"]
    left = {
        "only in A": rows["only_a"],
        "only in B": rows["only_b"],
        "with another instruction or reference": rows["other_reference"],
        "without a score": rows["unscored"],
    }
    not_compared = ", ".join(f"{count} {name}" for name, count in left.items() if count)
    p_value = figures["p_value"]
    lines = [
        f"{rows['compared']} rows compared" + (f"; not compared: {not_compared}" if not_compared else ""),
        f"B - A: {_with_interval(figures)} ({figures['confidence']:.0%} interval)"
        + ("" if p_value is None else f"; p = {p_value:.2g} (paired randomization test)"),
        f"B wins {figures['wins_b']}, A wins {figures['wins_a']}, {figures['ties']} ties",
    ]
    return lines + [f"warning: {one_line(warning, 300)}" for warning in figures["warnings"]]


def _categories(figures: Figures) -> Table:
    table = _table("Category", "Rows", "A", "B", "B - A", "B wins", "A wins", "Ties")
    for name, own in figures["by_category"].items():
        scores = (f"{own[key]:.1f}" for key in ("score_a", "score_b"))
        results = (str(own[key]) for key in ("wins_b", "wins_a", "ties"))
        table.add_row(Text(one_line(name, 30)), str(own["num_rows"]), *scores, _with_interval(own), *results)
    return table


def _rows(rows: Sequence[Difference]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        asked = one_line(f"{row.first.asked[0]} {row.first.asked[1]}", TEXT)
        table.add_row(f"{row.change:+.1f}", Text(f"{asked}  [{row.id}]"))
        for name, side in (("A", row.first), ("B", row.second)):
            table.add_row(f"  {name} {side.score:.0f}", Text(one_line(side.response, TEXT) or "(empty)"))
    return table


def _onset(side: Figures) -> str:
    epoch = side["overfit_epoch"]
    if epoch is None:
        return "not known"
    if epoch < 0:
        return "not seen"
    return f"epoch {epoch:.2f}" + ("" if side["overfit_confirmed"] else ", not confirmed")


def _with_interval(figures: Figures) -> str:
    text = f"{figures['difference']:+.1f}"
    if figures["difference_low"] is not None:
        text += f" [{figures['difference_low']:+.1f}, {figures['difference_high']:+.1f}]"
    return text


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


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for at, name in enumerate(names):
        text = name in ("", "A", "B", "Player", "Category") and (at < 2 or len(names) == 3)
        table.add_column(name, justify="left" if text else "right", no_wrap=not text, overflow="fold")
    return table


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"

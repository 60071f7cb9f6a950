"""Benchmarks in the terminal and in MLflow: what was measured, and what can be."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from stages.benchmarks.benchmark import Benchmark, Need
from stages.benchmarks.running import how_to_get
from stages.pipeline.errors import UserError
from stages.pipeline.tables import drawn

FEW = 12
"""Subtasks of a benchmark that are shown; more are in the file alone."""

NEEDS: dict[Need, str] = {
    "judge": "a judge",
    "judge for some": "a judge for some",
    "judge or voters": "a judge, or people who vote",
    "code": "permission to run code",
    "environment": "an environment of its own",
}

Figures = Mapping[str, Any]
"""Contents of metrics/benchmark.json."""


def figures_text(figures: Figures) -> str:
    """The whole, its groups and, where they are few, its subtasks; below, how each benchmark was measured."""
    models = list(dict.fromkeys(model for one in figures.values() for own in one["metrics"].values() for model in own))
    table = _table("", "Metric", *models, "Rows", "Shots")
    for name, one in _shown(figures).items():
        for metric, own in one["metrics"].items():
            values = [_value(own.get(model)) for model in models]
            rows = str(max(value["n"] for value in own.values()))
            table.add_row(Text(name), metric, *values, rows, "-" if one["shots"] is None else str(one["shots"]))
            name = ""
    return drawn(table, "", *map(Text, _notes(figures)))


def _shown(figures: Figures) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for name in figures:
        counts[_benchmark(name)] = counts.get(_benchmark(name), 0) + 1
    return {
        name: one for name, one in figures.items() if counts[_benchmark(name)] <= FEW or one["out_of"] > 1 or _top(name)
    }


def _benchmark(name: str) -> str:
    return name.removesuffix(" (sample)").split("/")[0]


def _top(name: str) -> bool:
    return "/" not in name


def _value(own: Mapping[str, Any] | None) -> str:
    if own is None:
        return "-"
    if own["low"] is None:
        return _number(own["value"])
    return f"{_number(own['value'])} [{_number(own['low'])}, {_number(own['high'])}]"


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.0f}"


def _notes(figures: Figures) -> list[str]:
    """One line for each way in which something was measured."""
    lines: list[str] = []
    for one, names in _by_protocol(figures).values():
        name = names[0] if len(names) == 1 else f"{_benchmark(names[0])} ({len(names)} figures)"
        template = "without a template" if one["template"] == "none" else f"template {one['template']}"
        line = f"{name}: {one['protocol']}; {template}; {one['library']}"
        if any(figures[name]["out_of"] > 1 for name in names):
            whole = max((figures[name] for name in names), key=lambda figure: int(figure["out_of"]))
            line += f"; {whole['run']} of {whole['out_of']} subtasks"
        lines.append(line)
    if any(one["scope"] == "sample" for one in figures.values()):
        lines.append("(sample): not every row or subtask that was published; not to be held against published figures")
    return lines


def _by_protocol(figures: Figures) -> dict[tuple[str, ...], tuple[Any, list[str]]]:
    found: dict[tuple[str, ...], tuple[Any, list[str]]] = {}
    for name, one in _shown(figures).items():
        key = (_benchmark(name), *(str(one[part]) for part in ("protocol", "template", "library")))
        found.setdefault(key, (one, []))[1].append(name)
    return found


def flat(figures: Figures, own: str, base: str) -> dict[str, float]:
    """Figures by names that MLflow takes: benchmark/mmlu/acc, with base_ before the base model's metric."""
    found = {}
    for name, one in figures.items():
        path = re.sub(r"[^A-Za-z0-9_./ -]", "-", name.replace(" (sample)", "_sample"))
        for metric, values in one["metrics"].items():
            for model, value in values.items():
                prefix = {own: "", base: "base_"}.get(model, f"{model}_")
                found[f"benchmark/{path}/{re.sub(r'[^A-Za-z0-9_.-]', '-', prefix + metric)}"] = float(value["value"])
    return found


def list_text(benchmarks: Sequence[Benchmark], folder: Path) -> str:
    """Every benchmark: what it needs, what of it is there, and the command that gets it."""
    table = _table("Task", "Benchmark", "Needs", "Data")
    notes: list[RenderableType] = []
    for benchmark in benchmarks:
        wants = ", ".join(NEEDS[need] for need in sorted(benchmark.needs)) or "-"
        state = _state(benchmark, folder)
        table.add_row(benchmark.name, benchmark.title, wants, Text(state))
        lines = [
            benchmark.about,
            f"in {folder / benchmark.name}/: {benchmark.layout}",
            f"{how_to_get(benchmark)}; licence: {benchmark.source.licence}",
        ]
        lines += [benchmark.source.note] if benchmark.source.note else []
        notes += ["", Text(benchmark.name), *(Padding(Text(line), (0, 0, 0, 4)) for line in lines)]
    return drawn(table, *notes)


def _state(benchmark: Benchmark, folder: Path) -> str:
    own = folder / benchmark.name
    if not own.is_dir():
        return "absent"
    try:
        found = benchmark.find(own)
    except UserError as error:
        return f"not readable: {error}"
    if not found.rows:
        return "absent"
    published = sum(found.published.values())
    whole = found.scope(list(found.published), None) == "full"
    rows = f"{sum(found.rows.values())}" + (f" of {published}" if published and not whole else "") + " rows"
    count = len(found.published)
    subtasks = f", {len(found.rows)}" + (f" of {count}" if len(found.rows) < count else "") + " subtasks"
    return rows + (subtasks if max(count, len(found.rows)) > 1 else "") + ("" if whole else " (sample)")


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in names:
        numeric = name in ("Rows", "Shots")
        table.add_column(name, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    return table

"""Suites of tasks, GLUE and SuperGLUE: files by task and split, figures by task, and the average of all.

The average is the published one: the mean over tasks, each with the mean of its metrics (Wang et al. 2018 and 2019).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stages.benchmarks.benchmark import Benchmark, Figure, Found, Measurement, Need, Row, Settings, Source, Subject
from stages.benchmarks.estimates import Estimate, weighted
from stages.benchmarks.figures import About, figures
from stages.benchmarks.tables import SUFFIXES, Line, label_of, read_lines, text_of
from stages.pipeline.errors import UserError

if TYPE_CHECKING:  # lm-eval takes seconds to import, and `list` does without it
    from stages.benchmarks.harness import Measured

Doc = dict[str, Any]
Unit = list[Doc]
"""What is one row of the benchmark: mostly one question to the model, in MultiRC one for every answer."""

VALIDATION = frozenset({"dev", "val", "validation"})


class Part(NamedTuple):
    """One figure's worth of a suite: a task, or one of MNLI's two validation sets."""

    name: str
    folder: str
    """As the publisher calls it; case, hyphens and the hub's `.fixed` do not count."""
    published: int
    """Rows of the validation split."""
    units: Callable[[Sequence[Line]], list[Unit]]
    """From the rows of any accepted format to lm-eval's, with the hub's columns and label numbers."""
    config: Callable[[], Mapping[str, Any]]
    """lm-eval's TaskConfig."""
    metrics: tuple[str, ...]
    protocol: str
    task: str = ""
    """The suite's task that it belongs to, if not by its own name."""
    mismatched: bool = False
    """Its file has this in its name: MNLI's second validation set."""
    header: tuple[str, ...] = ()
    """Columns of a TSV that has no header."""
    torn: bool = False
    """Rows with missing fields are left out, as in the hub's copy, since the publisher's file has such."""
    estimates: Callable[["Measured", Sequence[Unit], Settings], dict[str, Estimate]] | None = None
    """Where a unit is more than one question."""


class Read(NamedTuple):
    """The rows of one part."""

    units: list[Unit]
    split: str
    """validation or train; empty where the file's name does not tell."""
    file: str
    left_out: int


def plain(
    fields: Mapping[str, Sequence[str]], label: Sequence[str], labels: Mapping[str, int]
) -> Callable[[Sequence[Line]], list[Unit]]:
    """Units of one question each: texts by the hub's column from the first of several names, and a label."""

    def units(lines: Sequence[Line]) -> list[Unit]:
        return [
            [
                {name: text_of(line, *names) for name, names in fields.items()}
                | {"label": label_of(line, labels, *label)}
            ]
            for line in lines
        ]

    return units


def read(part: Part, folder: Path) -> Read | None:
    """Rows of the validation split; where it is absent, of a file that names no split, or of the train split.

    Raises:
        UserError: a file is not in a known format, or there are two for one split.
    """
    files = _files(part, folder)
    for split in ("validation", "", "train"):
        found = [path for path, words in files if _split(words) == split]
        if not found:
            continue
        if len(found) > 1 and not all("-of-" in path.name for path in found):
            raise UserError(f"{found[0]} and {found[1].name}: two files of one split; keep one of them")
        lines = [line for path in found for line in read_lines(path, part.header)]
        whole = [line for line in lines if not line.torn] if part.torn else lines
        if not whole:
            raise UserError(f"{found[0]}: no row has all fields; put the file in the publisher's format")
        return Read(part.units(whole), split, found[0].name, len(lines) - len(whole))
    return None


def _files(part: Part, folder: Path) -> list[tuple[Path, set[str]]]:
    """Files of a task in its own folder, or by its name beside others', with the words of their names."""
    key = _key(part.folder)
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    places = [place for place in there if place.is_dir() and _key(place.name) == key]
    own = [path for place in places for path in sorted(place.iterdir())]
    flat = [path for path in there if path.is_file() and _key(path.name.split(".")[0]) == key]
    files = []
    for path in own + flat:
        words = set(re.split(r"[-_.]", path.name.lower()))
        if not any(f".{word}" in SUFFIXES for word in words) or words & {"test", "ids"} or path.name.startswith("."):
            continue
        if ("mismatched" in words) == part.mismatched:
            files.append((path, words))
    return files


def _split(words: set[str]) -> str:
    return "validation" if words & VALIDATION else "train" if "train" in words else ""


def _key(name: str) -> str:
    return name.lower().replace("-", "").removesuffix(".fixed")


@dataclass
class Suite(Benchmark):
    """A benchmark of several tasks, each with its own metrics."""

    name: str
    title: str
    about: str
    layout: str
    source: Source
    parts: tuple[Part, ...]
    needs: frozenset[Need] = frozenset()
    together: bool = False

    def find(self, folder: Path) -> Found:
        """Rows by part; where they are not those of the validation split, nothing counts as published."""
        return self._found(self._reads(folder, []))

    def measure(
        self, subjects: Sequence[Subject], folder: Path, wanted: Sequence[str], settings: Settings, into: Path
    ) -> Measurement:
        """Every part that is there, or those that are wanted, and the average where all tasks are there."""
        from stages.benchmarks import harness

        if settings.shots.get(self.name):
            raise UserError(f"params.yaml: benchmark.shots: {self.name} is measured without shots; take it out")
        reads = self._reads(folder, wanted)
        if not reads:
            raise UserError(f"{folder}: holds no task of {self.title}; wanted: {self.layout}")
        units = {part.name: one.units[: settings.limit] for part, one in reads}
        tasks = [
            harness.Task(
                f"{self.name}/{part.name}",
                {**part.config(), "validation_split": "validation"},
                {"validation": [doc for unit in units[part.name] for doc in unit]},
                shots=0,
            )
            for part, _ in reads
        ]
        made: list[Figure] = []
        rows: list[Row] = []
        for subject in subjects:
            measured = harness.run(tasks, subject, settings._replace(limit=None))  # units are cut already
            own = {
                part.name: _estimates(part, measured[f"{self.name}/{part.name}"], units[part.name], settings)
                for part, _ in reads
            }
            made += self._figures(subject, reads, own, settings, harness.LIBRARY)
            rows += [row for one in measured.values() for row in one.rows]
        return Measurement(made, rows)

    def _reads(self, folder: Path, wanted: Sequence[str]) -> list[tuple[Part, Read]]:
        parts = [part for part in self.parts if not wanted or part.name in wanted]
        return [(part, one) for part in parts if (one := read(part, folder))]

    def _found(self, reads: Sequence[tuple[Part, Read]]) -> Found:
        published = {part.name: part.published for part in self.parts}
        published |= {part.name: 0 for part, one in reads if one.split != "validation"}
        return Found({part.name: len(one.units) for part, one in reads}, published)

    def _figures(
        self,
        subject: Subject,
        reads: Sequence[tuple[Part, Read]],
        estimates: Mapping[str, Mapping[str, Estimate]],
        settings: Settings,
        library: str,
    ) -> list[Figure]:
        found, made = self._found(reads), []
        for part, one in reads:
            scope = found.scope([part.name], settings.limit)
            about = About(f"{self.name}/{part.name}", 0, part.protocol + _on(one), library, scope)
            own = {metric: estimates[part.name][metric] for metric in part.metrics}
            made += figures(about, own, subject, settings)
        if len(reads) == len(self.parts):
            tasks = len({part.task or part.name for part in self.parts})
            scope = found.scope([part.name for part in self.parts], settings.limit)
            protocol = "mean over tasks, of the mean of each task's metrics"
            about = About(self.name, 0, protocol, library, scope, run=tasks, out_of=tasks)
            made += figures(about, {"average": average(self.parts, estimates)}, subject, settings)
        return made


def _on(one: Read) -> str:
    where = "" if one.split == "validation" else f"; on {one.file}"
    return where + (f"; {one.left_out} rows with missing fields left out" if one.left_out else "")


def _estimates(part: Part, measured: "Measured", units: Sequence[Unit], settings: Settings) -> Mapping[str, Estimate]:
    return part.estimates(measured, units, settings) if part.estimates else measured.estimates


def average(parts: Sequence[Part], estimates: Mapping[str, Mapping[str, Estimate]]) -> Estimate:
    """The mean over tasks, each with the mean of its metrics; MNLI's two accuracies are metrics of one task."""
    tasks: dict[str, list[Estimate]] = {}
    for part in parts:
        tasks.setdefault(part.task or part.name, []).extend(estimates[part.name][metric] for metric in part.metrics)
    rows = sum(max(one.n for one in estimates[part.name].values()) for part in parts)
    return weighted([weighted(own) for own in tasks.values()])._replace(n=rows)

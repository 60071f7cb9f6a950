"""From the tasks that are asked for to figures and rows: each task is measured once and kept."""

import hashlib
import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.benchmarks.benchmark import Benchmark, Figure, Found, Measurement, Row, Settings, Subject
from stages.benchmarks.catalog import ANY, Wanted, named
from stages.pipeline.errors import UserError
from stages.pipeline.files import (
    dvc_root,
    read_about,
    read_parquet,
    replacing_folder,
    sha256_of,
    write_json,
    write_parquet,
)
from stages.pipeline.progress import say, stopwatch

SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in Row._fields[:-1]),
        pa.field("score", pa.float64()),
    ]
)

KEPT = ".benchmarks"
"""Folder beside dvc.yaml with what was measured before, by all that it depends on."""

CODE = ("benchmarks", "instructions", "judging", "model", "tokens")
"""Rooms whose change may change a figure."""
LIBRARIES = ("lm-eval", "transformers", "torch")


def check(wanted: Sequence[Wanted], folder: Path, settings: Settings) -> None:
    """All that can be known before anything is measured.

    Raises:
        UserError: data is absent or of another format, a subtask is not there, a judge or a permission is missing.
    """
    for name in settings.shots:
        named(name, "params.yaml: benchmark.shots")
    for benchmark, subtasks in wanted:
        if not benchmark.name.startswith(ANY):
            find(benchmark, folder)
        benchmark.check(folder / benchmark.name, subtasks, settings)


def find(benchmark: Benchmark, folder: Path) -> Found:
    """What of a benchmark lies in its folder.

    Raises:
        UserError: nothing does; the command that gets it is told.
    """
    own = folder / benchmark.name
    found = benchmark.find(own) if own.is_dir() else Found({}, {})
    if not found.rows:
        raise UserError(f"{own}: no data of {benchmark.title}; {how_to_get(benchmark)}")
    return found


def how_to_get(benchmark: Benchmark) -> str:
    """The command, or the words, that bring a benchmark's data."""
    source = benchmark.source
    if source.hub or source.package:
        return f"get it with `python -m stages.benchmark fetch {benchmark.name}`"
    return f"get it from {source.where}"


def measure(
    wanted: Sequence[Wanted], subjects: Sequence[Subject], marks: Mapping[str, str], folder: Path, settings: Settings,
    into: Path,
) -> dict[str, Any]:  # fmt: skip
    """Measure everything on every subject; write rows into `into`; contents of metrics/benchmark.json.

    `marks` has for each subject the hash of all that its answers depend on. What is kept from before is not measured
    again: after a kill the next run goes on behind the last task, and the base model is measured once.

    Raises:
        UserError: see `Benchmark.measure`.
    """
    found: dict[str, Any] = {}
    with replacing_folder(into) as temporary:
        write_json(temporary / "tasks.json", [f"{one.name}/{'+'.join(parts)}".rstrip("/") for one, parts in wanted])
        for benchmark, subtasks in wanted:
            own = folder / benchmark.name
            data = data_sha256(own)
            place = temporary / re.sub(r"[^A-Za-z0-9._-]", "-", benchmark.name)
            place.mkdir()
            groups = [list(subjects)] if benchmark.together else [[subject] for subject in subjects]
            figures, rows = [], []
            for group in groups:
                taken = stopwatch()
                key = _key(benchmark, subtasks, group, marks, data, settings)
                measured = _kept(key) if _can_keep(benchmark) else None
                again = measured is not None
                if measured is None:
                    measured = benchmark.measure(group, own, subtasks, settings, place)
                    if _can_keep(benchmark):
                        _keep(key, measured)
                names = " and ".join(subject.name for subject in group)
                say(f"  {benchmark.name}, {names}: {'kept from before' if again else f'measured in {taken()}'}")
                figures += measured.figures
                rows += measured.rows
            write_parquet(place / "rows.parquet", [row._asdict() for row in rows], SCHEMA)
            found |= nested(figures, data)
    return found


def _can_keep(benchmark: Benchmark) -> bool:
    """What judges decide writes files beside its rows, and its calls and answers are kept one by one."""
    return not any("judge" in need for need in benchmark.needs)


def _key(
    benchmark: Benchmark,
    subtasks: Sequence[str],
    subjects: Sequence[Subject],
    marks: Mapping[str, str],
    data: str,
    settings: Settings,
) -> str:
    rooms = Path(__file__).parents[1]
    code = [
        path for room in CODE for path in sorted((rooms / room).iterdir()) if path.suffix in (".py", ".json", ".txt")
    ]
    values = {
        "benchmark": benchmark.name,
        "subtasks": list(subtasks),
        "subjects": [(subject.name, subject.template, marks[subject.name]) for subject in subjects],
        "data": data,
        "settings": settings._replace(judge=None)._asdict() | {"shots": dict(settings.shots)},
        "libraries": [version(name) for name in LIBRARIES],
        "machine": platform.machine(),
        "code": [sha256_of(path) for path in code],
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:24]


def _kept(key: str) -> Measurement | None:
    path = dvc_root() / KEPT / f"{key}.parquet"
    if not path.exists():
        return None
    try:
        rows, about = read_parquet(path), read_about(path)
    except UserError:  # a damaged file is measured anew
        return None
    return Measurement([Figure(**figure) for figure in about["figures"]], [Row(**row) for row in rows])


def _keep(key: str, measured: Measurement) -> None:
    path = dvc_root() / KEPT / f"{key}.parquet"
    path.parent.mkdir(exist_ok=True)
    rows = [row._asdict() for row in measured.rows]
    write_parquet(path, rows, SCHEMA, about={"figures": [figure._asdict() for figure in measured.figures]})


def data_sha256(folder: Path) -> str:
    """Hash of all files of a benchmark; empty where it has no folder."""
    if not folder.is_dir():
        return ""
    digest = hashlib.sha256()
    for path in _files(folder):
        digest.update(f"{path.relative_to(folder).as_posix()} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))


def nested(figures: Sequence[Figure], data: str) -> dict[str, Any]:
    """Figures as metrics/benchmark.json has them; what is not the whole has `(sample)` behind its name."""
    found: dict[str, Any] = {}
    for figure in figures:
        name = figure.task if figure.scope == "full" else f"{figure.task} (sample)"
        about = {key: getattr(figure, key) for key in ("scope", "run", "out_of", "shots", "protocol", "template")}
        own = found.setdefault(name, about | {"library": figure.library, "data_sha256": data, "metrics": {}})
        value = {key: _rounded(getattr(figure, key)) for key in ("value", "low", "high", "n")}
        own["metrics"].setdefault(figure.metric, {})[figure.model] = value
    return found


def _rounded(value: float | None) -> float | None:
    return round(value, 6) if isinstance(value, float) else value

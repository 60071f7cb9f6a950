"""Files in the publishers' and the hub's formats, and what is common to tests of suites of lm-eval's tasks."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.benchmarks.benchmark import Benchmark, Figure, Settings
from tests.benchmark_tasks.oracles import OracleSubject

QUICK = Settings(resamples=20)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)


def measured(
    benchmark: Benchmark, folder: Path, subject: OracleSubject, settings: Settings = QUICK, wanted: Sequence[str] = ()
) -> dict[str, Figure]:
    """Figures by task and metric: `glue/mrpc f1`."""
    found = benchmark.measure([subject], folder, wanted, settings, folder)
    return {f"{figure.task} {figure.metric}": figure for figure in found.figures}

"""What of an experiment's files goes to MLflow: parameters, figures, data, the table of answers, by MLflow's rules."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import pyarrow.parquet as pq
import yaml

from stages.pipeline.changes import flat
from stages.pipeline.files import count_parquet, read_json, read_parquet

LONGEST_PARAM = 6000
"""Characters that MLflow takes (mlflow.utils.validation, MAX_PARAM_VAL_LENGTH)."""
LONGEST_NAME = 250
"""Likewise (MAX_ENTITY_KEY_LENGTH)."""

UPSTREAM = ("base_model", "format", "split", "collate", "finetune")
"""Sections of params.yaml that a training depends on."""

COLUMNS = ("id", "category", "instruction", "input", "reference", "response", "base_response")
"""Columns of data/responses.parquet that the table shows."""


class Files(NamedTuple):
    """Where the files of an experiment are; any may be missing but those that a run is of."""

    params: Path = Path("params.yaml")
    finetuned: Path = Path("metrics/finetune.json")
    losses: Path = Path("metrics/losses.csv")
    plot: Path = Path("metrics/losses.png")
    formatted: Path = Path("metrics/format.json")
    dealt: Path = Path("metrics/split.json")
    judged: Path = Path("metrics/judge.json")
    benchmarked: Path = Path("metrics/benchmark.json")
    prompts: Path = Path("data/prompts.parquet")
    splits: Path = Path("data/split")
    base_model: Path = Path("data/base_model")
    checkpoint: Path = Path("data/checkpoint")
    responses: Path = Path("data/responses.parquet")
    scores: Path = Path("data/scores.parquet")
    review: Path = Path("data/review.html")
    lock: Path = Path("dvc.lock")

    @classmethod
    def under(cls, folder: Path) -> Self:
        """Those of an experiment that lies in a folder as ours do."""
        return cls(*(folder / path for path in cls()))

    def data(self) -> dict[str, Path]:
        """Files whose hashes tell the data apart."""
        return {
            "prompts": self.prompts,
            **{name: self.splits / f"{name}.parquet" for name in ("train", "validation", "test")},
            "base_model": self.base_model / "origin.json",
        }


def sha256_text(text: str | bytes) -> str:
    """Hex SHA-256."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def md5_of(path: Path) -> str:
    """Hex MD5 of a file's bytes, as dvc.lock has it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def finetune_mark(finetuned: Path) -> str:
    """What tells trainings apart for those that depend on one."""
    return sha256_text(finetuned.read_bytes())


def read_params(path: Path) -> dict[str, Any]:
    """All parameters by dotted name."""
    return flat(yaml.safe_load(path.read_text(encoding="utf-8")))


def as_params(values: Mapping[str, Any]) -> dict[str, str]:
    """Parameters as MLflow takes them; what is too long keeps its beginning and its hash."""
    return {clean(name): _fitting(str(value)) for name, value in values.items()}


def _fitting(text: str) -> str:
    if len(text) <= LONGEST_PARAM:
        return text
    mark = f"... sha256:{sha256_text(text)[:16]}"
    return text[: LONGEST_PARAM - len(mark)] + mark


def clean(name: str) -> str:
    """A name that MLflow takes; `/` groups metrics in its UI."""
    kept = re.sub(r"[^\w.\- /]", "-", name)
    if kept != name or len(kept) > LONGEST_NAME:
        kept = f"{kept[: LONGEST_NAME - 9]}-{sha256_text(name)[:8]}"
    return kept


def numbers(figures: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Those figures that are numbers."""
    return {clean(prefix + name): float(value) for name, value in figures.items() if isinstance(value, (int, float))}


def judge_figures(judged: Mapping[str, Any]) -> dict[str, float]:
    """Figures of metrics/judge.json: its own, `score.<category>`, and `<judge>/<figure>` of the other judges."""
    found = numbers(judged)
    for category, own in judged.get("by_category", {}).items():
        if own.get("score") is not None:
            found[clean(f"score.{category}".replace("/", "-"))] = float(own["score"])
    for judge, own in judged.get("other_judges", {}).items():
        found |= numbers(own, f"{judge}/")
    return found


def row_mark(kind: str, params: Mapping[str, Any], *metrics: Path) -> str:
    """What tells rows of a kind apart: their parameters and metrics."""
    hashes = [sha256_text(path.read_bytes()) for path in metrics]
    return sha256_text(json.dumps([kind, sorted(as_params(params).items()), hashes]))


def origin_mark(files: Files) -> str:
    """What a training is made from: parameters and data."""
    params = {name: str(value) for name, value in read_params(files.params).items() if name.split(".")[0] in UPSTREAM}
    data = [md5_of(path) if path.is_file() else None for path in files.data().values()]
    return sha256_text(json.dumps([sorted(params.items()), data]))


def dataset_inputs(files: Files, contexts: Mapping[str, str]) -> list[Any]:
    """Splits as MLflow's datasets, by their context; those that are not there are left out.

    The digest is the beginning of the MD5 that dvc.lock has.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    found = []
    for name, context in contexts.items():
        path = files.splits / f"{name}.parquet"
        if path.is_file():
            dataset = Dataset(
                name,
                md5_of(path)[:8],  # as long as MLflow's own
                "local",
                json.dumps({"uri": f"data/split/{name}.parquet"}),
                schema=json.dumps({"mlflow_colspec": _columns(path)}),
                profile=json.dumps({"num_rows": count_parquet(path)}),
            )
            found.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
    return found


def _columns(path: Path) -> list[dict[str, Any]]:
    kinds = {"string": "string", "int64": "long", "double": "double", "bool": "boolean"}
    return [
        {"name": field.name, "type": kinds[str(field.type)], "required": not field.nullable}
        for field in pq.read_schema(path)
        if str(field.type) in kinds
    ]


def answers_table(files: Files) -> Any:
    """Instructions, answers and scores side by side, the lowest score first."""
    import pandas as pd

    scores = pd.DataFrame(read_parquet(files.scores)).drop(columns="category")
    table = pd.DataFrame(read_parquet(files.responses), columns=list(COLUMNS))
    table = table.merge(scores, on="id", validate="one_to_one")
    return table.sort_values(["score", "id"], na_position="first")


def read_figures(path: Path) -> dict[str, Any]:
    """Contents of a metrics file; empty: there is none."""
    found: dict[str, Any] = read_json(path) if path.is_file() else {}
    return found

"""The first three stages and TRL on one file of rows, each as a user would start it."""

import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.benchmarks.processes import run
from tests.imports import ROOT

STAGES = ("format", "split", "tokenize_and_collate")
BASE_MODEL = ROOT / "data/base_model"
BENCH_PYTHON = ROOT / ".venv-bench/bin/python"
SURROUNDINGS = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


class StageTrial(NamedTuple):
    """One stage, once."""

    seconds: float
    rows: int
    """Rows it was given: the stages before it have taken some out."""
    peak_mb: float

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.seconds


class TrlTrial(NamedTuple):
    """TRL, once."""

    seconds: float
    """Making the trainer, which prepares the rows."""
    process_seconds: float
    rows: int
    tokens: int
    peak_mb: float
    version: str

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.seconds


class TrainingTrial(NamedTuple):
    """Training, once, by one way."""

    tokens_per_second: float
    """Padding, warm-up and validation not counted."""
    peak_mb: float


class GeneratingTrial(NamedTuple):
    """Both models' answers, once, by one way."""

    rates: dict[str, float]
    """Tokens a second of each model."""
    tokens_per_second: float
    """Of both together."""


def answer_by(way: str, precision: str) -> GeneratingTrial:
    """Let both models answer in a process of their own."""
    cost = run([sys.executable, "-m", "tests.benchmarks.generating", way, precision], ROOT, SURROUNDINGS)
    said = json.loads(cost.stdout.splitlines()[-1])
    tokens = {name: sum(map(len, found["tokens"])) for name, found in said.items()}
    seconds = {name: found["seconds"] for name, found in said.items()}
    rates = {name: tokens[name] / seconds[name] for name in said}
    return GeneratingTrial(rates, sum(tokens.values()) / sum(seconds.values()))


class MmluTrial(NamedTuple):
    """MMLU, once, by one way."""

    seconds: float
    """Prompts made, tokens encoded, likelihoods and scores; the model's loading is not timed."""
    rows: int
    right: float


def measure_mmlu(way: str, precision: str, folder: Path, split: str, subjects: str) -> MmluTrial:
    """Measure the base model in a process of its own."""
    surroundings = SURROUNDINGS | {"HF_DATASETS_OFFLINE": "1", "TQDM_DISABLE": "1"}
    command = [sys.executable, "-m", "tests.benchmarks.mmlu_peer", way, precision, str(folder), split, subjects]
    cost = run(command, ROOT, surroundings)
    return MmluTrial(**json.loads(cost.stdout.splitlines()[-1]))


def make_rows(path: Path, count: int, seed: int) -> None:
    """Write rows. In a process of its own: what this one held would count in the peak of those it starts."""
    run([sys.executable, "-m", "tests.benchmarks.rows", str(count), path, f"--seed={seed}"], ROOT, {})


def lay_out(folder: Path, rows: Path) -> None:
    """Lay a new folder out like the repository: relative paths, which all options default to, stay inside it."""
    (folder / "data/raw").mkdir(parents=True)
    os.link(rows, folder / "data/raw/rows.jsonl")
    (folder / "data/base_model").symlink_to(BASE_MODEL)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["collate"] |= {"strategy": "pack", "max_seq_len": 512}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")


def run_stage(stage: str, folder: Path, rows: int) -> StageTrial:
    """Run one stage in a folder laid out for `rows` rows; those before it must have run."""
    cost = run([sys.executable, "-m", f"stages.{stage}"], folder, SURROUNDINGS)
    if stage != "format":
        counts = _metrics(folder, "format")
        rows = counts["rows_kept"]
    return StageTrial(cost.seconds, rows, cost.peak_mb)


def stage_tokens(folder: Path) -> int:
    """Tokens in the arrays of all splits, counting each example's last one, which is only a target."""
    counts = _metrics(folder, "tokens")
    return sum(counts[split]["tokens"] + counts[split]["examples"] for split in ("train", "validation", "test"))


def run_trl(rows: Path, scratch: Path, row_type: str) -> TrlTrial:
    """Let TRL prepare the same rows, as `row_type` of its dataset types, with nothing cached."""
    own_folders = {"HF_HOME": str(scratch / "hub"), "TMPDIR": str(scratch), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    scratch.mkdir()
    command: list[str | Path] = [BENCH_PYTHON, "-m", "tests.benchmarks.trl_peer", rows, BASE_MODEL, scratch, row_type]
    cost = run(command, ROOT, SURROUNDINGS | own_folders)
    said = json.loads(cost.stdout.splitlines()[-1])
    return TrlTrial(said["seconds"], cost.seconds, said["rows"], said["tokens"], cost.peak_mb, said["version"])


def train_ours(folder: Path, precision: str) -> TrainingTrial:
    """One epoch of our stage on what the repository's pipeline made, in a new folder."""
    (folder / "data").mkdir(parents=True)
    for name in ("tokens", "base_model", "init"):
        (folder / "data" / name).symlink_to(ROOT / "data" / name)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["finetune"] |= {"precision": precision, "epochs": 1, "validations_per_epoch": 1, "sample_prompts": 0}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    cost = run([sys.executable, "-m", "stages.finetune"], folder, SURROUNDINGS | {"DVC_ROOT": str(folder)})
    return TrainingTrial(_metrics(folder, "speed")["tokens_per_second"], cost.peak_mb)


def train_peer(way: str, steps: int, scratch: Path) -> TrainingTrial:
    """Some steps of another way to train, on the same rows."""
    python = sys.executable if way == "textbook" else BENCH_PYTHON
    rows = ROOT / "data/split"
    command: list[str | Path] = [
        python,
        "-m",
        "tests.benchmarks.training_peers",
        way,
        rows,
        BASE_MODEL,
        str(steps),
        scratch,
    ]
    cost = run(command, ROOT, SURROUNDINGS | {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1"})
    said = json.loads(cost.stdout.splitlines()[-1])
    return TrainingTrial(said["tokens_per_second"], cost.peak_mb)


def matrix_rates() -> dict[str, float]:
    """Floating-point operations a second of matrix products, by precision."""
    cost = run([sys.executable, "-m", "tests.benchmarks.matrix_rate"], ROOT, SURROUNDINGS)
    rates: dict[str, float] = json.loads(cost.stdout)
    return rates


def _metrics(folder: Path, name: str) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((folder / f"metrics/{name}.json").read_text(encoding="utf-8"))
    return metrics

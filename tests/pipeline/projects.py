"""Checkouts of this repository with a tiny model, in which `dvc repro` runs."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from tests.imports import ROOT

TINY: dict[str, dict[str, Any]] = {
    "base_model": {"sha256": None},
    "split": {"train_fraction": 0.6, "validation_fraction": 0.2, "test_fraction": 0.2},
    "collate": {"max_seq_len": 256},
    "finetune": {"learning_rate": "1e-2", "epochs": 2, "validations_per_epoch": 2, "compile": False},
    "generate": {"max_new_tokens": 8},
    "judge": {"card_rows": 5, "resamples": 200},
}
TALKS = 15
"""Conversations among the raw data."""

STAGES = ["base-model", "format", "split", "tokenize-and-collate", "finetune", "generate", "judge", "benchmark"]
"""In the order in which they run."""


def make_project(folder: Path, base_model: Path) -> Path:
    """A fresh checkout of our files, 93 rows of the shipped data and conversations made of others, the tiny model."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    for name in listed:
        if name.startswith(("stages/", "data/", ".dvc")) or name in ("dvc.yaml", ".gitignore"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    rows = (ROOT / "data/raw/instructions.jsonl").read_text(encoding="utf-8").splitlines()
    write_lines(folder / "data/raw/instructions.jsonl", rows[::15])
    talks = [make_talk(*map(json.loads, pair)) for pair in zip(rows[1::15], rows[2::15], strict=False)][:TALKS]
    write_lines(folder / "data/raw/talks.jsonl", map(json.dumps, talks))
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, values in TINY.items():
        params[section] |= values
    params["base_model"]["source"] = f"path:{base_model}"
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    return folder


def write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def make_talk(*rows: dict[str, str]) -> dict[str, Any]:
    """A conversation of as many turns as there are rows, as OpenAI has them."""
    messages = [{"role": "system", "content": "Answer in English."}]
    for row in rows:
        messages.append({"role": "user", "content": f"{row['instruction']} {row['input']}".strip()})
        messages.append({"role": "assistant", "content": row["output"]})
    return {"messages": messages, "category": "talks"}


def repro(project: Path, *arguments: str, **environment: str) -> str:
    """Run `dvc repro` and return what it printed."""
    with start_repro(project, *arguments, **environment) as process:
        printed, _ = process.communicate()
    assert process.returncode == 0, printed
    return printed


def start_repro(project: Path, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    """Start `dvc repro`; what it prints, and what stages print that outlive it, comes out of `stdout`."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_TRACKING", "DVC_"))}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    return subprocess.Popen(
        ["dvc", "repro", *arguments],
        cwd=project,
        env=env | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ran(printed: str) -> list[str]:
    return re.findall(r"Running stage '(.*)'", printed)


def set_parameter(project: Path, name: str, value: Any) -> None:
    section, key = name.split(".")
    params = yaml.safe_load((project / "params.yaml").read_text())
    params[section][key] = value
    (project / "params.yaml").write_text(yaml.safe_dump(params))


def make_finished_project(folder: Path, base_model: Path) -> None:
    """A project in which `dvc repro` has run and everything is committed."""
    make_project(folder, base_model)
    git(folder, "config", "user.name", "Ada")
    git(folder, "config", "user.email", "ada@example.org")
    commit(folder, "the project")
    assert ran(repro(folder)) == STAGES
    commit(folder, "its results")


def git(folder: Path, *arguments: str) -> str:
    """What a git command prints."""
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def commit(folder: Path, message: str) -> str:
    """Commit everything; its hash."""
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", message)
    return git(folder, "rev-parse", "HEAD")

"""Stages started by themselves, each in a process of its own, in a folder with a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from stages.instructions.instruction import Instruction
from stages.instructions.prompts import TemplateMark, make_prompt, write_prompts
from stages.instructions.templates import TEMPLATES
from stages.judging.responses import Response, write_responses
from stages.pipeline.files import write_json
from tests.conftest import ROOT
from tests.pipeline.forks import run_module
from tests.pipeline.stores import make_store

CHATML = TEMPLATES["chatml"]
MARK = TemplateMark(CHATML.name, CHATML.hash, CHATML.end)


class Project:
    """A folder with a tiny base model and checkpoint, in which stages are started by themselves."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        (folder / "data/split").mkdir(parents=True)
        (folder / "data/base_model").symlink_to(model)
        (folder / "data/checkpoint").mkdir()
        for file in model.iterdir():
            (folder / "data/checkpoint" / file.name).symlink_to(file)
        write_json(folder / "data/checkpoint/onset.json", {"template": MARK._asdict()})
        write_json(folder / "metrics/finetune.json", {"best_epoch": 1.0})
        (folder / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
        make_store(folder)
        self.set("judge", card_rows=4, resamples=100)
        self.set("generate", max_new_tokens=16, precision="fp32")

    def set(self, section: str, **values: Any) -> None:
        path = self.folder / "params.yaml"
        sections = yaml.safe_load(path.read_text())
        sections[section] |= values
        path.write_text(yaml.safe_dump(sections))

    def write_test(self, count: int, start: int = 0) -> None:
        prompts = [
            make_prompt(Instruction(f"Say {at}.", f"{at} it is.", category="ab"[at % 2], file="a", line=at), CHATML)
            for at in range(start, start + count)
        ]
        write_prompts(self.folder / "data/split/test.parquet", prompts, MARK)

    def write_responses(self, rows: list[Response]) -> None:
        write_responses(self.folder / "data/responses.parquet", rows, {})

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_TRACKING", "DVC_"))}
        return env | {"PYTHONPATH": str(ROOT), "DVC_ROOT": str(self.folder), "OMP_NUM_THREADS": "1"} | more

    def start(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=self.folder,
            env=self._environment(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, given: str = "", code: int = 0, **environment: str) -> tuple[str, str]:
        done = run_module(self.folder, *arguments, environment=self._environment(environment), given=given)
        assert done.returncode == code, done.stderr
        return done.stdout, done.stderr

    def fails(self, *arguments: str, **environment: str) -> str:
        """The one line of an error; nothing was written."""
        before = self._files()
        _, err = self.run(*arguments, code=2, **environment)
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, err
        assert "Traceback" not in err
        assert before == self._files(), "something was written"
        return lines[0]

    def _files(self) -> list[Path]:
        kept = (".calls", ".benchmarks", "mlflow")
        return sorted(path for path in self.folder.rglob("*") if not path.name.startswith(kept))

    def judged(self) -> dict[str, Any]:
        figures: dict[str, Any] = json.loads((self.folder / "metrics/judge.json").read_text())
        return figures

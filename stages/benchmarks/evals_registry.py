"""The registry of OpenAI Evals as files: evals/*.yaml, data/<name>/*.jsonl, modelgraded/*.yaml (openai/evals, MIT).

An entry of evals/*.yaml is an eval (`class`, `args`) or, with `id`, another name of one; `samples_jsonl` and
`few_shot_jsonl` are paths below data/.
"""

import gzip
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from stages.benchmarks.benchmark import Message
from stages.instructions.raw_files import read_text, read_values
from stages.pipeline.errors import UserError

POINTER = b"version https://git-lfs"
"""How a file begins that git put in the place of one of its large files."""

BASIC = "evals.elsuite.basic"
CLASSES: Mapping[str, frozenset[str]] = {
    f"{BASIC}.match:Match": frozenset({"max_tokens", "num_few_shot", "few_shot_jsonl"}),
    f"{BASIC}.includes:Includes": frozenset({"max_tokens", "ignore_case"}),
    f"{BASIC}.fuzzy_match:FuzzyMatch": frozenset({"max_tokens"}),
    f"{BASIC}.json_match:JsonMatch": frozenset({"max_tokens"}),
    f"{BASIC}.json_validator:JsonValidator": frozenset({"max_tokens"}),
    "evals.elsuite.modelgraded.classify:ModelBasedClassify": frozenset(
        {"modelgraded_spec", "modelgraded_spec_args", "sample_kwargs", "eval_kwargs", "multicomp_n", "eval_type"}
        | {"match_fn", "metaeval"}
    ),
}
"""Classes that are known here, with the arguments they take beside `samples_jsonl`."""

NAMES = {"example_user": "user", "example_assistant": "assistant"}
"""Whose turn it is in examples that stand in messages of the system."""


class Eval(NamedTuple):
    """One eval of the registry."""

    name: str
    """A name that points to it, else its own."""
    id: str
    """Its own name."""
    cls: str
    args: dict[str, Any]
    folder: Path
    problem: str
    """Why it cannot be run here; empty: it can be."""

    @property
    def kind(self) -> str:
        """Its class without the module."""
        return self.cls.rpartition(":")[2]

    @property
    def samples(self) -> Path:
        """The file with its rows."""
        return self.folder / "data" / str(self.args.get("samples_jsonl"))

    def rows(self) -> list[dict[str, Any]]:
        """Its samples.

        Raises:
            UserError: the file is missing, of another format, or holds no row.
        """
        return read_samples(self.samples)


def read_evals(folder: Path) -> dict[str, Eval]:
    """Every eval of a registry by its name: one that points to it (`test-match`), else its own (`chess.dev.v0`).

    Raises:
        UserError: a file is no YAML of a registry, or a name points nowhere.
    """
    entries = read_yaml(folder / "evals")
    aliases: dict[str, str] = {}
    for name in sorted(entries):
        target = _resolved(name, entries, folder)
        if target != name:
            aliases.setdefault(target, name)
    found = {}
    for id, entry in entries.items():
        if "class" in entry:
            name = aliases.get(id, id)
            found[name] = _eval(name, id, entry, folder)
    return found


def _resolved(name: str, entries: Mapping[str, dict[str, Any]], folder: Path) -> str:
    seen = {name}
    while "id" in entries[name]:
        name = str(entries[name]["id"])
        if name not in entries or name in seen:
            raise UserError(f"{folder / 'evals'}: an id leads to {name}, which is no eval; mend the registry")
        seen.add(name)
    return name


def _eval(name: str, id: str, entry: Mapping[str, Any], folder: Path) -> Eval:
    cls, args = str(entry["class"]), dict(entry.get("args") or {})
    made = Eval(name, id, cls, args, folder, "")
    more = sorted(args.keys() - CLASSES.get(cls, frozenset()) - {"samples_jsonl"})
    problem = ""
    if cls not in CLASSES:
        known = ", ".join(known.rpartition(":")[2] for known in CLASSES)
        problem = f"its class {cls} is none of {known}; run it with openai/evals' own oaieval"
    elif "samples_jsonl" not in args:
        problem = "its args have no samples_jsonl"
    elif more:
        problem = f"its args have {', '.join(more)}, which {made.kind} does not take here"
    elif args.get("multicomp_n") == "from_models":
        problem = "it compares several models at once (multicomp_n: from_models); the benchmark arena does that"
    elif not made.samples.is_file():
        problem = f"{made.samples} is not there; copy the registry's data, too"
    elif is_pointer(made.samples):
        problem = pointer_problem(made.samples)
    return made._replace(problem=problem)


def read_yaml(folder: Path) -> dict[str, dict[str, Any]]:
    """All entries of the YAML files in a folder of the registry.

    Raises:
        UserError: a file is no YAML of names with their entries, or a name comes twice.
    """
    entries: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.yaml")):
        try:
            value = yaml.safe_load(read_text(path))
        except yaml.YAMLError as error:
            problem = str(error).replace("\n", " ")
            raise UserError(f"{path}: no YAML ({problem[:200]}); take the file as openai/evals has it") from None
        if value is not None and not (isinstance(value, dict) and all(isinstance(v, dict) for v in value.values())):
            raise UserError(f"{path}: not a file of names with their entries; take it as openai/evals has it")
        for name, entry in (value or {}).items():
            if str(name) in entries:
                raise UserError(f"{path}: {name} stands in another file of the folder, too; remove one")
            entries[str(name)] = entry
    return entries


def is_pointer(path: Path) -> bool:
    """Whether git put a pointer in the file's place."""
    with path.open("rb") as file:
        return file.read(len(POINTER)) == POINTER


def pointer_problem(path: Path) -> str:
    """What to do about a pointer."""
    return (
        f"{path} is a pointer of git-lfs and no data; run `git lfs pull` in openai/evals, or take the data from "
        "evals/registry of the package evals (`pip download --no-deps evals`)"
    )


def count_rows(path: Path) -> int:
    """Samples of a file, quickly: its lines that hold something."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        return sum(bool(line.strip()) for line in file)


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The rows of a samples file.

    Raises:
        UserError: it is missing, of another format, or holds no row.
    """
    if not path.is_file():
        raise UserError(f"{path}: not found; copy the registry's data, too")
    if is_pointer(path):
        raise UserError(pointer_problem(path))
    rows = []
    for line, value, broken in read_values(path):
        if broken or not isinstance(value, dict):
            raise UserError(f"{path}:{line}: {broken or 'not an object'}; take the file as openai/evals has it")
        rows.append(value)
    if not rows:
        raise UserError(f"{path}: holds no row; take the file as openai/evals has it")
    return rows


def chat_of(prompt: Any, where: str) -> list[Message]:
    """A sample's `input`, a text or a list of messages, as a chat that a template can show.

    Examples in messages of the system (`name: example_user`) become turns of their own, and a system message that
    comes last is the user's: it is what wants an answer.

    >>> chat_of([{"role": "system", "content": "Add: 1 2"}], "")
    [{'role': 'user', 'content': 'Add: 1 2'}]

    Raises:
        UserError: it is neither.
    """
    given = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    chat = list(_messages(given, where))
    if not chat:
        raise UserError(f"{where}: `input` holds no message")
    if chat[-1]["role"] == "system":
        chat[-1] = {**chat[-1], "role": "user"}
    return chat


def _messages(given: Any, where: str) -> Iterator[Message]:
    for message in given if isinstance(given, list) else [None]:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str) or "role" not in message:
            raise UserError(f"{where}: `input` is neither a text nor a list of messages with role and content as texts")
        role = NAMES.get(str(message.get("name")), str(message["role"]))
        yield {"role": role, "content": message["content"]}

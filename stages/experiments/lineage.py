"""One row from its raw line to its score: what each stage of this workspace has of it, and whether that still holds."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from rapidfuzz import fuzz, process

from stages.experiments.lineage_raw import raw_row
from stages.experiments.lineage_split import why_there
from stages.instructions.deal import SPLITS, WITHHELD
from stages.instructions.prompts import iterate_prompts, read_template_mark
from stages.instructions.templates import Segment
from stages.judging.responses import read_responses
from stages.judging.reviews import read_reviews
from stages.judging.verdicts import read_verdicts
from stages.pipeline.errors import UserError
from stages.pipeline.files import iterate_parquet, read_json, read_parquet, sha256_of
from stages.pipeline.tables import one_line
from stages.tokens.inspection import inspect_example
from stages.tokens.labels import label
from stages.tokens.tokenizer import Tokenizer

Facts = dict[str, Any]

MISSING = "missing"
"""Key under which a part says why it is not there."""

WHOLE = 1 << 30
"""A width that truncates nothing."""


class Place(NamedTuple):
    """A raw row, and what format made of it."""

    id: str | None
    """None: it could not be read that far."""
    file: str
    """Below data/raw."""
    line: int
    reason: str | None
    """Why it was rejected; None: it is a prompt."""


def trace(wanted: str, root: Path) -> Facts:
    """Everything that the files in `root` have of a row, part by part; a stage that has not run has `missing` alone.

    `wanted` is the id of any row, also of one that was rejected or withheld, the beginning of one, or `file:line`.

    Raises:
        UserError: there is no such row, or several.
    """
    place = find(wanted, root)
    data, params = root / "data", _params(root / "params.yaml")
    parts: dict[str, Callable[[], Facts]] = {"raw": lambda: raw_row(root, place.file, place.line, place.id, params)}
    if place.reason is None and place.id is not None:
        id, prompt = place.id, _prompt(data / "prompts.parquet", place.id)
        split = _split_of(data / "split", id)
        parts |= {
            "format": lambda: _format(root, prompt),
            "split": lambda: _split(root, split, prompt, params.get("split", {})),
            "tokens": lambda: _tokens(data, split, prompt),
            "training": lambda: _training(root, split, id),
            "answers": lambda: _answers(data, id),
            "judged": lambda: _judged(data, id),
            "reviews": lambda: {"given": _reviews(data, id)},
        }
    found: Facts = {"id": place.id, "file": place.file, "line": place.line, "rejected": place.reason}
    for name, read in parts.items():
        try:
            found[name] = read()
        except UserError as error:
            found[name] = {MISSING: str(error)}
    return found


def _params(path: Path) -> Facts:
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run from the folder that holds dvc.yaml") from None
    except yaml.YAMLError:
        raise UserError(f"{path}: not valid YAML; mend it") from None


# ---- which row


def find(wanted: str, root: Path) -> Place:
    """The row with this id, with an id that begins so, or at this `file:line`.

    Raises:
        UserError: there is none, or several.
    """
    places = list(_places(root / "data"))
    file, _, line = wanted.removeprefix("data/raw/").rpartition(":")
    if file and line.isdecimal():
        there = [place for place in places if (place.file, place.line) == (file, int(line))]
        if not there:
            raise UserError(
                f"{one_line(wanted, 80)}: no row begins there; see data/prompts.parquet and data/rejected.jsonl"
            )
        return there[0]
    if there := [place for place in places if place.id == wanted]:
        return there[0]
    ids = {place.id: place for place in places if place.id}
    begin = [id for id in ids if id.startswith(wanted)]
    if len(begin) > 1:
        raise UserError(f"{wanted}: {len(begin)} ids begin so: {', '.join(begin[:3])} ...; give more of it")
    if not begin:
        near = process.extract(wanted, list(ids), scorer=fuzz.ratio, limit=3)
        raise UserError(
            f"{one_line(wanted, 80)}: no row has this id; the nearest are {', '.join(str(id) for id, *_ in near)}; "
            "ids are in data/scores.parquet and the ledgers, or give file:line"
        )
    return ids[begin[0]]


def _places(data: Path) -> Iterator[Place]:
    """Of all rows, prompts first: a duplicate has the id of the row that was kept."""
    for batch in iterate_prompts(data / "prompts.parquet", ("id", "file", "line")):
        for id, file, line in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            yield Place(id, file, line, None)
    for row in _ledger(data / "rejected.jsonl"):
        yield Place(row["id"], row["file"], row["line"], row["reason"])


def _ledger(path: Path) -> list[Facts]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _prompt(path: Path, id: str) -> Facts:
    for batch in iterate_prompts(path):
        ids = batch.column("id").to_pylist()
        if id in ids:
            return dict(batch.slice(ids.index(id), 1).to_pylist()[0])
    raise UserError(f"{path}: changed while it was read; try again")


# ---- part by part


def _format(root: Path, prompt: Facts) -> Facts:
    data = root / "data"
    schema = read_json(root / "metrics/format.json")["files"].get(prompt["file"], {}).get("schema", "")
    copies = [row for row in _ledger(data / "rejected.jsonl") if row["id"] == prompt["id"]]
    return {
        "schema": schema,
        "template": read_template_mark(data / "prompts.parquet")._asdict(),
        "category": prompt["category"],
        "prompt": "".join(s["text"] for s in prompt["segments"] if s["role"] in ("template", "user")),
        "text": "".join(segment["text"] for segment in prompt["segments"]),
        "response": prompt["response"],
        "duplicates": [f"{row['file']}:{row['line']}" for row in copies],
    }


def _split_of(splits: Path, id: str) -> str | None:
    """None: split has not run, or not on this row."""
    for name in SPLITS:
        path = splits / f"{name}.parquet"
        if path.is_file() and any(id in batch.column("id").to_pylist() for batch in iterate_prompts(path, ("id",))):
            return name
    return WITHHELD if any(row["id"] == id for row in _ledger(splits / "withheld.jsonl")) else None


def _split(root: Path, split: str | None, prompt: Facts, settings: Facts) -> Facts:
    if split is None:
        raise UserError("no split has this row; run `dvc repro split`")
    withheld = [row["reason"] for row in _ledger(root / "data/split/withheld.jsonl") if row["id"] == prompt["id"]]
    return {"split": split, "withheld": withheld[0] if withheld else None} | why_there(
        root / "data", prompt["id"], split, settings
    )


def _tokens(data: Path, split: str | None, prompt: Facts) -> Facts:
    if split not in SPLITS:
        raise UserError("in no split, so it was not tokenized")
    for row in _ledger(data / "tokens/dropped.jsonl"):
        if row["id"] == prompt["id"]:
            return {"dropped": row["reason"]}
    tokenizer = Tokenizer(data / "base_model")
    found = inspect_example(prompt["id"], split, data / "tokens", data / "split", tokenizer)
    whole = label([[Segment(**segment) for segment in prompt["segments"]]], tokenizer, WHOLE)
    return {
        "example": found.number,
        "row": found.row,
        "tokens": len(found.steps),
        "supervised": sum(step.has_loss for step in found.steps),
        "lost": int(whole.lengths[0]) - len(found.steps),
    }


def _training(root: Path, split: str | None, id: str) -> Facts:
    """Whether it was trained on, and of a validation row its losses (nats per token) by step."""
    finetuned = read_json(root / "metrics/finetune.json")
    found: Facts = {"best_step": finetuned["best_step"], "best_epoch": finetuned["best_epoch"], "losses": {}}
    dropped = any(row["id"] == id for row in _ledger(root / "data/tokens/dropped.jsonl"))
    found["trained_on"] = split == "train" and not dropped
    if split == "validation":
        for batch in iterate_parquet(root / "data/validation_losses.parquet"):
            for row in batch.to_pylist():
                if row["id"] == id:
                    found["losses"][str(row["step"])] = round(row["response_loss"] / row["response_tokens"], 4)
    return found


def _answers(data: Path, id: str) -> Facts:
    rows, about = read_responses(data / "responses.parquet")
    row = next((row for row in rows if row.id == id), None)
    if row is None:
        raise UserError("not a test row, so no model was asked")
    return row._asdict() | {"made_by": {name: value for name, value in about.items() if name != "template"}}


def _judged(data: Path, id: str) -> Facts:
    scores = next((row for row in read_parquet(data / "scores.parquet") if row["id"] == id), None)
    if scores is None:
        raise UserError("not a test row, so there was nothing to judge")
    verdicts, _ = read_verdicts(data / "verdicts.parquet")
    return {"scores": scores, "verdicts": [said._asdict() for said in verdicts if said.id == id]}


def _reviews(data: Path, id: str) -> list[Facts]:
    responses = data / "responses.parquet"
    reviews = read_reviews(data / "reviews", sha256_of(responses)) if responses.is_file() else {}
    found = []
    for review in reviews.values():
        said, vote = review.scores.get(id), review.votes.get(id)
        if said or vote:
            score, note = (said.score, said.note) if said else (None, "")
            found.append({"reviewer": review.reviewer, "score": score, "note": note, "vote": vote})
    return found

"""What the terminal shows of a row's lineage."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from stages.experiments.lineage import MISSING
from stages.experiments.lineage_raw import GONE, OTHER, SAME
from stages.experiments.lineage_record import HASHED, Record
from stages.pipeline.environment import in_words
from stages.pipeline.tables import drawn, one_line

Facts = Mapping[str, Any]

TEXT = 400
"""Characters shown of a text."""
LINES = 12
"""Lines shown of a prompt."""
NEAR = 3
"""Near-duplicates shown."""
PREFERRED = {1.0: "better", 0.5: "neither", 0.0: "worse"}
"""What a judge said of two answers."""


def lineage_text(found: Facts, record: Record, runs: Sequence[Facts]) -> str:
    """A part for each stage, and last what vouches for them."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, lines in (*_parts(found), ("MLflow", _runs(runs)), ("Record", _record(record))):
        for number, line in enumerate(lines):
            table.add_row("" if number else name, Text(one_line(line, 3 * TEXT)))
    title = f"{found['id'] or 'a row without an id'}, from data/raw/{one_line(found['file'], TEXT)}:{found['line']}"
    warnings = [Text(one_line(f"warning: {line}", 3 * TEXT)) for line in _warnings(found, record)]
    return drawn(Text(title), Text(), table, *([Text(), *warnings] if warnings else []))


def _parts(found: Facts) -> Iterator[tuple[str, list[str]]]:
    show = {
        "raw": ("Raw", _raw),
        "format": ("Format", _format),
        "split": ("Split", _split),
        "tokens": ("Tokens", _tokens),
        "training": ("Training", _training),
        "answers": ("Answers", _answers),
        "judged": ("Judge", _judged),
        "reviews": ("Reviews", _reviews),
    }
    for name, (title, lines) in show.items():
        if name in found:
            part = found[name]
            yield title, [one_line(part[MISSING], TEXT)] if MISSING in part else lines(part)
    if found["rejected"] is not None:
        yield "Rejected", [one_line(found["rejected"], TEXT)]


def _raw(part: Facts) -> list[str]:
    row = part["row"] if isinstance(part["row"], str) else json.dumps(part["row"], ensure_ascii=False)
    shown = [one_line(row, TEXT)] if part["row"] is not None else []
    now = {SAME: "reads as it did", OTHER: "another row stands there now", GONE: "no row begins there any more"}
    return [*shown, now.get(part["state"], f"cannot be used as it stands: {one_line(part['why'], TEXT)}")]


def _format(part: Facts) -> list[str]:
    template, category = part["template"], part["category"]
    about = f"schema {part['schema'] or 'not known'}; template {template['name']} ({template['hash']})"
    copies = [f"the same again, removed: {one_line(', '.join(part['duplicates']), TEXT)}"] if part["duplicates"] else []
    lines = part["text"].split("\n")
    more = [f"... {len(lines) - LINES} lines more"] if len(lines) > LINES else []
    named = f"; category {one_line(category, 60)}" if category else ""
    return [about + named, *copies, *(f"| {one_line(line, TEXT)}" for line in lines[:LINES]), *more]


def _split(part: Facts) -> list[str]:
    lines = [f"{part['split']}: {part['why']}"]
    if part["withheld"]:
        lines.append(one_line(part["withheld"], TEXT))
    for one in part["neighbours"][:NEAR]:
        lines.append(f"near {one['place']} ({one['id']}, {one['split'] or 'in no split'}): {one['similarity']:.2f}")
    if part["num_neighbours"] > NEAR:
        lines.append(f"and {part['num_neighbours'] - NEAR} more")
    return lines if part["num_neighbours"] else [f"{lines[0]}; no near-duplicate", *lines[1:]]


def _tokens(part: Facts) -> list[str]:
    if "dropped" in part:
        return [f"dropped: {one_line(part['dropped'], TEXT)}"]
    lost = f"; truncated: {part['lost']} lost at its end" if part["lost"] else ""
    where = f"example {part['example']} in row {part['row']} of its split"
    return [f"{part['tokens']}, {part['supervised']} with a loss{lost}; {where}"]


def _training(part: Facts) -> list[str]:
    until = f"the checkpoint is from step {part['best_step']}, epoch {part['best_epoch']:.2f}"
    lines = [f"{'trained on' if part['trained_on'] else 'not trained on'}; {until}"]
    if part["losses"]:
        lines.append("loss on it by step: " + ", ".join(f"{step}: {loss:.3f}" for step, loss in part["losses"].items()))
    return lines


def _answers(part: Facts) -> list[str]:
    by = part["made_by"]
    made = f"by checkpoint {by['checkpoint_sha256'][:16]}" if "checkpoint_sha256" in by else f"by {json.dumps(by)}"
    return [
        f"fine-tuned ({part['finish_reason']}, {made}): {one_line(part['response'], TEXT) or '(empty)'}",
        f"base model ({part['base_finish_reason']}): {one_line(part['base_response'], TEXT) or '(empty)'}",
        f"reference: {one_line(part['reference'], TEXT)}",
    ]


def _judged(part: Facts) -> list[str]:
    lines = []
    for said in part["verdicts"]:
        if said["task"] == "grade":
            whose = "fine-tuned" if said["answer"] == "response" else "base model"
            score = "unreadable" if said["score"] is None else f"{said['score']:.1f}"
        else:
            whose = f"fine-tuned against {said['answer']}"
            score = PREFERRED.get(said["score"], "unreadable")
        words = f" ({one_line(said['reply'], TEXT)})" if said["reply"] else ""
        lines.append(one_line(f"{said['judge']}, {whose}: {score}{words}", TEXT))
    return lines


def _reviews(part: Facts) -> list[str]:
    votes = {"response": "the fine-tuned answer", "base_response": "the base model's answer", "tie": "a tie"}
    lines = []
    for one in part["given"]:
        said = [f"{one['score']} of 5"] if one["score"] is not None else []
        said += [f"blind vote for {votes[one['vote']]}"] if one["vote"] else []
        said += [one_line(one["note"], TEXT)] if one["note"] else []
        lines.append(f"{one_line(one['reviewer'], 60)}: {'; '.join(said)}")
    return lines or ["none"]


# ---- what vouches for it


def _runs(runs: Sequence[Facts]) -> list[str]:
    return [one_line(f"{run['name']}: run {run['id']}", TEXT) for run in runs] or [
        "no run of this training in the store"
    ]


def _record(record: Record) -> list[str]:
    hashes = [f"{path} {record.origin.files[path][:8]}" for path in HASHED if path in record.origin.files]
    return [*_commit(record), *_made(record), *([f"MD5 in dvc.lock: {', '.join(hashes)}"] if hashes else [])]


def _commit(record: Record) -> list[str]:
    commit = record.commit
    if commit is None:
        return ["not in Git, or nothing committed"]
    dirty = f", {commit['changed']} tracked files changed since" if commit["changed"] else ""
    return [f"commit {commit['hash']}{' on ' + one_line(commit['branch'], 60) if commit['branch'] else ''}{dirty}"]


def _made(record: Record) -> list[str]:
    lines = []
    if record.checkpoint:
        lines.append(f"checkpoint {record.checkpoint.get('sha256', 'without a hash')}, {record.checkpoint['method']}")
    if base := record.base_model:
        licence = base["licence"] or "not stated"
        lines.append(one_line(f"base model {base['source']}, sha256 {base['sha256']}, licence {licence}", TEXT))
    if record.changed is None:
        return [*lines, f"dvc.lock: not known: {one_line(record.unknown, TEXT)}"]
    lines.append("dvc.lock: files differ from it" if record.stale else "dvc.lock: files are as it has them")
    if record.not_cached:
        lines.append(f"not checked, since DVC's cache lacks them: {', '.join(record.not_cached)}")
    return lines


def _warnings(found: Facts, record: Record) -> Iterator[str]:
    raw = found["raw"]
    if raw.get("state") not in (None, SAME) and found["rejected"] is None:
        yield "the raw line does not read as this row any more; what follows is of the data before"
    for path, how in record.stale.items():
        yield f"{path}: {how} since the last dvc repro"
    if record.elsewhere:
        yield f"the checkpoint was made in another environment: {in_words(record.elsewhere)}"

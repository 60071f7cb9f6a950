"""Why two experiments may differ: parameters, data, code, inputs, base model, environment, each as its files tell."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from stages.experiments.origins_data import changed_rows
from stages.pipeline.changes import CODE, Origin, changed_code, changed_params, flat, locked
from stages.pipeline.environment import FILE, changed
from stages.pipeline.errors import UserError
from stages.pipeline.files import read_json

Find = Callable[[str], Path | None]
"""Where a file of an experiment can be read, by its path; None: it has none."""

Pairs = dict[str, tuple[Any, Any]]
Figures = dict[str, Any]

RAW = "data/raw"
PROMPTS, SPLIT, BASE_MODEL, CHECKPOINT = "data/prompts.parquet", "data/split", "data/base_model", "data/checkpoint"


class Made(NamedTuple):
    """What an experiment was made from."""

    find: Find
    params: dict[str, Any]
    """As the stages took them, by dotted name; as params.yaml has them where a stage has not run."""
    stages: dict[str, Figures]
    """The stages of dvc.lock: command, dependencies, parameters, outputs."""
    outs: dict[str, str]
    """MD5 of every output, by path."""
    stale: Pairs
    """Parameters that params.yaml has otherwise than the stages took them: (took, has now)."""


def read_made(find: Find) -> Made:
    """Read params.yaml and dvc.lock.

    Raises:
        UserError: they are damaged.
    """
    written, stages = _yaml(find("params.yaml")), _yaml(find("dvc.lock")).get("stages") or {}
    took = {name: value for stage in stages.values() for name, value in _params(stage).items()}
    outs = {one["path"]: one.get("md5", "") for stage in stages.values() for one in stage.get("outs") or []}
    named = {name: value for name, value in written.items() if name in took}
    stale = changed_params(Origin(flat(took), {}), Origin(flat(named), {})) if written else {}
    return Made(find, flat(written | took), stages, outs, stale)


def _yaml(path: Path | None) -> Figures:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) if path else None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {error}; restore it with git") from None
    return found if isinstance(found, dict) else {}


def _params(stage: Figures) -> Figures:
    return (stage.get("params") or {}).get("params.yaml") or {}


def causes(one: Made, other: Made) -> Figures:
    """All that differs in what two experiments were made from; empty where nothing does.

    Values are pairs, the first's and the second's. `unknown` names what one of them does not tell.
    """
    there = bool(one.stages), bool(other.stages)
    data = None if _same(one, other, PROMPTS, SPLIT) else changed_rows(one.find, other.find)
    inputs = _inputs(one, other) if all(there) else {}
    if data and any(data[kind]["count"] for kind in ("added", "removed", "edited", "recategorized")):
        inputs.pop(RAW, None)  # the rows tell it
    return {
        "params": {name: (_plain(a), _plain(b)) for name, (a, b) in _changed_params(one, other).items()},
        "data": data,
        "code": _code(one, other) if all(there) else {},
        "inputs": inputs,
        "base_model": {} if _same(one, other, BASE_MODEL) else _in_files(one, other, f"{BASE_MODEL}/origin.json", _any),
        "environment": {} if _same(one, other, CHECKPOINT) else _in_files(one, other, f"{CHECKPOINT}/{FILE}", changed),
        "unknown": _unknown(one, other),
    }


def _changed_params(one: Made, other: Made) -> Pairs:
    return changed_params(Origin(one.params, {}), Origin(other.params, {})) if one.params and other.params else {}


def _plain(value: Any) -> Any:
    """A value of YAML as JSON has it; infinity and dates as text."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return str(value)
    return value


def _same(one: Made, other: Made, *paths: str) -> bool:
    """Whether dvc.lock says that they are the same, so that nothing need be read."""
    return all(path in one.outs and one.outs[path] == other.outs.get(path) for path in paths)


def _any(one: Figures, other: Figures) -> Pairs:
    return {
        name: (one.get(name), other.get(name)) for name in {**one, **other} if one.get(name) != other.get(name)
    } or {"files": ("other bytes", "other bytes")}


def _in_files(one: Made, other: Made, path: str, differ: Callable[[Figures, Figures], Pairs]) -> Pairs:
    first, second = (made.find(path) for made in (one, other))
    return differ(read_json(first), read_json(second)) if first and second else {}


def _unknown(one: Made, other: Made) -> list[str]:
    found = []
    for name, made in (("A", one), ("B", other)):
        if not made.stages:
            found.append(f"{name} has no dvc.lock: code and inputs cannot be compared")
        if not made.params:
            found.append(f"{name} has no params.yaml: parameters cannot be compared")
        elif made.stale:
            names = ", ".join([*made.stale][:3]) + (f" and {len(made.stale) - 3} more" if len(made.stale) > 3 else "")
            found.append(f"{name}: params.yaml was changed after the run ({names}); compared is what the stages took")
    for name, made in (("A", one), ("B", other)):
        if not _same(one, other, PROMPTS) and made.find(PROMPTS) is None:
            found.append(f"{name} has no {PROMPTS} at hand: rows of data cannot be compared")
        if not _same(one, other, CHECKPOINT) and made.find(f"{CHECKPOINT}/{FILE}") is None:
            found.append(f"{name} does not say in which environment it was trained")
    return found


# ---- by stage, since a stage that did not run again has kept what an older code made


def _code(one: Made, other: Made) -> dict[str, Figures]:
    """Files of code that differ, and commands, with the stages that they are of."""
    found: dict[str, Figures] = {}
    for name in {**one.stages, **other.stages}:
        first, second = (made.stages.get(name) for made in (one, other))
        if first is None or second is None:
            found[f"dvc.yaml: {name}"] = {"change": "added" if first is None else "removed", "stages": [name]}
            continue
        if first.get("cmd") != second.get("cmd"):
            found[f"dvc.yaml: command of {name}"] = {"change": "changed", "stages": [name]}
        files = [Origin({}, locked({"stages": {name: stage}})) for stage in (first, second)]
        for path, change in changed_code(*files).items():
            found.setdefault(path, {"change": change, "stages": []})["stages"].append(name)
    return found


def _inputs(one: Made, other: Made) -> Pairs:
    """What people put there that differs, beside code."""
    files = [_foreign(made) for made in (one, other)]
    paths = sorted({**files[0], **files[1]})
    return {
        path: (files[0].get(path), files[1].get(path)) for path in paths if files[0].get(path) != files[1].get(path)
    }


def _foreign(made: Made) -> dict[str, str]:
    """Dependencies that are neither code nor of a stage's making."""
    deps = {one["path"]: one.get("md5", "") for stage in made.stages.values() for one in stage.get("deps") or []}
    outs = tuple(f"{out}/" for out in made.outs)
    return {path: md5 for path, md5 in deps.items() if not f"{path}/".startswith((CODE, *outs))}


def not_reproduced(one: Made, other: Made) -> dict[str, list[str]]:
    """Outputs that differ by stages whose command, dependencies and parameters are the same."""
    found = {}
    for name in one.stages.keys() & other.stages.keys():
        first, second = one.stages[name], other.stages[name]
        if all(first.get(kind) == second.get(kind) for kind in ("cmd", "deps", "params")):
            outs = [{out["path"]: out.get("md5") for out in stage.get("outs") or []} for stage in (first, second)]
            if differing := [path for path in outs[0] if outs[0][path] != outs[1].get(path)]:
                found[name] = differing
    return {name: found[name] for name in one.stages if name in found}

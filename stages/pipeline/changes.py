"""What two experiments were made from, read off params.yaml and dvc.lock, and what differs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

CODE = "stages/"


class Origin(NamedTuple):
    """What an experiment was made from."""

    params: dict[str, Any]
    """By dotted name, as in `finetune.learning_rate`."""
    files: dict[str, str]
    """MD5 as DVC has it of every dependency and output, by path."""


def origin_of(params: Path | None, lock: Path | None) -> Origin:
    """The origin that a params.yaml and a dvc.lock tell; None: there is none."""
    return Origin(flat(_read(params)), locked(_read(lock)))


def _read(path: Path | None) -> dict[str, Any]:
    return (yaml.safe_load(path.read_text(encoding="utf-8")) if path else None) or {}


def flat(values: Mapping[str, Any], under: str = "") -> dict[str, Any]:
    """Nested values by dotted names; lists and empty mappings are values."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{under}{name}.")
        else:
            found[f"{under}{name}"] = value
    return found


def locked(lock: Mapping[str, Any]) -> dict[str, str]:
    """MD5 by path of everything that a dvc.lock names."""
    stages = (lock.get("stages") or {}).values()
    return {
        one["path"]: one.get("md5", "") for stage in stages for kind in ("deps", "outs") for one in stage.get(kind, [])
    }


def changed_params(one: Origin, other: Origin) -> dict[str, tuple[Any, Any]]:
    """Parameters with two values, in the order of their names; None: there is no such parameter.

    Numbers are compared as numbers: YAML 1.1 reads `1e-5` as text.
    """
    names = sorted({*one.params, *other.params})
    pairs = {name: (one.params.get(name), other.params.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if not _equal(*pair)}


def _equal(one: Any, other: Any) -> bool:
    if one == other:
        return True
    try:
        return not isinstance(one, bool) and not isinstance(other, bool) and float(one) == float(other)
    except (TypeError, ValueError):
        return False


def changed_code(one: Origin, other: Origin) -> dict[str, str]:
    """Files of code that differ: `changed`, `added` or `removed`, by path."""
    return {
        path: "removed" if path not in other.files else "added" if path not in one.files else "changed"
        for path in sorted({*one.files, *other.files})
        if path.startswith(CODE) and one.files.get(path) != other.files.get(path)
    }

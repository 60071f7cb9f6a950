"""What vouches for the files of this workspace: the commit, DVC's record, the checkpoint's own, the runs in MLflow."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from stages.pipeline.changes import Origin, origin_of
from stages.pipeline.environment import changed, read_environment, this_environment
from stages.pipeline.files import read_json

NOT_IN_CACHE = "not in cache"
"""DVC's word for an output that its cache lacks, whose content it therefore does not look at."""

HASHED = (
    "data/raw", "data/templates", "data/base_model", "data/prompts.parquet", "data/split", "data/tokens",
    "data/checkpoint", "data/responses.parquet", "data/verdicts.parquet", "data/scores.parquet",
)  # fmt: skip
"""Data whose hashes are shown, in the order of the stages."""

Figures = dict[str, Any]


class Record(NamedTuple):
    """What is known of where the files come from; each part as far as it can be had."""

    commit: Figures | None
    """`hash`, `branch` (None: detached), `changed` (tracked files that differ from it); None: no Git, or no commit."""
    changed: dict[str, str] | None
    """What differs from dvc.lock, by path; None: DVC cannot tell."""
    unknown: str
    """Why DVC cannot tell."""
    origin: Origin
    base_model: Figures
    """Its origin.json."""
    checkpoint: Figures
    """Its onset.json, and `sha256`."""
    environment: Figures
    """Where the checkpoint was made; empty: it does not say."""
    elsewhere: dict[str, tuple[Any, Any]]
    """What of that differs here."""

    @property
    def not_cached(self) -> list[str]:
        """Outputs that DVC cannot check, since its cache lacks them."""
        return [path for path, how in (self.changed or {}).items() if how == NOT_IN_CACHE]

    @property
    def stale(self) -> dict[str, str]:
        """What differs from dvc.lock for certain."""
        return {path: how for path, how in (self.changed or {}).items() if how != NOT_IN_CACHE}


def read_record(root: Path) -> Record:
    """Read it; about two seconds, for Python and DVC to start."""
    differs, unknown = _changed_since_lock(root)
    params, lock = (path if path.is_file() else None for path in (root / "params.yaml", root / "dvc.lock"))
    about = _json(root / "data/checkpoint/onset.json")
    speed = _json(root / "metrics/speed.json")
    if "checkpoint_sha256" in speed:
        about["sha256"] = speed["checkpoint_sha256"]
    environment = read_environment(root / "data/checkpoint")
    return Record(
        commit=_commit(root),
        changed=differs,
        unknown=unknown,
        origin=origin_of(params, lock),
        base_model=_json(root / "data/base_model/origin.json"),
        checkpoint=about,
        environment=environment,
        elsewhere=changed(environment, this_environment()),
    )


def _json(path: Path) -> Figures:
    return dict(read_json(path)) if path.is_file() else {}


def _commit(root: Path) -> Figures | None:
    revision = _git(root, "rev-parse", "HEAD")
    if revision is None:
        return None
    status = _git(root, "status", "--porcelain", "--untracked-files=no") or ""
    branch = _git(root, "symbolic-ref", "--short", "-q", "HEAD")
    return {"hash": revision.strip(), "branch": (branch or "").strip() or None, "changed": len(status.splitlines())}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def _changed_since_lock(root: Path) -> tuple[dict[str, str] | None, str]:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json"], cwd=root, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        return None, lines[-1].removeprefix("ERROR: ") if lines else f"dvc status ended with {done.returncode}"
    found: dict[str, str] = {}
    for parts in json.loads(done.stdout).values():
        for kind in parts:
            for changes in kind.values() if isinstance(kind, dict) else ():
                for path, how in changes.items() if isinstance(changes, dict) else ():
                    if isinstance(how, dict):  # of parameters, by section
                        found |= {f"{path}: {section}": word for section, word in how.items()}
                    elif found.get(path, NOT_IN_CACHE) == NOT_IN_CACHE:  # as a dependency it was looked at
                        found[path] = how
    return found, ""

"""Files of an experiment, wherever it is: in this workspace, in a folder, in a revision that DVC and Git know."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from stages.pipeline.errors import UserError

WORKSPACE = "workspace"
LOCK = "dvc.lock"


class AbsentError(UserError):
    """The experiment is there, and has not got that file, or its content is not at hand."""


def experiment_names() -> list[str]:
    """Names of all DVC experiments of this repository, of every commit.

    Raises:
        UserError: this is no repository of Git and DVC.
    """
    done = _dvc("exp", "list", "--all-commits", "--names-only")
    if done.returncode:
        raise UserError(f"dvc exp list: {_reason(done)}; run from the folder that holds dvc.yaml")
    return sorted(set(done.stdout.split()))


def locate(place: str, path: str, into: Path) -> Path:
    """Where the file `path` of an experiment can be read; it is not to be changed there.

    `place`: `workspace`, a folder, or a revision (an experiment of DVC, a commit, a branch, a tag). What Git keeps of a
    revision is written into the folder `into`, what DVC keeps is read in its cache, or else fetched into `into`.

    Raises:
        AbsentError: it has no such file, or the file's content is not at hand.
        UserError: there is no such experiment.
    """
    folder = folder_of(place)
    if folder is None:
        return _of_revision(place, commit_of(place), path, into / path)
    if not (folder / path).is_file():
        raise AbsentError(f"{place}: holds no {path}; run `dvc repro` there, or `dvc pull`")
    return folder / path


def folder_of(place: str) -> Path | None:
    """The folder that a place is; None: it is a revision."""
    folder = Path() if place == WORKSPACE else Path(place)
    return folder if place == WORKSPACE or (folder / "data").is_dir() else None


def commit_of(revision: str) -> str:
    """The hash of a commit by its name as Git has it, or as DVC names experiments.

    Raises:
        UserError: there is none, or several experiments have the name.
    """
    done = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if done.returncode == 0:
        return done.stdout.decode().strip()
    refs = _git("for-each-ref", "--format=%(refname) %(objectname)", "refs/exps")
    if refs.returncode:
        reason = refs.stderr.decode(errors="replace").strip().removeprefix("fatal: ")
        if "not a git repository" in reason:
            reason = "this is no Git repository to look for revisions in"
        raise UserError(f"{revision}: not a folder with data/, and {reason}")
    # refs/exps/<2 digits of the baseline>/<the others>/<name>, beside DVC's own such as refs/exps/celery/stash
    named = [line.split() for line in refs.stdout.decode().splitlines()]
    found = {commit for name, commit in named if name.split("/")[4:] == [revision]}
    if len(found) > 1:
        hashes = ", ".join(sorted(commit[:7] for commit in found))
        raise UserError(f"{revision}: several experiments have this name; say which by its hash: {hashes}")
    if not found:
        raise UserError(
            f"{revision}: neither a folder with data/ nor a revision or experiment; see `dvc exp show`, "
            "or fetch a teammate's by `dvc exp pull`"
        )
    return found.pop()


def _of_revision(revision: str, commit: str, path: str, to: Path) -> Path:
    """Git and the cache first: DVC takes a second a file."""
    content = _in_git(commit, path)
    if content is not None:
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(content)
        return to
    found = _in_cache(commit, path, Path.cwd())
    if found is None:
        raise AbsentError(f"{revision}: holds no {path}; it was not run, or before there was such a file")
    return found if found.is_file() else _fetch(revision, commit, path, to)


def _in_git(commit: str, path: str) -> bytes | None:
    done = _git("show", f"{commit}:./{path}")
    return done.stdout if done.returncode == 0 else None


def _in_cache(commit: str, path: str, here: Path) -> Path | None:
    """Where the content lies in DVC's cache, if it is there; None: that commit has no such file."""
    md5s = _outs(commit, here)
    out = next((out for out in (path, *map(str, Path(path).parents)) if out in md5s), None)
    if out is None:
        return None
    found = _object(here, md5s[out])
    if out == path or not found.is_file():
        return found
    inside = {one["relpath"]: one["md5"] for one in json.loads(found.read_text(encoding="utf-8"))}
    md5 = inside.get(Path(path).relative_to(out).as_posix())
    return _object(here, md5) if md5 else None


@cache
def _outs(commit: str, here: Path) -> dict[str, str]:
    """MD5 of all that DVC keeps of a commit, by path: outputs of stages, and what was added by `dvc add`."""
    lock = yaml.safe_load(_in_git(commit, LOCK) or b"") or {}
    found = {one["path"]: one.get("md5", "") for stage in (lock.get("stages") or {}).values() for one in _list(stage)}
    names = _git("ls-tree", "-r", "-z", "--name-only", commit).stdout.decode().split("\0")
    for name in names:
        if name.endswith(".dvc"):
            added = yaml.safe_load(_in_git(commit, name) or b"") or {}
            folder = Path(name).parent / added.get("wdir", "")
            found |= {(folder / one["path"]).as_posix(): one.get("md5", "") for one in _list(added)}
    return found


def _list(stage: dict[str, Any]) -> list[dict[str, str]]:
    return stage.get("outs") or []


@cache
def _cache_folder(here: Path) -> Path:
    done = _dvc("cache", "dir")
    return Path(done.stdout.strip() if done.returncode == 0 else here / ".dvc/cache")


def _object(here: Path, md5: str) -> Path:
    """Where DVC (3.x) keeps content of that hash."""
    return _cache_folder(here) / "files" / "md5" / md5[:2] / md5[2:]


def _fetch(revision: str, commit: str, path: str, to: Path) -> Path:
    to.parent.mkdir(parents=True, exist_ok=True)
    done = _dvc("get", ".", path, f"--rev={commit}", "--out", str(to), "--force")
    if done.returncode == 0 and to.is_file():
        return to
    reason = _reason(done)
    if "No storage files available" in reason:
        raise AbsentError(
            f"{revision}: {path} is neither in DVC's cache nor in a remote; who has it must push it "
            "(`dvc push`, `dvc exp push`)"
        )
    if f"['{path}']" in reason or "does not exist" in reason:
        raise AbsentError(f"{revision}: holds no {path}; it was not run, or before there was such a file")
    raise UserError(f"{revision}: {path}: cannot be fetched: {reason}")


def _dvc(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False)


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["git", *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        raise UserError("git: not found; install it, or name folders") from None


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """The line in which DVC says what went wrong."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    return lines[-1].removeprefix("ERROR: ") if lines else f"dvc ended with {done.returncode}"

"""Files of an experiment, wherever it is: in this workspace, in a folder, in a revision that DVC and Git know."""

import subprocess
import sys
from pathlib import Path

from stages.pipeline.errors import UserError

WORKSPACE = "workspace"


class AbsentError(UserError):
    """The experiment is there, and has not got that file."""


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
    """Where the file `path` of an experiment can be read.

    `place`: `workspace`, a folder, or a revision (an experiment of DVC, a commit, a branch, a tag), whose file is
    fetched into the folder `into`.

    Raises:
        AbsentError: it has no such file.
        UserError: there is no such revision, or the file's content is not at hand.
    """
    folder = Path() if place == WORKSPACE else Path(place)
    if place == WORKSPACE or (folder / "data").is_dir():
        if not (folder / path).is_file():
            raise AbsentError(f"{place}: holds no {path}; run `dvc repro` there")
        return folder / path
    return _fetch(place, path, into / path)


def _fetch(revision: str, path: str, to: Path) -> Path:
    to.parent.mkdir(parents=True, exist_ok=True)
    done = _dvc("get", ".", path, f"--rev={revision}", "--out", str(to), "--force")
    if done.returncode == 0 and to.is_file():
        return to
    reason = _reason(done)
    if "unknown Git revision" in reason:
        raise UserError(f"{revision}: neither a folder with data/ nor a revision or experiment; see `dvc exp show`")
    if "not a git repository" in reason:
        raise UserError(f"{revision}: not a folder with data/, and this is no Git repository to look for revisions in")
    if "No storage files available" in reason:
        raise UserError(f"{revision}: {path} is neither in DVC's cache nor in a remote; run `dvc fetch --all-commits`")
    if f"['{path}']" in reason or "does not exist" in reason:
        raise AbsentError(f"{revision}: holds no {path}; it was not run, or before there was such a file")
    raise UserError(f"{revision}: {path}: cannot be fetched: {reason}")


def _dvc(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False)


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """The line in which DVC says what went wrong."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    return lines[-1].removeprefix("ERROR: ") if lines else f"dvc ended with {done.returncode}"

"""Where a run comes from: Git, DVC and the machine, as tags, and the name by which people tell it apart."""

import getpass
import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stages.pipeline.environment import changed, read_environment, this_environment
from stages.pipeline.tracking_files import Files, md5_of

RESULTS = ("dvc.lock", "metrics")
"""What a run writes itself: as causes they do not count."""
LONGEST_TAG = 5000
"""Characters of a tag that servers of all versions take."""


class Where(NamedTuple):
    """What Git and DVC know of an experiment; None: they do not."""

    commit: str | None = None
    branch: str | None = None
    """None with a commit: a detached HEAD; empty: not known."""
    dirty: Sequence[str] = ()
    """Tracked files that differ from the commit, results apart."""
    experiment: str | None = None
    """As `dvc exp show` has it."""
    baseline: str | None = None
    """The commit that DVC's experiment started from."""

    @property
    def label(self) -> str:
        """The experiment's name, or else the short commit, with + where something differs from it."""
        if self.experiment:
            return self.experiment
        return f"{self.commit[:7]}{'+' if self.dirty else ''}" if self.commit else ""


def git(*arguments: str) -> str | None:
    """What a git command prints; None: it fails, or there is no git."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, errors="replace")
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def where_now() -> Where:
    """Of the experiment that runs here."""
    commit = (git("rev-parse", "HEAD") or "").strip() or None
    status = git("status", "--porcelain", "--untracked-files=no", "-z") if commit else None
    changes = [line[3:] for line in (status or "").split("\0") if len(line) > 3]
    return Where(
        commit,
        (git("branch", "--show-current") or "").strip() or None if commit else None,
        [path for path in changes if path.split("/")[0] not in RESULTS],
        os.environ.get("DVC_EXP_NAME") or None,
        os.environ.get("DVC_EXP_BASELINE_REV") or None,
    )


def git_tags(where: Where) -> dict[str, str]:
    """Tags of Git and DVC; none without them."""
    tags = {"dvc.experiment": where.experiment, "dvc.baseline": where.baseline}
    if where.commit:
        tags |= {
            "git.commit": where.commit,
            "git.branch": "detached" if where.branch is None else where.branch,
            "git.dirty": ", ".join(where.dirty)[:LONGEST_TAG] or "no",
            "mlflow.source.git.commit": where.commit,  # which the UI shows as the version
        }
    return {name: value for name, value in tags.items() if value}


def data_tags(files: Files) -> dict[str, str]:
    """Hashes of the data, as in dvc.lock."""
    return {f"data.{name}": md5_of(path) for name, path in files.data().items() if path.is_file()}


def environment_tags(environment: Mapping[str, Any], prefix: str = "environment") -> dict[str, str]:
    """One tag each."""
    return {
        f"{prefix}.{name}": (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)
        for name, value in environment.items()
    }


def environments(files: Files, *, live: bool, trained: bool) -> dict[str, str]:
    """Where it was made, as tags.

    `live`: here and now, and what of the checkpoint's environment differs is told, too. `trained`: the checkpoint that
    is there is not the one it is about.
    """
    then = {} if live and trained else read_environment(files.checkpoint)
    if not live:
        return environment_tags(then)
    now = this_environment()
    differing = {name: was for name, (was, _) in changed(then, now).items()}
    return environment_tags(now) | environment_tags(differing, "checkpoint.environment")


def source_tags(script: str) -> dict[str, str]:
    """What MLflow's UI shows as user and source."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # as in a container without an entry for the user
        user = "unknown"
    return {"mlflow.user": user, "mlflow.source.name": script, "mlflow.source.type": "LOCAL"}

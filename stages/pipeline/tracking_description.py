"""A run in plain words: what changed against its parent in parameters, data and code, and what that did."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from stages.pipeline.changes import Origin, changed_code, changed_params, flat, locked
from stages.pipeline.tables import one_line
from stages.pipeline.tracking_files import Files, md5_of, read_figures, read_params
from stages.pipeline.tracking_tags import Where, git

DATA = "data/prompts.parquet"
"""Its hash tells whether the data changed."""
FEW = 8
"""Changes of a kind that are listed."""
SPLITS = ("train", "validation", "test")

Figures = Mapping[str, Any]


class Side(NamedTuple):
    """What is told of one of two experiments."""

    origin: Origin
    rows: Figures
    """Row counts of the splits."""
    finetuned: Figures
    judged: Figures


class Parent(NamedTuple):
    """Whom an experiment is held against."""

    commit: str
    subject: str
    """First line of the commit's message."""
    side: Side


# ---- in words


def describe(own: Side, parent: Parent | None) -> str:
    """Markdown, a few lines.

    >>> describe(Side(Origin({}, {}), {}, {}, {}), None)
    'The first experiment here: there is none before it to compare with.'
    """
    if parent is None:
        return "The first experiment here: there is none before it to compare with."
    then = parent.side
    causes = _causes(then, own)
    changes = [cause for cause in causes if cause[0]]
    same = [name for changed, name in causes if not changed]
    against = f"Against {_code_span(parent.commit[:7])} ({_code_span(one_line(parent.subject, 72))})"
    results = _results(then, own)
    lines = [f"{against}: {results}." if results else f"{against}:", ""]  # first, since MLflow folds the rest away
    lines += [f"- {name}: {changed}" for changed, name in changes]
    if same:
        lines.append(f"- {_listed(same)}: the same")
    return "\n".join(lines)


def short_changes(own: Side, parent: Parent | None) -> str:
    """The parameters that changed, as part of a name: `learning_rate=0.0001`; empty: none, or too many."""
    changed = changed_params(parent.side.origin, own.origin) if parent else {}
    if not 0 < len(changed) <= 2:
        return ""
    return one_line(", ".join(f"{name.split('.')[-1]}={value}" for name, (_, value) in changed.items()), 60)


def _causes(then: Side, now: Side) -> list[tuple[str, str]]:
    """What changed, if anything did, of each kind of cause."""
    return [_params(then, now), _data(then, now), _code(then, now)]


def _params(then: Side, now: Side) -> tuple[str, str]:
    changed = changed_params(then.origin, now.origin)
    shown = [f"{_code_span(name)} {_value(was)} → {_value(is_)}" for name, (was, is_) in changed.items()]
    return _first(shown), "Parameters"


def _value(value: Any) -> str:
    return "(none)" if value is None else _code_span(one_line(str(value), 60))


def _data(then: Side, now: Side) -> tuple[str, str]:
    hashes = [side.origin.files.get(DATA) for side in (then, now)]
    counts = [[side.rows.get(name) for name in SPLITS] for side in (then, now)]
    if counts[0] != counts[1]:
        shown = [" / ".join("-" if count is None else f"{count:,}" for count in of) for of in counts]
        return f"{' / '.join(SPLITS)} rows {shown[0]} → {shown[1]}", "Data"
    if hashes[0] != hashes[1] and None not in hashes:
        return "rows edited, as many as before", "Data"
    return "", "Data"


def _code(then: Side, now: Side) -> tuple[str, str]:
    changed = changed_code(then.origin, now.origin)
    return _first(
        [f"{_code_span(path)}{'' if how == 'changed' else f' {how}'}" for path, how in changed.items()]
    ), "Code"


def _first(shown: list[str]) -> str:
    more = f", and {len(shown) - FEW} more" if len(shown) > FEW else ""
    return ", ".join(shown[:FEW]) + more


def _listed(names: Iterable[str]) -> str:
    text = " and ".join(", ".join(names).rsplit(", ", 1))
    return text[0] + text[1:].lower()


def _results(then: Side, now: Side) -> str:
    """What it came to; for those figures that both have."""
    parts = []
    if "score" in then.judged and "score" in now.judged:
        parts.append(f"score {then.judged['score']:.1f} → {now.judged['score']:.1f}{_overlap(then.judged, now.judged)}")
    name = "best_validation_loss"
    if name in then.finetuned and name in now.finetuned:
        parts.append(f"best validation loss {then.finetuned[name]:.3f} → {now.finetuned[name]:.3f}")
        parts.append(_onsets(*(side.finetuned.get("overfit_epoch", -1) for side in (then, now))))
    return ", ".join(parts)


def _overlap(then: Figures, now: Figures) -> str:
    if any(f"score_{end}" not in side for side in (then, now) for end in ("low", "high")):
        return ""
    apart = then["score_low"] > now["score_high"] or now["score_low"] > then["score_high"]
    return " (intervals do not overlap)" if apart else " (intervals overlap)"


def _onsets(then: float, now: float) -> str:
    if then < 0 and now < 0:
        return "no overfitting seen in either"
    was, is_ = ("not seen" if epoch < 0 else f"{epoch:.2f}" for epoch in (then, now))
    return f"onset of overfitting (epoch) {was} → {is_}"


def _code_span(text: str) -> str:
    """Text of others as Markdown that cannot be anything else."""
    return f"`{text.replace('`', chr(39))}`"


# ---- out of Git and files


def own_side(files: Files, like: Origin, *, judged: bool) -> Side:
    """Of an experiment that runs now: dvc.lock is still the one before, so files that `like` names are hashed."""
    paths = [path for path in like.files if path.startswith("stages/") and Path(path).is_file()]
    hashes = {path: md5_of(Path(path)) for path in paths}
    if files.prompts.is_file():
        hashes[DATA] = md5_of(files.prompts)
    return _side(files, Origin(read_params(files.params), hashes), judged)


def recorded_side(files: Files, *, judged: bool) -> Side:
    """Of an experiment with a dvc.lock of its own."""
    lock = yaml.safe_load(files.lock.read_text(encoding="utf-8")) if files.lock.is_file() else {}
    return _side(files, Origin(read_params(files.params), _told(lock)), judged)


def _told(lock: Figures) -> dict[str, str]:
    return {path: md5 for path, md5 in locked(lock).items() if path.startswith("stages/") or path == DATA}


def _side(files: Files, origin: Origin, judged: bool) -> Side:
    found = read_figures(files.judged) if judged else {}
    return Side(origin, read_figures(files.dealt), read_figures(files.finetuned), found)


def parent_at(revision: str) -> Parent | None:
    """The experiment that a commit holds; None: it holds none."""

    def read(path: str) -> Any:
        text = git("show", f"{revision}:./{path}")
        return (yaml.safe_load(text) if path.endswith((".yaml", ".lock")) else json.loads(text)) if text else {}

    lock, params = read("dvc.lock"), read("params.yaml")
    title = git("log", "-1", "--format=%H %s", revision)
    if not lock or not params or not title:
        return None
    figures = (read(f"metrics/{name}.json") for name in ("split", "finetune", "judge"))
    commit, _, subject = title.strip().partition(" ")
    return Parent(commit, subject, Side(Origin(flat(params), _told(lock)), *figures))


def lock_before(revision: str) -> str | None:
    """The last commit before that of `revision`'s dvc.lock which had another one; None: there is none."""
    commits = (git("log", "-2", "--format=%H", revision, "--", "dvc.lock") or "").split()
    return commits[1] if len(commits) > 1 else None


def tell_now(files: Files, where: Where, *, judged: bool) -> tuple[str, str] | None:
    """Description and short changes of what runs now, against the commit it started from; None: there is no Git.

    Where nothing differs from that, against the last one before it that was another.
    """
    revision = where.baseline or where.commit
    if revision is None:
        return None
    parent = parent_at(revision)
    if parent is not None:
        own = own_side(files, parent.side.origin, judged=judged)
        if any(changed for changed, _ in _causes(parent.side, own)):
            return describe(own, parent), short_changes(own, parent)
    before = lock_before(revision) if parent else None
    parent = parent_at(before) if before else None
    own = own_side(files, parent.side.origin if parent else Origin({}, {}), judged=judged)
    return describe(own, parent), ""


def tell_recorded(files: Files, commit: str) -> tuple[str, str]:
    """The same of an experiment that a commit holds."""
    before = lock_before(commit)
    parent = parent_at(before) if before else None
    own = recorded_side(files, judged=True)
    return describe(own, parent), short_changes(own, parent)

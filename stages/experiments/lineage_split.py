"""Why a prompt is in its split."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stages.instructions.deal import SPLITS, position
from stages.instructions.duplicates import Shingles
from stages.instructions.prompts import iterate_prompts
from stages.instructions.split_files import Rows, read_rows

MOST = 10
"""Near-duplicates that are named, the nearest first."""


class Neighbour(NamedTuple):
    """A prompt near another."""

    id: str
    place: str
    """File and line."""
    similarity: float
    """Jaccard similarity of the two."""
    split: str | None
    before: bool
    """Whether it was dealt earlier."""


def why_there(data: Path, id: str, split: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What decided: the data, a near-duplicate dealt earlier, or the prompt's own hash; see `instructions.deal`.

    `settings` is section `split` of params.yaml. Every prompt is looked at, without the search that split makes.
    """
    prompts = read_rows(data / "prompts.parquet")
    own = next(at for at, row in enumerate(prompts.rows) if row.id == id)
    near = _neighbours(prompts, own, float(settings["near_duplicate_threshold"]), _splits(data / "split"))
    falls = position(str(settings["salt"]), id)
    return {
        "fixed": prompts.rows[own].fixed,
        "neighbours": [one._asdict() for one in near[:MOST]],
        "num_neighbours": len(near),
        "position": round(falls, 6),
        "why": _in_words(prompts.rows[own].fixed, near, falls, split, settings),
    }


def _splits(folder: Path) -> dict[str, str]:
    return {
        id: name
        for name in SPLITS
        for batch in iterate_prompts(folder / f"{name}.parquet", ("id",))
        for id in batch.column("id").to_pylist()
    }


def _neighbours(prompts: Rows, own: int, threshold: float, splits: Mapping[str, str]) -> list[Neighbour]:
    shingles = Shingles(prompts.texts)
    hashes = np.unique(shingles.hashes[shingles.offsets[own] : shingles.offsets[own + 1]])
    shared = np.add.reduceat(np.isin(shingles.hashes, hashes).astype(np.int64), shingles.offsets[:-1])
    mine = (prompts.rows[own].fixed is None, own)
    found = []
    for at in np.flatnonzero(shared >= threshold * len(hashes)).tolist():  # what shares fewer is below the threshold
        row, similarity = prompts.rows[at], shingles.jaccard(own, at)
        if at != own and similarity >= threshold:
            before = (row.fixed is None, at) < mine  # rows whose split is fixed are dealt first
            found.append(Neighbour(row.id, prompts.places[at], round(similarity, 3), splits.get(row.id), before))
    return sorted(found, key=lambda one: (-one.similarity, one.place))


def _in_words(fixed: str | None, near: list[Neighbour], falls: float, split: str, settings: Mapping[str, Any]) -> str:
    if split not in SPLITS:
        return "near rows in two splits: it would be a leak in either"
    if fixed:
        return "the data fixes it"
    earlier = next((one for one in near if one.before and one.split == split), None)
    if earlier:
        return f"follows its near-duplicate {earlier.place} (similarity {earlier.similarity:.2f})"
    if settings["stratify"]:
        return "dealt in turn within its category"
    train, validation = float(settings["train_fraction"]), float(settings["validation_fraction"])
    starts = dict(zip(SPLITS, (0.0, train, train + validation), strict=True))
    dealt = max((name for name in SPLITS if falls >= starts[name]), key=lambda name: starts[name])
    where = f"its hash falls at {falls:.3f}, and {dealt} begins at {starts[dealt]:.3g}"
    return where if dealt == split else f"{where} by params.yaml as it is now, which differs: run `dvc repro`"

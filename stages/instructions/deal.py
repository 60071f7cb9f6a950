"""The deal into train, validation and test: by content, whole clusters of near-duplicates at a time."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from stages.pipeline.progress import bar

SPLITS = ("train", "validation", "test")
WITHHELD = "withheld"

_GOLDEN = (5**0.5 - 1) / 2


class Row(NamedTuple):
    """What decides where a row goes, beside the rows near it."""

    id: str
    category: str | None
    fixed: str | None
    """The split that the data fixes for it."""


class Deal(NamedTuple):
    """What became of each row."""

    split: list[str]
    """A name of SPLITS, or WITHHELD."""
    cluster: list[int]
    """Position of the first row of the row's cluster; a withheld row has one of its own."""
    between: dict[int, list[int]]
    """For each withheld row, rows near it, one in each of two or more splits."""


def position(salt: str, key: str) -> float:
    """Where `key` falls in [0, 1): a salted SHA-256, so that it depends on nothing else.

    >>> 0 <= position("salt", "key") < 1
    True
    """
    digest = hashlib.sha256(f"{salt}\n{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


class Dealer:
    """Says in which split a new cluster goes."""

    def __init__(self, fractions: Sequence[float], salt: str, *, stratify: bool) -> None:
        """`fractions` are the shares of train, validation and test.

        With `stratify` the clusters of a category go round by the golden ratio (Kronecker's sequence, of low
        discrepancy), so that the shares hold in each category after any number of rows.
        """
        self._train, self._validation, _ = fractions
        self._salt = salt
        self._stratify = stratify
        self._dealt: Counter[str | None] = Counter()

    def split_of(self, key: str, category: str | None) -> str:
        """The split of a cluster whose first row has this id and category."""
        if self._stratify:
            at = (position(self._salt, category or "") + self._dealt[category] * _GOLDEN) % 1
            self._dealt[category] += 1
        else:
            at = position(self._salt, key)
        return SPLITS[0] if at < self._train else SPLITS[1] if at < self._train + self._validation else SPLITS[2]


def deal(
    rows: Sequence[Row],
    candidates: np.ndarray,
    alike: Callable[[int, int], bool],
    dealer: Dealer,
    *,
    join: bool,
) -> Deal:
    """Go through the rows in order; a row follows the earlier rows that are near it, and the first of all is dealt.

    Only what came before decides, so rows that are added at the end move no earlier row. A row near two clusters in
    different splits would be a leak wherever it went: it is withheld, or, with `join`, it makes the two one cluster,
    and the later moves to the split of the first. A split that the data fixes stays in either case.

    Args:
        rows: those whose split is fixed first.
        candidates: int64 (pairs, 2), a row and an earlier one that may be near it.
        alike: whether two rows are near each other.
        dealer: deals new clusters.
        join: what to do with a row between two splits.
    """
    earlier_of: dict[int, list[int]] = defaultdict(list)
    for later, earlier in candidates.tolist():
        earlier_of[later].append(earlier)
    parents = list(range(len(rows)))
    split = [""] * len(rows)
    between = {}
    with bar("dealing", len(rows)) as progress:
        for at, row in enumerate(rows):
            near: dict[int, int] = {}  # first row of a cluster -> the row of it that is near this one
            for earlier in earlier_of.get(at, ()):
                first = _root(parents, earlier)
                if first not in near and earlier not in between and alike(at, earlier):
                    near[first] = earlier
            splits = {split[first] for first in near}
            fixed = {split[first] for first in near if rows[first].fixed} | ({row.fixed} if row.fixed else set())
            if len(fixed) > 1 or (len(splits) > 1 and not join):
                between[at] = list({split[first]: earlier for first, earlier in near.items()}.values())
            else:
                head = min(near, default=at)  # a row with a fixed split, if there is one: they come first
                split[head] = row.fixed or (split[head] if near else dealer.split_of(row.id, row.category))
                for first in (*near, at):
                    parents[first] = head
            progress.advance()
    roots = [_root(parents, at) for at in range(len(rows))]
    return Deal([WITHHELD if at in between else split[root] for at, root in enumerate(roots)], roots, between)


def _root(parents: list[int], at: int) -> int:
    while parents[at] != at:
        parents[at] = parents[parents[at]]
        at = parents[at]
    return at

"""All rows into train, validation and test: near-duplicates found, clusters dealt, leaks looked for."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from stages.instructions.deal import WITHHELD, Dealer, Row, deal
from stages.instructions.duplicates import Shingles, find_candidates
from stages.instructions.leaks import find_leaks

SEED = 1
"""Of the permutations behind the clusters."""


class Partition(NamedTuple):
    """Where each row goes, and what can be said about it."""

    split: list[str]
    """A name of SPLITS, or WITHHELD, of each row."""
    cluster_sizes: list[int]
    """Rows of each cluster of near-duplicates, of two and more."""
    between: dict[int, list[int]]
    """For each withheld row, rows near it that stand in different splits."""
    leaks: list[tuple[int, int]]
    """Rows near each other in different splits: none, unless near-duplicates were not compared."""
    exactly_checked_rows: int
    """Held-out rows that were compared with every row of the other splits."""
    pairs_not_compared: int
    """Pairs of rows left out of the search, since too many rows look alike."""


def partition(
    rows: Sequence[Row],
    texts: Sequence[str],
    *,
    fractions: Sequence[float],
    salt: str,
    near_duplicate_threshold: float,
    stratify: bool,
    join: bool,
) -> Partition:
    """Deal rows whose prompts, normalized, read `texts`; see `deal` for the rules.

    Rows of the same text are looked at once: they go together.
    """
    group_of: dict[tuple[str, str | None], int] = {}
    first_rows: list[int] = []
    groups = [0] * len(rows)
    for at in sorted(range(len(rows)), key=lambda at: _order(rows[at])):
        key = (texts[at], rows[at].fixed)
        group = groups[at] = group_of.setdefault(key, len(first_rows))
        if group == len(first_rows):
            first_rows.append(at)
    shingles = Shingles([text for text, _ in group_of])
    del group_of
    candidates = find_candidates(shingles, near_duplicate_threshold, SEED)
    dealt = deal(
        [rows[at] for at in first_rows],
        candidates.pairs,
        lambda a, b: shingles.jaccard(a, b) >= near_duplicate_threshold,
        Dealer(fractions, salt, stratify=stratify),
        join=join,
    )
    leaks = find_leaks(shingles, dealt.split, near_duplicate_threshold)
    sizes = Counter(dealt.cluster[group] for group in groups if dealt.split[group] != WITHHELD)
    return Partition(
        split=[dealt.split[group] for group in groups],
        cluster_sizes=sorted(size for size in sizes.values() if size > 1),
        between={
            at: [first_rows[near] for near in dealt.between[group]]
            for at, group in enumerate(groups)
            if group in dealt.between
        },
        leaks=[(first_rows[a], first_rows[b]) for a, b in leaks.pairs],
        exactly_checked_rows=leaks.exact_rows,
        pairs_not_compared=candidates.not_compared,
    )


def _order(row: Row) -> int:
    """Rows with a fixed split first, held-out ones before the rest: of two alike it is the train row that goes."""
    return {"test": 0, "validation": 1, "train": 2, None: 3}[row.fixed]

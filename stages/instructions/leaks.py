"""Is there a near-duplicate of a held-out prompt in another split? Looked for in ways that the deal did not use."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

from stages.instructions.deal import SPLITS
from stages.instructions.duplicates import Shingles, find_candidates
from stages.pipeline.progress import bar

EXACT_ROWS = 1000
"""Held-out prompts that are compared with every prompt of the other splits; more would cost the square."""

SEED = 2
"""Of other permutations than the deal's."""

_ROWS_AT_ONCE = 4096


class Leaks(NamedTuple):
    """What was found."""

    pairs: list[tuple[int, int]]
    """Positions of prompts near each other in different splits, sorted."""
    exact_rows: int
    """Held-out prompts that were compared without LSH."""


def find_leaks(shingles: Shingles, split: Sequence[str], threshold: float) -> Leaks:
    """Pairs at or above `threshold` across splits; rows in no split are left out.

    All rows by MinHash-LSH under other permutations; and up to `EXACT_ROWS` held-out rows, spread evenly, against all
    rows by counting the shingles they share.
    """
    number = np.array([SPLITS.index(name) if name in SPLITS else -1 for name in split])
    found = {
        (earlier, later)
        for later, earlier in find_candidates(shingles, threshold, SEED, number).pairs.tolist()
        if min(number[earlier], number[later]) >= 0 and shingles.jaccard(later, earlier) >= threshold
    }
    held_out = np.flatnonzero(number > 0)
    sample = held_out[:: max(1, -(-len(held_out) // EXACT_ROWS))]
    return Leaks(sorted(found | _exact(shingles, sample, number, threshold)), len(sample))


def _exact(shingles: Shingles, sample: np.ndarray, number: np.ndarray, threshold: float) -> set[tuple[int, int]]:
    hashes, offsets = shingles.take(sample)
    known = np.unique(hashes)
    ours = _incidence(known, hashes, offsets)
    sizes = ours.sum(axis=1)
    columns = ours.T.tocsr()
    found = set()
    with bar("checking for leaks", len(shingles)) as progress:
        for start in range(0, len(shingles), _ROWS_AT_ONCE):
            rows = np.arange(start, min(start + _ROWS_AT_ONCE, len(shingles)))
            shared = (_incidence(known, *shingles.take(rows)) @ columns).tocoo()
            near = shared.data / sizes[shared.col] >= threshold  # no less than the Jaccard similarity, rounded alike
            for row, other in zip(rows[shared.row[near]].tolist(), sample[shared.col[near]].tolist(), strict=True):
                apart = number[row] >= 0 and number[row] != number[other]
                if apart and shingles.jaccard(row, other) >= threshold:
                    found.add((min(row, other), max(row, other)))
            progress.advance(len(rows))
    return found


def _incidence(known: np.ndarray, hashes: np.ndarray, offsets: np.ndarray) -> sparse.csr_array:
    """1 where a text (row) holds a known shingle (column); int64 (texts, known)."""
    columns = np.minimum(np.searchsorted(known, hashes), max(0, len(known) - 1))
    is_known = known[columns] == hashes if len(known) else np.zeros(len(hashes), dtype=bool)
    text = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    matrix = sparse.coo_array(
        (np.ones(int(is_known.sum()), dtype=np.int64), (text[is_known], columns[is_known])),
        shape=(len(offsets) - 1, len(known)),
    ).tocsr()
    matrix.data[:] = 1
    return matrix

"""Near-duplicate texts: candidates by MinHash-LSH (rensa), each verified by true Jaccard similarity.

No shingle set is kept for each text, and no index of all bands: at a million texts either would take gigabytes.
"""

import math
import re
import sys
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from rensa import RMinHash, RMinHashLSH

from stages.pipeline.progress import bar

SHINGLE = 5
"""Characters in a shingle: short prompts differ by a word or a number, which word shingles would overrate."""

MISSED = 1e-6
"""About the chance that a pair right at the threshold shares no band; above it the chance falls fast."""

MAX_BAND = 6
"""MinHash values in a band, at most: more would need too many bands for `MISSED`."""

BANDS_AT_ONCE = 16
MAX_PAIRS = 4_000_000
"""Candidate pairs of one band; past it the rows of a bucket are compared with their nearest predecessors only."""

_ROWS_AT_ONCE = 20_000
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd (Knuth, TAOCP 3, 6.4)


def normalize(text: str) -> str:
    """Case, punctuation and spacing set aside; a text of nothing else is left as it is.

    >>> normalize("  Ab-c d!")
    'ab c d'
    """
    between_words = r"[\W_]+" if text.isascii() else _between_words()
    return re.sub(between_words, " ", unicodedata.normalize("NFC", text.casefold())).strip() or text


@cache
def _between_words() -> re.Pattern[str]:
    r"""For `\W` a combining mark is no part of a word: prompts in Hindi or Thai would lose their vowels."""
    marks = "".join(char for char in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(char)[0] == "M")
    return re.compile(rf"(?:[^\w{marks}]|_)[\W_]*")


def window_hashes(values: np.ndarray, width: int) -> np.ndarray:
    """Hash of each run of `width` values, uint64 (values - width + 1,): a polynomial modulo 2^64, then mixed."""
    hashes = np.zeros(max(0, len(values) - width + 1), dtype=np.uint64)
    for at in range(width):
        hashes = hashes * _MULTIPLIER + values[at : at + len(hashes)].astype(np.uint64) + np.uint64(1)
    hashes ^= hashes >> np.uint64(32)
    return hashes * _MULTIPLIER


class Shingles:
    """The shingles of texts, hashed to 64 bits, one after the other.

    Attributes:
        hashes: uint64 (shingles,), with repetition within a text.
        offsets: int64 (texts + 1,), where each text's begin.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        """Hash the shingles of normalized texts; a text shorter than a shingle has one, padded."""
        sizes = np.array([max(len(text), SHINGLE) - SHINGLE + 1 for text in texts], dtype=np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(sizes)])
        self.hashes = np.zeros(self.offsets[-1], dtype=np.uint64)
        for start in range(0, len(texts), _ROWS_AT_ONCE):
            padded = [text.ljust(SHINGLE, "\0") for text in texts[start : start + _ROWS_AT_ONCE]]
            codes = np.frombuffer("".join(padded).encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
            whole = np.ones(len(codes), dtype=bool)  # a window must not reach into the next text
            ends = np.cumsum([len(text) for text in padded])
            for back in range(1, SHINGLE):
                whole[ends - back] = False
            stop = min(start + _ROWS_AT_ONCE, len(texts))
            hashes = window_hashes(codes, SHINGLE)
            self.hashes[self.offsets[start] : self.offsets[stop]] = hashes[whole[: len(hashes)]]
        self._set = lru_cache(maxsize=10_000)(self._make_set)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def _make_set(self, text: int) -> frozenset[int]:
        return frozenset(self.hashes[self.offsets[text] : self.offsets[text + 1]].tolist())

    def jaccard(self, a: int, b: int) -> float:
        """Shared shingles of two texts over all of theirs, 0 to 1."""
        ours, theirs = self._set(a), self._set(b)
        shared = len(ours & theirs)
        return shared / (len(ours) + len(theirs) - shared)

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hashes and offsets of some texts."""
        sizes = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        places = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][rows] - offsets[:-1], sizes)
        return self.hashes[places], offsets


class Candidates(NamedTuple):
    """Pairs of texts that may be alike."""

    pairs: np.ndarray
    """int64 (pairs, 2): a text and an earlier one, sorted."""
    not_compared: int
    """Pairs left out, counted once for each band, since a band held too many."""


def bands(threshold: float) -> tuple[int, int]:
    """Number of bands, and of MinHash values in each.

    A pair of similarity s shares one of b bands of r values with probability 1 - (1 - s^r)^b (Leskovec, Rajaraman,
    Ullman, Mining of Massive Datasets, 3.4.2): as large an r as leaves `MISSED` within reach of some hundred bands.

    >>> bands(0.7)
    (111, 6)
    """
    size = max(1, min(MAX_BAND, math.floor(math.log(0.1) / math.log(threshold)) if threshold < 1 else MAX_BAND))
    chance = threshold**size
    return (math.ceil(math.log(MISSED) / math.log1p(-chance)) if chance < 1 else 1), size


def find_candidates(shingles: Shingles, threshold: float, seed: int, side: np.ndarray | None = None) -> Candidates:
    """Pairs that share a band under permutations drawn from `seed`; with `side`, (texts,), only across sides."""
    num_bands, size = bands(threshold)
    groups = range(0, num_bands, BANDS_AT_ONCE)
    found, not_compared = [np.zeros(0, dtype=np.int64)], 0
    with bar("looking for near-duplicates", len(groups)) as progress:
        for group in groups:
            count = min(BANDS_AT_ONCE, num_bands - group)
            rows, keys = _shared_bands(shingles, threshold, count, size, seed * 1000 + group)
            codes = []
            for band in range(count):
                earlier, later, left_out = _bucket_pairs(keys[:, band])
                not_compared += left_out
                a, b = rows[earlier], rows[later]
                if side is not None:
                    across = side[a] != side[b]
                    a, b = a[across], b[across]
                codes.append(b * len(shingles) + a)
            found.append(np.unique(np.concatenate(codes)))
            progress.advance()
    unique = np.unique(np.concatenate(found))
    return Candidates(np.stack(np.divmod(unique, len(shingles)), axis=1), not_compared)


def _shared_bands(
    shingles: Shingles, threshold: float, count: int, size: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Texts that share some band with another, int64 (texts,), and the key of each band, uint64 (texts, count)."""
    num_perm = count * size
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        shingles.hashes, shingles.offsets.astype(np.uint64), num_perm, seed
    )
    index = RMinHashLSH(threshold=threshold, num_perm=num_perm, num_bands=count)
    rows = np.flatnonzero(index.query_duplicate_flags_matrix_one_shot(matrix))
    keys = np.zeros((len(rows), count), dtype=np.uint64)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        hashes, offsets = shingles.take(rows[start : start + _ROWS_AT_ONCE])
        digests = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets.astype(np.uint64), num_perm, seed)
        values = np.array(digests.to_rows(), dtype=np.uint64).reshape(-1, count, size)
        block = keys[start : start + _ROWS_AT_ONCE]
        for at in range(size):
            block[:] = block * _MULTIPLIER + values[:, :, at]
    return rows, keys


def _bucket_pairs(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Positions of equal keys in pairs (earlier, later), and the number of pairs beyond `MAX_PAIRS`."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    earlier, later, num_pairs, distance = [], [], 0, 1
    while distance < len(order):
        equal = np.flatnonzero(ordered[distance:] == ordered[:-distance])
        if not len(equal) or num_pairs + len(equal) > MAX_PAIRS:
            break
        earlier.append(order[equal])
        later.append(order[equal + distance])
        num_pairs += len(equal)
        distance += 1
    runs = np.diff(np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1], True]))
    everything = int((runs * (runs - 1) // 2).sum())
    empty = np.zeros(0, dtype=np.int64)
    return np.concatenate([empty, *earlier]), np.concatenate([empty, *later]), everything - num_pairs

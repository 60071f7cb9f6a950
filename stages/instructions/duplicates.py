"""Near-duplicate prompts: found by MinHash-LSH, verified by true Jaccard similarity, joined into clusters."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

from datasketch import MinHash, MinHashLSH

from stages.pipeline.progress import bar

SHINGLE = 5
"""Characters in a shingle: short prompts differ by a word or a number, which word shingles would overrate."""

NUM_PERMUTATIONS = 128


def shingles(text: str) -> frozenset[str]:
    """All runs of `SHINGLE` characters, case, punctuation and spacing set aside.

    >>> sorted(shingles("Ab-c d!"))
    ['ab c ', 'b c d']
    """
    plain = re.sub(r"[\W_]+", " ", text.casefold()).strip()
    return frozenset(plain[start : start + SHINGLE] for start in range(max(1, len(plain) - SHINGLE + 1)))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Shared shingles over all shingles, 0 to 1."""
    return len(a & b) / len(a | b)


def cluster(texts: Sequence[str], threshold: float) -> list[int]:
    """For each text the position of the first text of its cluster.

    Two texts with a Jaccard similarity of at least `threshold` share a cluster, and so, through them, may others.
    LSH is tuned for recall: the exact check after it drops what it proposes too freely.
    """
    sets = [shingles(text) for text in texts]
    parents = list(range(len(texts)))

    def root(position: int) -> int:
        while parents[position] != position:
            parents[position] = parents[parents[position]]
            position = parents[position]
        return position

    for later, earlier in _candidates(sets, threshold):
        first, second = sorted((root(later), root(earlier)))
        if first != second and jaccard(sets[later], sets[earlier]) >= threshold:
            parents[second] = first
    return [root(position) for position in range(len(texts))]


def _candidates(sets: Sequence[frozenset[str]], threshold: float) -> Iterator[tuple[int, int]]:
    # Weights (false positive, false negative): a false negative leaks, a false positive costs one comparison.
    index = MinHashLSH(threshold=threshold, num_perm=NUM_PERMUTATIONS, weights=(0.05, 0.95))
    with bar("looking for near-duplicates", len(sets)) as progress:
        for position, grams in enumerate(sets):
            sketch = MinHash(num_perm=NUM_PERMUTATIONS, seed=1)
            sketch.update_batch([gram.encode() for gram in sorted(grams)])
            for earlier in sorted(index.query(sketch)):
                yield position, earlier
            index.insert(position, sketch, check_duplication=False)
            progress.advance()


def leaks(train: Sequence[str], held_out: Sequence[str], threshold: float) -> list[tuple[int, int]]:
    """Pairs (held-out position, train position) at or above `threshold`, found without LSH.

    Independent of `cluster`: exact, by an inverted index from shingle to the train texts that hold it.
    """
    holders: dict[str, list[int]] = defaultdict(list)
    sizes = []
    for position, text in enumerate(train):
        grams = shingles(text)
        sizes.append(len(grams))
        for gram in sorted(grams):
            holders[gram].append(position)
    found = []
    with bar("checking for leaks", len(held_out)) as progress:
        for position, text in enumerate(held_out):
            grams = shingles(text)
            shared: dict[int, int] = defaultdict(int)
            for gram in sorted(grams):
                for holder in holders.get(gram, ()):
                    shared[holder] += 1
            for holder, common in shared.items():
                if common / (len(grams) + sizes[holder] - common) >= threshold:
                    found.append((position, holder))
            progress.advance()
    return found

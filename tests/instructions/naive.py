"""Near-duplicates the plain way, to compare with: sets of substrings, every pair, and prompts that are often near."""

from collections.abc import Callable, Sequence
from itertools import combinations

from hypothesis import strategies as st

WORDS = [
    *("amber", "brick", "cedar", "delta", "ember", "flint", "grove", "haven"),
    *("ivory", "joker", "karma", "lemon", "mango", "noble", "ocean", "piano"),
]

prompts = st.builds(
    lambda start, length: " ".join(WORDS[start : start + length]), st.integers(0, 9), st.sampled_from([4, 5, 6])
)
"""Windows over one line of words: each is near the next, none near those far away, so there are chains and bridges."""


def shingles(text: str) -> set[str]:
    padded = text.ljust(5, "\0")
    return {padded[at : at + 5] for at in range(len(padded) - 4)}


def jaccard(a: str, b: str) -> float:
    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


def near_pairs(texts: Sequence[str], threshold: float) -> set[tuple[int, int]]:
    """Every pair (earlier, later) at or above `threshold`."""
    return {(a, b) for a, b in combinations(range(len(texts)), 2) if jaccard(texts[a], texts[b]) >= threshold}


def components(rows: Sequence[int], near: Callable[[int, int], bool]) -> list[list[int]]:
    """`rows` put together where a chain of near ones joins them, each component sorted."""
    found: list[list[int]] = []
    for row in rows:
        touched = [component for component in found if any(near(row, other) for other in component)]
        found = [component for component in found if component not in touched]
        found.append(sorted([row, *(other for component in touched for other in component)]))
    return sorted(found)

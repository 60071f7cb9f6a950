"""The deal into train, validation and test: by content, whole clusters at a time."""

import hashlib
from collections.abc import Sequence

SPLITS = ("train", "validation", "test")


def position(salt: str, key: str) -> float:
    """Where `key` falls in [0, 1): a salted SHA-256, so that it depends on nothing else.

    >>> 0 <= position("salt", "key") < 1
    True
    """
    digest = hashlib.sha256(f"{salt}\n{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def deal(keys: Sequence[str], clusters: Sequence[int], fractions: Sequence[float], salt: str) -> list[str]:
    """For each row the name of its split.

    A row follows the first row of its cluster (`clusters[i]` is that row's position), whose key decides: rows that are
    added later move no row that stands alone or first.
    """
    train, validation, _ = fractions

    def split_of(key: str) -> str:
        at = position(salt, key)
        return "train" if at < train else "validation" if at < train + validation else "test"

    return [split_of(keys[first]) for first in clusters]

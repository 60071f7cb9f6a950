"""Several examples in one row, so that little is padding."""

from heapq import heappop, heappush

import numpy as np

FEW_ROWS = 200
"""Up to so many, the last one counts, and packing is tried at other widths."""


def pack(lengths: np.ndarray, width: int) -> np.ndarray:
    """Row of each example, int64 (examples,); rows hold at most `width` tokens. No example may be longer than that.

    By best fit, and then at the smallest width that needs no more rows: a row is padded to the longest, so a few rows
    that are filled alike have less padding than full ones and a last one that is half empty.

    >>> pack(np.array([6, 3, 4, 7]), width=10).tolist()
    [1, 0, 1, 0]
    >>> pack(np.array([3, 3, 3, 3]), width=10).tolist()
    [0, 0, 1, 1]
    """
    row_of = best_fit(lengths, width)
    filled = np.bincount(row_of, weights=lengths)
    low, high = max(int(lengths.max()), -(-int(lengths.sum()) // len(filled))), int(filled.max())
    while low < high and len(filled) <= FEW_ROWS:
        middle = (low + high) // 2
        tried = best_fit(lengths, middle)
        if tried.max() < len(filled):
            row_of, high = tried, middle
        else:
            low = middle + 1
    return row_of


def best_fit(lengths: np.ndarray, width: int) -> np.ndarray:
    """Row of each example, int64 (examples,), by best-fit decreasing (Johnson et al., 1974, doi:10.1137/0203025).

    The longest first, each into the fullest row it still fits in.
    """
    row_of = np.zeros(len(lengths), dtype=np.int64)
    rows_by_room: list[list[int]] = [[] for _ in range(width + 1)]
    rooms = 0  # bit r is set where a row has room for r more
    num_rows = 0
    order = np.argsort(-lengths, kind="stable")
    for position, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = heappop(rows_by_room[room])
            if not rows_by_room[room]:
                rooms &= ~(1 << room)
        else:
            room, row = width, num_rows
            num_rows += 1
        row_of[position] = row
        heappush(rows_by_room[room - length], row)
        rooms |= 1 << (room - length)
    return row_of

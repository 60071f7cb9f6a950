"""Several examples in one row, so that little is padding."""

from heapq import heappop, heappush

import numpy as np


def pack(lengths: np.ndarray, width: int) -> np.ndarray:
    """Row of each example, int64 (examples,), by best fit, longest first; rows hold at most `width` tokens.

    Best-fit decreasing (Johnson et al., 1974, doi:10.1137/0203025): each example goes into the fullest row it still
    fits in. No example may be longer than `width`.

    >>> pack(np.array([6, 3, 4, 7]), width=10).tolist()
    [1, 0, 1, 0]
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

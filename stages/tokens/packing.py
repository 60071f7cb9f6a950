"""Several examples in one row, so that little is padding."""

import bisect
from collections.abc import Sequence


def pack(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Positions of the examples in each row of at most `width` tokens, by best fit, longest first.

    Best-fit decreasing (Johnson et al., 1974, doi:10.1137/0203025): each example goes into the fullest row it still
    fits in. Rows hold examples in the order they came; no example may be longer than `width`.

    >>> pack([6, 3, 4, 7], width=10)
    [[1, 3], [0, 2]]
    """
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (room, row), sorted
    for position in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        found = bisect.bisect_left(open_rows, (lengths[position], -1))
        room, row = open_rows.pop(found) if found < len(open_rows) else (width, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(position)
        bisect.insort(open_rows, (room - lengths[position], row))
    return [sorted(row) for row in rows]

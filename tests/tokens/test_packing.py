"""Packing against the plainest best fit."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stages.tokens.packing import best_fit, pack

WIDTH = 64

lengths_of = st.lists(st.integers(1, WIDTH), min_size=1, max_size=60) | st.lists(
    st.integers(1, 12), min_size=1, max_size=60
)


def naive_best_fit(lengths: list[int], width: int) -> list[int]:
    row_of, room = [0] * len(lengths), list[int]()
    for at in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        fitting = [row for row, left in enumerate(room) if left >= lengths[at]]
        if not fitting:
            room.append(width)
        row = min(fitting, key=lambda row: room[row]) if fitting else len(room) - 1
        room[row] -= lengths[at]
        row_of[at] = row
    return row_of


@given(lengths_of)
def test_best_fit_is_the_plainest_best_fit(lengths: list[int]) -> None:
    assert best_fit(np.array(lengths), WIDTH).tolist() == naive_best_fit(lengths, WIDTH)


@given(lengths_of)
def test_rows_are_as_few_as_by_best_fit_and_no_longer(lengths: list[int]) -> None:
    first = np.bincount(naive_best_fit(lengths, WIDTH), weights=lengths)
    filled = np.bincount(pack(np.array(lengths), WIDTH), weights=lengths)
    assert filled.min() > 0
    assert len(filled) == len(first)
    assert filled.max() <= first.max()
    assert filled.sum() == sum(lengths)


def test_few_rows_are_filled_alike() -> None:
    """Four full rows and one less than half full would be an eighth of padding."""
    eights = np.full(35, 8)
    assert np.bincount(pack(eights, WIDTH), weights=eights).tolist() == [56] * 5

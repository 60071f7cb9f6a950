"""The onset looked for again in a finished history: what was known when, as a table."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.model.history import LossRow
from stages.model.onset import prechelt
from stages.model.records import read_histories
from stages.model.replay import Look, replay, table_of
from tests.model.histories import OVERFITS, made_history, write_histories


def looks_at(
    validation: Sequence[float],
    train: Sequence[float] | None = None,
    *,
    patience: int = 3,
    threshold: float = 0.05,
    count: int = 12,
) -> list[Look]:
    """Looks at a made-up history, without the detour over the disk."""
    history = made_history(validation, train, count=count)
    return replay(
        rows_of(history.rows),
        np.stack([examples.response for examples in history.examples]),
        history.examples[0].response_tokens,
        patience=patience,
        threshold=threshold,
    )


def rows_of(rows: Sequence[LossRow]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=LossRow._fields)


def test_every_look_is_what_training_found_then() -> None:
    looks = looks_at(OVERFITS)
    for length, look in enumerate(looks, start=1):
        then = made_history(OVERFITS[:length])
        assert look.onset == then.found
        assert look.row == then.rows[-1]
    assert [look.onset.confirmed for look in looks] == [False] * 5 + [True] * 2


def test_what_is_on_disk_gives_the_same_looks(tmp_path: Path) -> None:
    rows, losses, tokens = read_histories(*write_histories(tmp_path, made_history(OVERFITS)))
    found = replay(rows, losses, tokens, patience=3, threshold=0.05)
    for look, expected in zip(found, looks_at(OVERFITS), strict=True):
        assert look.onset[:3] == expected.onset[:3]
        assert look.onset[3:] == pytest.approx(expected.onset[3:], rel=1e-9)
        assert look.row == pytest.approx(expected.row, rel=1e-5)


losses = st.lists(st.sampled_from([1.0, 1.2, 1.25, 1.5, 2.0]), min_size=1, max_size=7)


@settings(deadline=None)
@given(losses, st.integers(1, 7), st.integers(1, 3))
def test_a_look_depends_on_what_was_before_it_alone(validation: list[float], length: int, patience: int) -> None:
    length = min(length, len(validation))
    assert looks_at(validation, patience=patience)[:length] == looks_at(validation[:length], patience=patience)


def test_prechelts_criteria_are_of_the_losses_over_tokens() -> None:
    looks = looks_at(OVERFITS, patience=2)
    train = [look.row.train_loss for look in looks]
    validation = [look.row.validation_loss for look in looks]
    for at, look in enumerate(looks, start=1):
        expected = prechelt(train[:at], validation[:at], 2)
        assert list(look.prechelt[:2]) == pytest.approx(expected[:2], rel=1e-9)
        assert look.prechelt.increases == expected.increases
    assert looks[-1].prechelt.generalization_loss == pytest.approx(looks[-1].onset.generalization_loss)


def test_patience_and_threshold_decide_when_training_stops() -> None:
    def stop(**others: float) -> int | None:
        confirmed = [look.onset.confirmed for look in looks_at(OVERFITS, **others)]  # type: ignore[arg-type]
        return confirmed.index(True) if True in confirmed else None

    assert [stop(patience=patience) for patience in (1, 2, 3, 4, 5)] == [3, 4, 5, 6, None]
    assert stop(threshold=0) is None
    assert stop(threshold=1) == 5


# ---- the table


def cells(line: str) -> list[str]:
    return line.split()


def test_the_table_says_what_was_known_after_each_validation() -> None:
    head, *lines, end = table_of(looks_at(OVERFITS)).splitlines()
    assert cells(head.replace("minimum at", "minimum").replace("p value", "p").replace("GL %", "GL")) == [
        "step", "epoch", "train", "validation", "minimum", "p", "GL", "PQ", "UP", "overfitting",
    ]  # fmt: skip
    assert cells(lines[0]) == ["0", "0.00", "2.000", "2.0000", "0.00", "0.0", "0.00", "0", "-"]
    assert cells(lines[2]) == ["14", "0.50", "1.800", "1.2000", "0.50", "0.0", "0.00", "0", "-"]
    assert cells(lines[3])[-2:] == ["0", "seen"]
    step, epoch, train, validation, minimum, p_value, above, quotient, increases, state, *more = cells(lines[5])
    assert (step, epoch, train, validation, minimum) == ("35", "1.25", "1.500", "1.3500", "0.50")
    assert 0 < float(p_value) < 0.05
    # 100 (1.35 / 1.2 - 1); over 1000 ((1.7 + 1.6 + 1.5) / (3 x 1.5) - 1); the strip before ended at 1.2.
    assert (above, quotient, increases, state) == ("12.5", "0.19", "1", "confirmed")
    assert more == ["<-", "training", "stops", "here"]
    assert end == f"overfitting from epoch 0.50 (step 14), confirmed, p = {p_value}"


def test_training_stops_once() -> None:
    table = table_of(looks_at(OVERFITS, patience=1))
    assert [cells(line)[9] for line in table.splitlines()[4:-1]] == ["confirmed"] * 4
    assert [line for line in table.splitlines() if "stops here" in line] == [table.splitlines()[4]]


def test_the_end_is_that_of_the_stop_whatever_comes_later() -> None:
    """Had training stopped there, the deeper minimum would never have been seen."""
    validation = [*OVERFITS, 1.0, 0.9]
    *lines, end = table_of(looks_at(validation)).splitlines()
    assert "overfitting from epoch 0.50 (step 14), confirmed" in end
    assert cells(lines[-1])[4] == "2.00"


@pytest.mark.parametrize(
    ("validation", "train", "end"),
    [
        (OVERFITS[:3], None, "no overfitting seen; the lowest validation loss is at epoch 0.50"),
        (OVERFITS[:4], None, "overfitting from epoch 0.50 (step 14), not confirmed, p = "),
        ([2.0], None, "no overfitting seen; the lowest validation loss is at epoch 0.00"),
        ([2.0, 1.5, 2.5, 4.0], [2.0, 1.6, 2.6, 4.1], "no overfitting seen; the lowest validation loss is at epoch 0.2"),
    ],
    ids=["none", "not confirmed", "one validation", "divergence"],
)
def test_the_end_of_the_table(validation: list[float], train: list[float] | None, end: str) -> None:
    table = table_of(looks_at(validation, train))
    assert table.splitlines()[-1].startswith(end)
    assert "stops here" not in table


def test_columns_stand_below_their_names() -> None:
    head, *lines, _ = table_of(looks_at([12.0, 11.0, *OVERFITS, 3.0, 11.0], [1.5] * 11)).splitlines()
    names = ("step", "epoch", "train", "validation", "minimum at", "p value", "GL %", "PQ", "UP")
    ends = [head.index(name) + len(name) for name in names]
    for line in lines:
        assert [line[end : end + 2] for end in ends] == ["  "] * len(ends), line
        assert line[head.index("overfitting") :] in ("-", "seen", "confirmed")

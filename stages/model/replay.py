"""The onset of overfitting looked for again in the history of a finished training."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from stages.model.history import LossRow
from stages.model.onset import Onset, Prechelt, find_onset, prechelt


class Look(NamedTuple):
    """What was known after one validation."""

    row: LossRow
    onset: Onset
    prechelt: Prechelt


def replay(
    rows: pd.DataFrame, response_losses: np.ndarray, response_tokens: np.ndarray, *, patience: int, threshold: float
) -> list[Look]:
    """Look after each validation as training did, but go on to the end.

    `rows` are those of losses.csv; `response_losses` is (validation, example), summed, `response_tokens` (example,).
    """
    history = [LossRow(*row) for row in rows[list(LossRow._fields)].itertuples(index=False)]
    train = [row.train_loss for row in history]
    validation = (response_losses.sum(axis=1) / response_tokens.sum()).tolist()
    looks = []
    for at in range(1, len(history) + 1):
        onset = find_onset(train[:at], response_losses[:at], response_tokens, patience=patience, threshold=threshold)
        looks.append(Look(history[at - 1], onset, prechelt(train[:at], validation[:at], patience)))
    return looks


def table_of(looks: Sequence[Look]) -> str:
    """A table for a terminal, and what it comes to in one line."""
    lines = ["   step  epoch   train  validation  minimum at     p value   GL %     PQ  UP  overfitting"]
    confirmed = None
    for look in looks:
        row, onset, criteria = look.row, look.onset, look.prechelt
        if onset.confirmed and confirmed is None:
            confirmed = look
        state = "confirmed" if onset.confirmed else "seen" if onset.seen else "-"
        p_value = "" if onset.p_value == 1.0 else f"{onset.p_value:.2g}"
        lines.append(
            f"{row.step:7d}  {row.epoch:5.2f}  {row.train_loss:6.3f}  {row.validation_loss:10.4f}  "
            f"{looks[onset.best].row.epoch:10.2f}  {p_value:>10}  {criteria.generalization_loss:5.1f}  "
            f"{criteria.quotient:5.2f}  {criteria.increases:2d}  {state}"
            + ("  <- training stops here" if look is confirmed else "")
        )
    end = confirmed or looks[-1]
    best = looks[end.onset.best].row
    if not end.onset.seen:
        found = f"no overfitting seen; the lowest validation loss is at epoch {best.epoch:.2f}"
    else:
        sure = "confirmed" if end.onset.confirmed else "not confirmed"
        found = f"overfitting from epoch {best.epoch:.2f} (step {best.step}), {sure}, p = {end.onset.p_value:.2g}"
    return "\n".join([*lines, found])

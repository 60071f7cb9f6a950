"""The onset of overfitting: a pure function of the loss history."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.stats import ttest_rel

FEWEST_EXAMPLES = 8
"""Validation examples below which nothing is confirmed: the paired test rests on their differences being normal."""


class Onset(NamedTuple):
    """Where validation turned, and how sure that is."""

    best: int
    """Position of the last validation minimum in the history."""
    seen: bool
    """Whether training loss went on falling after it while validation loss did not come back to it."""
    confirmed: bool
    """Whether, besides, `patience` validations followed and their losses lie above the minimum by the paired test."""
    p_value: float
    """One-sided p value of the paired test; 1 where there is nothing to compare."""
    generalization_loss: float
    """How far the latest validation loss lies above the minimum, in percent (Prechelt 1998, GL)."""


def find_onset(
    train_losses: Sequence[float],
    example_losses: np.ndarray,
    example_tokens: np.ndarray,
    *,
    patience: int,
    threshold: float,
) -> Onset:
    """Judge a history of validations, the first of which may be from before training.

    Args:
        train_losses: mean training loss up to each validation.
        example_losses: float (validation, example): summed negative log-likelihood of each response.
        example_tokens: int (example,): their token counts.
        patience: validations after the minimum that the confirmation asks for, and looks at.
        threshold: largest p value that confirms; 0: none does.

    The validation loss is the mean over tokens, as in training. The test is Student's paired t on the examples' summed
    losses, each averaged over the latest `patience` validations, against those at the minimum: averaging keeps one
    unlucky validation from deciding. Its p value is that of one look, not corrected for looking at every validation.
    Fewer than FEWEST_EXAMPLES examples confirm nothing. GL as in `prechelt`.
    """
    losses = example_losses.sum(axis=1) / example_tokens.sum()
    best = len(losses) - 1 - int(np.argmin(losses[::-1]))
    after = len(losses) - 1 - best
    generalization_loss = float(100 * (losses[-1] / losses[best] - 1))
    if after == 0:
        return Onset(best, False, False, 1.0, generalization_loss)
    latest = slice(-min(patience, after), None)
    later = example_losses[latest].mean(axis=0)
    seen = float(np.mean(train_losses[latest])) < train_losses[best]
    p_value = _paired_p_value(later, example_losses[best])
    unlikely = p_value <= threshold and threshold > 0  # a p value too small for a float is 0
    confirmed = seen and after >= patience and unlikely and len(later) >= FEWEST_EXAMPLES
    return Onset(best, seen, confirmed, p_value, generalization_loss)


def _paired_p_value(later: np.ndarray, earlier: np.ndarray) -> float:
    """Chance of so large a mean rise if there were none; 1 with fewer than two examples or none that changed."""
    if len(later) < 2 or np.array_equal(later, earlier):
        return 1.0
    return float(ttest_rel(later, earlier, alternative="greater").pvalue)


class Prechelt(NamedTuple):
    """The three criteria of Prechelt, "Early Stopping - But When?", 1998, doi:10.1007/3-540-49430-8_3."""

    generalization_loss: float
    """GL: how far the latest validation loss lies above the minimum, in percent."""
    quotient: float
    """PQ: GL over the training progress of the latest strip, in thousandths; inf where there is none."""
    increases: int
    """UP: strips in a row, up to the latest, at whose end validation loss was higher than at the end before."""


def prechelt(train_losses: Sequence[float], validation_losses: Sequence[float], strip: int) -> Prechelt:
    """The criteria after the latest validation, with strips of so many validations."""
    lowest = min(validation_losses)
    loss = 100 * (validation_losses[-1] / lowest - 1)
    latest = train_losses[-strip:]
    level = len(latest) * min(latest)
    above = math.fsum(latest) - level  # exactly 0 where training stands still
    ends = validation_losses[::-1][::strip]
    increases = 0
    for later, earlier in pairwise(ends):
        if later <= earlier:
            break
        increases += 1
    quotient = loss * level / (1000 * above) if above > 0 else 0.0 if loss == 0 else math.inf
    return Prechelt(loss, quotient, increases)

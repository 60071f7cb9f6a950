"""The judge's card: how well a judge tells answers known to be good from answers known to be bad."""

from collections.abc import Sequence
from typing import Any

from scipy.stats import mannwhitneyu

from stages.judging.corruption import BAD, GOOD, Known
from stages.judging.embedded import SIGNALS, Verdict

RELIABLE = 0.7
"""Below this area under the ROC curve the summary and the review page say that the judge cannot be relied on."""


def auc(good: Sequence[float], bad: Sequence[float]) -> float:
    """Chance that a good answer scores above a bad one, ties counting half: the area under the ROC curve.

    Equal to the Mann-Whitney U over the number of pairs (Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747).

    >>> auc([3, 4], [1, 3])
    0.875
    """
    return float(mannwhitneyu(good, bad).statistic) / (len(good) * len(bad))


def make_card(known: Sequence[Known], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """AUC against all corrupted answers, against each kind of them, and of each signal alone; rounded to 4 digits."""
    judged = [(k.kind, v.score, v.signals) for k, v in zip(known, verdicts, strict=True) if v.score is not None]
    good = [score for kind, score, _ in judged if kind in GOOD]
    bad = [score for kind, score, _ in judged if kind in BAD]
    kinds = {kind: [score for k, score, _ in judged if k == kind] for kind in BAD}
    return {
        "judge_auc": round(auc(good, bad), 4),
        "judge_reliable": int(auc(good, bad) >= RELIABLE),
        "judge_auc_by_corruption": {kind: round(auc(good, scores), 4) for kind, scores in kinds.items() if scores},
        "judge_auc_by_signal": {
            name: round(
                auc(
                    [s[name] for kind, _, s in judged if kind in GOOD],
                    [s[name] for kind, _, s in judged if kind in BAD],
                ),
                4,
            )
            for name in SIGNALS
        },
        "judge_card_answers": len(judged),
    }

"""Scores of one answer, and of many, as publishers define them: SQuAD's, TriviaQA's and BIG-bench's JSON metrics.

What is published out of 100 (BLEU, ROUGE, sequence_f1) is out of 1 here, as all other figures are.
"""

import hashlib
import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from scipy.special import logsumexp

from stages.benchmarks.benchmark import Aggregate
from stages.benchmarks.estimates import mean
from stages.judging.reference_metrics import exact_match, normalize, token_f1

# ---- SQuAD and TriviaQA

UNANSWERABLE = "unanswerable"
"""What a model is told to reply where the text has no answer."""

_TRIVIA_PUNCTUATION = str.maketrans(dict.fromkeys(f"{string.punctuation}\u2018\u2019\u00b4", " "))


def squad_scores(reply: str, golds: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1, each the best over the golds (SQuAD 2.0, evaluate-v2.0.py, get_raw_scores).

    No gold that holds a word: the right answer is none, which is an empty reply.

    >>> squad_scores("The Nile.", ["Nile", "river Nile"])
    (1.0, 1.0)
    """
    golds = [gold for gold in golds if normalize(gold)] or [""]
    return max(exact_match(reply, gold) for gold in golds), max(token_f1(reply, gold) for gold in golds)


def squad2_reply(reply: str) -> str:
    """The reply, or nothing where it says that there is no answer."""
    return "" if normalize(reply) == UNANSWERABLE else reply


def normalize_trivia(text: str) -> str:
    """Lower case, punctuation as spaces, without articles and extra space (TriviaQA, triviaqa_evaluation.py).

    >>> normalize_trivia("The Hitch-hiker's_Guide!")
    'hitch hiker s guide'
    """
    plain = text.replace("_", " ").lower().translate(_TRIVIA_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def trivia_scores(reply: str, golds: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1, each the best over the golds (triviaqa_evaluation.py, metric_max_over_ground_truths)."""
    ours = normalize_trivia(reply)
    theirs = [normalize_trivia(gold) for gold in golds]
    return max(float(ours == gold) for gold in theirs), max(_overlap(ours.split(), gold.split()) for gold in theirs)


def _overlap(ours: Sequence[str], theirs: Sequence[str]) -> float:
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


# ---- BIG-bench (google/BIG-bench, bigbench/api/task_metrics.py and json_task.py; release 1.0.0 on PyPI)

TEXT = frozenset(
    {
        "exact_str_match",
        "case_insensitive_str_match",
        "numeric_match_with_0_1_relative_error",
        "sequence_f1",
        "bleu",
        "rouge",
    }
)
"""Metrics of what a model writes; rouge gives rouge1, rouge2 and rougeLsum."""
CHOICE = frozenset(
    {
        "multiple_choice_grade",
        "calibration_multiple_choice_brier_score",
        "expected_calibration_error",
        "weighted_log_probabilities",
        "weighted_probabilities",
        "macro_f1",
    }
)
"""Metrics of how likely choices are."""
LIKELIHOOD = frozenset({"log_likelihood"})
"""Metrics of how likely targets are."""
ABSENT = frozenset({"bleurt"})
"""Metrics that need a model of their own, which is not here."""
RANGES = {
    **dict.fromkeys(TEXT - {"rouge"} | {"rouge1", "rouge2", "rougeLsum"}, (0.0, 1.0)),
    **dict.fromkeys(CHOICE, (0.0, 1.0)),
    "weighted_log_probabilities": (-10.0, 0.0),
    "weighted_probabilities": (-1.0, 1.0),
    "log_likelihood": (-10.0, 0.0),
}
"""Low and high score, by which a score is normalised (SCORE_RANGES); chance is low for multiple_choice_grade."""

BUCKETS = 15
"""Of confidence, for the expected calibration error."""


def text_values(response: str, targets: Sequence[str], metrics: frozenset[str]) -> dict[str, Any]:
    """Values of one row, as `AGGREGATES` take them."""
    values: dict[str, Any] = {}
    if "exact_str_match" in metrics:
        values["exact_str_match"] = float(response in targets)
    if "case_insensitive_str_match" in metrics:
        folded = [target.strip().lower() for target in targets]
        values["case_insensitive_str_match"] = float(response.strip().lower() in folded)
    if "numeric_match_with_0_1_relative_error" in metrics:
        near = any(_is_near(response, target) for target in targets)
        values["numeric_match_with_0_1_relative_error"] = float(near)
    if "sequence_f1" in metrics:
        values["sequence_f1"] = _label_accuracy(response, targets[0])
    if "bleu" in metrics:
        values["bleu"] = _bleu_counts(response, targets)
    if "rouge" in metrics:
        values |= _rouge(response, targets)
    return values


def _is_near(response: str, target: str) -> bool:
    """Within a tenth of the target; as published the difference is divided by the target with its sign."""
    try:
        wanted, given = float(target), float(response)
    except ValueError:
        return False
    return abs(given - wanted) / (wanted or 1.0) <= 0.1


def _label_accuracy(response: str, target: str) -> float:
    """Share of right labels, which are apart by one space; missing ones count as O, those beyond the target not."""
    wanted, given = target.split(" "), response.split(" ")
    given += ["O"] * (len(wanted) - len(given))
    return sum(ours == theirs for ours, theirs in zip(given, wanted, strict=False)) / len(wanted)


@cache
def _bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize="intl", smooth_method="exp", force=True)  # as in T5 (t5/evaluation/metrics.py, bleu)


def _bleu_counts(response: str, targets: Sequence[str]) -> list[int]:
    """Matches and totals of 1 to 4 words, length of the response and of the nearest target."""
    score = _bleu().corpus_score([response], [[target] for target in targets])
    return [*score.counts, *score.totals, score.sys_len, score.ref_len]


def corpus_bleu(counts: Sequence[Sequence[int]]) -> float:
    """BLEU of many rows (Papineni et al. 2002; sacrebleu, international tokens, exponential smoothing)."""
    total = np.sum(np.asarray(counts, dtype=np.int64), axis=0).tolist()
    score = _bleu().compute_bleu(total[:4], total[4:8], total[8], total[9], smooth_method="exp")
    return float(score.score) / 100


@cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeLsum"])  # as in T5 (t5/evaluation/metrics.py, rouge)


def _rouge(response: str, targets: Sequence[str]) -> dict[str, float]:
    """F measures, each of the best target (Lin 2004). Published is the middle of a bootstrap; here the mean is."""
    ours = response.replace(" . ", " .\n")
    scores = [_rouge_scorer().score(target.replace(" . ", " .\n"), ours) for target in targets]
    return {kind: max(float(score[kind].fmeasure) for score in scores) for kind in scores[0]}


def choice_values(
    log_likelihoods: Sequence[float], choices: Sequence[str], scores: Sequence[float], metrics: frozenset[str]
) -> dict[str, Any]:
    """Values of one row, as `AGGREGATES` take them; where choices are graded, so is their calibration."""
    logs = np.asarray(log_likelihoods, dtype=np.float64)
    logs = logs - logsumexp(logs)
    probabilities, targets = np.exp(logs), np.asarray(scores, dtype=np.float64)
    best = choices[argmax(logs)]
    values: dict[str, Any] = {
        "multiple_choice_grade": float(scores[choices.index(best)]),
        "weighted_log_probabilities": float(targets @ np.asarray(log_likelihoods)),
        "weighted_probabilities": float(targets @ np.exp(log_likelihoods)),
        "macro_f1": (choices[int(np.argmax(targets))], best),
    }
    shares = targets / targets.sum() if targets.sum() else np.zeros_like(targets)
    losses = shares * (probabilities - 1) ** 2 + (1 - shares) * probabilities**2
    values["calibration_multiple_choice_brier_score"] = (float(losses.sum()), len(choices))
    hit = bool(np.argmax(shares) == np.argmax(probabilities))
    values["expected_calibration_error"] = (float(probabilities.max()), float(hit))
    return {name: values[name] for name in sorted(metrics)}


def argmax(values: np.ndarray) -> int:
    """Number of the greatest; of equal ones, one that their hash decides (task_metrics.py, argmax)."""
    best = np.flatnonzero(values == values.max())
    return int(best[int(hashlib.sha256(values.tobytes()).hexdigest(), 16) % len(best)])


def brier(values: Sequence[tuple[float, int]]) -> float:
    """Brier score over all choices of all rows (Brier 1950)."""
    return sum(loss for loss, _ in values) / sum(count for _, count in values)


def calibration_error(values: Sequence[tuple[float, float]]) -> float:
    """Expected calibration error over buckets of confidence (Naeini, Cooper and Hauskrecht 2015)."""
    confidence, hit = np.asarray(values, dtype=np.float64).T
    edges = np.arange(1, BUCKETS + 1) / BUCKETS
    bucket = np.minimum(np.searchsorted(edges, confidence, side="right"), BUCKETS - 1)
    return float(np.abs(np.bincount(bucket, hit - confidence, BUCKETS)).sum() / len(values))


def macro_f1(values: Sequence[tuple[str, str]]) -> float:
    """F1 of each answer, all of the same weight."""
    from sklearn.metrics import f1_score

    gold, given = zip(*values, strict=True)
    return float(f1_score(gold, given, average="macro"))


def likelihood_values(log_likelihoods: Sequence[float], targets: Sequence[str], single: bool) -> dict[str, float]:
    """Log likelihood of all targets together; by word and character too where every row has a `single` target."""
    total = float(logsumexp(np.asarray(log_likelihoods, dtype=np.float64)))
    values = {"log_likelihood": total}
    if single:
        words, characters = len(targets[0].split()) or 1, len(targets[0]) or 1
        values |= {"log_likelihood_per_word": total / words, "log_likelihood_per_char": total / characters}
    return values


AGGREGATES: dict[str, Aggregate] = {
    "bleu": corpus_bleu,
    "calibration_multiple_choice_brier_score": brier,
    "expected_calibration_error": calibration_error,
    "macro_f1": macro_f1,
}
"""From values of rows to the figure; of all other metrics it is their mean."""


def aggregate_of(metric: str) -> Aggregate:
    """How values of rows become the figure."""
    return AGGREGATES.get(metric, mean)


def postprocess(text: str, stop: str | None, pattern: str | None) -> str:
    """What of a model's text counts as its response (bigbench/models/model_utils.py, postprocess_output).

    Up to and with the first `stop`, unless the text begins with it; of that the first match of `pattern`, its group if
    it has one, nothing if there is none.

    >>> postprocess("Rg5# or so", "#", None), postprocess(" 13. No", None, r"[-+]?\\d+"), postprocess("?", None, r"\\d")
    ('Rg5#', '13', '')
    """
    at = text.find(stop) if stop else -1
    if stop and at > 0:
        text = text[: at + len(stop)]
    return next(iter(re.findall(pattern, text)), "") if pattern else text

"""GLUE (Wang et al. 2018, arXiv 1804.07461): nine tasks, each with its official metric, on the validation split.

Eight are lm-eval's own configurations. It has none for STS-B, which is ours: the model is asked for a digit from 0 to
5, and the score of a pair is the mean of the digits under the model's likelihoods, as in G-Eval (Liu et al. 2023,
arXiv 2303.16634), so that it is as fine as the people's scores, means themselves.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from stages.benchmarks.benchmark import Source
from stages.benchmarks.suites import Part, Suite, Unit, plain
from stages.benchmarks.tables import Line, number_of, text_of
from stages.pipeline.errors import UserError

Pair = tuple[Any, Any]
"""What is right of a row, and what was predicted."""

ENTAILS = {"entailment": 0, "not_entailment": 1}
DIGITS = ["0", "1", "2", "3", "4", "5"]


def f1(pairs: Sequence[Pair]) -> float:
    """F1 of class 1: 2 TP / (positives + predicted positives); 0 where there are none of either."""
    gold, predicted = np.asarray(pairs, dtype=np.int64).T
    either = int(gold.sum() + predicted.sum())
    return 2 * int((gold & predicted).sum()) / either if either else 0.0


def pearson(pairs: Sequence[Pair]) -> float:
    """Pearson's correlation; 0 where one side is constant, since nothing is told apart then."""
    from scipy.stats import pearsonr

    return _correlation(pearsonr, pairs)


def spearman(pairs: Sequence[Pair]) -> float:
    """Spearman's rank correlation, ties with their mean rank; 0 where one side is constant."""
    from scipy.stats import spearmanr

    return _correlation(spearmanr, pairs)


def _correlation(statistic: Any, pairs: Sequence[Pair]) -> float:
    gold, predicted = np.asarray(pairs, dtype=np.float64).T
    if len(pairs) < 2 or np.ptp(gold) == 0 or np.ptp(predicted) == 0:
        return 0.0
    with warnings.catch_warnings():  # of nearly constant values, which a bootstrap sample may be
        warnings.simplefilter("ignore")
        found = float(statistic(gold, predicted).statistic)
    return found if math.isfinite(found) else 0.0


def expected_score(likelihoods: Sequence[float]) -> float:
    """Mean of 0 to 5 under the log-likelihoods of these digits."""
    shares = np.exp(np.asarray(likelihoods) - max(likelihoods))
    return float(shares @ np.arange(len(shares)) / shares.sum())


def _score_pair(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Pair]:
    found = (doc["score"], expected_score([likelihood for likelihood, _ in results]))
    return {"pearson": found, "spearman": found}


def _stsb_units(lines: Sequence[Line]) -> list[Unit]:
    units = []
    for line in lines:
        score = number_of(line, "score", "label")
        if not 0 <= score <= 5:
            raise UserError(f"{line.where}: score {score:g} is not from 0 to 5; take the validation split")
        pair = {name: text_of(line, name) for name in ("sentence1", "sentence2")}
        units.append([pair | {"score": score, "nearest": math.floor(score + 0.5)}])
    return units


def _stsb() -> dict[str, Any]:
    metrics = (("pearson", pearson), ("spearman", spearman))
    return {
        "output_type": "multiple_choice",
        "doc_to_text": "Sentence 1: {{sentence1}}\nSentence 2: {{sentence2}}\nQuestion: How similar in meaning are "
        "both sentences, from 0 (nothing in common) to 5 (the same)?\nAnswer:",
        "doc_to_choice": DIGITS,
        "doc_to_target": "nearest",
        "process_results": _score_pair,
        "metric_list": [
            {"metric": name, "aggregation": function, "higher_is_better": True} for name, function in metrics
        ],
    }


def _stock(path: str) -> dict[str, Any]:
    """lm-eval's configuration; F1 by our own function: over bootstrap samples it takes a tenth of the time or less."""
    from stages.benchmarks.harness import stock

    config = stock(f"glue/{path}.yaml")
    for metric in config["metric_list"]:
        if metric["metric"] == "f1":
            metric |= {"aggregation": f1, "higher_is_better": True}
    return config


def _part(
    name: str,
    folder: str,
    published: int,
    fields: Mapping[str, Sequence[str]],
    label: Sequence[str],
    labels: Mapping[str, int],
    metrics: tuple[str, ...] = ("acc",),
    stock: str = "",
    **others: Any,
) -> Part:
    return Part(
        name,
        folder,
        published,
        plain(fields, label, labels),
        partial(_stock, stock or f"{name}/default"),
        metrics,
        "lm-eval's prompt without shots; the likeliest of the label's words",
        **others,
    )


SENTENCES = {"sentence1": ("sentence1",), "sentence2": ("sentence2",)}
PREMISE = {"premise": ("premise", "sentence1"), "hypothesis": ("hypothesis", "sentence2")}
MNLI = {"entailment": 0, "neutral": 1, "contradiction": 2}
BINARY = {"0": 0, "1": 1}

PARTS = (
    _part(
        "cola", "CoLA", 1043, {"sentence": ("sentence",)}, ("label",), BINARY, ("mcc",),
        header=("source", "label", "mark", "sentence"),
    ),
    _part("sst2", "SST-2", 872, {"sentence": ("sentence", "text")}, ("label",), BINARY),
    _part(
        "mrpc", "MRPC", 408, {"sentence1": ("sentence1", "#1 String"), "sentence2": ("sentence2", "#2 String")},
        ("label", "Quality"), BINARY, ("acc", "f1"),
    ),
    Part(
        "stsb", "STS-B", 1500, _stsb_units, _stsb, ("pearson", "spearman"),
        "our prompt without shots; mean of the digits 0 to 5 under their likelihoods (as in G-Eval)",
    ),
    _part(
        "qqp", "QQP", 40430, {"question1": ("question1",), "question2": ("question2",)}, ("label", "is_duplicate"),
        BINARY, ("acc", "f1"), torn=True,
    ),
    _part("mnli", "MNLI", 9815, PREMISE, ("label", "gold_label"), MNLI),
    _part(
        "mnli_mismatched", "MNLI", 9832, PREMISE, ("label", "gold_label"), MNLI, stock="mnli/default",
        task="mnli", mismatched=True,
    ),
    _part("qnli", "QNLI", 5463, {"question": ("question",), "sentence": ("sentence",)}, ("label",), ENTAILS),
    _part("rte", "RTE", 277, SENTENCES, ("label",), ENTAILS),
    _part("wnli", "WNLI", 71, SENTENCES, ("label",), {"not_entailment": 0, "entailment": 1}),
)  # fmt: skip
"""Rows of the validation splits: nyu-mll/glue on the hub."""

BENCHMARKS = (
    Suite(
        name="glue",
        title="GLUE",
        about="nine tasks of understanding sentences, without shots, by likelihood of the answers; official metrics",
        layout="<Task>/dev.tsv as in GLUE's archives (MNLI: dev_matched.tsv, dev_mismatched.tsv), or the same rows as "
        ".jsonl or .parquet with the hub's columns; CoLA SST-2 MRPC STS-B QQP MNLI QNLI RTE WNLI",
        source=Source(
            licence="each task's own; see the publisher",
            where="https://gluebenchmark.com/tasks",
            hub="nyu-mll/glue",
            patterns=tuple(
                f"{name}/validation*" for name in ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
            ),
        ),
        parts=PARTS,
    ),
)

"""Fitting weights: those that made the worth come back, within bounds."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.judging.calibration import BOUNDS, WORTH, bounded_fit, examples, fit
from stages.judging.card import auc
from stages.judging.corruption import BAD, GOOD
from stages.judging.embedded import SIGNALS, WEIGHTS
from stages.judging.signals import LEXICAL
from stages.pipeline.files import read_json
from tests.conftest import ROOT
from tests.judging.making import make_response

ROWS = [
    make_response("The Danube flows through Vienna and Budapest.", id="a", instruction="Name a river."),
    make_response("The Danube is a river.", id="b", input="Danube"),
    make_response("Seventeen camels crossed it.", id="c"),
]


def test_weights_that_made_the_worth_come_back() -> None:
    signals = np.random.default_rng(1).random((200, 3))
    weights = np.array([0.5, 0.3, 0.2])
    assert bounded_fit(signals, signals @ weights, [(0, 1)] * 3) == pytest.approx(weights, abs=1e-5)


@given(st.integers(0, 1000))
def test_bounds_hold_and_weights_add_up_to_1(seed: int) -> None:
    dice = np.random.default_rng(seed)
    bounds = [(0.3, 1.0), (0.0, 0.2), (0.0, 1.0), (0.1, 1.0)]
    found = bounded_fit(dice.random((50, 4)), dice.random(50), bounds)
    assert found.sum() == pytest.approx(1)
    assert all(low - 1e-3 <= weight <= high + 1e-3 for weight, (low, high) in zip(found, bounds, strict=True))


def test_fit_names_every_signal(tiny_llama: Path) -> None:
    weights = fit(ROWS, tiny_llama, limit=3, seed=0)
    assert list(weights) == list(SIGNALS)
    assert sum(weights.values()) == pytest.approx(1, abs=0.005)


def test_the_weights_in_use_are_within_bounds() -> None:
    weights = read_json(WEIGHTS)
    assert set(weights) == set(SIGNALS)
    for name, (low, high) in BOUNDS.items():
        assert low - 0.002 <= weights[name] <= high + 0.002


def test_kinds_of_examples() -> None:
    known = examples(ROWS, 3, seed=0)
    assert {k.kind for k in known} - {"empty"} <= set(WORTH)
    assert set(WORTH) == {*GOOD, *BAD, "restated", "near_row", "echo", "half_wrong"} - {"empty"}
    of_first = {k.kind: k.answer for k in known if k.row is ROWS[0]}
    assert of_first["near_row"] == ROWS[1].reference
    assert of_first["half_wrong"] == "The Danube flows is a river."
    assert of_first["restated"] == "Name a river. The Danube flows through Vienna and Budapest."
    assert [k.answer for k in known if k.kind == "echo"] == ["Name a river.", "Danube", "Name the colour."]


def test_right_answers_score_above_wrong_ones_on_shipped_instructions() -> None:
    """The lexical part of the score alone, on rows of the raw data: AUC against each kind."""
    lines = (ROOT / "data/raw/instructions.jsonl").read_text(encoding="utf-8").splitlines()[::9]
    shipped = [
        make_response(r["output"], id=str(at), category=r["category"], instruction=r["instruction"], input=r["input"])
        for at, r in enumerate(map(json.loads, lines))
    ]
    weights = read_json(WEIGHTS)
    scores: dict[str, list[float]] = {}
    for known in examples(shipped, 100, seed=0):
        score = sum(weights[name] * signal(known.answer, known.row) for name, signal in LEXICAL.items())
        scores.setdefault(known.kind, []).append(score)
    good = [score for kind in GOOD for score in scores[kind]]
    leasts = {"other_row": 0.99, "near_row": 0.95, "truncated": 0.95, "changed_fact": 0.9, "half_wrong": 0.9}
    for kind, least in leasts.items():
        value = auc(good, scores[kind])
        assert value is not None
        assert value >= least, kind

"""Two experiments on the same rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.experiments.comparison import compare
from stages.experiments.comparison import read_experiment as read
from stages.experiments.comparison_scores import (
    SAME_SCORE,
    Answered,
    Difference,
    compare_scores,
    differences,
    most_changed,
)
from stages.experiments.comparison_words import sections
from tests.experiments.making import make_experiment, run

KNOBS: dict[str, Any] = {"confidence": 0.95, "resamples": 200, "seed": 1}

scores = st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=2, max_size=20)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def made(name: str, values: list[float]) -> dict[str, Answered]:
    return {
        str(number): Answered(("i", "", "r"), "c", f"{name} {number}", value, "b", 1.0)
        for number, value in enumerate(values)
    }


def both(**second: Any) -> dict[str, Any]:
    a = read(str(make_experiment(Path("a"), [10.0, 20.0, 30.0, 40.0, 50.0, 60.0])), Path("x"))
    b = read(str(make_experiment(Path("b"), **second)), Path("y"))
    return compare(a, b, **KNOBS)


def test_figures_by_hand() -> None:
    figures = both(scores=[20.0, 20.0, 10.0, 70.0, 60.0, 65.0])
    assert figures["rows"] == {"compared": 6, "only_a": 0, "only_b": 0, "other_reference": 0, "unscored": 0}
    assert (figures["score_a"], figures["score_b"]) == (35, 40.8333)
    assert figures["difference"] == pytest.approx(5.8333, abs=1e-4)
    assert (figures["wins_b"], figures["wins_a"], figures["ties"]) == (4, 1, 1)
    # all 2^6 signs of the differences
    change = np.array([10, 0, -20, 30, 10, 5])
    signs = np.array(np.meshgrid(*[[1, -1]] * 6)).reshape(6, -1)
    assert figures["p_value"] == pytest.approx(2 * ((signs.T @ change) >= 35).mean(), abs=1e-3)
    assert figures["difference_low"] < 5.8333 < figures["difference_high"]
    assert figures["by_category"] == {}, "three rows are too few"
    assert doubts(figures) == []
    results = figures["a"]["results"]
    assert (results["overfit_epoch"], results["judge_auc"], figures["a"]["judge"]) == (1.25, 0.95, "embedded")


@given(scores)
@settings(max_examples=30, deadline=None)
def test_the_other_way_round_it_is_mirrored(pairs: list[tuple[float, float]]) -> None:
    one, other = (made(name, list(values)) for name, values in zip("ab", zip(*pairs, strict=True), strict=True))
    forward, backward = compare_scores(one, other, **KNOBS), compare_scores(other, one, **KNOBS)
    assert forward["difference"] == -backward["difference"]
    assert (forward["wins_a"], forward["wins_b"], forward["ties"]) == (
        backward["wins_b"],
        backward["wins_a"],
        backward["ties"],
    )
    assert forward["wins_a"] + forward["wins_b"] + forward["ties"] == len(pairs)
    assert forward["difference_low"] <= forward["difference"] + 1e-4
    assert forward["difference_high"] >= forward["difference"] - 1e-4
    assert 0 < forward["p_value"] <= 1


def test_a_difference_is_found_and_none_is_not_made_up() -> None:
    chance = np.random.default_rng(3)
    first = chance.uniform(20, 80, 150)
    better = compare_scores(made("a", list(first)), made("b", list(first + chance.normal(4, 10, 150))), **KNOBS)
    assert better["difference_low"] > 0
    assert better["p_value"] < 0.01
    same = [
        compare_scores(made("a", list(first)), made("b", list(first + chance.normal(0, 10, 150))), **KNOBS)["p_value"]
        for _ in range(20)
    ]
    assert 0.2 < np.mean(same) < 0.8


def test_rows_that_cannot_be_compared_are_counted() -> None:
    figures = both(scores=[20.0, None, 10.0, 70.0, 60.0, 65.0], start=2)
    assert figures["rows"] == {"compared": 3, "only_a": 2, "only_b": 2, "other_reference": 0, "unscored": 1}
    assert figures["score_a"] == pytest.approx(np.mean([30, 50, 60]), abs=1e-4)


def test_another_reference_is_not_compared() -> None:
    figures = both(scores=[1.0] * 6, reference="It is green.")
    assert "6 have the same id, 0 the same instruction and reference" in figures["scores_missing"]
    assert "difference" not in figures


def test_nothing_in_common_is_said() -> None:
    figures = both(scores=[1.0, 2.0], start=100)
    assert figures["scores_missing"].startswith("no row to compare: of 6 and 2 rows 0 have the same id")


def test_categories_with_five_rows_are_compared() -> None:
    a, b = (
        read(str(make_experiment(Path(name), [value] * 9)), Path("x")) for name, value in (("a", 10.0), ("b", 12.0))
    )
    figures = compare(a, b, **KNOBS)["by_category"]
    assert list(figures) == ["even"]
    assert (figures["even"]["num_rows"], figures["even"]["difference"], figures["even"]["wins_b"]) == (5, 2, 5)


def doubts(figures: dict[str, Any]) -> list[str]:
    """Warnings, without those that say what is not known of the causes."""
    return [warning for warning in figures["warnings"] if warning not in figures["causes"]["unknown"]]


def test_scores_of_two_judges_are_shown_without_a_difference() -> None:
    for changes in ({"judge": "gpt"}, {"base_score": 50.0}):
        found = {section.title: section for section in sections(both(scores=[1.0] * 6, **changes))}
        rows = {row[0]: row for row in found["Results"].rows}
        assert rows["score, same rows"][1:] == ("35.0", "1.0", "")
        assert found["Results"].lines == ["6 rows compared"]
        assert "Scores by category" not in found


def test_what_makes_scores_doubtful_is_said() -> None:
    assert "two judges, embedded and gpt" in doubts(both(scores=[1.0] * 6, judge="gpt"))[0]
    assert "cannot be relied on (judge_auc 0.6)" in doubts(both(scores=[1.0] * 6, auc=0.6))[0]
    assert "it changed" in doubts(both(scores=[1.0] * 6, base_score=50.0))[0]
    assert doubts(both(scores=[1.0] * 6, base_score=50.0, base="another model")) == []
    assert doubts(both(scores=[1.0] * 6, base_score=40.0 + SAME_SCORE)) == [], "it may be rounding"
    twins = both(scores=[10.0, 20.0, 30.0, 40.0, 50.0, 60.0])
    assert (twins["identical"], twins["ties"], twins["p_value"]) == (True, 6, 1)
    assert "every row is a tie" in doubts(twins)[0]


def test_most_changed_rows() -> None:
    one, other = made("a", [50, 50, 50, 50, 50]), made("b", [60, 50, 20, 90, 45])
    fell, rose = most_changed(differences(one, other), 5)
    assert [row.change for row in fell] == [-30, -5]
    assert [row.change for row in rose] == [40, 10]
    assert isinstance(fell[0], Difference)
    assert [len(side) for side in most_changed(differences(one, other), 1)] == [1, 1]


def test_what_is_not_there_is_left_out() -> None:
    make_experiment(Path("a"), [1.0, 2.0])
    for name in ("data/verdicts.parquet", "metrics/judge.json", "metrics/finetune.json"):
        Path("a", name).unlink()
    found = read("a", Path("x"))
    assert (found.judge, found.metrics) == (None, {})
    figures = compare(found, found, **KNOBS)
    assert any("no metrics/judge.json" in warning for warning in figures["warnings"])
    Path("a/metrics/finetune.json").write_text('{"overfit_epoch": 2.0}')
    Path("a/data/scores.parquet").unlink()
    found = read("a", Path("x"))
    figures = compare(found, found, **KNOBS)
    assert figures["scores_missing"].startswith("a: holds no data/scores.parquet; run `dvc repro` there")
    assert figures["a"]["results"] == {"overfit_epoch": 2.0}


# ---- through the door


def test_the_command_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    make_experiment(tmp_path, [float(number) for number in range(0, 60, 5)])
    text = "bad \x1b[31m [bold] " * 20
    make_experiment(tmp_path / "other", [float(number % 35) for number in range(0, 90, 9)], response=text)
    done = run(tmp_path, "compare", "workspace", "other", "--json", "out.json", "--rows", 2)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in done.stdout
    assert "[bold]" in done.stdout
    assert lines[0].split() == ["A", "B"]
    assert lines[1].split() == ["experiment", "workspace", "other"]
    assert any(line.startswith("10 rows compared; not compared: 2 only in A") for line in lines)
    assert sum(line.startswith("  A ") for line in lines) == 4
    written = json.loads(Path("out.json").read_text())
    assert len(written["changed"]) == written["rows"]["compared"] == 10
    assert written["changed"][0]["b"]["response"] == text
    again = run(tmp_path, "compare", "workspace", "other", "--rows", 2)
    assert again.stdout == done.stdout


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("workspace", "nowhere", "nowhere: not a folder with data/, and this is no Git repository"),
        ("empty", "workspace", "empty: holds no experiment: neither dvc.lock nor metrics nor scores"),
        ("damaged", "workspace", "damaged/data/scores.parquet: damaged"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, first: str, second: str, expected: str) -> None:
    make_experiment(tmp_path, [1.0, 2.0])
    (tmp_path / "empty/data").mkdir(parents=True)
    make_experiment(tmp_path / "damaged", [1.0])
    (tmp_path / "damaged/data/scores.parquet").write_bytes(b"PAR1 no more")
    done = run(tmp_path, "compare", first, second)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {expected}")
    assert done.stderr.count("\n") == 1

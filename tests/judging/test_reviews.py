"""People's reviews: what the page saves comes in, anything else is refused in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.judging.agreement import (
    agreement,
    five_points,
    graded_by_judge,
    headlines,
    spearman,
    summarize_reviews,
    table_of,
)
from stages.judging.reviews import Review, import_reviews, read_review, read_reviews
from stages.judging.verdicts import read_verdicts
from stages.pipeline.errors import UserError
from stages.pipeline.files import sha256_of
from tests.imports import ROOT
from tests.judging.reviewed import IDS, make_judged, review_of, said, save

Pairs = list[tuple[int, int]]

ratings = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=40)


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_judged(tmp_path)


def keep(judged: Path, *values: Any) -> list[Path]:
    """Import reviews; returns what is then kept."""
    files = [save(judged / f"{number}.json", value) for number, value in enumerate(values)]
    import_reviews(files, Path("data/responses.parquet"), IDS, Path("data/reviews"))
    return sorted(Path("data/reviews").iterdir())


def figures_of(judged: Path) -> Any:
    found = read_reviews(Path("data/reviews"), sha256_of(Path("data/responses.parquet")))
    return summarize_reviews(list(found.values()), graded_by_judge(read_verdicts(Path("data/verdicts.parquet"))[0]))


# ---- kept


def test_what_is_kept_does_not_depend_on_the_order_of_what_was_saved(judged: Path) -> None:
    value = review_of(judged, "Ada", {IDS[0]: 1, IDS[1]: None, IDS[2]: 5}, {IDS[3]: "tie", IDS[1]: "response"})
    value["scores"][IDS[2]]["note"] = "wrong «river»\n<script>"
    (path,) = keep(judged, value)
    before = path.read_bytes()
    assert path.name == f"ada-{value['responses'][:8]}.json"
    assert json.loads(before) == value
    turned = {
        key: dict(reversed(own.items())) if isinstance(own, dict) else own for key, own in reversed(value.items())
    }
    assert keep(judged, turned) == [path]
    assert path.read_bytes() == before
    assert keep(judged, json.loads(before)) == [path], "what is kept can be imported"
    assert path.read_bytes() == before


def test_the_same_person_again_replaces_and_another_one_with_the_same_letters_does_not(judged: Path) -> None:
    keep(judged, review_of(judged, "Ada", {IDS[0]: 1}))
    keep(judged, review_of(judged, "ADA!", {IDS[0]: 2}))
    keep(judged, review_of(judged, "  Ada ", {IDS[0]: 3}), review_of(judged, "ADA!", {IDS[0]: 4}))
    found = read_reviews(Path("data/reviews")).values()
    assert {review.reviewer: review.ratings for review in found} == {"Ada": {IDS[0]: 3}, "ADA!": {IDS[0]: 4}}


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "/abs", "..", "a\\b", "CON", "中文", "x" * 100, "🙂", "a/../b"]
)
def test_a_hostile_name_stays_in_the_folder(judged: Path, name: str) -> None:
    (path,) = keep(judged, review_of(judged, name, {IDS[0]: 1}))
    assert path.parent == Path("data/reviews")
    assert path.name.isascii()
    assert len(path.name) < 80
    assert not path.name.startswith((".", "-"))
    assert read_review(path).reviewer == name


def test_reviews_of_other_responses_stay_and_do_not_count(judged: Path) -> None:
    keep(judged, review_of(judged, "Ada", {IDS[0]: 1}))
    old = json.loads(next(Path("data/reviews").iterdir()).read_text()) | {"responses": "0" * 64, "reviewer": "Old"}
    save(Path("data/reviews/old-00000000.json"), old)
    assert list(figures_of(judged)["reviewers"]) == ["Ada"]


# ---- refused


def change(**changes: Any) -> Any:
    return lambda value: value | changes


WRONG = {
    "another format": (change(format="onset-review-2"), "`format` is not onset-review-1"),
    "a list": (lambda value: [value], "`format` is not onset-review-1"),
    "other responses": (change(responses="0" * 64), "is of other responses (00000000)"),
    "no hash": (change(responses="../x"), "responses"),
    "a 6": (lambda value: value | {"scores": {IDS[0]: {"score": 6, "note": ""}}}, f"scores.{IDS[0]}.score"),
    "a 0": (lambda value: value | {"scores": {IDS[0]: {"score": 0, "note": ""}}}, f"scores.{IDS[0]}.score"),
    "true": (lambda value: value | {"scores": {IDS[0]: {"score": True, "note": ""}}}, f"scores.{IDS[0]}.score"),
    "a half": (lambda value: value | {"scores": {IDS[0]: {"score": 2.5, "note": ""}}}, f"scores.{IDS[0]}.score"),
    "a text": (lambda value: value | {"scores": {IDS[0]: {"score": "3", "note": ""}}}, f"scores.{IDS[0]}.score"),
    "NaN": (lambda value: value | {"scores": {IDS[0]: {"score": float("nan")}}}, f"scores.{IDS[0]}.score"),
    "another key": (lambda value: value | {"scores": {IDS[0]: {"score": 3, "stars": 3}}}, "stars"),
    "a vote for nobody": (change(votes={IDS[0]: "left"}), f"votes.{IDS[0]}"),
    "an unknown row": (change(votes={"ffff": "tie", "fffe": "tie"}), "2 of its rows are not in"),
    "no reviewer": (change(reviewer="  "), "reviewer"),
    "a long name": (change(reviewer="x" * 101), "reviewer"),
    "an escape in the name": (change(reviewer="a\x1b[31m"), "control characters"),
    "nothing said": (change(scores={IDS[0]: {"score": None, "note": "hm"}}, votes={}), "no score and no vote"),
    "half a letter": (change(reviewer="\ud800"), "not valid JSON"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_named_and_nothing_is_kept(judged: Path, name: str) -> None:
    alter, expected = WRONG[name]
    good = save(judged / "good.json", review_of(judged, "Eve", {IDS[0]: 3}))
    wrong = save(judged / "wrong.json", alter(review_of(judged, "Ada", {IDS[0]: 3})))
    with pytest.raises(UserError) as caught:
        import_reviews([good, wrong], Path("data/responses.parquet"), IDS, Path("data/reviews"))
    assert str(caught.value).startswith(f"{wrong}: ")
    assert expected in str(caught.value)
    assert not Path("data/reviews").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"format": 1, "format": 2}', b"[" * 100_000])
def test_what_is_no_json_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match="not a review"):
        read_review(tmp_path / "x.json")


def test_two_files_by_one_person_are_a_mistake(judged: Path) -> None:
    with pytest.raises(UserError, match=r"is by Ada, as .*0\.json is"):
        keep(judged, review_of(judged, "Ada", {IDS[0]: 3}), review_of(judged, "Ada", {IDS[1]: 3}))
    assert not Path("data/reviews").exists()


# ---- figures


def test_figures_of_a_small_case_by_hand(judged: Path) -> None:
    """The judge's scores 0, 12.5, 25, 37.5 are 1, 2, 2, 3 of 5; its pairwise verdicts 1, 0, 1, 0."""
    votes = {IDS[0]: "response", IDS[1]: "response", IDS[2]: "tie", IDS[3]: "base_response"}
    keep(judged, review_of(judged, "Ada", dict(zip(IDS, [1, 2, 3, 5], strict=False)), votes))
    own = figures_of(judged)["reviewers"]["Ada"]
    assert (own["rows"], own["ratings"], own["score"]) == (4, 4, 43.75)
    assert (own["votes"], own["wins"], own["losses"], own["ties"], own["win_rate"]) == (4, 2, 1, 1, 0.625)
    beside = own["judges"]["embedded"]
    assert (beside["rows"], beside["judge_score"], beside["spearman"]) == (4, 18.75, 1.0)
    assert (beside["exact"], beside["within_one"]) == (0.5, 0.75)
    # observed 2/4; by chance 1/16 for 1, 2/16 for 2, 1/16 for 3: (1/2 - 1/4) / (3/4)
    assert beside["kappa"] == pytest.approx(1 / 3, abs=1e-4)
    # mean squared distance: seen (0 + 0 + 1 + 4) / 4; by chance that of all pairs
    chance = np.mean([(h - j) ** 2 for h in (1, 2, 3, 5) for j in (1, 2, 2, 3)])
    assert beside["kappa_weighted"] == pytest.approx(1 - 1.25 / chance, abs=1e-4)
    assert own["vote_judges"]["embedded"] == {
        "rows": 4,
        "agreement": 0.5,
        "decided_rows": 3,
        "decided_agreement": pytest.approx(2 / 3, abs=1e-4),
    }


def test_together_and_between(judged: Path) -> None:
    keep(
        judged,
        review_of(judged, "Ada", dict(zip(IDS, [1, 2, 3, 4], strict=False)), {IDS[0]: "tie", IDS[1]: "tie"}),
        review_of(judged, "Eve", dict(zip(IDS[1:], [4, 3, 5, 1], strict=False)), {IDS[1]: "response", IDS[0]: "tie"}),
    )
    figures = figures_of(judged)
    both = figures["together"]
    assert (both["rows"], both["ratings"], both["votes"]) == (5, 8, 4)
    assert both["score"] == pytest.approx(np.mean([0, 50, 50, 87.5, 0]))
    (pair,) = figures["between"]
    assert pair["reviewers"] == ["Ada", "Eve"]
    assert (pair["rows"], pair["exact"], pair["within_one"]) == (3, pytest.approx(1 / 3, abs=1e-4), 0.6667)
    assert (pair["votes"], pair["vote_agreement"]) == (2, 0.5)
    shown = table_of(figures).splitlines()
    assert [line.split()[0] for line in shown] == ["Reviewer", "Ada", "Eve", "together"]
    assert max(map(len, shown)) <= 100


def test_what_is_not_defined_is_none_and_the_file_has_no_nan(judged: Path) -> None:
    keep(judged, review_of(judged, "Ada", {IDS[0]: 1}), review_of(judged, "Eve", {}, {IDS[1]: "tie"}))
    figures = figures_of(judged)
    json.dumps(figures, allow_nan=False)
    ada, eve = (figures["reviewers"][name] for name in ("Ada", "Eve"))
    assert ada["judges"]["embedded"] == {
        "rows": 1,
        "judge_score": 0.0,
        "spearman": None,
        "exact": 1.0,
        "within_one": 1.0,
        "kappa": None,
        "kappa_weighted": None,
    }
    assert (ada["win_rate"], eve["score"], eve["judges"]["embedded"]["exact"]) == (None, None, None)
    assert all(value is not None for value in headlines(figures).values())
    assert headlines(figures)["human_exact.embedded"] == 1.0


def test_every_judge_is_held_against_people_and_unreadable_verdicts_are_left_out() -> None:
    review = Review.model_validate(
        {
            "format": "onset-review-1",
            "responses": "0" * 64,
            "reviewer": "Ada",
            "scores": {id: {"score": score} for id, score in zip("abc", (1, 3, 5), strict=True)},
            "votes": {},
        }
    )
    verdicts = [said("a", 0.0), said("b", None), said("c", 100.0), said("d", 50.0)]
    verdicts += [said(id, 50.0, judge="gpt") for id in "abc"]
    judges = summarize_reviews([review], graded_by_judge(verdicts))["together"]["judges"]
    assert list(judges) == ["embedded", "gpt"]
    assert (judges["embedded"]["rows"], judges["embedded"]["exact"]) == (2, 1.0)
    assert (judges["gpt"]["rows"], judges["gpt"]["exact"], judges["gpt"]["spearman"]) == (3, 0.3333, None)


@given(ratings)
@settings(max_examples=100)
def test_agreement_is_symmetric_and_bounded(pairs: Pairs) -> None:
    found = agreement(pairs)
    assert found == agreement([(other, one) for one, other in pairs])
    assert 0 <= found["exact"] <= found["within_one"] <= 1
    assert all(found[name] is None or -1 <= found[name] <= 1 for name in ("kappa", "kappa_weighted"))
    if found["kappa"] is not None:
        assert (found["kappa"] == 1) == (found["exact"] == 1)


@given(st.lists(st.floats(0, 100), min_size=3, max_size=20, unique=True))
def test_spearman_is_of_the_order_alone(values: list[float]) -> None:
    ranks = [float(rank) for rank in np.argsort(np.argsort(values))]
    assert spearman(values, ranks) == 1
    assert spearman(values, [-rank for rank in ranks]) == -1


@given(st.floats(0, 100))
def test_a_score_becomes_the_nearest_point(score: float) -> None:
    assert five_points(score) in range(1, 6)
    assert abs((five_points(score) - 1) * 25 - score) <= 12.5


# ---- through the door


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_TRACKING", "DVC_"))}
    return subprocess.run(
        [sys.executable, "-m", "stages.judge", "import-reviews", *arguments],
        env=env | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
    )


def test_the_command_writes_metrics_and_logs_into_the_run_that_judged(judged: Path) -> None:
    store = f"sqlite:///{judged}/mlflow.db"
    client = mlflow.MlflowClient(store)
    experiment = client.create_experiment("onset", artifact_location=(judged / "artifacts").as_uri())
    tags = {"kind": "judge", "data.responses": sha256_of(judged / "data/responses.parquet")[:16]}
    of_others = client.create_run(experiment, tags=tags | {"data.responses": "0" * 16}).info.run_id
    of_finetune = client.create_run(experiment, tags=tags | {"kind": "finetune"}).info.run_id
    run_id = client.create_run(experiment, tags=tags).info.run_id
    save(judged / "ada.json", review_of(judged, "Ada", dict(zip(IDS, [1, 2, 3, 5], strict=False))))
    done = run("ada.json")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("reviews: Ada: 4 scores, 0 votes; kept as data/reviews/ada-")
    assert done.stderr.count("\n") == 1
    assert done.stdout.splitlines()[1].split()[:5] == ["Ada", "4", "43.8", "embedded", "18.8"]
    written = Path("metrics/reviews.json").read_bytes()
    figures = json.loads(written)
    metrics = client.get_run(run_id).data.metrics
    assert metrics["human_score"] == figures["together"]["score"] == 43.75
    assert metrics["human_spearman.embedded"] == 1.0
    assert [file.path for file in client.list_artifacts(run_id)] == ["reviews.json"]
    assert not client.get_run(of_others).data.metrics
    assert not client.get_run(of_finetune).data.metrics
    assert "in place of 4 scores, 0 votes" in run("ada.json").stderr
    assert Path("metrics/reviews.json").read_bytes() == written


def test_a_dead_server_costs_a_warning(judged: Path) -> None:
    save(judged / "ada.json", review_of(judged, "Ada", {IDS[0]: 1}))
    done = run("ada.json", MLFLOW_TRACKING_URI="http://127.0.0.1:9", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert done.returncode == 0
    assert done.stderr.startswith("warning: MLflow is left out (")
    assert Path("metrics/reviews.json").exists()


@pytest.mark.parametrize("name", ["nix.json", "data", "broken.json"])
def test_a_bad_file_is_one_line(judged: Path, name: str) -> None:
    (judged / "broken.json").write_text("{")
    done = run(name)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {name}: ")
    assert done.stderr.count("\n") == 1
    assert not Path("metrics").exists()

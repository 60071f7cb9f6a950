"""Who meets whom in the arena, and whose votes count."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stages.experiments.arena import gather, name_players, rate_entries, read_entry
from stages.experiments.revisions import experiment_names, locate
from stages.judging.ratings import Battle
from stages.judging.reviews import Review, read_review
from stages.pipeline.errors import UserError
from stages.pipeline.files import sha256_of
from tests.experiments.making import make_experiment, run
from tests.judging.reviewed import review_of, save

BETTER, WORSE = [60.0, 50.0, 70.0, 30.0], [20.0, 50.0, 30.0, 45.0]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def battles_of(*names: str, reviews: list[Review] | None = None, **knobs: bool) -> list[Battle]:
    entries = [read_entry(name, Path("x")) for name in names]
    knobs = {"judges": True, "order_of_scores": True} | knobs
    return gather(entries, reviews or [], name_players(entries), **knobs)[0]


def results(battles: list[Battle]) -> dict[tuple[str, str], list[float]]:
    found: dict[tuple[str, str], list[float]] = {}
    for battle in battles:
        found.setdefault((battle.first, battle.second), []).append(battle.winner)
    return found


def reviewed(folder: str, reviewer: str, votes: dict[str, Any]) -> Review:
    return read_review(save(Path(f"{reviewer}.json"), review_of(Path(folder), reviewer, {}, votes)))


def test_verdicts_and_the_order_of_scores_are_battles() -> None:
    make_experiment(Path("a"), BETTER)
    make_experiment(Path("b"), WORSE)
    assert results(battles_of("a", "b")) == {
        ("a", "b"): [1, 0.5, 1, 0],
        ("a", "base"): [1, 1, 1, 0],
        ("b", "base"): [0, 1, 0, 1],
    }
    assert set(results(battles_of("a", "b", order_of_scores=False))) == {("a", "base"), ("b", "base")}
    assert battles_of("a", "b", judges=False) == []


def test_without_pairwise_verdicts_the_order_of_scores_meets_the_base_model_too() -> None:
    make_experiment(Path("a"), BETTER, pairwise=False)
    assert results(battles_of("a")) == {("a", "base"): [1, 1, 1, 0]}


def test_scores_of_a_judge_elsewhere_or_of_another_judge_decide_nothing() -> None:
    make_experiment(Path("a"), BETTER, judge="gpt")
    make_experiment(Path("b"), WORSE, judge="gpt")
    make_experiment(Path("c"), BETTER)
    make_experiment(Path("d"), WORSE, base_score=44.0)
    assert ("a", "b") not in results(battles_of("a", "b"))
    assert ("c", "d") not in results(battles_of("c", "d"))


def test_rows_with_another_reference_do_not_meet() -> None:
    make_experiment(Path("a"), BETTER)
    make_experiment(Path("b"), WORSE, reference="It is green.")
    assert ("a", "b") not in results(battles_of("a", "b"))


def test_the_same_answers_are_one_player_and_count_once() -> None:
    make_experiment(Path("a"), BETTER)
    shutil.copytree("a", "copy")
    assert battles_of("a", "copy") == [battle._replace(first="a = copy") for battle in battles_of("a")]


def test_other_base_answers_are_another_player_and_more_rows_are_not() -> None:
    make_experiment(Path("a"), BETTER)
    make_experiment(Path("b"), WORSE, base="another model")
    make_experiment(Path("c"), [*BETTER, 1.0, 2.0])
    assert {battle.second for battle in battles_of("a", "c")} == {"base", "c"}
    bases = {name for battle in battles_of("a", "b") for name in battle[:2] if name.startswith("base")}
    assert len(bases) == 2
    assert all(name.startswith("base@") for name in bases)


def test_an_experiment_called_base_is_not_the_base_model() -> None:
    make_experiment(Path("base"), BETTER)
    (battle, *_) = battles_of("base")
    assert sorted(name.split("@")[0] for name in battle[:2]) == ["base", "base"]


def test_an_opponent_is_the_experiment_that_gave_its_answers() -> None:
    make_experiment(Path("a"), BETTER, judge="gpt")
    make_experiment(Path("b"), WORSE, judge="gpt", against="rival")
    assert ("b", "rival") in results(battles_of("a", "b")), "a name is all that is known of it"
    Path("b/data/opponents").mkdir()
    shutil.copyfile("a/data/responses.parquet", "b/data/opponents/rival.parquet")
    assert ("a = rival", "b") in results(battles_of("a", "b"))


def test_blind_votes_are_battles_of_the_experiment_that_was_reviewed() -> None:
    make_experiment(Path("a"), BETTER)
    make_experiment(Path("b"), WORSE)
    ada = reviewed("a", "Ada", {"0000": "base_response", "0001": "tie"})
    found = battles_of("a", "b", reviews=[ada], judges=False)
    assert found == [Battle("a", "base", 0.0, "person:Ada"), Battle("a", "base", 0.5, "person:Ada")]
    assert len(battles_of("a", reviews=[ada])) == len(battles_of("a")) + 2


def test_votes_on_answers_that_are_gone_are_left_out_and_said() -> None:
    make_experiment(Path("a"), BETTER)
    make_experiment(Path("b"), WORSE)
    knobs: dict[str, Any] = {"order_of_scores": True, "anchor": "base", "confidence": 0.9, "resamples": 10, "seed": 1}
    gone = reviewed("b", "Eve", {"0000": "tie"})
    figures = rate_entries([read_entry("a", Path("x"))], [gone], judges=True, **knobs)
    assert figures["left_out"][0].startswith("Eve's votes on responses ")
    assert figures["votes"] == {"judge:embedded": 4}
    with pytest.raises(UserError, match="no votes"):
        rate_entries([read_entry("a", Path("x"))], [gone], judges=False, **knobs)
    with pytest.raises(UserError, match="--anchor nobody: in no vote; rated are a, base"):
        rate_entries([read_entry("a", Path("x"))], [], judges=True, **knobs | {"anchor": "nobody"})


# ---- through the door, with real revisions


def git(*arguments: str) -> None:
    settings = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    subprocess.run(["git", *settings, *arguments], check=True, capture_output=True)


def dvc(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A better commit on a branch, which is also an experiment of DVC, and the workspace's."""
    git("init", "-q", "-b", "main")
    dvc("init", "-q")
    files = [f"data/{name}.parquet" for name in ("responses", "scores", "verdicts")]
    for branch, scores in (("good", [90.0, 80.0, 70.0, 60.0, 30.0]), ("main", [55.0, 20.0, 75.0, 10.0, 35.0])):
        git("checkout", "-q", "-B", branch)
        make_experiment(tmp_path, scores)
        dvc("add", "-q", *files)
        git("add", "-A")
        git("commit", "-qm", branch)
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/tidy-newt", "good")  # as DVC keeps experiments
    return tmp_path


def test_revisions_of_a_repository(repository: Path) -> None:
    assert locate("good", "data/scores.parquet", Path("x")).read_bytes() != Path("data/scores.parquet").read_bytes()
    done = run(repository, "compare", "good", "HEAD", "--json", "out.json")
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads(Path("out.json").read_text())
    assert (figures["score_a"], figures["score_b"], figures["wins_a"], figures["wins_b"]) == (66, 39, 3, 2)
    assert figures["a"]["results"]["judge_auc"] == 0.95
    done = run(repository, "compare", "workspace", "nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: nonsense: neither a folder with data/ nor a revision or experiment")
    assert done.stderr.count("\n") == 1


def test_the_arena_of_a_repository(repository: Path) -> None:
    ada = review_of(repository, "Ada", {}, {"0000": "tie"})
    save(repository / "data/reviews/ada.json", ada)
    assert ada["responses"] == sha256_of(repository / "data/responses.parquet")
    done = run(repository, "arena", "workspace", "good", "nonsense", "--resamples", 100)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("arena: skipped nonsense: neither a folder")
    assert done.stderr.count("\n") == 1
    figures = json.loads(Path("metrics/arena.json").read_text())
    assert list(figures["players"]) == ["good", "base", "workspace"]
    assert figures["votes"] == {"judge:embedded": 15, "person:Ada": 1}
    assert figures["players"]["base"]["rating"] == 1000
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:4]] == [["1", "good"], ["2", "base"], ["3", "workspace"]]
    assert max(map(len, lines)) <= 100
    written = Path("metrics/arena.json").read_text()
    assert experiment_names() == ["tidy-newt"]
    again = run(repository, "arena", "--resamples", 100)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.split() == done.stdout.replace("good", "tidy-newt").split()
    again_written = Path("metrics/arena.json").read_text()
    assert json.loads(again_written)["players"] == json.loads(written.replace("good", "tidy-newt"))["players"]
    people = run(repository, "arena", "workspace", "--votes", "people", "--resamples", 100)
    assert people.stdout.splitlines()[-1] == "votes: person:Ada 1"

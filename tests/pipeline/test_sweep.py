"""Sweeps: which points there are, what they are called, what is in the way, and the table at the end."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.experiments import sweep_queue
from stages.experiments.sweep import announcement
from stages.experiments.sweep_points import DEFAULT, points_of, sample, unique
from stages.experiments.sweep_queue import Experiment, look
from stages.experiments.sweep_table import results_text
from stages.pipeline.changes import flat
from stages.pipeline.errors import UserError
from stages.pipeline.files import write_json
from tests.conftest import ROOT

PARAMS = flat(yaml.safe_load((ROOT / "params.yaml").read_text()))


def names(*grid: str) -> list[str]:
    return [point.name for point in points_of([grid], PARAMS)]


def test_a_grid_has_every_combination_under_a_name_that_tells_it() -> None:
    assert names("finetune.learning_rate=1e-4,2e-4", "collate.mask_instruction=true,false") == [
        "sweep-lr0.0001-mask-true",
        "sweep-lr0.0001-mask-false",
        "sweep-lr0.0002-mask-true",
        "sweep-lr0.0002-mask-false",
    ]


def test_values_have_the_grammar_of_dvc() -> None:
    assert names("finetune.epochs=range(1,4)") == ["sweep-epochs1", "sweep-epochs2", "sweep-epochs3"]
    assert names("judge.judges=[embedded]") == ["sweep-judges-embedded"]


def test_two_parameters_of_one_last_name_keep_their_sections() -> None:
    assert names("finetune.seed=2", "generate.seed=3") == ["sweep-finetune.seed2-generate.seed3"]


def test_names_are_what_git_takes(tmp_path: Path) -> None:
    for name in names("format.template='../a b.lock','x..y~^:?*','é'"):
        done = subprocess.run(["git", "check-ref-format", f"refs/exps/{name}"], cwd=tmp_path, check=False)
        assert done.returncode == 0, name
        assert "/" not in name


def test_points_of_equal_parameters_are_one() -> None:
    (own, other) = points_of([["finetune.learning_rate=2e-4,0.0002,1e-4"]], PARAMS)
    assert (own.values, other.values) == ({"finetune.learning_rate": "0.0002"}, {"finetune.learning_rate": "0.0001"})
    assert own.params["finetune.epochs"] == PARAMS["finetune.epochs"]


def test_the_default_grid_covers_the_four_and_has_distinct_names() -> None:
    points = points_of(DEFAULT, PARAMS)
    varied = {name for name in points[0].params if len({str(point.params[name]) for point in points}) > 1}
    assert varied == {
        "finetune.method",
        "finetune.learning_rate",
        "finetune.epochs",
        "finetune.lora_rank",
        "collate.mask_instruction",
    }
    assert len({point.name for point in points}) == len(points) == 7


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (
            ["finetune.lerning_rate=1"],
            "there is no parameter finetune.lerning_rate; did you mean finetune.learning_rate?",
        ),
        (["finetune.epochs=1,"], "cannot be read"),
        (["finetune.epochs=interval(1,2)"], "cannot be read"),
        (["+finetune.new=1"], "cannot be read"),
        (["finetune.epochs=1", "finetune.epochs=2"], "finetune.epochs: given twice"),
    ],
)
def test_what_cannot_be_a_grid_is_said(grid: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        points_of([grid], PARAMS)


def test_a_sample_is_the_same_for_the_same_seed_and_keeps_order() -> None:
    points = points_of([["finetune.seed=range(1,30)"]], PARAMS)
    drawn = sample(points, 5, seed=1)
    assert drawn == sample(points, 5, seed=1) != sample(points, 5, seed=2)
    assert [points.index(point) for point in drawn] == sorted(points.index(point) for point in drawn)
    assert sample(points, 100, seed=1) == points


def test_a_name_that_is_taken_gets_a_number() -> None:
    assert unique("sweep-a", set()) == "sweep-a"
    assert unique("sweep-a", {"sweep-a", "sweep-a-2"}) == "sweep-a-3"


STATUS = """\
Task     Name       Created       Status
90a6dec  sweep-a    07:16 PM      Running
b41fdd9  sweep-b    Nov 23, 2026  Queued
eb9227b             07:16 PM      Queued
60b9a16  sweep-b    07:16 PM      Failed

Worker status: 1 active, 2 idle
"""


def test_the_queue_is_read_off_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_queue, "_dvc", lambda *_: STATUS)
    seen = look()
    assert {name: seen.states[name] for name in ("sweep-a", "sweep-b")} == {"sweep-a": "Running", "sweep-b": "Queued"}
    assert seen.answering == 3


def test_sources_are_code_and_what_no_stage_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    sources = sweep_queue._sources()
    assert {"stages", "dvc.yaml", "data/raw", "data/init"} <= set(sources)
    assert not [path for path in sources if path.startswith(("metrics/", "stages/", "data/split", "data/checkpoint"))]


def git(folder: Path, *arguments: str) -> None:
    done = subprocess.run(["git", "-c", "user.name=A", "-c", "user.email=a@b.c", *arguments], cwd=folder, check=False)
    assert done.returncode == 0


def make_repository(folder: Path) -> None:
    (folder / "data/raw").mkdir(parents=True)
    (folder / "data/raw/rows.jsonl").write_text("{}\n")
    for name in ("dvc.yaml", "params.yaml"):
        (folder / name).write_bytes((ROOT / name).read_bytes())


def dry(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "stages.experiment", "sweep", "--dry", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "GIT_CEILING_DIRECTORIES": str(folder.parent)},
        capture_output=True,
        text=True,
        check=False,
    )


def refused(folder: Path) -> str:
    done = dry(folder)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def test_what_is_in_the_way_is_one_line(tmp_path: Path) -> None:
    assert ".dvc: not found" in refused(tmp_path)
    (tmp_path / ".dvc").mkdir()
    assert "dvc.yaml: not found" in refused(tmp_path)
    make_repository(tmp_path)
    assert "git init" in refused(tmp_path)
    git(tmp_path, "init", "-q")
    assert "git commit" in refused(tmp_path)
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "all")
    (tmp_path / "data/raw/öwn rows.jsonl").write_text("{}\n")
    assert "data/raw/öwn rows.jsonl: not in Git" in refused(tmp_path)
    (tmp_path / "data/reviews").mkdir()
    (tmp_path / "data/reviews/ada.json").write_text("{}\n")  # no stage reads it
    git(tmp_path, "add", "data/raw")
    done = dry(tmp_path, "-S", "finetune.epochs=1,2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "sweep-epochs2" in done.stdout
    assert "2 experiments to run, 1 at a time" in done.stdout
    assert "1 file(s) differ from the commit" in done.stdout


def test_time_is_told_by_the_speed_measured_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_queue, "changed_files", list)
    points = points_of([["finetune.epochs=2,4"]], PARAMS)
    assert len(announcement(points, 1, tmp_path)) == 1
    write_json(tmp_path / "speed.json", {"tokens_per_second": 100.0})
    write_json(tmp_path / "tokens.json", {"train": {"tokens": 6000}})
    assert "up to 4.0 min each, 6.0 min one after the other" in announcement(points, 1, tmp_path)[1]
    judged = points_of([["judge.confidence=0.8,0.9"]], PARAMS)
    assert len(announcement(judged, 1, tmp_path)) == 1, "nothing is trained"


def experiment(name: str, learning_rate: float, score: float | None, **judged: Any) -> Experiment:
    tuned = {"best_validation_loss": 1.5, "overfit_epoch": 1.25, "overfit_confirmed": 0, "epochs_trained": 3.0}
    own = judged | ({} if score is None else {"score": score, "score_low": score - 1, "score_high": score + 1})
    metrics = {"metrics/finetune.json": tuned, "metrics/judge.json": {"judge": "embedded", **own}}
    params = {"finetune.learning_rate": learning_rate, "finetune.method": "full"}
    return Experiment(name, "0" * 40, "success", params, metrics, None, None, None)


def test_the_table_ranks_by_score_and_shows_what_varies() -> None:
    done = [
        experiment("low", 0.1, 20.0),
        experiment("none", 0.2, None),
        experiment("high", 0.3, 30.0, judge_reliable=0),
    ]
    nothing = Experiment("workspace", "", "success", {}, {}, None, None, None)
    text = results_text(done, ["finetune.learning_rate", "finetune.method"], nothing)
    lines = text.splitlines()
    assert lines[4] == ""
    beside = results_text(done, ["finetune.learning_rate"], experiment("workspace", 0.2, 31.0))
    assert beside.splitlines()[4].split() == [
        "workspace", "0.2", "1.500", "1.25?", "3.00", "31.0", "[30.0,", "32.0]",
    ]  # fmt: skip
    assert lines[0].split() == ["Experiment", "lr", "Validation", "loss", "Onset", "Trained", "Score"]
    assert lines[1].split() == ["1", "high", "0.3", "1.500", "1.25?", "3.00", "30.0", "[29.0,", "31.0]"]
    assert lines[2].split()[:2] == ["2", "low"]
    assert lines[3].split() == ["3", "none", "0.2", "1.500", "1.25?", "3.00", "-"]
    assert "compare high low" in text
    assert "dvc exp apply high" in text
    assert "CANNOT BE RELIED ON" in text

"""A row's lineage, held against the files it is read from; through the command where that is what counts."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from stages.experiments.lineage import find, trace
from stages.experiments.lineage_raw import GONE, OTHER, SAME, UNREADABLE, raw_row
from stages.experiments.lineage_record import Record, read_record
from stages.experiments.lineage_text import lineage_text
from stages.instructions.instruction import Instruction
from stages.pipeline.changes import Origin
from stages.pipeline.errors import UserError
from stages.pipeline.files import read_parquet, sha256_of, write_json
from tests.experiments.making import run
from tests.imports import ROOT

NOTHING = Record(None, {}, "", Origin({}, {}), {}, {}, {}, {})


@pytest.fixture(scope="module")
def project(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished project whose cache and store are left out: only to be read."""
    folder = tmp_path_factory.mktemp("lineage") / "project"
    ignored = shutil.ignore_patterns("mlflow.db*", "mlartifacts", "cache")
    shutil.copytree(finished, folder, symlinks=True, ignore=ignored)
    return folder


def ids_of(project: Path, split: str) -> list[str]:
    return [str(row["id"]) for row in read_parquet(project / f"data/split/{split}.parquet")]


def test_a_test_row_is_followed_to_its_score(project: Path) -> None:
    (score, *_) = read_parquet(project / "data/scores.parquet")
    found = trace(score["id"], project)
    assert found["judged"]["scores"] == score
    raw = (project / "data/raw" / found["file"]).read_text(encoding="utf-8").splitlines()
    assert found["raw"] == {"row": json.loads(raw[found["line"] - 1]), "state": SAME, "why": ""}
    assert found["format"]["template"]["name"] == "chatml"
    assert found["format"]["text"].endswith("<|im_end|>")
    assert found["format"]["text"].startswith(found["format"]["prompt"] + found["format"]["response"])
    assert found["split"]["split"] == "test"
    ids = json.loads((project / "data/tokens/test/ids.json").read_text())
    assert ids[found["tokens"]["example"]] == score["id"]
    assert found["tokens"]["lost"] == 0
    assert found["training"]["trained_on"] is False
    (answer,) = (row for row in read_parquet(project / "data/responses.parquet") if row["id"] == score["id"])
    assert {name: found["answers"][name] for name in answer} == answer
    made_by = sha256_of(project / "data/checkpoint/model.safetensors")
    assert found["answers"]["made_by"] == {"checkpoint_sha256": made_by}
    assert {said["task"] for said in found["judged"]["verdicts"]} == {"grade", "pairwise"}
    assert found["reviews"] == {"given": []}


def test_rows_that_are_not_judged(project: Path) -> None:
    train = trace(ids_of(project, "train")[0], project)
    assert train["training"]["trained_on"] is True
    assert "not a test row" in train["answers"]["missing"]
    row = pq.read_table(project / "data/validation_losses.parquet").to_pylist()[0]
    validation = trace(row["id"], project)
    assert validation["training"]["trained_on"] is False
    first = round(row["response_loss"] / row["response_tokens"], 4)
    assert validation["training"]["losses"][str(row["step"])] == first
    text = lineage_text(validation, NOTHING, [])
    assert f"loss on it by step: 0: {first:.3f}, " in text


def test_the_reason_of_the_split_is_the_deal_s_own(project: Path) -> None:
    for split in ("train", "validation", "test"):
        for id in ids_of(project, split)[:3]:
            found = trace(id, project)["split"]
            assert found["why"].startswith(f"its hash falls at {found['position']:.3f}, and {split} begins at ")


def test_a_row_is_named_in_several_ways(project: Path) -> None:
    row = read_parquet(project / "data/split/train.parquet")[0]
    place = find(row["id"], project)
    assert place == (row["id"], row["file"], row["line"], None)
    assert find(row["id"][:9], project) == place
    assert find(f"data/raw/{row['file']}:{row['line']}", project) == place
    with pytest.raises(UserError, match=r"ids begin so: .* give more of it"):
        find("", project)
    wrong = ("0" if row["id"][0] != "0" else "1") + row["id"][1:]
    with pytest.raises(UserError, match=f"no row has this id; the nearest are .*{row['id']}"):
        find(wrong, project)
    with pytest.raises(UserError, match="no row begins there"):
        find(f"{row['file']}:99999", project)


def test_people_s_reviews_of_the_row(project: Path, tmp_path: Path) -> None:
    shutil.copytree(project, tmp_path / "own", symlinks=True)
    id = read_parquet(project / "data/scores.parquet")[0]["id"]
    for name, scores, votes in (
        ("Ada", {id: {"score": 4, "note": "a\x1b[31mred\nnote"}}, {id: "tie"}),
        ("Eve", {"other": {"score": 1, "note": ""}}, {}),
    ):
        review = {"format": "onset-review-1", "reviewer": name, "scores": scores, "votes": votes}
        responses = sha256_of(project / "data/responses.parquet")
        write_json(tmp_path / f"own/data/reviews/{name}.json", review | {"responses": responses})
    found = trace(id, tmp_path / "own")
    assert [(one["reviewer"], one["score"], one["vote"]) for one in found["reviews"]["given"]] == [("Ada", 4, "tie")]
    text = lineage_text(found, NOTHING, [{"id": "f00", "name": "judge of it", "kind": "judge"}])
    assert "Ada: 4 of 5; blind vote for a tie; a\ufffd[31mred note" in text
    assert "judge of it: run f00" in text
    assert "\x1b" not in text


# ---- rows that did not come far

WHALES = "Name the largest animal that ever lived on the Earth, and say in one sentence how long it can grow."
RAW: list[dict[str, Any]] = [
    {"instruction": WHALES, "input": "", "output": "The blue whale, up to 30 metres."},
    {"instruction": WHALES + " Please.", "input": "", "output": "A blue whale can be 30 metres long."},
    {"instruction": WHALES, "input": "", "output": "The blue whale, up to 30 metres."},
    {"instruction": "Say \ud83d and NaN.", "input": float("nan"), "output": ""},
    {"instruction": "Fixed by the data: what is 2 plus 2, written as a word?", "input": "", "output": "Four.",
     "split": "validation"},
]  # fmt: skip


@pytest.fixture(scope="module")
def odd(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Format, split and tokenize have run on near-duplicates, a duplicate, broken rows, a split that is fixed."""
    folder = tmp_path_factory.mktemp("odd") / "project"
    shutil.copytree(project, folder, symlinks=True)
    for stale in ("scores.parquet", "responses.parquet", "checkpoint"):
        path = folder / "data" / stale
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    lines = [json.dumps(row) for row in RAW] + ['{"instruction": "torn']
    (folder / "data/raw/more").mkdir()
    with gzip.open(folder / "data/raw/more/odd.jsonl.gz", "wt") as file:
        file.write("\n".join(lines) + "\n")
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["format"]["max_rejected_fraction"] = 0.9
    params["collate"]["max_seq_len"] = 48
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    for stage in ("format", "split", "tokenize_and_collate"):
        done = subprocess.run([sys.executable, "-m", f"stages.{stage}"], cwd=folder, env=env, capture_output=True)
        assert done.returncode == 0, done.stderr
    return folder


def test_a_near_duplicate_follows_the_one_before(odd: Path) -> None:
    first, second = (trace(f"more/odd.jsonl.gz:{line}", odd) for line in (1, 2))
    assert first["split"]["split"] == second["split"]["split"]
    assert first["split"]["why"].startswith("its hash falls at ")
    assert second["split"]["why"].startswith("follows its near-duplicate more/odd.jsonl.gz:1 (similarity 0.9")
    (near,) = second["split"]["neighbours"]
    assert (near["id"], near["before"], near["split"]) == (first["id"], True, first["split"]["split"])
    assert first["split"]["num_neighbours"] == 1
    assert "near more/odd.jsonl.gz:1" in lineage_text(second, NOTHING, [])
    second["split"]["why"] = second["split"]["neighbours"][0]["place"] = "na\x1bme\nof a file"
    assert lineage_text(second, NOTHING, []).count("na\ufffdme of a file") == 2


def test_rejected_rows_say_why(odd: Path) -> None:
    kept, copy, broken, torn = (trace(f"more/odd.jsonl.gz:{line}", odd) for line in (1, 3, 4, 6))
    assert copy["rejected"] == "duplicate: same as more/odd.jsonl.gz:1"
    assert (copy["id"], copy["raw"]["state"]) == (kept["id"], SAME)
    assert kept["format"]["duplicates"] == ["more/odd.jsonl.gz:3"]
    assert broken["rejected"] == broken["raw"]["why"]
    assert broken["raw"]["row"] == {"instruction": "Say ? and NaN.", "input": "NaN", "output": ""}
    assert (torn["id"], torn["raw"]["state"], torn["raw"]["row"]) == (None, UNREADABLE, None)
    for found in (copy, broken, torn):
        text = lineage_text(found, NOTHING, [])
        assert " ".join(found["rejected"].split())[:60] in " ".join(text.split())
        assert "warning" not in text
        assert not {"split", "tokens", "answers"} & found.keys()
        write_json(odd / "found.json", found)


def test_a_split_that_the_data_fixes(odd: Path) -> None:
    found = trace("more/odd.jsonl.gz:5", odd)["split"]
    assert (found["split"], found["fixed"], found["why"]) == ("validation", "validation", "the data fixes it")


def test_truncated_and_dropped_rows(odd: Path) -> None:
    dropped = [json.loads(line) for line in (odd / "data/tokens/dropped.jsonl").read_text().splitlines()]
    assert dropped, "no row of the tiny data is too long"
    found = trace(dropped[0]["id"], odd)
    assert found["tokens"] == {"dropped": "prompt too long"}
    assert found["training"]["trained_on"] is False
    assert "dropped: prompt too long" in lineage_text(found, NOTHING, [])
    short = {row["id"]: len(row["response"]) for row in read_parquet(odd / "data/split/train.parquet")}
    longest = max(short.keys() - {row["id"] for row in dropped}, key=lambda id: (short[id], id))
    cut = trace(longest, odd)["tokens"]
    assert (cut["tokens"], cut["lost"] > 0) == (48, True)
    assert f"truncated: {cut['lost']} lost at its end" in lineage_text(trace(longest, odd), NOTHING, [])


def test_a_withheld_row(odd: Path, tmp_path: Path) -> None:
    shutil.copytree(odd, tmp_path / "own", symlinks=True)
    folder = tmp_path / "own/data/split"
    id = trace("more/odd.jsonl.gz:2", odd)["id"]
    for path in folder.glob("*.parquet"):
        table = pq.read_table(path)
        keep = [one != id for one in table.column("id").to_pylist()]
        pq.write_table(table.filter(keep), path)
    row = {"file": "more/odd.jsonl.gz", "line": 2, "id": id, "reason": "between splits: near a (train), b (test)"}
    (folder / "withheld.jsonl").write_text(json.dumps(row) + "\n")
    found = trace(id, tmp_path / "own")
    assert found["split"]["split"] == "withheld"
    assert found["training"]["trained_on"] is False
    text = lineage_text(found, NOTHING, [])
    assert "withheld: near rows in two splits" in text
    assert "between splits: near a (train), b (test)" in text
    (folder / "withheld.jsonl").write_text("")
    assert trace(id, tmp_path / "own")["split"] == {"missing": "no split has this row; run `dvc repro split`"}


# ---- the raw line, read again


def test_what_became_of_the_raw_line(tmp_path: Path) -> None:
    path, lines = tmp_path / "data/raw/a b/ü.jsonl", [json.dumps(row) for row in RAW[:3]]
    path.parent.mkdir(parents=True)
    id = Instruction(RAW[0]["instruction"], RAW[0]["output"]).id
    settings = {"row_schema": "auto", "columns": {}, "whitespace": "strip", "allow_empty_response": False}
    params: dict[str, Any] = {"format": settings | {"max_rejected_fraction": 0.2}}

    def state(*written: str, wanted: str = id) -> str:
        path.write_text("\n".join(written) + "\n", encoding="utf-8")
        return str(raw_row(tmp_path, "a b/ü.jsonl", 1, wanted, params)["state"])

    assert state(*lines) == state(*lines, wanted=f"{id}-2") == SAME
    assert state(*lines[1:]) == OTHER
    assert state("{", *lines[1:]) == UNREADABLE
    assert state("", *lines) == GONE
    path.unlink()
    with pytest.raises(UserError, match="not there any more"):
        raw_row(tmp_path, "a b/ü.jsonl", 1, id, params)


# ---- through the command


def test_the_command_and_what_vouches_for_it(copy_of_finished: Callable[[Path], Path], tmp_path: Path) -> None:
    project = copy_of_finished(tmp_path / "own project")
    id = read_parquet(project / "data/scores.parquet")[0]["id"]
    done = run(project, "trace", id[:8], "--json", "out/trace.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "dvc.lock: files are as it has them" in done.stdout
    assert "warning" not in done.stdout
    assert "no run of this training in the store" in done.stdout
    assert not (project / "mlflow.db").exists()
    found = json.loads((project / "out/trace.json").read_text())
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True).stdout.strip()
    assert found["record"]["commit"]["hash"] == commit
    assert f"commit {commit} on " in done.stdout

    raw = project / "data/raw" / found["file"]
    lines = raw.read_text(encoding="utf-8").splitlines()
    lines[found["line"] - 1] = json.dumps({"instruction": "Another.", "input": "", "output": "Row."})
    raw.write_text("\n".join(lines) + "\n", encoding="utf-8")
    (project / "data/review.html").write_text("edited")
    subprocess.run(["git", "checkout", "-q", "--detach"], cwd=project, check=True)
    changed = run(project, "trace", id)
    assert changed.returncode == 0
    assert "another row stands there now" in changed.stdout
    assert "warning: the raw line does not read as this row any more" in changed.stdout
    assert "warning: data/raw: modified since the last dvc repro" in changed.stdout
    assert "warning: data/review.html: modified since the last dvc repro" in changed.stdout
    assert f"commit {commit}, " in changed.stdout


def test_a_mistake_is_one_line(tmp_path: Path, project: Path) -> None:
    for folder, wanted, message in (
        (tmp_path, "abcd", "data/prompts.parquet: not found"),
        (project, "nonsense\x1b[31m", "no row has this id; the nearest are"),
    ):
        done = run(folder, "trace", wanted)
        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.splitlines()) == 1
        assert message in done.stderr
        assert "\x1b" not in done.stderr
        assert not any(folder.rglob("mlflow.db"))


def test_no_git_and_no_dvc(project: Path, tmp_path: Path) -> None:
    for name in ("data", "metrics", "params.yaml", "dvc.lock"):
        (tmp_path / name).symlink_to(project / name)
    record = read_record(tmp_path)
    assert (record.commit, record.changed) == (None, None)
    assert "DVC repository" in record.unknown
    text = lineage_text(trace(ids_of(project, "test")[0], tmp_path), record, [])
    assert "not in Git, or nothing committed" in text
    assert "dvc.lock: not known: " in text


def test_another_environment_is_told(project: Path) -> None:
    record = NOTHING._replace(elsewhere={"torch": ("1.0", "2.13.0")})
    text = lineage_text(trace(ids_of(project, "test")[0], project), record, [])
    assert "warning: the checkpoint was made in another environment: torch 1.0, here 2.13.0" in text

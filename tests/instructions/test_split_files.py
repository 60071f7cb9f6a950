"""The files of the split stage: every row once, as it was; and the stage as a user starts it."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from stages.instructions import prompts
from stages.instructions.deal import SPLITS, WITHHELD, position
from stages.instructions.instruction import Instruction, Turn
from stages.instructions.partition import Partition
from stages.instructions.prompts import TemplateMark, make_prompt, read_prompts, read_template_mark, write_prompts
from stages.instructions.split_files import read_rows, write_splits
from stages.instructions.templates import TEMPLATES
from tests.conftest import ROOT

CHATML = TEMPLATES["chatml"]
MARK = TemplateMark(CHATML.name, CHATML.hash, CHATML.end)
TRAIN_FRACTION = 0.85
SALT = "onset"


def write(path: Path, rows: Sequence[Instruction], ids: Sequence[str] | None = None) -> None:
    """Write prompts as format does, from rows.jsonl; `ids` in place of content hashes."""
    path.parent.mkdir(exist_ok=True)
    numbered = [row._replace(file="rows.jsonl", line=line) for line, row in enumerate(rows, start=1)]
    ids = ids or [row.id for row in numbered]
    write_prompts(path, [make_prompt(row, CHATML, id) for row, id in zip(numbered, ids, strict=True)], MARK)


def unlike(count: int) -> list[str]:
    """Instructions that are near no other."""
    rng = Random(5)
    return ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz ", k=40)) for _ in range(count)]


def run_split(folder: Path, **values: object) -> dict[str, Any]:
    """Start the stage in a folder with data/prompts.parquet, and return its metrics."""
    sections = yaml.safe_load((ROOT / "params.yaml").read_text())
    sections["split"] |= {"train_fraction": TRAIN_FRACTION, "salt": SALT, **values}
    (folder / "params.yaml").write_text(yaml.safe_dump(sections))
    done = subprocess.run(
        [sys.executable, "-m", "stages.split"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr.startswith("split: ")
    assert done.stderr.count("\n") == 1
    metrics: dict[str, Any] = json.loads((folder / "metrics/split.json").read_text())
    return metrics


def split_of(folder: Path) -> dict[int, str]:
    """Line in rows.jsonl -> split, from the files that the stage wrote."""
    found = {row["line"]: WITHHELD for row in read_withheld(folder)}
    for name in SPLITS:
        for prompt in read_prompts(folder / f"data/split/{name}.parquet"):
            assert prompt.line not in found
            found[prompt.line] = name
    return found


def read_withheld(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "data/split/withheld.jsonl").read_text().splitlines()]


def test_every_row_is_in_one_file_as_it_was_and_in_its_order(tmp_path: Path) -> None:
    """More rows than are read at a time, in a file whose row groups are of another size."""
    rng = Random(4)
    rows = [
        Instruction(
            f"say {at} \U0001f600",
            "  so\n" * rng.randrange(4),
            input="twice" * rng.randrange(2),
            system="Be brief." * rng.randrange(2),
            history=(Turn("hello", "hi"),) * rng.randrange(3),
            category=rng.choice(["a", "b", None]),
        )
        for at in range(20_000)
    ]
    with patch.object(prompts, "BATCH", 3000):
        write(tmp_path / "prompts.parquet", rows)
    split = rng.choices([*SPLITS, WITHHELD], k=len(rows))
    split[:9000] = ["train"] * 9000  # a batch of which validation and test get nothing
    kept = [split.index(name) for name in SPLITS[:2]]
    between = {at: kept for at, name in enumerate(split) if name == WITHHELD}
    read = read_rows(tmp_path / "prompts.parquet")
    write_splits(
        tmp_path / "split",
        tmp_path / "prompts.parquet",
        read.rows,
        Partition(split, [], between, [], 0, 0),
        read.places,
    )

    everything = pq.read_table(tmp_path / "prompts.parquet")
    for name in SPLITS:
        expected = everything.filter(pa.array([mine == name for mine in split]))
        written = pq.read_table(tmp_path / f"split/{name}.parquet")
        assert written.schema.equals(expected.schema)
        assert written.equals(expected)
        assert read_template_mark(tmp_path / f"split/{name}.parquet") == MARK
    reason = f"between splits: near rows.jsonl:{kept[0] + 1} (train), rows.jsonl:{kept[1] + 1} (validation)"
    assert [json.loads(line) for line in (tmp_path / "split/withheld.jsonl").read_text().splitlines()] == [
        {"file": "rows.jsonl", "line": at + 1, "id": rows[at].id, "reason": reason} for at in between
    ]


def test_what_was_said_before_tells_rows_apart_and_a_system_message_does_not(tmp_path: Path) -> None:
    rows = [
        Instruction("And why?", "Because."),
        Instruction("and WHY", "So.", system="You answer every question in one word only."),
        Instruction("And why?", "Because.", history=(Turn("Is the sea blue at night?", "No."),)),
        Instruction("And why?", "Because.", input="The sea is not blue at night."),
    ]
    write(tmp_path / "prompts.parquet", rows)
    texts = read_rows(tmp_path / "prompts.parquet").texts
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


def test_the_stage_counts_what_it_wrote_and_does_the_same_again(tmp_path: Path) -> None:
    """Clusters of three and two, a fixed split, and categories, among 200 rows near no other."""
    names = ["Ada", "Ben", "Cleo"]
    rows = [
        *(Instruction(text, "Yes.", category=["a", "b", None][at % 3]) for at, text in enumerate(unlike(200))),
        *(Instruction(f"Write a long letter of thanks to your friend {name}.", "Dear", category="a") for name in names),
        *(Instruction("Which rivers flow through Vienna" + mark, "The Danube.") for mark in "?!"),
        *(
            Instruction(text, "No.", category="b", split=name)
            for text, name in zip(unlike(203)[200:], SPLITS, strict=True)
        ),
    ]
    write(tmp_path / "data/prompts.parquet", rows)
    metrics = run_split(tmp_path)
    written = split_of(tmp_path)
    assert sorted(written) == list(range(1, len(rows) + 1))
    assert written[201] == written[202] == written[203]
    assert written[204] == written[205]
    assert [written[line] for line in (206, 207, 208)] == list(SPLITS)
    in_split = {name: sum(mine == name for mine in written.values()) for name in SPLITS}
    assert metrics == {
        **in_split,
        "withheld": 0,
        "fixed": 3,
        "near_duplicate_clusters": 2,
        "near_duplicate_rows": 5,
        "largest_cluster": 3,
        "leaked_rows": 0,
        # the two rows about Vienna are one prompt
        "exactly_checked_rows": in_split["validation"] + in_split["test"] - (written[204] != "train"),
        "pairs_not_compared": 0,
        "by_category": {
            category: {
                name: sum(written[line] == name for line, row in enumerate(rows, start=1) if row.category == category)
                for name in SPLITS
            }
            for category in "ab"
        },
    }
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert run_split(tmp_path) == metrics
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_stratified_shares_are_those_of_each_category(tmp_path: Path) -> None:
    rows = [Instruction(text, "Yes.", category="ab"[at % 4 == 0]) for at, text in enumerate(unlike(400))]
    write(tmp_path / "data/prompts.parquet", rows)
    for counts in run_split(tmp_path, stratify=True)["by_category"].values():
        for name, fraction in zip(SPLITS, (0.85, 0.05, 0.1), strict=True):
            assert counts[name] == pytest.approx(fraction * sum(counts.values()), abs=3)


@pytest.mark.parametrize("between_splits", ["withhold", "join"])
def test_a_row_between_two_splits(tmp_path: Path, between_splits: str) -> None:
    ids = [f"{at:016x}" for at in range(100)]
    train = next(id for id in ids if position(SALT, id) < TRAIN_FRACTION)
    test = next(id for id in ids if position(SALT, id) > TRAIN_FRACTION + 0.05)
    text = "bake a dark bread with seeds and honey for the whole family tonight"
    near = [text.removesuffix(" family tonight"), text.removeprefix("bake a dark bread "), text]
    write(
        tmp_path / "data/prompts.parquet",
        [Instruction(text, "Yes.") for text in [*near, *unlike(100)]],
        [train, test, "bridge", *(f"other {id}" for id in ids)],
    )
    metrics = run_split(tmp_path, between_splits=between_splits, near_duplicate_threshold=0.6)
    written = split_of(tmp_path)
    assert metrics["leaked_rows"] == 0
    if between_splits == "withhold":
        assert [written[line] for line in (1, 2, 3)] == ["train", "test", WITHHELD]
        reason = "between splits: near rows.jsonl:1 (train), rows.jsonl:2 (test)"
        assert read_withheld(tmp_path) == [{"file": "rows.jsonl", "line": 3, "id": "bridge", "reason": reason}]
        assert metrics["withheld"] == 1
    else:
        assert [written[line] for line in (1, 2, 3)] == ["train"] * 3
        assert read_withheld(tmp_path) == []
        assert metrics["largest_cluster"] == 3


def test_of_fixed_rows_that_leak_the_train_row_is_withheld(tmp_path: Path) -> None:
    said = ["List three long rivers of Asia.", *unlike(100), "List three long rivers of Asia"]
    rows = [Instruction(text, "Yes.", split={0: "train", 101: "test"}.get(at)) for at, text in enumerate(said)]
    write(tmp_path / "data/prompts.parquet", rows)
    metrics = run_split(tmp_path, fixed_leaks="withhold")
    assert split_of(tmp_path)[102] == "test"
    reason = "between splits: train, near rows.jsonl:102 (test)"
    assert read_withheld(tmp_path) == [{"file": "rows.jsonl", "line": 1, "id": rows[0].id, "reason": reason}]
    assert (metrics["withheld"], metrics["fixed"], metrics["leaked_rows"]) == (1, 2, 0)

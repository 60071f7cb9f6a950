import csv
import re
from pathlib import Path
from typing import Any

import pytest

from stages.benchmarks.harness import stock
from stages.benchmarks.mmlu import BENCHMARKS, GROUPS, PUBLISHED, read
from stages.pipeline.errors import UserError
from tests.benchmark_tasks.making_b import QUICK, measured, write, write_parquet
from tests.benchmark_tasks.oracles import OracleSubject

(MMLU,) = BENCHMARKS


def questions(count: int, of: str) -> list[list[str]]:
    return [[f'{of} {at}, "quoted"?', "one", "two, too", "three", "four", "ABCD"[at % 4]] for at in range(count)]


def bring(folder: Path, split: str, subject: str, count: int) -> None:
    path = folder / split / f"{subject}_{split}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(questions(count, f"{subject} {split}"))


def test_the_subjects_are_lm_evals_in_its_groups_with_the_published_rows() -> None:
    assert (len(PUBLISHED), sum(PUBLISHED.values())) == (57, 14042)
    for group, subjects in GROUPS.items():
        assert {stock(f"mmlu/default/mmlu_{subject}.yaml")["tag"] for subject in subjects} == {f"mmlu_{group}_tasks"}


def test_gold_is_all_right_and_shuffled_gold_about_chance(tmp_path: Path) -> None:
    for subject in ("anatomy", "virology"):
        bring(tmp_path, "dev", subject, 5)
        bring(tmp_path, "test", subject, 40)
    gold = measured(MMLU, tmp_path, OracleSubject(lambda doc: doc["answer"]))
    assert {name: figure.value for name, figure in gold.items()} == pytest.approx(
        {"mmlu acc": 1, "mmlu/anatomy acc": 1, "mmlu/virology acc": 1}
    )
    shuffled = measured(MMLU, tmp_path, OracleSubject(lambda doc: doc["answer"], shuffled=True))
    assert 0.1 < shuffled["mmlu acc"].value < 0.4


def test_groups_and_the_whole_are_weighted_by_size_and_never_pass_for_all(tmp_path: Path) -> None:
    for subject, count in (("anatomy", 6), ("astronomy", 2), ("virology", 2)):
        bring(tmp_path, "dev", subject, 5)
        bring(tmp_path, "test", subject, count)
    only_anatomy = OracleSubject(lambda doc: doc["answer"] if "anatomy" in doc["question"] else (doc["answer"] + 1) % 4)
    found = measured(MMLU, tmp_path, only_anatomy)
    assert found["mmlu acc"].value == pytest.approx(0.6)
    assert found["mmlu/stem acc"].value == pytest.approx(0.75)
    assert "mmlu/other acc" not in found, "one subject of it ran, and is told by its own name"
    whole = found["mmlu acc"]
    assert (whole.n, whole.run, whole.out_of, whole.scope, whole.shots) == (10, 3, 57, "sample", 5)
    assert (found["mmlu/stem acc"].run, found["mmlu/stem acc"].out_of) == (2, 19)


def test_a_subject_is_full_only_with_every_published_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PUBLISHED, "anatomy", 4)
    bring(tmp_path, "dev", "anatomy", 5)
    bring(tmp_path, "test", "anatomy", 4)
    subject = OracleSubject(lambda doc: doc["answer"])
    assert measured(MMLU, tmp_path, subject)["mmlu/anatomy acc"].scope == "full"
    cut = measured(MMLU, tmp_path, subject, QUICK._replace(limit=3))["mmlu/anatomy acc"]
    assert (cut.scope, cut.n) == ("sample", 3)


def test_the_prompt_has_five_shots_from_dev_in_their_order(tmp_path: Path) -> None:
    bring(tmp_path, "dev", "anatomy", 6)
    bring(tmp_path, "test", "anatomy", 1)
    row = MMLU.measure([OracleSubject(lambda doc: doc["answer"])], tmp_path, [], QUICK, tmp_path).rows[0]
    assert row.prompt.startswith("The following are multiple choice questions (with answers) about anatomy.\n\n")
    assert re.findall(r"anatomy (?:dev|test) \d", row.prompt) == [
        *(f"anatomy dev {at}" for at in range(5)),
        "anatomy test 0",
    ]
    assert row.prompt.endswith('anatomy test 0, "quoted"?\nA. one\nB. two, too\nC. three\nD. four\nAnswer:')
    assert (row.task, row.response, row.target, row.score) == ("mmlu/anatomy", "A", "A", 1.0)


def test_shots_can_be_set_and_need_no_dev_when_there_are_none(tmp_path: Path) -> None:
    bring(tmp_path, "test", "anatomy", 2)
    subject = OracleSubject(lambda doc: doc["answer"])
    found = measured(MMLU, tmp_path, subject, QUICK._replace(shots={"mmlu": 0}))["mmlu/anatomy acc"]
    assert (found.shots, found.value) == (0, 1.0)
    bring(tmp_path, "dev", "anatomy", 4)
    with pytest.raises(UserError, match=r"5 shots of anatomy are wanted from dev, there are 4; .*mmlu: 4"):
        measured(MMLU, tmp_path, subject)


def test_val_stands_in_for_test_and_says_so(tmp_path: Path) -> None:
    for subject in ("anatomy", "virology"):
        bring(tmp_path, "dev", subject, 5)
        bring(tmp_path, "val", subject, 4)
    bring(tmp_path, "test", "virology", 3)
    assert MMLU.find(tmp_path).rows == {"anatomy": 4, "virology": 3}
    found = measured(MMLU, tmp_path, OracleSubject(lambda doc: doc["answer"]))
    assert found["mmlu/anatomy acc"].protocol.endswith("; on val")
    assert "on val" not in found["mmlu/virology acc"].protocol
    assert found["mmlu acc"].protocol.endswith("; on val in 1 of 2 subjects")


def test_the_hubs_parquet_gives_the_same_rows(tmp_path: Path) -> None:
    for split in ("dev", "test"):
        bring(tmp_path / "csv", split, "anatomy", 5)
        rows: list[dict[str, Any]] = [
            {"question": row[0], "subject": "anatomy", "choices": row[1:5], "answer": "ABCD".index(row[5])}
            for row in questions(5, f"anatomy {split}")
        ]
        write_parquet(tmp_path / "hub" / "all" / f"{split}-00000-of-00001.parquet", rows)
    assert read(tmp_path / "hub") == read(tmp_path / "csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("question,A,B,C,D,answer\n", r"anatomy_test.csv:1: wanted six fields"),
        ("q,1,2,3,4,A\nq,1,2,3,4,E\n", r"anatomy_test.csv:2: wanted six fields"),
        ("q,1,2,3,A\n", r"anatomy_test.csv:1: wanted six fields"),
        ('q,"1,2,3,4,A\n', r"anatomy_test.csv:1: broken CSV"),
        ("", r"anatomy_test.csv: holds no row"),
    ],
)
def test_files_of_another_format_are_refused(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path / "test" / "anatomy_test.csv", text)
    with pytest.raises(UserError, match=message):
        MMLU.find(tmp_path)


def test_what_is_no_subject_or_no_row_of_the_hub_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a" / "test-0.parquet"
    row = {"question": "q", "subject": "anatomy", "choices": ["1", "2", "3", "4"], "answer": 1}
    for wrong, message in (
        ({"subject": "alchemy"}, "'alchemy' is no subject of MMLU"),
        ({"answer": 4}, "an 'answer' from 0 to 3"),
        ({"choices": ["1", "2"]}, "four 'choices'"),
        ({"question": None}, "no 'question'"),
    ):
        write_parquet(path, [row | wrong])
        with pytest.raises(UserError, match=message):
            MMLU.find(path.parent)
    bring(tmp_path / "b", "test", "alchemy", 1)
    with pytest.raises(UserError, match="'alchemy' is no subject of MMLU"):
        MMLU.find(tmp_path / "b")
    with pytest.raises(UserError, match="holds no rows of test or val"):
        measured(MMLU, tmp_path / "nothing", OracleSubject(lambda doc: doc["answer"]))

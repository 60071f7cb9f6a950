"""What a run says of its parent: parameters, data, code, and what that did."""

from pathlib import Path
from typing import Any

import pytest

from stages.pipeline.changes import Origin
from stages.pipeline.tracking_description import DATA, Parent, Side, describe, parent_at, short_changes, tell_now
from stages.pipeline.tracking_files import Files
from stages.pipeline.tracking_tags import where_now
from tests.pipeline.projects import commit, git

PARAMS = {"finetune.learning_rate": "2e-4", "judge.seed": 1}
FILES = {"stages/judge.py": "a", "stages/old.py": "b", DATA: "c"}
ROWS = {"train": 1146, "validation": 78, "test": 162}
FINETUNED = {"best_validation_loss": 1.3728, "overfit_epoch": 1.0}
JUDGED = {"score": 31.59, "score_low": 27.8, "score_high": 35.5}


def side(
    params: Any = PARAMS, files: Any = FILES, rows: Any = ROWS, finetuned: Any = FINETUNED, judged: Any = JUDGED
) -> Side:
    return Side(Origin(params, files), rows, finetuned, judged)


PARENT = Parent("00422a2" + "0" * 33, "Second reading", side())


def test_a_parameter_and_what_it_did() -> None:
    own = side(
        PARAMS | {"finetune.learning_rate": 1e-4},
        finetuned={"best_validation_loss": 1.361, "overfit_epoch": 1.5},
        judged={"score": 33.0, "score_low": 29.0, "score_high": 37.0},
    )
    assert describe(own, PARENT).splitlines() == [
        "Against `00422a2` (`Second reading`): score 31.6 → 33.0 (intervals overlap), best validation loss 1.373 → "
        "1.361, onset of overfitting (epoch) 1.00 → 1.50.",
        "",
        "- Parameters: `finetune.learning_rate` `2e-4` → `0.0001`",
        "- Data and code: the same",
    ]
    assert short_changes(own, PARENT) == "learning_rate=0.0001"


def test_numbers_that_are_written_otherwise_are_the_same() -> None:
    own = side(PARAMS | {"finetune.learning_rate": 0.0002}, finetuned={}, judged={})
    assert describe(own, PARENT).endswith("- Parameters, data and code: the same")
    assert short_changes(own, PARENT) == ""


def test_data_code_and_results_that_are_apart() -> None:
    own = side(
        files={"stages/judge.py": "z", "stages/new.py": "n", DATA: "d"},
        rows=ROWS | {"train": 1200},
        finetuned={"best_validation_loss": 1.0, "overfit_epoch": -1},
        judged={"score": 50.0, "score_low": 45.0, "score_high": 55.0},
    )
    told = describe(own, PARENT)
    assert "- Data: train / validation / test rows 1,146 / 78 / 162 → 1,200 / 78 / 162" in told
    assert "- Code: `stages/judge.py`, `stages/new.py` added, `stages/old.py` removed" in told
    assert "(intervals do not overlap)" in told
    assert "onset of overfitting (epoch) 1.00 → not seen" in told


def test_rows_edited_in_place() -> None:
    assert "- Data: rows edited, as many as before" in describe(side(files=FILES | {DATA: "d"}), PARENT)


def test_text_of_others_stays_text() -> None:
    own = side(PARAMS | {"judge.rubric": "`<script>alert(1)</script>` **x**\n# y"})
    told = describe(own, PARENT._replace(subject="`<img src=x>`"))
    for hostile in ("<script>", "<img", "**x**"):
        before = told[: told.index(hostile)]
        assert before.count("`") % 2 == 1, "inside of a code span"
    assert "\n# y" not in told


def test_many_changes_are_cut() -> None:
    told = describe(side({f"a.p{number:02}": 1 for number in range(20)}), PARENT)
    assert told.count("(none)") == 8
    assert ", and 14 more" in told


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_EXP_BASELINE_REV", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def write(folder: Path, rate: str, loss: float) -> None:
    (folder / "metrics").mkdir(exist_ok=True)
    (folder / "params.yaml").write_text(f"finetune: {{learning_rate: {rate}}}\n")
    (folder / "metrics/finetune.json").write_text(f'{{"best_validation_loss": {loss}, "overfit_epoch": -1}}')


def lock(folder: Path, md5: str) -> None:
    (folder / "dvc.lock").write_text(f"stages: {{finetune: {{outs: [{{path: data/checkpoint, md5: {md5}}}]}}}}\n")


def test_the_parent_is_head_while_something_differs_and_else_the_one_before(repository: Path) -> None:
    write(repository, "1e-3", 2.0)
    assert tell_now(Files(), where_now(), judged=True) is None, "no Git"
    git(repository, "init", "-q")
    git(repository, "config", "user.name", "Ada")
    git(repository, "config", "user.email", "ada@example.org")
    lock(repository, "one")
    first = commit(repository, "one")
    assert tell_now(Files(), where_now(), judged=True) == (describe(side(), None), "")
    write(repository, "2e-3", 1.5)
    told = tell_now(Files(), where_now(), judged=True)
    assert told is not None
    assert told[0].startswith(f"Against `{first[:7]}` (`one`): best validation loss 2.000 → 1.500")
    assert told[1] == "learning_rate=2e-3"
    assert where_now().dirty == ["params.yaml"]
    lock(repository, "two")
    second = commit(repository, "two")
    told = tell_now(Files(), where_now(), judged=True)
    assert told is not None
    assert told[0].startswith(f"Against `{first[:7]}`"), "nothing differs from HEAD"
    git(repository, "checkout", "-q", "--detach")
    where = where_now()
    assert (where.commit, where.branch, where.dirty) == (second, None, [])
    found = parent_at(second)
    assert found is not None
    assert found.side.origin.params == {"finetune.learning_rate": "2e-3"}

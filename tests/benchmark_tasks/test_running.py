"""From tasks to metrics/benchmark.json: what is checked first, what is kept, what a part is called."""

import json
from pathlib import Path
from typing import Any

import pytest

from stages.benchmarks import catalog
from stages.benchmarks.benchmark import Settings
from stages.benchmarks.catalog import parse
from stages.benchmarks.report import figures_text, flat, list_text
from stages.benchmarks.running import check, data_sha256, measure
from stages.pipeline.errors import UserError
from stages.pipeline.files import read_parquet, write_json
from tests.benchmark_tasks.oracles import OracleSubject
from tests.benchmark_tasks.quiz import Quiz

EASY = {"2+2": "4", "2+3": "5", "3+3": "6", "3+4": "7"}
HARD = {"17*23": "391", "19*29": "551"}
HOW = Settings(resamples=100)
MARKS = {"fine-tuned": "a", "base": "b"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """data/benchmarks with the whole quiz."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(catalog, "benchmarks", lambda: {"quiz": Quiz()})
    folder = tmp_path / "benchmarks"
    write_json(folder / "quiz/easy.json", EASY)
    write_json(folder / "quiz/hard.json", HARD)
    return folder


def subject(name: str, wrong: str = "") -> OracleSubject:
    """Knows all answers but those to `wrong`."""
    answers = {**EASY, **HARD, wrong: "?"}
    found = OracleSubject(reply=lambda chat: answers[chat[0]["content"]])
    found.name = name
    return found


def run(folder: Path, tasks: list[str], *subjects: OracleSubject, **how: Any) -> dict[str, Any]:
    return measure(parse(tasks), subjects, MARKS, folder, HOW._replace(**how), folder.parent / "rows")


def test_both_models_stand_side_by_side(folder: Path) -> None:
    figures = run(folder, ["quiz"], subject("fine-tuned"), subject("base", wrong="17*23"))
    assert list(figures) == ["quiz/easy", "quiz/hard", "quiz"]
    whole = figures["quiz"]
    assert whole["metrics"]["exact_match"]["fine-tuned"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 6}
    assert whole["metrics"]["exact_match"]["base"]["value"] == pytest.approx(5 / 6, abs=1e-6)
    assert (whole["scope"], whole["run"], whole["out_of"]) == ("full", 2, 2)
    assert whole["data_sha256"] == data_sha256(folder / "quiz")
    rows = read_parquet(folder.parent / "rows/quiz/rows.parquet")
    assert len(rows) == 12
    assert [row["id"] for row in rows if row["score"] == 0] == ["17*23"]


def test_a_part_never_goes_by_the_name_of_the_whole(folder: Path) -> None:
    assert list(run(folder, ["quiz/easy"], subject("base"))) == ["quiz/easy"]
    assert list(run(folder, ["quiz"], subject("base"), limit=3)) == ["quiz/easy (sample)", "quiz/hard", "quiz (sample)"]
    (folder / "quiz/hard.json").unlink()
    assert list(run(folder, ["quiz"], subject("base"))) == ["quiz/easy"]
    write_json(folder / "quiz/hard.json", {"17*23": "391"})
    assert list(run(folder, ["quiz"], subject("base"))) == ["quiz/easy", "quiz/hard (sample)", "quiz (sample)"]


def test_what_was_measured_is_not_measured_again(folder: Path) -> None:
    first = subject("base")
    figures = run(folder, ["quiz"], first)
    again = subject("base")
    assert run(folder, ["quiz"], again) == figures
    assert (len(first.asked), again.asked) == (6, [])
    assert len(read_parquet(folder.parent / "rows/quiz/rows.parquet")) == 6
    kept = next((folder.parent / ".benchmarks").iterdir())
    kept.write_bytes(kept.read_bytes()[:100])
    assert run(folder, ["quiz"], again) == figures
    assert len(again.asked) == 6, "a damaged file is measured anew"
    write_json(folder / "quiz/hard.json", {"17*23": "391"})
    run(folder, ["quiz"], again)
    assert len(again.asked) == 11, "other data is measured"
    MARKS["base"] = "another model"
    run(folder, ["quiz"], again)
    assert len(again.asked) == 16
    MARKS["base"] = "b"


def test_a_task_that_fails_leaves_what_came_before_and_no_result(folder: Path) -> None:
    broken = subject("base")
    broken.answer = lambda *_, **__: (_ for _ in ()).throw(UserError("no"))  # type: ignore[method-assign]
    with pytest.raises(UserError, match="no"):
        run(folder, ["quiz"], subject("fine-tuned"), broken)
    assert not (folder.parent / "rows").exists()
    assert len(list((folder.parent / ".benchmarks").iterdir())) == 1, "the first model's is kept"


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        (["quiz/medium"], "quiz/medium is not in .*quiz; there are: easy, hard"),
        (["quizz"], "no benchmark is called 'quizz'; did you mean quiz?"),
        (["mmmlu"], "no benchmark is called 'mmmlu'; known: quiz, lm_eval:<task>"),
    ],
)
def test_what_is_not_there_is_told_before_anything_runs(folder: Path, tasks: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check(parse(tasks), folder, HOW)


def test_absent_data_names_the_command_that_gets_it(folder: Path) -> None:
    with pytest.raises(UserError, match=r"no data of Quiz; get it with `python -m stages.benchmark fetch quiz`"):
        check(parse(["quiz"]), folder / "elsewhere", HOW)
    (folder / "quiz/easy.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        check(parse(["quiz"]), folder, HOW)


def test_shots_of_no_benchmark_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"benchmark\.shots: no benchmark is called 'quiss'; did you mean quiz"):
        check(parse(["quiz"]), folder, HOW._replace(shots={"quiss": 1}))
    check(parse(["quiz"]), folder, HOW._replace(shots={"quiz": 1}))


def test_parts_of_one_benchmark_come_together(folder: Path) -> None:
    assert [wanted.subtasks for wanted in parse(["quiz/easy", "quiz/hard", "quiz/easy"])] == [["easy", "hard"]]
    assert [wanted.subtasks for wanted in parse(["quiz/easy", "quiz"])] == [[]]


def test_the_table_says_what_was_measured(folder: Path) -> None:
    figures = run(folder, ["quiz"], subject("fine-tuned"), subject("base", wrong="17*23"), limit=3)
    text = figures_text(figures)
    assert "quiz (sample)" in text
    assert "1.000 [1.000, 1.000]" in text
    assert "one answer, word for word; without a template; onset; 2 of 2 subtasks" in text
    assert "not to be held against published figures" in text
    assert flat(figures, "fine-tuned", "base") == {
        "benchmark/quiz/easy_sample/exact_match": 1.0,
        "benchmark/quiz/easy_sample/base_exact_match": 1.0,
        "benchmark/quiz/hard/exact_match": 1.0,
        "benchmark/quiz/hard/base_exact_match": 0.5,
        "benchmark/quiz_sample/exact_match": 1.0,
        "benchmark/quiz_sample/base_exact_match": 0.8,
    }
    json.dumps(figures, allow_nan=False)


def test_the_list_shows_what_is_there_and_how_to_get_it(folder: Path) -> None:
    quiz = Quiz()
    assert "6 rows, 2 subtasks" in list_text([quiz], folder)
    (folder / "quiz/hard.json").unlink()
    assert "4 of 6 rows, 1 of 2 subtasks (sample)" in list_text([quiz], folder)
    (folder / "quiz/easy.json").write_text("{")
    assert "not readable" in list_text([quiz], folder)
    assert "fetch quiz" in list_text([quiz], folder / "elsewhere")

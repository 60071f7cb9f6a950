import json
from pathlib import Path
from typing import Any

import pytest

from stages.benchmarks.benchmark import Found
from stages.benchmarks.triviaqa import BENCHMARKS, PUBLISHED, gold
from stages.pipeline.errors import UserError
from tests.benchmark_tasks.making_b import QUICK, measured, write, write_parquet
from tests.benchmark_tasks.oracles import OracleSubject

(TRIVIAQA,) = BENCHMARKS


def question(at: int, of: str) -> dict[str, Any]:
    answer = {"Value": f"St. {of} the {at}, Esq.", "NormalizedAliases": [f"st {of} {at} esq", f"{of} {at}"]}
    return {"Question": f"Who is {of} {at}" + "?" * (at % 2), "QuestionId": f"{of}_{at}", "Answer": answer}


def publish(path: Path, count: int, of: str) -> None:
    write(path, json.dumps({"Domain": of, "Data": [question(at, of) for at in range(count)]}))


def test_gold_is_all_right_and_shuffled_gold_wrong(tmp_path: Path) -> None:
    publish(tmp_path / "qa/wikipedia-dev.json", 30, "wikipedia")
    publish(tmp_path / "qa/web-dev.json", 10, "web")
    right = measured(TRIVIAQA, tmp_path, OracleSubject(gold))
    names = ("triviaqa", "triviaqa/wikipedia", "triviaqa/web")
    assert {name: one.value for name, one in right.items()} == {
        f"{name} {metric}": 1 for name in names for metric in ("exact_match", "f1")
    }
    wrong = measured(TRIVIAQA, tmp_path, OracleSubject(gold, shuffled=True))
    assert all(wrong[f"{name} exact_match"].value < 0.25 for name in names)
    half = measured(TRIVIAQA, tmp_path, OracleSubject(lambda doc: gold(doc) if "web" in doc["id"] else "nobody"))
    assert [half[f"{name} exact_match"].value for name in names] == [0.25, 0, 1]  # by number of questions
    assert [half[f"{name} f1"].run for name in names] == [2, 1, 1]


def test_any_alias_is_right(tmp_path: Path) -> None:
    publish(tmp_path / "web-dev.json", 4, "web")
    figures = measured(TRIVIAQA, tmp_path, OracleSubject(lambda doc: f"The WEB_{doc['id'][-1]}!"))
    assert {name: one.value for name, one in figures.items()} == {
        "triviaqa/web exact_match": 1,
        "triviaqa/web f1": 1,
    }


def test_a_question_mark_stands_once(tmp_path: Path) -> None:
    publish(tmp_path / "web-dev.json", 2, "web")
    rows = TRIVIAQA.measure([OracleSubject(gold)], tmp_path, [], QUICK, tmp_path).rows
    assert [row.prompt for row in rows] == [f"Question: Who is web {at}?\nAnswer:" for at in range(2)]
    shown = TRIVIAQA.measure([OracleSubject(gold)], tmp_path, [], QUICK._replace(shots={"triviaqa": 1}), tmp_path)
    assert shown.rows[0].prompt.startswith(
        "Question: Who is web 1?\nAnswer: St. web the 1, Esq.\n\nQuestion: Who is web 0?"
    )
    assert shown.figures[0].shots == 1


def test_a_part_is_never_called_the_whole_nor_counted_twice(tmp_path: Path) -> None:
    for name in ("unfiltered-web-dev", "wikipedia-dev", "wikipedia-train", "verified-wikipedia-dev"):
        publish(tmp_path / f"{name}.json", 3, name.split("-")[0])
    publish(tmp_path / "again/wikipedia-dev.json", 4, "wikipedia")
    assert TRIVIAQA.find(tmp_path) == Found({"wikipedia": 4, "unfiltered": 3}, PUBLISHED)
    figures = measured(TRIVIAQA, tmp_path, OracleSubject(gold))
    assert {one.task for one in figures.values()} == {"triviaqa/wikipedia", "triviaqa/unfiltered"}
    only = measured(TRIVIAQA, tmp_path, OracleSubject(gold), wanted=["unfiltered"])
    assert {(one.task, one.n, one.scope) for one in only.values()} == {("triviaqa/unfiltered", 3, "sample")}


def test_the_hubs_copy_reads_the_same(tmp_path: Path) -> None:
    publish(tmp_path / "own/web-dev.json", 3, "web")
    rows = [
        {
            "question": one["Question"],
            "question_id": one["QuestionId"],
            "answer": {"value": one["Answer"]["Value"], "normalized_aliases": one["Answer"]["NormalizedAliases"]},
        }
        for one in (question(at, "web") for at in range(3))
    ]
    write_parquet(tmp_path / "hub/rc.web.nocontext/validation-00000-of-00001.parquet", rows)
    own, hub = (TRIVIAQA.measure([OracleSubject(gold)], tmp_path / at, [], QUICK, tmp_path) for at in ("own", "hub"))
    assert own == hub


def test_a_file_of_another_format_is_told(tmp_path: Path) -> None:
    assert TRIVIAQA.find(tmp_path).rows == {}
    with pytest.raises(UserError, match=r"holds no questions; wanted: qa/wikipedia-dev\.json"):
        TRIVIAQA.measure([OracleSubject(gold)], tmp_path, [], QUICK, tmp_path)
    path = tmp_path / "web-dev.json"
    for text in ("[1]", "{", '{"Data": [{"Question": "x", "QuestionId": "1"}]}', '{"data": []}'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"web-dev\.json: wanted TriviaQA's own JSON"):
            TRIVIAQA.find(tmp_path)
    path.write_text('{"Data": []}')
    with pytest.raises(UserError, match="holds no question"):
        TRIVIAQA.find(tmp_path)

import json
from pathlib import Path
from typing import Any

import pytest

from stages.benchmarks.benchmark import Found, Settings
from stages.benchmarks.squad import BENCHMARKS, gold
from stages.pipeline.errors import UserError
from tests.benchmark_tasks.making_b import QUICK, measured, write, write_parquet
from tests.benchmark_tasks.oracles import OracleSubject

SQUAD, SQUAD2 = BENCHMARKS


def question(at: int, none: bool = False) -> dict[str, Any]:
    answers = [] if none else [{"text": f"word{at}", "answer_start": 4}, {"text": f"the word{at}", "answer_start": 0}]
    return {"id": f"q{at}", "question": f"Which word is {at}?", "answers": answers, "is_impossible": none}


def publish(path: Path, qas: list[dict[str, Any]]) -> None:
    paragraph = {"context": "the words", "qas": qas}
    write(path, json.dumps({"version": "1.1", "data": [{"title": "Words", "paragraphs": [paragraph]}]}))


def test_gold_is_all_right_and_shuffled_gold_wrong(tmp_path: Path) -> None:
    publish(tmp_path / "dev-v1.1.json", [question(at) for at in range(40)])
    right = measured(SQUAD, tmp_path, OracleSubject(gold))
    assert {name: one.value for name, one in right.items()} == {"squad exact_match": 1, "squad f1": 1}
    wrong = measured(SQUAD, tmp_path, OracleSubject(gold, shuffled=True))
    assert all(one.value < 0.15 for one in wrong.values())
    assert {(one.n, one.scope, one.shots, one.run, one.out_of) for one in wrong.values()} == {(40, "sample", 0, 1, 1)}


def test_questions_without_an_answer_have_figures_of_their_own(tmp_path: Path) -> None:
    publish(tmp_path / "dev-v2.0.json", [question(at, none=at % 4 == 0) for at in range(40)])
    right = measured(SQUAD2, tmp_path, OracleSubject(gold))
    names = ("exact_match", "f1", "HasAns_exact", "NoAns_exact", "HasAns_f1", "NoAns_f1")
    assert {name: one.value for name, one in right.items()} == {f"squad2 {name}": 1 for name in names}
    never = measured(SQUAD2, tmp_path, OracleSubject(lambda doc: " Unanswerable."))
    assert [never[f"squad2 {name}"].value for name in names] == [0.25, 0.25, 0, 1, 0, 1]
    assert [never[f"squad2 {name}"].n for name in names] == [40, 40, 30, 10, 30, 10]
    silent = measured(SQUAD2, tmp_path, OracleSubject(lambda doc: ""))
    assert {name: one.value for name, one in silent.items()} == {name: one.value for name, one in never.items()}


def test_a_limit_takes_questions_from_the_start(tmp_path: Path) -> None:
    publish(tmp_path / "dev-v2.0.json", [question(at, none=at < 3) for at in range(9)])
    figures = measured(SQUAD2, tmp_path, OracleSubject(lambda doc: ""), QUICK._replace(limit=4))
    assert (figures["squad2 exact_match"].value, figures["squad2 NoAns_exact"].n) == (0.75, 3)


def test_the_prompt_tells_what_to_reply_where_there_is_no_answer(tmp_path: Path) -> None:
    publish(tmp_path / "dev.json", [question(0), question(1, none=True)])
    rows = SQUAD2.measure([OracleSubject(gold)], tmp_path, [], QUICK, tmp_path).rows
    assert rows[0].prompt.startswith("Answer the question with words from the background. If")
    assert 'reply "unanswerable".\n\nTitle: Words\n\nBackground: the words\n\nQuestion: Which' in rows[0].prompt
    assert [(row.response, row.target, row.score) for row in rows] == [
        ("word0", "word0", 1.0),
        ("unanswerable", "unanswerable", 1.0),
    ]


def test_a_template_gets_the_whole_prompt(tmp_path: Path) -> None:
    publish(tmp_path / "dev.json", [question(0)])
    found = SQUAD.measure([OracleSubject(gold, template="chat")], tmp_path, [], QUICK, tmp_path)
    assert found.figures[0].template == "chat"
    assert found.rows[0].prompt.startswith("Answer the question with words from the background.")
    assert found.rows[0].prompt.endswith("Question: Which word is 0?\n\nAnswer:")


def test_shots_are_other_questions(tmp_path: Path) -> None:
    publish(tmp_path / "dev.json", [question(at) for at in range(4)])
    settings = Settings(resamples=20, shots={"squad": 3})
    rows = SQUAD.measure([OracleSubject(gold)], tmp_path, [], settings, tmp_path).rows
    for at, row in enumerate(rows):
        assert row.prompt.count("Answer: word") == 3
        assert f"Answer: word{at}" not in row.prompt
    with pytest.raises(UserError, match="4 questions, for 4 shots more are wanted"):
        SQUAD.measure([OracleSubject(gold)], tmp_path, [], settings._replace(shots={"squad": 4}), tmp_path)


def test_the_hubs_copy_reads_the_same_and_nothing_counts_twice(tmp_path: Path) -> None:
    qas = [question(at, none=at == 1) for at in range(3)]
    publish(tmp_path / "own/dev-v2.0.json", qas)
    columns = [
        {key: one[key] for key in ("id", "question")}
        | {"title": "Words", "context": "the words", "answers": {"text": [a["text"] for a in one["answers"]]}}
        for one in qas
    ]
    write_parquet(tmp_path / "hub/squad_v2/validation-00000-of-00001.parquet", columns)
    found = [
        SQUAD2.measure([OracleSubject(gold)], tmp_path / place, [], QUICK, tmp_path) for place in ("own", "hub", "")
    ]
    assert found[0] == found[1] == found[2]
    publish(tmp_path / "train-v2.0.json", [question(7)])
    assert SQUAD2.find(tmp_path) == Found({"dev": 3}, {"dev": 11873})
    assert SQUAD.find(tmp_path / "none") == Found({}, {"dev": 10570})


def test_a_file_of_another_format_is_told(tmp_path: Path) -> None:
    path = tmp_path / "dev-v1.1.json"
    for text in ("[]", "{", '{"data": [{"paragraphs": [{"qas": [{"id": 1}]}]}]}', '{"Data": []}'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"dev-v1\.1\.json: wanted SQuAD's own JSON"):
            SQUAD.find(tmp_path)
    path.write_text('{"data": []}')
    with pytest.raises(UserError, match="holds no question"):
        SQUAD.find(tmp_path)
    write_parquet(path.with_suffix(".parquet"), [{"id": "1", "text": "x"}])
    path.unlink()
    with pytest.raises(UserError, match=r"parquet:1: no 'answers'"):
        SQUAD.find(tmp_path)


def test_each_version_is_refused_in_the_place_of_the_other(tmp_path: Path) -> None:
    publish(tmp_path / "dev.json", [question(0), question(1, none=True)])
    with pytest.raises(UserError, match=r"this is SQuAD 2\.0"):
        SQUAD.find(tmp_path)
    publish(tmp_path / "dev.json", [question(0)])
    with pytest.raises(UserError, match=r"this is SQuAD 1\.1"):
        SQUAD2.find(tmp_path)

import json
from pathlib import Path

import pytest

from stages.benchmarks.bbh import BENCHMARKS, PUBLISHED, answer_of, gold, read_prompt
from stages.pipeline.errors import UserError
from tests.benchmark_tasks.making_b import QUICK, measured, write, write_parquet
from tests.benchmark_tasks.oracles import OracleSubject

(BBH,) = BENCHMARKS
PROMPT = """A warning not to train on this.
-----
Tell whether it is so.

Q: One is one?
A: Let's think step by step.
It is.

So the answer is Yes.

Q: One is two?
A: Let's think step by step.
So the answer is No.

Q: Two is two?
A: Let's think step by step.
So the answer is Yes.
"""


def publish(folder: Path, task: str, targets: list[str]) -> list[dict[str, str]]:
    rows = [{"input": f"Is it {at}?", "target": target} for at, target in enumerate(targets)]
    write(folder / f"{task}.json", json.dumps({"canary": "x", "examples": rows}))
    return rows


def test_the_tasks_are_the_published_ones() -> None:
    assert (len(PUBLISHED), sum(PUBLISHED.values())) == (27, 6511)


def test_gold_is_all_right_and_shuffled_gold_about_chance(tmp_path: Path) -> None:
    publish(tmp_path, "navigate", ["Yes", "No"] * 30)
    publish(tmp_path, "snarks", ["(A)", "(B)"] * 89)
    right = measured(BBH, tmp_path, OracleSubject(gold))
    assert {name: one.value for name, one in right.items()} == {
        f"{name} exact_match": 1 for name in ("bbh", "bbh/navigate", "bbh/snarks")
    }
    chance = measured(BBH, tmp_path, OracleSubject(gold, shuffled=True))
    assert all(0.3 < one.value < 0.7 for one in chance.values())
    assert {name: (one.run, one.out_of, one.scope, one.n) for name, one in chance.items()} == {
        "bbh exact_match": (2, 27, "sample", 238),
        "bbh/navigate exact_match": (1, 1, "sample", 60),
        "bbh/snarks exact_match": (1, 1, "full", 178),
    }
    mixed = measured(BBH, tmp_path, OracleSubject(lambda doc: "Yes"))
    assert mixed["bbh exact_match"].value == pytest.approx(0.25)  # the mean over tasks, not over questions
    assert set(measured(BBH, tmp_path, OracleSubject(gold), wanted=["snarks"])) == {"bbh/snarks exact_match"}


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (" Yes.\nmore", "Yes"),
        ("Well. So the answer is (C).", "(C)"),
        ("The answer is no. Wait, the answer is: Yes", "Yes"),
        ("(B) 12/14/2026", "(B)"),
        ("\n\n 17", "17"),
        ("] ) >", "] ) >"),
        ("The answer is\n3", "3"),
        ("", ""),
        ("yes", "yes"),
        ("B", "B"),
    ],
)
def test_answers_are_read_where_they_stand(reply: str, answer: str) -> None:
    assert answer_of(reply) == answer


def test_prompts_give_shots_with_a_chain_of_thought(tmp_path: Path) -> None:
    publish(tmp_path, "navigate", ["Yes"])
    zero = BBH.measure([OracleSubject(gold)], tmp_path, [], QUICK, tmp_path)
    assert zero.rows[0].prompt == "Q: Is it 0?\nA:"
    assert "no chain of thought" in zero.figures[0].protocol
    write(tmp_path / "cot-prompts/navigate.txt", PROMPT)
    full = BBH.measure([OracleSubject(lambda doc: "Hm. So the answer is Yes.")], tmp_path, [], QUICK, tmp_path)
    asked = full.rows[0].prompt
    assert asked.startswith("Tell whether it is so.\n\nQ: One is one?\nA: Let's think step by step.\nIt is.\n\nSo the")
    assert asked.endswith("So the answer is Yes.\n\nQ: Is it 0?\nA: Let's think step by step.")
    assert [(one.shots, one.value) for one in full.figures] == [(3, 1.0)]
    one = BBH.measure([OracleSubject(gold)], tmp_path, [], QUICK._replace(shots={"bbh": 1}), tmp_path)
    assert (one.rows[0].prompt.count("Q: "), one.figures[0].shots) == (2, 1)


def test_shots_that_are_not_there_are_told(tmp_path: Path) -> None:
    publish(tmp_path, "navigate", ["Yes"])

    def measure(shots: int | None) -> None:
        settings = QUICK._replace(shots={} if shots is None else {"bbh": shots})
        BBH.measure([OracleSubject(gold)], tmp_path, [], settings, tmp_path)

    with pytest.raises(UserError, match="cot-prompts: not found"):
        measure(3)
    write(tmp_path / "cot-prompts/snarks.txt", PROMPT)
    with pytest.raises(UserError, match=r"navigate\.txt: not found"):
        measure(None)
    write(tmp_path / "cot-prompts/navigate.txt", PROMPT)
    with pytest.raises(UserError, match="3 examples, 4 shots are wanted"):
        measure(4)
    write(tmp_path / "cot-prompts/navigate.txt", "nothing")
    with pytest.raises(UserError, match="wanted a description and examples"):
        read_prompt(tmp_path / "cot-prompts/navigate.txt")


def test_the_hubs_copy_and_the_repository_read_the_same(tmp_path: Path) -> None:
    rows = publish(tmp_path / "own", "navigate", ["Yes", "No"])
    publish(tmp_path / "clone/bbh", "navigate", ["Yes", "No"])
    write_parquet(tmp_path / "hub/navigate/test-00000-of-00001.parquet", rows)
    found = [BBH.measure([OracleSubject(gold)], tmp_path / at, [], QUICK, tmp_path) for at in ("own", "clone", "hub")]
    assert found[0] == found[1] == found[2]


def test_a_file_of_another_format_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no task; wanted: <task>\.json"):
        BBH.measure([OracleSubject(gold)], tmp_path, [], QUICK, tmp_path)
    for text in ("[]", "{", '{"examples": [{"input": "x"}]}'):
        write(tmp_path / "navigate.json", text)
        with pytest.raises(UserError, match=r"navigate\.json: wanted"):
            BBH.find(tmp_path)
    write(tmp_path / "navigate.json", '{"examples": []}')
    with pytest.raises(UserError, match="holds no question"):
        BBH.find(tmp_path)
    write(tmp_path / "navigation.json", '{"examples": []}')
    (tmp_path / "navigate.json").unlink()
    with pytest.raises(UserError, match="'navigation' is no task of BIG-Bench Hard"):
        BBH.find(tmp_path)

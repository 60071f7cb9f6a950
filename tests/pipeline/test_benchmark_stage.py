"""The benchmark stage by itself, on a tiny model: every task that needs no environment of its own, in one run."""

import json
from pathlib import Path
from typing import Any

import pytest

from stages.pipeline.files import read_parquet
from tests.benchmark_tasks.test_sandbox import HAS_WALLS
from tests.judging.servers import Act, Body, say, serving
from tests.pipeline.stages_alone import Project

RUN = ("stages.benchmark", "run")
TASKS = [
    "mmlu", "arena", "alpaca_eval", "glue/mrpc", "superglue/copa", "bigbench", "bbh", "evals", "humaneval", "squad",
    "triviaqa",
]  # fmt: skip


@pytest.fixture
def project(tmp_path: Path, tiny_llama: Path) -> Project:
    project = Project(tmp_path, tiny_llama)
    project.set("benchmark", resamples=100, precision="fp32", samples=1, limit=2)
    return project


def place(project: Project, name: str, content: Any) -> None:
    """Text as it is, a list as JSON Lines, else JSON."""
    path = project.folder / "data/benchmarks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def place_all(project: Project) -> None:
    """A few rows of each, in the publishers' formats."""
    lines = "".join(f"What is {at}+1?,{at},{at + 1},{at + 2},{at + 3},B\n" for at in range(5))
    for split in ("dev", "test"):
        place(project, f"mmlu/{split}/anatomy_{split}.csv", lines)
    place(project, "arena/question.jsonl", [{"question_id": 7, "category": "own", "turns": ["Count.", "Go on."]}])
    baseline = [{"dataset": "koala", "instruction": f"Say {at}.", "output": f"{at}", "generator": "old"} for at in "12"]
    place(project, "alpaca_eval/alpaca_eval.json", json.dumps(baseline))
    head = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    place(project, "glue/MRPC/dev.tsv", f"{head}1\t5\t6\tIt rains.\tRain falls.\n0\t7\t8\tIt rains.\tCats sleep.\n")
    copa = {"premise": "It rained.", "choice1": "It was wet.", "choice2": "It was dry.", "question": "effect"}
    place(project, "superglue/COPA/val.jsonl", [copa | {"label": 0, "idx": at} for at in range(2)])
    examples = [{"input": f"{at}+1=", "target_scores": {f"{at + 1}": 1, "0": 0}} for at in (1, 2)]
    about = {"name": "sums", "description": "", "keywords": [], "metrics": ["multiple_choice_grade"]}
    task = about | {"preferred_score": "multiple_choice_grade", "examples": examples}
    place(project, "bigbench/sums/task.json", task)
    place(project, "bbh/navigate.json", {"examples": [{"input": "Step. Back?", "target": "Yes"}]})
    evals = {"id": "sum.v0", "metrics": ["accuracy"]}
    spec = {"class": "evals.elsuite.basic.match:Match", "args": {"samples_jsonl": "sum/samples.jsonl"}}
    place(project, "evals/evals/sum.yaml", {"sum": evals, "sum.v0": spec})
    chat = [{"role": "user", "content": "1+1?"}]
    place(project, "evals/data/sum/samples.jsonl", [{"input": chat, "ideal": "2"}])
    problem = {
        "task_id": "HumanEval/0",
        "prompt": "def one():\n",
        "entry_point": "one",
        "canonical_solution": "    return 1\n",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
    }
    place(project, "humaneval/HumanEval.jsonl", [problem])
    question = {"id": "q1", "question": "What fell?", "answers": [{"text": "Rain", "answer_start": 0}]}
    paragraph = {"context": "Rain fell.", "qas": [question]}
    squad = {"version": "1.1", "data": [{"title": "t", "paragraphs": [paragraph]}]}
    place(project, "squad/dev-v1.1.json", squad)
    answer = {"Value": "Rain", "Aliases": ["Rain"], "NormalizedAliases": ["rain"], "NormalizedValue": "rain"}
    trivia = {"Question": "What fell?", "QuestionId": "t1", "Answer": answer}
    place(project, "triviaqa/qa/wikipedia-dev.json", {"Data": [trivia], "Domain": "Wikipedia"})


def first(_: Body, __: int) -> Act:
    """A judge for which whatever is shown first is better."""
    return say("[[A]]\nm")


def test_without_tasks_it_costs_nothing_and_says_how_to_go_on(project: Project) -> None:
    _, said = project.run(*RUN)
    assert "benchmark list" in said
    assert json.loads((project.folder / "metrics/benchmark.json").read_text()) == {}
    assert [path.name for path in (project.folder / "data/benchmark").iterdir()] == ["tasks.json"]


def test_every_task_on_both_models(project: Project) -> None:
    place_all(project)
    tasks = TASKS if HAS_WALLS else [task for task in TASKS if task != "humaneval"]
    with serving(first) as server:
        judge = {"base_url": server.url, "model": "tiny", "api_key_env": None}
        project.set("benchmark", tasks=tasks, judge=judge, allow_code_execution=True)
        out, said = project.run(*RUN)
        figures = json.loads((project.folder / "metrics/benchmark.json").read_text())
        names = {name.removesuffix(" (sample)").split("/")[0] for name in figures}
        assert names == {task.split("/")[0] for task in tasks}
        assert all(name.endswith(" (sample)") for name in figures if not name.startswith(("evals", "arena")))
        for one in figures.values():
            for values in one["metrics"].values():
                assert "fine-tuned" in values
        assert "mmlu/anatomy (sample)" in out
        assert "not to be held against published figures" in out
        assert "MLflow is left out" not in said
        rows = read_parquet(project.folder / "data/benchmark/mmlu/rows.parquet")
        assert [(row["model"], row["id"]) for row in rows] == [(m, i) for m in ("fine-tuned", "base") for i in "01"]
        assert rows[0]["prompt"].startswith("<|im_start|>system\nThe following are multiple choice questions")
        # Again: nothing is measured and nobody is asked.
        asked, before = len(server.chats), (project.folder / "metrics/benchmark.json").read_bytes()
        _, said = project.run(*RUN)
        assert said.count("kept from before") >= 2 * (len(tasks) - 3)
        assert len(server.chats) == asked
        assert (project.folder / "metrics/benchmark.json").read_bytes() == before


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"tasks": ["mmlu"]}, "data/benchmarks/mmlu: no data of MMLU; get it with `python -m stages.benchmark fetch"),
        ({"tasks": ["triviqa"]}, "no benchmark is called 'triviqa'; did you mean triviaqa?"),
        ({"tasks": "mmlu"}, "benchmark.tasks: input should be a valid list"),
        ({"tasks": [], "shots": {"mmlu": -1}}, "benchmark.shots.mmlu: input should be greater than or equal to 0"),
    ],
)
def test_bad_input_is_told_in_one_line(project: Project, values: dict[str, Any], words: str) -> None:
    project.set("benchmark", **values)
    assert words in project.fails(*RUN)


def test_what_needs_a_judge_or_a_permission_says_so_before_anything_runs(project: Project) -> None:
    place_all(project)
    project.set("benchmark", tasks=["mmlu", "alpaca_eval"])
    assert "alpaca_eval needs a judge; set benchmark.judge" in project.fails(*RUN)
    project.set("benchmark", tasks=["mmlu", "humaneval"])
    assert "set benchmark.allow_code_execution: true" in project.fails(*RUN)
    place(project, "mmlu/test/anatomy_test.csv", "")
    project.set("benchmark", tasks=["mmlu"])
    assert "anatomy_test.csv" in project.fails(*RUN)


def test_the_list_names_every_benchmark_and_the_command_that_gets_it(project: Project) -> None:
    place_all(project)
    out, _ = project.run("stages.benchmark", "list")
    for task in (*TASKS, "helm", "squad2"):
        assert task.split("/")[0] in out
    assert "fetch squad2" in out
    assert "1 of 164 rows (sample)" in out

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.benchmarks.benchmark import Found
from stages.benchmarks.bigbench import BENCHMARKS, PUBLISHED, gold_choice
from stages.benchmarks.bigbench_tasks import paths, prompts, read
from stages.pipeline.errors import UserError
from tests.benchmark_tasks.making_b import QUICK, measured, write
from tests.benchmark_tasks.oracles import OracleSubject

(BIGBENCH,) = BENCHMARKS
LETTERS = ["a", "b", "c", "d"]
SUMS = [("1 + 4 =", "5", ["5", "4", "6", "3"]), ("4 + 9 =", "13", ["13", "4", "6", "3"])]


def publish(folder: Path, name: str, examples: list[dict[str, Any]] | None, metrics: list[str], **more: Any) -> Path:
    task: dict[str, Any] = {"name": name.split("/")[-1], "metrics": metrics, "preferred_score": metrics[0], **more}
    write(folder / name / "task.json", json.dumps(task if examples is None else task | {"examples": examples}))
    return folder / name / "task.json"


def choices(count: int, of: str = "is it") -> list[dict[str, Any]]:
    return [
        {"input": f"{of} {at}?", "target_scores": {one: int(one == LETTERS[at % 4]) for one in LETTERS}}
        for at in range(count)
    ]


def texts(count: int) -> list[dict[str, Any]]:
    return [{"input": f"next to {at}", "target": str(at + 1)} for at in range(count)]


def gold(doc: Any) -> Any:
    """For a choice its number, for a text the first target."""
    return [doc["targets"][0], gold_choice(doc)] if doc["scores"] else doc["targets"][0]


def test_the_published_tasks_are_those_of_the_release() -> None:
    assert (len(PUBLISHED), sum(PUBLISHED.values())) == (167, 2631256)


def test_gold_is_all_right_and_shuffled_gold_about_chance(tmp_path: Path) -> None:
    publish(tmp_path, "choosing", choices(60), ["multiple_choice_grade"])
    publish(tmp_path, "writing", texts(30), ["exact_str_match", "bleu", "rouge"])
    right = measured(BIGBENCH, tmp_path, OracleSubject(gold))
    most = {
        "bigbench normalized_aggregate_score", "bigbench/choosing multiple_choice_grade",
        "bigbench/choosing normalized_aggregate_score", "bigbench/writing exact_str_match",
        "bigbench/writing normalized_aggregate_score", "bigbench/writing rouge1", "bigbench/writing rougeLsum",
    }  # fmt: skip
    assert {name for name, one in right.items() if one.value == 1} == most
    assert right["bigbench/choosing calibration_multiple_choice_brier_score"].value < 1e-6
    chance = measured(BIGBENCH, tmp_path, OracleSubject(gold, shuffled=True))
    assert chance["bigbench/choosing multiple_choice_grade"].value == pytest.approx(0.25, abs=0.15)
    assert chance["bigbench/choosing normalized_aggregate_score"].value == pytest.approx(0, abs=0.2)
    assert chance["bigbench/writing exact_str_match"].value < 0.2
    whole = chance["bigbench normalized_aggregate_score"]
    assert (whole.run, whole.out_of, whole.scope, whole.n) == (2, 167, "sample", 90)
    assert next(iter(right)) == "bigbench normalized_aggregate_score"


def always(number: int) -> Callable[[Any], int]:
    return lambda doc: number


def test_soft_targets_are_worth_what_the_chosen_one_has(tmp_path: Path) -> None:
    soft = [{"input": f"{at}", "target_scores": {"x": 0.5, "y": 0.3, "z": 0.2}} for at in range(4)]
    publish(tmp_path, "soft", soft, ["multiple_choice_grade"])
    grade = "bigbench/soft multiple_choice_grade"
    values = [measured(BIGBENCH, tmp_path, OracleSubject(always(at)))[grade].value for at in range(3)]
    assert values == pytest.approx([0.5, 0.3, 0.2])
    normal = measured(BIGBENCH, tmp_path, OracleSubject(lambda doc: 0))["bigbench/soft normalized_aggregate_score"]
    assert normal.value == pytest.approx((0.5 - 1 / 3) / (1 - 1 / 3))  # chance is the mean of the scores


def test_a_task_of_parts_is_their_mean(tmp_path: Path) -> None:
    publish(tmp_path, "sums", None, ["exact_str_match"])
    publish(tmp_path, "sums/few", texts(4), ["exact_str_match"])
    publish(tmp_path, "sums/many", texts(12), ["exact_str_match"])
    assert BIGBENCH.find(tmp_path).rows == {"sums": 16}
    figures = measured(BIGBENCH, tmp_path, OracleSubject(lambda doc: "1"))
    assert {name: round(one.value, 6) for name, one in figures.items()} == {
        "bigbench/sums exact_str_match": round((1 / 4 + 1 / 12) / 2, 6),
        "bigbench/sums normalized_aggregate_score": round((1 / 4 + 1 / 12) / 2, 6),
    }
    rows = BIGBENCH.measure([OracleSubject(gold)], tmp_path, [], QUICK, tmp_path).rows
    assert {row.task for row in rows} == {"bigbench/sums/few", "bigbench/sums/many"}


def test_parts_with_different_metrics_have_each_its_own(tmp_path: Path) -> None:
    write(tmp_path / "both/task.json", '{"name": "both"}')
    publish(tmp_path, "both/choosing", choices(8), ["multiple_choice_grade"])
    publish(tmp_path, "both/writing", texts(4), ["exact_str_match"])
    figures = measured(BIGBENCH, tmp_path, OracleSubject(gold))
    assert next(iter(figures)) == "bigbench/both normalized_aggregate_score"
    assert [figures[f"bigbench/both {metric}"].n for metric in ("multiple_choice_grade", "exact_str_match")] == [8, 4]


def test_prompts_are_those_of_the_publishers_own_test(tmp_path: Path) -> None:
    how = {"example_input_prefix": "Q: ", "example_output_prefix": " A: ", "few_shot_example_separator": " "}
    texts = [{"input": ask, "target": f"{target} is the answer."} for ask, target, _ in SUMS]
    path = publish(tmp_path, "sums", texts, ["exact_str_match"], **how)
    assert list(prompts(read("sums", path)[0], shots=1, limit=None, seed=0)) == [
        "Q: 4 + 9 = A: 13 is the answer. Q: 1 + 4 = A: ",
        "Q: 1 + 4 = A: 5 is the answer. Q: 4 + 9 = A: ",
    ]


@pytest.mark.parametrize("turned", [False, True])
def test_choices_stand_in_an_order_that_does_not_tell_the_right_one(tmp_path: Path, turned: bool) -> None:
    examples = [
        {"input": ask, "target_scores": {one: int(one == target) for one in (own[::-1] if turned else own)}}
        for ask, target, own in SUMS
    ]
    path = publish(
        tmp_path, "sums", examples, ["multiple_choice_grade"], choice_prefix=" choice: ", task_prefix="Sum. "
    )
    (leaf,) = read("sums", path)
    # numpy.random.RandomState(42).permutation(4) is 1, 3, 0, 2, of the choices in alphabetical order
    assert list(prompts(leaf, shots=0, limit=1)) == ["Sum. \nQ: 1 + 4 = choice: 4 choice: 6 choice: 3 choice: 5\nA: "]
    assert [one.targets for one in leaf.examples] == [["5"], ["13"]]
    path = publish(tmp_path, "sums", examples, ["multiple_choice_grade"], append_choices_to_input=False)
    assert next(prompts(read("sums", path)[0], shots=0, limit=None)) == "\nQ: 1 + 4 =\nA: "


def test_shots_are_other_examples_with_any_of_their_targets(tmp_path: Path) -> None:
    several: list[dict[str, Any]] = [{"input": f"<{at}>", "target": [f"[{at}a]", f"[{at}b]"]} for at in range(6)]
    publish(tmp_path, "several", several, ["exact_str_match"])
    settings = QUICK._replace(shots={"bigbench": 3}, limit=5)
    found = BIGBENCH.measure([OracleSubject(gold)], tmp_path, [], settings, tmp_path)
    assert (found.figures[0].n, found.figures[0].shots, found.figures[0].scope) == (5, 3, "sample")
    for at, row in enumerate(found.rows):
        assert row.prompt.count("\nA: [") == 3
        assert f"[{at}" not in row.prompt
    assert any("b]" in row.prompt for row in found.rows)
    assert any("a]" in row.prompt for row in found.rows)
    with pytest.raises(UserError, match="6 examples, for 6 shots more are wanted"):
        measured(BIGBENCH, tmp_path, OracleSubject(gold), QUICK._replace(shots={"bigbench": 6}))


def test_responses_are_cut_and_matched_as_the_task_says(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"input": "mate?", "target": ["Qh7#", "Rg5#"]}, {"input": "mate!", "target": "Ra8#"}]
    publish(tmp_path, "chess", rows, ["exact_str_match"], stop_string="#")
    publish(tmp_path, "digits", texts(4), ["exact_str_match"], output_regex=r"[-+]?\d+")
    publish(tmp_path, "plain", texts(4), ["exact_str_match"])

    def reply(doc: Any) -> str:
        return f"{doc['targets'][-1]} it is; or {doc['targets'][0]}"

    assert {
        name: one.value for name, one in measured(BIGBENCH, tmp_path, OracleSubject(reply)).items() if "exact" in name
    } == {
        "bigbench/chess exact_str_match": 1,
        "bigbench/digits exact_str_match": 1,
        "bigbench/plain exact_str_match": 0,  # the first sentence is more than the answer
    }
    nothing = measured(BIGBENCH, tmp_path, OracleSubject(lambda doc: "none"), wanted=["digits"])
    assert nothing["bigbench/digits exact_str_match"].value == 0


def test_all_metrics_of_all_kinds_come_through(tmp_path: Path) -> None:
    both = [one | {"target": LETTERS[at % 4]} for at, one in enumerate(choices(8))]
    metrics = ["log_likelihood", "macro_f1", "weighted_probabilities", "case_insensitive_str_match", "sequence_f1"]
    publish(tmp_path, "all", both, metrics)
    figures = measured(BIGBENCH, tmp_path, OracleSubject(gold))
    values = {name.split()[1]: round(one.value, 6) for name, one in figures.items()}
    likely = {"log_likelihood": 0, "log_likelihood_per_word": 0, "log_likelihood_per_char": 0}
    assert values == likely | dict.fromkeys([*metrics[1:], "normalized_aggregate_score"], 1) | {
        "weighted_probabilities": pytest.approx(1, abs=1e-3)
    }
    assert next(iter(values)) == "log_likelihood"
    rows = BIGBENCH.measure([OracleSubject(gold)], tmp_path, [], QUICK, tmp_path).rows
    assert {row.id.split(":")[1] for row in rows} == {"choice", "text", "likelihood"}


def test_a_metric_that_is_not_there_is_told_beside_the_others(tmp_path: Path) -> None:
    publish(tmp_path, "talk", texts(4), ["bleurt", "rouge"])
    publish(tmp_path, "sums", texts(4), ["exact_str_match"])
    publish(tmp_path, "more", texts(4), ["exact_str_match"])
    figures = measured(BIGBENCH, tmp_path, OracleSubject(gold))
    assert "not measured: bleurt" in figures["bigbench/talk rouge1"].protocol
    assert "bigbench/talk normalized_aggregate_score" not in figures
    assert figures["bigbench normalized_aggregate_score"].run == 2
    publish(tmp_path, "talk", texts(4), ["bleurt"])
    with pytest.raises(UserError, match="nothing to measure: bleurt is not there"):
        measured(BIGBENCH, tmp_path, OracleSubject(gold))


def test_what_stands_twice_counts_once_and_an_empty_choice_is_no_crash(tmp_path: Path) -> None:
    odd: list[dict[str, Any]] = [
        {"input": "x", "target_scores": {"": 1, "y": 0}},
        {"input": "x", "target_scores": {"": 0, "y": 1}},
    ]
    publish(tmp_path, "odd", [*odd, odd[0]], ["multiple_choice_grade"])
    assert BIGBENCH.find(tmp_path) == Found({"odd": 2}, {"odd": 0} | PUBLISHED)
    figures = measured(BIGBENCH, tmp_path, OracleSubject(gold_choice))
    assert figures["bigbench/odd multiple_choice_grade"].value == 1


def test_tasks_lie_flat_in_folders_or_in_the_repository(tmp_path: Path) -> None:
    flat = publish(tmp_path, "sums", texts(3), ["exact_str_match"])
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat/sums.json").write_text(flat.read_text())
    publish(tmp_path / "clone/bigbench/benchmark_tasks", "sums", texts(3), ["exact_str_match"])
    assert [BIGBENCH.find(tmp_path / at).rows for at in ("flat", "clone", "")] == [{"sums": 3}] * 3
    (tmp_path / "sums.json").write_text(flat.read_text())
    with pytest.raises(UserError, match="sums is there twice"):
        paths(tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "not JSON"),
        ("[]", "list where a task of BIG-bench is wanted"),
        ('{"name": "x"}', "has neither 'examples' nor folders"),
        ('{"examples": [], "metrics": ["exact_str_match"]}', "holds no example"),
        ('{"examples": [{"input": "x", "target": "y"}]}', "it names no metric"),
        ('{"examples": [{"input": "x", "target": "y"}], "metrics": ["vibes"]}', "metric 'vibes' is not known; known: "),
        ('{"examples": [{"input": "x"}], "metrics": ["bleu"]}', "example 1: wanted"),
        ('{"examples": [{"target": "x"}], "metrics": ["bleu"]}', "example 1: wanted"),
        ('{"examples": [{"input": "x", "target": 5}], "metrics": ["bleu"]}', "example 1: wanted"),
        ('{"examples": ["x"], "metrics": ["bleu"]}', "example 1: wanted"),
        (
            '{"examples": [{"input": "x", "target_scores": {"a": 0, "b": 0}}], "metrics": ["bleu"]}',
            "no choice is better",
        ),
        ('{"examples": [{"input": "x", "target": "y"}], "metrics": ["macro_f1"]}', "no 'target_scores'"),
        (
            '{"examples": [{"input": "x", "target_scores": {"a": 0.5, "b": 0}}], "metrics": ["macro_f1"]}',
            "macro_f1 needs one choice of score 1",
        ),
        (
            '{"examples": [{"input": "x", "target": "y"}], "metrics": ["rouge"], "preferred_score": "rouge"}',
            "'rouge' is none of",
        ),
    ],
)
def test_a_file_that_is_no_task_is_told(tmp_path: Path, text: str, told: str) -> None:
    write(tmp_path / "odd.json", text)
    with pytest.raises(UserError, match=rf"odd\.json: .*{told}"):
        measured(BIGBENCH, tmp_path, OracleSubject(gold))


def test_no_tasks_at_all_are_told(tmp_path: Path) -> None:
    assert BIGBENCH.find(tmp_path).rows == {}
    with pytest.raises(UserError, match=r"holds no task; wanted: <task>/task\.json"):
        measured(BIGBENCH, tmp_path, OracleSubject(gold))

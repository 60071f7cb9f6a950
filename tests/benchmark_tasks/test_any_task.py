from pathlib import Path
from types import SimpleNamespace

import pytest

from stages.benchmarks import any_task as module
from stages.benchmarks.any_task import any_task
from stages.pipeline.errors import UserError
from tests.benchmark_tasks.making_b import QUICK, measured, write
from tests.benchmark_tasks.oracles import OracleSubject

ROWS = """
from datasets import Dataset

def load(count=4, **_):
    return {"test": Dataset.from_list([{"text": f"{at}?", "label": at % 2} for at in range(count)])}
"""
TASK = """
task: {name}
custom_dataset: !function rows.load
output_type: multiple_choice
test_split: test
doc_to_text: text
doc_to_choice: ["no", "yes"]
doc_to_target: label
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1
  count: {count}
{more}
"""
GROUP = """
group: pair
task: [coin, dice]
aggregate_metric_list:
  - metric: acc
    weight_by_size: {weighted}
"""


def bring(folder: Path, name: str, count: int, more: str = "") -> None:
    write(folder / "rows.py", ROWS)
    write(folder / f"{name}.yaml", TASK.format(name=name, count=count, more=more))


def right_where_few(doc: dict[str, str]) -> int:
    """Right in the first four rows."""
    return int(doc["label"]) if int(doc["text"][:-1]) < 4 else 1 - int(doc["label"])


def test_a_task_of_ones_own_runs_as_lm_eval_has_it(tmp_path: Path) -> None:
    bring(tmp_path, "coin", 8)
    benchmark = any_task("coin")
    assert benchmark.name == "lm_eval:coin"
    assert benchmark.find(tmp_path).rows == {"coin": 0}
    (found,) = measured(benchmark, tmp_path, OracleSubject(right_where_few)).values()
    assert (found.task, found.metric, found.value, found.n) == ("lm_eval:coin", "acc", 0.5, 8)
    assert (found.scope, found.shots, found.protocol) == ("full", 0, "as lm-eval has it (multiple_choice)")
    (cut,) = measured(benchmark, tmp_path, OracleSubject(right_where_few), QUICK._replace(limit=4)).values()
    assert (cut.scope, cut.value) == ("sample", 1.0)


def test_shots_can_be_set(tmp_path: Path) -> None:
    bring(tmp_path, "coin", 4)
    subject, settings = OracleSubject(right_where_few), QUICK._replace(shots={"lm_eval:coin": 2})
    found = any_task("coin").measure([subject], tmp_path, [], settings, tmp_path)
    assert found.figures[0].shots == 2
    assert [row.prompt.count("?") for row in found.rows] == [3] * 4


@pytest.mark.parametrize(("weighted", "value"), [("true", (4 + 4) / 12), ("false", (0.5 + 1) / 2)])
def test_a_group_has_its_own_figure_beside_its_tasks(tmp_path: Path, weighted: str, value: float) -> None:
    bring(tmp_path, "coin", 8)
    bring(tmp_path, "dice", 4)
    write(tmp_path / "pair.yaml", GROUP.format(weighted=weighted))
    found = measured(any_task("pair"), tmp_path, OracleSubject(right_where_few))
    assert list(found) == ["lm_eval:pair/coin acc", "lm_eval:pair/dice acc", "lm_eval:pair acc"]
    whole = found["lm_eval:pair acc"]
    assert whole.value == pytest.approx(value)
    assert (whole.run, whole.out_of, whole.n) == (2, 2, 12)


def test_a_task_that_cannot_run_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = OracleSubject(right_where_few)
    bring(tmp_path / "a", "coin", 4, "unsafe_code: true")
    with pytest.raises(UserError, match=r"lm_eval:coin: coin runs code that a model wrote"):
        measured(any_task("coin"), tmp_path / "a", subject)
    write(tmp_path / "b" / "far.yaml", TASK.format(name="far", count=1, more="").replace("custom", "#"))
    write(tmp_path / "b" / "far.yaml", (tmp_path / "b" / "far.yaml").read_text() + "dataset_path: nobody/nothing\n")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"lm_eval:far: its data cannot be had: .*nobody/nothing.*HF_HUB_OFFLINE"):
        measured(any_task("far"), tmp_path / "b", subject)
    write(tmp_path / "c" / "odd.yaml", TASK.format(name="odd", count=1, more="").replace("rows.load", "odd_rows.load"))
    write(tmp_path / "c" / "odd_rows.py", "import a_package_that_is_not_there\n")
    with pytest.raises(UserError, match=r"lm_eval:odd: needs a package that is not there .*a_package"):
        measured(any_task("odd"), tmp_path / "c", subject)


def test_an_unknown_task_is_told_with_the_nearest_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all that lm-eval ships; reading their names takes too long for a test."""
    monkeypatch.setattr(
        module, "_shipped", lambda: SimpleNamespace(all_tasks=["arc_easy", "arc_challenge", "hellaswag"])
    )
    with pytest.raises(UserError, match=r"lm_eval:hellaswg: lm-eval knows no such task; did you mean hellaswag\?"):
        any_task("hellaswg").find(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"^lm_eval:hellaswg: lm-eval knows no such task; did you mean hellaswag\?$"):
        measured(any_task("hellaswg"), tmp_path / "nothing", OracleSubject(right_where_few))
    with pytest.raises(UserError, match=r"see `lm-eval ls tasks` for all names"):
        any_task("xyzzy").find(tmp_path / "nothing")

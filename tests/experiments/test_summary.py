"""The lines that end a run say what the judge is worth, also where it is worth nothing."""

from typing import Any

from stages.experiments.summary import summarize

SPLIT = {"train": 8, "validation": 2, "test": 2, "leaked_rows": 0}
TOKENS = {"train": {"supervised_tokens": 99}}
FINETUNED = {
    "epochs_trained": 2.0, "first_validation_loss": 2.0, "best_validation_loss": 1.0, "overfit_epoch": 1.0,
    "best_epoch": 1.0, "best_step": 7, "overfit_confirmed": 1, "overfit_p_value": 0.01,
}  # fmt: skip
JUDGED = {
    "judge": "gpt", "rows": 162, "score": 40.0, "score_low": 30.0, "score_high": 50.0, "confidence": 0.95,
    "base_score": 20.0,
    "win_rate": 0.75, "rouge_l": 0.5, "base_rouge_l": 0.25, "judge_auc": 0.9, "judge_reliable": 1,
    "judge_auc_by_corruption": {"empty": 1.0, "changed_fact": 0.6}, "invalid_fraction": 0.0,
}  # fmt: skip


def lines(**changes: Any) -> dict[str, str]:
    judged = {name: value for name, value in (JUDGED | changes).items() if value is not None}
    found = summarize(SPLIT, TOKENS, FINETUNED, judged, {}, {})
    return {line[:12].strip(): line[13:] for line in found if line}


def test_the_score_stands_beside_the_judges_auc() -> None:
    shown = lines()
    assert shown["Score"] == "40.0 (95% interval 30.0 to 50.0) of 100; base model 20.0; judge AUC 0.90"
    assert shown["Win rate"] == "0.75 against the base model"
    assert shown["Judge"] == "gpt; of corrupted answers it misses most often: changed fact (AUC 0.60)"


def test_too_few_rows_are_said() -> None:
    assert lines(rows=29)["Score"].endswith("; ONLY 29 ROWS, TOO FEW TO TELL")
    assert "FEW" not in lines(rows=30)["Score"]


def test_a_judge_that_misses_nothing() -> None:
    shown = lines(judge_auc_by_corruption={"empty": 1.0, "changed_fact": 1.0})
    assert shown["Judge"] == "gpt; of corrupted answers it misses most often: none"


def test_a_judge_that_is_no_use_is_called_that() -> None:
    shown = lines(judge_reliable=0, judge_auc=0.55, invalid_fraction=0.25)
    assert shown["Judge"].endswith("; IT CANNOT BE RELIED ON: read the answers; 25.0% of verdicts invalid")


def test_without_a_readable_verdict() -> None:
    shown = lines(score=None, base_score=None, win_rate=None, judge_auc=None, judge_reliable=0, invalid_fraction=1.0)
    assert shown["Score"] == shown["Win rate"] == "none: not one verdict could be read"
    assert "CANNOT BE RELIED ON" in shown["Judge"]


def test_benchmarks_as_such_stand_below_and_their_parts_do_not() -> None:
    own = {"metrics": {"acc": {"fine-tuned": {"value": 0.25}, "base": {"value": 0.5}}, "f1": {}}}
    found = summarize(SPLIT, TOKENS, FINETUNED, JUDGED, {"mmlu (sample)": own, "mmlu/anatomy": own}, {})
    assert [line for line in found if line.startswith("Benchmark")] == [
        "Benchmark    mmlu (sample) acc: fine-tuned 0.250, base 0.500"
    ]


def test_a_result_of_another_environment_is_called_that() -> None:
    found = summarize(SPLIT, TOKENS, FINETUNED, JUDGED, {}, {"torch": ("2.12.0", "2.13.0"), "gpus": (["A100"], [])})
    assert "Made         in another environment, not here: torch 2.12.0, here 2.13.0; gpus A100, here none" in found

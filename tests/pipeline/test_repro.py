"""The whole pipeline by `dvc repro`, on a tiny model: what runs, what does not, and what it leaves."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import yaml

from stages.instructions.deal import SPLITS
from stages.instructions.prompts import read_prompts
from stages.tokens.arrays import read_arrays
from stages.tokens.labels import IGNORE_INDEX
from stages.tokens.tokenizer import Tokenizer
from tests.pipeline.projects import STAGES, TALKS, TINY, make_project, ran, repro, set_parameter


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, finished: Path) -> Path:
    """A copy of the project in which `dvc repro` has run once, to change."""
    folder = tmp_path_factory.mktemp("first") / "project"
    shutil.copytree(finished, folder, symlinks=True, ignore=shutil.ignore_patterns("mlflow.db*", "mlartifacts"))
    return folder


def read(project: Path, name: str) -> Any:
    return json.loads((project / "metrics" / f"{name}.json").read_text())


def test_it_leaves_what_other_tools_read(finished: Path) -> None:
    formatted = read(finished, "format")
    assert {name: file["schema"] for name, file in formatted["files"].items()} == {
        "instructions.jsonl": "alpaca",
        "talks.jsonl": "messages",
    }
    assert formatted["rows_kept"] == sum(file["rows"] for file in formatted["files"].values())
    split = read(finished, "split")
    assert split["leaked_rows"] == 0
    assert split["train"] + split["validation"] + split["test"] + split["withheld"] == formatted["rows_kept"]
    for name, figures in read(finished, "tokens").items():
        assert figures["examples"] + figures["dropped"] == split[name]
        assert figures["eos_trained_fraction"] == 1.0
    finetuned = read(finished, "finetune")
    losses = pd.read_csv(finished / "metrics/losses.csv")
    assert losses.columns.tolist() == [
        "step", "epoch", "tokens_seen", "train_loss", "validation_loss", "validation_loss_full", "learning_rate",
        "train_accuracy", "validation_accuracy",
    ]  # fmt: skip
    assert losses["validation_loss"].min() == pytest.approx(finetuned["best_validation_loss"], rel=1e-4)
    assert losses.sort_values("validation_loss")["epoch"].iloc[0] == pytest.approx(finetuned["best_epoch"], abs=1e-4)
    assert losses["validation_loss"].iloc[-1] < losses["validation_loss"].iloc[0], "it learns"
    responses = pd.read_parquet(finished / "data/responses.parquet")
    assert len(responses) == split["test"]
    assert set(responses["finish_reason"]) <= {"stop", "length"}
    judged = read(finished, "judge")
    keys = ["score", "score_low", "score_high", "base_score", "win_rate", "win_rate_low", "win_rate_high", "judge_auc"]
    assert all(key in judged for key in [*keys, "invalid_fraction", "exact_match", "token_f1", "rouge_l"])
    assert judged["score_low"] <= judged["score"] <= judged["score_high"]
    assert set(judged["by_category"]) == set(responses["category"])
    assert (finished / "metrics/losses.png").read_bytes().startswith(b"\x89PNG")
    assert list((finished / ".checkpoints").iterdir()) == []
    assert responses["instruction"].iloc[0] in (finished / "data/review.html").read_text(encoding="utf-8")


def test_a_conversation_is_trained_on_every_answer_and_on_nothing_else(finished: Path) -> None:
    tokenizer = Tokenizer(finished / "data/base_model")
    talks = 0
    for name in SPLITS:
        arrays = read_arrays(finished / "data/tokens" / name)
        prompts = {prompt.id: prompt for prompt in read_prompts(finished / f"data/split/{name}.parquet")}
        assert set(arrays.ids) == set(prompts)
        for number, id in enumerate(arrays.ids):
            here = arrays.example == number
            learned = tokenizer.decode(arrays.labels[here & (arrays.labels != IGNORE_INDEX)].tolist())
            answers = [text for role, text in prompts[id].segments if role == "response"]
            assert learned == "".join(f"{text}<|im_end|>" for text in answers)
            talks += len(answers) == 2
    assert talks == TALKS


def test_mlflow_mirrors_it(finished: Path) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{finished}/mlflow.db")
    experiment = client.get_experiment_by_name("onset")
    assert experiment is not None
    parent, judge = (
        client.search_runs([experiment.experiment_id], f"tags.kind = '{kind}'")[-1] for kind in ("finetune", "judge")
    )
    assert parent.info.status == judge.info.status == "FINISHED"
    losses = pd.read_csv(finished / "metrics/losses.csv")
    history = client.get_metric_history(parent.info.run_id, "validation_loss")
    assert [point.step for point in history] == losses["step"].tolist()
    assert [point.value for point in history] == pytest.approx(losses["validation_loss"].tolist(), rel=1e-4)
    assert parent.data.metrics["overfit_epoch"] == read(finished, "finetune")["overfit_epoch"]
    assert judge.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert judge.data.metrics["score"] == read(finished, "judge")["score"]
    assert judge.data.metrics["best_epoch"] == read(finished, "finetune")["best_epoch"]
    assert {"finetune.learning_rate", "judge.seed", "split.salt"} <= set(judge.data.params)
    assert "data.responses" in judge.data.tags
    assert {file.path for file in client.list_artifacts(judge.info.run_id)} >= {"review.html", "scores.json"}
    assert "losses.png" in {file.path for file in client.list_artifacts(parent.info.run_id)}


def test_nothing_runs_twice(project: Path) -> None:
    assert ran(repro(project)) == []


def test_a_parameter_of_judge_reruns_judge_alone_and_mlflow_may_be_dead(project: Path) -> None:
    before = read(project, "judge")
    set_parameter(project, "judge.confidence", 0.5)
    printed = repro(project, MLFLOW_TRACKING_URI="http://127.0.0.1:9", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert ran(printed) == ["judge"]
    assert "warning: MLflow is left out" in printed
    after = read(project, "judge")
    assert after["score"] == before["score"]
    assert (before["confidence"], after["confidence"]) == (0.95, 0.5)
    set_parameter(project, "judge.confidence", 0.95)
    assert ran(repro(project)) == []
    assert read(project, "judge") == before


def test_the_learning_rate_reruns_four_and_back_restores_them(project: Path) -> None:
    before = (project / "dvc.lock").read_text()
    set_parameter(project, "finetune.learning_rate", "3e-3")
    assert sorted(ran(repro(project))) == ["benchmark", "finetune", "generate", "judge"]
    assert (project / "dvc.lock").read_text() != before
    set_parameter(project, "finetune.learning_rate", TINY["finetune"]["learning_rate"])
    assert ran(repro(project)) == []
    assert (project / "dvc.lock").read_text() == before


def test_from_scratch_again_gives_the_same_lock(finished: Path, tmp_path: Path) -> None:
    source = yaml.safe_load((finished / "params.yaml").read_text())["base_model"]["source"]
    again = make_project(tmp_path, Path(source.removeprefix("path:")))
    assert ran(repro(again)) == STAGES
    assert (again / "dvc.lock").read_text() == (finished / "dvc.lock").read_text()


def test_the_summary_tells_what_the_files_say(finished: Path) -> None:
    command = [sys.executable, "-m", "stages.experiment", "summary"]
    printed = subprocess.run(command, cwd=finished, capture_output=True, text=True, check=True).stdout
    assert f"Score        {read(finished, 'judge')['score']:.1f} (95% interval" in printed
    finetuned = read(finished, "finetune")
    assert ("not seen" in printed) == (finetuned["overfit_epoch"] < 0)
    assert "data/review.html" in printed

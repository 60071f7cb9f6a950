"""`python -m stages.finetune onset`: a finished training looked at again, without training."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from stages.finetune import app
from stages.model.onset import FEWEST_EXAMPLES
from tests.imports import ROOT
from tests.model.histories import OVERFITS, made_history, write_histories
from tests.model.making import train

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with what a training has left that overfits from epoch 0.5 (step 14)."""
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    write_histories(tmp_path, made_history(OVERFITS))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def onset(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["onset", *map(str, arguments)])


def lines_of(*arguments: object) -> list[str]:
    """What is printed, checked to be a table, an end and the picture's place."""
    done = onset(*arguments)
    assert (done.exit_code, done.stderr) == (0, "")
    head, *lines, end, picture = done.stdout.splitlines()
    assert head.split()[:3] == ["step", "epoch", "train"]
    assert picture.startswith("Picture: ")
    return [*lines, end]


def fails(*arguments: object) -> str:
    """The one line it ends with; nothing is written."""
    before = sorted(Path.cwd().rglob("*"))
    done = onset(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert sorted(Path.cwd().rglob("*")) == before
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def stops(lines: list[str]) -> list[int]:
    """Steps of the lines where training would have stopped."""
    return [int(line.split()[0]) for line in lines if line.endswith("<- training stops here")]


@pytest.mark.usefixtures("finished")
def test_by_default_it_says_what_training_said() -> None:
    *lines, end = lines_of()
    assert len(lines) == len(OVERFITS)
    assert stops(lines) == [35]
    assert end.startswith("overfitting from epoch 0.50 (step 14), confirmed, p = ")


@pytest.mark.usefixtures("finished")
def test_a_threshold_of_0_never_confirms() -> None:
    *lines, end = lines_of("--threshold", 0)
    assert stops(lines) == []
    assert not any("confirmed" in line for line in lines)
    assert end.startswith("overfitting from epoch 0.50 (step 14), not confirmed, p = ")


@pytest.mark.usefixtures("finished")
@pytest.mark.parametrize(("patience", "step"), [(1, 21), (2, 28), (4, 42)])
def test_patience_moves_the_stop(patience: int, step: int) -> None:
    assert stops(lines_of("--patience", patience)) == [step]


@pytest.mark.usefixtures("finished")
def test_more_patience_than_there_are_validations_never_confirms() -> None:
    *lines, end = lines_of("--patience", 5)
    assert stops(lines) == []
    assert "not confirmed" in end


def test_thresholds_are_those_of_the_parameters_unless_said(finished: Path) -> None:
    params = yaml.safe_load((finished / "params.yaml").read_text())
    params["finetune"] |= {"overfit_patience": 1, "overfit_p_value": 1e-12}
    (finished / "params.yaml").write_text(yaml.safe_dump(params))
    assert stops(lines_of()) == []
    assert stops(lines_of("--threshold", 0.05)) == [21]
    assert stops(lines_of("--threshold", 0.05, "--patience", 2)) == [28]


def test_few_validation_rows_are_never_confirmed(finished: Path) -> None:
    write_histories(finished, made_history(OVERFITS, count=FEWEST_EXAMPLES - 1))
    assert "not confirmed" in lines_of("--threshold", 1)[-1]
    write_histories(finished, made_history(OVERFITS, count=FEWEST_EXAMPLES))
    assert ", confirmed" in lines_of("--threshold", 1)[-1]


def test_the_picture_is_a_png_and_the_same_every_time(finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    pictures = []
    for number in range(2):
        assert onset("--plot", f"picture {number}.png").stdout.splitlines()[-1] == f"Picture: picture {number}.png"
        pictures.append((finished / f"picture {number}.png").read_bytes())
    assert pictures[0].startswith(PNG)
    assert pictures[0] == pictures[1]
    onset("--threshold", 0)
    assert (finished / "metrics/onset.png").read_bytes().startswith(PNG)
    assert (finished / "metrics/onset.png").read_bytes() != pictures[0], "it says that nothing is confirmed"
    assert {path: path.read_bytes() for path in before} == before, "what training left stays as it is"


def test_what_a_training_left_gives_what_that_training_found(finished: Path, tiny_llama: Path) -> None:
    history = train(tiny_llama, epochs=8)
    write_histories(finished, history)
    assert history.found.confirmed
    *lines, end = lines_of("--patience", 2)
    assert stops(lines) == [history.rows[-1].step]
    best = history.best
    assert end.startswith(f"overfitting from epoch {best.epoch:.2f} (step {best.step}), confirmed, p = ")
    assert end.endswith(f" = {history.found.p_value:.2g}")
    assert stops(lines_of("--patience", 2, "--threshold", 0)) == []


def test_it_neither_trains_nor_loads_what_trains(finished: Path) -> None:
    """In a process of its own, as a user starts it."""
    code = (
        "import json, runpy, sys\n"
        "sys.argv = ['finetune', 'onset', '--patience', '1']\n"
        "try:\n    runpy.run_module('stages.finetune', run_name='__main__')\n"
        "finally:\n    print(json.dumps(sorted(sys.modules)))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    *printed, modules = done.stdout.splitlines()
    assert stops(printed) == [21]
    assert not {"stages.model.training", "stages.model.preparing", "mlflow", "peft"} & set(json.loads(modules))
    assert not (finished / ".checkpoints").exists()
    assert not (finished / "data/checkpoint").exists()


# ---- what can be wrong


def test_missing_files_are_named(finished: Path) -> None:
    (finished / "data/validation_losses.parquet").unlink()
    assert fails() == "error: data/validation_losses.parquet: not found; run `dvc repro` to make it"
    (finished / "metrics/losses.csv").unlink()
    assert fails() == "error: metrics/losses.csv: not found; run `dvc repro finetune` to make it"
    assert "elsewhere.csv: not found" in fails("--losses", "elsewhere.csv")


def test_a_folder_for_a_file_is_named(finished: Path) -> None:
    assert "metrics: is a directory" in fails("--losses", finished / "metrics")


@pytest.mark.parametrize("name", ["metrics/losses.csv", "data/validation_losses.parquet"])
def test_damaged_files_are_named(finished: Path, name: str) -> None:
    path = finished / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert fails().startswith(f"error: {name}: damaged; delete it and run `dvc repro")


def test_files_of_two_trainings_are_named(finished: Path) -> None:
    other = write_histories(finished / "other", made_history([loss * 1.01 for loss in OVERFITS]))[0]
    line = fails("--losses", other)
    assert line == (
        f"error: {other} and data/validation_losses.parquet are not of one training; run `dvc repro finetune`"
    )


def test_a_missing_or_wrong_params_file_is_named(finished: Path) -> None:
    assert "elsewhere.yaml: not found" in fails("--params", "elsewhere.yaml")
    params = yaml.safe_load((finished / "params.yaml").read_text())
    params["finetune"]["overfit_patience"] = 0
    (finished / "params.yaml").write_text(yaml.safe_dump(params))
    assert "finetune.overfit_patience: input should be greater than or equal to 1, got 0" in fails()


@pytest.mark.usefixtures("finished")
@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("--threshold", "1.1", "less than or equal to 1"),
        ("--threshold", "-0.1", "greater than or equal to 0"),
        ("--threshold", "low", "a valid number"),
        ("--patience", "0", "greater than or equal to 1"),
    ],
)
def test_impossible_options_are_refused(option: str, value: str, allowed: str) -> None:
    done = onset(option, value)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith(f"Error: Invalid value for '{option}': Input should be {allowed}")

"""A training that is killed, stopped or hindered, wherever, ends with the same bytes as one that is left alone."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import mlflow
import pandas as pd
import psutil
import pytest
import yaml
from mlflow.entities import Run

from stages.pipeline.tracking_store import EXPERIMENT
from tests.pipeline.forks import WAIT
from tests.pipeline.killing import (
    OUTPUTS,
    SETTINGS,
    Hook,
    Training,
    before,
    die_after,
    die_amid_removal,
    die_before,
    digests,
    hold,
    kill_all,
    replace,
    tell,
    with_little_disk,
    write_inputs,
    write_params,
)
from tests.pipeline.projects import make_project, repro, start_repro

SAVE_EVERY = SETTINGS["save_every"]
TRAIN_STEP = "stages.model.training.train_step"
VALIDATE = "stages.model.training.validate"
SAVE = "stages.model.state.StateFolder.save"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"), tiny_llama)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, inputs: Path) -> Training:
    training = Training(tmp_path_factory.mktemp("undisturbed"), inputs)
    assert training.run() == 0, training.said
    assert all((training.folder / name).exists() for name in OUTPUTS)
    return training


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, inputs: Path, undisturbed: Training) -> Training:
    """Killed, with two states."""
    training = Training(tmp_path_factory.mktemp("killed"), inputs, undisturbed.store)
    assert training.run(die_before(TRAIN_STEP, 3 * SAVE_EVERY + 1)) == -signal.SIGKILL
    return training


@pytest.fixture
def training(tmp_path: Path, inputs: Path, undisturbed: Training) -> Training:
    """One that has not begun."""
    return Training(tmp_path / "training", inputs, undisturbed.store)


@pytest.fixture(autouse=True)
def _no_process_outlives_its_test() -> Iterator[None]:
    yield
    kill_all()


def runs(folder: Path) -> list[Run]:
    """All runs in the MLflow store of this folder."""
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"]))


def check_same(training: Training, undisturbed: Training, *, redone: int) -> None:
    """The same bytes, at most so many steps done again after each break, and nothing left behind."""
    assert digests(training.folder) == digests(undisturbed.folder)
    assert sorted(set(training.steps)) == undisturbed.steps
    assert all(later > earlier - redone for earlier, later in pairwise(training.steps))
    assert list(training.states.iterdir()) == []
    assert ": damaged, " not in training.said
    assert "Traceback" not in training.said


def check_one_run(folder: Path, undisturbed: Training) -> None:
    """One run more than the store had, with every figure of the files at its step, and none twice."""
    known = {run.info.run_id for run in runs(undisturbed.folder)}
    (run,) = (run for run in runs(folder) if run.info.run_id not in known)
    assert run.info.status == "FINISHED"
    losses = pd.read_csv(folder / "metrics/losses.csv")
    expected = {name: list(zip(losses["step"], losses[name], strict=True)) for name in losses.columns if name != "step"}
    summary = json.loads((folder / "metrics/finetune.json").read_text())
    summary["tokens_per_second"] = json.loads((folder / "metrics/speed.json").read_text())["tokens_per_second"]
    expected |= {name: [(0, value)] for name, value in summary.items()}
    if summary["overfit_step"] >= 0:
        line = (summary[f"{which}_validation_loss"] for which in ("first", "best"))
        expected["onset"] = [(summary["overfit_step"], value) for value in line]
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    models = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    assert [model.status for model in models] == ["READY"]
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    assert histories.keys() == expected.keys()
    for name, points in expected.items():
        assert [point.step for point in histories[name]] == [step for step, _ in points], name
        values = pytest.approx([value for _, value in points], rel=1e-5)
        assert name == "tokens_per_second" or [point.value for point in histories[name]] == values, name


# ---- killed


def kill_soon(hook: Hook, training: Training, dice: random.Random) -> int:
    """Kill it when it is there, or up to a step later."""
    process = training.start(hook)
    if process.reached():
        time.sleep(dice.uniform(0, 0.03))
    return process.kill()


def kill_some_time(training: Training, dice: random.Random) -> int:
    process = training.start()
    time.sleep(dice.uniform(0, 3))
    return process.kill()


def kill_dvc_some_time(training: Training, dice: random.Random) -> int:
    with stand_in_for_dvc() as dvc:
        process = training.start(waited_for_by(dvc), DVC_ROOT=str(training.folder))
        time.sleep(dice.uniform(0, 3))
        dvc.kill()
    return process.wait()


def stand_in_for_dvc() -> "subprocess.Popen[bytes]":
    return subprocess.Popen(["sleep", str(WAIT)])


def waited_for_by(dvc: "subprocess.Popen[bytes]") -> Hook:
    """Have the trainer take this process for the DVC above it."""
    return partial(replace, "stages.pipeline.stopping._who_waits", partial(psutil.Process, dvc.pid))


def test_killed_25_times_at_random_moments(undisturbed: Training, inputs: Path, tmp_path: Path) -> None:
    """In a step and in a validation for certain, while or soon after it saves, and wherever it, or DVC, is."""
    dice = random.Random(1)
    trainings = [Training(tmp_path / "0", inputs, undisturbed.store)]
    kills = 0
    while kills < 25:
        training = trainings[-1]
        ways = (
            partial(kill_soon, hold(TRAIN_STEP, dice.randint(1, 5))),
            partial(kill_soon, hold(VALIDATE)),
            partial(kill_soon, tell(SAVE, dice.randint(1, 2))),
            kill_some_time,
            kill_dvc_some_time,
        )
        code = ways[kills % len(ways)](training, dice)
        if code == 0:
            trainings.append(Training(tmp_path / str(len(trainings)), inputs, undisturbed.store))
        else:
            assert code in (-signal.SIGKILL, 130), training.said
            kills += 1
    assert trainings[-1].run() == 0
    for training in trainings:
        check_same(training, undisturbed, redone=SAVE_EVERY)
        check_one_run(training.folder, undisturbed)


WHILE_IT_SAVES: dict[str, Hook] = {
    "before anything": die_before("stages.model.state.save_file"),
    "best weights not yet under their name": die_after("stages.model.state.save_file"),
    "best weights without a state": die_before("stages.model.state.save_file", 2),
    "state without plain values": die_after("stages.model.state.save_file"),
    "state not yet under its name": die_after("stages.model.state.write_json"),
    "before older ones are removed": die_before("stages.model.state.StateFolder._tidy", 2),
    "older one half removed": die_amid_removal(".checkpoints/*/step-*"),
}


def test_killed_at_every_point_of_a_save(undisturbed: Training, training: Training) -> None:
    """One after the other, so that each finds what the one before left."""
    for where, hook in WHILE_IT_SAVES.items():
        assert training.run(hook) == -signal.SIGKILL, where
    assert training.run() == 0
    check_same(training, undisturbed, redone=SAVE_EVERY)
    check_one_run(training.folder, undisturbed)


AFTER_TRAINING: dict[str, Hook] = {
    "checkpoint alone": die_before("stages.model.records.write_example_losses"),
    "all files": die_before("stages.pipeline.tracking.FinetuneRun.finish"),
    "figures in MLflow without files": die_before("mlflow.MlflowClient.log_artifact"),
    "half a model in MLflow": die_before("mlflow.models.Model.save"),
    "all in MLflow": die_before("stages.model.state.StateFolder.remove"),
}


def test_killed_while_it_writes_what_it_found(undisturbed: Training, training: Training) -> None:
    for where, hook in AFTER_TRAINING.items():
        assert training.run(hook) == -signal.SIGKILL, where
    assert training.run() == 0
    check_same(training, undisturbed, redone=SAVE_EVERY)
    check_one_run(training.folder, undisturbed)


def test_killed_once_its_state_is_gone(undisturbed: Training, training: Training) -> None:
    """It trains anew, in the same run of MLflow."""
    for hook in (die_amid_removal(".checkpoints/*"), die_before("mlflow.MlflowClient.set_terminated")):
        assert training.run(hook) == -signal.SIGKILL
    assert training.run() == 0
    assert training.steps == 3 * undisturbed.steps
    assert digests(training.folder) == digests(undisturbed.folder)
    assert list(training.states.iterdir()) == []
    check_one_run(training.folder, undisturbed)


# ---- stopped


@pytest.mark.parametrize(
    ("number", "name", "function", "step"),
    [
        (signal.SIGTERM, "SIGTERM", TRAIN_STEP, 8),
        (signal.SIGINT, "Ctrl-C", TRAIN_STEP, 9),  # where a state is saved anyway
        (signal.SIGTERM, "SIGTERM", VALIDATE, 42),  # the last one
    ],
)
def test_told_to_stop_it_saves_and_does_no_step_again(
    undisturbed: Training, training: Training, number: signal.Signals, name: str, function: str, step: int
) -> None:
    call = step if function == TRAIN_STEP else 1 + SETTINGS["epochs"] * SETTINGS["validations_per_epoch"]
    assert training.run(before(function, call, partial(signal.raise_signal, number))) == 130
    assert training.said.splitlines()[-1] == (
        f"error: finetune: stopped after step {step} of {len(undisturbed.steps)} ({name}); "
        "the state is saved, run `dvc repro` to go on"
    )
    assert runs(training.folder)[-1].info.status == "KILLED"
    assert training.run() == 0
    check_same(training, undisturbed, redone=0)
    check_one_run(training.folder, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_kills_at_once(training: Training, number: signal.Signals) -> None:
    process = training.start(hold(TRAIN_STEP, 2))
    assert process.reached()
    process.send(number)
    process.forget()
    assert all(process.reached() for _ in range(3)), "the first one is a wish"
    process.send(number)
    assert process.wait() == -number


def test_a_second_trainer_is_sent_away(training: Training) -> None:
    first = training.start(hold(TRAIN_STEP, 5))
    assert first.reached()
    said = training.said
    assert training.run() == 75
    assert training.said.removeprefix(said) == (
        f"error: finetune: process {first.pid} trains with these parameters and data already; wait for it or stop it\n"
    )
    assert first.kill() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("function", "said", "redone"),
    [
        ("stages.model.checkpoint.pick_device", "stopped after step 0 of ", 0),
        ("stages.pipeline.tracking.FinetuneRun.finish", "stopped at its end ", SAVE_EVERY),
    ],
    ids=["before training", "after training"],
)
def test_a_trainer_that_dvc_does_not_wait_for_is_not_the_last_one(
    undisturbed: Training, training: Training, function: str, said: str, redone: int
) -> None:
    """It may be gone while the trainer imports what it needs, and what it did not record is to be had again."""
    with stand_in_for_dvc() as dvc:
        is_killed = before(function, 1, partial(os.kill, dvc.pid, signal.SIGKILL))
        assert training.run(waited_for_by(dvc), is_killed, DVC_ROOT=str(training.folder)) == 130
    assert f"error: finetune: {said}" in training.said
    assert training.said.count("(DVC is gone)") == 1
    assert training.run() == 0
    check_same(training, undisturbed, redone=redone)
    check_one_run(training.folder, undisturbed)


# ---- hindered


def flip(path: Path) -> None:
    """Damage one byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damaged", "left"), [("*/best-*.safetensors", 2 * SAVE_EVERY), ("*/step-*/tensors.safetensors", 0)]
)
def test_a_damaged_state_is_not_trusted(
    undisturbed: Training, killed: Training, tmp_path: Path, damaged: str, left: int
) -> None:
    """The latest best weights are those of the latest state, and the one before serves; or all states are damaged."""
    training = killed.copy(tmp_path / "training")
    paths = sorted(training.states.glob(damaged), reverse=True)
    for path in paths[:1] if left else paths:
        flip(path)
    assert training.run() == 0
    assert training.said.count("damaged, the state before it is taken") == (1 if left else 2)
    assert training.steps[len(killed.steps)] == left + 1
    assert digests(training.folder) == digests(undisturbed.folder)


def test_another_parameter_does_not_go_on_from_it(killed: Training, tmp_path: Path) -> None:
    training = killed.copy(tmp_path / "training")
    write_params(training.folder, learning_rate=2e-2)
    assert training.run(die_before(TRAIN_STEP)) == -signal.SIGKILL
    assert training.steps[len(killed.steps) :] == [1]


def lose(training: Path) -> None:
    shutil.rmtree(training / ".checkpoints")


def block(training: Path) -> None:
    """What a folder is to a user who may not write it; root may."""
    lose(training)
    (training / ".checkpoints").write_text("")


HINDRANCES: dict[str, tuple[Hook, int]] = {
    "a disk nearly full": (with_little_disk(SAVE, 20_000), 1),
    "states cannot be written any more": (before(TRAIN_STEP, 8, partial(block, Path())), 1),
    "states vanish": (before(TRAIN_STEP, 8, partial(lose, Path())), 0),
}


@pytest.mark.parametrize(("hook", "warnings"), HINDRANCES.values(), ids=HINDRANCES)
def test_it_trains_on_where_it_cannot_save(
    undisturbed: Training, training: Training, hook: Hook, warnings: int
) -> None:
    assert training.run(hook) == 0
    assert training.said.count("the state cannot be saved") == warnings
    assert "Traceback" not in training.said
    assert digests(training.folder) == digests(undisturbed.folder)


def test_it_trains_without_a_place_for_states(undisturbed: Training, training: Training) -> None:
    training.states.write_text("")
    assert training.run() == 0
    assert training.said.count(".checkpoints") == 1
    assert "training goes on without a state" in training.said
    assert digests(training.folder) == digests(undisturbed.folder)


def ruin(store: Path) -> None:
    """Overwrite a database that is open."""
    store.write_bytes(b"no database" * 20_000)


@pytest.mark.parametrize(
    ("hooks", "environment"),
    [
        ([], {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}),
        ([before(VALIDATE, 3, partial(ruin, Path("mlflow.db")))], {}),
        ([before("stages.pipeline.tracking.FinetuneRun.finish", 1, partial(ruin, Path("mlflow.db")))], {}),
    ],
    ids=["never there", "gone while it trains", "gone at the end"],
)
def test_a_dead_mlflow_costs_a_warning(
    undisturbed: Training, training: Training, hooks: list[Hook], environment: dict[str, str]
) -> None:
    assert training.run(*hooks, **environment) == 0
    assert training.said.count("warning: MLflow is left out") == 1
    known = ("finetune: ", "  ", "warning: MLflow", "warning: the base model's loss")
    assert [line for line in training.said.splitlines() if not line.startswith(known)] == []
    assert digests(training.folder) == digests(undisturbed.folder)


def test_what_mlflow_missed_is_made_up_for_when_training_goes_on(undisturbed: Training, training: Training) -> None:
    killed = training.run(
        die_before(TRAIN_STEP, 16), MLFLOW_TRACKING_URI="http://127.0.0.1:9", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0"
    )
    assert killed == -signal.SIGKILL
    assert training.run() == 0
    check_same(training, undisturbed, redone=SAVE_EVERY)
    check_one_run(training.folder, undisturbed)


# ---- by `dvc repro`


def wait_for_save(project: Path, dvc: "subprocess.Popen[str]", after: str = "") -> tuple[str, int]:
    """Wait until a later state than `after` is there; its name, and the process id of the trainer."""
    until = time.monotonic() + WAIT
    while time.monotonic() < until and dvc.poll() is None:
        if saved := [path for path in project.glob(".checkpoints/*/step-*") if path.name > after]:
            return max(saved).name, int((saved[0].parent / "lock").read_text())
        time.sleep(0.01)
    raise AssertionError(dvc.communicate()[0] if dvc.poll() is not None else "nothing is saved")


def test_dvc_repro_goes_on_where_the_trainer_and_then_dvc_was_killed(
    undisturbed: Training, inputs: Path, tmp_path: Path, tiny_llama: Path
) -> None:
    """With a shell between the two; and the orphan that is left is waited for."""
    long = {"epochs": 4, "early_stopping": False}
    expected = Training(tmp_path / "expected", inputs, undisturbed.store, **long)
    assert expected.run() == 0
    project = write_inputs(make_project(tmp_path / "project", tiny_llama), tiny_llama)
    shutil.copyfile(undisturbed.store, project / "mlflow.db")
    write_params(project, **long)
    flow = (project / "dvc.yaml").read_text()
    (project / "dvc.yaml").write_text(flow.replace("stages.finetune\n", "stages.finetune && true\n"))
    how = {"SHELL": "/bin/sh", "OMP_NUM_THREADS": "1"}

    with start_repro(project, "-s", "finetune", **how) as dvc:
        saved, trainer = wait_for_save(project, dvc)
        os.kill(trainer, signal.SIGKILL)
        dvc.communicate()
        assert dvc.returncode != 0
    with start_repro(project, "-s", "finetune", **how) as dvc:
        saved, trainer = wait_for_save(project, dvc, after=saved)
        assert psutil.Process(trainer).ppid() != dvc.pid
        dvc.kill()
        dvc.wait()
        goes_on = repro(project, "-s", "finetune", **how)
        said_by_orphan = dvc.communicate()[0]

    (step,) = re.findall(r"stopped after step (\d+) of \d+ \(DVC is gone\); the state is saved", said_by_orphan)
    assert f"goes on after step {step} of" in goes_on
    assert digests(project) == digests(expected.folder)
    recorded = yaml.safe_load((project / "dvc.lock").read_text())["stages"]["finetune"]["outs"]
    assert {out["path"] for out in recorded} == set(OUTPUTS)
    for out in recorded:
        path = project / out["path"]
        assert path.is_dir() or out["md5"] == hashlib.md5(path.read_bytes()).hexdigest()
    assert list((project / ".checkpoints").iterdir()) == []
    check_one_run(project, undisturbed)

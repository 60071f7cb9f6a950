"""Tiny fine-tunings in processes of their own, to be killed by dozens: forked from one that has imported everything.

A process does what `python -m stages.finetune` does in a folder, but for a hook that may hold it, or kill it, at a
certain place of the code.
"""

import hashlib
import itertools
import multiprocessing
import os
import pkgutil
import resource
import shutil
import signal
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  (which MLflow imports late)
import torch
import yaml

import stages.model.finetuning
import stages.model.loss_plot
import stages.model.records  # noqa: F401  (with those above, all that finetune imports late)
from stages.finetune import app
from stages.instructions.templates import TEMPLATES
from stages.pipeline.files import write_json
from stages.tokens.arrays import write_arrays
from stages.tokens.labels import label
from stages.tokens.packing import pack
from stages.tokens.tokenizer import Tokenizer
from tests.conftest import ROOT
from tests.pipeline.forks import FORKS, WAIT
from tests.tokens.making import shipped_rows

CHATML = TEMPLATES["chatml"]
SETTINGS: dict[str, Any] = {
    "learning_rate": 1e-2,
    "epochs": 2,
    "batch_size": 1,
    "micro_batch_size": 1,
    "neftune_alpha": 5,
    "precision": "bf16",
    "compile": False,
    "validations_per_epoch": 3,
    "sample_tokens": 4,
    "save_every": 3,
}
"""Masters beside the weights, noise in every step, and saves that seldom fall on a validation."""

OUTPUTS = (
    "data/checkpoint",
    "data/validation_losses.parquet",
    "metrics/finetune.json",
    "metrics/losses.csv",
    "metrics/losses.png",
)

Hook = Callable[[], None]


def write_inputs(folder: Path, base_model: Path) -> Path:
    """Write data/tokens and data/base_model, of which finetune makes the rest."""
    shutil.copytree(base_model, folder / "data/base_model")
    (folder / "data/tokens").mkdir()
    (folder / "data/init").mkdir(exist_ok=True)
    tokenizer = Tokenizer(base_model)
    for name, rows in {"train": shipped_rows()[::20], "validation": shipped_rows()[7::40]}.items():
        rendered = (CHATML.render(row["instruction"], row["input"], row["output"]) for row in rows)
        examples = label(rendered, tokenizer, 256)
        ids = [f"{name}{number}" for number in examples.kept]
        write_arrays(
            folder / "data/tokens" / name,
            examples,
            pack(examples.lengths, 256),
            ids,
            end_of_text=tokenizer.end_of_text,
            mask_instruction=True,
        )
    write_json(folder / "data/tokens/tokens.json", {"template": CHATML.name, "end_of_text": tokenizer.end_of_text})
    return folder


def write_params(folder: Path, **changes: Any) -> None:
    """Write params.yaml: the shipped one with SETTINGS and these changes to section `finetune`."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["finetune"] |= SETTINGS | changes
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def digests(folder: Path) -> dict[str, str]:
    """Every file of OUTPUTS, by the hash of its bytes."""
    paths = (path for name in OUTPUTS for path in (folder / name, *(folder / name).rglob("*")))
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.is_file()
    }


class Training:
    """A folder in which a process trains until it ends well or is killed, and then another one."""

    def __init__(self, folder: Path, inputs: Path, store: Path | None = None, **changes: Any) -> None:
        """`inputs` are those of `write_inputs`; `store` is an MLflow store to begin with: making one takes seconds."""
        self.folder, self._inputs = folder, inputs
        folder.mkdir(parents=True, exist_ok=True)
        write_params(folder, **changes)
        if store is not None:
            shutil.copyfile(store, self.store)

    @property
    def store(self) -> Path:
        """Where MLflow's data are."""
        return self.folder / "mlflow.db"

    @property
    def states(self) -> Path:
        """The folder of the states of all trainings."""
        return self.folder / ".checkpoints"

    @property
    def said(self) -> str:
        """What all processes have said so far."""
        path = self.folder / "said.txt"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    @property
    def steps(self) -> list[int]:
        """The optimizer steps that processes have begun, in that order."""
        path = self.folder / "steps.txt"
        return [int(line) for line in path.read_text().splitlines()] if path.exists() else []

    def start(self, *hooks: Hook, **environment: str) -> "Process":
        """Start a process."""
        return Process(self.folder, self._inputs, hooks, environment)

    def run(self, *hooks: Hook, **environment: str) -> int:
        """Run a process to its end; its exit code, or the negative signal that it was killed by."""
        return self.start(*hooks, **environment).wait()

    def copy(self, folder: Path) -> "Training":
        """The same in another folder, with the states that are there."""
        shutil.copytree(self.folder, folder)
        there = Training.__new__(Training)
        there.folder, there._inputs = folder, self._inputs
        return there


def kill_all() -> None:
    """SIGKILL to all processes that still train."""
    for process in multiprocessing.active_children():
        process.kill()


class Process:
    """One process that trains."""

    def __init__(self, folder: Path, inputs: Path, hooks: tuple[Hook, ...], environment: dict[str, str]) -> None:
        self._told, teller = FORKS.Pipe(duplex=False)
        self._process = ForkServerProcess(target=_finetune, args=(folder, inputs, hooks, environment, teller))
        self._process.start()
        teller.close()

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process.pid is not None
        return self._process.pid

    def reached(self) -> bool:
        """Wait for the place of a `tell` or `hold`; False if the process ends before."""
        assert self._told.poll(WAIT), "neither there nor over"
        try:
            self._told.recv()
        except EOFError:
            return False
        return True

    def forget(self) -> None:
        """Forget what it has told so far."""
        while self._told.poll():
            self._told.recv()

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def kill(self) -> int:
        """Send SIGKILL; the exit code, which is another one if the process was over already."""
        self._process.kill()
        return self.wait()

    def wait(self) -> int:
        """Wait for its end; its exit code."""
        self._process.join(WAIT)
        assert self._process.exitcode is not None, "hangs"
        return self._process.exitcode


def _finetune(
    folder: Path, inputs: Path, hooks: tuple[Hook, ...], environment: dict[str, str], teller: Connection
) -> None:
    global _teller
    _teller = teller
    os.chdir(folder)
    os.environ.update(environment)
    with Path("said.txt").open("a") as said:
        os.dup2(said.fileno(), 2)
    torch.set_num_threads(1)
    for hook in hooks:
        hook()
    _count_steps()
    app(["--tokens", str(inputs / "data/tokens"), "--base-model", str(inputs / "data/base_model")])


_teller: Connection | None = None
"""In a process that trains: the way to tell the test where it is."""


def _tell() -> None:
    assert _teller is not None
    _teller.send(None)


def _count_steps() -> None:
    """Note each optimizer step that is begun in steps.txt."""
    from stages.model.training import Trainer

    real = Trainer._step

    def step(trainer: Trainer, number: int, *others: Any) -> float:
        with Path("steps.txt").open("a") as file:
            print(number, file=file)
        return real(trainer, number, *others)

    Trainer._step = step  # type: ignore[assignment, method-assign]


# Hooks


def replace(function: str, by: Callable[..., Any]) -> None:
    """Replace a function."""
    owner, name = function.rsplit(".", 1)
    setattr(pkgutil.resolve_name(owner), name, by)


def _around(function: str, act: Callable[[Callable[[], Any]], Any]) -> None:
    real = pkgutil.resolve_name(function)
    replace(function, lambda *arguments, **named: act(partial(real, *arguments, **named)))


def _at(function: str, call: int, act: Callable[[Callable[[], Any]], Any]) -> None:
    calls = itertools.count(1)
    _around(function, lambda go_on: act(go_on) if next(calls) == call else go_on())


def tell(function: str, call: int = 1) -> Hook:
    """Tell the test when this function is called, for the `call`th time."""
    return partial(_at, function, call, _telling)


def hold(function: str, call: int = 1) -> Hook:
    """From that call on, tell the test, and do what the function does again and again."""
    return partial(_at, function, call, _holding)


def die_before(function: str, call: int = 1) -> Hook:
    """SIGKILL in place of that call."""
    return partial(_at, function, call, _dying_before)


def die_after(function: str, call: int = 1) -> Hook:
    """SIGKILL right after that call."""
    return partial(_at, function, call, _dying_after)


def die_amid_removal(pattern: str) -> Hook:
    """SIGKILL while a folder of this name is removed, after the first of its files is gone."""
    return partial(_die_amid_removal, pattern)


def with_little_disk(function: str, size: int) -> Hook:
    """Let this function write no file of more than `size` bytes, as on a disk that is nearly full."""
    return partial(_with_little_disk, function, size)


def before(function: str, call: int, act: Hook) -> Hook:
    """Do something else before that call."""
    return partial(_at, function, call, partial(_first, act))


def _telling(go_on: Callable[[], Any]) -> Any:
    _tell()
    return go_on()


def _holding(go_on: Callable[[], Any]) -> Any:
    while True:
        _tell()
        go_on()


def _dying_before(go_on: Callable[[], Any]) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def _dying_after(go_on: Callable[[], Any]) -> Any:
    go_on()
    os.kill(os.getpid(), signal.SIGKILL)


def _first(act: Hook, go_on: Callable[[], Any]) -> Any:
    act()
    return go_on()


def _die_amid_removal(pattern: str) -> None:
    real = shutil.rmtree

    def rmtree(path: Path | str, *arguments: Any, **named: Any) -> None:
        if Path(path).match(pattern) and Path(path).exists():
            min(Path(path).rglob("*.safetensors")).unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        real(path, *arguments, **named)

    shutil.rmtree = rmtree  # type: ignore[assignment]


def _with_little_disk(function: str, size: int) -> None:
    def limited(go_on: Callable[[], Any]) -> Any:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            return go_on()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    _around(function, limited)

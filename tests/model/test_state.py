"""States of a training on disk: whole or not there, one trainer at a time, and for one training only."""

import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

from stages.model import kernels, state
from stages.model.finetuning import fingerprint_of
from stages.model.parallel import ALONE, Ranks
from stages.model.settings import FinetuneParams
from stages.model.state import Saved, StateFolder
from stages.pipeline.errors import BusyError
from tests.conftest import ROOT

CPU = torch.device("cpu")


def make_state(step: int, best_step: int = 0) -> Saved:
    """A state in which every part tells its step."""
    tensors = {"master": torch.full((64,), step / 7), "counts": torch.tensor([step])}
    return Saved(step, tensors, {"loss": 0.1 + step, "rows": [[step, None]]}, best_weights(best_step))


def best_weights(step: int) -> dict[str, Tensor]:
    return {"weight": torch.full((64,), step, dtype=torch.bfloat16)}


def fill(folder: Path, *steps: int, best: Callable[[int], int] = lambda step: 0) -> StateFolder:
    """Save states of these steps; `best` is the best step so far at each."""
    states = StateFolder(folder)
    for step in steps:
        states.save(make_state(step, best(step)), best(step))
    return states


def check_same(found: Saved | None, expected: Saved) -> None:
    assert found is not None
    assert (found.step, found.values) == (expected.step, expected.values)
    for ours, theirs in ((found.tensors, expected.tensors), (found.best, expected.best)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---- saved and read


def test_what_was_saved_is_read(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    check_same(StateFolder(tmp_path).load(), make_state(3))


def test_nothing_is_read_where_nothing_was_saved(tmp_path: Path) -> None:
    assert StateFolder(tmp_path / "new").load() is None
    assert StateFolder(tmp_path / "new").latest_step() is None


def test_the_last_two_are_kept_with_the_best_weights_that_they_need(tmp_path: Path) -> None:
    states = fill(tmp_path, 9, 10, 11, best=lambda step: {9: 4, 10: 8, 11: 11}[step])
    best = {"best-00000008.safetensors", "best-00000011.safetensors"}
    assert names(tmp_path) == {"step-00000010", "step-00000011"} | best
    assert states.latest_step() == 11
    check_same(states.load(), make_state(11, best_step=11))
    check_same(states.load(step=10), make_state(10, best_step=8))


def test_best_weights_are_written_once(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    path = tmp_path / "best-00000000.safetensors"
    before = path.stat()
    fill(tmp_path, 6, 9)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_state_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    """To replace it would leave a moment without it."""
    fill(tmp_path, 3)
    before = (tmp_path / "step-00000003").stat().st_ino
    fill(tmp_path, 3)
    assert (tmp_path / "step-00000003").stat().st_ino == before


def test_what_a_kill_left_is_swept_away(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    (tmp_path / ".step-00000006.123.tmp").mkdir()
    (tmp_path / ".step-00000006.123.tmp/tensors.safetensors").write_bytes(b"half")
    (tmp_path / ".best-00000005.safetensors.123.tmp").write_bytes(b"half")
    (tmp_path / "best-00000005.safetensors").write_bytes(b"whole, but of no state")
    check_same(StateFolder(tmp_path).load(), make_state(3))
    assert names(tmp_path) == {"step-00000003", "best-00000000.safetensors"}


def test_nothing_is_left_in_the_end(tmp_path: Path) -> None:
    states = StateFolder(tmp_path / "states")
    with states.locked():
        states.save(make_state(3), 0)
        states.remove()
    assert names(tmp_path) == set()


# ---- damaged


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def change_a_digit(path: Path) -> None:
    text = path.read_text()
    assert "6.1" in text
    path.write_text(text.replace("6.1", "6.2"))


DAMAGES: list[tuple[str, Callable[[Path], Any]]] = [
    ("step-00000006/tensors.safetensors", flip),
    ("step-00000006/tensors.safetensors", cut),
    ("step-00000006/tensors.safetensors", Path.unlink),
    ("step-00000006/state.json", cut),
    ("step-00000006/state.json", change_a_digit),
    ("step-00000006/state.json", lambda path: path.write_text("[]")),
    ("step-00000006/state.json", lambda path: path.write_bytes(b"\xff\x00")),
    ("step-00000006/state.json", Path.unlink),
    ("best-00000005.safetensors", flip),
    ("best-00000005.safetensors", cut),
    ("best-00000005.safetensors", Path.unlink),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_in_place_of_a_damaged_state_the_one_before_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Callable[[Path], Any]
) -> None:
    best = {3: 0, 6: 5}.__getitem__
    fill(tmp_path, 3, 6, best=best)
    damage(tmp_path / name)
    check_same(StateFolder(tmp_path).load(), make_state(3))
    assert capsys.readouterr().err.count("step-00000006: damaged, the state before it is taken (") == 1
    fill(tmp_path, 6, best=best)
    check_same(StateFolder(tmp_path).load(), make_state(6, best_step=5))
    assert capsys.readouterr().err == ""


def test_where_both_are_damaged_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path, 3, 6)
    flip(tmp_path / "best-00000000.safetensors")
    assert StateFolder(tmp_path).load() is None
    assert capsys.readouterr().err.count(": damaged, ") == 2
    fill(tmp_path, 3)
    check_same(StateFolder(tmp_path).load(), make_state(3))


def test_damage_to_an_older_state_hinders_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path, 3, 6)
    (tmp_path / "step-00000003/state.json").unlink()
    states = StateFolder(tmp_path)
    check_same(states.load(), make_state(6))
    states.save(make_state(9), 0)
    check_same(states.load(), make_state(9))
    assert capsys.readouterr().err == ""


# ---- not to be saved


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    states = fill(tmp_path, 3)

    def fails(*_: object) -> None:
        raise error

    with monkeypatch.context() as full:
        full.setattr(state, "save_file", fails)
        states.save(make_state(6), 0)
        states.save(make_state(9), 8)
    assert capsys.readouterr().err.count("the state cannot be saved (") == 1
    assert names(tmp_path) == {"step-00000003", "best-00000000.safetensors"}
    states.save(make_state(12), 0)
    check_same(states.load(), make_state(12))


def test_a_folder_that_vanishes_is_made_again(tmp_path: Path) -> None:
    states = fill(tmp_path / "states", 3, 6)
    shutil.rmtree(tmp_path / "states")
    states.save(make_state(9), 0)
    check_same(states.load(), make_state(9))


def test_a_folder_that_cannot_be_made_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "states").write_text("")
    states = StateFolder(tmp_path / "states" / "one")
    with states.locked():
        assert states.load() is None
        states.save(make_state(3), 0)
        states.remove()
    said = capsys.readouterr().err
    assert said.count("warning: ") == 1
    assert "training goes on without a state" in said


# ---- one trainer


def test_a_second_trainer_is_told_whom_to_wait_for(tmp_path: Path) -> None:
    with StateFolder(tmp_path).locked():
        with pytest.raises(BusyError, match=f"process {os.getpid()} trains with these parameters and data already"):
            StateFolder(tmp_path).locked().__enter__()
        StateFolder(tmp_path / "another").locked().__enter__()
    with StateFolder(tmp_path).locked():
        pass


class Orphan:
    """Whoever holds the lock has lost DVC; `let_go` is done when this has been looked at a second time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, let_go: Callable[[], object]) -> None:
        self._let_go, self._looks = let_go, 0
        monkeypatch.setattr(state, "is_orphan", self._is_orphan)
        monkeypatch.setattr(state, "time", SimpleNamespace(monotonic=lambda: self._looks, sleep=lambda seconds: None))

    def _is_orphan(self, pid: int) -> bool:
        assert pid == os.getpid()
        self._looks += 1
        if self._looks == 2:
            self._let_go()
        return True


def test_an_orphan_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = StateFolder(tmp_path).locked()
    first.__enter__()
    Orphan(monkeypatch, lambda: first.__exit__(None, None, None))
    with StateFolder(tmp_path).locked():
        pass


def test_an_orphan_that_does_not_stop_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StateFolder(tmp_path).locked():
        Orphan(monkeypatch, lambda: None)
        with pytest.raises(BusyError):
            StateFolder(tmp_path).locked().__enter__()


def test_a_lock_that_was_removed_with_its_folder_locks_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The orphan ends well while it is waited for: its lock is free then, but no longer the one that others see."""
    ours = StateFolder(tmp_path / "states")
    first = ours.locked()
    first.__enter__()

    def end_well() -> None:
        ours.remove()
        first.__exit__(None, None, None)

    Orphan(monkeypatch, end_well)
    with ours.locked():
        monkeypatch.setattr(state, "is_orphan", lambda pid: False)
        with pytest.raises(BusyError):
            StateFolder(tmp_path / "states").locked().__enter__()


# ---- one training


FILES = [
    ("tokens/train/labels.npy", True),
    ("tokens/train/ids.json", True),
    ("tokens/validation/labels.npy", True),
    ("tokens/test/labels.npy", False),
    ("model/model.safetensors", True),
    ("model/config.json", True),
    ("model/tokenizer.json", True),
    ("model/README.md", False),
]
"""Names, and whether training depends on what is in them."""


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Files by the names that those of a training have."""
    for name, _ in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


SETTINGS = FinetuneParams.load(ROOT / "params.yaml")


def fingerprint(
    inputs: Path,
    settings: FinetuneParams = SETTINGS,
    dtype: torch.dtype = torch.float32,
    ranks: Ranks = ALONE,
) -> str:
    return fingerprint_of(settings, inputs / "tokens", inputs / "model", dtype, CPU, ranks)


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_every_parameter_counts(inputs: Path) -> None:
    found = {fingerprint(inputs)}
    for name in FinetuneParams.model_fields:
        found.add(fingerprint(inputs, SETTINGS.model_copy(update={name: "another"})))
    assert len(found) == 1 + len(FinetuneParams.model_fields)
    assert fingerprint(inputs, SETTINGS.model_copy()) in found


def test_what_computes_counts(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {fingerprint(inputs), fingerprint(inputs, dtype=torch.bfloat16), fingerprint(inputs, ranks=Ranks(0, 2))}
    for place, name, value in (
        (torch, "__version__", "0.1"),
        (torch, "get_num_threads", lambda: 77),
        (kernels, "can_compile", lambda: None),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(place, name, value)
            found.add(fingerprint(inputs))
    assert len(found) == 6


@pytest.mark.parametrize(("name", "counts"), FILES)
def test_the_bytes_of_data_and_base_model_count(inputs: Path, name: str, counts: bool) -> None:
    before = fingerprint(inputs)
    assert fingerprint(inputs) == before
    (inputs / name).write_text("changed")
    assert (fingerprint(inputs) != before) == counts


@pytest.mark.parametrize(
    ("module", "counts"),
    [
        ("stages.model.training", True),
        ("stages.pipeline.stopping", True),
        ("__main__", True),  # stages/finetune.py, which is started as a script
        ("stages.pipeline.tracking", False),
        ("torch", False),  # by its version
    ],
)
def test_our_code_counts(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, counts: bool
) -> None:
    code = tmp_path / "code.py"
    replaced = ModuleType(module)
    replaced.__file__ = str(code)
    replaced.__dict__.update({k: v for k, v in vars(sys.modules.get(module, replaced)).items() if k != "__file__"})
    monkeypatch.setitem(sys.modules, module, replaced)
    code.write_text("one = 1\n")
    before = fingerprint(inputs)
    code.write_text("one = 2\n")
    assert (fingerprint(inputs) != before) == counts

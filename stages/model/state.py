"""The state of a training that survives whatever stops it: saved as a whole, checked when read, removed at the end.

    .checkpoints/<fingerprint>/
        lock              held by the trainer, with its process id
        best-<step>.safetensors
        step-<step>/
            tensors.safetensors
            state.json    plain values, and the SHA-256 of them and of the files they belong to

A folder of steps appears by a rename once it is complete. The last two are kept: if one is damaged, the other serves.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from stages.pipeline.errors import BusyError, UserError
from stages.pipeline.files import read_json, replacing, replacing_folder, sha256_of, write_json
from stages.pipeline.progress import say
from stages.pipeline.stopping import is_orphan

KEPT = 2
ORPHAN_SECONDS = 120
"""How long to wait for an orphan to save and stop."""


class Saved(NamedTuple):
    """One state of a training."""

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]
    best: dict[str, Tensor]
    """Weights at the best validation so far."""


def fingerprint(values: Mapping[str, Any], files: Mapping[str, Path]) -> str:
    """Hex digest of plain values and of the contents of files."""
    digest = hashlib.sha256(repr(sorted(values.items())).encode())
    for name, path in sorted(files.items()):
        digest.update(f"{name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()[:24]


class StateFolder:
    """The folder of one training, by its fingerprint. Saving may fail without harm: it is said once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._can_save = True

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other trainers of the same state out while the block runs.

        Raises:
            BusyError: one is at it.
        """
        try:
            file = self._take()
        except OSError as error:
            self._can_save = False
            say(f"warning: {self.path}: cannot be used ({error.strerror}); training goes on without a state")
            yield
            return
        with file:
            yield

    def _take(self) -> IO[bytes]:
        """The lock file, locked, with our process id in it."""
        started = time.monotonic()
        while True:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / "lock").open("ab+", buffering=0)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(file, self.path / "lock"):
                    with suppress(OSError):  # a full disk
                        file.truncate(0)
                        file.write(str(os.getpid()).encode())
                    return file
                file.close()  # of a training that ended well meanwhile, and removed it
            except BlockingIOError:
                file.seek(0)
                text = file.read().strip()
                file.close()
                holder = int(text) if text.isdigit() else 0
                if not is_orphan(holder) or time.monotonic() - started > ORPHAN_SECONDS:
                    raise BusyError(
                        f"finetune: process {holder or '?'} trains with these parameters and data already; "
                        "wait for it or stop it"
                    ) from None
                time.sleep(0.5)

    def save(self, saved: Saved, best_step: int) -> None:
        """Keep a whole state; `best_step` is the step of its best weights, which are written once."""
        step, tensors, values, best = saved
        with self._tolerant():
            if self._step(step).exists():  # by us, or it is where we started
                return
            if not self._best(best_step).exists():
                with replacing(self._best(best_step)) as temporary:
                    save_file(best, temporary)
            with replacing_folder(self._step(step)) as folder:
                save_file(tensors, folder / "tensors.safetensors")
                sums = {name: sha256_of(path) for name, path in self._files(folder, best_step).items()}
                sums["values"] = _sha256_of_values(values)
                write_json(folder / "state.json", {"best_step": best_step, "sha256": sums, "values": values})
            self._tidy()

    def load(self, step: int | None = None) -> Saved | None:
        """The latest state that is whole, or None; with `step`, that of another process's choice."""
        if step is not None:
            return self._read(self._step(step))
        saved = None
        for folder in self._steps():
            try:
                saved = self._read(folder)
                break
            except (UserError, OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
                say(f"warning: {folder}: damaged, the state before it is taken ({str(error)[:120]})")
                shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            self._tidy()  # damaged best weights that no state refers to any more would pass for saved ones
        return saved

    def _read(self, folder: Path) -> Saved:
        state = read_json(folder / "state.json")
        files = self._files(folder, state["best_step"])
        for name, path in files.items():
            if sha256_of(path) != state["sha256"][name]:
                raise ValueError(f"{path.name} is not what was saved")
        if _sha256_of_values(state["values"]) != state["sha256"]["values"]:
            raise ValueError("state.json is not what was saved")
        tensors, best = load_file(files["tensors"]), load_file(files["best"])
        return Saved(int(folder.name.removeprefix("step-")), tensors, state["values"], best)

    def remove(self) -> None:
        """The training is over."""
        shutil.rmtree(self.path, ignore_errors=True)

    def latest_step(self) -> int | None:
        """Step of the newest state."""
        return next((int(folder.name.removeprefix("step-")) for folder in self._steps()), None)

    def _steps(self) -> list[Path]:
        return sorted((p for p in self.path.glob("step-*") if p.is_dir()), reverse=True)

    def _step(self, step: int) -> Path:
        return self.path / f"step-{step:08d}"

    def _best(self, step: int) -> Path:
        return self.path / f"best-{step:08d}.safetensors"

    def _files(self, folder: Path, best_step: int) -> dict[str, Path]:
        return {"tensors": folder / "tensors.safetensors", "best": self._best(best_step)}

    def _tidy(self) -> None:
        """Remove states before the last ones, best weights that none of those refers to, and what a kill left."""
        for folder in self._steps()[KEPT:]:
            shutil.rmtree(folder, ignore_errors=True)
        used = set()
        for folder in self._steps():
            with suppress(UserError, KeyError, TypeError):  # damaged: it is of use to nobody, and goes in its turn
                used.add(self._best(read_json(folder / "state.json")["best_step"]))
        for path in set(self.path.glob("best-*.safetensors")) - used:
            path.unlink(missing_ok=True)
        for left in self.path.glob(".*.tmp"):  # by a trainer that was killed while it saved
            shutil.rmtree(left) if left.is_dir() else left.unlink()

    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        """A full disk must not end a training."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            if self._can_save:
                say(f"warning: {self.path}: the state cannot be saved ({str(error)[:120]}); training goes on")
            self._can_save = False
        else:
            self._can_save = True


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether an open file is the one that has this name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _sha256_of_values(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()

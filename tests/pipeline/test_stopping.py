"""When a stage should stop, seen from processes that stand in for DVC and for the stage: a real one starts slowly."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from stages.pipeline import stopping
from stages.pipeline.errors import BusyError, StoppedError, UserError, one_line_errors
from stages.pipeline.stopping import Stop, is_orphan, stoppable
from tests.conftest import ROOT

STAGE = """
import os, time
from stages.pipeline.stopping import Stop, stoppable

stop = Stop()
with stoppable(stop):
    print(os.getpid(), flush=True)
    while stop.reason is None:
        time.sleep(0.01)
print(stop.reason, flush=True)
"""
PARENT = """
import subprocess, sys

subprocess.run(sys.argv[1:])
"""


class Family(NamedTuple):
    """A stage and the process that started it."""

    parent: "subprocess.Popen[str]"
    stage: int

    def reason(self) -> str:
        """Why the stage stopped."""
        assert self.parent.stdout is not None
        return self.parent.stdout.readline().strip()


@contextmanager
def started(folder: Path, *, by: str, shell: bool = False, **environment: str) -> Iterator[Family]:
    """A stage started by a script of this name, which may have a shell do it."""
    (folder / "stage.py").write_text(STAGE)
    (folder / by).write_text(PARENT)
    command = [sys.executable, str(folder / "stage.py")]
    if shell:
        command = ["/bin/sh", "-c", f"{shlex.join(command)}; true"]
    command = [sys.executable, str(folder / by), *command]
    env = {name: value for name, value in os.environ.items() if name != "DVC_ROOT"}
    env |= {"PYTHONPATH": str(ROOT)} | environment
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        family = Family(parent, int(parent.stdout.readline()))
        assert (psutil.Process(family.stage).ppid() != parent.pid) == shell
        try:
            yield family
        finally:
            parent.kill()
            with suppress(ProcessLookupError):
                os.kill(family.stage, signal.SIGKILL)


@pytest.mark.parametrize("shell", [False, True], ids=["directly", "by a shell"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stage_stops_when_dvc_is_gone(tmp_path: Path, shell: bool, number: signal.Signals) -> None:
    with started(tmp_path, by="dvc", shell=shell, DVC_ROOT=str(tmp_path)) as family:
        assert not is_orphan(family.stage)
        family.parent.send_signal(number)
        family.parent.wait()
        assert family.reason() == "DVC is gone"


def test_a_stage_started_by_hand_does_not_stop_with_who_started_it(tmp_path: Path) -> None:
    with started(tmp_path, by="dvc") as family:
        family.parent.kill()
        family.parent.wait()
        assert not is_orphan(family.stage)
        os.kill(family.stage, signal.SIGTERM)
        assert family.reason() == "SIGTERM"


def test_whoever_lost_dvc_is_an_orphan(tmp_path: Path) -> None:
    """Stopped by SIGSTOP, so that it stays one."""
    with started(tmp_path, by="dvc", shell=True, DVC_ROOT=str(tmp_path)) as family:
        os.kill(family.stage, signal.SIGSTOP)
        assert not is_orphan(family.stage)
        family.parent.kill()
        family.parent.wait()
        assert is_orphan(family.stage)
    assert is_orphan(family.stage), "and whoever is no more"


def test_a_dvc_that_nobody_has_waited_for_yet_is_gone_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A zombie: DVC started by something that does not look after it, as in a container."""
    dvc = subprocess.Popen(["true"])
    os.waitid(os.P_PID, dvc.pid, os.WEXITED | os.WNOWAIT)
    monkeypatch.setenv("DVC_ROOT", "/")
    monkeypatch.setattr(stopping, "_who_waits", lambda: psutil.Process(dvc.pid))
    assert Stop().reason == "DVC is gone"
    dvc.wait()


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_a_signal_is_a_wish_while_the_block_runs(number: signal.Signals, name: str) -> None:
    before = [signal.getsignal(other) for other in (signal.SIGTERM, signal.SIGINT)]
    stop = Stop()
    with stoppable(stop):
        assert stop.reason is None
        os.kill(os.getpid(), number)
        assert stop.reason == name
        assert signal.getsignal(number) == signal.SIG_DFL, "the second one kills"
    assert [signal.getsignal(other) for other in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("a row\nis wrong"), 2),
        (BusyError("a row is wrong"), 75),
        (StoppedError("a row is wrong"), 130),
    ],
)
def test_an_error_is_one_line_with_its_exit_code(
    capsys: pytest.CaptureFixture[str], error: UserError, code: int
) -> None:
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise error
    assert ended.value.code == code
    assert capsys.readouterr().err == "error: a row is wrong\n"


def test_a_file_that_cannot_be_used_is_one_line_and_a_bug_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, one_line_errors():
        tmp_path.read_bytes()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: is a directory\n"
    with pytest.raises(OSError, match="ours"), one_line_errors():
        raise OSError("ours")

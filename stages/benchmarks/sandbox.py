"""Running code that a model wrote: behind walls (`stages.benchmarks.jail`), or not at all.

The walls are Linux namespaces: no network, no process but its own, no file but Python's own (read only) and an empty
folder in memory, an empty environment, no privileges, a user id that owns nothing, and limits on time, memory, files
and processes. What is not kept out: defects of the kernel itself, and what takes the machine's own time within limits.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Literal, NamedTuple

from stages.benchmarks import trial
from stages.pipeline.errors import UserError

SECONDS = 3
"""Of CPU for one program, and as many for its tests (human_eval of OpenAI: 3 seconds by the clock)."""
MEMORY = 1 << 30
"""Bytes of address space."""
WALL_FACTOR = 4
"""By the clock a program may take so many times as long, since a busy machine should not decide what is right."""

_ROOT = Path(__file__).resolve().parents[2]
_TRIAL = [sys.executable, "-P", "-s", "-S", "-B", "-m", trial.__name__]
_PROBE = """
import bisect, cmath, collections, copy, datetime, decimal, fractions, functools, hashlib, heapq, itertools, math
import operator, random, re, statistics, string, sys, typing

def add(a, b):
    return a + b
"""
_REMEDY = (
    "allow namespaces (sysctl user.max_user_namespaces above 0, kernel.unprivileged_userns_clone=1 and "
    "kernel.apparmor_restrict_unprivileged_userns=0 where there are such; in Docker --cap-add SYS_ADMIN "
    "--security-opt seccomp=unconfined --security-opt apparmor=unconfined), or leave humaneval out of benchmark.tasks"
)


class Outcome(NamedTuple):
    """What became of a program."""

    kind: Literal["passed", "failed", "timed out", "killed"]
    reason: str
    """What it raised, or the signal that ended it."""


class SandboxError(UserError):
    """There is no sandbox to be had here, so nothing was run."""


def run(program: str, tests: str, entry_point: str, *, seconds: int = SECONDS, memory: int = MEMORY) -> Outcome:
    """Whether a program's function stands its tests.

    Args:
        program: source that defines `entry_point`; trusted with nothing.
        tests: source that defines `check(candidate)`, which raises unless the function is right; its own process sees
            the program through calls alone, with plain data to and fro, so one that changes what it was given, or
            answers with an object of a class of its own, is judged by the values that it returns.
        entry_point: name of the function; the tests may call it by that name too.
        seconds: of CPU, for the program and for its tests.
        memory: bytes of address space, for the program and for its tests.

    Raises:
        SandboxError: this machine has no sandbox to offer.
    """
    if sys.platform != "linux":
        raise SandboxError(
            f"benchmark.tasks: humaneval: the sandbox is made of Linux namespaces; this is {sys.platform}"
        )
    wall = WALL_FACTOR * seconds
    limits = {"seconds": seconds, "memory": memory, "wall_seconds": wall}
    frames = [json.dumps(limits | {"program": program, "entry_point": entry_point}), json.dumps(tests)]
    sent = b"".join(len(frame).to_bytes(4) + frame.encode() for frame in frames)
    process = subprocess.Popen(
        _TRIAL,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PYTHONPATH": str(_ROOT), "PYTHONHASHSEED": "0"},
        cwd="/",
        start_new_session=True,
    )
    try:
        said, cause = process.communicate(sent, timeout=wall + 30)
    except subprocess.TimeoutExpired:
        return Outcome("timed out", "")
    finally:
        process.kill()  # takes all others with it: see PR_SET_PDEATHSIG in prctl(2)
        process.wait()
    if process.returncode != 0 or not said:
        raise SandboxError(f"benchmark.tasks: humaneval: the sandbox broke ({_last_line(cause)}); {_REMEDY}")
    kind, reason = json.loads(said)
    if kind == "refused":
        raise SandboxError(f"benchmark.tasks: humaneval: no sandbox, so no code is run ({reason}); {_REMEDY}")
    return Outcome(kind, reason)


def prove() -> None:
    """Make sure that a harmless program passes and a wrong one fails.

    Raises:
        SandboxError: it is not so; why.
    """
    tests = "def check(candidate):\n    assert candidate(1, 2) == {}"
    right, wrong = (run(_PROBE, tests.format(answer), "add") for answer in (3, 4))
    if right.kind != "passed" or wrong.kind != "failed":
        raise SandboxError(f"benchmark.tasks: humaneval: a harmless program does not run here ({right.reason})")


def _last_line(text: bytes) -> str:
    return (text.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]

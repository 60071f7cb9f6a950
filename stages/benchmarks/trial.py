"""A program and its tests, each in a process of its own behind the walls of `stages.benchmarks.jail`.

`python -m stages.benchmarks.trial` reads two frames from stdin (the limits and the program, then the tests) and writes
the outcome to stdout. The program's process is forked before the tests are read: it never holds them, and it can only
answer calls of its one function, with plain data. So whatever it does to asserts, exits, frames or its own memory, it
passes by right answers alone. The tests' process is the first of the namespace, which cannot be killed from within,
and at whose end the kernel kills all others.
"""

import json
import os
import random
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any, NoReturn

from stages.benchmarks import jail, system_calls

LONGEST = 1 << 24
"""Bytes of an answer."""
_NUMBERS = {"Decimal": "decimal", "Fraction": "fractions"}


def main() -> None:
    """Judge what comes on stdin."""
    request = json.loads(_read_frame(0))
    print(json.dumps(_outcome(request)))


def _outcome(request: dict[str, Any]) -> tuple[str, str]:
    try:
        identity = jail.separate()
    except OSError as error:
        return "refused", str(error)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _in_child(lambda: _enter_and_examine(request, identity, writer))
    os.close(writer)
    told = os.read(reader, 1 << 16) if select.select([reader], [], [], request["wall_seconds"])[0] else b""
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)  # returns when every process behind the walls is gone
    if told:
        kind, reason = json.loads(told)
        return kind, reason
    signalled = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return ("timed out", "") if signalled == signal.SIGKILL else ("killed", f"its tests ended with {status}")


def _in_child(work: Callable[[], None]) -> NoReturn:
    """A forked process must never return into what its parent was doing."""
    try:
        work()
    finally:
        os._exit(0)


def _enter_and_examine(request: dict[str, Any], identity: int | None, report: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for number in (1, 2):
        os.dup2(null, number)
    try:
        jail.enter(identity)
    except OSError as error:
        outcome = "refused", str(error)
    else:
        outcome = _examine(request, null)
    os.write(report, json.dumps(outcome).encode())


def _examine(request: dict[str, Any], null: int) -> tuple[str, str]:
    random.seed(0)
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        os.dup2(null, 0)
        os.dup2(theirs.fileno(), 3)
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        _in_child(lambda: _serve(request))
    theirs.close()
    limits = request["seconds"], request["memory"]
    tests = json.loads(_read_frame(0))
    jail.limit(seconds=limits[0], memory=limits[1], alone=False)
    try:
        _call(ours.fileno(), None)
        _run_tests(tests, request["entry_point"], ours.fileno())
    except EOFError:
        return _death(child, request["seconds"])
    except BaseException as error:
        return "failed", _in_words(error)
    return "passed", ""


def _death(child: int, seconds: int) -> tuple[str, str]:
    """How the program's process ended, before the tests did."""
    _, status, usage = os.wait4(child, 0)
    if not os.WIFSIGNALED(status):
        return "failed", f"it ended with exit code {os.WEXITSTATUS(status)} before its tests did"
    name = signal.Signals(os.WTERMSIG(status)).name
    over = name == "SIGKILL" and usage.ru_utime + usage.ru_stime > seconds - 0.5
    return ("timed out", "") if over else ("killed", name)


def _run_tests(tests: str, entry_point: str, connection: int) -> None:
    def candidate(*arguments: Any, **named: Any) -> Any:
        return _call(connection, [list(arguments), named])

    namespace: dict[str, Any] = {}
    exec(tests, namespace)
    namespace[entry_point] = candidate
    namespace["check"](candidate)


class ProgramError(Exception):
    """What the program raised, in words."""


def _call(connection: int, arguments: Any) -> Any:
    if arguments is not None:
        _write_frame(connection, json.dumps(pack(arguments)).encode())
    answer = json.loads(_read_frame(connection))
    if not isinstance(answer, dict) or "value" not in answer:
        raise ProgramError(str(answer["error"])[:200] if isinstance(answer, dict) and "error" in answer else "?")
    return unpack(answer["value"])


def _serve(request: dict[str, Any]) -> None:
    """Be the program: run it, then answer calls of its function for as long as there are any."""
    os.environ.clear()
    sys.path[:] = [place for place in sys.path if place.startswith((sys.base_prefix, sys.base_exec_prefix))]
    try:
        jail.limit(seconds=request["seconds"], memory=request["memory"], alone=True)
        system_calls.deny()
    except OSError as error:
        return _write_frame(3, json.dumps({"error": str(error)}).encode())
    namespace: dict[str, Any] = {}
    _reply(exec, request["program"], namespace)
    while True:
        arguments, named = unpack(json.loads(_read_frame(3)))
        _reply(lambda *values, **others: namespace[request["entry_point"]](*values, **others), *arguments, **named)


def _reply(function: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    try:
        answer = json.dumps({"value": pack(function(*arguments, **named))})
    except BaseException as error:
        answer = json.dumps({"error": _in_words(error)})
    _write_frame(3, answer.encode())


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:200].rstrip(": ")


def pack(value: Any) -> Any:
    """A value of Python as JSON, exactly; what is no plain data only by its type's name, which equals nothing."""
    name = type(value).__name__
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, list):
        return [pack(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[pack(key), pack(item)] for key, item in value.items()]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": list(value)}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if name in _NUMBERS:
        return {name: str(value)}
    if not isinstance(value, Iterable):
        return {"other": name}
    collection = next((kind.__name__ for kind in (tuple, set, frozenset) if isinstance(value, kind)), "iterator")
    return {collection: [pack(item) for item in value]}


def unpack(value: Any) -> Any:
    """What `pack` was given; an iterator over the same where it was an iterable of another type."""
    if isinstance(value, list):
        return [unpack(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((name, inner),) = value.items()
    if name in _NUMBERS:
        return getattr(import_module(_NUMBERS[name]), name)(inner)
    makers: dict[str, Callable[[Any], Any]] = {
        "dict": dict,
        "bytes": bytes,
        "complex": lambda parts: complex(*parts),
        "tuple": tuple,
        "set": set,
        "frozenset": frozenset,
        "iterator": iter,
        "other": lambda _: object(),
    }
    return makers[name](unpack(inner))


def _read_frame(source: int) -> bytes:
    size = int.from_bytes(_read(source, 4))
    if size > LONGEST:
        raise ValueError("its answer is too long")
    return _read(source, size)


def _read(source: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(source, min(size, 1 << 16))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _write_frame(target: int, content: bytes) -> None:
    left = memoryview(len(content).to_bytes(4) + content)
    while left:
        left = left[os.write(target, left) :]


if __name__ == "__main__":
    main()

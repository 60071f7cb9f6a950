"""Hostile programs: none passes that is not right, none reaches what lies outside, none is left behind.

Where this machine refuses namespaces, every one of these tests asserts that nothing is run, and why. No program here
does harm if all walls are down, even to root: what it destroys is the test's own, and of the rest it only asks whether
it could (an open for appending without a write, a file without a name, its capabilities). Keep it so.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stages.benchmarks import sandbox
from stages.benchmarks.sandbox import Outcome, SandboxError
from stages.benchmarks.trial import pack, unpack


def _has_walls() -> bool:
    """Asked of util-linux, so that a defect of ours is not taken for a refusal."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    for extra in (user, ["--user", "--map-root-user"]):
        command = ["unshare", *extra, "--mount", "--net", "--pid", "--ipc", "--fork", "true"]
        if subprocess.run(command, capture_output=True).returncode == 0:
            return True
    return False


HAS_WALLS = _has_walls()
ADDS = "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(3, 4) == 7\n"
HELD = "def check(candidate):\n    assert candidate() == 'held'\n"

_PATCHED = "import os, ctypes\nfrom stages.benchmarks import jail, system_calls, trial\n{}\ntrial.main()"
VARIANTS = {
    "as it is": "",
    "without the filter of system calls": "system_calls.deny = lambda: None",
    # a user namespace is entered only where the rest is refused: to an ordinary user, and to root in a container
    "in a user namespace": (
        "jail._become, unshare, told = lambda _: None, jail._libc.unshare, []\n"
        "jail._libc.unshare = lambda flags: unshare(flags) if told or told.append(1) else -1\n"
        "system_calls.deny = lambda: None"
    ),
}


@pytest.fixture(params=VARIANTS)
def walls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wall must hold by itself."""
    patched(monkeypatch, VARIANTS[request.param])


def patched(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(sandbox, "_TRIAL", [*sandbox._TRIAL[:-2], "-c", _PATCHED.format(code)])


def run(program: str, tests: str = HELD, entry_point: str = "act", *, seconds: int = 1) -> Outcome | None:
    """What became of it; None where this machine has no sandbox, which then was said."""
    if HAS_WALLS:
        return sandbox.run(program, tests, entry_point, seconds=seconds)
    with pytest.raises(SandboxError, match=r"no sandbox, so no code is run \(.+\); allow namespaces"):
        sandbox.run(program, tests, entry_point, seconds=seconds)
    return None


def expect(found: Outcome | None, kind: str, reason: str = "") -> None:
    if found is not None:
        assert (found.kind, reason in found.reason) == (kind, True), found


# ---- right and wrong


def test_right_passes_and_wrong_fails() -> None:
    expect(run("def add(a, b):\n    return a + b", ADDS, "add"), "passed")
    expect(run("def add(a, b):\n    return 3", ADDS, "add"), "failed", "AssertionError")
    expect(run("def add(a, b):\n    return None", ADDS, "add"), "failed", "AssertionError")
    expect(run("def add(a, b) return", ADDS, "add"), "failed", "SyntaxError")
    expect(run("def plus(a, b):\n    return a + b", ADDS, "add"), "failed", "KeyError")
    expect(run("def add(a, b):\n    raise ValueError('no')", ADDS, "add"), "failed", "ValueError: no")


def test_a_harmless_program_runs() -> None:
    if HAS_WALLS:
        sandbox.prove()
    else:
        with pytest.raises(SandboxError, match="no sandbox, so no code is run"):
            sandbox.prove()


def test_values_arrive_as_they_are() -> None:
    """Those that the tests of HumanEval compare, and those near them."""
    values = "[None, True, 1, 2.5, float('inf'), 10**30, 'é\\ud800', b'x', (1, (2,)), [[]], {1, 2}, {1: {'a': ()}}, 1j]"
    program = f"def act(given):\n    return given if repr(given) == repr({values}) else 'changed'"
    tests = f"def check(candidate):\n    assert repr(candidate({values})) == repr({values})"
    expect(run(program, tests), "passed")
    expect(run("from fractions import Fraction as act", "def check(c):\n    assert c(1, 2) == 0.5"), "passed")
    tests = "def check(c):\n    assert tuple(c([1, 2])) == (2, 4) and c([1, 2]) != [2, 4]"
    expect(run("def act(a):\n    return (2 * x for x in a)", tests), "passed")


def test_what_is_no_plain_data_equals_nothing() -> None:
    assert unpack(json.loads(json.dumps(pack(object())))) != unpack(pack(object()))
    program = "class Same(list):\n    def __eq__(self, other): return True\ndef add(a, b):\n    return Same()"
    expect(run(program, ADDS, "add"), "failed", "AssertionError")
    program = "class Same:\n    def __eq__(self, other): return True\ndef add(a, b):\n    return Same()"
    expect(run(program, ADDS, "add"), "failed", "AssertionError")


# ---- passing without being right

CHEATS = {
    "exits": "import sys; sys.exit(0)",
    "exits at once": "import os; os._exit(0)",
    "exits when called": "import os\ndef add(a, b): os._exit(0)",
    "raises SystemExit when called": "def add(a, b): raise SystemExit(0)",
    "redefines AssertionError": "import builtins\nbuiltins.AssertionError = ValueError\ndef add(a, b): return 0",
    "disarms asserts": (
        "import sys, os, builtins\nsys.exit = os._exit = lambda *_: None\nbuiltins.__build_class__ = None\n"
        "def add(a, b): return 0"
    ),
    "traces": "import sys\nsys.settrace(lambda *_: None); sys.setprofile(lambda *_: None)\ndef add(a, b): return 0",
    "defines the check": "def check(candidate): pass\ndef add(a, b): return 0",
    "looks for the tests": (
        "import gc, sys\ndef add(a, b):\n"
        "    texts = [o for o in gc.get_objects() if isinstance(o, dict) and 'tests' in o]\n"
        "    frame = sys._getframe()\n    while frame:\n        texts += [frame.f_locals.get('tests')]\n"
        "        frame = frame.f_back\n"
        "    return a + b if any('candidate(1, 2)' in str(text) for text in texts) else 0"
    ),
    "answers all descriptors": (
        "import json, os\nanswer = json.dumps(['passed', '']).encode()\n"
        "frame = len(answer).to_bytes(4, 'big') + answer\n"
        "for number in range(64):\n    for text in (answer, frame):\n        try: os.write(number, text)\n"
        "        except OSError: pass\nos._exit(0)"
    ),
    "closes everything": "import os\nos.closerange(0, 64)\ndef add(a, b): return 3",
    "answers without end": "def add(a, b): return 'x' * (1 << 25)",
}


@pytest.mark.parametrize("program", CHEATS.values(), ids=CHEATS)
def test_no_cheat_passes(program: str) -> None:
    expect(run(program, ADDS, "add"), "failed")


# ---- taking more than its share


def test_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the CPU's, which no signal handler delays."""
    monkeypatch.setattr(sandbox, "WALL_FACTOR", 20)
    started = time.monotonic()
    program = """
import signal
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    print("x" * 100_000, flush=True)
"""
    expect(run(program), "timed out")
    assert time.monotonic() - started < 18


WAITING = {
    "sleeps": ("import time; time.sleep(60)", HELD),
    "stops itself": ("import os; os.kill(os.getpid(), 19)", HELD),
    "loops when called": ("def act():\n    while True: pass", HELD),
    "answers without end": ("def act():\n    while True: yield 'x'", HELD),
    "its tests loop": ("def act(): pass", "def check(candidate):\n    while True: pass"),
}


@pytest.mark.parametrize(("program", "tests"), WAITING.values(), ids=WAITING)
def test_and_by_the_clock(program: str, tests: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "WALL_FACTOR", 0.3)
    expect(run(program, tests), "timed out")


@pytest.mark.usefixtures("walls")
def test_memory_and_disk_are_bounded() -> None:
    program = """
import os
def act():
    held = []
    try:
        held.append(bytearray(1 << 31))
    except MemoryError:
        held.append("memory")
    try:
        with open("long", "wb") as file:
            file.write(bytes(1 << 21))
    except OSError:
        held.append("file")
    os.remove("long")
    written = 0
    try:
        for number in range(64):
            with open(str(number), "wb") as file:
                file.write(bytes(1 << 19))
                written += 1 << 19
    except OSError:
        held.append("disk" if written <= 1 << 22 else "too late")
    return "held" if held == ["memory", "file", "disk"] else str(held)
"""
    tests = "def check(candidate):\n    found = candidate()\n    if found != 'held':\n        raise ValueError(found)"
    expect(run(program, tests), "passed")


@pytest.mark.parametrize("code", [VARIANTS["as it is"], VARIANTS["without the filter of system calls"]])
def test_there_is_one_process(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patched(monkeypatch, code)
    program = """
import os, threading
def act():
    for start in (os.fork, threading.Thread(target=print).start):
        try:
            start()
            return "not held"
        except (OSError, RuntimeError):
            pass
    return "held"
"""
    expect(run(program), "passed")


# ---- what lies outside


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of the user's, and a key in the environment."""
    monkeypatch.setenv("ONSET_TEST_KEY", "sesame-13")
    path = tmp_path / "secret.txt"
    path.write_text("sesame-13")
    return path


@pytest.mark.usefixtures("walls")
def test_files_and_environment_are_out_of_reach(secret: Path) -> None:
    program = f"""
import glob, os
def act():
    texts = [str(os.environ)]
    for path in [{str(secret)!r}, *glob.glob("/proc/*/environ"), "/etc/passwd", "/proc/self/environ"]:
        try:
            texts.append(open(path).read())
        except OSError:
            pass
    attempts = [lambda: open({str(secret)!r}, "a").write("x"), lambda: os.remove({str(secret)!r})]
    attempts += [lambda: os.open(os.__file__, os.O_WRONLY | os.O_APPEND)]
    for folder in ("/", "/usr/lib", os.path.dirname(os.__file__), {str(secret.parent)!r}):
        attempts.append(lambda folder=folder: os.open(folder, os.O_TMPFILE | os.O_WRONLY))
    for number, attempt in enumerate(attempts):
        try:
            attempt()
            texts.append(f"attempt {{number}} went through")
        except OSError:
            pass
    return "held" if texts == ["environ({{}})"] and os.getcwd() == "/work" and os.listdir() == [] else str(texts)
"""
    tests = "def check(candidate):\n    found = candidate()\n    if found != 'held':\n        raise ValueError(found)"
    expect(run(program, tests), "passed")
    assert secret.read_text() == "sesame-13"


def test_the_environment_does_not_even_start_with_it(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patched(monkeypatch, "assert set(os.environ) <= {'PYTHONPATH', 'PYTHONHASHSEED', 'LC_CTYPE'}")
    expect(run("def act(): return 'held'"), "passed")


@pytest.mark.usefixtures("walls")
def test_the_network_is_out_of_reach(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        server.settimeout(0.1)
        local.bind(str(tmp_path / "socket"))
        local.listen()
        local.settimeout(0.1)
        program = f"""
import socket
def act():
    for family, place in ((2, ("127.0.0.1", {server.getsockname()[1]})), (1, {str(tmp_path / "socket")!r})):
        try:
            socket.socket(family).connect(place)
            return "through"
        except OSError:
            pass
    return "held"
"""
        expect(run(program), "passed")
        for one in (server, local):
            with pytest.raises(TimeoutError):
                one.accept()


@pytest.mark.usefixtures("walls")
def test_other_processes_are_out_of_reach() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as victim:
        program = f"""
import os, signal
def act():
    if os.getpid() > 9:
        return "not in a namespace, and what follows would end all processes"
    for number in (1, os.getppid(), {victim.pid}, {os.getpid()}, -1):
        for kind in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM):
            if number != os.getpid():
                try:
                    os.kill(number, kind)
                except OSError:
                    pass
    return "held"
"""
        expect(run(program), "passed")  # its tests' process, which is its parent, still judges it
        assert victim.poll() is None
        victim.kill()


@pytest.mark.usefixtures("walls")
def test_privileges_are_gone() -> None:
    program = """
import ctypes, os
def act():
    libc = ctypes.CDLL(None)
    header, held = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(*[1] * 6)
    asked = libc.capget(header, held)
    can_be_looked_into, can_gain = libc.prctl(3, 0, 0, 0, 0), 1 - libc.prctl(39, 0, 0, 0, 0)
    is_root = 0 in (*os.getresuid(), *os.getresgid())
    found = asked, any(held), can_be_looked_into, can_gain, is_root
    return "held" if not any(found) else str(found)
"""
    tests = "def check(candidate):\n    found = candidate()\n    if found != 'held':\n        raise ValueError(found)"
    expect(run(program, tests), "passed")


# ---- nothing is left behind


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An argument by which the sandbox's processes can be told from others."""
    text = f"--{tmp_path.name}-{os.getpid()}"
    monkeypatch.setattr(sandbox, "_TRIAL", [*sandbox._TRIAL, text])
    yield text
    assert not marked(text)


def marked(text: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text in path.read_text().split("\0"):
                found.append(path.parent.name)
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


DAEMON = "import os\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        import time; time.sleep(60)\n"


def test_no_daemon_survives(marker: str) -> None:
    """Neither the program's, which may not fork at all, nor one that its tests start."""
    expect(run(DAEMON + "    os._exit(0)\nos.wait()\ndef act(): return 'held'"), "failed", "PermissionError")
    tests = f"{DAEMON}    os._exit(0)\nos.wait()\n{HELD}"
    expect(run("def act(): return 'held'", tests), "passed")
    assert not marked(marker)


def test_a_kill_of_the_benchmark_leaves_nothing(tmp_path: Path) -> None:
    text = f"--{tmp_path.name}-{os.getpid()}-killed"
    code = (
        f"from stages.benchmarks import sandbox\nsandbox._TRIAL.append({text!r})\n"
        "sandbox.run('import time; time.sleep(60)', '', 'act', seconds=30)"
    )
    environment = {"PYTHONPATH": str(sandbox._ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL) as harness:
        if HAS_WALLS:
            wait_until(lambda: len(marked(text)) == 3)
            harness.send_signal(signal.SIGKILL)
    wait_until(lambda: not marked(text))


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ---- no sandbox, no run


@pytest.mark.parametrize("step", ["unshare", "mount", "pivot_root", "umount2", "capset", "prctl"])
def test_where_the_kernel_refuses_nothing_is_run(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse = f"jail._libc.{step} = lambda *_: (ctypes.set_errno(1), -1)[1]"
    patched(monkeypatch, f"trial._examine = lambda *_: ('passed', '')\n{refuse}")
    with pytest.raises(SandboxError) as caught:
        sandbox.run("def act(): return 'held'", HELD, "act")
    message = str(caught.value)
    assert message.startswith("benchmark.tasks: humaneval: no sandbox, so no code is run (")
    assert step in message or not HAS_WALLS
    assert "allow namespaces" in message


def test_without_a_filter_for_the_machine_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    patched(monkeypatch, "system_calls._MACHINES = {}")
    found = run("open('ran', 'w')\ndef act(): return 'held'")
    expect(found, "failed", "no list of system calls")


def test_another_system_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxError, match="the sandbox is made of Linux namespaces; this is darwin"):
        sandbox.run("", HELD, "act")

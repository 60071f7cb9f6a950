"""Walls around a program that nobody vouches for, made of Linux namespaces (namespaces(7), pivot_root(2)).

`separate` takes the process out of the machine's network, its message queues and, for its children, its processes;
`enter`, in a child, leaves nothing of the file system but Python's own files, read only, and an empty folder in memory,
and gives up every privilege; `limit` bounds what a process may use. Every step is checked: one that fails is an
OSError, and nothing may then be run. Of the standard library only, since it runs in a bare interpreter.
"""

import ctypes
import os
import resource
import signal
import sys
import tempfile
from pathlib import Path

WORK = Path("/work")
"""The program's folder, inside."""
NOBODY = 65534
"""Who the program is, inside a user namespace."""
UNUSED_IDS = 0x7000_0000
"""Where user ids begin that no person and no service has."""

# Constants of <linux/sched.h>, <linux/mount.h>, <linux/prctl.h>, <linux/capability.h> and <asm-generic/unistd.h>.
_NEW_USER = 0x10000000
_NEW_OTHERS = 0x00020000 | 0x08000000 | 0x20000000 | 0x40000000  # mounts, IPC, processes, network
_BIND, _RECURSIVE, _PRIVATE = 0x1000, 0x4000, 1 << 18
_DETACH = 2
_NO_SET_ID, _NO_DEVICES = 2, 4
_READ_ONLY = 1 | _NO_SET_ID | _NO_DEVICES
_AT_CWD, _AT_RECURSIVE, _MOUNT_SETATTR = -100, 0x8000, 442
_DEATH_SIGNAL, _DUMPABLE, _NO_NEW_PRIVILEGES = 1, 4, 38
_CAPABILITIES_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def separate() -> int | None:
    """Enter new namespaces; a child then is the first process of its own.

    Returns:
        The id that `enter` is to take; None in a user namespace, where it is one that means nothing outside.

    Raises:
        OSError: the kernel refuses.
    """
    if Path("/proc/self/uid_map").read_text().split() == ["0", "0", str(2**32 - 1)]:  # no user namespace so far
        unused = UNUSED_IDS + os.getpid()
        if _libc.unshare(_NEW_OTHERS) == 0:
            _die_with_parent()
            return unused
        if os.geteuid() == 0:  # in a container, without root's powers, but exempt from limits
            _become(unused)
    user, group = os.geteuid(), os.getegid()
    _call("unshare", _NEW_OTHERS | _NEW_USER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{NOBODY} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{NOBODY} {group} 1")
    _die_with_parent()
    return None


def enter(identity: int | None) -> None:
    """Leave the machine's files and every privilege behind, for good; the working folder is `WORK`, which is empty.

    Raises:
        OSError: a step fails, as on Linux before 5.12 (mount_setattr).
    """
    _change_root(identity)
    if identity is not None:
        _become(identity)
    _call("prctl", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    header, none = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0), (ctypes.c_uint32 * 6)()
    _call("capset", header, none)
    _call("prctl", _DUMPABLE, 0, 0, 0, 0)  # no other process may look into this one's memory
    _die_with_parent()


def limit(*, seconds: int, memory: int, alone: bool) -> None:
    """Bound this process: seconds of CPU, bytes of memory; `alone`: no further processes, hardly a file."""
    limits = {resource.RLIMIT_CPU: seconds, resource.RLIMIT_AS: memory, resource.RLIMIT_CORE: 0}
    if alone:
        limits |= {
            resource.RLIMIT_NPROC: 1,
            resource.RLIMIT_FSIZE: 1 << 20,
            resource.RLIMIT_NOFILE: 32,
            resource.RLIMIT_MEMLOCK: 0,
        }
    for kind, most in limits.items():
        resource.setrlimit(kind, (most, most))


def _change_root(identity: int | None) -> None:
    wanted = {Path(path): Path(path).resolve() for path in _python_files() if Path(path).exists()}
    _mount(None, "/", None, _RECURSIVE | _PRIVATE)
    base = Path(tempfile.gettempdir())
    _mount("tmpfs", base, "tmpfs", _NO_SET_ID | _NO_DEVICES, "size=1m,nr_inodes=1k,mode=755")
    old = base / "old"
    old.mkdir()
    _call("pivot_root", bytes(base), bytes(old))
    os.chdir("/")
    for inside, outside in wanted.items():
        source = Path("/old") / outside.relative_to("/")
        if source.is_dir():
            inside.mkdir(parents=True, exist_ok=True)
        else:
            inside.parent.mkdir(parents=True, exist_ok=True)
            inside.touch()
        _mount(source, inside, None, _BIND | _RECURSIVE)
        _make_read_only(inside)
    WORK.mkdir()
    _mount("tmpfs", WORK, "tmpfs", _NO_SET_ID | _NO_DEVICES, "size=4m,nr_inodes=256,mode=700")
    if identity is not None:
        os.chown(WORK, identity, identity)
    _call("umount2", b"/old", _DETACH)
    Path("/old").rmdir()
    _make_read_only(Path("/"), 0)
    os.chdir(WORK)


def _python_files() -> list[str]:
    """What Python imports from, and the libraries that its own parts are linked with."""
    places = [f"{prefix}/{name}" for prefix in (sys.base_prefix, sys.base_exec_prefix) for name in ("lib", "lib64")]
    return [*places, "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache"]


def _die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it is gone; to be said anew when its user changes."""
    _call("prctl", _DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)


def _become(identity: int) -> None:
    os.setgroups([])
    os.setresgid(identity, identity, identity)
    os.setresuid(identity, identity, identity)
    _call("prctl", _DUMPABLE, 1, 0, 0, 0)  # else what is below /proc/self belongs to root


def _make_read_only(path: Path, flags: int = _AT_RECURSIVE) -> None:
    attributes = (ctypes.c_uint64 * 4)(_READ_ONLY, 0, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    _call(
        "syscall", ctypes.c_long(_MOUNT_SETATTR), _AT_CWD, bytes(path), flags, attributes, size, named="mount_setattr"
    )


def _mount(source: Path | str | None, target: Path | str, kind: str | None, flags: int, options: str = "") -> None:
    encoded = [None if text is None else str(text).encode() for text in (source, target, kind)]
    _call("mount", *encoded, ctypes.c_ulong(flags), options.encode() or None)


def _call(name: str, *arguments: object, named: str = "") -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{named or name}: {os.strerror(number)}")

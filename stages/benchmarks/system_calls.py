"""System calls that a program of plain computation has no use for, denied for good by a filter (seccomp(2))."""

import ctypes
import errno
import os
import struct
from typing import NamedTuple


class _Machine(NamedTuple):
    audit: int
    """AUDIT_ARCH of <linux/audit.h>."""
    denied: tuple[int, ...]


# Processes and programs: clone, (fork, vfork,) execve, execveat, unshare, setns.
# Mounts and handles: mount, umount2, pivot_root, chroot, name_to_handle_at, open_by_handle_at.
# Other processes: ptrace, process_vm_readv, process_vm_writev, kcmp.
# Ways out: socket, socketpair.  The kernel's own: add_key, request_key, keyctl, bpf, perf_event_open, userfaultfd.
# Memory that RLIMIT_AS does not see: memfd_create, shmget, msgget, semget, mq_open, io_setup.
_MACHINES = {  # numbers of <asm/unistd_64.h> and <asm-generic/unistd.h>
    "x86_64": _Machine(
        0xC000003E,
        (
            *(56, 57, 58, 59, 322, 272, 308),
            *(165, 166, 155, 161, 303, 304),
            *(101, 310, 311, 312),
            *(41, 53, 248, 249, 250, 321, 298, 323),
            *(319, 29, 68, 64, 240, 206),
        ),
    ),
    "aarch64": _Machine(
        0xC00000B7,
        (
            *(220, 221, 281, 97, 268),
            *(40, 39, 41, 51, 264, 265),
            *(117, 270, 271, 272),
            *(198, 199, 217, 218, 219, 280, 241, 282),
            *(279, 194, 186, 190, 180, 0),
        ),
    ),
}
_NEWER = 424
"""From here on numbers are the same everywhere; calls of Linux 5.1 and later are said not to exist."""

# Constants of <linux/bpf_common.h>, <linux/seccomp.h> and <linux/prctl.h>.
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_SET_SECCOMP, _FILTER = 22, 2


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def deny() -> None:
    """Deny them to this process, which must have no_new_privs set.

    Raises:
        OSError: the kernel takes no filter, or the machine is of a kind whose numbers are not here.
    """
    kind = os.uname().machine
    if kind not in _MACHINES:
        raise OSError(errno.ENOSYS, f"seccomp: no list of system calls for {kind}")
    machine = _MACHINES[kind]
    code = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, machine.audit), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    code += [(_AT_LEAST, 0, 1, _NEWER), (_RETURN, 0, 0, _ERROR | errno.ENOSYS)]  # those of the x32 ABI too
    for number in machine.denied:
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERROR | errno.EPERM)]
    code.append((_RETURN, 0, 0, _ALLOW))
    packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
    program = _Program(len(code), packed)
    if ctypes.CDLL(None, use_errno=True).prctl(_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")

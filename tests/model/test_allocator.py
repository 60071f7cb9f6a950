"""Freed memory is kept: a large block that comes and goes costs its page faults once."""

import ctypes
import mmap
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from stages.model.allocator import keep_freed_memory
from tests.imports import ROOT

COUNT_FAULTS = """
import resource
import sys
from stages.model.allocator import keep_freed_memory

BLOCK = 64 << 20  # more than glibc ever keeps by itself

def faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        block = bytearray(BLOCK)
        del block
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

expected = int(sys.argv[1])
untold = faults(10)
keep_freed_memory(expected)
keep_freed_memory(expected)
print(untold, faults(1), faults(10))
"""


def count_faults(expected: int) -> list[int]:
    """Page faults of ten blocks, then, told twice to keep memory, of one block, and of ten more."""
    command = [sys.executable, "-c", COUNT_FAULTS, str(expected)]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [int(word) for word in printed.split()]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another allocator than glibc's")
@pytest.mark.parametrize("expected", [0, 256 << 20])
def test_freed_blocks_are_not_faulted_in_again(expected: int) -> None:
    untold, _, told = count_faults(expected)
    assert told < untold / 20


class RecordedCalls:
    """A C library of which only the calls are seen; malloc's answer is given."""

    def __init__(self, block: int | None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        for name, answer in (("mallopt", 1), ("malloc", block), ("madvise", 0), ("free", None)):
            setattr(self, name, self._recorded(name, answer))

    def _recorded(self, name: str, answer: int | None) -> Callable[..., int | None]:
        def call(*arguments: int) -> int | None:
            self.calls.append((name, *arguments))
            return answer

        return call


@pytest.mark.parametrize(
    ("block", "calls"),
    [
        (0x10_0010, [("madvise", 0x20_0000, 0x3E0_0000, mmap.MADV_HUGEPAGE), ("free", 0x10_0010)]),
        (0x20_0000, [("madvise", 0x20_0000, 0x400_0000, mmap.MADV_HUGEPAGE), ("free", 0x20_0000)]),
        (None, []),
    ],
)
def test_huge_pages_are_asked_for_inside_the_block_alone(
    monkeypatch: pytest.MonkeyPatch, block: int | None, calls: list[tuple[Any, ...]]
) -> None:
    libc = RecordedCalls(block)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libc)
    keep_freed_memory(64 << 20)
    assert libc.calls[-len(calls) - 1 :] == [("malloc", 64 << 20), *calls]


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    """A C library without mallopt, as musl, or another system; any call would fail."""

    def load(name: Any) -> SimpleNamespace:
        assert platform == "linux"
        return SimpleNamespace()

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", load)
    keep_freed_memory(1 << 30)

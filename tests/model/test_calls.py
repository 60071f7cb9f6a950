import multiprocessing
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.model.calls import CallStore

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


def test_what_is_put_comes_back(tmp_path: Path) -> None:
    store = CallStore(tmp_path / "calls.db")

    @given(value=st.dictionaries(st.text(), JSON))
    def check(value: dict[str, object]) -> None:
        store.put("key", value)
        assert store.get("key") == value
        assert store.get("another key") is None

    check()


def test_the_default_place_is_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    CallStore().put("key", {"a": 1})
    assert (tmp_path / ".calls.db").exists()
    assert CallStore().get("key") == {"a": 1}


def write_many(path: Path, first: int) -> None:
    store = CallStore(path)
    for number in range(first, first + 50):
        store.put(str(number), {"n": number})


def write_and_hang(path: Path) -> None:
    write_many(path, 0)
    time.sleep(60)


def test_processes_share_it(tmp_path: Path) -> None:
    path = tmp_path / "calls.db"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many, args=(path, first)) for first in (0, 25, 50)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    store = CallStore(path)
    assert [store.get(str(number)) for number in range(100)] == [{"n": number} for number in range(100)]


def test_a_kill_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "calls.db"
    process = multiprocessing.get_context("spawn").Process(target=write_and_hang, args=(path,))
    process.start()
    store = CallStore(path)
    while store.get("49") is None:
        time.sleep(0.02)
    process.kill()
    process.join()
    store.close()
    assert CallStore(path).get("0") == {"n": 0}


def overwrite(path: Path) -> None:
    path.write_bytes(b"not a database at all, " * 1000)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def spoil_pages(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:8192] = bytes([255]) * 4096
    path.write_bytes(content)


def filled(path: Path) -> None:
    write_many(path, 0)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@pytest.mark.parametrize("damage", [overwrite, cut, spoil_pages])
def test_a_damaged_file_is_moved_aside_with_a_word(
    damage: Callable[[Path], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / ".calls.db"
    filled(path)
    damage(path)
    spoiled = path.read_bytes()
    store = CallStore(path)
    assert store.get("0") is None
    store.put("0", {"new": True})
    store.close()
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"warning: {path}: damaged (")
    assert (tmp_path / ".calls.db.damaged").read_bytes() == spoiled
    assert CallStore(path).get("0") == {"new": True}


def test_damage_that_is_met_later_is_mended_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / ".calls.db"
    filled(path)
    store = CallStore(path)
    assert store.get("0") == {"n": 0}
    for name in (path, Path(f"{path}-wal")):
        name.write_bytes(b"x" * 8192)
    for number in range(60):
        store.put(f"new {number}", {})
        assert store.get(f"new {number}") == {}
    assert capfd.readouterr().err.count("\n") <= 1


def test_a_changed_value_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / ".calls.db"
    filled(path)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE calls SET value = replace(value, '7', '8') WHERE key = '7'")
    store = CallStore(path)
    assert store.get("7") is None
    assert store.get("6") == {"n": 6}


def test_a_file_of_something_else_is_left_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "calls.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE calls (anything TEXT)")
    store = CallStore(path)
    store.put("key", {})
    assert store.get("key") is None
    assert "going on without it" in capfd.readouterr().err
    assert path.exists()


def test_where_nothing_can_be_written_the_run_goes_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "calls.db").mkdir()
    store = CallStore(tmp_path / "calls.db")
    for _ in range(3):
        store.put("key", {})
        assert store.get("key") is None
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "going on without it" in said


def test_a_full_disk_is_said_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store = CallStore(tmp_path / "calls.db")
    store.put("small", {"a": 1})
    assert store._db is not None
    store._db.execute("PRAGMA max_page_count = 3")
    for number in range(3):
        store.put(str(number), {"text": "x" * 100_000})
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "database or disk is full" in said
    assert CallStore(tmp_path / "calls.db").get("small") == {"a": 1}


def test_a_lock_that_stays_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stages.model.calls.BUSY_SECONDS", 0.1)
    write_many(tmp_path / "calls.db", 0)
    with sqlite3.connect(tmp_path / "calls.db", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        CallStore(tmp_path / "calls.db").put("key", {})
        assert "database is locked" in capfd.readouterr().err

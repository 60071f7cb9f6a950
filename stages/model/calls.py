"""Replies of endpoints, kept by content in a local database: what was asked once is never asked again.

A reply is on disk before the next one is waited for, so a killed run loses none; several processes may share the file.
"""

import hashlib
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from stages.pipeline.files import dvc_root
from stages.pipeline.progress import say

BUSY_SECONDS = 30.0
"""So long one process waits for another's write, which takes milliseconds."""

Value = dict[str, Any]


class CallStore:
    """JSON objects by key, in SQLite. Trouble with the file is said once and costs repeated calls, never the run."""

    def __init__(self, path: Path | None = None) -> None:
        """`path` is .calls.db of the repository where none is given."""
        self._path = path or dvc_root() / ".calls.db"
        self._db: sqlite3.Connection | None = None
        self._useless = False

    def get(self, key: str) -> Value | None:
        """What was put under `key`; None where nothing was, or where it can no longer be trusted."""
        row = self._do("SELECT value, checksum FROM calls WHERE key = ?", key)
        if row is None or row[1] != _checksum(key, row[0]):
            return None
        value: Value = json.loads(row[0])
        return value

    def put(self, key: str, value: Value) -> None:
        """Keep `value`; when this returns, it survives a kill."""
        text = json.dumps(value, sort_keys=True, ensure_ascii=False)
        self._do("INSERT OR REPLACE INTO calls VALUES (?, ?, ?)", key, text, _checksum(key, text))

    def close(self) -> None:
        """Let go of the file; it is opened again when it is needed."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def _do(self, statement: str, *values: str) -> Any:
        """The first row, if there is one. Once damage is met the file is replaced, and the statement runs again."""
        for mended in (False, True):
            if self._useless:
                return None
            try:
                self._db = self._db or self._open()
                return self._db.execute(statement, values).fetchone()
            except sqlite3.OperationalError as error:  # a full disk, no permission, a lock that stays
                self._give_up(str(error))
            except sqlite3.DatabaseError as error:
                self.close()
                if mended:
                    self._give_up(str(error))
        return None

    def _open(self) -> sqlite3.Connection:
        try:
            return _connect(self._path)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            aside = self._path.with_name(f"{self._path.name}.damaged")
            say(f"warning: {self._path}: damaged ({error}); moved to {aside.name}, and its calls are made again")
            try:
                self._path.replace(aside)
                for end in ("-wal", "-shm"):
                    self._path.with_name(self._path.name + end).unlink(missing_ok=True)
            except OSError as trouble:
                raise sqlite3.OperationalError(str(trouble.strerror)) from None
            return _connect(self._path)

    def _give_up(self, why: str) -> None:
        self._useless = True
        self.close()
        say(f"warning: {self._path}: {why}; going on without it, so a rerun makes these calls again")


def _connect(path: Path) -> sqlite3.Connection:
    """Open the file, whole or new.

    Raises:
        sqlite3.OperationalError: it cannot be used.
        sqlite3.DatabaseError: it is damaged.
    """
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("CREATE TABLE IF NOT EXISTS calls (key TEXT PRIMARY KEY, value TEXT, checksum TEXT) WITHOUT ROWID")
        with closing(db.execute("PRAGMA quick_check(1)")) as found:
            verdict = str(found.fetchone()[0])
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict.splitlines()[-1])
        db.execute("SELECT key, value, checksum FROM calls LIMIT 1").fetchone()
    except BaseException:
        db.close()
        raise
    return db


def _checksum(key: str, text: Any) -> str:
    """SQLite does not see a bit that flipped inside a text."""
    return hashlib.sha256(f"{key}\n{text}".encode()).hexdigest()[:16]

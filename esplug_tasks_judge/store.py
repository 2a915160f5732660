"""Store on disk that all grading processes share: the cache of replies, and each endpoint's pace.

A SQLite file in WAL mode, which is safe among processes of one machine. It must not be on a network file system.
"""

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from esplug import StopRun
from esplug_tasks_judge.replies import Reply

_LOCK_TIMEOUT = 60.0  # seconds to wait for another process
_LONGEST_WAIT = 86400.0  # seconds; a longer one is from a clock that was wrong
_TABLES = """
CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL, time REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS endpoints (name TEXT PRIMARY KEY, next_turn REAL NOT NULL, last_reply REAL NOT NULL)
    WITHOUT ROWID;
"""


class Store:
    """The store in ``folder``, for one endpoint.

    Every method raises :class:`esplug.StopRun` if the file cannot be used.
    """

    def __init__(self, folder: Path, endpoint: str) -> None:
        self._file, self._endpoint = folder / "replies.sqlite", endpoint
        with self._may_fail():
            folder.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self._file, timeout=_LOCK_TIMEOUT, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            for statement in _TABLES.split(";"):
                self._connection.execute(statement)
            self._connection.execute("INSERT OR IGNORE INTO endpoints VALUES (?, 0, 0)", [endpoint])

    def find(self, key: str) -> Reply | None:
        """Return the reply to a request, if it is known."""
        with self._may_fail():
            row = self._connection.execute("SELECT reply FROM replies WHERE key = ?", [key]).fetchone()
        try:
            return Reply.of_json(row[0]) if row else None
        except (ValueError, TypeError):  # damaged
            return None

    def keep(self, key: str, reply: Reply) -> Reply:
        """Keep a reply, and return the one that counts: the first that any process kept."""
        with self._may_fail():
            row = [key, reply.to_json(), time.time()]
            self._connection.execute("INSERT INTO replies VALUES (?, ?, ?) ON CONFLICT DO NOTHING", row)
            self._connection.execute("UPDATE endpoints SET last_reply = ? WHERE name = ?", [row[2], self._endpoint])
        return self.find(key) or reply

    def turn(self, interval: float) -> float:
        """Take the next turn to send a request, ``interval`` seconds after the one before. Returns seconds to wait."""
        with self._may_fail():
            self._connection.execute("BEGIN IMMEDIATE" if interval else "BEGIN")
            try:
                now, turn = time.time(), self._column("next_turn")
                turn = now if turn > now + _LONGEST_WAIT else max(now, turn)
                if interval:
                    self._set_turn(turn + interval)
            finally:
                self._connection.execute("COMMIT")
        return turn - now

    def pause(self, seconds: float) -> None:
        """Let no process send a request for a while."""
        with self._may_fail():
            until = time.time() + seconds
            self._connection.execute(
                "UPDATE endpoints SET next_turn = max(next_turn, ?) WHERE name = ?", [until, self._endpoint]
            )

    def last_reply(self) -> float:
        """Return when the endpoint last replied to any process, in Unix seconds; 0 if it never did."""
        with self._may_fail():
            return self._column("last_reply")

    def _column(self, name: str) -> float:
        (value,) = self._connection.execute(f"SELECT {name} FROM endpoints WHERE name = ?", [self._endpoint]).fetchone()
        return float(value)

    def _set_turn(self, turn: float) -> None:
        self._connection.execute("UPDATE endpoints SET next_turn = ? WHERE name = ?", [turn, self._endpoint])

    @contextmanager
    def _may_fail(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            remedy = "free space, or name another folder with --task-option cache=FOLDER"
            raise StopRun(f"the judge's cache {self._file} cannot be used ({error}); {remedy}") from error


def key_of(base_url: str, request: Mapping[str, Any]) -> str:
    """Return the key of a request, which depends on everything that decides the reply."""
    return sha256(json.dumps([base_url, request], sort_keys=True).encode()).hexdigest()

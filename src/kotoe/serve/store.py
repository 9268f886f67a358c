"""Jobs and their pictures, in one SQLite file, for as long as they are kept.

A job is written before its caller hears of it and again when it ends, so that a server that was killed knows, once
restarted, what it had finished; what it had not is then "lost". One server at a time has the file.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kotoe.errors import UserError

VERSION = 1  # of the tables
TABLES = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, state TEXT NOT NULL, created REAL NOT NULL, document TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS pictures (
    id TEXT PRIMARY KEY, job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE, content BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS jobs_by_age ON jobs (created);
CREATE INDEX IF NOT EXISTS pictures_by_job ON pictures (job);
"""
PICTURE = "INSERT INTO pictures VALUES (?, ?, ?) ON CONFLICT (id) DO NOTHING"
ENDED = ("done", "failed", "cancelled", "lost")
EXPIRED_AT_ONCE = 20  # jobs: between two batches others have their turn


class StoreError(Exception):
    """The file can't be written: a full disk, most often. What was to be kept is only in memory."""


class Store:
    """The jobs of a server. Safe to use from several threads.

    path: the file, made if it isn't there; None: memory alone.

    Raises UserError where the file is another server's, of another version, or no store.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self.lock = path, threading.Lock()
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch(mode=0o600)  # prompts and pictures of people
            self.db = sqlite3.connect(":memory:" if path is None else path, timeout=1.0, check_same_thread=False)
            self.db.executescript("PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA foreign_keys=ON;")
            self.db.execute("PRAGMA synchronous=NORMAL")
            (version,) = self.db.execute("PRAGMA user_version").fetchone()
            if version not in (0, VERSION):
                raise UserError(f"{path} is a store of version {version}", allowed=f"version {VERSION}, or a new file")
            self.db.executescript(f"BEGIN IMMEDIATE; {TABLES} PRAGMA user_version={VERSION}; COMMIT;")
            self.lost = self._forsake()
        except OSError as error:
            raise UserError(f"can't write {path}: {error.strerror}", allowed="a writable folder") from error
        except sqlite3.DatabaseError as error:
            if "locked" in str(error):
                raise UserError(
                    f"{path} is in use by another server", allowed="one server for each store", hint="--store FILE"
                ) from error
            raise UserError(
                f"{path} can't be used as a store: {error}", allowed="a new file, or one of ours"
            ) from error

    def _forsake(self) -> int:
        """Mark what an earlier server had not finished; how many jobs that are."""
        marks = ", ".join("?" * len(ENDED))
        found = self.db.execute(f"SELECT id, document FROM jobs WHERE state NOT IN ({marks})", ENDED).fetchall()
        for job, text in found:
            document = json.dumps(lost(json.loads(text)), ensure_ascii=False)
            self.db.execute("UPDATE jobs SET state = 'lost', document = ? WHERE id = ?", (document, job))
        self.db.commit()
        return len(found)

    def put(self, job: str, owner: str, created: float, document: Mapping[str, Any]) -> None:
        """Write a job as it is now, new or not. created: seconds since 1970. Raises StoreError."""
        self.put_whole(job, owner, created, {}, document)

    def put_whole(
        self, job: str, owner: str, created: float, pictures: Mapping[str, bytes], document: Mapping[str, Any]
    ) -> None:
        """The same with its pictures' files by their names: all of it or nothing. Raises StoreError."""
        text = json.dumps(document, ensure_ascii=False)
        whole = "ON CONFLICT (id) DO UPDATE SET state = excluded.state, document = excluded.document"
        self._write(
            (f"INSERT INTO jobs VALUES (?, ?, ?, ?, ?) {whole}", (job, owner, document["state"], created, text)),
            *((PICTURE, (name, job, content)) for name, content in pictures.items()),
        )

    def update(self, job: str, document: Mapping[str, Any]) -> None:
        """Write a job as it is now, unless it was deleted. Raises StoreError."""
        text = json.dumps(document, ensure_ascii=False)
        self._write(("UPDATE jobs SET state = ?, document = ? WHERE id = ?", (document["state"], text, job)))

    def put_picture(self, name: str, job: str, content: bytes) -> None:
        """Write a picture's file; one that is there already stays. Raises StoreError."""
        self._write((PICTURE, (name, job, content)))

    def job(self, job: str) -> tuple[str, dict[str, Any]] | None:
        """Owner and document."""
        row = self._read("SELECT owner, document FROM jobs WHERE id = ?", (job,))
        return None if row is None else (row[0], json.loads(row[1]))

    def picture(self, name: str) -> tuple[str, bytes] | None:
        """Owner and file."""
        row = self._read(
            "SELECT jobs.owner, content FROM pictures JOIN jobs ON jobs.id = pictures.job WHERE pictures.id = ?",
            (name,),
        )
        return None if row is None else (row[0], row[1])

    def delete(self, job: str) -> None:
        """A job and its pictures. Raises StoreError."""
        self._write(("DELETE FROM jobs WHERE id = ?", (job,)))

    def expire(self, before: float, running: Iterable[str] = ()) -> None:
        """What was made before then and isn't running, a few jobs at a time: others need the file too.

        Raises StoreError.
        """
        at_work = tuple(running)
        marks = ", ".join("?" * len(at_work))
        some = f"SELECT id FROM jobs WHERE created < ? AND id NOT IN ({marks}) LIMIT {EXPIRED_AT_ONCE}"
        while self._write((f"DELETE FROM jobs WHERE id IN ({some})", (before, *at_work))):
            pass

    def close(self) -> None:
        """Let go of the file."""
        with self.lock:
            self.db.close()

    def _read(self, query: str, values: tuple[Any, ...]) -> Any:
        with self.lock:
            return self.db.execute(query, values).fetchone()

    def _write(self, *statements: tuple[str, tuple[Any, ...]]) -> int:
        """All of them or none; how many rows it was."""
        with self.lock:
            try:
                with self.db:
                    return sum(self.db.execute(query, values).rowcount for query, values in statements)
            except (sqlite3.Error, OSError, UnicodeError) as error:
                raise StoreError(str(error)) from error


def lost(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document of a job that its server did not finish."""
    error = {
        "message": "The server ended before this was done. What it had finished of it is kept.",
        "type": "server_error",
        "param": None,
        "code": "lost",
    }
    return {**document, "state": "lost", "place": 0, "seconds": None, "error": error}

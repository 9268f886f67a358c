"""A run is a directory; the same command resumes it. Standard library only.

runs/base/
  config.json     what was asked for; a run directory of another configuration is an error
  env.json        versions and machine of every session that worked on the run
  metrics.jsonl   one JSON object per line, each with its step
  log.txt         what was said
  samples/        pictures drawn while training
  state.pt ...    whatever `save` was given, always whole: written beside and renamed
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from kotoe.config import differing_keys, dumps, read_json, to_json
from kotoe.errors import UserError

_PACKAGES = ("kotoe", "torch", "numpy", "tokenizers", "sentencepiece", "safetensors", "pillow")


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends well and vanishes when it does not.

    The file is on disk before the rename: a reader sees the old file or the new file, whole, even after a power
    cut. The temporary name keeps the suffix, which some writers look at.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temp
        _fsync(temp)
        os.replace(temp, path)
        _fsync(path.parent)
    finally:
        with suppress(FileNotFoundError):
            temp.unlink()


def write_atomic(path: str | Path, data: bytes | str) -> Path:
    """Write a whole file or nothing."""
    with atomic(path) as temp:
        temp.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
    return Path(path)


def cache_folder() -> Path:
    """Where is kept what can be made again: KOTOE_CACHE, else the platform's cache folder."""
    if asked := os.environ.get("KOTOE_CACHE"):
        return Path(asked).expanduser()
    if sys.platform == "darwin":
        return Path("~/Library/Caches/kotoe").expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "kotoe"


def _fsync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows has no handle for a directory
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def run_name(verb: str, config: Any) -> str:
    """`<utc>-<verb>-<hash of the config>`: a directory name that sorts by time and tells configs apart."""
    text = json.dumps(to_json(config), sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(text.encode("utf-8")).hexdigest()[:8]
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{verb}-{digest}"


def environment() -> dict[str, Any]:
    """Versions and machine, without names of users or hosts."""
    import platform  # these two take longer to import than all of `kotoe --help`
    from importlib import metadata

    versions = {}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "arguments": sys.argv[1:],
        "packages": versions,
    }


class Run:
    """One run directory, created or resumed. Use as a context manager: it holds the directory's lock.

    directory: where the run lives.
    config:    a dataclass or JSON-able dict; a directory of another one is a UserError naming the differing keys.
    free:      top-level config keys that may change between sessions because the result's path does not hang on
               them (how long to go on, how often to log).
    """

    def __init__(self, directory: str | Path, config: Any, *, free: Collection[str] = ()) -> None:
        self.directory = Path(directory)
        self.config: dict[str, Any] = json.loads(dumps(config))
        if self.directory.exists() and not self.directory.is_dir():
            raise UserError(f"run directory {self.directory} is a file", allowed="a new or existing directory")
        path = self.directory / "config.json"
        self.resumed = path.exists()
        if not self.resumed and self.directory.exists() and any(self.directory.iterdir()):
            leftovers = [p.name for p in self.directory.iterdir() if not p.name.startswith(".")]
            if leftovers:
                raise UserError(
                    f"{self.directory} holds files but no config.json ({', '.join(sorted(leftovers)[:3])})",
                    allowed="an empty or new directory, or one that a run made",
                )
        self._lock = _Lock(self.directory)
        try:
            if self.resumed:
                self._check(read_json(path), free)
            write_atomic(path, dumps(self.config, indent=2) + "\n")
            self._note_session()
            self._repair()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the directory for another process. Idempotent."""
        self._lock.release()

    def _check(self, before: Any, free: Collection[str]) -> None:
        changed = [k for k in differing_keys(before, self.config) if k.split(".")[0] not in free]
        if changed:
            shown = "; ".join(f"{k}: {_at(before, k)} there, {_at(self.config, k)} asked" for k in changed[:5])
            more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
            raise UserError(
                f"{self.directory} is a run of another configuration ({shown}{more})",
                allowed="the same configuration, to resume, or another directory",
                hint=f"Its configuration is {self.directory / 'config.json'}",
            )

    def _note_session(self) -> None:
        path = self.directory / "env.json"
        sessions = read_json(path)["sessions"] if path.exists() else []
        write_atomic(path, dumps({"sessions": [*sessions, environment()]}, indent=2) + "\n")

    def _repair(self) -> None:
        """Cut a last line that a kill left half-written."""
        path = self.metrics_path
        if path.exists():
            data = path.read_bytes()
            if data and not data.endswith(b"\n"):
                write_atomic(path, data[: data.rfind(b"\n") + 1])

    # --- numbers

    @property
    def metrics_path(self) -> Path:
        return self.directory / "metrics.jsonl"

    def metrics(self) -> list[dict[str, Any]]:
        """Every line of metrics.jsonl, oldest first."""
        if not self.metrics_path.exists():
            return []
        return [json.loads(line) for line in self.metrics_path.read_text(encoding="utf-8").splitlines()]

    def log(self, *, step: int, **values: Any) -> None:
        """Append one line to metrics.jsonl; it is on disk when this returns."""
        self._append(self.metrics_path, dumps({"step": step, **values}) + "\n")

    def rewind(self, step: int) -> None:
        """Forget the metrics after `step`: a resumed run repeats them, and each step is to be there once."""
        kept = [m for m in self.metrics() if m["step"] <= step]
        if len(kept) < len(self.metrics()):
            write_atomic(self.metrics_path, "".join(dumps(m) + "\n" for m in kept))

    def say(self, text: str) -> None:
        """Append a dated line to log.txt."""
        self._append(self.directory / "log.txt", f"{datetime.now(UTC).isoformat(timespec='seconds')} {text}\n")

    @staticmethod
    def _append(path: Path, text: str) -> None:
        # One write call on a descriptor opened for appending: a kill leaves the whole line or a torn last one.
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, text.encode("utf-8"))
            os.fsync(handle)
        finally:
            os.close(handle)

    # --- files

    def path(self, name: str) -> Path:
        """Where a file of that name is, or would be, in this run. Names that lead out of it are errors."""
        path = self.directory / name
        if not path.resolve().is_relative_to(self.directory.resolve()):
            raise UserError(f"{name!r} leads out of the run directory", allowed="a name inside it")
        return path

    def has(self, name: str) -> bool:
        return self.path(name).exists()

    def save(self, name: str, write: Callable[[Path], None]) -> Path:
        """Save a file whole or not at all: `write` gets a temporary path, which is then renamed to `name`."""
        target = self.path(name)
        with atomic(target) as temp:
            write(temp)
        return target

    def sample_path(self, step: int, name: str = "grid", suffix: str = ".png") -> Path:
        """samples/<step>-<name>.png, its folder made."""
        path = self.path(f"samples/{step:08d}-{name}{suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


class Following(Run):
    """A run that another process holds: what it has can be read, and nothing is written."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)

    def close(self) -> None:
        """There is no lock to release."""

    def log(self, *, step: int, **values: Any) -> None:
        """Nothing: the process that holds the run logs."""

    def rewind(self, step: int) -> None:
        """Nothing, as above."""

    def say(self, text: str) -> None:
        """Nothing, as above."""

    def save(self, name: str, write: Callable[[Path], None]) -> Path:
        """Nothing, as above. Gives where the file will be."""
        return self.path(name)


# --- Several processes, and signals --------------------------------------------------------------------------


def processes_started() -> int:
    """How many processes torchrun has started with this command; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ and "MASTER_ADDR" in os.environ else 1


def leads() -> bool:
    """Whether this process speaks and writes: the only one, or torchrun's first."""
    return processes_started() == 1 or os.environ["RANK"] == "0"


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Within it Ctrl-C and SIGTERM are noted, and the answer of what it gives, so that work can end where it is whole.

    A second one is a KeyboardInterrupt at once. Only the main thread gets signals: in others nothing is noted.
    """
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {each: signal.signal(each, note) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(noted)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _at(document: Any, dotted: str) -> str:
    for key in dotted.split("."):
        if not isinstance(document, dict) or key not in document:
            return "absent"
        document = document[key]
    text = json.dumps(to_json(document), ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


class _Lock:
    """One process per run directory. The system drops the lock with its holder, even after kill -9."""

    def __init__(self, directory: Path) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._handle: int | None = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(f"can't write in {directory}: {error.strerror}", allowed="a writable directory") from error
        try:
            _take(self._handle)
        except OSError as error:
            os.close(self._handle)
            self._handle = None
            raise UserError(
                f"{directory} is in use by another process", allowed="one process per run directory"
            ) from error

    def release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _take(handle: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

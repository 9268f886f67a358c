"""A real `kotoe serve` in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

READY_SECONDS = 60.0


@dataclass
class Served:
    """A server that listens. log: the file of its standard error."""

    url: str
    process: subprocess.Popen[str]
    log: Path
    options: tuple[str, ...] = field(default=())

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Its log so far."""
        return [json.loads(line) for line in self.log.read_text("utf-8").splitlines() if line.startswith("{")]

    def ready(self, seconds: float = READY_SECONDS) -> None:
        """Wait until it draws."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            assert self.process.poll() is None, self.log.read_text("utf-8")
            try:
                with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except urllib.error.HTTPError:
                pass  # 503: it loads
            time.sleep(0.02)
        raise AssertionError(f"not ready after {seconds} s: {self.log.read_text('utf-8')}")

    def stop(self, by: int = signal.SIGTERM) -> int:
        """End it; its exit code."""
        self.process.send_signal(by)
        return self.ended()

    def ended(self) -> int:
        """Wait until it has ended; its exit code."""
        code = self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


def start(*options: str, log: Path, env: dict[str, str] | None = None) -> Served:
    """A server on a free port, listening; it may not be ready yet. Its store is in memory unless options say."""
    stored = () if any(option.startswith("--store") for option in options) else ("--store", "none")
    command = [sys.executable, "-m", "kotoe", "serve", "--port", "0", "--json", *stored, *options]
    with open(log, "w") as file:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=file, text=True, env={**os.environ, **(env or {})}
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, log.read_text("utf-8")
    return Served(url=json.loads(line)["address"], process=process, log=log, options=options)


@contextmanager
def serving(*options: str, env: dict[str, str] | None = None) -> Iterator[Served]:
    """A server that is ready, ended afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        served = start(*options, log=Path(folder) / "log", env=env)
        try:
            served.ready()
            yield served
        finally:
            if served.process.poll() is None:
                served.stop()

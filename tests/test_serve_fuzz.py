"""One round of benchmarks/serve_fuzz.py; ten minutes of it are run by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.timeout(300)
def test_nothing_unforeseen() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "serve_fuzz.py"), "--minutes", "0", "--examples", "4"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing unforeseen" in done.stdout

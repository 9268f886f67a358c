"""The README's first page runs: its Python, and its commands, with the model that is in the clone."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
MAIN = "from kotoe.cli import main; main()"


def _kotoe(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `kotoe ...` in a folder, in a process of its own."""
    words = shlex.split(command, comments=True)
    assert words.pop(0).endswith("kotoe")
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv[0] = 'kotoe'; {MAIN}", *words],
        cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONUTF8": "1"},
    )  # fmt: skip


def _commands(text: str) -> list[str]:
    blocks = re.findall(r"^```\n(.*?)^```", text.replace("\\\n", " "), re.S | re.M)
    return [line for block in blocks for line in block.splitlines() if re.match(r"(\.venv/bin/)?kotoe ", line)]


def test_library_use(tmp_path: Path) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", README, re.S | re.M)
    assert len([line for line in code.splitlines() if line.strip()]) == 5
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "cat.png") as picture:
        assert picture.size == (128, 128)


def test_commands(tmp_path: Path) -> None:
    """In the README's order, so that a picture can be replayed once it is drawn."""
    commands = _commands(README)
    assert len(commands) == 5
    for command in commands:
        if "PICTURE" in command:
            pictures = sorted(p for p in (tmp_path / "out").glob("*.png") if p.name != "grid.png")
            command = command.replace("out/PICTURE.png", shlex.quote(str(pictures[0].relative_to(tmp_path))))
        done = _kotoe(command, tmp_path)
        assert done.returncode == 0, (command, done.stderr)
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        assert min(grid.size) > 128 * 3


def test_demo_is_the_command_under_the_picture() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8").replace("\\\n", " ")
    demo = next(line for line in makefile.splitlines() if "kotoe generate" in line)
    assert shlex.split(demo)[1:] == shlex.split(_commands(README)[0])[1:]


def traps(text: str) -> dict[str, list[str]]:
    """Trap to the tests that its row names."""
    return {
        row[0]: re.findall(r"`(test_\w+)`", row[-1])
        for line in text.splitlines()
        if (row := [cell.strip() for cell in line.strip("|").split("|")]) and re.fullmatch(r"T\d+", row[0])
    }


def test_all_sixteen_traps_are_listed_with_tests_of_their_name() -> None:
    assert traps("| T3 | what | ours | `test_t3_x`, `test_y` |") == {"T3": ["test_t3_x", "test_y"]}
    listed = traps((ROOT / "docs/numerics.md").read_text("utf-8"))
    assert list(listed) == [f"T{n}" for n in range(1, 17)]
    sources = [path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    there = {name for source in sources for name in re.findall(r"^def (test_\w+)\(", source, re.M)}
    for trap, tests in listed.items():
        assert set(tests) <= there, (trap, sorted(set(tests) - there))
        assert any(name.lower().startswith(f"test_{trap.lower()}_") for name in tests), trap

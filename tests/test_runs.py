"""Run directories: resumed by the same configuration, refused for another one, whole after any kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kotoe.errors import UserError
from kotoe.runs import Run, atomic, run_name, write_atomic

CONFIG = {"lr": 0.1, "steps": 5, "nested": {"seed": 1}}


def test_create_then_resume(tmp_path: Path) -> None:
    with Run(tmp_path / "a/b", CONFIG) as run:
        assert not run.resumed
        run.log(step=1, loss=0.5)
        run.say("begun")
    with Run(tmp_path / "a/b", CONFIG) as run:
        assert run.resumed
        assert run.metrics() == [{"step": 1, "loss": 0.5}]
        run.log(step=2, loss=0.25)
        assert [m["step"] for m in run.metrics()] == [1, 2]
    sessions = json.loads((tmp_path / "a/b/env.json").read_text())["sessions"]
    assert len(sessions) == 2
    assert sessions[0]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "begun" in (tmp_path / "a/b/log.txt").read_text()
    assert json.loads((tmp_path / "a/b/config.json").read_text()) == CONFIG


def test_another_configuration_is_an_error_naming_the_keys(tmp_path: Path) -> None:
    Run(tmp_path / "r", CONFIG).close()
    with pytest.raises(UserError, match=r"lr: 0\.1 there, 0\.2 asked; nested\.seed: 1 there, absent asked"):
        Run(tmp_path / "r", {**CONFIG, "lr": 0.2, "nested": {}})
    assert json.loads((tmp_path / "r/config.json").read_text()) == CONFIG


def test_free_keys_may_change(tmp_path: Path) -> None:
    Run(tmp_path / "r", CONFIG).close()
    with pytest.raises(UserError, match="steps"):
        Run(tmp_path / "r", {**CONFIG, "steps": 9})
    with Run(tmp_path / "r", {**CONFIG, "steps": 9}, free={"steps"}) as run:
        assert run.resumed
    assert json.loads((tmp_path / "r/config.json").read_text())["steps"] == 9


def test_one_process_per_directory(tmp_path: Path) -> None:
    with Run(tmp_path / "r", CONFIG), pytest.raises(UserError, match="in use by another process"):
        Run(tmp_path / "r", CONFIG)
    Run(tmp_path / "r", CONFIG).close()


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"no config\.json \(thesis\.tex\)"):
        Run(tmp_path, CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="is a file"):
        Run(tmp_path / "thesis.tex", CONFIG)


def test_a_torn_last_line_is_cut(tmp_path: Path) -> None:
    with Run(tmp_path / "r", CONFIG) as run:
        run.log(step=1)
    with run.metrics_path.open("a") as file:
        file.write('{"step": 2, "lo')
    with Run(tmp_path / "r", CONFIG) as run:
        assert run.metrics() == [{"step": 1}]
        run.log(step=2)
        assert run.metrics() == [{"step": 1}, {"step": 2}]


def test_rewind(tmp_path: Path) -> None:
    with Run(tmp_path / "r", CONFIG) as run:
        for step in range(1, 6):
            run.log(step=step)
        run.rewind(3)
        assert [m["step"] for m in run.metrics()] == [1, 2, 3]


def test_saved_whole_or_not_at_all(tmp_path: Path) -> None:
    with Run(tmp_path / "r", CONFIG) as run:
        run.save("deep/state.pt", lambda p: p.write_bytes(b"old") and None)

        def fails(path: Path) -> None:
            path.write_bytes(b"half of the n")
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run.save("deep/state.pt", fails)
        assert run.path("deep/state.pt").read_bytes() == b"old"
        assert [p.name for p in run.path("deep").iterdir()] == ["state.pt"]
        assert run.has("deep/state.pt")
        assert not run.has("other.pt")


def test_names_stay_inside(tmp_path: Path) -> None:
    with Run(tmp_path / "r", CONFIG) as run:
        with pytest.raises(UserError, match="leads out"):
            run.path("../r2/state.pt")
        assert run.sample_path(12) == tmp_path / "r/samples/00000012-grid.png"
        assert run.sample_path(12).parent.is_dir()


def test_atomic_keeps_the_suffix(tmp_path: Path) -> None:
    with atomic(tmp_path / "x.png") as temp:
        assert temp.suffix == ".png"
        temp.write_bytes(b"1")
        assert not (tmp_path / "x.png").exists()
    assert write_atomic(tmp_path / "x.png", "é").read_bytes() == "é".encode()


def test_run_names_tell_configurations_apart() -> None:
    a, b = run_name("train", CONFIG), run_name("train", {**CONFIG, "lr": 1})
    assert a.split("-")[1] == "train"
    assert a.split("-")[2] != b.split("-")[2]
    assert a.split("-")[2] == run_name("train", dict(reversed(CONFIG.items()))).split("-")[2]


KILLED = """
import sys
from kotoe.runs import Run
with Run(sys.argv[1], {"a": 1}) as run:
    step = 0
    while True:
        step += 1
        run.save("state.bin", lambda p: p.write_bytes(bytes([step % 256]) * 300_000))
        run.log(step=step, filler="x" * 2000)
        print(step, flush=True)
"""


def test_kill_9_leaves_whole_files(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "r")]
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        with Run(tmp_path / "r", {"a": 1}) as run:  # the lock went with the process
            content = run.path("state.bin").read_bytes()
            assert len(content) == 300_000
            assert len(set(content)) == 1
            assert all(len(m["filler"]) == 2000 for m in run.metrics())

"""The one training loop: what is frozen stays, what is killed goes on, what is asked is learnt."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kotoe.errors import UserError
from kotoe.localize.fit import Plan, fit, freeze, load_average
from kotoe.runs import Run

SCRIPT = Path(__file__).parent / "train_toy.py"


def modules() -> dict[str, nn.Module]:
    g = torch.Generator().manual_seed(0)
    parts: dict[str, nn.Module] = {"a": nn.Linear(4, 8), "b": nn.Linear(8, 2)}
    with torch.no_grad():
        for part in parts.values():
            for p in part.parameters():
                p.copy_(torch.randn(p.shape, generator=g) * 0.3)
    return parts


def batches(step: int) -> Tensor:
    return torch.randn(16, 4, generator=torch.Generator().manual_seed(step))


def loss(parts: Any, x: Tensor, draw: torch.Generator) -> tuple[Tensor, dict[str, float]]:
    y = parts["b"](torch.tanh(parts["a"](x)))
    noise = 0.01 * torch.randn(y.shape, generator=draw)
    return (y - x[:, :2] + noise).square().mean(), {}


def plan(**changes: Any) -> Plan:
    return Plan(**{
        "name": "toy", "trainable": ("a.", "b."), "loss": loss, "steps": 60, "lr": 0.03, "warmup_steps": 5,
        "log_every": 1, **changes,
    })  # fmt: skip


def losses(run: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows]


def test_it_learns(tmp_path: Path) -> None:
    with Run(tmp_path / "r", {}) as run:
        fit(modules(), plan(), batches, run, progress=False)
    curve = [value for _, value in losses(tmp_path / "r")]
    assert sum(curve[-5:]) < 0.2 * sum(curve[:5])


def test_frozen_parameters_are_bit_identical(tmp_path: Path) -> None:
    parts = modules()
    before = {f"{k}.{n}": p.clone() for k, m in parts.items() for n, p in m.named_parameters()}
    with Run(tmp_path / "r", {}) as run:
        fit(parts, plan(trainable=("b.weight",), steps=3), batches, run, progress=False)
    after = {f"{k}.{n}": p for k, m in parts.items() for n, p in m.named_parameters()}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"b.weight"}


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(UserError, match=r"no parameter matches unet\."):
        freeze(modules(), ("a.", "unet."))


def test_kill_9_and_the_same_command_gives_the_same_losses(tmp_path: Path) -> None:
    """A real process, a real SIGKILL in the middle, the same command again; then compared with one left alone."""

    def command(folder: str) -> list[str]:
        return [sys.executable, str(SCRIPT), str(tmp_path / folder)]

    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    alone = subprocess.run(command("alone"), env=env, capture_output=True, text=True, timeout=240)
    assert alone.returncode == 0, alone.stderr

    log = tmp_path / "stderr.txt"
    with log.open("w") as stderr:
        killed = subprocess.Popen(command("killed"), env={**env, "SLOW": "1"}, stderr=stderr)
    metrics = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 25):
        assert time.monotonic() < deadline
        assert killed.poll() is None, log.read_text()
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert 25 <= len(losses(tmp_path / "killed")) < 60

    again = subprocess.run(command("killed"), env=env, capture_output=True, text=True, timeout=240)
    assert again.returncode == 0, again.stderr
    assert "resumed at step" in (tmp_path / "killed" / "log.txt").read_text()
    assert losses(tmp_path / "killed") == losses(tmp_path / "alone")
    a, b = modules(), modules()
    assert load_average(a, tmp_path / "killed") == load_average(b, tmp_path / "alone") == 60
    for part in a:
        for p, q in zip(a[part].parameters(), b[part].parameters(), strict=True):
            assert torch.equal(p, q)


def test_ctrl_c_saves(tmp_path: Path) -> None:
    def interrupting(step: int) -> Tensor:
        if step == 20:
            raise KeyboardInterrupt
        return batches(step)

    with Run(tmp_path / "r", {}) as run, pytest.raises(KeyboardInterrupt):
        fit(modules(), plan(), interrupting, run, progress=False)
    assert load_average(modules(), tmp_path / "r") == 20
    with Run(tmp_path / "r", {}) as run:
        fit(modules(), plan(), batches, run, progress=False)
    with Run(tmp_path / "alone", {}) as run:
        fit(modules(), plan(), batches, run, progress=False)
    assert losses(tmp_path / "r") == losses(tmp_path / "alone")


def test_sigterm_saves_at_the_end_of_the_step(tmp_path: Path) -> None:
    def ending(step: int) -> Tensor:
        if step == 20:
            os.kill(os.getpid(), signal.SIGTERM)
        return batches(step)

    with Run(tmp_path / "r", {}) as run, pytest.raises(KeyboardInterrupt):
        fit(modules(), plan(), ending, run, progress=False)
    assert load_average(modules(), tmp_path / "r") == 21
    assert [step for step, _ in losses(tmp_path / "r")] == list(range(1, 22))


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path: Path) -> None:
    with Run(tmp_path / "r", {}) as run:
        fit(modules(), plan(steps=2), batches, run, progress=False)
    with Run(tmp_path / "r", {}) as run, pytest.raises(UserError, match=r"a\.bias"):
        fit(modules(), plan(trainable=("b.",), steps=4), batches, run, progress=False)


def test_the_rate_rises_and_falls() -> None:
    p = plan(steps=100, warmup_steps=10, lr=1.0, final_lr=0.1)
    assert p.rate(0) == pytest.approx(0.1)
    assert p.rate(9) == pytest.approx(1.0)
    assert p.rate(55) == pytest.approx(0.55)
    assert p.rate(100) == pytest.approx(0.1)


def test_the_rate_rises_and_stays() -> None:
    p = plan(steps=100, warmup_steps=10, lr=1.0, schedule="constant")
    assert [p.rate(step) for step in (0, 9, 10, 55, 99)] == pytest.approx([0.1, 1.0, 1.0, 1.0, 1.0])
    assert plan(warmup_steps=0, lr=1.0, schedule="constant").rate(0) == 1.0


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"warmup_steps": -1}, {"ema": 1.0}, {"schedule": "linear"}])
def test_a_plan_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="toy"):
        plan(**wrong)


def test_no_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"state\.pt"):
        load_average(modules(), tmp_path)

"""Several processes, started by the real torchrun, train as one does: losses, gradients, weights, kills and errors."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import train_spread
from kotoe import cli
from kotoe.errors import UserError
from kotoe.localize.fit import recomputed
from kotoe.localize.settings import PLANS
from kotoe.localize.spread import Processes, Rows, Spread, layers
from kotoe.runs import stopping
from test_localize import CAPTIONS, PAIRS, run
from test_localize import wanted as tiny_plan
from tiny import saved_tiny, tiny_bundle

STEPS = 8
NEAR = 1e-4  # relative, of losses and gradient norms: measured 7e-7
SAME = 1e-5  # of parameters after 8 steps: measured 2e-6, and 2e-4 with the smallest fault
TRAINING = [plan for plan, way in PLANS.items() if way.reads != "nothing"]
FAULTS = {  # what is done wrongly, and which job must notice
    "averaged": "toy",
    "by-shard": "distil-behind",
    "own-gradient-alone": "toy",
    "counted-twice": "toy",
}
pytestmark = pytest.mark.timeout(900)  # several processes, on a machine that may have one core


def torchrun(*command: str, count: int = 2) -> list[str]:
    local = ["--nproc-per-node", str(count), "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    return [sys.executable, "-m", "torch.distributed.run", *local, *command]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def job(folder: Path, name: str, plan: str, **more: Any) -> dict[str, Any]:
    """A plan of 8 steps as train_spread.py takes it."""
    made = folder / "students" / name
    asked = vars(tiny_plan(made, plan, steps=STEPS, dropout=0.2, lr=1e-3, **more.pop("asked", {})))
    return {"run": str(folder / name), "asked": {k: v for k, v in asked.items() if k != "run"}, **more}


def written(folder: Path, jobs: list[dict[str, Any]]) -> Path:
    data = {"pairs": vars(PAIRS), "captions": vars(CAPTIONS), "jobs": jobs}
    torch.save(data, folder / "jobs.pt")
    return folder / "jobs.pt"


def curve(folder: Path) -> list[tuple[int, float, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows]


def apart(a: Path, b: Path) -> float:
    """The largest relative difference of two runs' losses and gradient norms."""
    one, other = curve(a), curve(b)
    assert [s for s, *_ in one] == [s for s, *_ in other] == list(range(1, STEPS + 1))
    return max(abs(x - y) / abs(x) for p, q in zip(one, other, strict=True) for x, y in zip(p[1:], q[1:], strict=True))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every plan alone and on two processes; the same with faults; and what one launch of two said in the end."""
    base = tmp_path_factory.mktemp("spread")
    alone, two = base / "alone", base / "two"
    alone.mkdir()
    two.mkdir()
    given = {"pairs": vars(PAIRS), "captions": vars(CAPTIONS)}
    for plan in TRAINING:
        each = job(alone, plan, plan)
        torch.save(train_spread.done(each, given), Path(each["run"]) / "weights-0.pt")
    torch.save(train_spread.toy(alone / "toy"), alone / "toy" / "weights-0.pt")
    jobs = [job(two, plan, plan) for plan in TRAINING] + [{"run": str(two / "toy")}]
    begun = job(two, "sharded", "stage2")
    with pytest.raises(KeyboardInterrupt):
        train_spread.done({**begun, "interrupts_at": 2}, given)
    jobs.append({**begun, "asked": {**begun["asked"], "shard": True, "checkpointing": True}})
    for fault, plan in FAULTS.items():
        jobs.append({"run": str(two / fault), "fault": fault} if plan == "toy" else job(two, fault, plan, fault=fault))
    jobs.append(job(two, "stopped", "stage2", stops_at=3, asked={"shard": True}))
    jobs.append(job(two, "failing", "distil-behind", fails_at=2))
    command = torchrun(str(Path(train_spread.__file__)), str(written(base, jobs)))
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode != 0
    (base / "stderr.txt").write_text(done.stderr)
    return {"base": base, "alone": alone, "two": two, "jobs": base / "jobs.pt"}


@pytest.mark.parametrize("plan", [*TRAINING, "toy"])
def test_two_processes_have_the_losses_of_one(plan: str, runs: dict[str, Path]) -> None:
    assert apart(runs["alone"] / plan, runs["two"] / plan) <= NEAR
    weights = [torch.load(runs[k] / plan / f"weights-{r}.pt") for k, r in (("alone", 0), ("two", 0), ("two", 1))]
    assert all(torch.equal(p, weights[2][name]) for name, p in weights[1].items())
    assert far(weights[0], weights[1]) < SAME


def far(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """How far apart two sets of numbers are, as vectors: the length of their difference over that of one."""
    assert {name: p.shape for name, p in a.items()} == {name: p.shape for name, p in b.items()}
    length = torch.cat([p.flatten() for p in a.values()]).norm()
    return float(torch.cat([(a[name] - b[name]).flatten() for name in a]).norm() / length)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(fault: str, runs: dict[str, Path]) -> None:
    """The losses, or the gradients' norms, say so; AdamW itself doesn't mind gradients that are half as large."""
    assert apart(runs["alone"] / FAULTS[fault], runs["two"] / fault) > 10 * NEAR


def test_shards_have_the_losses_of_the_whole(runs: dict[str, Path]) -> None:
    """Begun by one process without, and computing activations again, too; the checkpoint is that of a whole run."""
    folders = runs["alone"] / "stage2", runs["two"] / "sharded"
    assert "resumed at step 3" in (folders[1] / "log.txt").read_text()
    assert apart(*folders) <= NEAR
    assert far(*(torch.load(folder / "weights-0.pt") for folder in folders)) < SAME
    states = [torch.load(folder / "state.pt") for folder in folders]
    assert all(far(*(state[kept] for state in states)) < SAME for kept in ("parameters", "average"))
    for kept in ("exp_avg", "exp_avg_sq", "step"):
        assert far(*({i: m[kept] for i, m in state["optimizer"]["state"].items()} for state in states)) < SAME


def test_a_signal_to_one_stops_all_at_one_step_and_one_process_goes_on(runs: dict[str, Path]) -> None:
    """SIGTERM to the second of two with shards; the first saves for both; then one alone, without shards."""
    stopped = runs["two"] / "stopped"
    assert "interrupted at step 4" in (stopped / "log.txt").read_text()
    given = {"pairs": vars(PAIRS), "captions": vars(CAPTIONS)}
    (part,) = (j for j in torch.load(runs["jobs"])["jobs"] if j.pop("stops_at", None))
    train_spread.done({**part, "asked": {**part["asked"], "shard": False}}, given)
    assert "resumed at step 4" in (stopped / "log.txt").read_text()
    assert apart(runs["alone"] / "stage2", stopped) <= NEAR


def test_an_error_of_one_process_ends_all_and_is_said_once(runs: dict[str, Path]) -> None:
    said = (runs["base"] / "stderr.txt").read_text()
    assert len(re.findall(r"RuntimeError: the card has burnt", said)) == 1
    assert "process 1 failed" in said
    assert [step for step, *_ in curve(runs["two"] / "failing")] == [1, 2]


def test_kill_9_and_another_number_of_processes(runs: dict[str, Path], tmp_path: Path) -> None:
    """One process, which is stopped; two, of which one is killed at some step; one again. The same rows and losses."""
    given = {"pairs": vars(PAIRS), "captions": vars(CAPTIONS)}
    part = job(tmp_path, "run", "distil-behind")
    with pytest.raises(KeyboardInterrupt):
        train_spread.done({**part, "interrupts_at": 1}, given)
    launched = {**part, "slow": 0.3}
    log = tmp_path / "stderr.txt"
    with log.open("w") as stderr:
        command = torchrun(str(Path(train_spread.__file__)), str(written(tmp_path, [launched])))
        agent = subprocess.Popen(command, env=environment(), stderr=stderr)
    killed_at = random.randint(4, 6)
    file = tmp_path / "run" / "drawn-1.jsonl"
    deadline = time.monotonic() + 400
    while not (file.exists() and (found := notes(file)) and found[-1][1] >= killed_at):
        assert time.monotonic() < deadline, log.read_text()
        assert agent.poll() is None, log.read_text()
        time.sleep(0.02)
    os.kill(found[-1][0], signal.SIGKILL)
    assert agent.wait(timeout=100) != 0
    assert "another process has gone" in log.read_text()
    train_spread.done(part, given)
    assert apart(runs["alone"] / "distil-behind", tmp_path / "run") <= NEAR
    resumed = [int(step) for step in re.findall(r"resumed at step (\d+)", (tmp_path / "run" / "log.txt").read_text())]
    assert resumed[0] == 2
    assert 2 <= resumed[1] <= killed_at + 1
    right = {step: rows for _, step, rows in notes(runs["alone"] / "distil-behind" / "drawn-0.jsonl")}
    read = notes(tmp_path / "run" / "drawn-0.jsonl")
    assert all(right[step] == rows for _, step, rows in read)
    assert {step for _, step, _ in read} == set(range(STEPS))
    assert right[0] != right[1]


def notes(file: Path) -> list[tuple[int, int, list[int]]]:
    """(process, step, rows) of what was read."""
    return [json.loads(line) for line in file.read_text().splitlines() if line.endswith("]")]


def test_the_command_line_on_two_processes(tmp_path: Path) -> None:
    """The first alone speaks; and an error that the first alone meets ends the second."""
    folder = saved_tiny(tmp_path / "base", "sd2")
    lines = [f"{a}\t{b}" for a, b in zip(PAIRS.source, PAIRS.target, strict=True)]
    (tmp_path / "pairs.tsv").write_text("\n".join(["source\ttarget", *lines]) + "\n", encoding="utf-8")
    command = ["-m", "--", "kotoe", "localize", str(folder), "--language", "ko", "--pairs", str(tmp_path / "pairs.tsv")]
    command += ["--run", str(tmp_path / "run"), "--steps", "2", "--batch-size", "4", "--log-every", "1"]
    command += ["--long-prompt", "cut"]
    done = subprocess.run(torchrun(*command), env=environment(), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(tmp_path / "run" / "bundle")]
    assert done.stderr.count("localize: {") == 1
    other = subprocess.run(
        torchrun(*command, "--lr", "0.5"), env=environment(), capture_output=True, text=True, timeout=400
    )
    assert other.returncode != 0
    assert other.stderr.count("is a run of another configuration") == 1


# --- One process -----------------------------------------------------------------------------------------------


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    asked = tiny_plan(tmp_path, "distil-behind", batch_size=6)
    with pytest.raises(UserError, match="6 rows for 4 processes. Allowed: a multiple of 4, as 4 or 8"):
        train_spread.workbench.localize(tiny_bundle("sd2"), asked, pairs=PAIRS, processes=Processes(count=4))
    assert not (tmp_path / "run").exists()


def test_shards_are_for_the_joint_stage_on_several(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shard with plan stage1"):
        tiny_plan(tmp_path, "stage1", shard=True)
    with pytest.raises(UserError, match="shard with one process"):
        run(tiny_plan(tmp_path, "stage2", shard=True))


def test_other_verbs_are_for_one_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    assert cli.run(["inspect", "kotoe-emoji"]) == 2
    assert "kotoe inspect on 2 processes. Allowed: one process; localize on several." in capsys.readouterr().err


def test_what_would_bypass_the_split_is_refused() -> None:
    unet = tiny_bundle("sd2").unet
    split = Rows(unet, Processes(count=2))
    assert split.spec is unet.spec
    with pytest.raises(AttributeError, match="conv_in"):
        split.conv_in  # a layer inside
    with pytest.raises(TypeError, match="as many rows"):
        split.cross_attentions()
    with pytest.raises(TypeError, match="as many rows"):
        split(torch.zeros(4, 4, 8, 8), torch.zeros(2), torch.zeros(4, 16, 32))


def test_alone_nothing_is_wrapped() -> None:
    parts: dict[str, nn.Module] = {"a": nn.Linear(2, 2)}
    assert Spread(parts, rows=("a",)).seen["a"] is parts["a"]


@pytest.mark.parametrize("plan", ["stage2", "adapter"])
def test_recomputing_gives_the_same_losses(plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kotoe.localize.plans.QUESTIONED_STEPS", 2)
    curves = []
    for name, more in {"kept": {}, "again": {"checkpointing": True}}.items():
        asked = tiny_plan(tmp_path / name, plan, steps=4, **more)
        run(asked)
        curves.append(tmp_path / name / "run")
    rows = [[json.loads(x) for x in (c / "metrics.jsonl").read_text().splitlines()] for c in curves]
    assert [(r["loss"], r["grad_norm"]) for r in rows[0]] == [(r["loss"], r["grad_norm"]) for r in rows[1]]


def test_recomputing_keeps_no_inner_activations() -> None:
    """Each layer's inside runs twice, and between forward and backward fewer numbers are held."""
    kept, calls = [], []
    for wanted in (False, True):
        unet = tiny_bundle("sd2").unet
        held: list[int] = []
        count: list[int] = []
        for layer in layers(unet):
            inner = next(iter(layer.children()))
            inner.register_forward_hook(lambda *_, count=count: count.append(1))
        args = torch.randn(2, 4, 8, 8), torch.tensor([3, 500]), torch.randn(2, 16, 32)
        with (
            recomputed({"unet": unet}, wanted),
            torch.autograd.graph.saved_tensors_hooks(lambda t, held=held: held.append(t.numel()) or t, lambda t: t),
        ):
            answer = unet(*args)
            kept.append(sum(held))
            answer.sum().backward()
        calls.append(len(count))
        assert not any("forward" in vars(layer) for layer in layers(unet))
    assert calls[1] == 2 * calls[0] > 0
    assert kept[1] < 0.6 * kept[0]


def test_the_first_signal_is_noted_and_the_second_interrupts() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stopping() as stopped:
        assert not stopped()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopped()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before

"""What test_spread.py starts with torchrun: the jobs of a file, one after the other, each with what is to go wrong."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from kotoe.localize import localize as workbench
from kotoe.localize import plans, spread
from kotoe.localize.fit import Plan, fit
from kotoe.localize.plans import Captions, Task, Texts
from kotoe.localize.settings import Localizing
from kotoe.localize.spread import ALONE, Processes, Spread
from tiny import tiny_bundle


class Scaled(nn.Linear):
    """A layer with a number beside it, as CLIP's picture tower has."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__(d_in, d_out)
        self.scale = nn.Parameter(torch.zeros(1))


def toy(run: Path, group: Processes = ALONE) -> dict[str, Tensor]:
    """A loss that mixes rows between two networks, and uses a number of one of them for all rows; a third is whole."""
    g = torch.Generator().manual_seed(0)
    modules: dict[str, nn.Module] = {"a": Scaled(4, 8), "b": nn.Linear(8, 2), "c": nn.Linear(2, 2)}
    with torch.no_grad():
        for module in modules.values():
            for p in module.parameters():
                p.copy_(0.3 * torch.randn(p.shape, generator=g))

    def loss(parts: Any, x: Tensor, draw: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        first = torch.tanh(parts["a"](x) * (1.5 + parts["a"].scale))
        second = parts["b"](first - first.roll(3, dims=0) + first.mean(dim=0))  # every row reads others
        said, asked = parts["c"](second), x[:, :2] + 0.1 * torch.randn(len(x), 2, generator=draw)
        return (said - asked).square().mean() / said.var(), {}

    plan = Plan(name="toy", trainable=("a.", "b.", "c."), loss=loss, steps=8, lr=0.03, log_every=1, warmup_steps=0)
    with group.run(run, {}) as held:
        fit(
            modules,
            plan,
            lambda step: torch.randn(8, 4, generator=torch.Generator().manual_seed(step)),
            held,
            progress=False,
            rows=("a", "b"),
            processes=group,
        )
    return {f"{k}.{n}": p.detach().clone() for k, m in modules.items() for n, p in m.named_parameters()}


# --- What goes wrong -------------------------------------------------------------------------------------------


def averaged(self: Spread, parameters: Any, *, honest: Any = Spread.reduce) -> None:
    """Gradients as plain data parallelism has them: their mean."""
    honest(self, parameters)
    for p in parameters.values():
        if p.grad is not None:
            spread.held(p.grad).div_(self.processes.count)


def by_shard(*args: Any, honest: Any = plans.task, **more: Any) -> Task:
    """Plain data parallelism: each process has the loss of its own rows, with its own variance."""
    what, group = honest(*args, **more), args[3].processes

    def batches(step: int) -> Any:
        batch = what.batches(step)
        tensors = {f.name: getattr(batch, f.name) for f in fields(batch)}
        return replace(batch, **{k: spread._own(v, group) for k, v in tensors.items() if isinstance(v, Tensor)})

    return replace(what, rows=(), batches=batches)


def own_gradient_alone(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    """What other processes' rows have to say of the whole is forgotten."""
    share = torch.zeros(len(gradient) * ctx.processes.count, *gradient.shape[1:])
    share[ctx.processes.rank * len(gradient) :][: len(gradient)] = gradient
    return share, None


def counted_twice(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    """The gradient of a number that every process uses for all rows, from each."""
    return gradient, None


FAULTS: dict[str | None, Any] = {
    "averaged": lambda: patch.object(Spread, "reduce", averaged),
    "by-shard": lambda: patch.object(workbench, "task", by_shard),
    "own-gradient-alone": lambda: patch.object(spread._Own, "backward", staticmethod(own_gradient_alone)),
    "counted-twice": lambda: patch.object(spread._Shared, "backward", staticmethod(counted_twice)),
}


@contextmanager
def watched(run: Path, group: Processes, job: dict[str, Any]) -> Iterator[None]:
    """Note which rows each step reads, and whose process this is; stop, fail or slow down where the job says so."""
    honest = plans.drawn

    def drawn(seed: int, step: int, batch: int, count: int) -> list[int]:
        rows = honest(seed, step, batch, count)
        with (run / f"drawn-{group.rank}.jsonl").open("a") as file:
            file.write(json.dumps([os.getpid(), step, rows]) + "\n")
        time.sleep(job.get("slow", 0.0))
        if step == job.get("interrupts_at"):
            os.kill(os.getpid(), signal.SIGINT)
        if group.rank == 1 and step == job.get("fails_at"):
            raise RuntimeError("the card has burnt")
        if group.rank == 1 and step == job.get("stops_at"):
            os.kill(os.getpid(), signal.SIGTERM)
        return rows

    often = partial(Plan, save_every_s=0.05) if job.get("slow") else Plan
    with patch.object(plans, "drawn", drawn), patch.object(workbench, "Plan", often):
        yield


def done(job: dict[str, Any], given: dict[str, Any], group: Processes = ALONE) -> dict[str, Tensor]:
    """The parameters that a job ends with."""
    run = Path(job["run"])
    if "asked" not in job:
        return toy(run, group)
    asked = Localizing(**job["asked"], run=str(run))
    pairs, captions = Texts(**given["pairs"]), Captions(**given["captions"])
    with watched(run, group, job), patch.object(plans, "QUESTIONED_STEPS", 2):
        found = workbench.localize(
            tiny_bundle("sd2"), asked, pairs=pairs, captions=captions, progress=False, processes=group
        )
    parts = {"text": found.bundle.conditioner("ko").encoder, "unet": found.bundle.unet}
    return {f"{k}.{n}": p.detach().clone() for k, m in parts.items() for n, p in m.named_parameters()}


def main(file: str) -> None:
    given = torch.load(file, weights_only=True)
    with spread.joined() as group:
        for job in given["jobs"]:
            fault = FAULTS.get(job.get("fault"))
            try:
                if fault is None:
                    weights = done(job, given, group)
                else:
                    with fault():
                        weights = done(job, given, group)
            except KeyboardInterrupt:
                if "stops_at" not in job:
                    raise
                continue
            torch.save(weights, Path(job["run"]) / f"weights-{group.rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])

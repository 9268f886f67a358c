"""The one training loop. Stages differ by their Plan and their batches, not by their loop.

A step is a pure function of (weights, plan.seed, step): batches are asked for by step number and every random draw
comes from a generator seeded by (seed, step), so that a run killed at any moment goes on to the same losses. On several
processes too, and on another number of them than before (see spread.py).
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kotoe.errors import UserError, unknown
from kotoe.localize.spread import ALONE, Processes, Spread, full, held, layers
from kotoe.runs import Run, stopping

Loss = Callable[[Mapping[str, Any], Any, torch.Generator], tuple[Tensor, dict[str, float]]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which parameters train, on which loss, for how long.

    trainable:    regular expressions; a parameter trains when one matches its name from the start ("unet.",
                  "text.", "vae.decoder."). All others are frozen and stay bit-identical.
    loss:         (modules, batch, generator) -> (scalar loss, numbers to log).
    lr:           peak rate; it rises linearly over warmup_steps and then falls by a half cosine to lr * final_lr, or
                  with schedule "constant" stays.
    ema:          decay of the averaged weights that `fit` returns; 0 = none. It ramps up over the first steps.
    bf16:         run the networks under bf16 autocast; losses and weights stay float32.
    recompute:    keep no layer's inner activations for the backward pass but compute them again there: less memory,
                  a third more time, the same losses.
    save_every_s: seconds between checkpoints; one is also written at the end and on Ctrl-C or SIGTERM.
    sample:       draws a picture of the state of things every `sample_every` steps.
    """

    name: str
    trainable: tuple[str, ...]
    loss: Loss = field(repr=False)
    steps: int
    lr: float
    warmup_steps: int = 100
    final_lr: float = 0.02
    schedule: str = "cosine"
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    bf16: bool = False
    compile: bool = False
    recompute: bool = False
    seed: int = 0
    log_every: int = 25
    save_every_s: float = 120.0
    sample_every: int = 1000
    sample: Callable[[Mapping[str, nn.Module]], Image.Image] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name, allowed in {"steps": 1, "warmup_steps": 0, "log_every": 1, "sample_every": 1}.items():
            if getattr(self, name) < allowed:
                raise UserError(f"plan {self.name!r}: {name} {getattr(self, name)}", allowed=f"{allowed} or more")
        if self.schedule not in ("cosine", "constant"):
            raise unknown(f"schedule of plan {self.name!r}", self.schedule, ("cosine", "constant"))
        if not 0.0 <= self.ema < 1.0:
            raise UserError(f"plan {self.name!r}: ema {self.ema}", allowed="0.0 (none) to below 1.0")

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.lr
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        half_cosine = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * min(done, 1.0))).item())
        return self.lr * (self.final_lr + (1 - self.final_lr) * half_cosine)


def step_seed(seed: int, step: int, what: str = "") -> int:
    """A 63-bit seed that belongs to one step of one run."""
    digest = hashlib.blake2s(f"{seed}:{step}:{what}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def freeze(modules: Mapping[str, nn.Module], trainable: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """Mark what trains and what does not; returns the trainable parameters by name."""
    patterns = [re.compile(p) for p in trainable]
    chosen: dict[str, nn.Parameter] = {}
    for part, module in modules.items():
        for name, parameter in module.named_parameters():
            full = f"{part}.{name}"
            parameter.requires_grad_(any(p.match(full) for p in patterns))
            if parameter.requires_grad:
                chosen[full] = parameter
    unused = [p.pattern for p in patterns if not any(p.match(name) for name in chosen)]
    if unused:
        raise UserError(f"no parameter matches {', '.join(unused)}", allowed=f"names in {', '.join(modules)}")
    return chosen


def fit(
    modules: Mapping[str, nn.Module],
    plan: Plan,
    batches: Callable[[int], Any],
    run: Run,
    *,
    device: str = "cpu",
    progress: bool = True,
    rows: Collection[str] = (),
    processes: Processes = ALONE,
    shard: bool = False,
) -> Mapping[str, nn.Module]:
    """Train `modules` in place by `plan`, resume what `run` holds, and leave the averaged weights in them.

    modules:   parts by name, of which `plan.trainable` says what learns.
    batches:   step number -> batch; the same step must give the same batch, the whole of it on every process.
    run:       an open Run; state.pt, metrics.jsonl and samples/ go there. Ctrl-C saves and raises KeyboardInterrupt.
    rows:      parts that several processes run on own rows of a batch; what they answer for one row mustn't hang on
               the others.
    processes: those that train together (`spread.joined`).
    shard:     parameters, gradients and optimizer state in slices, one a process.
    """
    freeze(modules, plan.trainable)
    if processes.count > 1 and (plan.compile or (shard and plan.sample)):
        raise UserError(f"plan {plan.name!r}: compile, or pictures while shards train, on {processes.count} processes")
    spread = Spread(modules, processes, rows=rows, shard=shard)
    parameters = {f"{k}.{n}": p for k, m in spread.parts.items() for n, p in m.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=plan.lr, betas=plan.betas, weight_decay=plan.weight_decay, fused=True
    )
    average = {name: p.detach().clone() for name, p in parameters.items()} if plan.ema else {}
    step, seconds = 0, 0.0
    if run.has("state.pt"):
        state = torch.load(run.path("state.pt"), map_location="cpu" if shard else device, weights_only=True)
        _same_names(parameters, state["parameters"])
        state = spread.own(state, parameters)
        _restore(parameters, state["parameters"])
        optimizer.load_state_dict(state["optimizer"])
        average = state["average"]
        step, seconds = state["step"], state["seconds"]
        run.rewind(step)
        run.say(f"resumed at step {step} of {plan.steps}")
    if processes.agreed(step) != step:
        raise UserError(
            f"{run.directory} is at step {step} for process {processes.rank}, and at another for the first",
            allowed="a directory that all processes share",
        )

    def save() -> None:
        state = {
            "step": step,
            "seconds": seconds,
            "parameters": {name: p.detach() for name, p in parameters.items()},
            "optimizer": optimizer.state_dict(),
            "average": average,
        }
        run.save("state.pt", partial(torch.save, spread.whole(state)))

    loss_of = torch.compile(plan.loss, dynamic=False) if plan.compile else plan.loss
    bar = _Progress(plan, step, enabled=progress and processes.leads)
    saved_at = last = time.monotonic()
    sums: dict[str, float] = {}
    count = 0
    together = True  # whether all processes are at the end of the same step
    try:
        with stopping() as stopped, recomputed(spread.parts, plan.recompute):
            while step < plan.steps:
                together = processes.count == 1
                generator = torch.Generator().manual_seed(step_seed(plan.seed, step))
                with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=plan.bf16):
                    loss, numbers = loss_of(spread.seen, batches(step), generator)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                spread.reduce(parameters)
                norm = full(nn.utils.clip_grad_norm_(parameters.values(), plan.clip))
                for group in optimizer.param_groups:
                    group["lr"] = plan.rate(step)
                optimizer.step()
                if plan.ema:
                    decay = min(plan.ema, (1 + step) / (10 + step))  # young averages forget the random start quickly
                    now_held = [held(p.detach()) for p in parameters.values()]
                    torch._foreach_lerp_([held(a) for a in average.values()], now_held, 1 - decay)
                step += 1

                for key, value in {"loss": float(loss.detach()), "grad_norm": float(norm), **numbers}.items():
                    sums[key] = sums.get(key, 0.0) + value
                count += 1
                now = time.monotonic()
                seconds, last = seconds + now - last, now
                if step % plan.log_every == 0 or step == plan.steps:
                    means = {key: value / count for key, value in sums.items()}
                    run.log(step=step, lr=plan.rate(step - 1), seconds=round(seconds, 3), **means)
                    bar.show(step, means)
                    sums, count = {}, 0
                if plan.sample and processes.leads and (step % plan.sample_every == 0 or step == plan.steps):
                    with averaged(parameters, average), torch.inference_mode():
                        plan.sample(modules).save(run.sample_path(step))
                due = processes.leads and now - saved_at > plan.save_every_s and step < plan.steps
                stop, due = processes.any(stopped(), due)
                together = True
                if stop:
                    raise KeyboardInterrupt
                if due:
                    save()
                    saved_at = now
    except KeyboardInterrupt:
        if together:
            save()
            run.say(f"interrupted at step {step}; the same command goes on from there")
        raise
    finally:
        bar.close()
    save()
    if average:
        _restore(parameters, average)
    spread.close()
    return modules


@contextmanager
def recomputed(modules: Mapping[str, nn.Module], wanted: bool = True) -> Iterator[None]:
    """Within it no layer keeps inner activations for the backward pass, which computes them again."""
    chosen = [layer for module in modules.values() for layer in layers(module)] if wanted else []
    for layer in chosen:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in chosen:
            del layer.forward


class averaged:
    """For the length of a block the parameters hold their averages."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], average: Mapping[str, Tensor]) -> None:
        self.parameters, self.average = parameters, average

    def __enter__(self) -> None:
        self.kept = {name: p.detach().clone() for name, p in self.parameters.items()} if self.average else {}
        _restore(self.parameters, self.average)

    def __exit__(self, *_: object) -> None:
        _restore(self.parameters, self.kept)


def load_average(modules: Mapping[str, nn.Module], directory: str | Path) -> int:
    """Fill modules with the averaged weights of a run's latest checkpoint, finished or going on; returns its step.

    What that run kept frozen is not in its checkpoint and stays as it is.
    """
    file = Path(directory) / "state.pt"
    if not file.exists():
        raise UserError(f"{directory} holds no checkpoint (state.pt)", hint="Train first, or wait for the first save")
    state = torch.load(file, map_location="cpu", weights_only=True)
    parameters = {f"{part}.{name}": p for part, m in modules.items() for name, p in m.named_parameters()}
    values = {name: value for name, value in state["average"].items() if name.split(".")[0] in modules}
    _restore({name: p for name, p in parameters.items() if name in values}, values)
    return int(state["step"])


def _same_names(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    odd = sorted(parameters.keys() ^ values.keys())
    if odd:
        raise UserError(f"the checkpoint's parameters differ from the plan's: {', '.join(odd[:5])}")


def _restore(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    if not values:
        return
    _same_names(parameters, values)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])


class _Progress:
    """A progress bar with time left on a terminal, a plain line now and then elsewhere."""

    def __init__(self, plan: Plan, step: int, *, enabled: bool) -> None:
        self.plan, self.enabled, self.bar = plan, enabled, None
        if not enabled:
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
        )
        console = Console(stderr=True)
        self.terminal = console.is_terminal
        self.console = console
        self.started, self.first = time.monotonic(), step
        if self.terminal:
            self.bar = Progress(*columns, console=console)
            self.task = self.bar.add_task(plan.name, total=plan.steps, completed=step, loss=float("nan"))
            self.bar.start()

    def show(self, step: int, means: Mapping[str, float]) -> None:
        if not self.enabled:
            return
        if self.bar:
            self.bar.update(self.task, completed=step, loss=means["loss"])
        elif step % (self.plan.log_every * 8) == 0 or step == self.plan.steps:
            pace = (time.monotonic() - self.started) / max(1, step - self.first)
            left = pace * (self.plan.steps - step)
            shown = " ".join(f"{key} {value:.4g}" for key, value in means.items())
            self.console.print(
                f"{self.plan.name} {step}/{self.plan.steps} {shown} ({1 / pace:.2f} steps/s, {left / 60:.1f} min left)",
                soft_wrap=True,
                highlight=False,
            )

    def close(self) -> None:
        if self.bar:
            self.bar.stop()

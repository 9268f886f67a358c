"""One training run on several processes, with the single process's losses.

Losses here look at a whole batch (squared error over its variance, words selected from all texts, each text against
every picture), so the mean of the losses of its parts is another number, and the usual data parallelism would train on
that. Instead every process asks for the whole batch, only the networks run on own rows (`Rows`), and what they answer
is gathered before the loss sees it. Outside the networks all is alike on every process, forward and backward: whatever
the loss does, each holds its true gradient, and the parameters' gradients add up to the single process's.
"""

from __future__ import annotations

import copy
import inspect
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kotoe import bert, text, unet
from kotoe.errors import ProcessError, UserError
from kotoe.runs import Following, Run, processes_started, stopping

TIMEOUT = timedelta(minutes=10)  # of a process that waits for another, the training of a tokenizer included
GRACE_S = 2.0  # what others leave the process whose error is said, before their end makes torchrun end it too
FAILED = "kotoe/failed"  # where the first error is posted
LOST = (
    "gloo",
    "nccl",
    "connection closed",
    "connection reset",
    "timed out",
    "tcpstore",
)  # what collectives complain of
BUCKET = 2**24  # numbers that are summed in one go


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process among those that run the same command. By default it is alone."""

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def share(self, rows: int) -> int:
        """How many of a batch's rows each process computes."""
        if rows % self.count:
            near = [n for n in (rows - rows % self.count, rows + self.count - rows % self.count) if n]
            raise UserError(
                f"a batch of {rows} rows for {self.count} processes",
                allowed=f"a multiple of {self.count}, as {' or '.join(map(str, near))}",
            )
        return rows // self.count

    def wait(self) -> None:
        """Go on when every process has come here."""
        self.any(False)

    def any(self, *flags: bool) -> list[bool]:
        """Of each flag, whether some process has it up; the answer is the same everywhere."""
        if self.count == 1:
            return list(flags)
        raised = torch.tensor([int(flag) for flag in flags])
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in raised]

    def agreed(self, value: Any) -> Any:
        """The first process's value of a small thing."""
        if self.count == 1:
            return value
        told = [value]
        dist.broadcast_object_list(told, device=torch.device("cpu"))
        return told[0]

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process runs the block, and then the others do, who find what it has made."""
        if not self.leads:
            self.wait()
        yield
        if self.leads:
            self.wait()

    @contextmanager
    def run(self, directory: str | Path, config: Any, *, free: Collection[str] = ()) -> Iterator[Run]:
        """The run, of which the first process holds the lock and writes; the others read it."""
        if self.leads:
            with Run(directory, config, free=free) as run:
                self.wait()
                yield run
        else:
            self.wait()
            yield Following(directory)

    def rows(self, module: nn.Module) -> Any:
        """The module as `Rows`, or itself where there is one process."""
        return module if self.count == 1 else Rows(module, self)


ALONE = Processes()


@contextmanager
def joined(device: str = "cpu") -> Iterator[Processes]:
    """The processes that torchrun started, or this one alone. Within it an error of one process ends all.

    device: cpu, or cuda, of which each process takes the card of its number.
    Raises on the first process that fails what it raised; on the others a ProcessError that isn't to be said again.
    """
    count = processes_started()
    if count == 1:
        yield Processes(device=device)
        return
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        if torch.device(device).index is not None:
            raise UserError(f"device {device} for {count} processes", allowed="cuda: each takes the card of its number")
        if local >= torch.cuda.device_count():
            cards = torch.cuda.device_count()
            raise ProcessError(f"process {local} of this machine, which has {cards} CUDA devices", allowed=f"{cards}")
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    store, rank, count = next(dist.rendezvous("env://", timeout=TIMEOUT))
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=TIMEOUT)
    try:
        yield Processes(rank=rank, count=count, device=device)
    except Exception as error:
        with stopping():  # torchrun ends who is left as soon as one has gone
            said = _of_all(error, store, rank)
        if said is error:
            raise
        raise said from error
    dist.destroy_process_group()


def _of_all(error: Exception, store: Any, rank: int) -> Exception:
    """What this process raises for its error: nothing to be said, where another one was first."""
    words = str(error).lower()
    lost = isinstance(error, RuntimeError) and any(word in words for word in LOST)
    if lost:
        shown = re.sub(r"^\[.*?\] ?", "", str(error).strip()).split(". ")[0].splitlines()[0]  # less the C++ file
        given, hint = f"another process has gone ({shown})", "The same command goes on from the last checkpoint"
        error = UserError(given, hint=hint)
        time.sleep(GRACE_S)  # if it has raised something, it says so
    try:
        first = int(store.compare_set(FAILED, "", str(rank)))
    except (RuntimeError, ValueError):  # the store went with the process that held it
        first = rank
    if first != rank:
        if not lost:
            time.sleep(GRACE_S)
        return ProcessError(f"process {first} failed", spoken=True)
    if rank and isinstance(error, UserError):
        return ProcessError(f"process {rank}: {error.given}", allowed=error.allowed, hint=error.hint)
    return error


# --- Rows ------------------------------------------------------------------------------------------------------


class Rows:
    """A module of which this process runs its own rows of a batch; whoever calls it gives and gets the whole batch.

    Its methods that take tensors (B, ...) and give one do the same. Parameters can be read; what else would bypass the
    split is an AttributeError.
    """

    def __init__(self, module: nn.Module, processes: Processes) -> None:
        self._module, self._processes = module, processes

    def __call__(self, *args: Tensor) -> Tensor:
        return self._split(self._module, *args)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        if inspect.ismethod(value):
            return partial(self._split, value)
        if isinstance(value, Tensor):
            return _Shared.apply(value, self._processes.count)
        if callable(value):
            raise AttributeError(f"{name}: what is inside a module that is split by rows can't be used by itself")
        return value

    def _split(self, call: Callable[..., Tensor], *args: Tensor) -> Tensor:
        if not args or not all(isinstance(a, Tensor) for a in args) or len({len(a) for a in args}) > 1:
            raise TypeError("a module that is split by rows takes tensors of as many rows each, and nothing else")
        answer = call(*(_Own.apply(a, self._processes) for a in args))
        if not isinstance(answer, Tensor):
            raise TypeError(f"a module that is split by rows gives a tensor, not a {type(answer).__name__}")
        return _Whole.apply(answer, self._processes)


def _own(whole: Tensor, processes: Processes) -> Tensor:
    share = processes.share(len(whole))
    return whole[processes.rank * share : (processes.rank + 1) * share]


def _gathered(own: Tensor, processes: Processes) -> Tensor:
    parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(processes.count)]
    dist.all_gather(parts, own.contiguous())
    return torch.cat(parts)


class _Own(torch.autograd.Function):
    """Whole rows (B, ...) to this process's. Backward: what all processes' rows have to say of the whole."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes
        return _own(whole, processes).clone(memory_format=torch.preserve_format)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _gathered(gradient, ctx.processes), None


class _Whole(torch.autograd.Function):
    """This process's rows to all (B, ...). Backward: own rows of a gradient that is the same everywhere."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes
        return _gathered(own, processes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _own(gradient, ctx.processes), None


class _Shared(torch.autograd.Function):
    """A parameter that every process uses for the whole batch: of its gradient each gives a share to the sum."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, count: int) -> Tensor:
        ctx.count = count
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient / ctx.count, None


# --- What `fit` trains -----------------------------------------------------------------------------------------


class Spread:
    """Modules as several processes train them together. One process: the modules themselves, nothing is copied or sent.

    rows:  names of the parts that run on own rows. Other parts compute alike everywhere.
    shard: FSDP2: of every layer's parameters, gradients, averages and optimizer state each process holds a slice. The
           modules given wait on the host meanwhile, and get the values in `close`.
    parts: the modules that learn. seen: what a loss gets.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        processes: Processes = ALONE,
        *,
        rows: Collection[str] = (),
        shard: bool = False,
    ) -> None:
        self.given, self.processes, self.shard = modules, processes, shard
        self.split = set(rows) & modules.keys() if processes.count > 1 else set()
        trained = {k for k, m in modules.items() if any(p.requires_grad for p in m.parameters())}
        if shard and (processes.count == 1 or not trained <= self.split):
            raise UserError(
                f"shards of {', '.join(sorted(trained))} on {processes.count} process(es)",
                allowed="several processes (torchrun), and parts that are split by rows",
            )
        if processes.count > 1:
            for module in modules.values():
                for p in module.parameters():
                    if p.requires_grad:
                        dist.broadcast(p.data, 0)
        self.parts = {k: self._sharded(m) if shard and k in trained else m for k, m in modules.items()}
        self.seen = {k: Rows(m, processes) if k in self.split else m for k, m in self.parts.items()}

    def _sharded(self, module: nn.Module) -> nn.Module:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(torch.device(self.processes.device).type, (self.processes.count,))
        new = copy.deepcopy(module.cpu())
        if isinstance(new, unet.UNet):  # called for the whole network at once, before its blocks
            cross = new.cross_attentions()
            fully_shard([kv for attention in cross for kv in (attention.to_k, attention.to_v)], mesh=mesh)
            fully_shard([block.time_emb_proj for block in new.resnet_blocks()], mesh=mesh)
        for layer in layers(new):
            fully_shard(layer, mesh=mesh)
        fully_shard(new, mesh=mesh)
        return new

    def reduce(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Make of each process's gradients those of the whole batch, the same everywhere."""
        count = self.processes.count
        if count == 1:
            return
        if self.shard:  # FSDP has summed them and divided by the number of processes
            torch._foreach_mul_([held(p.grad) for p in parameters.values() if p.grad is not None], count)
            return
        waiting = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        for name, gradient in waiting.items():
            if name.split(".")[0] not in self.split:  # whole already: only rounding may differ
                gradient /= count
        for some in _buckets(list(waiting.values())):
            flat = torch.cat([g.flatten() for g in some])
            dist.all_reduce(flat)
            for gradient, summed in zip(some, flat.split([g.numel() for g in some]), strict=True):
                gradient.copy_(summed.view_as(gradient))

    def whole(self, state: Any) -> Any:
        """A tree with its slices made whole, on the host of the first process. All have to ask."""
        if isinstance(state, dict):
            return {key: self.whole(value) for key, value in state.items()}
        if isinstance(state, list):
            return [self.whole(value) for value in state]
        if not _is_slice(state):
            return state
        gathered = full(state)
        return gathered.cpu() if self.processes.leads else None  # one copy of a model is enough

    def own(self, state: dict[str, Any], parameters: Mapping[str, nn.Parameter]) -> dict[str, Any]:
        """A checkpoint's state with this process's slices of what is whole in it: `whole` turned round."""
        if not self.shard:
            return state
        from torch.distributed.tensor import DTensor, distribute_tensor

        def cut(value: Any, like: nn.Parameter) -> Any:
            if not isinstance(value, Tensor) or value.shape != like.shape:  # the optimizer's count of steps
                return value
            assert isinstance(like, DTensor)
            return distribute_tensor(value.to(self.processes.device), like.device_mesh, like.placements)

        moments = state["optimizer"]["state"]
        cuts = {
            i: {key: cut(value, p) for key, value in moments[i].items()}
            for i, p in enumerate(parameters.values())
            if i in moments
        }
        named = {k: {n: cut(v, parameters[n]) for n, v in state[k].items()} for k in ("parameters", "average")}
        return {**state, **named, "optimizer": {**state["optimizer"], "state": cuts}}

    def close(self) -> None:
        """Give the modules the values that their shards have. All processes have to, and then wait for the first."""
        if self.shard:
            for name, module in self.given.items():
                if self.parts[name] is module:
                    continue
                new = dict(self.parts[name].named_parameters())
                with torch.no_grad():
                    for key, p in module.named_parameters():
                        p.copy_(full(new[key]))
                module.to(self.processes.device)
        self.processes.wait()


def layers(module: nn.Module) -> list[nn.Module]:
    """The parts of a network that are run one after the other, those that hold most of its numbers in between."""
    kinds = (text.Layer, bert.Layer, unet.ResnetBlock, unet.SpatialTransformer)
    return [part for part in module.modules() if isinstance(part, kinds)]


def full(tensor: Any) -> Tensor:
    """All of a tensor that is shared out, on every process. All have to ask."""
    return tensor.full_tensor() if _is_slice(tensor) else tensor


def held(tensor: Any) -> Tensor:
    """The slice of a tensor that this process holds: all of it where it isn't shared out."""
    return tensor.to_local() if _is_slice(tensor) else tensor


def _is_slice(value: Any) -> bool:
    return hasattr(value, "full_tensor")  # a DTensor, whose module is imported only where there are some


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    some: list[Tensor] = []
    for tensor in tensors:
        some.append(tensor)
        if sum(t.numel() for t in some) >= BUCKET:
            yield some
            some = []
    if some:
        yield some

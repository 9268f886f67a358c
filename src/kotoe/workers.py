"""Small models: several pictures side by side, one thread of torch's each, instead of all threads on one picture.

What one small operation costs is mostly its call, and the wait for the last of its threads. Two pictures at a time on
two cores are drawn in half the time of two after one another. And each always has one thread to itself, alone or beside
others, so that its bits are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock, local
from typing import TypeVar

import torch

from kotoe.checkpoints import Bundle
from kotoe.config import Resolved
from kotoe.spec import UNetSpec

SMALL = 2**24  # of `size`: Stable Diffusion's is 1.4e9 at 512 x 512, kotoe-emoji's 5e5
T = TypeVar("T")

# Torch has one number of threads for the process, which every thread that begins takes over, and each worker sets.
_lock = Lock()
_inside = 0  # calls of side_by_side that have begun and not ended
_before = 0  # the process's number when the first of them began
_here = local()  # .worker: on the threads of side_by_side, True


class Stopped(Exception):
    """Another worker has failed, or nobody waits for this one any more."""


def small(bundle: Bundle, request: Resolved) -> bool:
    """Whether a request's pictures have one thread each: on a processor, by a model that does little in each call."""
    scale = bundle.vae.spec.downscale
    work = size(bundle.unet.spec, (request.width // scale) * (request.height // scale))
    return bundle.device.type == "cpu" and not bundle.low_memory and work < SMALL


def size(spec: UNetSpec, positions: int) -> float:
    """Products of one layer at each level, for latents of so many positions."""
    return positions * sum(c * c / 4**i for i, c in enumerate(spec.block_out_channels))


def process_threads() -> int:
    """Torch's number of threads for this process, whatever others that draw now have set. Of a worker: its own."""
    with _lock:
        return _before if _inside and not hasattr(_here, "worker") else torch.get_num_threads()


def _enter() -> int:
    """Of a call that begins: the number of threads that its caller has in the end."""
    global _inside, _before
    with _lock:
        now = torch.get_num_threads()
        if not _inside:
            _before = now
        _inside += 1
        return now if hasattr(_here, "worker") else _before


def _leave(before: int) -> None:
    global _inside
    with _lock:
        _inside -= 1
        torch.set_num_threads(before)  # the process's from the last one on; before that, this thread's


def _begin(threads: int) -> None:
    """Of a worker's thread."""
    _here.worker = True
    torch.get_num_threads()  # a thread takes over the process's number once, and would do so after what is set here
    torch.set_num_threads(threads)


def side_by_side(
    tasks: Sequence[Callable[[], T]], *, workers: int, threads: int = 1, stop: Event | None = None
) -> Iterator[T]:
    """What the tasks give, in their order, from that many at a time, each on so many threads of torch's.

    stop: set when a task has failed or the caller takes no more; a task may look at it and raise Stopped.
    The first failure is raised. Torch's number of threads for the process is as before in the end, that of the last one
    where several threads call this at a time.
    """
    stop = Event() if stop is None else stop
    before = _enter()
    pool = ThreadPoolExecutor(workers, "kotoe", initializer=_begin, initargs=(threads,))
    failed: list[BaseException] = []

    def run(task: Callable[[], T]) -> T:
        try:
            return task()
        except Stopped:
            raise
        except BaseException as error:
            failed.append(error)
            stop.set()  # now, and not when the results before this one have been taken
            raise

    try:
        futures = [pool.submit(run, task) for task in tasks]
        for future in futures:
            try:
                found = future.result()
            except Stopped:
                raise failed[0] if failed else Stopped from None
            yield found
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        _leave(before)

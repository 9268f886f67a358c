"""Jobs drawn in this process: read aside, drawn on lanes (scheduler.py)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter
from typing import Any

import torch

from kotoe.checkpoints import Bundle
from kotoe.drawing import Networks, Picture, draw_batch, networks
from kotoe.reading import Memory, Read, Reading, is_guided, read_prompts
from kotoe.samplers import Step
from kotoe.serve.jobs import Job
from kotoe.serve.previews import Previews
from kotoe.serve.scheduler import Scheduler, Ticket
from kotoe.serve.settings import Serving
from kotoe.workers import SMALL, Stopped, size

log = logging.getLogger("kotoe.serve")
PREVIEW_SECONDS = 0.3  # between two previews of a picture
Drawn = Callable[[Job, int, "Picture | None", "BaseException | None"], None]


class Local:
    """Draws jobs on this machine.

    drawn:     told of each picture, with it or with an error, on any thread.
    hand_over: has something done on the event loop.
    """

    def __init__(
        self,
        settings: Serving,
        bundles: Mapping[str, Bundle],
        *,
        drawn: Drawn,
        hand_over: Callable[..., None],
    ) -> None:
        each_alone = all(_small(bundle) for bundle in bundles.values())
        cores = torch.get_num_threads()
        self.parts = cores if each_alone else 1
        self.scheduler = Scheduler(
            lanes=self.parts,
            threads=max(1, cores // self.parts),
            most=settings.together,
            policy=settings.schedule,
            deterministic=settings.deterministic,
        )
        self.drawn, self.hand_over = drawn, hand_over
        self.previews, self.memory = Previews(), Memory()
        self.tickets: dict[Job, list[Ticket]] = {}
        self.keys: dict[Any, Any] = {}  # of scheduler.Sizes, by model, size and guidance

    def begin(self, job: Job) -> None:
        """Have a job drawn."""
        self.scheduler.elsewhere(
            lambda: self._read(job), partial(self.hand_over, self._reads_done, job), job.deadlines[0]
        )

    def cancel(self, job: Job, index: int | None = None) -> None:
        """Stop a job, or one of its pictures, before the next step."""
        tickets = self.tickets.get(job, [])
        for ticket in tickets if index is None else tickets[index : index + 1]:
            self.scheduler.cancel(ticket)

    def ended(self, job: Job) -> None:
        """A job is over."""
        self.tickets.pop(job, None)

    def cost(self, job: Job) -> float | None:
        """Seconds that a picture of a job takes of the whole machine; None: nothing like it has been drawn."""
        key = self.keys.get(_kind(job))
        step = None if key is None else self.scheduler.sizes.each(key)
        return None if step is None else step * job.each / self.parts

    def lasts(self, job: Job) -> float:
        """Seconds from a picture's first step to its last when as many are drawn with it as pays; 0.0: not known."""
        key = self.keys.get(_kind(job))
        step = None if key is None else self.scheduler.sizes.each(key)
        return 0.0 if step is None else step * self.scheduler.sizes.best(key) * job.each

    def alone(self, job: Job) -> float:
        """Seconds that a step takes when nobody else is there; 0.0: not known."""
        key = self.keys.get(_kind(job))
        return 0.0 if key is None else self.scheduler.sizes.alone(key) or 0.0

    @property
    def begun(self) -> int:
        """Pictures that are being drawn."""
        return sum(len(lane.begun) for lane in self.scheduler.lanes)

    @property
    def calls(self) -> dict[int, int]:
        """Calls of UNets so far, by how many pictures were in them."""
        return dict(self.scheduler.sizes.calls)

    def forget(self) -> None:
        """Count calls from here on."""
        self.scheduler.sizes.calls.clear()

    def close(self) -> None:
        """End; what isn't done ends with Stopped."""
        self.scheduler.close()

    def _read(self, job: Job) -> tuple[Mapping[Reading, Read], Networks]:
        reads = read_prompts(job.bundle, job.request, job.plan, self.memory)
        return reads, networks(job.bundle, job.request)

    def _reads_done(self, job: Job, found: Any, error: BaseException | None) -> None:
        if job.state == "cancelled":
            error = Stopped()
        if error is not None:
            for index in range(len(job.plan)):
                self.drawn(job, index, None, error)
            return
        reads, nets = found
        made = self.tickets[job] = [
            Ticket(
                work=partial(self._draw, job, index, reads[each.reading]),
                wrap=nets,
                deadline=job.deadlines[index],
                ended=partial(self._ended, job, index),
                cancelled=index in job.dropped,
            )
            for index, each in enumerate(job.plan)
        ]
        for ticket in made:
            self.scheduler.submit(ticket)

    def _draw(self, job: Job, index: int, read: Read, nets: Networks) -> Picture:
        """On a lane."""
        job.begun = True
        last, shown = perf_counter(), job.wish.previews
        wanted = None if shown is True else {job.each * (i + 1) // (shown + 1) for i in range(shown)}

        def report(step: Step) -> None:
            nonlocal last
            job.done[index] += 1
            if wanted is not None:
                if step.i + 1 in wanted:
                    self._preview(job, index, step)
            elif step.i + 1 < job.each and perf_counter() - last > PREVIEW_SECONDS:
                last = perf_counter()
                self._preview(job, index, step)

        return draw_batch(job.bundle, job.request, nets, [job.plan[index]], [read], report)[0]

    def _preview(self, job: Job, index: int, step: Step) -> None:
        x0 = step.x0.clone()

        def done(content: bytes | None, error: BaseException | None) -> None:
            if content is not None:
                job.show(index, step.i + 1, content)
            elif error is not None and not isinstance(error, Stopped):
                log.warning("a preview could not be made", exc_info=error)

        self.scheduler.elsewhere(lambda: self.previews.png(job.bundle, x0), done, job.deadlines[index])

    def _ended(self, job: Job, index: int, picture: Picture | None, error: BaseException | None) -> None:
        tickets = self.tickets.get(job)  # None: nobody waits for it any more
        if tickets is not None and tickets[index].key is not None:
            self.keys[_kind(job)] = tickets[index].key
        self.drawn(job, index, picture, error)


def _kind(job: Job) -> Any:
    request = job.request
    return id(job.bundle.unet), request.width, request.height, is_guided(request), request.engine


def _small(bundle: Bundle) -> bool:
    """Whether a model's pictures, at its own size, have one thread each (workers.py)."""
    spec = bundle.unet.spec
    return bundle.device.type == "cpu" and not bundle.low_memory and size(spec, spec.sample_size**2) < SMALL


def in_few_steps(bundle: Bundle) -> Bundle:
    """A model's few-step way. Raises UserError where it has none."""
    from kotoe.checkpoints.adapters import with_adapters
    from kotoe.checkpoints.fast import fast

    quick, loras = fast(bundle)
    return with_adapters(quick, loras) if loras else quick

"""Jobs drawn by replicas on Ray Serve: on this machine, or on as many as a Ray cluster has.

The HTTP side stays one process, with the jobs, the store and the keys; what it hands out is pictures. A replica loads a
model when it is first asked for it (Ray Serve's multiplexing sends later pictures of that model to where it is loaded)
and draws as one machine does, by lanes and step by step (local.py). How many replicas there are follows from how many
pictures wait (Ray Serve's autoscaling). A picture whose replica dies is drawn by another.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from kotoe.checkpoints import Bundle
from kotoe.config import Resolved
from kotoe.drawing import Picture
from kotoe.numerics import with_numerics
from kotoe.reading import Job as Planned
from kotoe.reading import is_guided
from kotoe.serve.jobs import Job, Wish
from kotoe.serve.local import Drawn, Local, in_few_steps
from kotoe.serve.metrics import tell
from kotoe.serve.settings import Serving
from kotoe.workers import Stopped

TRIES = 3  # of a picture whose replicas die
WAITING = 16  # pictures of a replica from which on there should be another one
AT_ONCE = 128  # pictures that a replica takes; the others wait for whichever has room
TELLS = 0.25  # seconds between two things that a replica tells of a picture: each costs some milliseconds
Load = Callable[[str], Bundle]
Outcome = tuple["Picture | None", "BaseException | None"]


@dataclass(frozen=True, kw_only=True)
class Order:
    """A picture for a replica. due: seconds from now to its deadline: machines have clocks of their own."""

    model: str
    fast: bool
    request: Resolved
    planned: Planned
    pictures: Mapping[str, bytes]
    each: int
    previews: bool | int
    due: float


@dataclass(frozen=True, kw_only=True)
class News:
    """What a replica tells of a picture: steps done, previews since the last time, and in the end the picture and what
    one like it costs, in seconds of the replica."""

    steps: int
    previews: tuple[tuple[int, bytes], ...] = ()
    picture: Picture | None = None
    cost: float | None = None


class Replica:
    """A process of Ray Serve's that draws. load: a model by its name."""

    def __init__(self, settings: Serving, load: Load) -> None:
        from kotoe.memory import keep_memory

        keep_memory()
        self.settings, self.load = settings, load
        self.bundles: dict[tuple[str, bool], Bundle] = {}
        self.local: Local | None = None
        self.waiting: dict[Job, asyncio.Future[Picture]] = {}
        self.folder = tempfile.TemporaryDirectory(prefix="kotoe-replica-")

    async def draw(self, order: Order) -> AsyncIterator[News]:
        """A picture, and what is to be told of it until it is done. Whoever stops listening stops it."""
        loop = asyncio.get_running_loop()
        bundle = await self._bundle(order.model, order.fast)
        paths = {name: str(Path(self.folder.name) / f"{secrets.token_hex(8)}.png") for name in order.pictures}
        for name, path in paths.items():
            Path(path).write_bytes(order.pictures[name])
        request = replace(order.request, **paths)  # type: ignore[arg-type]
        job = Job(
            id=secrets.token_hex(16),
            wish=Wish(request=request, previews=order.previews),
            request=request,
            bundle=with_numerics(bundle, request.numerics),
            plan=[order.planned],
            prompt_verdict=None,
            created=0.0,
            deadlines=[perf_counter() + order.due],
            each=order.each,
            done=[0],
        )
        assert self.local is not None
        done = self.waiting[job] = loop.create_future()
        told = 0
        try:
            self.local.begin(job)
            while not done.done():
                await asyncio.wait({done}, timeout=TELLS)
                shown = tuple((step, content) for _, step, content in job.previews if step > told)
                told = max((step for step, _ in shown), default=told)
                if not done.done():
                    yield News(steps=job.done[0], previews=shown)
            yield News(steps=job.done[0], picture=done.result(), cost=self.local.cost(job))
        finally:
            job.state = "cancelled"  # for what is still being read
            self.local.cancel(job)
            self.local.ended(job)
            self.waiting.pop(job, None)
            for path in paths.values():
                Path(path).unlink(missing_ok=True)

    async def _bundle(self, model: str, fast: bool) -> Bundle:
        if (model, fast) not in self.bundles:
            make = partial(in_few_steps, await self._bundle(model, False)) if fast else partial(self.load, model)
            self.bundles[model, fast] = await asyncio.to_thread(make)
        if self.local is None:
            loop = asyncio.get_running_loop()
            only = {model: self.bundles[model, fast]}
            self.local = Local(self.settings, only, drawn=self._drawn, hand_over=self._hand_over)
            self.loop = loop
        return self.bundles[model, fast]

    def _hand_over(self, then: Callable[..., None], *args: Any) -> None:
        self.loop.call_soon_threadsafe(then, *args)

    def _drawn(self, job: Job, index: int, picture: Picture | None, error: BaseException | None) -> None:
        def tell_it() -> None:
            found = self.waiting.get(job)
            if found is None or found.done():
                return
            if picture is None:
                found.set_exception(error if isinstance(error, Exception) else Stopped())
            else:
                found.set_result(picture)

        self.loop.call_soon_threadsafe(tell_it)


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """Replicas that are there. ours: whether the Ray that they are on is this process's own."""

    name: str
    handle: Any
    ours: bool


class Remote:
    """Draws jobs on replicas; it has Local's methods."""

    def __init__(
        self,
        settings: Serving,
        bundles: Mapping[str, Bundle],
        *,
        drawn: Drawn,
        hand_over: Callable[..., None],
        deployed: Deployed,
    ) -> None:
        self.settings, self.drawn, self.hand_over = settings, drawn, hand_over
        self.names = {id(bundle.unet): name for name, bundle in bundles.items()}
        self.tasks: dict[Job, list[asyncio.Task[Outcome]]] = {}
        self.costs: dict[Any, float] = {}
        self.begun = 0
        self.calls: dict[int, int] = {}  # replicas have their own
        self.deployed, self.loop = deployed, asyncio.get_running_loop()

    def begin(self, job: Job) -> None:
        """Have a job drawn. On the event loop."""
        made = self.tasks[job] = [asyncio.ensure_future(self._one(job, index)) for index in range(len(job.plan))]
        for index, task in enumerate(made):
            task.add_done_callback(partial(self._over, job, index))

    def cancel(self, job: Job, index: int | None = None) -> None:
        """Stop a job, or one of its pictures."""
        tasks = self.tasks.get(job, [])
        for task in tasks if index is None else tasks[index : index + 1]:
            task.cancel()

    def ended(self, job: Job) -> None:
        """A job is over."""
        self.tasks.pop(job, None)

    def cost(self, job: Job) -> float | None:
        """Seconds that a picture of a job takes of all the replicas that there are always; None: not known."""
        step = self.costs.get(_kind(job))
        return None if step is None else step * job.each / self.settings.min_replicas

    def lasts(self, job: Job) -> float:
        """Not known here."""
        return 0.0

    def alone(self, job: Job) -> float:
        """Not known here."""
        return 0.0

    def forget(self) -> None:
        """Replicas count for themselves."""

    def close(self) -> None:
        """On any thread: end the replicas; what isn't done ends with Stopped."""
        import ray
        from ray import serve

        for task in [task for tasks in list(self.tasks.values()) for task in tasks]:
            self.loop.call_soon_threadsafe(task.cancel)
        serve.delete(self.deployed.name)
        if self.deployed.ours:
            serve.shutdown()
            ray.shutdown()

    def _over(self, job: Job, index: int, task: asyncio.Task[Outcome]) -> None:
        """A picture's task is at its end, or was cancelled before its beginning."""
        found, error = (None, Stopped()) if task.cancelled() else task.result()
        self.drawn(job, index, found, error)

    async def _one(self, job: Job, index: int) -> Outcome:
        from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError

        error: BaseException = Stopped()
        for left in reversed(range(TRIES)):
            try:
                return await self._drawn_there(job, index), None
            except (asyncio.CancelledError, TaskCancelledError):
                return None, Stopped()
            except RayActorError as died:
                error = died
                job.done[index] = 0
                tell(logging.WARNING, "a replica died", job=job.id, picture=index, tries_left=left)
            except RayTaskError as raised:
                return None, raised.cause if isinstance(raised.cause, BaseException) else raised
            except Exception as raised:  # noqa: BLE001 - whatever ends a picture ends that one alone
                return None, raised
        return None, error

    async def _drawn_there(self, job: Job, index: int) -> Picture:
        given = {"init_image": job.request.init_image, "mask": job.request.mask}
        paths = {name: Path(path) for name, path in given.items() if path is not None}
        files = {name: await asyncio.to_thread(path.read_bytes) for name, path in paths.items()}
        model = self.names.get(id(job.bundle.unet)) or job.wish.model or next(iter(self.names.values()))
        order = Order(
            model=model,
            fast=job.wish.fast,
            request=job.request,
            planned=job.plan[index],
            pictures=files,
            each=job.each,
            previews=job.wish.previews,
            due=job.deadlines[index] - perf_counter(),
        )
        stream = self.deployed.handle.options(stream=True, multiplexed_model_id=model).draw.remote(order)
        self.begun += 1
        try:
            async for news in stream:
                job.begun = job.begun or news.steps > 0
                job.done[index] = news.steps
                for step, content in news.previews:
                    job.show(index, step, content)
                if news.picture is not None:
                    if news.cost is not None:
                        self.costs[_kind(job)] = news.cost / job.each
                    return news.picture
        except asyncio.CancelledError:
            stream.cancel()
            raise
        finally:
            self.begun -= 1
        raise Stopped


def _kind(job: Job) -> Any:
    request = job.request
    return job.bundle.name, request.width, request.height, is_guided(request), request.engine, job.wish.fast


def deploy(settings: Serving, load: Load) -> Deployed:
    """Start replicas, and wait until they are there. Not on the main thread, whose signals Ray would take."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anyone
    import ray
    from ray import serve

    ours = settings.ray_address is None
    ray.init(
        address="local" if ours else settings.ray_address,
        namespace="kotoe",
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
    )
    serve.start(proxy_location="Disabled")
    deployment = serve.deployment(
        name="drawing",
        max_ongoing_requests=AT_ONCE,
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": WAITING,
            "upscale_delay_s": 3.0,
            "downscale_delay_s": 60.0,
        },
        ray_actor_options={"num_cpus": settings.replica_cpus},
        health_check_period_s=2.0,
        health_check_timeout_s=10.0,
        graceful_shutdown_timeout_s=5.0,
    )(_multiplexed())
    name = f"kotoe-{secrets.token_hex(4)}"
    handle = serve.run(deployment.bind(settings, load), name=name, route_prefix=None)
    return Deployed(name=name, handle=handle, ours=ours)


def _multiplexed() -> type[Replica]:
    """Replica, telling Ray Serve which models it has."""
    from ray import serve

    class Multiplexed(Replica):
        @serve.multiplexed(max_num_models_per_replica=8)  # type: ignore[untyped-decorator, unused-ignore]
        async def loaded(self, model: str) -> str:
            await self._bundle(model, False)
            return model

        async def draw(self, order: Order) -> AsyncIterator[News]:
            await self.loaded(order.model)
            async for news in super().draw(order):
                yield news

    return Multiplexed

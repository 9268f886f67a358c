"""Jobs: requests that were taken, from the first word about them to the last.

A job's state changes on the event loop alone; lanes and helpers hand over what they have by `call_soon_threadsafe`,
but for the counts of steps, which are only read here.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from kotoe import reading
from kotoe.checkpoints import Bundle
from kotoe.config import Request, Resolved, to_json
from kotoe.drawing import Picture, plan, resolve, steps_run
from kotoe.errors import UserError, nearest
from kotoe.numerics import with_numerics
from kotoe.provenance.encode import encode, marked
from kotoe.provenance.marking import Marking, check_size, signer
from kotoe.reading import is_guided, said
from kotoe.record import Verdict
from kotoe.safety import reasons
from kotoe.safety.checks import Checks, checker_of, judged
from kotoe.safety.prompts import CHECKER
from kotoe.serve import refusals
from kotoe.serve.jobs import Job, Kept, Wish
from kotoe.serve.local import Local, in_few_steps
from kotoe.serve.metrics import Metrics, tell
from kotoe.serve.pictures import largest
from kotoe.serve.refusals import Refusal
from kotoe.serve.settings import Serving
from kotoe.serve.store import ENDED, Store, StoreError, lost
from kotoe.starting import picture_size
from kotoe.workers import Stopped

FIELDS = tuple(Request.__dataclass_fields__)
HELD_SECONDS = 60.0  # in memory after a job's end, for those who are about to ask for it
UNKEPT_BYTES = 2**28  # of pictures that are in memory alone, since the store can't be written
LOOKS = 0.05  # seconds between two looks at whether all has ended
LAST_SECONDS = 5.0  # at the end, for what was handed over last
RESTART_SECONDS = 5.0  # after which another server may be there
UNKNOWN_SECONDS = 1.0  # what a picture is taken to need before any has been drawn


class Service:
    """The models of a server, and the jobs that it has taken. Made on the event loop that it is used on.

    drawer: makes what draws the jobs: Local, or what has the same methods.
    """

    def __init__(
        self,
        settings: Serving,
        checks: Checks,
        bundles: Mapping[str, Bundle],
        store: Store,
        drawer: Callable[..., Any] = Local,
        marking: Marking | None = None,
    ) -> None:
        self.settings, self.checks, self.store = settings, checks, store
        self.bundles: dict[str, Bundle] = dict(bundles)
        self.default = next(iter(bundles))
        self.loop = asyncio.get_running_loop()
        self.folder = tempfile.TemporaryDirectory(prefix="kotoe-serve-")
        self.jobs: dict[str, Job] = {}  # that are not ended, and those that ended lately
        self.running: dict[str, Job] = {}  # of these, those that are not ended: much fewer on a busy server
        self.due: dict[str, float] = {}  # by caller: the deadline of the last picture
        self.begun: dict[str, list[float]] = {}  # by caller: when pictures were asked for, for the rate
        self.quick: dict[str, Bundle] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.started = time.time()
        self.draining = False
        self.checkers = {
            name: found
            for name, bundle in bundles.items()
            if (found := checker_of(checks, bundle, False, lambda note: tell(logging.WARNING, note)))[0] is not None
        }
        self.marking = Marking() if marking is None else marking
        self.signer = signer(self.marking, lambda note: tell(logging.WARNING, note))
        self.files = ThreadPoolExecutor(1, "kotoe-files")
        self.front = ThreadPoolExecutor(4, "kotoe-front")
        self.drawer = drawer(settings, self.bundles, drawn=self._drawn, hand_over=self._hand_over)
        self.metrics = Metrics(self)

    # --- Taking a job

    async def warm(self) -> None:
        """Draw one small picture with every model, so that the first caller doesn't wait for what is made once."""
        for name, bundle in self.bundles.items():
            request = Request(prompt="a", language=bundle.default_language, steps=2)
            if bundle.unet.spec.inpaints:
                continue
            job = await self.submit(Wish(request=request, model=name, caller="warm-up"), keep=False)
            await job.ended.wait()
            self.jobs.pop(job.id)
            if job.error is not None:
                raise UserError(f"{name} can't draw: {job.error.message}")
        self.due.clear()
        self.begun.clear()
        self.drawer.forget()
        self.metrics = Metrics(self)  # of callers' pictures alone

    async def submit(self, wish: Wish, *, keep: bool = True) -> Job:
        """Take a request. Raises Refusal for what can't be drawn, for a full queue, and while the server ends."""
        wanted = len(wish.request.prompt) * wish.request.n
        self.admit(wish.caller, wanted)
        try:
            job = await self.loop.run_in_executor(self.front, partial(self._prepare, wish))
        except UserError as error:
            raise refusals.of(error, FIELDS) from error
        verdict = job.prompt_verdict
        if verdict is not None and not verdict.allowed and verdict.action == "block":
            reason = reasons.blocked(reason_of(verdict, wish.locale), wish.locale)
            raise Refusal(
                400, reason, kind="image_generation_user_error", param="prompt", code="content_policy_violation"
            )
        self.admit(wish.caller, wanted)  # others came meanwhile
        if self.settings.rate:
            self.begun.setdefault(wish.caller, []).extend([time.time()] * wanted)
        job.deadlines = self._deadlines(job)
        job.open, job.done, job.keeps, job.kept = len(job.plan), [0] * len(job.plan), keep, keep
        self.jobs[job.id] = self.running[job.id] = job
        try:
            if keep:
                await self._save(job, self.store.put, job.id, job.wish.owner, job.created)
            self.metrics.taken(job)
            self.drawer.begin(job)
        except BaseException:
            self.jobs.pop(job.id, None)  # else it would wait for ever
            self.running.pop(job.id, None)
            raise
        return job

    def admit(self, caller: str, wanted: int) -> None:
        """Raise Refusal where so many pictures of a caller's aren't taken now: to be asked before what takes long."""
        if self.draining:
            raise Refusal(
                503, "The server is ending.", kind="server_error", code="draining", retry_after=RESTART_SECONDS
            )
        rate = self.settings.rate
        most = min(self.settings.max_waiting, rate or self.settings.max_waiting)
        if wanted > most:
            raise Refusal(400, f"n {wanted}, pictures of one request. Allowed: 1 to {most}.", param="n")
        waiting = sum(job.open for job in self.running.values())
        if waiting + wanted > self.settings.max_waiting:
            raise Refusal(
                429,
                f"{waiting} pictures wait already; the queue holds {self.settings.max_waiting}.",
                kind="rate_limit_error", code="queue_full", retry_after=self._clears(waiting, wanted),
            )  # fmt: skip
        if rate:
            now = time.time()
            recent = {who: [t for t in times if t > now - 60] for who, times in self.begun.items()}
            self.begun = {who: times for who, times in recent.items() if times}
            lately = self.begun.get(caller, [])
            if (over := len(lately) + wanted - rate) > 0:
                raise Refusal(
                    429, f"{len(lately)} pictures in the last minute, and {wanted} more; {rate} are allowed.",
                    kind="rate_limit_error", code="rate_limit_exceeded", retry_after=lately[over - 1] + 60 - now,
                )  # fmt: skip

    def _clears(self, waiting: int, wanted: int) -> float:
        """Seconds until there is room for so many more."""
        last = max(list(self.running.values()), key=lambda job: job.deadlines[-1], default=None)
        seconds = None if last is None else self.seconds_left(last)
        return max(1.0, (seconds or 1.0) * min(1.0, wanted / max(waiting, 1)))

    def _prepare(self, wish: Wish) -> Job:
        """On a thread: everything that can be wrong with a request, before it is taken."""
        bundle = self.bundle(wish.model, fast=wish.fast)
        request = wish.request
        limits = self.settings
        for name in ("prompt", "negative_prompt"):
            text = getattr(request, name)
            longest = max(map(len, text)) if name == "prompt" else len(text)
            if longest > limits.max_prompt_chars:
                raise UserError(f"{name} of {longest} characters", allowed=f"{limits.max_prompt_chars} at most")
        count = len(request.prompt) * request.n
        if count > limits.max_n:
            raise UserError(f"n {count}, pictures of one request", allowed=f"1 to {limits.max_n}")
        resolved = resolve(bundle, request)
        if resolved.width * resolved.height > limits.max_pixels:
            raise UserError(
                f"width {resolved.width} x height {resolved.height}",
                allowed=f"{limits.max_pixels} pixels at most, as this server is set",
            )
        width, height = picture_size(resolved)  # with padding_mask_crop that of a photo
        if resolved.padding_mask_crop is not None and count * width * height > largest(limits.max_pixels):
            raise UserError(
                f"n {count}, pictures of init_image's {width}x{height} pixels",
                allowed=f"{largest(limits.max_pixels)} pixels together, as this server is set",
            )
        check_size(self.marking, width, height)
        if resolved.steps > limits.max_steps:
            raise UserError(f"steps {resolved.steps}", allowed=f"1 to {limits.max_steps}, as this server is set")
        jobs = plan(bundle, resolved)
        verdict = None
        if self.checks.prompt_check != "off":
            verdict = judged(self.checks, resolved, jobs[0].prompt, jobs[0].prompt_language, jobs[0].translation)
        for job in jobs:
            self._check_length(bundle, resolved, job)
        return Job(
            id=secrets.token_hex(16),
            wish=wish,
            request=resolved,
            bundle=with_numerics(bundle, resolved.numerics),
            plan=jobs,
            prompt_verdict=verdict,
            created=time.time(),
            deadlines=(),
            each=steps_run(resolved),
        )

    def _check_length(self, bundle: Bundle, request: Resolved, job: reading.Job) -> None:
        """Count tokens: a prompt that is too long is told at once, and not when its turn has come."""
        tokenizer = bundle.tokenizer(job.language)
        given = (job.prompt, request.negative_prompt)
        if job.translation is not None:
            given = (job.translation.prompt, job.translation.negative_prompt)
        for name, text in zip(("prompt", "negative_prompt"), given if is_guided(request) else given[:1]):
            try:
                tokenizer.encode(
                    [said(request, text, translated=job.translation is not None)], long_prompt=request.long_prompt
                )
            except UserError as error:
                raise UserError(f"{name}: {error.given}", allowed=error.allowed, hint=error.hint) from None

    def bundle(self, model: str | None = None, *, fast: bool = False) -> Bundle:
        """One of the server's models by its name, or its few-step way. Raises UserError for one that isn't there."""
        name = self.default if model is None else model
        if name not in self.bundles:
            near = nearest(name, self.bundles)
            raise UserError(
                f"model {name!r}", allowed=", ".join(self.bundles), hint=f"Did you mean {near!r}?" if near else ""
            )
        if not fast:
            return self.bundles[name]
        if name not in self.quick:
            self.quick[name] = in_few_steps(self.bundles[name])
        return self.quick[name]

    def _deadlines(self, job: Job) -> list[float]:
        """When each should begin: now, or when its caller's pictures before it should be done, less the time that it
        takes in company. So callers share the server, whoever asks for more, and what takes longer begins earlier than
        what has come with it. In `perf_counter`'s seconds."""
        now, cost = perf_counter(), self.drawer.cost(job) or UNKNOWN_SECONDS
        start = max(now, self.due.get(job.wish.caller, 0.0))
        found = [start + cost * i - self.drawer.lasts(job) for i in range(len(job.plan))]
        self.due[job.wish.caller] = start + cost * len(job.plan)
        self.due = {caller: due for caller, due in self.due.items() if due > now}
        return found

    # --- While it is drawn

    def _hand_over(self, then: Callable[..., None], *args: Any) -> None:
        """From any thread to the event loop; there is none any more when the server ends."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(then, *args)

    def _drawn(self, job: Job, index: int, picture: Picture | None, error: BaseException | None) -> None:
        """On any thread: the picture goes to be checked and encoded."""
        if picture is None:
            self._hand_over(self._picture_done, job, index, None, error)
            return
        self.files.submit(self._finished, job, index, picture)

    def _finished(self, job: Job, index: int, picture: Picture) -> None:
        """On a thread: see _finish."""
        found: Kept | Verdict | None = None
        failed: BaseException | None = None
        try:
            found = self._finish(job, index, picture)
        except Exception as error:  # noqa: BLE001 - it ends the job, and is told there
            failed = error
        self._hand_over(self._picture_done, job, index, found, failed)

    def _finish(self, job: Job, index: int, picture: Picture) -> Kept | Verdict:
        """On a thread: a picture's checks and its file; or the verdict that keeps it back."""
        record = picture.record
        names = {
            name: Path(path).name for name in ("init_image", "mask") if (path := getattr(record, name)) is not None
        }
        record = replace(record, prompt_verdict=job.prompt_verdict, **names)  # type: ignore[arg-type]
        picture = replace(picture, record=record)
        checker = self.checkers.get(job.bundle.name)
        if checker is not None:
            from kotoe.safety.images import carry_out, judge

            found, offsets = checker
            action: Any = self.checks.safety or "flag"
            verdict = judge(found, [picture.image], action=action, offsets=offsets, languages=[job.wish.locale])[0]
            kept = carry_out(picture, verdict)
            if kept is None:
                return verdict
            picture = kept
        picture = marked(picture, self.marking.watermark)
        how = job.wish.encode or encode
        content = how(picture, signer=self.signer)
        name = secrets.token_hex(16)
        if job.kept:
            try:
                self.store.put_picture(name, job.id, content)
            except StoreError as error:
                job.kept = False
                self.metrics.not_kept(error)
        return Kept(id=name, index=index, content=content, picture=picture)

    def _picture_done(self, job: Job, index: int, found: Any, error: BaseException | None) -> None:
        job.open -= 1
        if isinstance(found, Kept):
            job.pictures.append(found)
            job.pictures.sort(key=lambda kept: kept.index)
            self.metrics.drawn(job)
        elif isinstance(found, Verdict):
            job.blocked.append({"seed": job.plan[index].seed, "reason": reason_of(found, job.wish.locale)})
        elif isinstance(error, Stopped):
            if job.state != "cancelled" and index not in job.dropped and job.error is None:
                job.state, job.error = "lost", refusal_of(error)
        elif error is not None:
            self._fail(job, error)
        if index in job.dropped:
            job.done[index] = job.each  # nothing of it is left to do
        self._check_end(job)

    def _fail(self, job: Job, error: BaseException) -> None:
        if job.error is None:
            job.error = refusal_of(error)
            self.metrics.failed(job, error)
        self.drawer.cancel(job)

    def _check_end(self, job: Job) -> None:
        if job.open or job.ended.is_set():
            return
        if job.state not in ("cancelled", "lost"):
            job.state = "done" if job.error is None else "failed"
        self.metrics.ended(job)
        self.drawer.ended(job)
        job.ended.set()
        self.running.pop(job.id, None)
        if job.forgotten:
            self._later(self._delete_quietly(job))
        elif job.kept:
            self._later(self._save(job, self.store.update, job.id))
        given = job.wish.request
        self.forget(*(path for path in (given.init_image, given.mask) if path is not None))
        self.loop.call_later(HELD_SECONDS, self._let_go, job)

    def _let_go(self, job: Job) -> None:
        """A while after its end: from memory, unless it is there alone, and should not be."""
        if job.keeps and not job.kept and job.id in self.jobs:
            self._later(self._keep_again(job))
        else:
            self.jobs.pop(job.id, None)

    async def _keep_again(self, job: Job) -> None:
        """The store could not be written. If it still can't, a job stays in memory for as long as results are kept."""
        files = {kept.id: kept.content for kept in job.pictures}
        await self._save(job, self.store.put_whole, job.id, job.wish.owner, job.created, files)
        if job.id not in self.jobs:  # it was deleted meanwhile
            await self._delete_quietly(job)
            return
        unkept = [one for one in self.jobs.values() if one.keeps and not one.kept and one.ended.is_set()]
        room = sum(len(kept.content) for one in unkept for kept in one.pictures) < UNKEPT_BYTES
        if job.kept or not room or time.time() - job.created > 3600 * self.settings.keep_hours:
            self.jobs.pop(job.id, None)
        else:
            self.loop.call_later(HELD_SECONDS, self._let_go, job)

    async def _delete_quietly(self, job: Job) -> None:
        try:
            await self.delete(job.id)
        except Refusal as error:
            self.metrics.not_kept(error)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self.tasks.add(task)  # the loop itself would forget it
        task.add_done_callback(self.tasks.discard)

    async def _save(self, job: Job, put: Callable[..., None], *what: Any) -> None:
        """Have the job's document written; `kept` says whether it was."""
        job.kept = True
        try:
            await asyncio.to_thread(put, *what, self._lasting(job))
        except StoreError as error:
            job.kept = False
            self.metrics.not_kept(error)

    # --- Looking at it

    def document(self, job: Job) -> dict[str, Any]:
        """What a caller sees of a job."""
        found = self._lasting(job)
        return found | {"place": self.place(job), "seconds": self.seconds_left(job)}

    def _lasting(self, job: Job) -> dict[str, Any]:
        """The same without what hangs on the others, which takes longer to tell."""
        done, total = job.steps
        return {
            "id": job.id,
            "state": "drawing" if job.state == "waiting" and job.begun else job.state,
            "place": 0,
            "seconds": None,
            "steps": {"done": done, "total": total},
            "created": round(job.created, 3),
            "model": job.bundle.name,
            "prompt": job.plan[0].prompt,
            "language": job.plan[0].language,
            "seeds": [each.seed for each in job.plan],
            "pictures": [
                {
                    "id": kept.id,
                    "url": f"/kotoe/v1/pictures/{kept.id}.{suffix_of(kept.content)}",
                    "seed": kept.picture.record.seed,
                    "width": kept.picture.image.width,
                    "height": kept.picture.image.height,
                    "verdict": None if (v := kept.picture.record.picture_verdict) is None else to_json(v),
                }
                for kept in job.pictures
            ],
            "blocked": job.blocked,
            "error": None if job.error is None else job.error.document,
            "kept": job.kept,
            "notes": list(job.wish.notes),
        }

    def place(self, job: Job) -> int:
        """How many jobs come before one that waits, and itself: 1 is next. 0: it is being drawn, or ended."""
        if job.begun or job.ended.is_set():
            return 0
        others = (other for other in list(self.running.values()) if other is not job)
        return 1 + sum(not other.begun and other.deadlines[0] < job.deadlines[0] for other in others)

    def seconds_left(self, job: Job) -> float | None:
        """Predicted seconds until the last picture is done: steps that come before, and its own. None: not known."""
        if job.ended.is_set():
            return 0.0
        last, total = job.deadlines[-1], 0.0
        for other in list(self.running.values()):
            cost = self.drawer.cost(other)
            if cost is None:
                if other is job:
                    return None
                continue
            counts = zip(list(other.done), other.deadlines, strict=True)
            steps = sum(other.each - done for done, due in counts if due <= last and done < other.each)
            total += cost / other.each * steps
        return round(max(total, self.drawer.alone(job) * (job.each - min(job.done))), 2)

    async def find(self, name: str, owner: str) -> Job | dict[str, Any] | None:
        """A job that is at work or ended lately, or an earlier one's document; None where there is none of this
        owner's."""
        job = self.jobs.get(name)
        if job is not None:
            return job if job.wish.owner == owner and not job.forgotten else None
        found = await asyncio.to_thread(self.store.job, name)
        if found is None or found[0] != owner:
            return None
        return found[1] if found[1]["state"] in ENDED else lost(found[1])  # its end could not be written

    def cancel(self, job: Job) -> None:
        """Stop a job before its next step. What it has finished stays."""
        if job.ended.is_set() or job.state == "cancelled":
            return
        job.state = "cancelled"
        self.drawer.cancel(job)

    def cancel_and_delete(self, job: Job) -> None:
        """Stop a job, and delete it with all that it has finished. Nobody finds it from now on."""
        job.forgotten = True
        self.cancel(job)

    def drop(self, job: Job, index: int) -> None:
        """Give up one picture of a job before its next step. One that is finished stays."""
        job.dropped.add(index)
        self.drawer.cancel(job, index)

    def keep(self, content: bytes) -> str:
        """A picture that came with a request, as a file until its job has ended."""
        path = Path(self.folder.name) / f"{secrets.token_hex(8)}.png"
        path.write_bytes(content)
        return str(path)

    def forget(self, *paths: str) -> None:
        """Files of a request that was not taken."""
        for path in paths:
            Path(path).unlink(missing_ok=True)

    def picture(self, name: str, owner: str) -> bytes | None:
        """The file of a picture of this owner's, or None."""
        for job in list(self.jobs.values()):
            for kept in job.pictures:
                if kept.id == name:
                    return kept.content if job.wish.owner == owner and not job.forgotten else None
        found = self.store.picture(name)
        return found[1] if found is not None and found[0] == owner else None

    async def delete(self, name: str) -> None:
        """A job that has ended, and its pictures. Raises Refusal where the store can't be written."""
        try:
            await asyncio.to_thread(self.store.delete, name)
        except StoreError as error:
            raise Refusal(507, f"The store can't be written: {error}", kind="server_error", code="store") from error
        self.jobs.pop(name, None)

    def expire(self) -> None:
        """On a thread: delete what has been kept long enough."""
        try:
            self.store.expire(time.time() - 3600 * self.settings.keep_hours, list(self.running))
        except StoreError as error:
            self.metrics.not_kept(error)

    # --- The end

    async def drain(self, seconds: float, hurry: Callable[[], bool] = lambda: False) -> None:
        """Take nothing more, and wait until all is done, so long at most, or until `hurry` says so. What isn't done
        then is lost, and told to be."""
        self.draining = True
        ends = self.loop.time() + seconds
        while self.running and self.loop.time() < ends and not hurry():
            await asyncio.sleep(LOOKS)
        await asyncio.to_thread(self.drawer.close)
        await asyncio.to_thread(self.files.shutdown)
        ends = self.loop.time() + LAST_SECONDS
        while self.running and self.loop.time() < ends:  # what was handed over last
            await asyncio.sleep(LOOKS)
        while self.tasks:
            await asyncio.wait(self.tasks)
        self.front.shutdown(cancel_futures=True)
        self.store.close()
        self.folder.cleanup()


def suffix_of(content: bytes) -> str:
    """What a picture's file is: png, jpeg or webp."""
    if content[:3] == b"\xff\xd8\xff":
        return "jpeg"
    return "webp" if content[:4] == b"RIFF" else "png"


def reason_of(verdict: Verdict, locale: str) -> str:
    """A verdict's reason in the caller's language, where there is one in it."""
    return reasons.of_prompt(verdict.found, locale) if verdict.checker == CHECKER else verdict.reason


def refusal_of(error: BaseException) -> Refusal:
    """What a caller is told of an error that ended a job: bad input whole, of what is the server's only that it was."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, UserError):
        return refusals.of(error, FIELDS)
    if isinstance(error, Stopped):
        return Refusal(503, "The server ended before this was done.", kind="server_error", code="lost")
    return Refusal(
        500, f"The picture could not be drawn ({type(error).__name__}). the server's log has more", kind="server_error",
        code="drawing_failed",
    )  # fmt: skip

"""The AUTOMATIC1111 API: what draws, and what tells of it while it is drawn. See docs/serve_a1111.md.

Own code, after the API's description: nothing is that program's. What is there to choose from is in a1111_lists.py.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.requests import Request as HTTPRequest

from kotoe import __version__
from kotoe.errors import UserError
from kotoe.provenance.infotext import infotext
from kotoe.provenance.names import SAMPLERS, SCHEDULES
from kotoe.record import Record
from kotoe.serve import a1111_fields as fields
from kotoe.serve import refusals
from kotoe.serve.a1111_fields import Body, Drawing, Img2Img, Txt2Img, named
from kotoe.serve.a1111_state import CHECKPOINT, Known, Running, Seat, Seats, checked
from kotoe.serve.api import Calling, Locale, Served, caller_of
from kotoe.serve.gate import Caller, gone
from kotoe.serve.jobs import Job, Wish
from kotoe.serve.pictures import on_thread
from kotoe.serve.refusals import Refusal
from kotoe.serve.service import FIELDS, Service


class Problem(BaseModel):
    """Every error. error: a word for it; detail and errors: what was wrong, what is allowed."""

    error: str
    detail: str
    body: str
    errors: str


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": what}
    for status, what in {
        400: "A value that can't be done; the field is named.",
        401: "A key is needed.",
        403: "This page or host may not ask.",
        404: "There is no such thing, or no picture to begin with.",
        405: "Another method is needed.",
        408: "The body did not come.",
        413: "The body is too large.",
        429: "The queue is full, or it was too fast.",
        500: "The server's fault.",
        501: "Kotoe doesn't have it.",
        503: "Models are loading, or the server ends.",
    }.items()
}
router = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111"], responses=PROBLEMS)
internal = APIRouter(prefix="/internal", tags=["AUTOMATIC1111"], responses=PROBLEMS)


def seats_of(request: HTTPRequest) -> Seats:
    """What is remembered of all callers."""
    seats: Seats = request.app.state.a1111
    return seats


def seat_of(request: HTTPRequest) -> Seat:
    """What is remembered of who asks."""
    return seats_of(request).of(caller_of(request))


Sitting = Annotated[Seat, Depends(seat_of)]
Everyone = Annotated[Seats, Depends(seats_of)]


class Answer(BaseModel):
    """images: files in base64. parameters: the request. info: a JSON document, as text."""

    images: list[str]
    parameters: dict[str, Any]
    info: str


# --- Drawing --------------------------------------------------------------------------------------


@router.post("/txt2img", response_model=Answer)
async def txt2img(
    body: Txt2Img, http: HTTPRequest, service: Served, caller: Calling, locale: Locale, seats: Everyone
) -> Response:
    """Draw from words, and answer when it is done."""
    return await _drawn(body, http, service, caller, locale, seats)


@router.post("/img2img", response_model=Answer)
async def img2img(
    body: Img2Img, http: HTTPRequest, service: Served, caller: Calling, locale: Locale, seats: Everyone
) -> Response:
    """Draw from a picture, or within a mask, and answer when it is done."""
    return await _drawn(body, http, service, caller, locale, seats)


async def _drawn(
    body: Drawing, http: HTTPRequest, service: Service, caller: Caller, locale: str, seats: Seats
) -> Response:
    document, seat = await asyncio.to_thread(fields.plain, body), seats.of(caller)
    running = Running(task=body.force_task_id or fields.new_task())
    seat.running.append(running)
    leaving = asyncio.create_task(gone(http))
    try:
        model, notes, job = await _taken(body, service, caller, locale, seats, seat, running)
        ending = asyncio.create_task(job.ended.wait())
        await asyncio.wait({leaving, ending}, return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        if not job.ended.is_set():
            raise Refusal(499, "The caller has gone.", code="gone")
    finally:
        leaving.cancel()
        seat.end(running)
        if running.job is not None:
            service.cancel(running.job)  # nobody waits for it any more, if it hasn't ended
    return await asyncio.to_thread(_answer, body, document, job, model, notes)


async def _taken(
    body: Drawing, service: Service, caller: Caller, locale: str, seats: Seats, seat: Seat, running: Running
) -> tuple[Known, list[str], Job]:
    """The model, what there is to note, and the job that the service has taken. Raises Refusal in this API's words."""
    models = await seats.known(service)
    given, notes = checked(body.override_settings or {}, models)
    if body.override_settings_restore_afterwards is False:
        seat.options |= given
    model = next(m for m in models if m.name == {**seat.options, **given}.get(CHECKPOINT, service.default))
    options = {name: given.get(name, seat.option(name)) for name in ("emphasis", "samples_format", "jpeg_quality")}
    asked = None
    try:
        if 1 <= (wanted := body.batch_size * body.n_iter) <= service.settings.max_n:
            service.admit(caller.name, wanted)
        reading = partial(fields.read, body, options, service.bundle(model.name), service)
        asked = await (on_thread if isinstance(body, Img2Img) else asyncio.to_thread)(reading)
        wish = Wish(
            request=asked.request, model=model.name, caller=caller.name, owner=caller.owner, locale=locale,
            previews=True, encode=asked.file, notes=(*notes, *asked.notes),
        )  # fmt: skip
        job = await service.submit(wish, keep=body.save_images)
    except (UserError, Refusal) as error:
        service.forget(*(asked.pictures if asked is not None else ()))
        raise named(refusals.of(error, FIELDS) if isinstance(error, UserError) else error) from error
    running.job = job
    if running.interrupted:
        service.cancel(job)
    elif running.skipped:
        service.drop(job, 0)
    return model, list(wish.notes), job


def _answer(body: Drawing, document: dict[str, Any], job: Job, model: Known, notes: list[str]) -> Response:
    if job.error is not None:
        raise named(job.error)
    if job.blocked and not job.pictures:
        raise Refusal(
            400, str(job.blocked[0]["reason"]), kind="image_generation_user_error", code="content_policy_violation"
        )
    request, asked = job.request, dict(document)
    if not getattr(body, "include_init_images", False):
        asked |= {name: None for name in ("init_images", "mask") if name in asked}
    chosen = {
        "width": request.width, "height": request.height, "steps": request.steps,
        "cfg_scale": request.guidance_scale, "sampler_name": SAMPLERS[request.sampler],
    }  # fmt: skip
    asked |= {name: value for name, value in chosen.items() if asked[name] is None}
    images = [base64.b64encode(kept.content).decode() for kept in job.pictures] if body.send_images else []
    return JSONResponse({"images": images, "parameters": asked, "info": _info(body, job, model, notes)})


def _info(body: Drawing, job: Job, model: Known, notes: Sequence[str]) -> str:
    """A JSON document: what was drawn, picture by picture. Those that were skipped or blocked aren't in its lists."""
    request, prompt = job.request, job.plan[0].prompt
    records: list[Record] = [kept.picture.record for kept in job.pictures]
    seeds = [record.seed for record in records]
    subseed = -1 if body.subseed is None else body.subseed
    extra = {"Schedule type": SCHEDULES[request.grid]} if request.grid in SCHEDULES else {}
    return json.dumps(
        {
            "prompt": prompt,
            "all_prompts": [record.prompt for record in records],
            "negative_prompt": request.negative_prompt,
            "all_negative_prompts": [record.negative_prompt for record in records],
            "seed": seeds[0] if seeds else job.plan[0].seed,
            "all_seeds": seeds,
            "subseed": subseed,
            "all_subseeds": [subseed] * len(seeds),
            "subseed_strength": 0,
            "width": request.width,
            "height": request.height,
            "sampler_name": SAMPLERS[request.sampler],
            "cfg_scale": request.guidance_scale,
            "steps": request.steps,
            "batch_size": body.batch_size,
            "restore_faces": False,
            "face_restoration_model": None,
            "sd_model_name": model.name,
            "sd_model_hash": model.hash,
            "sd_vae_name": None,
            "sd_vae_hash": None,
            "seed_resize_from_w": -1,
            "seed_resize_from_h": -1,
            "denoising_strength": request.strength,
            "extra_generation_params": extra,
            "index_of_first_image": 0,
            "infotexts": [infotext(record) for record in records],
            "styles": [],
            "job_timestamp": _stamp(job),
            "clip_skip": 1,
            "is_using_inpainting_conditioning": job.bundle.unet.spec.inpaints,
            "version": f"kotoe-{__version__}",
            # beside what that program says:
            "job": job.id,
            "languages": [record.prompt_language for record in records],
            "dropped": [list(record.dropped) for record in records],
            "blocked": job.blocked,
            "notes": list(notes),
        },
        ensure_ascii=False,
    )


def _stamp(job: Job) -> str:
    return time.strftime("%Y%m%d%H%M%S", time.localtime(job.created))


# --- While it is drawn ----------------------------------------------------------------------------


class State(BaseModel):
    """Of the caller's latest request that is not answered; idle: job_count 0."""

    skipped: bool = False
    interrupted: bool = False
    stopping_generation: bool = False
    job: str = ""
    job_count: int = 0
    job_timestamp: str = "0"
    job_no: int = 0
    sampling_step: int = 0
    sampling_steps: int = 0


class Progress(BaseModel):
    """progress: 0 to 1, 0 only when idle. eta_relative: seconds. current_image: a small PNG in base64."""

    progress: float = 0.0
    eta_relative: float = 0.0
    state: State = State()
    current_image: str | None = None
    textinfo: str | None = None


class TaskLook(Body):
    """Which task is meant, and which preview of it is known already."""

    id_task: str | None = None
    id_live_preview: int | None = -1
    live_preview: bool | None = True


class TaskProgress(BaseModel):
    """live_preview: a small PNG as a data URI, where there is a newer one than the caller knows."""

    active: bool = False
    queued: bool = False
    completed: bool = False
    progress: float | None = None
    eta: float | None = None
    live_preview: str | None = None
    id_live_preview: int | None = -1
    textinfo: str | None = None


class Tasks(BaseModel):
    """Tasks that wait."""

    size: int
    tasks: list[str]


@router.get("/progress")
async def progress(service: Served, seat: Sitting, skip_current_image: bool = False) -> Progress:
    """How far the caller's own latest request is; nobody else's."""
    if not seat.running:
        return Progress()
    running = seat.running[-1]
    job = running.job
    state = State(
        skipped=running.skipped, interrupted=running.interrupted, stopping_generation=running.interrupted,
        job=running.task, job_count=1,
    )  # fmt: skip
    if job is None:
        return Progress(progress=0.01, state=state, textinfo="Being read")
    current = _current(job)
    state.job_count, state.job_no, state.job_timestamp = len(job.plan), len(job.plan) - job.open, _stamp(job)
    state.sampling_step, state.sampling_steps = job.done[current], job.each
    shown = None if skip_current_image else _preview(job, current)
    return Progress(
        progress=_share(job),
        eta_relative=service.seconds_left(job) or 0.0,
        state=state,
        current_image=None if shown is None else base64.b64encode(shown[1]).decode(),
        textinfo=f"In queue: {place}" if (place := service.place(job)) else None,
    )


@internal.post("/progress")
async def task_progress(body: TaskLook, service: Served, seat: Sitting) -> TaskProgress:
    """How far one of the caller's own tasks is, by the id that it was given (`force_task_id`)."""
    task = body.id_task or ""
    running = next((one for one in reversed(seat.running) if one.task == task), None)
    if running is None:
        return TaskProgress(completed=task in seat.finished, textinfo=None if task in seat.finished else "Waiting...")
    job = running.job
    if job is None or not job.begun:
        place = 0 if job is None else service.place(job)
        return TaskProgress(queued=True, progress=0.0, textinfo=f"In queue: {place}" if place else "In queue...")
    found = TaskProgress(active=True, progress=_share(job), eta=service.seconds_left(job))
    if body.live_preview is not False:
        current = _current(job)
        if (shown := _preview(job, current)) is not None:
            found.id_live_preview = current * (job.each + 1) + shown[0]
            if found.id_live_preview != body.id_live_preview:
                found.live_preview = "data:image/png;base64," + base64.b64encode(shown[1]).decode()
    return found


@internal.get("/pending-tasks")
async def pending(service: Served, seat: Sitting) -> Tasks:
    """The caller's own tasks that no step has been drawn of."""
    waiting = [one.task for one in seat.running if one.job is None or not one.job.begun]
    return Tasks(size=len(waiting), tasks=waiting)


@router.post("/interrupt")
async def interrupt(service: Served, seat: Sitting) -> dict[str, Any]:
    """End the caller's own requests before their next step. They are answered with the pictures that are done."""
    for running in seat.running:
        running.interrupted = True
        if running.job is not None:
            service.cancel(running.job)
    return {}


@router.post("/skip")
async def skip(service: Served, seat: Sitting) -> dict[str, Any]:
    """Give up the picture that the caller's own latest request is at; its others are drawn."""
    if seat.running:
        running = seat.running[-1]
        running.skipped = True
        if running.job is not None:
            service.drop(running.job, _current(running.job))
    return {}


def _current(job: Job) -> int:
    """The first picture that is neither done nor given up."""
    done = {kept.index for kept in job.pictures} | job.dropped
    return next((index for index in range(len(job.plan)) if index not in done), len(job.plan) - 1)


def _preview(job: Job, index: int) -> tuple[int, bytes] | None:
    """The newest of a picture: after how many steps, and a PNG."""
    return next(((step, content) for i, step, content in reversed(job.previews) if i == index), None)


def _share(job: Job) -> float:
    done, total = job.steps
    return round(min(0.99, max(0.01, done / total)), 4)

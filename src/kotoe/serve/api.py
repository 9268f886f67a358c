"""Kotoe's own API under /kotoe/v1, which its page uses: jobs that are taken at once and looked at while they are drawn.

Ids are random: whoever has one may read it, and with keys nobody else than the key's owner.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.requests import Request as HTTPRequest

from kotoe import __version__, images
from kotoe.config import DEFAULT_STRENGTH, GRID_NAMES, MAX_SEED, SAMPLER_NAMES, Request, to_json
from kotoe.drawing import pixel_multiple, resolve
from kotoe.errors import UserError, shown
from kotoe.provenance.encode import MEDIA
from kotoe.provenance.infotext import settings_in
from kotoe.provenance.settings import Settings
from kotoe.reading import said
from kotoe.serve import pictures as files
from kotoe.serve import refusals
from kotoe.serve.gate import Caller
from kotoe.serve.jobs import Job, Wish
from kotoe.serve.refusals import Name, Refusal
from kotoe.serve.service import FIELDS, Service, suffix_of
from kotoe.translate import understood

LOOKS = 0.12  # seconds between two looks at a job that is watched
BEAT = 10.0  # seconds after which a watcher is told that the connection lives
NAMES = {"en": "English", "ja": "日本語", "zh": "中文", "zh-Hant": "繁體中文", "ko": "한국어"}  # browsers know more
PICTURES: dict[str, Any] = {f"image/{kind}": {"schema": {"type": "string", "format": "binary"}} for kind in MEDIA}


class Wrong(BaseModel):
    """Why a request was not answered as asked."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """An error, as OpenAI's API has it."""

    error: Wrong


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Error} for status in (400, 401, 403, 404, 408, 413, 429, 500, 503, 507)
}
router = APIRouter(prefix="/kotoe/v1", tags=["kotoe"], responses=ERRORS)


def service_of(request: HTTPRequest) -> Service:
    """The service, once it is there."""
    service: Service | None = request.app.state.service
    if service is None:
        raise Refusal(503, "The models are being loaded.", kind="server_error", code="starting", retry_after=2)
    return service


def caller_of(request: HTTPRequest) -> Caller:
    """Who asks, as the gate found."""
    caller: Caller = request.state.caller
    return caller


def locale_of(request: HTTPRequest) -> str:
    """The language in which reasons are told: the first that the caller names."""
    first = request.headers.get("accept-language", "en").split(",")[0].split(";")[0].strip()
    return first if first.replace("-", "").isalnum() and len(first) <= 35 else "en"


Served = Annotated[Service, Depends(service_of)]
Calling = Annotated[Caller, Depends(caller_of)]
Locale = Annotated[str, Depends(locale_of)]


def new_seed(n: int) -> int:
    """A seed for n pictures, where none is asked for: one that is short to write down."""
    return secrets.randbelow(2**32 - n)


class Body(BaseModel):
    """What comes as JSON: unknown fields are errors, and nothing is made into another type."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _only(cls, given: Any) -> Any:
        return refusals.only(cls.model_fields, given)


class NewJob(Body):
    """A request. See kotoe.config.Request; null is the model's own choice, a seed of null a random one."""

    prompt: str
    negative_prompt: str = ""
    model: Name | None = None
    language: Name | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    sampler: Name | None = None
    grid: Name | None = None
    guidance_scale: float | None = None
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    n: int = Field(default=1, ge=1, le=1000)
    strength: float | None = None
    padding_mask_crop: int | None = None
    long_prompt: Literal["error", "chunk", "cut"] = "error"
    init_image: str | None = None
    mask: str | None = None
    fast: bool = False
    previews: bool = False


class Tokens(Body):
    """A text whose tokens are counted."""

    prompt: str = Field(max_length=1_000_000)
    negative_prompt: str = ""
    model: Name | None = None
    language: Name | None = None


@router.get("/model")
async def model(service: Served, name: Name | None = None) -> dict[str, Any]:
    """What a model of the server can do, and what the server allows."""
    bundle, limits = service.bundle(name), service.settings
    edge = bundle.unet.spec.sample_size * bundle.vae.spec.downscale
    return {
        "name": bundle.name,
        "models": list(service.bundles),
        "version": __version__,
        "licence": bundle.licence,
        "languages": [
            {
                "tag": tag,
                "name": NAMES.get(tag, tag),
                "conditioner": f"{bundle.name}/{tag}",
                "token_limit": bundle.tokenizer(tag).room,
            }
            for tag in bundle.languages
        ],
        "default_language": bundle.default_language,
        "samplers": list(SAMPLER_NAMES),
        "grids": list(GRID_NAMES),
        "defaults": {
            "width": edge,
            "height": edge,
            "steps": bundle.defaults.steps,
            "guidance_scale": bundle.defaults.guidance_scale,
            "sampler": bundle.schedule.sampler,
            "strength": DEFAULT_STRENGTH,
        },
        "limits": {
            "max_pixels": limits.max_pixels,
            "max_init_pixels": files.largest(limits.max_pixels),
            "pixel_multiple": pixel_multiple(bundle),
            "max_steps": limits.max_steps,
            "max_n": limits.max_n,
            "max_prompt_chars": limits.max_prompt_chars,
            "max_body_bytes": limits.max_body_mb * 2**20,
        },
        "fast": bundle.fast is not None,
        "keep_hours": limits.keep_hours,
        "deterministic": limits.deterministic,
    }


@router.post("/tokens")
async def tokens(body: Tokens, service: Served) -> dict[str, Any]:
    """How many tokens a prompt has, and which conditioner will read it."""
    return await asyncio.to_thread(_count, service, body)


def _count(service: Service, body: Tokens) -> dict[str, Any]:
    bundle = service.bundle(body.model)
    if len(body.prompt) > service.settings.max_prompt_chars:
        raise UserError(
            f"prompt of {len(body.prompt)} characters", allowed=f"{service.settings.max_prompt_chars} at most"
        )
    request = Request(prompt=body.prompt, language=body.language, long_prompt="cut")
    prompt = said(request, body.prompt)
    found = understood(bundle, request, body.prompt, prompt.words)
    tokenizer = bundle.tokenizer(found.language)
    counted = tokenizer.encode([prompt], long_prompt="cut")
    return {
        "language": found.language,
        "language_source": found.source,
        "conditioner": f"{bundle.name}/{found.language}",
        "tokens": counted.counts[0],
        "limit": tokenizer.room,
        "over": list(counted.overflow[0]),
    }


@router.post("/jobs", status_code=202)
async def new_job(body: NewJob, service: Served, caller: Calling, locale: Locale) -> dict[str, Any]:
    """Have pictures drawn. Answers at once; see the job's document and events."""
    given = body.model_dump(exclude={"model", "fast", "previews", "init_image", "mask", "seed"})
    seed = new_seed(body.n) if body.seed is None else body.seed
    came = {name: value for name in ("init_image", "mask") if (value := getattr(body, name)) is not None}
    pictures: dict[str, Any] = dict.fromkeys(came, "-")
    try:
        service.admit(caller.name, body.n)
        Request(**given, **pictures, seed=seed)  # what is wrong with it is said before a picture is decoded
        pictures = await files.on_thread(partial(_kept, service, came)) if came else {}
        request = Request(**given, **pictures, seed=seed)
        wish = Wish(
            request=request, model=body.model, caller=caller.name, owner=caller.owner, locale=locale, fast=body.fast,
            previews=body.previews,
        )  # fmt: skip
        job = await service.submit(wish)
    except UserError as error:
        service.forget(*pictures.values())
        raise refusals.of(error, FIELDS) from error
    except Refusal:
        service.forget(*pictures.values())
        raise
    return service.document(job)


def _kept(service: Service, came: dict[str, str]) -> dict[str, str]:
    """On a thread: pictures in base64 as the service's files. Raises UserError."""
    most = files.largest(service.settings.max_pixels)
    contents = {name: files.decoded(text, name) for name, text in came.items()}
    for name, content in contents.items():
        images.size_of(content, name, most)
    found: dict[str, str] = {}
    try:
        for name, content in contents.items():
            found[name] = service.keep(files.as_png(content, name, most))
    except UserError:
        service.forget(*found.values())
        raise
    return found


async def _found(service: Service, caller: Caller, name: str) -> Job | dict[str, Any]:
    found = await service.find(name, caller.owner)
    if found is None:
        raise Refusal(
            404, f"There is no job {shown(name)} here, or not any more.", kind="not_found_error", code="not_found"
        )
    return found


@router.get("/jobs/{name}")
async def job(name: str, service: Served, caller: Calling) -> dict[str, Any]:
    """A job as it is now."""
    found = await _found(service, caller, name)
    return found if isinstance(found, dict) else service.document(found)


@router.delete("/jobs/{name}")
async def stop(name: str, service: Served, caller: Calling, forget: bool = False) -> dict[str, Any]:
    """Stop a job; one that has ended, or with `forget` any, is deleted with its pictures."""
    found = await _found(service, caller, name)
    if isinstance(found, Job) and not found.ended.is_set():
        if forget:
            service.cancel_and_delete(found)
            return {**service.document(found), "pictures": [], "deleted": True}
        service.cancel(found)
        return service.document(found)
    document = found if isinstance(found, dict) else service.document(found)
    await service.delete(name)
    return {**document, "pictures": [], "deleted": True}


@router.get("/jobs/{name}/events", response_class=StreamingResponse)
async def events(name: str, service: Served, caller: Calling) -> Response:
    """A job as it goes: server-sent events `state`, `preview` and, last, `end`."""
    found = await _found(service, caller, name)
    lines = _once(found) if isinstance(found, dict) else _told(service, found)
    return StreamingResponse(
        lines, media_type="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )


def event(name: str, data: Any) -> bytes:
    """A server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


async def _once(document: dict[str, Any]) -> AsyncIterator[bytes]:
    yield event("end", document)


async def _told(service: Service, job: Job) -> AsyncIterator[bytes]:
    before: Any = None
    shown: dict[int, int] = {}
    spoken = time.monotonic()
    while not job.ended.is_set():
        document = service.document(job)
        now = {name: document[name] for name in ("state", "place", "steps", "pictures")}
        if now != before:
            before, spoken = now, time.monotonic()
            yield event("state", document)
        newest = {index: (step, content) for index, step, content in job.previews}
        for index, (step, content) in newest.items():
            if shown.get(index) != step:
                shown[index] = step
                image = "data:image/png;base64," + base64.b64encode(content).decode()
                yield event("preview", {"picture": index, "step": step, "image": image})
        if time.monotonic() - spoken > BEAT:
            spoken = time.monotonic()
            yield b": still here\n\n"
        try:
            await asyncio.wait_for(job.ended.wait(), LOOKS)
        except TimeoutError:
            continue
    yield event("end", service.document(job))


@router.get("/pictures/{name}.{suffix}", response_class=Response, responses={200: {"content": PICTURES}})
async def picture(name: str, suffix: Literal["png", "jpeg", "webp"], service: Served, caller: Calling) -> Response:
    """A picture's file, with its record."""
    found = await asyncio.to_thread(service.picture, name, caller.owner)
    if found is None or suffix_of(found) != suffix:
        raise Refusal(404, "There is no such picture here, or not any more.", kind="not_found_error", code="not_found")
    return Response(found, media_type=f"image/{suffix}", headers={"Cache-Control": "private, max-age=86400, immutable"})


@router.post("/settings", openapi_extra={"requestBody": {"content": PICTURES, "required": True}})
async def settings(request: HTTPRequest) -> dict[str, Any]:
    """What a picture's file says of how it was drawn, by Kotoe or by another program. The body is the file."""
    found = await files.on_thread(partial(_settings, await request.body(), request.app.state.settings.max_pixels))
    record = None if found.record is None else to_json(found.record)
    taken = {name: value for name, value in found.request.items() if name in NewJob.model_fields}
    usual = _usual(request.app.state.service, taken)
    others = {
        name: value
        for name, value in found.request.items()
        if name not in NewJob.model_fields and value != usual.get(name)
    }
    notes = [*found.notes, *(f"{name} {value} is not taken over: jobs don't have it" for name, value in others.items())]
    return {"tool": found.tool, "request": taken, "notes": notes, "record": record}


def _usual(service: Service | None, taken: Mapping[str, Any]) -> dict[str, Any]:
    """What a job with these settings has anyway."""
    said = {name: taken[name] for name in ("sampler", "grid") if name in taken}
    try:
        return {} if service is None else dict(to_json(resolve(service.bundle(), Request(prompt="-", **said))))
    except UserError:
        return {}


def _settings(content: bytes, max_pixels: int) -> Settings:
    return settings_in(files.texts(content, "the picture", files.largest(max_pixels)))

"""OpenAI's images API, as its description of 2026-08 has it, with what servers of open models add: `seed`,
`negative_prompt`, `num_inference_steps`, `guidance_scale`, `sampler`, `strength`, `language`.

What clients send for other services' sake and what has no meaning here is accepted, each said in its field's
description; what would change the picture and can't be done is refused.
"""

from __future__ import annotations

import asyncio
import base64
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator
from starlette.datastructures import UploadFile
from starlette.requests import Request as HTTPRequest

from kotoe import images
from kotoe.config import MAX_SEED, Request
from kotoe.errors import UserError, shown
from kotoe.provenance.encode import encode
from kotoe.serve import refusals
from kotoe.serve.api import ERRORS, Calling, Locale, Served, event, new_seed
from kotoe.serve.gate import Caller, gone
from kotoe.serve.jobs import Job, Kept, Wish
from kotoe.serve.pictures import LARGEST, as_png, decoded, fetched, hole, largest, on_thread, with_alpha
from kotoe.serve.refusals import Name, Refusal
from kotoe.serve.service import FIELDS, Service, suffix_of

LOOKS = 0.02  # seconds between two looks at a job whose partial pictures are sent
SIZE = r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"


def _sized(size: str) -> str:
    if re.fullmatch(SIZE, size) is None:
        raise ValueError("WIDTHxHEIGHT in pixels, such as 512x512, or auto")
    return size


Size = Annotated[str, AfterValidator(_sized), WithJsonSchema({"type": "string", "pattern": SIZE})]
NAMES = {"steps": "num_inference_steps", "width": "size", "height": "size", "init_image": "image"}  # Request's, here
Part = UploadFile | str
router = APIRouter(prefix="/v1", tags=["openai"], responses=ERRORS)


class Common(BaseModel):
    """What both ways to a picture take."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _only(cls, given: Any) -> Any:
        return refusals.only(cls.model_fields, given)

    prompt: str = Field(min_length=1)
    model: Name | None = Field(None, description="One of /v1/models; any other name is drawn with the first of them.")
    n: Annotated[int, Field(ge=1, le=10)] | None = None
    size: Size | None = Field(None, description="WIDTHxHEIGHT; auto: the model's own.")
    quality: Literal["auto", "standard", "hd", "low", "medium", "high"] | None = Field(
        None, description="low draws in few steps where the model has learnt to; the others have no effect."
    )
    response_format: Literal["url", "b64_json"] | None = Field(None, description="b64_json unless url is asked for.")
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = Field(
        None, description="Quality of JPEG and WebP."
    )
    background: Literal["auto", "opaque", "transparent"] | None = Field(None, description="transparent is refused.")
    moderation: Literal["auto", "low"] | None = Field(None, description="No effect: checks are the server's.")
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    user: str | None = Field(None, description="No effect.")
    negative_prompt: str | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = Field(None, description="Random unless given.")
    num_inference_steps: Annotated[int, Field(ge=1)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    sampler: Name | None = None
    language: Name | None = Field(None, description="BCP 47; told from the prompt unless given.")
    long_prompt: Literal["chunk", "error", "cut"] = Field("chunk", description="What is done over the token limit.")


class Generation(Common):
    """POST /v1/images/generations."""

    style: Literal["vivid", "natural"] | None = Field(None, description="No effect.")


class ImageReference(BaseModel):
    """A picture of a JSON edit."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _only(cls, given: Any) -> Any:
        return refusals.only(cls.model_fields, given)

    image_url: str = Field(description="A data URL; an https address where the server fetches them.")


class Edit(Common):
    """POST /v1/images/edits as JSON; as multipart the same fields, with files `image` and `mask`."""

    images: list[ImageReference] = Field(min_length=1, max_length=16, fail_fast=True)
    mask: ImageReference | None = None
    input_fidelity: Literal["high", "low"] | None = Field(None, description="No effect: see strength.")
    strength: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="Share of the steps that are run.")
    padding_mask_crop: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="With a mask: only the part around it is drawn, and the picture keeps its size.",
    )


class Datum(BaseModel):
    """A picture."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None
    seed: int


class Answer(BaseModel):
    """Pictures."""

    created: int
    data: list[Datum]
    model: str
    background: str
    output_format: str
    size: str
    quality: str
    usage: dict[str, Any]


class Model(BaseModel):
    """A model of the server."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "kotoe"


class Models(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[Model]


@router.get("/models")
async def models(service: Served) -> Models:
    """The server's models, the first one first."""
    return Models(data=[Model(id=name, created=int(service.started)) for name in service.bundles])


@router.get("/models/{name:path}")
async def model(name: str, service: Served) -> Model:
    """One of them."""
    if name not in service.bundles:
        raise Refusal(404, f"The model {shown(name)} does not exist.", param="model", code="model_not_found")
    return Model(id=name, created=int(service.started))


@router.post("/images/generations", response_model=Answer, response_model_exclude_none=True)
async def generations(body: Generation, request: HTTPRequest, service: Served, caller: Calling, locale: Locale) -> Any:
    """Pictures from words."""
    return await _answer(service, request, caller, locale, body, "image_generation")


@router.post(
    "/images/edits",
    response_model=Answer,
    response_model_exclude_none=True,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/Edit"}},
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["prompt", "image"],
                        "properties": {
                            "prompt": {"type": "string"},
                            "image": {"type": "string", "format": "binary"},
                            "mask": {"type": "string", "format": "binary"},
                        },
                    }
                },
            },
        }
    },
)
async def edits(request: HTTPRequest, service: Served, caller: Calling, locale: Locale) -> Any:
    """A picture anew, or where the mask is transparent."""
    try:
        body, files = await _edit(request, service)
        return await _answer(service, request, caller, locale, body, "image_edit", partial(_pictures, service, files))
    except UserError as error:
        raise _refused(error) from error


# --- Reading what comes ----------------------------------------------------------------------------


async def _edit(request: HTTPRequest, service: Service) -> tuple[Edit, dict[str, list[bytes]]]:
    """The fields of an edit, and the files of its `image` and `mask`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        try:
            body = Edit.model_validate_json(await request.body())
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from error
        files = {"image": [one.image_url for one in body.images], "mask": [body.mask.image_url] if body.mask else []}
        _check(body, files)
        return body, {
            name: [await on_thread(partial(_referred, service, url, name)) for url in urls]
            for name, urls in files.items()
        }
    if kind != "multipart/form-data":
        raise Refusal(
            400, f"Content-Type {shown(kind)}. Allowed: multipart/form-data, application/json.", code="invalid_type"
        )
    found: dict[str, list[bytes]] = {"image": [], "mask": []}
    fields: dict[str, Any] = {}
    async with request.form(max_files=17, max_fields=40, max_part_size=2**20) as form:
        for name, value in form.multi_items():
            short = name.removesuffix("[]")
            if short in found:
                found[short].append(await _file(value, short))
            elif name in fields:
                raise Refusal(
                    400, f"The field {shown(name)} is there twice.", param=shown(name)[1:-1], code="invalid_value"
                )
            elif isinstance(value, str):
                fields[name] = value
            else:
                raise Refusal(400, f"The field {shown(name)} is a file.", code="invalid_value")
    if not found["image"]:
        raise Refusal(400, "No image was given. Allowed: a PNG, JPEG or WebP file.", param="image", code="missing")
    if "images" in fields:
        raise Refusal(
            400, "Unknown field 'images' of a form. Allowed: image.", param="images", code="unknown_parameter"
        )
    try:
        body = Edit.model_validate({**fields, "images": [{"image_url": "data:"}]})
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error
    _check(body, found)
    return body, found


def _check(body: Edit, files: Mapping[str, Sequence[bytes | str]]) -> None:
    """Raise a UserError for what is wrong with an edit, before a picture of it is decoded."""
    for name, given in files.items():
        if len(given) > 1:
            raise UserError(f"{len(given)} {name}s", allowed="one: a picture is drawn from one picture")
    _request(body, {"init_image": "-", **({} if body.padding_mask_crop is None else {"mask": "-"})})


async def _file(value: Part, name: str) -> bytes:
    if isinstance(value, str):
        raise Refusal(400, f"{name} is a text. Allowed: a picture's file.", param=name, code="invalid_value")
    content = await value.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise Refusal(413, f"{name} has more than {LARGEST} bytes.", param=name, code="file_too_large")
    return content


def _referred(service: Service, url: str, name: str) -> bytes:
    """On a thread: the file that an edit's JSON names. Raises UserError."""
    if url.startswith("data:"):
        return decoded(url, name)
    if not service.settings.fetch_urls:
        raise UserError(
            f"{name}: this server fetches no addresses",
            allowed="data URLs",
            hint="kotoe serve --fetch-urls allows it",
        )
    return fetched(url, name)


def _pictures(service: Service, files: dict[str, list[bytes]]) -> dict[str, str]:
    """On a thread: the picture and the mask as the service's files. Raises UserError."""
    most = largest(service.settings.max_pixels)
    for name, given in files.items():
        for content in given:
            images.size_of(content, name, most)
    [image], masks = files["image"], files["mask"]
    if not masks:
        colours, mask = with_alpha(image, "image", most)
    else:
        mask = hole(masks[0], "mask", most)
        colours = as_png(image, "image", most)
        if mask is None:
            raise UserError("mask is transparent nowhere", allowed="a PNG that is transparent where to draw anew")
    found = {"init_image": service.keep(colours)}
    return found if mask is None else {**found, "mask": service.keep(mask)}


def _refused(error: UserError) -> Refusal:
    found = refusals.of(error, (*FIELDS, *NAMES.values()))
    found.param = NAMES.get(found.param or "", found.param)
    return found


def _request(body: Common, given: dict[str, str]) -> Request:
    if body.background == "transparent":
        raise UserError("background transparent", allowed="opaque, auto: pictures have no transparency")
    if body.partial_images is not None and not body.stream:
        raise UserError("partial_images without stream", allowed="stream: true")
    if body.output_compression is not None and (body.output_format or "png") == "png":
        raise UserError("output_compression of a PNG, which keeps every pixel", allowed="output_format jpeg, webp")
    n = body.n or 1
    width, height = (None, None) if body.size in (None, "auto") else map(int, str(body.size).split("x"))
    return Request(
        prompt=body.prompt,
        negative_prompt=body.negative_prompt or "",
        language=body.language,
        width=width,
        height=height,
        steps=body.num_inference_steps,
        sampler=body.sampler,
        guidance_scale=body.guidance_scale,
        seed=new_seed(n) if body.seed is None else body.seed,
        n=n,
        init_image=given.get("init_image"),
        mask=given.get("mask"),
        strength=getattr(body, "strength", None),
        padding_mask_crop=getattr(body, "padding_mask_crop", None),
        long_prompt=body.long_prompt,
        emphasis="none",  # OpenAI's prompts are plain text
    )


# --- Answering -------------------------------------------------------------------------------------


async def _answer(
    service: Service,
    request: HTTPRequest,
    caller: Caller,
    locale: str,
    body: Common,
    kind: str,
    pictures: Callable[[], dict[str, str]] | None = None,
) -> Response | dict[str, Any]:
    given: dict[str, str] = {}
    form = body.output_format or "png"
    quality: dict[str, Any] = {} if body.output_compression is None else {"quality": max(1, body.output_compression)}
    name = body.model if body.model in service.bundles else service.default
    try:
        service.admit(caller.name, body.n or 1)
        given = {} if pictures is None else await on_thread(pictures)
        wish = Wish(
            request=_request(body, given),
            model=name,
            caller=caller.name,
            owner=caller.owner,
            locale=locale,
            fast=body.quality == "low" and service.bundles[name].fast is not None,
            previews=(body.partial_images or 0) if body.stream else False,
            encode=partial(encode, format=form, **quality),
        )
        job = await service.submit(wish)
    except UserError as error:
        service.forget(*given.values())
        raise _refused(error) from error
    except Refusal as error:
        service.forget(*given.values())
        error.param = NAMES.get(error.param or "", error.param)
        raise
    address = f"{request.url.scheme}://{request.headers.get('host', '')}" if body.response_format == "url" else None
    if body.stream:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(_stream(service, job, kind), media_type="text/event-stream", headers=headers)
    await finished(service, job, request)
    if job.error is not None:
        raise job.error
    if not job.pictures:
        raise _nothing(job)
    about = _about(job)
    return {"created": int(time.time()), "data": [_datum(kept, address) for kept in job.pictures], **about}


async def finished(service: Service, job: Job, request: HTTPRequest) -> None:
    """Until a job has ended. If the caller goes away before, the job is stopped, and nobody is answered."""
    ended, left = asyncio.ensure_future(job.ended.wait()), asyncio.ensure_future(gone(request))
    try:
        await asyncio.wait({ended, left}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ended.cancel()
        left.cancel()
        if not job.ended.is_set():
            service.cancel(job)
    if not job.ended.is_set():
        raise Refusal(499, "The caller has gone.", code="cancelled")


def _nothing(job: Job) -> Refusal:
    if job.blocked:
        return Refusal(
            400, job.blocked[0]["reason"], kind="image_generation_user_error", code="content_policy_violation"
        )
    return Refusal(409, "The job was cancelled.", code="cancelled")


def _about(job: Job) -> dict[str, Any]:
    record = job.pictures[0].picture.record
    texts = sum(kept.picture.record.tokens for kept in job.pictures)
    return {
        "model": job.bundle.name,
        "background": "opaque",
        "output_format": suffix_of(job.pictures[0].content),
        "size": f"{record.width}x{record.height}",
        "quality": "low" if job.wish.fast else "auto",
        "usage": {
            "total_tokens": texts,
            "input_tokens": texts,
            "output_tokens": 0,
            "input_tokens_details": {"text_tokens": texts, "image_tokens": 0},
        },
    }


def _datum(kept: Kept, address: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {"seed": kept.picture.record.seed}
    if kept.picture.record.translation is not None:
        found["revised_prompt"] = kept.picture.record.translation.prompt
    if address is None:
        return {**found, "b64_json": base64.b64encode(kept.content).decode()}
    return {**found, "url": f"{address}/kotoe/v1/pictures/{kept.id}.{suffix_of(kept.content)}"}


async def _stream(service: Service, job: Job, kind: str) -> AsyncIterator[bytes]:
    """Partial pictures as they come, then each picture whole; a caller that goes away stops the job."""
    counts: dict[int, int] = {}
    sent: int = 0
    whole: set[str] = set()
    same = {
        "size": f"{job.request.width}x{job.request.height}",
        "quality": "low" if job.wish.fast else "auto",
        "background": "opaque",
    }
    try:
        while True:
            ended = job.ended.is_set()  # before looking: what comes while looking is seen next time
            for index, _, content in job.previews[sent:]:
                sent += 1
                number = counts.setdefault(index, 0)
                counts[index] += 1
                yield event(
                    f"{kind}.partial_image",
                    {
                        "type": f"{kind}.partial_image",
                        "b64_json": base64.b64encode(content).decode(),
                        "created_at": int(time.time()),
                        "partial_image_index": number,
                        "output_format": "png",
                        **same,
                    },
                )
            for kept in job.pictures:
                if kept.id not in whole:
                    whole.add(kept.id)
                    yield event(
                        f"{kind}.completed",
                        {
                            "type": f"{kind}.completed",
                            "created_at": int(time.time()),
                            **_datum(kept, None),
                            **_about(job),
                            **same,
                        },
                    )
            if ended:
                break
            try:
                await asyncio.wait_for(job.ended.wait(), LOOKS)
            except TimeoutError:
                continue
        error = job.error or (None if job.pictures else _nothing(job))
        if error is not None:
            yield event("error", {"type": "error", "error": error.document, **error.document})
    finally:
        if not job.ended.is_set():
            service.cancel(job)


def describe(schema: dict[str, Any]) -> None:
    """Put what no route takes as its own parameter into the OpenAPI description."""
    edit = Edit.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(edit.pop("$defs", {}))
    schemas["Edit"] = edit

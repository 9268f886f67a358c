"""The AUTOMATIC1111 API: what there is to choose from, options, settings in pictures, and what Kotoe doesn't have."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fastapi import APIRouter
from pydantic import BaseModel, RootModel
from starlette.requests import Request as HTTPRequest

from kotoe.config import mended
from kotoe.errors import UserError
from kotoe.provenance.infotext import KEY, infotext, parsed, settings_in
from kotoe.provenance.names import SAMPLERS
from kotoe.schedule import KARRAS_RHO
from kotoe.serve import pictures, refusals
from kotoe.serve.a1111 import PROBLEMS, Everyone, Sitting
from kotoe.serve.a1111_fields import Body, Mapped
from kotoe.serve.a1111_state import CHECKPOINT, CHECKPOINT_HASH, FIXED, HONOURED, checked
from kotoe.serve.api import Served
from kotoe.serve.gate import LOCAL
from kotoe.serve.refusals import Refusal

router = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111"], responses=PROBLEMS)
# Other names of samplers, as clients send them; kotoe.provenance.names reads them.
ALIASES = {
    "euler": ["k_euler"],
    "euler_ancestral": ["k_euler_a", "k_euler_ancestral"],
    "heun": ["k_heun"],
    "lms": ["k_lms"],
    "ddim": ["ddim"],
    "pndm": ["plms", "pndm"],
    "dpmpp_2m": ["k_dpmpp_2m"],
    "dpmpp_2m_sde": ["k_dpmpp_2m_sde"],
    "unipc": ["unipc", "uni_pc"],
}
SCHEDULERS = {
    "automatic": "Automatic", "uniform": "Uniform", "karras": "Karras", "sgm_uniform": "SGM Uniform",
    "simple": "Simple", "normal": "Normal", "ddim": "DDIM",
}  # fmt: skip
NOTHING_TO_DO = "Nothing was done: the models are those that the server was started with, and stay loaded."


class Sampler(BaseModel):
    """A sampler. aliases: names that mean the same."""

    name: str
    aliases: list[str]
    options: dict[str, Any]


class Scheduler(BaseModel):
    """Where the steps lie."""

    name: str
    label: str
    aliases: list[str] | None
    default_rho: float
    need_inner_model: bool


class Model(BaseModel):
    """A model. sha256: of its UNet's file; hash: its first 10 digits. filename: its name, no path of the server's."""

    title: str
    model_name: str
    hash: str
    sha256: str
    filename: str
    config: str | None


class Upscaler(BaseModel):
    """What enlarges; "None" alone."""

    name: str
    model_name: str | None
    model_path: str | None
    model_url: str | None
    scale: float


class Lora(BaseModel):
    """A LoRA that the server was started with: it is in every picture, and can't be named in prompts."""

    name: str
    alias: str
    path: str
    metadata: dict[str, Any]


class Options(RootModel[Mapped]):
    """Options by name: some, or all of them sent back."""


class Notes(BaseModel):
    """What had no effect."""

    notes: list[str]


class Said(BaseModel):
    """What was done, or why nothing was."""

    detail: str


class Png(Body):
    """A picture's file in base64, or as a data URI. Nothing of it is drawn."""

    image: str


class PngInfo(BaseModel):
    """info: the text that the settings stand in, "" where there is none; items: the file's other texts."""

    info: str
    items: dict[str, Any]
    parameters: dict[str, Any]


@router.get("/samplers")
async def samplers() -> list[Sampler]:
    """What `sampler_name` may be."""
    return [Sampler(name=theirs, aliases=ALIASES[ours], options={}) for ours, theirs in SAMPLERS.items()]


@router.get("/schedulers")
async def schedulers() -> list[Scheduler]:
    """What `scheduler` may be: some of them are one grid."""
    return [
        Scheduler(name=name, label=label, aliases=None, default_rho=_rho(name), need_inner_model=False)
        for name, label in SCHEDULERS.items()
    ]


def _rho(name: str) -> float:
    return KARRAS_RHO if name == "karras" else -1.0


@router.get("/sd-models")
async def models(service: Served, seats: Everyone) -> list[Model]:
    """The models that the server was started with."""
    return [
        Model(title=m.title, model_name=m.name, hash=m.hash, sha256=m.sha256, filename=m.name, config=None)
        for m in await seats.known(service)
    ]


@router.get("/upscalers")
async def upscalers() -> list[Upscaler]:
    """Kotoe has none."""
    return [Upscaler(name="None", model_name=None, model_path=None, model_url=None, scale=1)]


@router.get("/loras")
async def loras(service: Served, seats: Everyone, seat: Sitting) -> list[Lora]:
    """Those in the model that the caller draws with."""
    model = await seats.model(service, seat)
    found = [a for a in service.bundle(model.name).adapters if a.kind == "lora"]
    return [
        Lora(name=stem, alias=stem, path=a.name, metadata={"weight": a.weight, "sha256": a.sha256})
        for a in found
        for stem in (Path(a.name).stem,)
    ]


@router.get("/embeddings")
async def embeddings(service: Served, seats: Everyone, seat: Sitting) -> dict[str, dict[str, Any]]:
    """Those in the model that the caller draws with, by what they are called in prompts."""
    bundle = service.bundle((await seats.model(service, seat)).name)
    unknown = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None, "vectors": None}
    found = [a for a in bundle.adapters if a.kind == "embedding"]
    shape = bundle.unet.spec.cross_attention_dim
    return {"loaded": {str(a.token): {**unknown, "shape": shape} for a in found}, "skipped": {}}


@router.get("/scripts")
async def scripts() -> dict[str, list[str]]:
    """Kotoe runs none."""
    return {"txt2img": [], "img2img": []}


@router.get("/cmd-flags")
async def flags(service: Served) -> dict[str, Any]:
    """Of the options of that program the few that say something of this one."""
    return {
        "api": True, "nowebui": False, "listen": service.settings.host not in LOCAL, "lowvram": False, "medvram": False,
        "freeze_settings": False, "disable_safe_unpickle": False,
    }  # fmt: skip


@router.get("/memory")
async def memory(service: Served) -> dict[str, dict[str, Any]]:
    """Bytes of the machine's memory, and of its CUDA device where it draws on one."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
        ram: dict[str, Any] = {"free": free, "used": total - free, "total": total}
    except (AttributeError, OSError, ValueError):
        ram = {"error": "not told by this system"}
    device = service.bundle().device
    if device.type != "cuda":
        return {"ram": ram, "cuda": {"error": "unavailable"}}
    free, total = torch.cuda.mem_get_info(device)
    return {"ram": ram, "cuda": {"system": {"free": free, "used": total - free, "total": total}}}


@router.get("/sd-vae")
@router.get("/sd-modules")
@router.get("/latent-upscale-modes")
@router.get("/hypernetworks")
@router.get("/face-restorers")
@router.get("/realesrgan-models")
@router.get("/prompt-styles")
@router.get("/script-info")
@router.get("/extensions")
async def nothing() -> list[dict[str, Any]]:
    """Kotoe has none of these: an empty list."""
    return []


@router.post("/refresh-checkpoints")
@router.post("/refresh-vae")
@router.post("/refresh-loras")
@router.post("/refresh-embeddings")
@router.post("/unload-checkpoint")
@router.post("/reload-checkpoint")
async def unneeded() -> Said:
    """Nothing is done, and it is said."""
    return Said(detail=NOTHING_TO_DO)


@router.post("/extra-single-image", response_model=Said)
@router.post("/extra-batch-images", response_model=Said)
@router.post("/interrogate", response_model=Said)
async def lacking(http: HTTPRequest) -> None:
    """Kotoe has no upscalers, no face restorers, and describes no pictures: 501."""
    name = http.url.path.rsplit("/", 1)[-1]
    why = "it describes no pictures" if name == "interrogate" else "it has no upscalers and no face restorers"
    raise Refusal(501, f"Kotoe can't do {name}: {why}.", code="not_implemented")


# --- Options --------------------------------------------------------------------------------------


@router.get("/options")
async def options(service: Served, seats: Everyone, seat: Sitting) -> dict[str, Any]:
    """The caller's own options as they are, and those that are one way only."""
    model = await seats.model(service, seat)
    chosen = {name: seat.option(name) for name in HONOURED}
    fixed = {name: values[0] for name, values in FIXED.items()}
    return {CHECKPOINT: model.title, CHECKPOINT_HASH: model.sha256, **chosen, **fixed}


@router.post("/options")
async def set_options(body: Options, service: Served, seats: Everyone, seat: Sitting) -> Notes:
    """Set some of the caller's own options; all of them sent back is as good. Nothing is set if a value is wrong."""
    given, notes = checked(body.root, await seats.known(service))
    seat.options |= given
    return Notes(notes=notes)


# --- Settings in pictures -------------------------------------------------------------------------


@router.post("/png-info")
async def png_info(body: Png, http: HTTPRequest) -> PngInfo:
    """The settings that a picture's file holds, by any program that Kotoe can read."""
    try:
        return await pictures.on_thread(partial(_settings, body.image, http.app.state.settings.max_pixels))
    except UserError as error:
        raise refusals.of(error, ("image",)) from error


def _settings(image: str, max_pixels: int) -> PngInfo:
    texts = pictures.texts(pictures.decoded(image, "image"), "image", pictures.largest(max_pixels))
    texts = {mended(name): mended(text) for name, text in texts.items()}
    items: dict[str, Any] = {name: text for name, text in texts.items() if name != KEY}
    try:
        found = settings_in(texts, "image")
    except UserError:
        return PngInfo(info=texts.get(KEY, ""), items=items, parameters={})
    info = texts.get(KEY) or (infotext(found.record) if found.record is not None else found.text)
    prompt, negative, pairs = parsed(info)
    if not pairs:  # another program's, in Kotoe's words
        return PngInfo(info=info, items=items, parameters=dict(found.request))
    return PngInfo(info=info, items=items, parameters={"Prompt": prompt, "Negative prompt": negative, **pairs})

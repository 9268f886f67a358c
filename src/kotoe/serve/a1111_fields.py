"""The fields of the AUTOMATIC1111 API's two drawing requests, and what Kotoe makes of them.

A field whose value would change the picture in a way that Kotoe doesn't have is refused by its name; what changes
nothing there (a second pass's settings without a second pass) changes nothing here; fields that are unknown are noted.
What a request leaves out is the model's own, not that program's 512 x 512, 50 steps, Euler and 7.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
from PIL import Image, ImageChops, ImageFilter, ImageOps
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from kotoe import images
from kotoe.checkpoints import Bundle
from kotoe.config import Request
from kotoe.errors import nearest, shown
from kotoe.provenance.encode import encode
from kotoe.provenance.infotext import EMPHASIS, from_infotext
from kotoe.provenance.names import SAMPLERS, apart, grid_of, sampler_of
from kotoe.serve import pictures
from kotoe.serve.a1111_state import FORMATS, LONGEST_TASK, MOST_NOTES, alike, refused, without_effect
from kotoe.serve.api import new_seed
from kotoe.serve.refusals import Name, Refusal
from kotoe.serve.service import Service

STRENGTH = 0.75  # that program's denoising_strength
BLUR = 4  # pixels; its mask_blur
NOISY = ("euler_ancestral", "dpmpp_2m_sde")  # samplers that add noise whatever eta, which is 1 there
FOREIGN = ("exponential", "polyexponential", "beta")  # schedules that Kotoe lacks, as they end samplers' names
FILLED = 2**20  # pixels that a hole and its surroundings are looked at in
FILLS = (256, 64, 16, 4)  # radii, in pixels, over which the surroundings of a hole are looked at, the nearest last
# Kotoe's words for fields to that program's
WORDS = {
    "guidance_scale": "cfg_scale", "init_image": "init_images", "strength": "denoising_strength",
    "padding_mask_crop": "inpaint_full_res_padding", "n": "batch_size x n_iter", "sampler": "sampler_name",
    "grid": "scheduler", "model": "sd_model_checkpoint",
}  # fmt: skip
SAME = {
    "prompt": "prompt", "negative_prompt": "negative_prompt", "steps": "steps", "guidance_scale": "cfg_scale",
    "width": "width", "height": "height",
}  # fmt: skip
ONLY: dict[str, tuple[tuple[Any, ...], str]] = {  # field: what it may be beside null, and why nothing else
    "enable_hr": ((False,), "Kotoe has no second pass"),
    "restore_faces": ((False,), "Kotoe restores no faces"),
    "tiling": ((False,), "Kotoe draws no tiles"),
    "subseed_strength": ((0,), "Kotoe mixes no seeds"),
    "styles": (([],), "this server has no styles; their words can go into the prompt"),
    "refiner_checkpoint": (("", "None"), "Kotoe draws a picture with one model"),
    "script_name": (("", "None"), "Kotoe runs no scripts"),
    "alwayson_scripts": (({},), "Kotoe runs no scripts"),
    "s_churn": ((0,), "Kotoe's samplers have none"),
    "s_min_uncond": ((0,), "guidance is for all steps here"),
    "resize_mode": ((0, 1), "0 stretches, 1 crops; Kotoe fills no borders and enlarges no latents"),
    "inpainting_fill": ((0, 1), "0 fills with the surroundings, 1 keeps what is there; 2 and 3 Kotoe doesn't have"),
    "initial_noise_multiplier": ((1,), "Kotoe adds the noise that the step has"),
    "latent_mask": (("",), "a mask is one of pixels here"),
}


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value  # 20.0 is whole in JSON


Whole = Annotated[int, BeforeValidator(_whole)]
Texts = Annotated[list[str], Field(fail_fast=True)]
# Its keys are looked at elsewhere: here each would get an error of its own. That program has some 400 options.
Mapped = Annotated[dict[Any, Any], Field(max_length=1000)]


class Body(BaseModel):
    """What comes as JSON. Nothing is made into another type; fields that aren't there are let through, and noted."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        """One error for names that are no Unicode, and not one of each."""
        try:
            "".join(given if isinstance(given, dict) else ()).encode()
        except UnicodeEncodeError:
            raise Refusal(400, "The body has a field whose name is no Unicode.", code="invalid_value") from None
        return given


class Drawing(Body):
    """What both requests have. null, or nothing, is the model's own choice."""

    prompt: str = ""
    negative_prompt: str = ""
    styles: Texts | None = None
    seed: Whole | None = -1
    subseed: Whole | None = -1
    subseed_strength: float | None = 0
    seed_resize_from_h: Whole | None = -1
    seed_resize_from_w: Whole | None = -1
    sampler_name: Name | None = None
    scheduler: Name | None = None
    sampler_index: Name | None = None
    batch_size: Whole = 1
    n_iter: Whole = 1
    steps: Whole | None = None
    cfg_scale: float | None = None
    width: Whole | None = None
    height: Whole | None = None
    restore_faces: bool | None = None
    tiling: bool | None = None
    do_not_save_samples: bool | None = False
    do_not_save_grid: bool | None = False
    eta: float | None = None
    denoising_strength: float | None = None
    s_min_uncond: float | None = None
    s_churn: float | None = None
    s_tmax: float | None = None
    s_tmin: float | None = None
    s_noise: float | None = None
    override_settings: Mapped | None = None
    override_settings_restore_afterwards: bool | None = True
    refiner_checkpoint: str | None = None
    refiner_switch_at: float | None = None
    disable_extra_networks: bool | None = False
    firstpass_image: str | None = None
    comments: Mapped | None = None
    script_name: str | None = None
    script_args: list[Any] | None = None
    alwayson_scripts: Mapped | None = None
    send_images: bool = True
    save_images: bool = False
    force_task_id: Annotated[str, Field(max_length=LONGEST_TASK)] | None = None
    infotext: str | None = None


class Txt2Img(Drawing):
    """A picture from words. The fields of the second pass are taken as long as it isn't asked for."""

    enable_hr: bool | None = False
    firstphase_width: Whole | None = 0
    firstphase_height: Whole | None = 0
    hr_scale: float | None = 2.0
    hr_upscaler: str | None = None
    hr_second_pass_steps: Whole | None = 0
    hr_resize_x: Whole | None = 0
    hr_resize_y: Whole | None = 0
    hr_checkpoint_name: str | None = None
    hr_sampler_name: str | None = None
    hr_scheduler: str | None = None
    hr_prompt: str | None = ""
    hr_negative_prompt: str | None = ""


class Img2Img(Drawing):
    """A picture from another one: init_images has one, in base64 or as a data URI. mask: white is painted anew."""

    init_images: Texts | None = None
    resize_mode: Whole | None = 0
    denoising_strength: float | None = STRENGTH
    image_cfg_scale: float | None = None
    mask: str | None = None
    mask_blur: float | None = None
    mask_blur_x: float | None = BLUR
    mask_blur_y: float | None = BLUR
    mask_round: bool | None = True
    inpainting_fill: Whole | None = 0
    inpaint_full_res: bool | None = True
    inpaint_full_res_padding: Whole | None = 0
    inpainting_mask_invert: Whole | None = 0
    initial_noise_multiplier: float | None = None
    latent_mask: str | None = None
    include_init_images: bool | None = False


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request that can be drawn. file: its pictures' format and quality."""

    request: Request
    notes: tuple[str, ...]
    file: partial[bytes]

    @property
    def pictures(self) -> tuple[str, ...]:
        """The files that it begins with."""
        return tuple(path for path in (self.request.init_image, self.request.mask) if path is not None)


def read(body: Drawing, options: Mapping[str, Any], bundle: Bundle, service: Service) -> Asked:
    """On a thread: what is asked for. options: `emphasis`, `samples_format` and `jpeg_quality` as they are now.

    Raises Refusal and UserError.
    """
    notes = without_effect(body.model_extra or (), "a field that this API doesn't have; it changes nothing")
    _refuse(body)
    n = body.batch_size * body.n_iter
    if not (1 <= body.batch_size and 1 <= body.n_iter and n <= service.settings.max_n):
        raise refused(
            "batch_size x n_iter", f"{shown(body.batch_size)} x {shown(body.n_iter)}",
            f"1 to {service.settings.max_n} pictures",
        )  # fmt: skip
    values: dict[str, Any] = {"long_prompt": "chunk", "n": n}
    values["emphasis"] = next(ours for ours, theirs in EMPHASIS.items() if theirs == options["emphasis"])
    values |= _remembered(body, notes)
    for ours, theirs in SAME.items():
        if theirs in body.model_fields_set and getattr(body, theirs) is not None:
            values[ours] = getattr(body, theirs)
    values.setdefault("prompt", "")
    if body.sampler_name or body.sampler_index:
        values |= {"sampler": None, "grid": None}
    values |= sampling(body)
    values |= _eta(body, values.get("sampler") or bundle.schedule.sampler)
    values["seed"] = _seed(body, values, n)
    guidance = values.get("guidance_scale", bundle.defaults.guidance_scale)
    if guidance == 1.0 and values.get("negative_prompt"):
        del values["negative_prompt"]
        notes.append("negative_prompt: has no effect at cfg_scale 1")
    if isinstance(body, Img2Img):
        edge = bundle.unet.spec.sample_size * bundle.vae.spec.downscale
        size = values.setdefault("width", edge), values.setdefault("height", edge)
        if min(size) > 0 and size[0] * size[1] > service.settings.max_pixels:
            raise refused("width x height", f"{size[0]} x {size[1]}", f"{service.settings.max_pixels} pixels at most")
        strength = body.denoising_strength if "denoising_strength" in body.model_fields_set else None
        values["strength"] = values.get("strength", STRENGTH) if strength is None else strength
        files: dict[str, Any] = {"init_image": "-"}
        if body.mask is not None:
            files["mask"] = "-"
            if "padding_mask_crop" not in values or "inpaint_full_res" in body.model_fields_set:
                values["padding_mask_crop"] = (body.inpaint_full_res_padding or 0) if body.inpaint_full_res else None
        Request(**values, **files)  # what is wrong with it is said before pictures of that size are made
        most = pictures.largest(service.settings.max_pixels)
        drawn = None if values.get("padding_mask_crop") is not None else size
        contents = _contents(body, most, service)
        init, mask = pictures.decode(partial(_pictures, body, contents, drawn, most, notes))
        values["init_image"] = service.keep(init)
        if mask is not None:
            values["mask"] = service.keep(mask)
    format: Any = FORMATS[options["samples_format"]]
    return Asked(
        request=Request(**values),
        notes=tuple(notes),
        file=partial(encode, format=format, quality=options["jpeg_quality"]),
    )


def plain(body: BaseModel) -> dict[str, Any]:
    """On a thread: the fields that a body may have, once it is sure that they can be sent back. Raises Refusal."""
    document = body.model_dump(include=set(type(body).model_fields))
    try:
        json.dumps(document, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise Refusal(
            400, "The body has numbers that are not finite, or text that is no Unicode.", code="invalid_value"
        ) from None
    return document


def sampling(body: Drawing) -> dict[str, str]:
    """Kotoe's sampler and grid of `sampler_name` (or `sampler_index`) and `scheduler`. Raises Refusal."""
    given = body.sampler_name or body.sampler_index or ""
    name, tail = apart(given)
    if tail and grid_of(tail) is None and tail.lower() not in FOREIGN:
        name, tail = given, ""
    sampler, chosen = sampler_of(name), body.scheduler or ""
    if given and sampler is None:
        near = nearest(given, SAMPLERS.values())
        raise Refusal(
            400,
            f"Sampler not found: {shown(given)}. Allowed: {', '.join(SAMPLERS.values())}."
            + (f" Did you mean {near!r}?" if near else ""),
            param="sampler_name", code="Sampler not found",
        )  # fmt: skip
    automatic = chosen.strip().lower() in ("", "automatic")
    if tail and not automatic and grid_of(chosen) != grid_of(tail):
        raise refused("scheduler", chosen, f"{tail}, which sampler_name says, or Automatic")
    schedule = tail or ("automatic" if automatic else chosen)
    if schedule == "automatic" and sampler is None:
        return {}  # all of it is the model's
    grid = grid_of(schedule, sampler)
    if grid is None:
        raise refused("scheduler", schedule, "Automatic, Uniform, Karras, SGM Uniform, Simple, Normal, DDIM")
    return {"grid": grid} | ({} if sampler is None else {"sampler": sampler})


def _refuse(body: Drawing) -> None:
    for name, (allowed, why) in ONLY.items():
        value = getattr(body, name, None)
        if value is not None and not any(alike(value, one) for one in allowed):
            raise refused(name, value, " or ".join(map(repr, allowed)) if allowed else "null", why)
    for name in ("seed_resize_from_h", "seed_resize_from_w"):
        if (getattr(body, name) or 0) > 0:
            raise refused(name, getattr(body, name), "0 or -1", "noise is drawn at the picture's own size")
    if isinstance(body, Img2Img) and body.mask is not None:
        if body.inpainting_mask_invert not in (None, 0, 1):
            raise refused("inpainting_mask_invert", body.inpainting_mask_invert, "0 or 1")
        for name in ("mask_blur", "mask_blur_x", "mask_blur_y"):
            if not 0 <= (getattr(body, name) or 0) <= 256:
                raise refused(name, getattr(body, name), "0 to 256 pixels")


def _remembered(body: Drawing, notes: list[str]) -> dict[str, Any]:
    """What `infotext` says: it stands for whatever the request itself leaves out."""
    if not body.infotext:
        return {}
    settings = from_infotext(body.infotext)
    if settings is None:
        raise refused("infotext", body.infotext, "the text `parameters` of a picture")
    notes += [f"infotext: {note}" for note in settings.notes[:MOST_NOTES]]
    if (more := len(settings.notes) - MOST_NOTES) > 0:
        notes.append(f"infotext: and {more} more notes on what is not taken over")
    found = dict(settings.request)
    if not isinstance(body, Img2Img) and found.pop("strength", None) is not None:
        notes.append("infotext: Denoising strength belongs to img2img")
    if getattr(body, "mask", None) is None and found.pop("padding_mask_crop", None) is not None:
        notes.append("infotext: Masked area padding belongs to a mask")
    return found


def _eta(body: Drawing, sampler: str) -> dict[str, float]:
    if sampler in NOISY:
        for name in ("eta", "s_noise"):
            value = getattr(body, name)
            if value not in (None, 1.0):
                raise refused(name, value, f"1 with {SAMPLERS[sampler]}", "Euler is what it is without fresh noise")
    return {"eta": body.eta} if sampler == "ddim" and body.eta is not None else {}


def _seed(body: Drawing, values: Mapping[str, Any], n: int) -> int:
    if body.seed is None or body.seed == -1:
        said = None if "seed" in body.model_fields_set else values.get("seed")
        return new_seed(n) if said is None else int(said)
    if body.seed < 0:
        raise refused("seed", body.seed, "-1, a random one, or 0 or more")
    return body.seed


# --- Pictures that come with it -------------------------------------------------------------------


def _contents(body: Img2Img, most: int, service: Service) -> tuple[bytes, bytes | None]:
    """The files of the picture to begin with and of the mask, of `most` pixels by their headers.

    Raises Refusal and UserError.
    """
    given = [one for one in body.init_images or () if one]
    if not given:
        raise Refusal(404, "Init image not found", param="init_images", code="Init image not found")
    if len(given) > 1:
        raise refused("init_images", f"{len(given)} pictures", "one", "Ask for the others one by one")
    init = _content(given[0], "init_images", service)
    images.size_of(init, "init_images", most)
    if body.mask is None:
        return init, None
    mask = _content(body.mask, "mask", service)
    images.size_of(mask, "mask", most)
    return init, mask


def _pictures(
    body: Img2Img, contents: tuple[bytes, bytes | None], size: tuple[int, int] | None, most: int, notes: list[str]
) -> tuple[bytes, bytes | None]:
    """PNGs of the picture to begin with and of the mask, white where it is painted anew.

    contents: their files, of `most` pixels. size: what is drawn, and they get; None: part of the picture is drawn, and
    they keep the picture's own.
    """
    init, clear = images.picture_of(contents[0], "init_images", most)
    if clear:
        notes.append("init_images: partly transparent; it was put on white")
    if size is None:
        size = init.size
    elif body.resize_mode != 1 and init.width * size[1] != init.height * size[0]:
        was, now = f"{init.width}x{init.height}", f"{size[0]}x{size[1]}"
        notes.append(f"init_images: {was} was stretched to {now}; resize_mode 1 crops")
    init = _fitted(init, size, body.resize_mode)
    if contents[1] is None:
        return pictures.png(init), None
    colours, alpha = images.layers_of(contents[1], "mask", most)
    mask = colours.convert("L") if alpha is None else pictures.solid(alpha, below=0)  # what isn't see-through
    if body.inpainting_mask_invert:
        mask = ImageChops.invert(mask)
    wide, high = (BLUR if v is None else v for v in (body.mask_blur_x, body.mask_blur_y))
    if body.mask_blur is not None:
        wide = high = body.mask_blur
    if wide or high:
        mask = mask.filter(ImageFilter.GaussianBlur((wide, high)))
    mask = _fitted(mask, size, body.resize_mode)
    if body.inpainting_fill in (None, 0):
        init = filled(init, mask)
    return pictures.png(init), pictures.png(mask)


def _content(text: str, name: str, service: Service) -> bytes:
    if text[:8].lower().startswith(("http://", "https://")):
        if not service.settings.fetch_urls:
            raise refused(name, text, "base64, or a data URI", "This server fetches no addresses; --fetch-urls lets it")
        return pictures.fetched(text, name)
    return pictures.decoded(text, name)


def _fitted(image: Image.Image, size: tuple[int, int], mode: int | None) -> Image.Image:
    if image.size == size:
        return image
    way = Image.Resampling.LANCZOS
    return ImageOps.fit(image, size, way) if mode == 1 else image.resize(size, way)


def filled(image: Image.Image, mask: Image.Image) -> Image.Image:
    """The picture with what the mask covers taken from its surroundings: blurred, and the nearer the sharper."""
    covered = mask.getbbox()
    if covered is None:
        return image
    far = FILLS[0]
    left, top = (max(0, edge - far) for edge in covered[:2])
    box = left, top, min(image.width, covered[2] + far), min(image.height, covered[3] + far)
    part, hole = image.crop(box), mask.crop(box)
    scale = min(1.0, (FILLED / (part.width * part.height)) ** 0.5)  # a large one needs no more detail
    size = max(1, round(part.width * scale)), max(1, round(part.height * scale))
    found = _surroundings(part.resize(size), hole.resize(size)).resize(part.size)
    whole = image.copy()
    whole.paste(Image.composite(found, part, hole), box[:2])
    return whole


def _surroundings(image: Image.Image, mask: Image.Image) -> Image.Image:
    hole = np.asarray(mask, np.float32)[..., None] / 255  # (H, W, 1)
    colours = np.asarray(image, np.float32)  # (H, W, 3)
    known = 1 - hole
    whole = float(known.sum())
    mean = (colours * known).sum((0, 1)) / whole if whole >= 1 else np.full(3, 127.5)
    found = np.broadcast_to(mean, colours.shape).astype(np.float32)
    seen = Image.fromarray((colours * known).round().astype(np.uint8))
    weight = ImageChops.invert(mask)
    for radius in FILLS:
        blur = ImageFilter.GaussianBlur(radius)
        near = np.asarray(weight.filter(blur), np.float32)[..., None] / 255
        sure = np.clip(4 * near, 0, 1)
        found += sure * (np.asarray(seen.filter(blur), np.float32) / np.maximum(near, 1 / 255) - found)
    return Image.fromarray(found.clip(0, 255).round().astype(np.uint8))


# --- Refusals in its words ------------------------------------------------------------------------


def named(refusal: Refusal) -> Refusal:
    """A refusal of Kotoe's own, about a field by the name that this API has for it."""
    theirs = WORDS.get(refusal.param or "")
    if theirs is None:
        return refusal
    message = re.sub(rf"\b{refusal.param}\b", theirs, refusal.message, count=1)
    return Refusal(
        refusal.status, message, kind=refusal.kind, param=theirs, code=refusal.code,
        retry_after=refusal.retry_after,
    )  # fmt: skip


def new_task() -> str:
    """An id for a request that brought none."""
    return f"task({secrets.token_hex(8)})"

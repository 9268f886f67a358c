"""Request to pictures and Records: txt2img, img2img and inpainting are one function.

B pictures, C latent channels, H W pixel rows and columns, h w latent ones, L tokens, D text width, S steps.

Texts are encoded once; their keys and values in every cross-attention and the time projections of every step are
computed once per batch, not once per step. Every picture has its own noise, and with the processor's default batch size
of 1 it is the same to the bit whatever is drawn beside it; larger batches are faster, and round otherwise in places: a
pixel may be off by one level of 255.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import groupby
from threading import Event, Lock
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from kotoe import __version__, compiled, engine, images, starting
from kotoe.checkpoints import Bundle
from kotoe.config import (
    DEFAULT_STRENGTH,
    ETA_SAMPLERS,
    LEGACY_SAMPLERS,
    Ending,
    EngineName,
    Request,
    Resolved,
)
from kotoe.denoise import Denoiser, begin, beside, denoiser, guided, inpainted, within
from kotoe.errors import UserError
from kotoe.numerics import NUMERICS, check_numerics, with_numerics
from kotoe.reading import Job, Read, Reading, is_guided, read_prompts, said
from kotoe.record import Record
from kotoe.recording import check_same, conditioner_record, decoder_hash, model_record
from kotoe.rng import SEEDS, ImageNoise
from kotoe.samplers import Step, along
from kotoe.schedule import Walk, input_scale, sigma_to_t, told_timesteps, walk
from kotoe.shortcuts import Shortcuts
from kotoe.tiny_vae import TinyVAE
from kotoe.translate import source_language, target_language, understood
from kotoe.unet import KV, TimeTable, UNet
from kotoe.vae import VAE
from kotoe.workers import Stopped, process_threads, side_by_side, small


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture and how it was drawn."""

    image: Image.Image
    record: Record


@dataclass(frozen=True, kw_only=True)
class Progress:
    """After a step: picture-steps done and in all, and the step itself for a preview (see Step)."""

    done: int
    total: int
    step: Step


@dataclass(frozen=True, kw_only=True)
class Networks:
    """What computes pictures: a bundle's own, or what stands in for them and serves several requests in one call.

    unet:   called with latents (B, C, h, w), a step's time projections, `text_kv` of the texts and Shortcuts.
    decode: pictures (B, 3, H, W) of unit-scaled latents (B, C, h, w).
    """

    unet: Any
    decode: Callable[[Tensor], Tensor]


DECODED = 2**18  # pixels that are decoded at once: 16 pictures of 128 x 128, one of 512 x 512
OnStep = Callable[[Progress], None]


def generate(bundle: Bundle, request: Request, *, on_step: OnStep | None = None) -> list[Picture]:
    """The pictures of a request: for each prompt in turn, n pictures with seeds seed, seed + 1, ...

    on_step: called after every denoising step of every batch; raise in it to stop.
    Raises UserError for what the model can't do, before anything is drawn.
    """
    return list(draw(bundle, request, on_step=on_step))


def draw(
    bundle: Bundle, request: Request, *, jobs: Sequence[Job] | None = None, on_step: OnStep | None = None
) -> Iterator[Picture]:
    """As `generate`, but each batch's pictures are handed over when they are done.

    Of a small model several batches are drawn at a time, on threads of their own (see workers.py); on_step is called on
    these, one call at a time. What it raises stops all of them.
    jobs: what to draw, prompt by prompt, where every prompt has a seed of its own; None: what `plan` makes of request.
    """
    request = resolve(bundle, request)
    bundle = with_numerics(bundle, request.numerics)
    nets = networks(bundle, request)
    jobs = plan(bundle, request) if jobs is None else jobs
    reads = read_prompts(bundle, request, jobs)
    watch = _Watch(len(jobs) * steps_run(request), on_step)
    tasks = [
        partial(draw_batch, bundle, request, nets, batch, [reads[job.reading] for job in batch], watch.of(len(batch)))
        for batch in _batches(jobs, reads, request.batch_size)
    ]
    if small(bundle, request):
        drawn = side_by_side(tasks, workers=process_threads(), stop=watch.stop)
    else:
        drawn = (task() for task in tasks)
    for pictures in drawn:
        yield from pictures


class _Watch:
    """Tells of the steps of all batches, which may come from several threads."""

    def __init__(self, total: int, on_step: OnStep | None) -> None:
        self.total, self.on_step, self.done = total, on_step, 0
        self.stop, self.turn = Event(), Lock()

    def of(self, size: int) -> Callable[[Step], None]:
        """What to call after each step of a batch of that many pictures."""

        def report(step: Step) -> None:
            if self.stop.is_set():
                raise Stopped
            with self.turn:
                self.done += size
                if self.on_step is not None:
                    self.on_step(Progress(done=self.done, total=self.total, step=step))

        return report


def replay(bundle: Bundle, record: Record, *, on_step: OnStep | None = None) -> Picture:
    """The picture of a record again: the same bits on the same machine with the same versions.

    A recorded translation is read as it is: no translator is needed.
    Raises UserError naming the part when the bundle, the picture it started from or the mask isn't the record's.
    """
    check_same(bundle, record)
    asked = replace(record.request(), language=record.conditioner.language, translate_to=None)
    request = resolve(bundle, asked)
    bundle = with_numerics(bundle, request.numerics)
    index, size = record.batch
    job = Job(
        prompt=record.prompt,
        language=record.conditioner.language,
        language_source=record.language_source,
        seed=record.seed,
        translation=record.translation,
        detection=record.detection,
    )
    # Beside it the pictures that n would draw: of equal ones the engine would compute a part once, and round otherwise.
    jobs = [replace(job, seed=(record.seed - index + i) % SEEDS) for i in range(size)]
    watch = _Watch(steps_run(request), on_step)

    def again() -> Picture:
        read = read_prompts(bundle, request, [job])[job.reading]
        nets = networks(bundle, request)
        return draw_batch(bundle, request, nets, jobs, [read] * size, watch.of(1), only=index)[0]

    (picture,) = side_by_side([again], workers=1, threads=record.threads, stop=watch.stop)
    return picture


# --- What will be drawn ---------------------------------------------------------------------------


def resolve(bundle: Bundle, request: Request) -> Resolved:
    """The request with every default filled in, checked against what the model can do.

    `language` stays None where it is to be detected, prompt by prompt, and `translate_to` without a translator.
    """
    how = NUMERICS[request.numerics]
    grid = how.grid or bundle.defaults.grid or bundle.schedule.timestep_spacing
    width, height = _size(bundle, request)
    sampler = request.sampler or how.sampler or bundle.schedule.sampler
    check_numerics(bundle, request.numerics, sampler, request.eta)
    if request.eta != 0.0 and sampler not in ETA_SAMPLERS:
        raise UserError(
            f"eta {request.eta} with {sampler}, this model's sampler, has no effect",
            allowed=f"eta with sampler {', '.join(ETA_SAMPLERS)}",
        )
    if request.ending == "legacy" and sampler not in LEGACY_SAMPLERS:
        raise UserError(
            f"ending legacy with {sampler}, this model's sampler",
            allowed=f"ending legacy with sampler {', '.join(LEGACY_SAMPLERS)}",
        )
    ours = _dtype(bundle.unet)
    if request.dtype not in ("auto", ours):
        raise UserError(
            f"dtype {request.dtype} asked of a model loaded in {ours}",
            allowed=f"auto, {ours}",
            hint=f"Load it with dtype={request.dtype!r}",
        )
    given = {f.name: getattr(request, f.name) for f in fields(Request)}
    chosen = {
        "language": None if request.language is None else source_language(bundle, request.language),
        "translate_to": target_language(bundle, request),
        "width": width,
        "height": height,
        "steps": bundle.defaults.steps if request.steps is None else request.steps,
        "sampler": sampler,
        "grid": request.grid or grid,
        "ending": _ending(bundle, request, sampler) if request.ending is None else request.ending,
        "guidance_scale": (
            bundle.defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale
        ),
        "dtype": ours,
        "engine": _engine(bundle, request),
        "decoder": bundle.defaults.decoder if request.decoder is None else request.decoder,
        "batch_size": request.batch_size,
    }
    if request.batch_size is None:
        usual = 1 if bundle.low_memory or bundle.device.type == "cpu" else 8
        chosen["batch_size"] = usual if bundle.low_memory else bundle.defaults.batch_size or usual
        if request.engine == "int8":
            chosen["batch_size"] = 1
    elif request.engine == "int8" and request.batch_size > 1:
        raise UserError(
            f"batch_size {request.batch_size} with engine int8",
            allowed="batch_size 1: int8 is scaled by all that is drawn at once, so a picture would hang on the others",
            hint="Leave batch_size out, or take engine fast",
        )
    if chosen["decoder"] == "small" and bundle.small_decoder is None:
        raise UserError(
            f"decoder small with {bundle.name}, which has none",
            allowed="decoder full",
            hint="--taesd FOLDER (small_decoder=) takes a published one, such as TAESD",
        )
    if bundle.unet.spec.inpaints and (request.init_image is None or request.mask is None):
        raise UserError(
            f"{bundle.name} is an inpainting model ({bundle.family}): its UNet reads a picture and a mask as well",
            allowed="init_image and mask in the request",
            hint="Give both, or take a model that draws from words alone",
        )
    if request.init_image is not None and request.strength is None:
        chosen["strength"] = 1.0 if bundle.unet.spec.inpaints else DEFAULT_STRENGTH
    found = Resolved(**{**given, **chosen})
    hint = partial(_fitting, bundle, found)  # it opens the picture once more
    images.check_size(width, height, pixel_multiple(bundle), hint)
    starting.opened(found, hint)  # what is wrong with it, or its mask, is said now
    steps = len(_walk(bundle, found).sigmas) - 1  # too few steps, or none left
    if is_guided(found) and _guided_steps(found, steps) == (0, 0):
        raise UserError(
            f"guidance_start {found.guidance_start} to guidance_stop {found.guidance_stop}: none of {steps} steps",
            allowed="a part that holds at least one step",
        )
    return found


def _engine(bundle: Bundle, request: Request) -> EngineName:
    if request.engine == "compiled":
        if bundle.low_memory or bundle.device.type not in compiled.BACKENDS:
            where = "low memory" if bundle.low_memory else str(bundle.device)
            raise UserError(f"engine compiled with {where}", allowed="a processor or CUDA, without low memory")
        for name, nothing in (("cache_interval", 1), ("token_merging_ratio", 0.0)):
            if getattr(request, name) != nothing:
                raise UserError(
                    f"engine compiled with {name} {getattr(request, name)}",
                    allowed=f"{name} {nothing}, or engine fast or plain",
                )
        return "compiled"
    if has_engine(bundle):
        return request.engine
    if request.engine == "int8":
        where = "low memory" if bundle.low_memory else f"{bundle.device} in {_dtype(bundle.unet)}"
        raise UserError(f"engine int8 with {where}", allowed="a processor, in float32 or bfloat16, without low memory")
    return "plain"


def has_engine(bundle: Bundle) -> bool:
    """Whether the fast engine can draw with a bundle as it is."""
    return not bundle.low_memory and engine.usable(bundle.unet) and engine.usable(bundle.vae)


def unet_of(net: UNet, name: EngineName) -> Any:
    """What an engine calls for a UNet: `text_kv`, and itself with what UNet.forward takes."""
    if name == "compiled":
        return compiled.of(net)
    return net if name == "plain" else engine.of(net, int8=name == "int8")


def decoder_of(net: VAE | TinyVAE, name: EngineName) -> Callable[[Tensor], Tensor]:
    """The same for a decoder: latents of unit variance to pixels."""
    if name == "compiled":
        return compiled.of(net)
    return net.decode if name == "plain" else engine.of(net)


def pixel_multiple(bundle: Bundle) -> int:
    """Edges must be a multiple of this many pixels: one latent pixel of the UNet's coarsest level."""
    return bundle.vae.spec.downscale * 2 ** (len(bundle.unet.spec.block_out_channels) - 1)


def steps_run(request: Resolved) -> int:
    """Denoising steps that a resolved request runs for each picture."""
    return request.steps if request.strength is None else int(request.steps * request.strength + 1e-6)


def plan(bundle: Bundle, request: Request) -> list[Job]:
    """One Job per picture, prompt by prompt, with the language of each prompt, and its translation if there must be."""
    jobs = []
    for prompt in request.prompt:
        found = understood(bundle, request, prompt, said(request, prompt).words)
        if found.translation is not None and not all(said(request, t).plain for t in (prompt, request.negative_prompt)):
            raise UserError(
                f"weights or BREAK in {prompt!r}, which is translated before it is read",
                allowed="words alone, or a language that the model reads",
                hint="--emphasis none hands all of it to the translator",
            )
        for k in range(request.n):
            job = Job(
                prompt=prompt,
                language=found.language,
                language_source=found.source,
                seed=request.seed + k,
                translation=found.translation,
                detection=found.detection,
            )
            jobs.append(job)
    return jobs


def _size(bundle: Bundle, request: Request) -> tuple[int, int]:
    said = (request.width, request.height, request.padding_mask_crop)
    if request.init_image is not None and said == (None, None, None):
        return images.open_picture(request.init_image, "init_image").size
    edge = bundle.unet.spec.sample_size * bundle.vae.spec.downscale
    width = edge if request.width is None else request.width
    return width, edge if request.height is None else request.height


def _fitting(bundle: Bundle, request: Resolved) -> str:
    """Which size the picture that is started from can be drawn at, or how else it can be used."""
    if request.init_image is None or request.padding_mask_crop is not None:
        return ""
    edge, size = bundle.unet.spec.sample_size * bundle.vae.spec.downscale, images.open_picture(request.init_image).size
    fits = images.size_like(size, pixel_multiple(bundle), edge**2)
    part = "" if request.mask is None else "; or padding_mask_crop, which draws the masked part alone"
    if fits is None:
        return f"Crop init_image to another shape first{part}"
    return f"init_image, {size[0]}x{size[1]}, fits into width {fits[0]}, height {fits[1]}{part}"


def _ending(bundle: Bundle, request: Request, sampler: str) -> Ending:
    """What the model's own scheduler says, where it is of a class that says it, or another program's numerics do."""
    if request.numerics != "exact":
        return "zero"
    says_so = bundle.schedule.sampler in LEGACY_SAMPLERS and not bundle.schedule.set_alpha_to_one
    return "legacy" if says_so and sampler in LEGACY_SAMPLERS else "zero"


def _walk(bundle: Bundle, request: Resolved) -> Walk:
    return walk(
        bundle.schedule,
        request.steps,
        sampler=request.sampler,
        grid=request.grid,
        ending=request.ending,
        strength=1.0 if request.strength is None else request.strength,
    )


def _guided_steps(request: Resolved, steps: int) -> tuple[int, int]:
    """The first step with guidance and the first without it again, as diffusers counts them; (0, 0): there is none."""
    first, end = int(request.guidance_start * steps), int(request.guidance_stop * steps)
    return (first, end) if first < end else (0, 0)


def _dtype(module: torch.nn.Module) -> str:
    return str(next(module.parameters()).dtype).removeprefix("torch.")


def _batches(jobs: Sequence[Job], reads: Mapping[Reading, Read], size: int) -> Iterator[list[Job]]:
    """Consecutive jobs, at most `size` together, with contexts of one length."""
    for _, group in groupby(jobs, key=lambda job: reads[job.reading].positive.shape[1]):
        same = list(group)
        for first in range(0, len(same), size):
            yield same[first : first + size]


# --- Drawing --------------------------------------------------------------------------------------


def networks(bundle: Bundle, request: Resolved) -> Networks:
    """What computes a resolved request here."""
    return Networks(
        unet=unet_of(bundle.unet, request.engine),
        decode=decoder_of(_decoder(bundle, request), request.engine),
    )


@torch.inference_mode()
def draw_batch(
    bundle: Bundle,
    request: Resolved,
    nets: Networks,
    jobs: Sequence[Job],
    reads: Sequence[Read],
    report: Callable[[Step], None],
    only: int | None = None,
) -> list[Picture]:
    """The pictures of one batch, or with `only` that one of them.

    nets:   what computes them (`networks`).
    reads:  of each job, what was read for it; contexts of one length.
    report: called after every step; what it raises stops the batch.
    """
    began = time.perf_counter()
    device, scale = bundle.device, bundle.vae.spec.downscale
    shape = (bundle.vae.spec.latent_channels, request.height // scale, request.width // scale)  # (C, h, w)
    noise = ImageNoise([job.seed for job in jobs], shape, device=device)
    start = starting.start(request)
    init, mask = (None, None) if start is None else (start.picture, start.mask)
    with bundle.at_work(bundle.vae):
        known = None if init is None else _encode(bundle, init)  # (1, C, h, w)
        given = _given(bundle, init, mask)
    # A latent pixel is painted anew as soon as any of its pixels is: no seam of the old inside the new.
    anew = None if mask is None or given is not None else F.max_pool2d(mask, scale).to(device)  # (1, 1, h, w)
    way = _walk(bundle, request)
    unit = noise.initial()  # (B, C, h, w)
    x = begin(
        unit,
        way.first,
        sampler=request.sampler,
        grid=request.grid,
        init=None if request.strength == 1.0 else known,
    )
    with bundle.at_work(bundle.unet):
        denoise = _denoiser(bundle, request, nets.unet, reads, way, given)
        if anew is not None and known is not None:
            denoise = inpainted(denoise, known, anew, noise=unit, first=way.first)
        for step in along(request.sampler, way, eta=request.eta)(denoise, x, way.sigmas, noise):
            report(step)
    latents = step.x * float(input_scale(torch.tensor(step.sigma)))  # of unit variance, where noise is left in
    if anew is not None and known is not None:
        latents = torch.lerp(known.to(latents), latents, anew)  # a legacy ending leaves noise in what is kept, too
    wanted = range(len(jobs)) if only is None else (only,)
    with bundle.at_work(_decoder(bundle, request)):
        decoded = _decode(bundle, request, nets.decode, latents)  # all, since what is decoded together rounds together
        pixels = [decoded[i] for i in wanted]  # (3, H, W) each
    finish = images.to_pil if start is None else start.finished
    seconds = (time.perf_counter() - began) / len(jobs)
    return [
        Picture(
            image=finish(p, truncate=NUMERICS[request.numerics].truncated),
            record=_record(bundle, request, jobs[i], reads[i], (i, len(jobs)), str(device), seconds),
        )
        for i, p in zip(wanted, pixels, strict=True)
    ]


def _denoiser(
    bundle: Bundle,
    request: Resolved,
    unet: Any,
    reads: Sequence[Read],
    way: Walk,
    given: tuple[Tensor, Tensor] | None,
) -> Denoiser:
    weight = bundle.unet.conv_in.weight
    t = sigma_to_t(bundle.schedule, way.asked)  # (S,)
    told = told_timesteps(bundle.schedule, way.asked, sampler=request.sampler, grid=request.grid)  # (S,)
    table = bundle.unet.time_table(told.to(weight.device))
    shortcuts = Shortcuts(request.cache_interval, request.token_merging_ratio)

    def reading(context: Tensor) -> Denoiser:  # (B, L, D)
        model = _model(unet, weight.dtype, unet.text_kv(context.to(weight)), table, t, shortcuts)
        return denoiser(model if given is None else beside(model, *given), bundle.schedule)

    context = torch.cat([read.positive for read in reads])  # (B, L, D)
    if not is_guided(request):
        return reading(context)
    negative = torch.cat([read.negative for read in reads if read.negative is not None])  # (B, L, D)
    paired = reading(torch.cat([negative, context]))
    led = guided(
        paired,
        request.guidance_scale,
        both=paired,
        rescale=request.guidance_rescale,
        always=NUMERICS[request.numerics].always_guided,
    )
    steps = len(way.sigmas) - 1
    first, end = _guided_steps(request, steps)
    if (first, end) == (0, steps):
        return led
    levels = [float(way.asked.max()) if i == 0 else float(sigma) for i, sigma in enumerate(way.sigmas)]
    near = 1.0 + 1e-5  # levels come through different roundings
    return within(led, reading(context), levels[first] * near, -1.0 if end == steps else levels[end] * near)


def _model(
    unet: Callable[[Tensor, list[Tensor], KV, Shortcuts], Tensor],
    dtype: torch.dtype,
    kv: KV,
    table: TimeTable,
    t: Tensor,
    shortcuts: Shortcuts,
) -> Callable[[Tensor, Tensor], Tensor]:
    rows = {float(time): i for i, time in enumerate(t)}

    def model(x: Tensor, times: Tensor) -> Tensor:
        x = x.to(dtype).contiguous(memory_format=torch.channels_last)  # the layout convolutions are fastest in
        return unet(x, table.at(rows[float(times[0])]), kv, shortcuts).float()

    return model


def _given(bundle: Bundle, init: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """What an inpainting UNet reads beside the noise: mask (1, 1, h, w) and masked picture (1, C, h, w). Or None.

    As trained and as in diffusers: the mask is 0 or 1, of a latent pixel that of its first pixel; what it covers is
    grey in the picture.
    """
    if init is None or mask is None or not bundle.unet.spec.inpaints:
        return None
    sharp = (mask >= 0.5).to(mask)
    masked = _encode(bundle, init * (1.0 - sharp))
    return F.interpolate(sharp, size=masked.shape[-2:], mode="nearest").to(masked), masked


def _encode(bundle: Bundle, picture: Tensor) -> Tensor:
    weight = bundle.vae.quant_conv.weight
    return bundle.vae.encode(picture.to(weight)).float()  # (1, C, h, w); the mean: the caller owns randomness


def _decode(bundle: Bundle, request: Resolved, decode: Callable[[Tensor], Tensor], latents: Tensor) -> list[Tensor]:
    """Pictures (3, H, W) of latents (B, C, h, w). Small ones are decoded together, up to DECODED pixels."""
    z = latents.to(bundle.vae.quant_conv.weight).contiguous(memory_format=torch.channels_last)
    size = max(1, DECODED // (request.width * request.height))
    return [picture for part in z.split(size) for picture in decode(part).float().cpu()]


def _decoder(bundle: Bundle, request: Resolved) -> VAE | TinyVAE:
    return bundle.small_decoder if request.decoder == "small" and bundle.small_decoder is not None else bundle.vae


# --- Records --------------------------------------------------------------------------------------


def _record(
    bundle: Bundle, request: Resolved, job: Job, read: Read, batch: tuple[int, int], device: str, seconds: float
) -> Record:
    same = {
        name: getattr(request, name)
        for name in (
            *("negative_prompt", "width", "height", "steps", "sampler", "grid", "ending", "guidance_scale"),
            *("guidance_rescale", "eta", "init_image", "mask", "strength", "padding_mask_crop"),
            *("long_prompt", "padding", "punctuation"),
            *("emphasis", "full_width", "numerics", "engine", "decoder", "guidance_start", "guidance_stop"),
            *("cache_interval", "token_merging_ratio"),
        )
    }
    return Record(
        kotoe=__version__,
        torch=torch.__version__,
        model=model_record(bundle),
        conditioner=conditioner_record(bundle, job.language),
        decoder_sha256=decoder_hash(bundle) if request.decoder == "small" else None,
        adapters=bundle.adapters,
        language_source=job.language_source,
        prompt=job.prompt,
        translation=job.translation,
        detection=job.detection,
        seed=job.seed,
        init_image_sha256=None if request.init_image is None else images.file_sha256(request.init_image),
        mask_sha256=None if request.mask is None else images.file_sha256(request.mask),
        dtype=_dtype(bundle.unet),  # type: ignore[arg-type]
        vae_dtype=_dtype(bundle.vae),  # type: ignore[arg-type]
        text_dtype=_dtype(bundle.conditioner(job.language).encoder),  # type: ignore[arg-type]
        low_memory=bundle.low_memory,
        device=device,
        threads=torch.get_num_threads(),
        tokens=read.tokens,
        dropped=read.dropped,
        dropped_negative=read.dropped_negative,
        batch=batch,
        seconds=round(seconds, 4),
        **same,
    )

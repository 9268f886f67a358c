"""How fast this machine draws with a model: a guided step, decoding, texts, whole pictures, a cold start, memory.

Everything is timed on the processor, in turns (a step, a decoding, a text, a picture, a batch, and again), so that what
else the machine does meets all of them. Speeds are held against what the machine's own matrix products and convolutions
reach in the same dtype and the same run. Operations are counted as the plain networks need them, a multiplication and
an addition as two; an engine that gets by with fewer is not credited with less.

Legend: B pictures, C channels, h w rows and columns of latents, L tokens, D text width. TFLOP: 1e12 operations.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kotoe import engine
from kotoe.checkpoints import Bundle, load
from kotoe.checkpoints.files import skeleton
from kotoe.config import MAX_THREADS, Request, Resolved
from kotoe.drawing import decoder_of, generate, resolve, unet_of
from kotoe.errors import UserError
from kotoe.memory import keep_memory
from kotoe.reading import run_of
from kotoe.rng import generator
from kotoe.spec import UNetSpec, VAESpec
from kotoe.unet import UNet
from kotoe.vae import VAE
from kotoe.workers import small

PROMPT = "a cat on a blue background"
TERA = 1e12
SMALL = 0.1  # TFLOP of a guided step: models below it gain from batches on a processor
BATCH = 16  # pictures drawn together with such a model, unless said
PRODUCTS = (
    (8192, 320, 320),
    (8192, 1280, 320),
    (2048, 640, 5120),
    (2048, 2560, 640),
    (512, 1280, 10240),
)  # rows, in, out
CONVOLUTIONS = ((320, 64), (640, 32), (1280, 16))  # channels, edge of a map
OnProgress = Callable[[int, int, str], None]  # measurements done, in all, what is measured next


# --- The machine ----------------------------------------------------------------------------------


def processor() -> str:
    """The processor's name, where the system says it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_memory() -> int | None:
    """The largest resident set of this process so far in bytes; None where the system doesn't say."""
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss begins with the parent's
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def rates(dtype: torch.dtype, *, threads: int | None = None, rounds: int = 5) -> dict[str, float]:
    """TFLOP/s that this machine's own matrix products and convolutions reach in torch, at sizes of SD 1.5's UNet.

    dtype:   what to compute in.
    threads: 1 to 1,024, of the whole process from then on; None: as many as it has.
    rounds:  1 or more; each size is timed so often, after once that isn't counted, and its median taken.

    Gives "products" and "convolutions", the median over the sizes each. Raises UserError for counts out of range.
    """
    if rounds < 1:
        raise UserError(f"rounds {rounds}", allowed="1 or more")
    if threads is not None:
        if not 1 <= threads <= MAX_THREADS:
            raise UserError(f"threads {threads}", allowed=f"1 to {MAX_THREADS}")
        torch.set_num_threads(threads)
    draws = generator(1)
    found: dict[str, list[float]] = {"products": [], "convolutions": []}

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draws).to(dtype)

    with torch.inference_mode():
        for m, k, n in PRODUCTS:
            x, w = noise(m, k), noise(n, k)
            took = _median_of(lambda x=x, w=w: F.linear(x, w), rounds)  # type: ignore[misc]
            found["products"].append(2 * m * k * n / took / TERA)
        for c, edge in CONVOLUTIONS:
            x = noise(2, c, edge, edge).contiguous(memory_format=torch.channels_last)
            w = noise(c, c, 3, 3).contiguous(memory_format=torch.channels_last)
            took = _median_of(lambda x=x, w=w: F.conv2d(x, w, padding=1), rounds)  # type: ignore[misc]
            found["convolutions"].append(2 * 2 * edge * edge * c * c * 9 / took / TERA)
    return {name: statistics.median(each) for name, each in found.items()}


def _median_of(f: Callable[[], Any], n: int) -> float:
    f()
    return statistics.median(seconds(f) for _ in range(n))


def seconds(f: Callable[[], Any]) -> float:
    """Seconds that a call takes, on the clock."""
    began = time.perf_counter()
    f()
    return time.perf_counter() - began


# --- Operations -----------------------------------------------------------------------------------


def operations(unet: UNetSpec, vae: VAESpec, latent: tuple[int, int], tokens: int) -> dict[str, float]:
    """TFLOP of a guided step ("step": two latents, each with a text) and of decoding a picture ("decode").

    latent: rows and columns of latents, 1 or more. tokens: those of a text as the UNet reads it.

    What is computed once for each picture, the texts' keys and values and the time projections, is no part of a step.
    Counted by torch on networks without data, where attention is the two products that it consists of: on a
    processor's tensors it would be one fused operation that the counter doesn't know, and be left out.
    """
    from torch.utils.flop_counter import FlopCounterMode

    (h, w), net, decoder = latent, skeleton(lambda: UNet(unet)), skeleton(lambda: VAE(vae))
    with torch.device("meta"), torch.inference_mode():
        x = torch.empty(2, unet.in_channels, h, w)
        rows = net.time_table(torch.empty(1)).at(0)
        kv = net.text_kv(torch.empty(2, tokens, unet.cross_attention_dim))
        with FlopCounterMode(display=False) as step:
            net(x, rows, kv)
        with FlopCounterMode(display=False) as decoding:
            decoder.decode(torch.empty(1, vae.latent_channels, h, w))
    return {"step": step.get_total_flops() / TERA, "decode": decoding.get_total_flops() / TERA}


# --- A model --------------------------------------------------------------------------------------


def settle(bundle: Bundle, engine_name: str) -> None:
    """Have this process do nothing but draw from now on, as `kotoe generate` does: its memory kept, no weight twice."""
    if engine_name in ("fast", "int8"):
        if {"unet", "vae"} <= set(bundle.hashes):  # else a record's are taken of the weights as they are
            engine.of(bundle.unet, release=True, int8=engine_name == "int8")
            engine.of(bundle.vae, release=True)
        keep_memory()


def asked(
    bundle: Bundle,
    *,
    engine_name: str = "fast",
    width: int | None = None,
    height: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
) -> Resolved:
    """The request that is measured, its defaults filled in: the model's own size, steps and guidance.

    engine_name:   an EngineName; "fast" becomes "plain" where it can't compute the model.
    width, height: pixels. steps: 1 or more.
    batch_size:    pictures together, 1 to 1,024; by default 16 with a model whose guided step is below 0.1 TFLOP,
                   else 1.
    Raises UserError for what the model can't draw, and for one that isn't on a processor or is made for inpainting.
    """
    if bundle.device.type != "cpu" or bundle.low_memory:
        raise UserError(f"a model on {bundle.device}{', with low memory' if bundle.low_memory else ''}", allowed="cpu")
    if bundle.unet.spec.inpaints:
        raise UserError(
            f"{bundle.name} is an inpainting model ({bundle.family}): it reads a picture and a mask as well",
            allowed="models that draw from words alone",
        )
    request = Request(
        prompt=PROMPT,
        language=bundle.default_language,
        long_prompt="cut",  # a tiny text encoder may have few tokens
        width=width,
        height=height,
        steps=steps,
        engine=engine_name,  # type: ignore[arg-type]
        batch_size=1 if batch_size is None else batch_size,
    )
    found = resolve(bundle, request)
    if batch_size is None and engine_name != "int8":  # which draws one picture at a time
        tokens = bundle.tokenizer(bundle.default_language).max_tokens
        count = operations(bundle.unet.spec, bundle.vae.spec, _latent(bundle, found), tokens)
        found = replace(found, batch_size=BATCH if count["step"] < SMALL else 1)
    return found


def _latent(bundle: Bundle, request: Resolved) -> tuple[int, int]:
    scale = bundle.vae.spec.downscale
    return request.height // scale, request.width // scale


class Stages:
    """The stages of a picture of a resolved request, each by itself: `step`, `decode`, `text`."""

    @torch.inference_mode()
    def __init__(self, bundle: Bundle, request: Resolved) -> None:
        self.reader = bundle.conditioner(request.language)
        self.run = run_of(self.reader.encoder, request.engine)
        weight = bundle.unet.conv_in.weight
        self.unet, self.decoder = unet_of(bundle.unet, request.engine), decoder_of(bundle.vae, request.engine)
        draws, latent = generator(1), _latent(bundle, request)

        def noise(channels: int) -> Tensor:
            made = torch.randn(1, channels, *latent, generator=draws).to(weight.dtype)
            return made.contiguous(memory_format=torch.channels_last)

        x = noise(bundle.unet.spec.in_channels)
        self.x = torch.cat([x, x]).contiguous(memory_format=torch.channels_last)  # guidance asks twice of the same
        self.z = noise(bundle.vae.spec.latent_channels).to(bundle.vae.quant_conv.weight.dtype)
        context = self._read()
        self.tokens = context.shape[1]
        self.rows = bundle.unet.time_table(torch.tensor([500.0])).at(0)
        self.kv = self.unet.text_kv(context.to(weight.dtype))

    def _read(self) -> Tensor:
        return self.reader.encode([PROMPT, ""], long_prompt="cut", run=self.run).states  # (2, L, D)

    @torch.inference_mode()
    def step(self) -> None:
        """One guided step: the UNet's answer to a latent twice, with a prompt and with an empty one."""
        self.unet(self.x, self.rows, self.kv)

    @torch.inference_mode()
    def decode(self) -> None:
        """One latent to pixels."""
        self.decoder(self.z)

    @torch.inference_mode()
    def text(self) -> None:
        """A prompt and the empty one to states."""
        self._read()


def measure(
    bundle: Bundle, request: Resolved, *, rounds: int = 7, progress: OnProgress = lambda done, total, what: None
) -> dict[str, Any]:
    """What this machine does with a model: seconds, operations, speeds, pictures per second.

    request:  as `asked` gives it.
    rounds:   1 or more, of which each has one measurement of everything; one more before them isn't counted.
    progress: called before each measurement.

    A small model draws as many batches at a time as there are threads (see workers.py), so that its pictures per second
    are those of many; "picture" is one by itself.

    Gives "seconds" ("step", "decode", "text", "picture"; for a small model "pictures", one for each thread; for a
    batch_size above 1 "batch", as many batches: median, min, max and every value), "side_by_side" (how many at a time),
    "operations_tflop", "tflops" (both "step" and "decode"), "machine_tflops" ("products" and "convolutions"), "share"
    (of the lower of those two that a step and a decoding reach), "pictures_per_second" by batch size, and this
    process's "peak_bytes". Raises UserError as drawing does, and for rounds below 1.
    """
    check_rounds(rounds)
    stages, dtype = Stages(bundle, request), bundle.unet.conv_in.weight.dtype
    one, batch = replace(request, batch_size=1), request.batch_size
    side = torch.get_num_threads() if small(bundle, request) else 1
    several, batches = replace(one, n=side), replace(request, n=side * batch)
    parts: dict[str, Callable[[], Any]] = {
        "step": stages.step,
        "decode": stages.decode,
        "text": stages.text,
        "picture": lambda: generate(bundle, one),
    }
    if side > 1:
        parts["pictures"] = lambda: generate(bundle, several)
    if batch > 1:
        parts["batch"] = lambda: generate(bundle, batches)
    total, done = (rounds + 1) * (len(parts) + 1), 0
    times: dict[str, list[float]] = {name: [] for name in parts}
    reached: dict[str, list[float]] = {"products": [], "convolutions": []}
    for turn in range(rounds + 1):
        for name, part in parts.items():
            progress(done, total, name)
            took = seconds(part)
            times[name] += [took] if turn else []
            done += 1
        progress(done, total, "the machine")
        for name, rate in rates(dtype, rounds=3).items():
            reached[name] += [rate] if turn else []
        done += 1
    progress(total, total, "done")
    found = {name: spread(each) for name, each in times.items()}
    counts = operations(bundle.unet.spec, bundle.vae.spec, _latent(bundle, request), stages.tokens)
    machine = {name: statistics.median(each) for name, each in reached.items()}
    speeds = {name: count / found[name]["median"] for name, count in counts.items()}
    pictures = {"1": side / found["pictures" if side > 1 else "picture"]["median"]}
    if batch > 1:
        pictures[str(batch)] = side * batch / found["batch"]["median"]
    return {
        "seconds": found,
        "side_by_side": side,
        "operations_tflop": counts,
        "tflops": speeds,
        "machine_tflops": machine,
        "share": {name: speed / min(machine.values()) for name, speed in speeds.items()},
        "pictures_per_second": pictures,
        "peak_bytes": peak_memory(),
    }


def check_rounds(rounds: int) -> None:
    """Raise a UserError for rounds below 1."""
    if rounds < 1:
        raise UserError(f"rounds {rounds}", allowed="1 or more", hint="7 give a median that one slow round can't move")


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, smallest, largest and every one of some seconds, in the order in which they were measured."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "values": list(values)}


# --- A cold start ---------------------------------------------------------------------------------


def cold_start(model: str, request: Resolved, loading: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A process of its own that loads a model, draws one step, and decodes. It leaves nothing behind.

    model: as `kotoe.load` takes it. request: as `asked` gives it. loading: what else `kotoe.load` takes.

    Gives "load_s", reading the model; "first_step_s", from the process's beginning to the end of the first guided step,
    everything imported and loaded, files in the system's cache if they were; and "peak_bytes", its largest resident set
    after decoding, or None. Raises UserError with what the process said where it failed.
    """
    same = {name: getattr(request, name) for name in ("width", "height", "steps", "dtype", "batch_size")}
    given = {"model": model, "loading": dict(loading or {}), "engine": request.engine, **same, "began": time.time()}
    told = subprocess.run([sys.executable, "-m", "kotoe.bench", json.dumps(given)], capture_output=True, text=True)
    if told.returncode:
        said = told.stderr.strip().splitlines() or [f"exit code {told.returncode}"]
        raise UserError(f"a cold start of {model} failed: {said[-1]}", hint="kotoe check tells what is wrong")
    return json.loads(told.stdout.splitlines()[-1])


def _cold(given: Mapping[str, Any]) -> dict[str, Any]:
    """In that process. `began` is its parent's clock just before it started."""
    start = time.perf_counter()
    bundle = load(given["model"], dtype=given["dtype"], **given["loading"])
    load_s = time.perf_counter() - start
    names = ("width", "height", "steps", "batch_size")
    request = asked(bundle, engine_name=given["engine"], **{name: given[name] for name in names})
    settle(bundle, request.engine)
    stages = Stages(bundle, request)
    stages.step()
    first_step_s = time.time() - given["began"]
    stages.decode()
    return {"load_s": load_s, "first_step_s": first_step_s, "peak_bytes": peak_memory()}


# --- Saying it ------------------------------------------------------------------------------------

WORDS = {
    "step": "guided step",
    "decode": "decoding",
    "text": "text, prompt and empty prompt",
    "picture": "picture, whole",
    "pictures": "pictures, side by side",
    "batch": "batch, whole",
    "load": "loading",
    "first_step": "first step, from a cold start",
}


def rows(document: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Of a document of `kotoe bench`: what, median, smallest and largest, in seconds with their digits."""
    found, drawn = document["seconds"], document["request"]
    names = dict(WORDS)
    names["picture"] = f"picture, {drawn['steps']} steps"
    side, size = document["side_by_side"], drawn["batch_size"]
    names["pictures"] = f"{side} pictures side by side"
    names["batch"] = f"{size} pictures together" if side == 1 else f"{side} x {size} pictures, side by side"
    return [
        (names[name], *(_digits(each[k]) for k in ("median", "min", "max")))  # type: ignore[misc]
        for name, each in found.items()
    ]


def _digits(value: float) -> str:
    return f"{value:.4f}" if value < 0.1 else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def sentences(document: Mapping[str, Any]) -> list[str]:
    """Of a document of `kotoe bench`: all that isn't seconds."""
    counts, speeds, share = (document[k] for k in ("operations_tflop", "tflops", "share"))
    machine, peak, drawn = document["machine_tflops"], document["peak_bytes"], document["request"]
    pictures = ", ".join(
        f"{rate:.3g} one at a time" if size == "1" else f"{rate:.3g} with {size} together"
        for size, rate in document["pictures_per_second"].items()
    )
    memory = ", ".join(
        f"{'not told by this system' if each is None else f'{each / 1e9:.2f} GB'} {what}"
        for what, each in (("drawing one picture", peak["picture"]), ("in the whole run", peak["run"]))
    )
    return [
        f"Pictures per second: {pictures}.",
        f"A guided step is {counts['step']:.3g} TFLOP and runs at {speeds['step']:.3g} TFLOP/s, a decoding is "
        f"{counts['decode']:.3g} TFLOP and runs at {speeds['decode']:.3g} TFLOP/s.",
        f"This machine's own matrix products reach {machine['products']:.3g} TFLOP/s in {drawn['dtype']}, its "
        f"convolutions {machine['convolutions']:.3g}, at sizes of SD 1.5: the step has {100 * share['step']:.0f} % of "
        f"the lower of the two, the decoding {100 * share['decode']:.0f} %.",
        f"Largest resident set: {memory}.",
    ]


def about(document: Mapping[str, Any]) -> list[str]:
    """Of a document of `kotoe bench`: the model and what was asked of it; the machine."""
    drawn, machine = document["request"], document["machine"]
    versions = ", ".join(f"{name} {value}" for name, value in machine["versions"].items())
    load = "" if machine["load"] is None else f", load at the start {machine['load']}"
    return [
        f"{document['model']}: {drawn['width']} x {drawn['height']} pixels, {drawn['steps']} steps of "
        f"{drawn['sampler']}, guidance {drawn['guidance_scale']:g}, {drawn['dtype']}, engine {drawn['engine']}; "
        f"medians of {document['rounds']} rounds, taken in turns",
        f"{machine['processor']}, {machine['threads']} threads of {machine['cpus']}{load}; {machine['platform']}; "
        f"{versions}",
    ]


def table(document: Mapping[str, Any]) -> list[str]:
    """The lines of a document of `kotoe bench` for a terminal."""
    head = ("", "median s", "min s", "max s")
    lines = [head, *rows(document)]
    width = max(len(line[0]) for line in lines)
    shown = [f"{name:<{width}}" + "".join(f"{cell:>11}" for cell in cells) for name, *cells in lines]
    return [*about(document), "", *shown, "", *sentences(document)]


CARD = "# Bench of "  # how a card begins


def card(document: Mapping[str, Any]) -> str:
    """A document of `kotoe bench` in Markdown."""
    drawn, machine = about(document)
    shown = "\n".join(f"| {' | '.join(row)} |" for row in rows(document))
    return f"""{CARD}{document["model"]}

`{document["command"]}`, {document["date"]}.
{drawn}.
{machine}.

| | median s | min s | max s |
|---|---|---|---|
{shown}

{chr(10).join(sentences(document))}

Operations are counted as the plain networks need them, whatever the engine saves. A cold start is a process of its own,
from its beginning, with the files in the system's cache.
"""


def machine() -> dict[str, Any]:
    """What is measured on: processor, threads, load, platform and versions, without names of users or hosts."""
    from kotoe.runs import environment

    known = environment()
    versions = {name: known["packages"][name] for name in ("kotoe", "torch") if name in known["packages"]}
    return {
        "processor": processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "platform": known["platform"],
        "versions": {"python": known["python"], **versions},
    }


if __name__ == "__main__":
    try:
        sys.stdout.write(json.dumps(_cold(json.loads(sys.argv[1]))) + "\n")
    except UserError as error:
        sys.exit(str(error))

"""Stable Diffusion on a processor: Kotoe beside diffusers, OpenVINO and stable-diffusion.cpp, the same random weights.

    python benchmarks/peers.py [--family "SD 1.5"] [--rounds 5] [--only kotoe diffusers] [--card benchmarks/peers.md]

Each engine is a process of its own, with an environment of its own where it isn't Kotoe's (made in --work, once). All
are loaded first; then they take turns (A B C A B C ...), one guided step, one decoding, one text each, while the others
sleep. A guided step is one evaluation of the UNet for two latents of 64 x 64; decoding is a latent to 512 x 512 pixels.
What a UNet answers to one input, the same for all, is compared with float32's. Cold start is the time from the
process's beginning to the end of its first step. stable-diffusion.cpp has no such calls: it draws a picture of one
step, reports the step's time itself, and what comes after it is taken for decoding.
Needs 25 GB of disk, 24 GiB of memory, and for its environments a network. The last line of standard output is one JSON
document.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cold_start import processor
from full_size import TEXTS, UNETS

from kotoe.checkpoints import Bundle, save
from kotoe.localize.vocabulary import train_clip_bpe
from kotoe.rng import generator, initialising
from kotoe.spec import ScheduleSpec, TextSpec, VAESpec
from kotoe.text import CLIPText, Conditioner
from kotoe.unet import UNet
from kotoe.vae import VAE

PROMPT, SIZE, LATENT = "a cat on a blue background", 512, 64
TERA = 1e12
ENVIRONMENTS = {
    "openvino": ["openvino", "diffusers", "transformers", "safetensors", "accelerate", "numpy"],
    "sdcpp": ["stable-diffusion-cpp-python"],
}
COMMON = """\
import json, os, sys, time
begun = float(os.environ["BEGUN"])
def peak():
    with open("/proc/self/status") as f:
        return 1024 * int(f.read().split("VmHWM:")[1].split()[0])
def timed(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start
def serve(calls, **said):
    print(json.dumps({"ready": time.time() - begun, **said}), flush=True)
    for line in sys.stdin:
        name, _, argument = line.strip().partition(" ")
        if name == "quit":
            print(json.dumps({"peak": peak()}), flush=True)
            break
        print(json.dumps(calls[name](argument) if argument else timed(calls[name])), flush=True)
folder, given, kind = sys.argv[1:4]
"""
TORCH = """\
import numpy as np
import torch
torch.set_grad_enabled(False)
torch.set_num_threads(int(os.environ["THREADS"]))
arrays = np.load(given)
x, context, z = (torch.from_numpy(arrays[k]) for k in ("x", "context", "z"))
"""
KOTOE = """\
import kotoe
from kotoe import engine
bundle = kotoe.load(folder, dtype=kind)
dtype = bundle.unet.conv_in.weight.dtype
unet, decode = (engine.of(net, release=True) for net in (bundle.unet, bundle.vae))
engine.keep_memory()
x, context, z = (t.to(dtype).contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t.to(dtype)
                 for t in (x, context, z))
conditioner = bundle.conditioner()
with torch.inference_mode():
    rows, kv = bundle.unet.time_table(torch.tensor([500.0])).at(0), unet.text_kv(context)
def step():
    with torch.inference_mode():
        return unet(x, rows, kv)
def latents(path):
    np.save(path, step().float().numpy())
    return 0.0
def decoding():
    with torch.inference_mode():
        decode(z)
def text():
    with torch.inference_mode():
        conditioner.encode([PROMPT, ""])
step()
serve({"step": step, "latents": latents, "decode": decoding, "text": text}, first=time.time() - begun)
"""
DIFFUSERS = """\
if kind == "tuned":
    import ctypes
    libc = ctypes.CDLL(None)
    libc.mallopt(-3, 1 << 30), libc.mallopt(-1, (1 << 31) - 1), libc.mallopt(-2, 64 << 20)
from diffusers import StableDiffusionPipeline
dtype = torch.float32 if kind == "float32" else torch.bfloat16
pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, safety_checker=None, feature_extractor=None)
layout = torch.channels_last if kind in ("tuned", "compiled") else torch.contiguous_format
for part in (pipe.unet, pipe.vae):
    part.to(memory_format=layout)
x, context, z = (t.to(dtype).contiguous(memory_format=layout) if t.ndim == 4 else t.to(dtype) for t in (x, context, z))
t = torch.tensor(500)
unet = pipe.unet
if kind == "compiled":
    import torch._inductor.config as inductor
    inductor.freezing = True
    unet = torch.compile(unet)
def step():
    with torch.inference_mode():
        return unet(x, t, encoder_hidden_states=context, return_dict=False)[0]
def latents(path):
    np.save(path, step().float().numpy())
    return 0.0
def decoding():
    with torch.inference_mode():
        pipe.vae.decode(z / pipe.vae.config.scaling_factor, return_dict=False)
def text():
    with torch.inference_mode():
        pipe.encode_prompt(PROMPT, "cpu", 1, True, "")
step()
serve({"step": step, "latents": latents, "decode": decoding, "text": text}, first=time.time() - begun)
"""
OPENVINO = """\
from pathlib import Path
import numpy as np
import openvino as ov
core, made = ov.Core(), Path(folder).parent / f"openvino-{Path(folder).name}"
if not made.is_dir():
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    torch.set_grad_enabled(False)
    class Step(torch.nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net
        def forward(self, x, t, context):
            return self.net(x, t, context, return_dict=False)[0]
    class Decode(torch.nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net
        def forward(self, z):
            return self.net.decode(z, return_dict=False)[0]
    arrays = np.load(given)
    x, context, z = (torch.from_numpy(arrays[k]) for k in ("x", "context", "z"))
    unet = UNet2DConditionModel.from_pretrained(f"{folder}/unet", torch_dtype=torch.float32)
    vae = AutoencoderKL.from_pretrained(f"{folder}/vae", torch_dtype=torch.float32)
    half = made.with_name(f"{made.name}-half")
    half.mkdir(exist_ok=True)
    example = {"x": x, "t": torch.tensor(500.0), "context": context}
    shapes = [("x", list(x.shape)), ("t", []), ("context", list(context.shape))]
    ov.save_model(ov.convert_model(Step(unet).eval(), example_input=example, input=shapes), half / "unet.xml")
    ov.save_model(ov.convert_model(Decode(vae).eval(), example_input=z, input=list(z.shape)), half / "vae.xml")
    half.rename(made)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # conversion's memory is not the engine's
settings = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": os.environ["THREADS"],
            "PERFORMANCE_HINT": "LATENCY"}
unet = core.compile_model(made / "unet.xml", "CPU", settings)
arrays = np.load(given)
x, context, z = (arrays[k] for k in ("x", "context", "z"))
request = unet.create_infer_request()
def step():
    return request.infer({0: x, 1: np.float32(500.0), 2: context})[0]
def latents(path):
    np.save(path, step())
    return 0.0
step()
first = time.time() - begun
vae = core.compile_model(made / "vae.xml", "CPU", settings).create_infer_request()
serve({"step": step, "latents": latents, "decode": lambda: vae.infer({0: z / 0.18215})}, first=first)
"""
SDCPP = """\
from stable_diffusion_cpp import StableDiffusion
told = {}
sd = StableDiffusion(model_path=folder + ".safetensors", n_threads=int(os.environ["THREADS"]), verbose=False)
def report(step, steps, seconds, *more):
    told.update(step=seconds, at=time.perf_counter())
def step(_):
    sd.generate_image(prompt=PROMPT, negative_prompt="dog", width=512, height=512, sample_steps=1, cfg_scale=7.5,
                      seed=1, progress_callback=report)
    told["decode"] = time.perf_counter() - told["at"]
    return told["step"]
serve({"step": step, "decode": lambda _: told["decode"]}, first=None)
"""
ENGINES = {  # name: environment ("" is this one), kind, program
    "Kotoe": ("", "bfloat16", TORCH + KOTOE),
    "Kotoe, float32": ("", "float32", TORCH + KOTOE),
    "diffusers, as it comes (float32)": ("", "float32", TORCH + DIFFUSERS),
    "diffusers, bf16": ("", "bfloat16", TORCH + DIFFUSERS),
    "diffusers, bf16, channels_last, allocator": ("", "tuned", TORCH + DIFFUSERS),
    "diffusers, bf16, compiled": ("", "compiled", TORCH + DIFFUSERS),
    "OpenVINO, bf16, static": ("openvino", "bf16", OPENVINO),
    "stable-diffusion.cpp": ("sdcpp", "", SDCPP),
}


DEFAULT = [
    name for name in ENGINES if not name.endswith((", float32", ", compiled", "fusers, bf16"))
]  # 24 GiB hold them


def made(family: str, folder: Path) -> Path:
    """The folder of a full-size bundle of torch's initial weights, and a single file of it beside it."""
    place = folder / family.replace(" ", "-")
    file = folder / f"{place.name}.safetensors"
    if file.exists():
        return place
    tokenizer = train_clip_bpe(["a cat on a blue background"] * 2, folder / f"words {family}", 516)
    text = TextSpec(**TEXTS[family], bos=tokenizer.bos, eos=tokenizer.eos, pad=tokenizer.pad)
    with initialising(0):
        parts = (UNet(UNETS[family]), VAE(VAESpec()), CLIPText(text))
    bundle = Bundle(
        name=family,
        unet=parts[0].half(),
        vae=parts[1].half(),
        schedule=ScheduleSpec(),
        conditioners={"en": Conditioner("en", tokenizer, parts[2].half())},
        default_language="en",
        family="sd2" if UNETS[family].use_linear_projection else "sd1",
    )
    save(bundle, place)
    save(bundle, file, to="compvis")
    return place


class Engine:
    """A process that waits for what to time next."""

    def __init__(self, name: str, folder: Path, given: Path, work: Path, threads: int) -> None:
        environment, kind, program = ENGINES[name]
        python = Path(sys.executable) if not environment else work / environment / "bin" / "python"
        prompt = f"PROMPT = {PROMPT!r}\n"
        script = work / f"{''.join(c for c in name if c.isalnum())}.py"
        script.write_text(COMMON + prompt + program)
        variables = {**os.environ, "HF_HUB_OFFLINE": "1", "THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [str(python), "-W", "ignore", str(script), str(folder), str(given), kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(work / f"{script.stem}.log").open("w"),
            text=True,
            env={**variables, "BEGUN": repr(time.time())},
        )
        self.name = name
        self.said = self._read()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(("{", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9")):
                return json.loads(line)
        sys.exit(f"{self.name} ended with {self.process.wait()}; see its log in the working folder")

    def ask(self, line: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._read()


def environment(name: str, work: Path, constraints: Path) -> None:
    """The environment of a peer, made once."""
    place = work / name
    if not (place / "made").exists():
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        pip = [str(place / "bin" / "pip"), "install", "-q", "-c", str(constraints), *ENVIRONMENTS[name]]
        subprocess.run(pip if name == "sdcpp" else [*pip, "torch"], check=True)
        (place / "made").touch()


def rates(threads: int, dtype: torch.dtype) -> dict[str, float]:
    """TFLOP/s that this machine's own products and convolutions reach in torch, at sizes of the UNet: the medians."""
    torch.set_num_threads(threads)
    found: dict[str, list[float]] = {"products": [], "convolutions": []}

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator(1)).to(dtype)

    with torch.inference_mode():
        for m, k, n in ((8192, 320, 320), (8192, 1280, 320), (2048, 640, 5120), (2048, 2560, 640), (512, 1280, 10240)):
            x, w = noise(m, k), noise(n, k)
            found["products"].append(2 * m * k * n / best(lambda x=x, w=w: torch.nn.functional.linear(x, w)) / TERA)
        for c, edge in ((320, 64), (640, 32), (1280, 16)):
            maps = noise(2, c, edge, edge).contiguous(memory_format=torch.channels_last)
            w = noise(c, c, 3, 3).contiguous(memory_format=torch.channels_last)
            count = 2 * 2 * edge * edge * c * c * 9
            took = best(lambda x=maps, w=w: torch.nn.functional.conv2d(x, w, padding=1))
            found["convolutions"].append(count / took / TERA)
    return {name: statistics.median(each) for name, each in found.items()}


def best(f: Any, n: int = 5) -> float:
    f()
    times = []
    for _ in range(n):
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def counted(family: str) -> dict[str, float]:
    """TFLOP of a guided step and of a decoding, by torch's counter, on no data."""
    from torch.utils.flop_counter import FlopCounterMode

    spec = UNETS[family]
    with torch.device("meta"):
        unet, vae = UNet(spec), VAE(VAESpec())
        x, t = torch.empty(2, 4, LATENT, LATENT), torch.empty(2)
        context = torch.empty(2, 77, spec.cross_attention_dim)
        with FlopCounterMode(display=False) as step:
            unet(x, t, context)
        with FlopCounterMode(display=False) as decoding:
            vae.decode(x[:1])
    return {"step": step.get_total_flops() / TERA, "decode": decoding.get_total_flops() / TERA}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--family", default="SD 1.5", choices=list(UNETS))
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--threads", type=int, default=os.cpu_count())
    options.add_argument("--only", nargs="+", default=DEFAULT, help="engines whose names begin so")
    options.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "kotoe-peers")
    options.add_argument("--card", type=Path)
    given = options.parse_args()
    names = [
        name
        for name in ENGINES
        if name in given.only or any(name.startswith(s) for s in given.only if s not in ENGINES)
    ]
    given.work.mkdir(parents=True, exist_ok=True)
    constraints = Path(__file__).resolve().parent.parent / "constraints.txt"
    for each in {ENGINES[name][0] for name in names} - {""}:
        environment(each, given.work, constraints)
    folder = made(given.family, given.work)
    draws = generator(1)
    arrays = {
        "x": torch.randn(2, 4, LATENT, LATENT, generator=draws).numpy(),
        "context": torch.randn(2, 77, UNETS[given.family].cross_attention_dim, generator=draws).numpy(),
        "z": torch.randn(1, 4, LATENT, LATENT, generator=draws).numpy() * np.float32(0.9),
    }
    inputs = given.work / f"{folder.name}.npz"
    np.savez(inputs, **arrays)  # type: ignore[arg-type]
    load = f"{os.getloadavg()[0]:.1f}"
    machine = rates(given.threads, torch.bfloat16)
    if any(name.startswith("OpenVINO") for name in names):  # converting takes more memory than all that comes later
        Engine("OpenVINO, bf16, static", folder, inputs, given.work, given.threads).ask("quit")
    engines = []
    for name in names:
        engines.append(Engine(name, folder, inputs, given.work, given.threads))
        print(f"{name}: {engines[-1].said}", file=sys.stderr, flush=True)
    times: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for k in range(given.rounds):
        for call in ("step", "decode", "text"):
            for engine in engines:
                if call != "text" or ENGINES[engine.name][0] == "":
                    asked = f"{call} _" if ENGINES[engine.name][0] == "sdcpp" else call
                    times[engine.name].setdefault(call, []).append(engine.ask(asked))
        print(f"round {k + 1}: { ({n: t['step'][-1] for n, t in times.items()}) }", file=sys.stderr, flush=True)
    answers: dict[str, np.ndarray] = {}
    for engine in engines:
        if ENGINES[engine.name][0] != "sdcpp":
            path = given.work / "answer.npy"
            engine.ask(f"latents {path}")
            answers[engine.name] = np.load(path)
    exact = next((a for n, a in answers.items() if "float32" in n), None)
    result: dict[str, Any] = {
        "family": given.family, "rounds": given.rounds, "threads": given.threads, "load": load, "rates": machine,
        "counted": counted(given.family), "engines": {},
    }  # fmt: skip
    for engine in engines:
        error = None
        if exact is not None and engine.name in answers:
            error = float(np.linalg.norm(answers[engine.name] - exact) / np.linalg.norm(exact))
        result["engines"][engine.name] = {
            **{f"{k}_s": sorted(v) for k, v in times[engine.name].items()},
            "first_s": engine.said["first"],
            "peak_bytes": engine.ask("quit")["peak"],
            "error": error,
        }
    text = card(result)
    if given.card is not None:
        given.card.write_text(text)
    print(text, file=sys.stderr)
    print(json.dumps(result))


def card(result: dict[str, Any]) -> str:
    rate = min(result["rates"].values())
    ours = statistics.median(result["engines"]["Kotoe"]["step_s"])

    def told(value: float | None, form: str = ".2f") -> str:
        return "" if value is None else format(value, form)

    rows = []
    for name, found in result["engines"].items():
        step = statistics.median(found["step_s"])
        spread = f"{found['step_s'][0]:.2f} to {found['step_s'][-1]:.2f}"
        decode, text = (statistics.median(found[k]) if k in found else None for k in ("decode_s", "text_s"))
        speed = result["counted"]["step"] / step
        cells = [name, f"{step:.2f}", spread, f"**{step / ours:.2f}**", f"{speed:.2f}", told(decode), told(text, ".3f")]
        cells += [told(found["first_s"], ".1f"), f"{found['peak_bytes'] / 1e9:.1f}", told(found["error"], ".4f")]
        rows.append(f"| {' | '.join(cells)} |")
    versions = ", ".join(f"{p} {version(p)}" for p in ("torch", "diffusers", "transformers"))
    counts, reached = result["counted"], {name: f"{value:.2f}" for name, value in result["rates"].items()}
    share, family, rounds = 100 * counts["step"] / ours / rate, result["family"], result["rounds"]
    return f"""# {family} on a processor, beside its peers

`python benchmarks/peers.py --family "{family}" --rounds {rounds}`, {time.strftime("%Y-%m-%d", time.gmtime())}.
Random weights, 512 x 512 pixels, {result["threads"]} threads; medians of {rounds} rounds, the engines taking turns.
{processor()}; load at the start {result["load"]}; {versions}; kotoe {version("kotoe")}.

| | guided step, s | spread | of Kotoe's | TFLOP/s | decode, s | text, s | first step after, s | peak, GB | error |
|---|---|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}

A guided step is {counts["step"]:.3f} TFLOP, a decoding {counts["decode"]:.3f}, as the plain networks compute them
(TFLOP/s count so for all). This machine's own products reach {reached["products"]} TFLOP/s in bfloat16 and its
convolutions {reached["convolutions"]} (medians over sizes of the UNet): **Kotoe's step runs at {share:.0f} %** of the
lower of the two.
Error: of the UNet's answer to one input, relative to float32's, in the Euclidean norm. First step after: from the
process's beginning, everything imported and loaded, files in the cache. Peak: the largest resident set.
"""


if __name__ == "__main__":
    main()

"""Loading Stable Diffusion 1.5 and 2.1 at full size, random weights: time and memory, beside diffusers and a bare read.

    python benchmarks/full_size.py [--rounds 5] [--card benchmarks/full_size.md]

The folders are written first (float16, as most are published). Then, taking turns, each in a process of its own: read
every weight file once from end to end; load it with Kotoe and touch every page of every tensor; the same with
diffusers. Time is that of loading and touching, on the clock, without imports; memory is the process's largest
resident set, less what it had before loading (both include pages of the files that are mapped). The first round only
warms the file cache and is not counted. Needs 9 GB of disk and Kotoe's `test` extra. The last line of standard output
is one JSON document.
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

import torch
from cold_start import processor

import kotoe
from kotoe.checkpoints import Bundle, save
from kotoe.checkpoints.files import fill, shapes_of, skeleton
from kotoe.localize.vocabulary import train_clip_bpe
from kotoe.spec import ScheduleSpec, TextSpec, UNetSpec, VAESpec
from kotoe.text import CLIPText, Conditioner
from kotoe.unet import UNet
from kotoe.vae import VAE

UNETS = {
    "SD 1.5": UNetSpec(),
    "SD 2.1": UNetSpec(num_heads=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True, sample_size=96),
}
TEXTS = {
    "SD 1.5": {},
    "SD 2.1": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_layers": 23,
        "num_heads": 16,
        "hidden_act": "gelu",
    },
}
DTYPES = ("float16", "float32", "bfloat16")
CHILD = """\
import resource, sys, time
who, folder, dtype = sys.argv[1:]
import torch
from pathlib import Path
def touch(modules):
    for module in modules:
        for p in (*module.parameters(), *module.buffers()):
            p.detach().contiguous(memory_format=torch.preserve_format).flatten()[:: 4096 // p.element_size()].sum()
def peak():  # Linux's ru_maxrss begins with the parent's
    status = Path("/proc/self/status")
    if status.is_file():
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if who == "kotoe":
    from kotoe import load
elif who == "diffusers":
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel
before = peak()
start = time.perf_counter()
if who == "read":
    for file in Path(folder).rglob("*.safetensors"):
        with file.open("rb", buffering=0) as f:
            while f.read(1 << 23):
                pass
elif who == "kotoe":
    bundle = load(folder, dtype=dtype)
    touch([bundle.unet, bundle.vae, bundle.conditioner().encoder])
else:
    kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    touch([kind.from_pretrained(f"{folder}/{part}", torch_dtype=getattr(torch, dtype)) for part, kind in kinds.items()])
print(time.perf_counter() - start, peak() - before)
"""


def made(family: str, folder: Path) -> tuple[Path, int]:
    """The folder of a full-size random bundle, and its parameters."""
    words = folder / f"words {family}"
    tokenizer = train_clip_bpe(["a cat on a blue background"] * 2, words, 516)
    ids = {"bos": tokenizer.bos, "eos": tokenizer.eos, "pad": tokenizer.pad}
    text = TextSpec(**TEXTS[family], **ids)
    noise = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).mul_(0.02).half()

    def filled(module: torch.nn.Module) -> torch.nn.Module:
        tensors = {}
        for name, shape in shapes_of(module).items():
            count = torch.Size(shape).numel()
            tensors[name] = noise.repeat(-(-count // len(noise)))[:count].view(shape).clone()
        return fill(module, tensors)

    unet, vae, encoder = (
        filled(skeleton(make)) for make in (lambda: UNet(UNETS[family]), lambda: VAE(VAESpec()), lambda: CLIPText(text))
    )
    bundle = Bundle(
        name=family,
        unet=unet,
        vae=vae,
        schedule=ScheduleSpec(),
        conditioners={"en": Conditioner("en", tokenizer, encoder)},
        default_language="en",
        family="sd2" if UNETS[family].use_linear_projection else "sd1",
    )
    count = sum(p.numel() for part in (unet, vae, encoder) for p in part.parameters())
    return save(bundle, folder / family.replace(" ", "-")), count


def measured(who: str, folder: Path, dtype: str) -> tuple[float, float]:
    """Seconds and bytes of a child."""
    command = [sys.executable, "-W", "ignore", "-c", CHILD, who, str(folder), dtype]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode:
        sys.exit(f"{who} {dtype} ended with {done.returncode}:\n{done.stderr}")
    seconds, memory = done.stdout.split()[-2:]
    return float(seconds), float(memory)


def card(rows: list[dict], rounds: int, load: str) -> str:
    lines = "\n".join(
        f"| {r['family']} | {r['dtype']} | {r['gigabytes']:.2f} | {r['read']:.2f} | {r['kotoe']:.2f} | "
        f"**{r['kotoe'] / r['read']:.2f}** | {r['diffusers']:.2f} | {r['kotoe_memory']:.2f} | "
        f"{r['diffusers_memory']:.2f} |"
        for r in rows
    )
    versions = ", ".join(f"{p} {version(p)}" for p in ("torch", "diffusers", "transformers", "safetensors"))
    return f"""# Loading at full size

`python benchmarks/full_size.py --rounds {rounds}`, {time.strftime("%Y-%m-%d", time.gmtime())}. Random weights, files in
float16, the file cache warm; load of the machine at the start: {load}.

Medians of {rounds} processes each, taking turns. Seconds are for loading and touching every page. Memory is the growth
of the largest resident set over the weights' size in the chosen dtype, mapped pages of the files included.

| | dtype | weights, GB | read once, s | Kotoe, s | Kotoe / read | diffusers, s | Kotoe memory | diffusers memory |
|---|---|---|---|---|---|---|---|---|
{lines}

{processor()}, {os.cpu_count()} cores; kotoe {kotoe.__version__}, {versions}.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds")
    parser.add_argument("--card", help="write the card to this file")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds: 1 or more")
    load = f"{os.getloadavg()[0]:.1f}"
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for family in UNETS:
            folder, parameters = made(family, Path(place))
            for dtype in DTYPES:
                size = parameters * torch.empty(0, dtype=getattr(torch, dtype)).element_size()
                seen: dict[str, list[float]] = {}
                for turn in range(options.rounds + 1):
                    for who in ("read", "kotoe", "diffusers"):
                        seconds, memory = measured(who, folder, dtype)
                        if turn:
                            seen.setdefault(who, []).append(seconds)
                            seen.setdefault(f"{who}_memory", []).append(memory / size)
                row = {"family": family, "dtype": dtype, "gigabytes": size / 1e9}
                rows.append({**row, **{name: statistics.median(values) for name, values in seen.items()}})
                sys.stderr.write(f"{rows[-1]}\n")
    text = card(rows, options.rounds, load)
    if options.card:
        Path(options.card).write_text(text, "utf-8")
    sys.stderr.write(text)
    print(json.dumps({"rows": rows, "rounds": options.rounds, "load": load}, ensure_ascii=False))


if __name__ == "__main__":
    main()

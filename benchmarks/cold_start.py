"""From a cold start to a picture on disk: `kotoe generate` against a minimal diffusers script, the same folder.

    python benchmarks/cold_start.py [--model FOLDER] [--rounds 5] [--card benchmarks/cold_start.md]

Both are whole processes, timed on the clock from before they start until they have ended, taking turns; the first round
only warms the file cache and is not counted. Same steps, guidance, size and prompt (English, which is what the folder's
own text encoder reads); each program as it comes: Kotoe in its default dtype, diffusers in its own. The Japanese prompt
of the README is timed beside them. Needs Kotoe's `test` extra. The last line of standard output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import kotoe
from kotoe import builtin
from kotoe.bench import processor

PROMPTS = {"kotoe, en": "a cat on a blue background", "kotoe, ja": "青い背景に猫"}
SEED = 7
DIFFUSERS = """\
import sys, torch
from diffusers import StableDiffusionPipeline
folder, prompt, steps, guidance, width, height, out = sys.argv[1:]
pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)  # the folder is fp16, a CPU is not
image = pipe(
    prompt, num_inference_steps=int(steps), guidance_scale=float(guidance), width=int(width), height=int(height),
    generator=torch.Generator().manual_seed(7),
).images[0]
image.save(out)
"""


def seconds(command: list[str]) -> tuple[float, str]:
    """Time on the clock of a process, and what it printed."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    took = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{shlex.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return took, done.stdout


def card(result: dict, model: str, rounds: int) -> str:
    rows = "\n".join(
        f"| {name} | {t['median']:.2f} | {t['min']:.2f} | {t['max']:.2f} |" for name, t in result["seconds"].items()
    )
    return f"""# Cold start to picture

`python benchmarks/cold_start.py --rounds {rounds}`, {time.strftime("%Y-%m-%d", time.gmtime())}. Model: {model},
{result["size"]} pixels, {result["steps"]} steps, guidance {result["guidance_scale"]:g}, seed {SEED}.

Whole processes on the clock, taking turns, after one round that isn't counted. Kotoe draws in {result["dtype"]}, its
default on this machine; diffusers in float32, its default. Load of the machine at the start: {result["load"]}.

| | median s | min s | max s |
|---|---|---|---|
{rows}

**Kotoe takes {result["ratio"]:.2f} of diffusers' time** (medians, the same English prompt).

{result["processor"]}, {result["cores"]} cores; {result["versions"]}.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=builtin.DEFAULT, help="a built-in model's name or a folder")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds")
    parser.add_argument("--card", help="write the card to this file")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds: 1 or more")
    folder = builtin.resolve(options.model)
    load = f"{os.getloadavg()[0]:.1f}"
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as out:
        ours = [sys.executable, "-m", "kotoe", "generate", "--json", "--seed", str(SEED), "--out", out]
        ours += ["--model", str(options.model)]
        for turn in range(options.rounds + 1):
            now = {}
            for name, prompt in PROMPTS.items():
                now[name], printed = seconds([*ours, prompt])
                record = json.loads(printed.splitlines()[-1])["pictures"][0]["record"]
            asked = [str(record[key]) for key in ("steps", "guidance_scale", "width", "height")]
            script = [sys.executable, "-c", DIFFUSERS, str(folder), PROMPTS["kotoe, en"], *asked]
            now["diffusers, en"], _ = seconds([*script, f"{out}/diffusers.png"])
            sys.stderr.write(f"round {turn}: {', '.join(f'{k} {v:.2f} s' for k, v in now.items())}\n")
            if turn:
                for name, value in now.items():
                    times.setdefault(name, []).append(value)
    result = {
        "seconds": {
            k: {"median": statistics.median(v), "min": min(v), "max": max(v), "n": len(v)} for k, v in times.items()
        },
        "ratio": statistics.median(times["kotoe, en"]) / statistics.median(times["diffusers, en"]),
        "steps": record["steps"],
        "guidance_scale": record["guidance_scale"],
        "size": f"{record['width']} × {record['height']}",
        "dtype": record["dtype"],
        "load": load,
        "processor": processor(),
        "cores": os.cpu_count(),
        "versions": ", ".join(
            [f"kotoe {kotoe.__version__}", *(f"{p} {version(p)}" for p in ("torch", "diffusers", "transformers"))]
        ),
    }
    text = card(result, Path(options.model).name, options.rounds)
    if options.card:
        Path(options.card).write_text(text, "utf-8")
    sys.stderr.write(text)
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()

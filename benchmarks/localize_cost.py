"""What a step of each plan of `kotoe localize` costs: at Stable Diffusion 1.5's size, and whether forecasts hold.

    python benchmarks/localize_cost.py [--card benchmarks/localize_cost.md] [--steps 4] [--pixels 512]

Each plan is run by `kotoe.localize` in a process of its own: random weights of Stable Diffusion 1.5's size, float32,
AdamW, no average of the weights. Plans that learn from texts read 8 pairs a step, those that learn from pictures one
picture of --pixels with --checkpointing. A step's time is the median after the first; memory is the process's largest
resident set, model and optimizer included. Then kotoe-emoji's size: a forecast of ten steps for every text-only plan
(that is `kotoe localize --dry-run`) and, right after it, as many steps as it takes to compare. Needs 20 GB of memory.
The last line of standard output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from cold_start import processor
from full_size import made

import kotoe

TEXTS, PICTURES = (
    ("distil-behind", "distil-reader", "distil-states", "distil-pooled"),
    ("stage1", "kv", "unet", "stage2"),
)
ROWS = {**dict.fromkeys(TEXTS, 8), **dict.fromkeys(PICTURES, 1)}
COMPARED = 40  # steps that a forecast is held against
CHILD = """\
import json, resource, sys, tempfile, torch
from kotoe import load
from kotoe.data.pairs import pairs
from kotoe.localize import plans
from kotoe.localize.localize import forecast, localize
from kotoe.localize.losses import Queries
from kotoe.localize.plans import Captions, Texts
from kotoe.localize.settings import PLANS, Localizing
from kotoe.runs import Following
what, folder, plan, steps, rows, pixels = sys.argv[1:]
source, target = zip(*pairs("fi", 2000))
bundle = load(folder, dtype="float32")
bundle = bundle.changed(conditioners={"en": bundle.conditioner()})
edge = int(pixels) // 8
captions = Captions(texts=target[:16], latents=torch.randn(16, bundle.vae.spec.latent_channels, edge, edge).half())
way = PLANS[plan]
if what == "size":  # recording them is 512 passes through the UNet; a step costs the same whatever they ask
    def questions(bundle, pairs, *, seed, per_layer=plans.QUERIES):
        layers = bundle.unet.cross_attentions()
        widths = [(layer, layer.to_q.out_features) for layer in layers]
        return Queries(tuple(layer.split(torch.randn(1, per_layer, width))[0] for layer, width in widths))
    plans.questions = questions
given = {"student": folder} if way.starts[0] == "given" else {}
with tempfile.TemporaryDirectory() as place:
    asked = Localizing(base=folder, language="en" if given else "fi", run=place + "/run", plan=plan, pairs=("fi.tsv",),
        steps=int(steps), batch_size=int(rows), long_prompt="cut", log_every=1, checkpointing=way.reads == "captions",
        ema=0.0, **given)
    given = {"pairs": None, "captions": captions} if way.reads == "captions" else {
        "pairs": Texts(source=source, target=target), "captions": None}
    cost = None if what == "size" else forecast(bundle, asked, **given)
    found = localize(bundle, asked, progress=False, **given)
    seconds = [row["seconds"] for row in Following(asked.run).metrics()]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"seconds": seconds, "peak": peak, "forecast": cost, "trained": found.report["trained"]}))
"""


def child(*arguments: object) -> dict | None:
    command = [sys.executable, "-W", "ignore", "-c", CHILD, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode == -signal.SIGKILL:
        return None  # for want of memory
    if done.returncode:
        sys.exit(f"{' '.join(map(str, arguments))} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def at_size(folder: Path, steps: int, pixels: int) -> list[dict]:
    rows = []
    for plan in (*TEXTS, *PICTURES):
        found = child("size", folder, plan, steps, ROWS[plan], pixels)
        rows.append({"plan": plan, "rows": ROWS[plan]})
        if found is not None:
            each = [b - a for a, b in zip(found["seconds"], found["seconds"][1:])]
            rows[-1] |= {"step_s": statistics.median(each), "gib": found["peak"] / 2**30}
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def forecasts() -> list[dict]:
    rows = []
    for plan in TEXTS:
        found = child("forecast", "kotoe-emoji", plan, COMPARED, 32, 128)
        assert found is not None
        rows.append({"plan": plan, "forecast_s": found["forecast"]["seconds"], "measured_s": found["seconds"][-1]})
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def card(document: dict) -> str:
    sized = "\n".join(
        f"| `{r['plan']}` | {r['rows']} {'pairs' if r['plan'] in TEXTS else 'picture'} | "
        + (
            f"{r['step_s']:.2f} | {r['step_s'] / r['rows']:.2f} | {r['gib']:.1f} |"
            if "gib" in r
            else "| | more than there is |"
        )
        for r in document["size"]
    )
    held = "\n".join(
        f"| `{r['plan']}` | {r['forecast_s']:.1f} | {r['measured_s']:.1f} | {r['forecast_s'] / r['measured_s']:.2f} |"
        for r in document["forecasts"]
    )
    return f"""# What a step of each plan costs

`{document["command"]}`, {document["date"]}. {document["machine"]}, {document["threads"]} threads; kotoe
{kotoe.__version__}, torch {torch.__version__}. {document["load"]}

## Stable Diffusion 1.5's size

Random weights, float32, AdamW; pictures of {document["pixels"]} x {document["pixels"]} with `--checkpointing`, their
latents cached. Memory is all of the process's: model, gradients, optimizer. `distil-reader` records the UNet's
questions first, 512 passes through it, which are not in here.

| plan | rows a step | s a step | s a row | peak GiB |
|---|---|---|---|---|
{sized}

## Forecasts

kotoe-emoji, 32 pairs a step: what `--dry-run` says of {COMPARED} steps after ten, and what they then took.

| plan | forecast s | measured s | forecast / measured |
|---|---|---|---|
{held}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", type=Path)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--pixels", type=int, default=512)
    asked = parser.parse_args()
    busy = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        place, _ = made("SD 1.5", Path(folder))
        size = at_size(place, asked.steps, asked.pixels)
    document = {
        "command": f"python benchmarks/localize_cost.py --steps {asked.steps} --pixels {asked.pixels}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": f"{processor()} ({platform.system()})",
        "threads": torch.get_num_threads(),
        "load": f"Load of the machine before: {busy:.1f}.",
        "pixels": asked.pixels,
        "size": size,
        "forecasts": forecasts(),
    }
    if asked.card:
        asked.card.write_text(card(document), encoding="utf-8")
    print(json.dumps(document))


if __name__ == "__main__":
    main()

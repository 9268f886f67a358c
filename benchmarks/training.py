"""Training the UNet alone: `kotoe localize --plan unet` beside diffusers' train_text_to_image.py, the same pictures.

    python benchmarks/training.py --script train_text_to_image.py --python PYTHON [--card benchmarks/training.md]

--script is examples/text_to_image/train_text_to_image.py of huggingface/diffusers, which its package doesn't have; it
is run as it is. --python runs it: one that has diffusers, transformers, accelerate, datasets, tensorboard and
torchvision. A torchvision whose compiled part doesn't load beside this torch is good enough: two names it would have
declared (nms, qnms) are declared in its place, and the script uses neither.

A model of Stable Diffusion 1.5's layout with every width a quarter (channels, heads, groups of a norm, states; random
weights, float32) and 32 synthetic captioned pictures of 256 pixels are made first. Both train the UNet alone on them as
svjack did (recipes/seed_svjack.py): AdamW at a constant 1e-5, weight decay 0.01, gradients clipped at 1, the unweighted
loss, samples of the autoencoder's posterior, no average, nothing emptied. Each run is a process of its own, taking
turns. A step is from the end of one optimizer step to the end of the next. Not counted are a run's first steps: the
first pass over the pictures of Kotoe's, in which texts are read for the first time, and two of the script's.

Then the same of Kotoe without each of the things that make it faster. The last line of standard output is one JSON
document.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
from cold_start import processor
from PIL import Image, ImageDraw

import kotoe
from kotoe.checkpoints import Bundle, save
from kotoe.localize.vocabulary import train_clip_bpe
from kotoe.rng import initialising
from kotoe.spec import ScheduleSpec, TextSpec, UNetSpec, VAESpec
from kotoe.text import CLIPText, Conditioner
from kotoe.unet import UNet
from kotoe.vae import VAE

PIXELS, PICTURES = 256, 32
PUBLISHED_STEPS, PUBLISHED_BATCH = 10_000, 16  # svjack's
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "black", "white")
SHAPES = ("circle", "square", "ring", "cross")

# Runs the script as it is, and notes when each optimizer step has ended.
SCRIPT = """\
import json, runpy, sys, time
from importlib.util import find_spec
from pathlib import Path
import torch
out, script = sys.argv[1:3]
place = find_spec("torchvision").submodule_search_locations[0]
try:
    torch.ops.load_library(next(Path(place).glob("_C*.so")))
except (OSError, StopIteration):
    names = torch.library.Library("torchvision", "DEF")
    names.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    names.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
ends, step = [], torch.optim.AdamW.step
def timed(*args, **kwargs):
    done = step(*args, **kwargs)
    ends.append(time.perf_counter())
    return done
torch.optim.AdamW.step = timed
sys.argv = [script, *sys.argv[3:]]
runpy.run_path(script, run_name="__main__")
Path(out).write_text(json.dumps({"ends": ends}))
"""

# Runs `kotoe`, as it is or without something, and notes how long the pictures take to encode.
KOTOE = """\
import json, sys, time
from dataclasses import replace
from pathlib import Path
import torch
from kotoe import cli
from kotoe.data.shards import moments, opened
from kotoe.localize import pictures, plans
out, without = sys.argv[1], sys.argv[2].split(",")
encode, took = pictures.encode, []
def timed(*args, **kwargs):
    began = time.perf_counter()
    found = encode(*args, **kwargs)
    took.append(time.perf_counter() - began)
    return found
pictures.encode = timed
class Anew:
    def __init__(self, asked):
        self.source, self.vae = asked.source, asked.bundle.vae
        self.how = pictures.preparing(asked.bundle, asked.wanted)
    def __getitem__(self, rows):
        pixels = torch.cat([next(opened(self.source, self.how, first=i)).pixels for i in rows])
        mean, self.last = moments(self.vae, pixels, True).unbind(1)
        return mean
class Spread:
    def __init__(self, latents):
        self.latents = latents
    def __getitem__(self, rows):
        return self.latents.last
if "latents" in without:
    encoded = pictures.Pictures.encoded
    def anew(self, run):
        latents = Anew(self)
        return replace(encoded(self, run), latents=latents, spread=Spread(latents))
    pictures.Pictures.encoded = anew
if "texts" in without:
    plans.Kept = lambda *_: None
if "fused" in without:
    AdamW = torch.optim.AdamW
    torch.optim.AdamW = lambda parameters, fused, **rest: AdamW(parameters, **rest)
code = cli.main(sys.argv[3:])
Path(out).write_text(json.dumps({"encode_s": took[0]}))
sys.exit(code)
"""

# What Kotoe can do without: name, words for it, and how far the numbers are the same with it and without.
GAINS = {
    "latents": (
        "latents encoded once, not at every step",
        "the same distribution: a new sample of the posterior at each look, its mean and spread rounded to float16",
    ),
    "texts": ("a text's states computed once, not at every step", "numerically equal: texts are read one by one"),
    "fused": ("AdamW in one kernel, not tensor by tensor", "numerically equal"),
}
SETTLING = 2  # of the script's first steps, which don't count


def made(folder: Path) -> tuple[Path, str]:
    """A folder of random weights in Stable Diffusion 1.5's layout, every width a quarter, and its millions."""
    captions = [caption(i) for i in range(PICTURES)]
    tokenizer = train_clip_bpe(captions * 2, folder / "words", 560)
    ids = {"bos": tokenizer.bos, "eos": tokenizer.eos, "pad": tokenizer.pad}
    with initialising(0):
        unet = UNet(
            UNetSpec(
                block_out_channels=(80, 160, 320, 320), num_heads=(2, 2, 2, 2), cross_attention_dim=192,
                norm_num_groups=8, sample_size=PIXELS // 8,
            )
        )  # fmt: skip
        vae = VAE(VAESpec(block_out_channels=(32, 64, 128, 128), norm_num_groups=8, sample_size=PIXELS))
        encoder = CLIPText(
            TextSpec(vocab_size=tokenizer.vocab_size, hidden_size=192, intermediate_size=768, num_heads=3, **ids)
        )
    bundle = Bundle(
        name="a quarter of SD 1.5",
        unet=unet,
        vae=vae,
        schedule=ScheduleSpec(),
        conditioners={"en": Conditioner("en", tokenizer, encoder)},
        default_language="en",
        family="sd1",
    )
    millions = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (unet, vae, encoder)]
    return save(bundle, folder / "model"), " + ".join(f"{n:.1f}" for n in millions)


def caption(i: int) -> str:
    draw = random.Random(i)
    shape, colour, ground = draw.choice(SHAPES), *draw.sample(COLOURS, 2)
    return f"picture number {i}: a {colour} {shape} on a {ground} background"


def drawn(folder: Path) -> Path:
    """A folder of pictures and what they are captioned with."""
    folder.mkdir()
    rows = []
    for i in range(PICTURES):
        *_, colour, shape, _, _, ground, _ = caption(i).split()
        image = Image.new("RGB", (PIXELS, PIXELS), ground)
        box = (40 + i, 60, 160 + i, 180)
        pen = ImageDraw.Draw(image)
        if shape in ("circle", "ring"):
            pen.ellipse(box, fill=colour if shape == "circle" else None, outline=colour, width=20)
        elif shape == "square":
            pen.rectangle(box, fill=colour)
        else:
            pen.line(box, fill=colour, width=20)
            pen.line((box[0], box[3], box[2], box[1]), fill=colour, width=20)
        image.save(folder / f"{i:03}.png")
        rows.append(json.dumps({"file_name": f"{i:03}.png", "text": caption(i)}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n", "utf-8")
    return folder


# --- Runs ----------------------------------------------------------------------------------------------------------


def child(command: list[str], threads: int) -> None:
    alike = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **alike})
    if done.returncode:
        sys.exit(f"{' '.join(command[4:])} ended with {done.returncode}:\n{done.stderr[-3000:]}")


def scripted(asked: argparse.Namespace, model: Path, pictures: Path) -> dict:
    """A run of the script: seconds of its counted steps."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "ends.json"
        options = {
            "pretrained_model_name_or_path": model, "train_data_dir": pictures, "resolution": PIXELS,
            "train_batch_size": asked.batch, "max_train_steps": SETTLING + asked.steps, "learning_rate": 1e-5,
            "lr_scheduler": "constant", "lr_warmup_steps": 0, "adam_weight_decay": 0.01, "max_grad_norm": 1,
            "mixed_precision": "no", "seed": 0, "output_dir": f"{place}/out", "cache_dir": f"{place}/cache",
        }  # fmt: skip
        flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        child(
            [asked.python, "-W", "ignore", "-c", SCRIPT, str(out), asked.script, *flags, "--center_crop"], asked.threads
        )
        ends = json.loads(out.read_text())["ends"]
    return {"steps": [b - a for a, b in zip(ends, ends[1:])][SETTLING - 1 :]}


def ours(asked: argparse.Namespace, model: Path, pictures: Path, without: str = "nothing") -> dict:
    """A run of Kotoe: seconds of encoding, of its first pass over the pictures, and of its counted steps."""
    with tempfile.TemporaryDirectory() as place:
        out, once = Path(place) / "encode.json", PICTURES // asked.batch
        options = {
            "plan": "unet", "student": model, "language": "en", "images": pictures, "run": f"{place}/run",
            "resolution": PIXELS, "crop": "squash", "resample": "bilinear", "latents": "sample", "lr": 1e-5,
            "batch-size": asked.batch, "steps": once + asked.steps, "schedule": "constant", "warmup-steps": 0,
            "weight-decay": 0.01, "beta2": 0.999, "ema": 0, "weighting": "plain", "dropout": 0, "log-every": 1,
        }  # fmt: skip
        flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        command = [sys.executable, "-W", "ignore", "-c", KOTOE, str(out), without, "localize", str(model), *flags]
        child(command, asked.threads)
        lines = (Path(place) / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
        ends = [json.loads(line)["seconds"] for line in lines]
        steps = [b - a for a, b in zip([0.0, *ends], ends)]
        return {"steps": steps[once:], "first_pass_s": ends[once - 1], **json.loads(out.read_text())}


def rate(run: dict, batch: int) -> float:
    """Pictures a second of a run's counted steps."""
    return batch * len(run["steps"]) / sum(run["steps"])


# --- The card ------------------------------------------------------------------------------------------------------


def found(seen: dict[str, list[dict]], asked: argparse.Namespace) -> dict:
    """Figures of all runs."""
    rates = {name: [rate(run, asked.batch) for run in runs] for name, runs in seen.items()}
    middle = {name: statistics.median(values) for name, values in rates.items()}
    encode, first = (statistics.median(run[key] for run in seen["kotoe"]) for key in ("encode_s", "first_pass_s"))
    theirs, own = PICTURES / middle["script"], PICTURES / middle["kotoe"]  # seconds of a pass
    passes = PUBLISHED_STEPS * PUBLISHED_BATCH / PICTURES
    return {
        "rates": rates,
        "ratio": middle["kotoe"] / middle["script"],
        "ratios": [a / b for a, b in zip(rates["kotoe"], rates["script"])],
        "encode_s": encode,
        "first_pass_s": first,
        "with_preparing": {
            "1": theirs / (encode + first),
            **{str(n): n * theirs / (encode + first + (n - 1) * own) for n in (2, 10, 100)},
            f"{passes:.0f}": passes * theirs / (encode + first + (passes - 1) * own),
        },
        "scatter": (max(rates["kotoe"]) - min(rates["kotoe"])) / middle["kotoe"],
        "gains": {name: middle["kotoe"] / middle[f"without {name}"] for name in (*GAINS, "all")},
    }


def card(d: dict) -> str:
    def row(name: str, words: str) -> str:
        values = d["rates"][name]
        return f"| {words} | {statistics.median(values):.2f} | {', '.join(f'{v:.2f}' for v in values)} |"

    mine = [row("script", "diffusers' script"), row("kotoe", "Kotoe")]
    mine += [row(f"without {name}", f"Kotoe without: {words}") for name, (words, _) in GAINS.items()]
    mine += [row("without all", "Kotoe without any of these")]
    rates = "\n".join(mine)
    gains = "\n".join(f"| {words} | {d['gains'][name]:.2f} | {exact} |" for name, (words, exact) in GAINS.items())
    passes = "\n".join(f"| {n} | {ratio:.2f} |" for n, ratio in d["with_preparing"].items())
    return f"""# Training the UNet alone

`python benchmarks/training.py {d["asked"]}`, {d["date"]}.
`kotoe localize --plan unet` beside `examples/text_to_image/train_text_to_image.py` of huggingface/diffusers, run as it
is (sha256 {d["script_sha256"]}).

Stable Diffusion 1.5's layout with every width a quarter, random weights ({d["parameters"]} million parameters: UNet,
autoencoder, text encoder). {PICTURES} synthetic captioned pictures of {PIXELS} pixels, {d["batch"]} a step; float32, on
the processor; threads of each run: {d["threads"]}. AdamW at a constant 1e-5, weight decay 0.01, gradients clipped at 1,
unweighted loss, samples of the posterior, no average. Rounds: {d["rounds"]}, taking turns; counted steps of each run:
{d["steps"]}. {d["note"]}Load of the machine at the start: {d["load"]}.

**Kotoe trains {d["ratio"]:.2f} times as many pictures a second** (medians; by rounds
{", ".join(f"{r:.2f}" for r in d["ratios"])}), once pictures are encoded and texts are read. On the first pass over the
pictures it is {d["with_preparing"]["1"]:.2f} times, encoding included.

| | pictures/s | by rounds |
|---|---|---|
{rates}

## Where it comes from, and how exact it is

Kotoe with all of it over Kotoe without the one thing, one run each. Kotoe's own rounds are {100 * d["scatter"]:.0f} %
apart, so that figures within some such steps of 1.00, on either side, show no gain.

| gain | times | exactness |
|---|---|---|
{gains}

All three together: {d["gains"]["all"]:.2f}. Without any of them Kotoe, by its own networks and loop alone (numerically
equal), trains {d["ratio"] / d["gains"]["all"]:.2f} times as many as the script.

## With preparation

Encoding the {PICTURES} pictures took {d["encode_s"]:.1f} s; the first pass, which reads the texts too,
{d["first_pass_s"]:.1f} s. Both are in here; loading is not, on either side. The last line is svjack's
{PUBLISHED_STEPS:,} steps of {PUBLISHED_BATCH}, on these pictures.

| passes over the pictures | Kotoe / script |
|---|---|
{passes}

{d["machine"]}, {os.cpu_count()} cores; {d["versions"]}.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--script", required=True, help="train_text_to_image.py")
    parser.add_argument("--python", required=True, help="the Python that has what the script imports")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the script and Kotoe")
    parser.add_argument("--steps", type=int, default=4, help="counted steps of a run")
    parser.add_argument("--batch", type=int, default=8, help="pictures a step")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="processor threads of each run")
    parser.add_argument("--note", default="", help="what else the card should say of the circumstances")
    parser.add_argument("--card", help="write the card to this file")
    asked = parser.parse_args()
    if min(asked.rounds, asked.steps, asked.threads) < 1 or asked.batch not in (
        n for n in range(1, PICTURES + 1) if PICTURES % n == 0
    ):
        parser.error(f"--rounds, --steps, --threads: 1 or more; --batch: a divisor of {PICTURES}")
    load = f"{os.getloadavg()[0]:.1f}"
    seen: dict[str, list[dict]] = {}

    def note(name: str, run: dict) -> None:
        seen.setdefault(name, []).append(run)
        print(f"{name}: {rate(run, asked.batch):.3f} pictures/s", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as place:
        (model, parameters), pictures = made(Path(place)), drawn(Path(place) / "pictures")
        for turn in range(asked.rounds):
            note("script", scripted(asked, model, pictures))
            note("kotoe", ours(asked, model, pictures))
            if turn == 0:
                for name in GAINS:
                    note(f"without {name}", ours(asked, model, pictures, name))
                note("without all", ours(asked, model, pictures, ",".join(GAINS)))
    packages = ("torch", "diffusers", "transformers", "accelerate")
    document = {
        **found(seen, asked),
        "asked": f"--script train_text_to_image.py --python PYTHON --rounds {asked.rounds} --steps {asked.steps} "
        f"--batch {asked.batch} --threads {asked.threads}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "script_sha256": hashlib.sha256(Path(asked.script).read_bytes()).hexdigest()[:12],
        "parameters": parameters,
        "batch": asked.batch,
        "rounds": asked.rounds,
        "steps": asked.steps,
        "threads": asked.threads,
        "load": load,
        "note": f"{asked.note} ".lstrip(),
        "machine": processor(),
        "versions": ", ".join([f"kotoe {kotoe.__version__}", *(f"{p} {version(p)}" for p in packages)]),
        "runs": seen,
    }
    text = card(document)
    if asked.card:
        Path(asked.card).write_text(text, "utf-8")
    sys.stderr.write(text)
    print(json.dumps(document, ensure_ascii=False))


if __name__ == "__main__":
    main()

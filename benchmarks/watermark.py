"""The watermark: how much of it is seen, what it outlives, and how often it is found where it isn't.

    python benchmarks/watermark.py [--card benchmarks/watermark.md] [--photographs FOLDER]

Pictures are marked with numbers of their own, changed in each of the ways below, and read: a picture counts where the
mark is found and has its number. Then pictures without a mark are read. Photographs, where a folder has some, are cut
into random pieces. The last line of standard output is one JSON document.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance

import kotoe
from kotoe.errors import UserError
from kotoe.images import open_picture
from kotoe.provenance.watermark import EDGE, FOUND, NUMBERS, detect, embed
from kotoe.rng import generator

OBJECTS = (
    "cat dog panda rabbit fox bear tiger lion cow pig frog monkey chicken penguin bird eagle owl wolf horse unicorn "
    "bee snail butterfly turtle snake octopus crab fish dolphin whale strawberry banana apple pear peach cherry "
    "pineapple tomato carrot bread cheese pizza hamburger cake cookie bicycle rocket car guitar trumpet"
).split()
COLOURS = "white black red orange yellow green blue purple pink brown".split()

Change = Callable[[Image.Image], Image.Image]

# --- Pictures --------------------------------------------------------------------------------------------------------


def drawn(n: int, seed: int) -> Iterator[Image.Image]:
    """kotoe-emoji's pictures with --fast, n of each of 500 prompts."""
    from kotoe.checkpoints.adapters import with_adapters
    from kotoe.checkpoints.fast import fast
    from kotoe.config import Request

    bundle, loras = fast(kotoe.load("kotoe-emoji"), ())
    bundle = with_adapters(bundle, loras, ())
    prompts = [f"a {what} on a {colour} background" for what in OBJECTS for colour in COLOURS]
    request = Request(prompt=prompts, n=n, seed=seed, batch_size=16)
    return (picture.image for picture in kotoe.generate(bundle, request))


def noise(size: int, seed: int, power: float = 1.0) -> Image.Image:
    """Random colours whose amplitudes fall with frequency to a power: 1 as in photographs."""
    values = torch.randn(3, size, size, generator=generator(seed)).numpy()
    frequency = np.fft.fftfreq(size)
    radius = np.hypot(*np.meshgrid(frequency, frequency))
    radius[0, 0] = 1.0
    values = np.fft.ifft2(np.fft.fft2(values) / radius**power).real
    levels = (128 + 50 * values / values.std()).clip(0, 255).astype(np.uint8)
    return Image.fromarray(levels.transpose(1, 2, 0).copy())


def leaves(size: int, seed: int) -> Image.Image:
    """600 discs of all sizes over each other, each of one colour: flat parts and edges as in photographs."""
    g, levels = generator(seed), np.zeros((size, size, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:size, :size]
    for radius, x, y, *colour in torch.rand(600, 6, generator=g).tolist():
        radius = size / 32 / math.sqrt(0.02 + 0.98 * radius)
        disc = (columns - x * size) ** 2 + (rows - y * size) ** 2 < radius**2
        levels[disc] = [int(256 * c) for c in colour]
    return Image.fromarray(levels)


def pieces(folder: Path, n: int, seed: int) -> list[Image.Image]:
    """n random pieces of a folder's photographs, of EDGE pixels or more, as they are or at half their size."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")]
    photographs = [open_picture(path) for path in files]
    found = []
    for which, x, y, part, half in torch.rand(n, 5, generator=generator(seed)).tolist():
        whole = photographs[int(which * len(photographs))]
        edge = int(2 * EDGE + part * (min(whole.size) - 2 * EDGE))
        left, top = int(x * (whole.width - edge)), int(y * (whole.height - edge))
        piece = whole.crop((left, top, left + edge, top + edge))
        found.append(piece.resize((edge // 2, edge // 2), Image.Resampling.LANCZOS) if half < 0.5 else piece)
    return found


# --- Changes ---------------------------------------------------------------------------------------------------------


def coded(format: str, quality: int) -> Change:
    def change(image: Image.Image) -> Image.Image:
        file = BytesIO()
        image.save(file, format, quality=quality)
        return Image.open(BytesIO(file.getvalue())).convert("RGB")

    return change


def scaled(by: float, back: bool = True) -> Change:
    def change(image: Image.Image) -> Image.Image:
        size = (round(image.width * by), round(image.height * by))
        small = image.resize(size, Image.Resampling.BICUBIC)
        return small.resize(image.size, Image.Resampling.BICUBIC) if back else small

    return change


def cropped(share: float) -> Change:
    def change(image: Image.Image) -> Image.Image:
        across, down = round(image.width * share), round(image.height * share)
        return image.crop((across, down, image.width - across, image.height - down))

    return change


CHANGES: dict[str, Change] = {
    "PNG": lambda image: image,
    "JPEG 90": coded("JPEG", 90),
    "JPEG 75": coded("JPEG", 75),
    "JPEG 50": coded("JPEG", 50),
    "JPEG 30": coded("JPEG", 30),
    "WebP 80": coded("WEBP", 80),
    "to 0.75 and back": scaled(0.75),
    "to 0.5 and back": scaled(0.5),
    "to 1.25 and back": scaled(1.25),
    "to 1.25": scaled(1.25, back=False),
    "10 % darker": lambda image: ImageEnhance.Brightness(image).enhance(0.9),
    "10 % brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "1 % of each side cut off": cropped(0.01),
    "2 % of each side cut off": cropped(0.02),
    "5 % of each side cut off": cropped(0.05),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


# --- Measuring -------------------------------------------------------------------------------------------------------


def outlived(pictures: Sequence[Image.Image]) -> dict[str, Any]:
    """PSNR of the marked pictures, and of each change how many are read right, read wrong, and the scores."""
    decibels, refused = [], 0
    right = dict.fromkeys(CHANGES, 0)
    wrong = dict(right)
    scores: dict[str, list[float]] = {name: [] for name in CHANGES}
    for i, image in enumerate(pictures):
        number = (i * 7919 + 13) % NUMBERS
        try:
            marked = embed(image, number)
        except UserError:
            refused += 1
            continue
        error = (np.asarray(marked, dtype=np.float64) - np.asarray(image, dtype=np.float64)) ** 2
        decibels.append(10 * math.log10(255**2 / error.mean()))
        for name, change in CHANGES.items():
            read = detect(change(marked))
            right[name] += read.found and read.number == number
            wrong[name] += read.found and read.number != number
            scores[name].append(read.score if read.number == number else 0.0)
    return {
        "n": len(pictures),
        "refused": refused,
        "psnr": {"mean": float(np.mean(decibels)), "least": min(decibels)},
        "right": right,
        "wrong": wrong,
        "median_score": {name: float(np.median(values)) for name, values in scores.items()},
    }


def alarms(pictures: Sequence[Image.Image]) -> dict[str, Any]:
    """Of pictures without a mark: how many are found to have one, and the best score."""
    reads = [detect(image) for image in pictures]
    return {
        "n": len(reads),
        "found": sum(read.found for read in reads),
        "below_1_percent": sum(read.p_value < 0.01 for read in reads),
        "best_score": max(read.score for read in reads),
        "least_p": min(read.p_value for read in reads),
    }


def milliseconds(size: int, rounds: int = 7) -> dict[str, float]:
    image = leaves(size, 1)
    times: dict[str, list[float]] = {"embed": [], "detect": []}
    for _ in range(rounds):
        began = time.perf_counter()
        marked = embed(image, 7)
        times["embed"].append(time.perf_counter() - began)
        began = time.perf_counter()
        detect(marked)
        times["detect"].append(time.perf_counter() - began)
    return {name: 1e3 * float(np.median(values)) for name, values in times.items()}


# --- The card --------------------------------------------------------------------------------------------------------


def card(result: dict[str, Any], command: str) -> str:
    marked, unmarked = result["marked"], result["unmarked"]
    needed = math.sqrt(2 * math.log(NUMBERS / FOUND))
    lines = [
        "# The watermark",
        "",
        f"`{command}`, {result['date']}.",
        f"{result['machine']}; Python {platform.python_version()}, kotoe {kotoe.__version__}, numpy {np.__version__}, "
        f"Pillow {Image.__version__}.",
        "",
        "Each picture has a number of its own. It counts where the mark is found, which an unmarked picture's bound of",
        f"p below {FOUND} asks for, and has that number. In brackets the median score; {needed:.1f} is needed.",
        "",
        "| | " + " | ".join(marked) + " |",
        "|---|" + "---|" * len(marked),
        "| pictures | " + " | ".join(str(one["n"]) for one in marked.values()) + " |",
        "| refused: can't hold a mark | " + " | ".join(str(one["refused"]) for one in marked.values()) + " |",
        "| PSNR, mean (least), dB | "
        + " | ".join(f"{one['psnr']['mean']:.1f} ({one['psnr']['least']:.1f})" for one in marked.values())
        + " |",
    ]
    for name in CHANGES:
        cells = []
        for one in marked.values():
            n = one["n"] - one["refused"]
            cells.append(f"{100 * one['right'][name] / n:.1f} % ({one['median_score'][name]:.1f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    wrong = sum(sum(one["wrong"].values()) for one in marked.values())
    reads = sum((one["n"] - one["refused"]) * len(CHANGES) for one in marked.values())
    lines += [
        "",
        f"A mark that was found had another number than was put in {wrong} of {reads:,} times.",
        "",
        "## Where there is none",
        "",
        "| pictures without a mark | n | found | p below 0.01 | best score | least p |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in unmarked.items():
        lines.append(
            f"| {name} | {one['n']:,} | {one['found']} | {one['below_1_percent']} | {one['best_score']:.2f} | "
            f"{one['least_p']:.2g} |"
        )
    lines += [
        "",
        "p is a bound (Hoeffding's, times 65,536 numbers), so that it happens more seldom than it says. These pictures",
        "are too few to measure one in a million; that rests on the bound, and they don't contradict it.",
        "",
        "## Time",
        "",
        "| pixels | marking, ms | reading, ms |",
        "|---|---|---|",
        *(f"| {size} x {size} | {t['embed']:.0f} | {t['detect']:.0f} |" for size, t in result["ms"].items()),
        "",
    ]
    return "\n".join(lines)


def machine() -> str:
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = " ".join(models[0].split(": ", 1)[1].split()[:2]) if models else name
    return f"{name}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", help="write the card to this file")
    parser.add_argument("--photographs", help="a folder of photographs")
    options = parser.parse_args()
    emoji = list(drawn(5, seed=100))
    marked = {
        "kotoe-emoji, 128": emoji[:: len(emoji) // 250],
        "kotoe-emoji enlarged to 512": [
            image.resize((512, 512), Image.Resampling.LANCZOS) for image in emoji[7 :: len(emoji) // 50]
        ],
        "discs, 128": [leaves(128, seed) for seed in range(100)],
        "discs, 512": [leaves(512, seed) for seed in range(20)],
        "noise, 128": [noise(128, seed) for seed in range(100)],
        "noise, 512": [noise(512, seed) for seed in range(20)],
    }
    unmarked = {
        "kotoe-emoji, 128": emoji,
        "discs, 128": [leaves(128, 1000 + seed) for seed in range(500)],
        "noise, amplitude as 1 / frequency, 128": [noise(128, 1000 + seed) for seed in range(1000)],
        "noise, white and 1 / frequency squared, 128": [noise(128, s, p) for s in range(250) for p in (0.0, 2.0)],
        "noise, 1 / frequency, 512": [noise(512, 1000 + seed) for seed in range(100)],
    }
    if options.photographs:
        folder = Path(options.photographs)
        there = len(list(folder.iterdir()))
        marked["photographs"] = pieces(folder, 60, seed=1)
        unmarked[f"pieces of {there} photographs"] = pieces(folder, 1000, seed=2)
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "marked": {name: outlived(pictures) for name, pictures in marked.items()},
        "unmarked": {name: alarms(pictures) for name, pictures in unmarked.items()},
        "ms": {size: milliseconds(size) for size in (128, 512, 1024)},
    }
    command = "python benchmarks/watermark.py --card benchmarks/watermark.md"
    text = card(result, command + (" --photographs FOLDER" if options.photographs else ""))
    if options.card:
        Path(options.card).write_text(text, "utf-8")
    sys.stderr.write(text)
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()

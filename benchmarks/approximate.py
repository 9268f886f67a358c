"""What each approximate option costs in quality and saves in time, on kotoe-emoji, and what it saves at another size.

    python benchmarks/approximate.py [--languages en ja] [--n 200] [--also FOLDER] [--card benchmarks/approximate.md]

Every way draws the same prompts of the `emoji` suite from the same noise, 16 at a time. R@1, and whether pairs stand as
asked, are the suite's; PSNR is to the exact pictures, of all their pixels together. Times are of 64 of those prompts,
the ways taking turns (A B C A B C ...), medians, against the exact way's. --also: a model in diffusers' layout, such as
one of SD 1.5's size; of that only the time of a picture of 10 guided steps is measured, in turns as well.
The last line of standard output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from cold_start import processor
from PIL import Image

import kotoe
from kotoe import memory
from kotoe.checkpoints import Bundle
from kotoe.checkpoints.adapters import with_adapters
from kotoe.checkpoints.fast import fast
from kotoe.config import Request
from kotoe.evaluate.suites import Drawn, evaluate, items

WAYS: dict[str, dict[str, Any]] = {  # what is asked for; "fast": the model's fast way goes in first
    "exact": {},
    "guidance_stop 0.5": {"guidance_stop": 0.5},
    "guidance_start 0.2": {"guidance_start": 0.2},
    "cache_interval 2": {"cache_interval": 2},
    "cache_interval 3": {"cache_interval": 3},
    "cache_interval 5": {"cache_interval": 5},
    "token_merging_ratio 0.25": {"token_merging_ratio": 0.25},
    "token_merging_ratio 0.5": {"token_merging_ratio": 0.5},
    "engine int8": {"engine": "int8"},
    "decoder small": {"decoder": "small"},
    "4 steps, unguided": {"steps": 4, "guidance_scale": 1.0},
    "--fast, full decoder": {"fast": True, "decoder": "full"},
    "--fast": {"fast": True},
    "--fast, 2 steps": {"fast": True, "steps": 2},
    "--fast, 1 step": {"fast": True, "steps": 1},
}
ELSEWHERE = ("guidance_stop 0.5", "cache_interval 3", "token_merging_ratio 0.5", "engine int8")
ROWS = ("exact", "guidance_stop 0.5", "cache_interval 3", "token_merging_ratio 0.5", "engine int8", "--fast")
SHOWN = 10  # pictures of a row


def prepared(bundle: Bundle, way: dict[str, Any]) -> tuple[Bundle, dict[str, Any]]:
    """A bundle for a way, and the rest of what is asked."""
    asked = dict(way)
    if asked.pop("fast", False):
        bundle, loras = fast(bundle)
        bundle = with_adapters(bundle, loras)
    return bundle, asked


def psnr(ours: Drawn, exact: Drawn) -> float:
    error = (ours.pictures.float() - exact.pictures.float()).square().mean()
    return float("inf") if error == 0 else float(10 * torch.log10(255**2 / error))


def seconds(bundle: Bundle, prompts: list[str], asked: dict[str, Any]) -> float:
    begun = time.perf_counter()
    batch = 1 if asked.get("engine") == "int8" else 16
    kotoe.generate(bundle, Request(prompt=prompts, emphasis="none", **{"batch_size": batch, **asked}))
    return time.perf_counter() - begun


def taking_turns(ways: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way's call, round by round; a first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, call in ways.items():
            took = call()
            if turn:
                times[name].append(took)
    return times


def panel(languages: list[str], n: int, rounds: int, picture: Path | None) -> dict[str, Any]:
    bundle = kotoe.load("kotoe-emoji")
    bundles = {name: prepared(bundle, way) for name, way in WAYS.items()}
    memory.keep_memory()
    prompts = [item.prompt for item in items("en", n=64)][:64]
    calls = {name: (lambda b=b, asked=asked: seconds(b, prompts, asked)) for name, (b, asked) in bundles.items()}
    times = taking_turns(calls, rounds)
    rows: dict[str, Any] = {}
    exact: dict[str, Drawn] = {}
    shown: dict[str, Any] = {}
    for name, (b, asked) in bundles.items():
        found = evaluate(b, languages=languages, n=n, controls=False, **asked)
        exact = exact or dict(found.drawn)
        middle = statistics.median(times[name])
        rows[name] = {
            "languages": {
                tag: {
                    "r1": found.results["languages"][tag]["r1"]["value"],
                    "relation": found.results["languages"][tag]["relation"]["value"],
                    "psnr": round(psnr(found.drawn[tag], exact[tag]), 1),
                }
                for tag in languages
            },
            "pictures_per_second": round(len(prompts) / middle, 1),
            "spread": [round(len(prompts) / max(times[name]), 1), round(len(prompts) / min(times[name]), 1)],
            "times_exact": round(statistics.median(times["exact"]) / middle, 2),
        }
        shown[name] = found.drawn[languages[0]].pictures[:SHOWN]
        print(name, rows[name], flush=True)
    if picture is not None:
        grid = torch.cat([torch.cat(list(shown[name]), dim=2) for name in ROWS], dim=1)
        Image.fromarray(grid.permute(1, 2, 0).numpy()).save(picture)
    return rows


def elsewhere(folder: str, rounds: int) -> dict[str, Any]:
    bundle = kotoe.load(folder)
    memory.keep_memory()
    whole = {
        name: (lambda way=WAYS[name]: seconds(bundle, ["a cat"], {"steps": 10, "batch_size": 1, **way}))
        for name in ("exact", *ELSEWHERE)
    }
    times: dict[str, list[float]] = {}
    for name in ELSEWHERE:  # each with the exact way in turns
        pair = taking_turns({key: whole[key] for key in ("exact", name)}, rounds)
        times[name] = [statistics.median(pair["exact"]) / statistics.median(pair[name]), statistics.median(pair[name])]
        print(name, times[name], flush=True)
    return {name: {"times_exact": round(ratio, 2), "seconds": round(s, 2)} for name, (ratio, s) in times.items()}


def card(found: dict[str, Any], languages: list[str]) -> str:
    head = " | ".join(f"{tag}: R@1, pairs, PSNR" for tag in languages)
    lines = [
        "# Approximate options on kotoe-emoji",
        "",
        "`{command}`, {date}; {machine}, {threads} threads, torch {torch}.".format(**found),
        f"{found['n']} prompts of one object and half as many pairs in each language, in the machine's own dtype;"
        " R@1 and pairs in %, PSNR to the exact pictures in dB. Pictures a second: 64 prompts in batches of 16"
        " (int8: alone), the ways in turns, median (slowest to fastest round).",
        "",
        f"| way | {head} | pictures/s | x exact |",
        "|---|" + "---|" * (len(languages) + 2),
    ]
    for name, row in found["panel"].items():
        each = " | ".join(
            f"{100 * row['languages'][t]['r1']:.1f}, {100 * row['languages'][t]['relation']:.1f}, "
            + ("same" if row["languages"][t]["psnr"] == float("inf") else f"{row['languages'][t]['psnr']:.1f}")
            for t in languages
        )
        low, high = row["spread"]
        lines.append(f"| {name} | {each} | {row['pictures_per_second']} ({low} to {high}) | {row['times_exact']:.2f} |")
    if found["elsewhere"]:
        lines += [
            "",
            f"A picture of {found['also']}, 10 guided steps, alone:",
            "",
            "| way | seconds | x exact, in turns |",
            "|---|---|---|",
        ]
        lines += [
            f"| {name} | {row['seconds']} | {row['times_exact']:.2f} |" for name, row in found["elsewhere"].items()
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--languages", nargs="+", default=["en", "ja"])
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--also", help="folder of a model to time as well")
    parser.add_argument("--also-named", default="SD 1.5's size, 512 x 512", help="what to call it")
    parser.add_argument("--card", type=Path)
    parser.add_argument("--picture", type=Path, help="a grid of pictures, one way a row")
    asked = parser.parse_args()
    found: dict[str, Any] = {
        "command": "python benchmarks/approximate.py" + (" --also FOLDER" if asked.also else ""),
        "date": time.strftime("%Y-%m-%d"),
        "machine": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "n": asked.n,
        "also": asked.also_named,
        "panel": panel(asked.languages, asked.n, asked.rounds, asked.picture),
        "elsewhere": elsewhere(asked.also, 1) if asked.also else {},
    }
    if asked.card is not None:
        asked.card.write_text(card(found, asked.languages), encoding="utf-8")
    print(json.dumps(found, default=str))


if __name__ == "__main__":
    main()

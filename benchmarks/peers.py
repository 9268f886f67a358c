"""Stable Diffusion on a processor: Kotoe beside diffusers, OpenVINO and others, the same weights.

    python benchmarks/peers.py [--family "SD 1.5"] [--rounds 5] [--only kotoe diffusers] [--card benchmarks/peers.md]
    python benchmarks/peers.py --family kotoe-emoji --rounds 7 --card benchmarks/peers_emoji.md

Each engine is a process of its own, with an environment of its own where it isn't Kotoe's (made in --work, once). All
are loaded first; then they take turns (A B C A B C ...), one guided step, one decoding, one text each, while the others
sleep; then whole pictures, again in turns (--pictures, none with 0), after one of a single step that isn't counted. A
guided step is one evaluation of the UNet for two latents; decoding is a latent to pixels; a picture is drawn by the
engine's own pipeline. What a UNet answers to one input, the same for all, is compared with float32's. Cold start is the
time from the process's beginning to the end of its first step. stable-diffusion.cpp has no such calls: it draws a
picture of one step, reports the step's time itself, and what comes after it is taken for decoding.

Families: SD 1.5 and SD 2.1 are of their size with random weights, at 512 x 512 pixels, pictures of 20 steps at guidance
7.5. kotoe-emoji is the built-in model's own folder, for Kotoe and diffusers: 32 prompts of its evaluation, at its own
steps and guidance, in batches of 1 and of 16. Of so small a model Kotoe computes several batches at a time, with two
threads two, one on each core (src/kotoe/workers.py); diffusers' pipeline is called for one batch after another, with
all threads for each. tiny is random and of no interest but for tests of this program.

--only names engines, or how those that are taken by default begin. KerasCV is none of these, for want of memory:
--only Kotoe KerasCV. keras-hub has no Stable Diffusion 1.x or 2.x (0.32.0 has 3 and Flux); KerasCV 0.9.0 has both, and
installs on Python 3.11 with Keras 3.15.1 and TensorFlow 2.21.0. --request '{"engine": "plain"}' draws with Kotoe once
more, with these fields in its Request.

The full sizes need 30 GB of disk, 24 GiB of memory, and for the environments a network. The last line of standard
output is one JSON document.
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from full_size import TEXTS, UNETS
from peers_programs import COMMON, DIFFUSERS, KERASCV, KOTOE, OPENVINO, SDCPP, TORCH

from kotoe import builtin
from kotoe.bench import operations, processor, rates
from kotoe.checkpoints import Bundle, load, save
from kotoe.checkpoints.kerascv import DECODER, FILES
from kotoe.config import Request
from kotoe.drawing import resolve
from kotoe.evaluate.suites import items
from kotoe.localize.vocabulary import train_clip_bpe
from kotoe.rng import generator, initialising
from kotoe.spec import ScheduleSpec, TextSpec, UNetSpec, VAESpec
from kotoe.text import CLIPText, Conditioner
from kotoe.unet import UNet
from kotoe.vae import VAE
from kotoe.workers import small

PROMPT = "a cat on a blue background"
EMOJI, TINY = "kotoe-emoji", "tiny"
ENVIRONMENTS = {  # what pip installs; KerasCV's doesn't agree with the constraints of this project
    "openvino": ["openvino", "diffusers", "transformers", "safetensors", "accelerate", "numpy", "torch"],
    "sdcpp": ["stable-diffusion-cpp-python"],
    "kerascv": ["keras-cv", "tensorflow-cpu"],
}


@dataclass(frozen=True, kw_only=True)
class Peer:
    """An engine: its environment ("" is this one), what its program is told, the families that it has.

    usual:   whether it is among those that are measured unless --only says.
    request: further fields of the Request that Kotoe draws pictures with.
    """

    program: str
    kind: str
    environment: str = ""
    families: tuple[str, ...] = ("SD 1.5", "SD 2.1", TINY)
    usual: bool = True
    request: Mapping[str, Any] = field(default_factory=dict)


HERE = ("SD 1.5", "SD 2.1", TINY, EMOJI)
FULL = ("SD 1.5", "SD 2.1")
ENGINES = {
    "Kotoe": Peer(program=TORCH + KOTOE, kind="bfloat16", families=HERE),
    "Kotoe --fast": Peer(program=TORCH + KOTOE, kind="bfloat16", families=("kotoe-emoji",), request={"fast": True}),
    "Kotoe, float32": Peer(program=TORCH + KOTOE, kind="float32", families=HERE, usual=False),
    "diffusers, as it comes (float32)": Peer(program=TORCH + DIFFUSERS, kind="float32", families=HERE),
    "diffusers, bf16": Peer(program=TORCH + DIFFUSERS, kind="bfloat16", families=HERE, usual=False),
    "diffusers, bf16, channels_last, allocator": Peer(program=TORCH + DIFFUSERS, kind="tuned", families=HERE),
    "diffusers, bf16, compiled": Peer(program=TORCH + DIFFUSERS, kind="compiled", families=HERE, usual=False),
    "OpenVINO, bf16, static": Peer(program=OPENVINO, kind="bf16", environment="openvino"),
    "stable-diffusion.cpp": Peer(program=SDCPP, kind="", environment="sdcpp", families=FULL),
    "KerasCV, as it comes (float32, XLA)": Peer(
        program=KERASCV, kind="compiled", environment="kerascv", families=FULL, usual=False
    ),
    "KerasCV, float32, not compiled": Peer(
        program=KERASCV, kind="eager", environment="kerascv", families=FULL, usual=False
    ),
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is drawn: the folder, edge of a picture in pixels, its steps and guidance, prompts, how many together."""

    name: str
    folder: Path
    size: int
    usual_size: bool
    steps: int
    guidance: float
    prompts: Sequence[str]
    batches: tuple[int, ...]
    weights: str


def made(name: str, folder: Path) -> Path:
    """The folder of a bundle of torch's initial weights, and of a full-size one a single file beside it."""
    place = folder / name.replace(" ", "-")
    file = folder / f"{place.name}.safetensors"
    if file.exists() or (name == TINY and place.exists()):
        return place
    tokenizer = train_clip_bpe(["a cat on a blue background"] * 2, folder / f"words {name}", 516, overwrite=True)
    ids = {"bos": tokenizer.bos, "eos": tokenizer.eos, "pad": tokenizer.pad}
    if name == TINY:
        unet = UNetSpec(block_out_channels=(32, 64, 64, 64), cross_attention_dim=64, norm_num_groups=16, sample_size=16)
        vae = VAESpec(block_out_channels=(32, 32, 64, 64), norm_num_groups=16, sample_size=128)
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 516}
        text = TextSpec(**sizes, **ids)  # type: ignore[arg-type]
    else:
        unet, vae, text = UNETS[name], VAESpec(), TextSpec(**TEXTS[name], **ids)  # type: ignore[arg-type]
    with initialising(0):
        parts = (UNet(unet), VAE(vae), CLIPText(text))
    bundle = Bundle(
        name=name,
        unet=parts[0].half(),
        vae=parts[1].half(),
        schedule=ScheduleSpec(),
        conditioners={"en": Conditioner("en", tokenizer, parts[2].half())},
        default_language="en",
        family=unet.family,
    )
    save(bundle, place)
    if name != TINY:
        save(bundle, file, to="compvis")
    return place


def family(name: str, size: int | None, work: Path) -> Family:
    """A family, its folder made if it must be. size: pixels; None: its usual ones."""
    usual = {EMOJI: 128, TINY: 128}.get(name, 512)
    same = {"name": name, "size": usual if size is None else size, "usual_size": size in (None, usual)}
    if name == EMOJI:
        folder = builtin.resolve(EMOJI)
        defaults = json.loads((folder / "kotoe.json").read_text("utf-8"))["defaults"]
        prompts = [item.prompt for item in items("en", n=32)][:32]
        how = {"steps": defaults["steps"], "guidance": defaults["guidance_scale"], "batches": (1, 16)}
        return Family(folder=folder, prompts=prompts, weights="Its own weights", **how, **same)  # type: ignore[arg-type]
    how = {"steps": 20, "guidance": 7.5, "batches": (1,)}
    folder = made(name, work)
    return Family(folder=folder, prompts=[PROMPT], weights="Random weights", **how, **same)  # type: ignore[arg-type]


def written(chosen: Family, path: Path) -> tuple[dict[str, float], bool]:
    """The inputs of all engines, written to a file; gives TFLOP of a guided step and of a decoding, and whether Kotoe
    draws so small a model's batches side by side."""
    bundle = load(chosen.folder, dtype="stored")
    unet, vae = bundle.unet.spec, bundle.vae.spec
    edge, draws = chosen.size // vae.downscale, generator(1)
    tokens = bundle.tokenizer("en").encode([*chosen.prompts, ""])
    length = len(tokens.ids[0])
    arrays = {
        "x": torch.randn(2, unet.in_channels, edge, edge, generator=draws).numpy(),
        "context": torch.randn(2, length, unet.cross_attention_dim, generator=draws).numpy(),
        "z": torch.randn(1, vae.latent_channels, edge, edge, generator=draws).numpy() * np.float32(0.9),
        "ids": np.array(tokens.ids, dtype=np.int64),
    }
    np.savez(path, **arrays)  # type: ignore[arg-type]
    asked = Request(prompt=PROMPT, language="en", width=chosen.size, height=chosen.size)
    return operations(unet, vae, (edge, edge), length), small(bundle, resolve(bundle, asked))


def for_kerascv(folder: Path) -> None:
    """The same weights in KerasCV's files, beside the folder, once."""
    place = folder.with_name(f"{folder.name}-kerascv")
    if not place.exists():
        save(load(folder, dtype="stored"), place, to="kerascv")


class Engine:
    """A process that waits for what to time next."""

    def __init__(self, name: str, peer: Peer, chosen: Family, inputs: Path, work: Path, threads: int) -> None:
        python = Path(sys.executable) if not peer.environment else work / peer.environment / "bin" / "python"
        script = work / f"{''.join(c for c in name if c.isalnum())}.py"
        script.write_text(COMMON + peer.program)
        spec = json.loads((chosen.folder / "vae" / "config.json").read_text("utf-8"))
        unet = json.loads((chosen.folder / "unet" / "config.json").read_text("utf-8"))
        files = FILES["sd2" if unet["use_linear_projection"] else "sd1"]
        asked = {
            "size": chosen.size, "steps": chosen.steps, "guidance": chosen.guidance, "prompts": list(chosen.prompts),
            "sd2": unet["use_linear_projection"], "scaling": spec["scaling_factor"], "usual": chosen.usual_size,
            "work": str(work), "request": dict(peer.request),
            "kerascv": [files["unet"], files["text_encoder"], DECODER],
        }  # fmt: skip
        variables = {**os.environ, "HF_HUB_OFFLINE": "1", "THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [str(python), "-W", "ignore", str(script), str(chosen.folder), str(inputs), peer.kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(work / f"{script.stem}.log").open("w"),
            text=True,
            env={**variables, "ASKED": json.dumps(asked), "BEGUN": repr(time.time())},
        )
        self.name, self.peer = name, peer
        self.said = self._read()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended with {self.process.wait()}; see its log in the working folder")
        return json.loads(line)

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
        held = [] if name == "kerascv" else ["-c", str(constraints)]
        subprocess.run([str(place / "bin" / "pip"), "install", "-q", *held, *ENVIRONMENTS[name]], check=True)
        (place / "made").touch()


def wanted(only: Sequence[str] | None, name: str) -> dict[str, Peer]:
    """The engines asked for, by name in the order of the table. Ends with a message where there is none such."""
    there = {engine: peer for engine, peer in ENGINES.items() if name in peer.families}
    usual = [engine for engine, peer in there.items() if peer.usual]
    found = set(usual if only is None else [])
    for asked in only or ():
        same = [e for e in there if e.lower() == asked.lower()]
        among = usual if any(e.lower().startswith(asked.lower()) for e in usual) else list(there)
        begins = same or [e for e in among if e.lower().startswith(asked.lower())]
        if not begins:
            sys.exit(f"no engine {asked!r} for {name}. There are: {'; '.join(there)}")
        found |= set(begins)
    return {engine: peer for engine, peer in there.items() if engine in found}


def command(given: argparse.Namespace, options: argparse.ArgumentParser) -> str:
    """What was asked, to be asked again: family and rounds, and all else that isn't usual but where things are kept."""
    said = ["python", "benchmarks/peers.py", "--family", given.family, "--rounds", str(given.rounds)]
    for name in ("pictures", "size", "threads", "only", "request"):
        value = getattr(given, name)
        if value != options.get_default(name):
            said.append(f"--{name}")
            said += value if name == "only" else [json.dumps(value) if name == "request" else str(value)]
    return shlex.join(said)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--family", default="SD 1.5", choices=HERE)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--pictures", type=int, help="rounds of whole pictures; 1, with kotoe-emoji as --rounds")
    options.add_argument("--size", type=int, help="pixels of an edge, for trials; the family's own by default")
    options.add_argument("--threads", type=int, default=os.cpu_count())
    options.add_argument("--only", nargs="+", help="engines by name, or how the usual ones begin")
    options.add_argument("--request", type=json.loads, help="Kotoe once more, with these fields of Request (JSON)")
    options.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "kotoe-peers")
    options.add_argument("--card", type=Path)
    given = options.parse_args()
    if given.rounds < 1 or (given.pictures is not None and given.pictures < 0):
        options.error("--rounds: 1 or more; --pictures: 0 or more")
    drawn = (given.rounds if given.family == EMOJI else 1) if given.pictures is None else given.pictures
    peers = wanted(given.only, given.family)
    if given.request is not None:
        same = {"program": TORCH + KOTOE, "kind": "bfloat16", "families": HERE}
        peers[f"Kotoe, {json.dumps(given.request)}"] = Peer(request=given.request, **same)
    given.work.mkdir(parents=True, exist_ok=True)
    constraints = Path(__file__).resolve().parent.parent / "constraints.txt"
    for each in {peer.environment for peer in peers.values()} - {""}:
        environment(each, given.work, constraints)
    chosen = family(given.family, given.size, given.work)
    if any(peer.environment == "kerascv" for peer in peers.values()):
        for_kerascv(chosen.folder)
    inputs = given.work / f"{given.family.replace(' ', '-')}.npz"
    counts, beside = written(chosen, inputs)
    load_before = f"{os.getloadavg()[0]:.1f}"
    machine = rates(torch.bfloat16, threads=given.threads)

    def started(name: str) -> Engine:
        return Engine(name, peers[name], chosen, inputs, given.work, given.threads)

    for name, peer in peers.items():
        if peer.environment == "openvino":  # converting takes more memory than all that comes later
            started(name).ask("quit")
    engines = []
    for name in peers:
        engines.append(started(name))
        print(f"{name}: {engines[-1].said}", file=sys.stderr, flush=True)
    times: dict[str, dict[str, list[float]]] = {name: {} for name in peers}
    for k in range(given.rounds):
        for call in ("step", "decode", "text"):
            for engine in engines:
                if call != "text" or engine.peer.environment != "sdcpp":
                    asked = f"{call} _" if engine.peer.environment == "sdcpp" else call
                    times[engine.name].setdefault(call, []).append(engine.ask(asked))
        print(f"round {k + 1}: { ({n: t['step'][-1] for n, t in times.items()}) }", file=sys.stderr, flush=True)
    answers: dict[str, np.ndarray] = {}
    for engine in engines:
        if engine.peer.environment != "sdcpp":
            path = given.work / "answer.npy"
            engine.ask(f"latents {path}")
            answers[engine.name] = np.load(path)
    peaks = {engine.name: engine.ask("peak _") for engine in engines}  # before pictures, as it always was
    for k in range(drawn):
        for batch in chosen.batches:
            for engine in engines:
                if not k:
                    engine.ask(f"warm {batch}")
                times[engine.name].setdefault(f"picture_{batch}", []).append(engine.ask(f"picture {batch}"))
        print(f"pictures {k + 1}: { ({n: t['picture_1'][-1] for n, t in times.items()}) }", file=sys.stderr, flush=True)
    exact = next((a for n, a in answers.items() if "float32" in n), None)
    result: dict[str, Any] = {
        "family": given.family, "rounds": given.rounds, "pictures": drawn, "threads": given.threads,
        "size": chosen.size, "steps": chosen.steps, "guidance": chosen.guidance, "prompts": len(chosen.prompts),
        "weights": chosen.weights, "batches": list(chosen.batches), "usual_size": chosen.usual_size,
        "load": load_before, "rates": machine, "counted": counts, "side_by_side": given.threads if beside else 1,
        "command": command(given, options), "engines": {},
    }  # fmt: skip
    for engine in engines:
        error = None
        if exact is not None and engine.name in answers:
            error = float(np.linalg.norm(answers[engine.name] - exact) / np.linalg.norm(exact))
        result["engines"][engine.name] = {
            **{f"{k}_s": sorted(v) for k, v in times[engine.name].items()},
            "first_s": engine.said["first"],
            "peak_bytes": peaks[engine.name],
            "peak_after_pictures_bytes": engine.ask("quit")["peak"],
            "error": error,
        }
    text = card(result)
    if given.card is not None:
        given.card.write_text(text, "utf-8")
    print(text, file=sys.stderr)
    print(json.dumps(result))


def card(result: dict[str, Any]) -> str:
    rate = min(result["rates"].values())
    engines, several = result["engines"], result["prompts"] > 1
    first = "Kotoe" if "Kotoe" in engines else next(iter(engines))
    ours = statistics.median(engines[first]["step_s"])
    batches = result["batches"] if result["pictures"] else []

    def told(value: float | None, form: str = "") -> str:
        return "" if value is None else format(value, form or (".2f" if value >= 0.995 else ".3g"))

    def drawing(found: dict[str, Any], batch: int) -> str:
        took = found[f"picture_{batch}_s"]
        if not several:
            return told(statistics.median(took))
        speeds = [result["prompts"] / each for each in (statistics.median(took), took[-1], took[0])]
        return "{} ({} to {})".format(*map(told, speeds))

    rows = []
    for name, found in engines.items():
        step = statistics.median(found["step_s"])
        spread = f"{told(found['step_s'][0])} to {told(found['step_s'][-1])}"
        decode, text = (statistics.median(found[k]) if k in found else None for k in ("decode_s", "text_s"))
        cells = [name, told(step), spread, f"**{step / ours:.2f}**", told(result["counted"]["step"] / step)]
        cells += [told(decode), told(text), told(found["first_s"], ".1f"), *(drawing(found, n) for n in batches)]
        rows.append([*cells, f"{found['peak_bytes'] / 1e9:.1f}", told(found["error"], ".4f")])
    head = ["", "guided step, s", "spread", f"of {first}'s", "TFLOP/s", "decode, s", "text, s", "first step after, s"]
    head += [f"pictures/s, {n} together" if n > 1 else "pictures/s" if several else "picture, s" for n in batches]
    lines = [[*head, "peak, GB", "error"], ["---"] * (len(head) + 2), *rows]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    versions = ", ".join(f"{p} {version(p)}" for p in ("torch", "diffusers", "transformers"))
    counts, reached = result["counted"], {name: f"{value:.2f}" for name, value in result["rates"].items()}
    part, name, rounds = 100 * counts["step"] / ours / rate, result["family"], result["rounds"]
    share = format(part, ".0f" if part >= 10 else ".2g")
    side, threads = result["side_by_side"], result["threads"]
    beside = (
        f"""
Pictures, by Kotoe: it computes {side} batches at a time, where there are so many, one on each core; every other engine
one batch after another, with {threads} threads for each.
"""
        if side > 1
        else ""
    )
    pictures = f"""
{f"Pictures: {result['prompts']} prompts" if several else "A picture: one prompt"}, {result["steps"]} steps of DDIM
(stable-diffusion.cpp: of its default sampler), guidance {result["guidance"]:g}, by each engine's own pipeline;
{f"medians of {result['pictures']} rounds" if result["pictures"] > 1 else "one round"}, in turns.
{beside}"""
    return f"""# {name} on a processor, beside its peers

`{result["command"]}`, {time.strftime("%Y-%m-%d", time.gmtime())}.
{result["weights"]}, {result["size"]} x {result["size"]} pixels, {threads} threads; medians of {rounds}
rounds, the engines taking turns.
{processor()}; load at the start {result["load"]}; {versions}; kotoe {version("kotoe")}.

{table}

A guided step is {counts["step"]:.4g} TFLOP, a decoding {counts["decode"]:.4g}, as the plain networks compute them
(TFLOP/s count so for all). This machine's own products reach {reached["products"]} TFLOP/s in bfloat16 and its
convolutions {reached["convolutions"]} (medians over sizes of SD 1.5's UNet): **{first}'s step runs at {share} %**
of the lower of the two.
{pictures if batches else ""}
Error: of the UNet's answer to one input, relative to float32's, in the Euclidean norm. First step after: from the
process's beginning, everything imported and loaded, files in the cache. Peak: the largest resident set, before whole
pictures are drawn.
"""


if __name__ == "__main__":
    main()

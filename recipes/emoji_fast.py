"""kotoe-emoji, an extra: four steps without guidance, a LoRA for `--fast`, and the model's pictures as its teacher.

    kotoe train recipes/emoji_fast.py --run runs/fast --size cpu

The model draws prompts in English and in its other languages as it does by default, ten guided steps. A LoRA of the
UNet then learns to arrive at the same latents from the same noise and text in four unguided ones: the four steps are
taken whole, and the error of what they end in goes back through all of them. One forward in five of before, and no
negative prompt. The unlearnt model comes close already (the model's card), since its texts leave little to chance.

run_dir gets teacher/ (what was drawn, in parts that a killed run keeps), fast/ (the training) and
pytorch_lora_weights.safetensors, in diffusers' form.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kotoe import load
from kotoe.checkpoints import Bundle
from kotoe.checkpoints.lora import targets
from kotoe.data.captions import caption
from kotoe.data.emoji import Scene, atlas, scene
from kotoe.denoise import loss as squared_error
from kotoe.localize.fit import Plan, fit
from kotoe.localize.losses import unexplained
from kotoe.rng import initialising
from kotoe.runs import Run
from recipes.emoji_base import PAIRS, latents_drawn

FAST_STEPS = 4
STAGE = "fast"
ENGLISH = 0.6  # share of the prompts
WEIGHTS = "pytorch_lora_weights.safetensors"
PART = 256  # prompts of one file of teacher/
SIZES: dict[str, dict[str, Any]] = {
    "cpu": {"tier": "everyday", "prompts": 8192, "rank": 12, "steps": 1800, "batch": 32, "lr": 2e-3},
    "gpu": {"tier": "everyday", "prompts": 262_144, "rank": 12, "steps": 20_000, "batch": 256, "lr": 2e-3},
}


class LowRank(nn.Module):
    """A weight (O, I, ...) with a LoRA's change: weight + up @ down."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        o, i = weight.flatten(1).shape
        rank = min(rank, o, i)
        self.down = nn.Parameter(torch.empty(rank, i))
        self.up = nn.Parameter(torch.zeros(o, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).reshape(weight.shape)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Texts and the negative prompt's (B, L, D), the seeds of the noise, and the latents (B, C, h, w) they ended in."""

    text: Tensor
    seeds: list[int]
    latents: Tensor


def with_low_rank(unet: nn.Module, rank: int, seed: int) -> None:
    """Give every linear layer and convolution of a UNet a LoRA to learn, in place. It changes nothing yet."""
    with initialising(seed):
        for name, _ in list(targets(unet).values()):
            module = unet.get_submodule(name)
            parametrize.register_parametrization(module, "weight", LowRank(module.get_parameter("weight"), rank))


def factors(unet: nn.Module) -> dict[str, Tensor]:
    """The LoRA of `with_low_rank` by diffusers' names, in float16."""
    made = {}
    for name, module in unet.named_modules():
        if isinstance(module, parametrize.ParametrizationList):
            owner, low, weight = name.removesuffix(".parametrizations.weight"), module[0], module.original
            rank = len(low.down)
            made[f"unet.{owner}.lora_A.weight"] = low.down.reshape(rank, *weight.shape[1:])
            made[f"unet.{owner}.lora_B.weight"] = low.up.reshape(-1, rank, *[1] * (weight.ndim - 2))
    return {name: t.detach().half().contiguous() for name, t in made.items()}


def prompts(bundle: Bundle, seed: int, count: int, tier: str) -> Iterator[tuple[str, str, Scene]]:
    """(language, caption, scene) one after the other, ENGLISH of them in English, the rest in all others by turns."""
    glyphs, rng = atlas(tier).glyphs, random.Random(seed)
    others = [tag for tag in bundle.conditioners if tag != "en"]
    for i in range(count):
        shown = scene(seed, i, glyphs, pairs=PAIRS)
        language = "en" if not others or rng.random() < ENGLISH else rng.choice(others)
        yield language, caption(shown, language, rng, tier=tier), shown


def states(bundle: Bundle, language: str, texts: Sequence[str]) -> Tensor:
    """What a language's conditioner makes of texts, (B, L, D)."""
    return bundle.conditioner(language).encode(texts, long_prompt="cut").states


def draw_part(bundle: Bundle, asked: Sequence[tuple[str, str, Scene]], first: int) -> dict[str, Tensor]:
    """The teacher's texts (B, L, D) and latents (B, C, h, w) of prompts numbered from `first`, which is their seed."""
    together = sorted(range(len(asked)), key=lambda i: asked[i][0])  # one language after the other
    texts, latents = [], []
    with torch.inference_mode():
        for begin in range(0, len(together), 32):
            rows = together[begin : begin + 32]
            said = torch.cat([states(bundle, *(asked[i][0], [asked[i][1]])) for i in rows])
            empty = torch.cat([states(bundle, asked[i][0], [""]) for i in rows])
            texts.append(said)
            latents.append(latents_drawn(bundle.unet, said, empty, [first + i for i in rows]))
    order = torch.tensor(together).argsort()
    return {"text": torch.cat(texts)[order].half(), "latents": torch.cat(latents)[order].contiguous()}


def taught(run: Run, bundle: Bundle, settings: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """All that the teacher drew; parts that are there are read."""
    asked = list(prompts(bundle, seed + 11, settings["prompts"], settings["tier"]))
    parts = []
    for k, first in enumerate(range(0, len(asked), PART)):
        name = f"teacher-{k:05d}.safetensors"
        if not run.has(name):
            made = draw_part(bundle, asked[first : first + PART], first)
            run.save(name, lambda to, made=made: save_file(made, to))
            run.say(f"teacher: {min(first + PART, len(asked))} of {len(asked)} prompts drawn")
        parts.append(load_file(run.path(name)))
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def as_taught(modules: Mapping[str, nn.Module], batch: Drawn, _: torch.Generator) -> tuple[Tensor, dict[str, float]]:
    """Squared error of the latents after FAST_STEPS unguided steps against the teacher's."""
    x = latents_drawn(modules["unet"], batch.text, None, batch.seeds, steps=FAST_STEPS, guidance=1.0)
    return squared_error(x, batch.latents), {"unexplained": float(unexplained(x.detach(), batch.latents))}


def main(
    run_dir: str | Path, *, size: str = "cpu", device: str = "cpu", seed: int = 0, base: str = "kotoe-emoji"
) -> Path:
    """Train the LoRA; base: the model, by name or folder. Gives the file."""
    settings, run_dir = SIZES[size], Path(run_dir)
    bundle = load(base, dtype="float32", device=device)
    config = {"recipe": "emoji_fast", "seed": seed, **settings, "base_sha256": bundle.sha256}
    with Run(run_dir / "teacher", {**config, "stage": "teacher"}) as run:
        known = taught(run, bundle, settings, seed)
    held_out = settings["batch"]  # the last ones are never trained on

    def batches(step: int) -> Drawn:
        rng = random.Random(f"{seed} {step}")
        rows = rng.sample(range(len(known["text"]) - held_out), settings["batch"])
        return Drawn(text=known["text"][rows].float().to(device), seeds=rows, latents=known["latents"][rows].to(device))

    unet = bundle.unet
    with_low_rank(unet, settings["rank"], seed)
    plan = Plan(
        name="fast", trainable=(r"unet\..*\.parametrizations\.weight\.0\.",), loss=as_taught, steps=settings["steps"],
        lr=settings["lr"], warmup_steps=50, weight_decay=0.0, ema=0.99, seed=seed, bf16=device != "cpu",
    )  # fmt: skip
    with Run(run_dir / STAGE, {**config, "stage": STAGE}) as run:
        fit({"unet": unet}, plan, batches, run, device=device)
        rows = list(range(len(known["text"]) - held_out, len(known["text"])))
        last = Drawn(text=known["text"][rows].float().to(device), seeds=rows, latents=known["latents"][rows].to(device))
        with torch.inference_mode():
            run.say(f"unexplained of {held_out} prompts held out: {as_taught({'unet': unet}, last, None)[1]}")  # type: ignore[arg-type]
        run.save(WEIGHTS, lambda to: save_file(factors(unet), to, metadata={"format": "pt"}))
        return run.path(WEIGHTS)

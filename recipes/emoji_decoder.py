"""kotoe-emoji, part 3 of 4: the decoder learns to draw from what the UNet says.

    kotoe train recipes/emoji_decoder.py --run runs/vae --size cpu

A UNet's latents are off in their own way, and pictures look as the decoder takes that. So, when `emoji_base.py` has
left a UNet, it draws scenes from their captions, and the decoder learns the true pictures from those latents; half of
each batch are true latents, so that it keeps drawing from the encoder's (img2img). Encoder, UNet and texts stay as
they are. Stage `drawn/`, beside the stages of `emoji_vae.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kotoe.data.emoji import atlas
from kotoe.data.latents import basis
from kotoe.localize.fit import Plan, fit
from kotoe.rng import keyed_generator
from kotoe.runs import Run
from recipes import emoji_base, emoji_vae
from recipes.emoji_base import CHANNELS, PAIRS, Captioned, ids, latents_drawn
from recipes.emoji_vae import noised, pictures, sample, unlike

SIZES: dict[str, dict[str, Any]] = {
    "cpu": {"tier": "everyday", "drawn": (5000, 8), "scenes": 4000, "lr": 4e-4},
    "gpu": {"tier": "all", "drawn": (20_000, 64), "scenes": 40_000, "lr": 4e-4},
}


def loss() -> Any:
    """The decoder on latents z and true pictures x of a batch (z, x)."""

    def of(modules: Mapping[str, nn.Module], batch: tuple[Tensor, Tensor], _: torch.Generator) -> Any:
        z, x = (part.contiguous(memory_format=torch.channels_last) for part in batch)
        l1, edges = unlike(modules["vae"].decode(z).float(), x)
        return l1 + emoji_vae.EDGE_WEIGHT * edges, {"l1": float(l1.detach()), "edges": float(edges.detach())}

    return of


def draw_all(base_run: Path, data: Captioned, device: str, batch: int = 32) -> Tensor:
    """Latents (count, C, 8, 8) that a base draws from one caption of each scene, in float16."""
    unet, text, tokenizer = emoji_base.trained(base_run, device)
    parts = []
    with torch.inference_mode():
        empty = text(ids(tokenizer, [""]).to(device))
        for first in range(0, len(data.scenes), batch):
            chosen = range(first, min(first + batch, len(data.scenes)))
            _, rng = data.draw(first, 0)
            context = text(ids(tokenizer, data.captions(chosen, rng, "en")).to(device))
            parts.append(latents_drawn(unet, context, empty, list(chosen)).half().cpu())
    return torch.cat(parts).contiguous()


def main(
    run_dir: str | Path, *, size: str = "cpu", device: str = "cpu", seed: int = 0, base_run: str | Path | None = None
) -> nn.Module:
    """Train the decoder that `emoji_vae.py` left in run_dir on what the base in base_run (default: `base` beside
    run_dir) draws; run_dir gets `drawn/`."""
    settings, run_dir = SIZES[size], Path(run_dir)
    base_run = run_dir.parent / "base" if base_run is None else Path(base_run)
    world, base = atlas(settings["tier"], device), basis(settings["tier"], CHANNELS)
    data = Captioned(world, settings["tier"], seed + 5, settings["scenes"], pairs=PAIRS)
    vae = emoji_vae.trained(run_dir).to(device, memory_format=torch.channels_last)
    (steps, batch) = settings["drawn"]
    plan = Plan(
        name="vae/drawn", trainable=("vae.decoder.", "vae.post_quant_conv."), loss=loss(), steps=steps,
        lr=settings["lr"], weight_decay=0.0, ema=0.995, seed=seed, bf16=device != "cpu", sample=sample(world, base),
        sample_every=500,
    )  # fmt: skip
    with Run(run_dir / "drawn", {"recipe": "emoji_decoder", "size": size, "seed": seed, **settings}) as run:
        if not run.has("latents.safetensors"):
            run.save("latents.safetensors", lambda to: save_file({"latents": draw_all(base_run, data, device)}, to))
        latents = load_file(run.path("latents.safetensors"))["latents"]

        def batches(step: int) -> tuple[Tensor, Tensor]:
            chosen, _ = data.draw(step, batch // 2)
            drawn = world.render([data.scenes[i] for i in chosen]).float() / 127.5 - 1
            others = pictures(world, seed, step, batch - batch // 2, crop=False)
            true = base.encode(others)
            draw = keyed_generator(seed, step, "noise")
            return torch.cat([latents[chosen].to(true), noised(true, draw)]), torch.cat([drawn, others])

        fit({"vae": vae}, plan, batches, run, device=device)
    return vae

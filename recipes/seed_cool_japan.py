"""alfredplpl/cool-japan-diffusion-for-learning-2-0: the autoencoder and the UNet of a Stable Diffusion 2 on drawings.

    kotoe train recipes/seed_cool_japan.py --run runs/cool --size emoji
    kotoe train recipes/seed_cool_japan.py --run runs/cool --size gpu24 --set base=SD2_BASE --set images=PICTURES

1. `vae`: both halves of the autoencoder on the pictures. 2. `unet`: the UNet on their captions, in English, with the
text encoder frozen.

As published: what trains, and AdamW at one picture a step on a card of 24 GB. Not published: rates, steps, averages,
the autoencoder's loss, which came first, where the captions are from. Here the autoencoder learns by L1 of pixels and
of their neighbours' differences, and a KL of weight 1e-6 as Stable Diffusion's (whose perceptual and adversarial parts
need networks that aren't in Kotoe); both rates are our choice, and small since there is a good model already.

Expected time and score: gpu24 and gpu80 were not run (theirs: 300 hours on an RTX 3090). emoji: see
docs/localization.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kotoe.checkpoints import load, save
from kotoe.data.shards import Opened, opened
from kotoe.errors import UserError
from kotoe.localize import pictures
from kotoe.localize.fit import Loss, Plan, fit
from kotoe.localize.plans import drawn
from kotoe.localize.settings import Localizing
from kotoe.runs import Run
from recipes.emoji_vae import unlike
from recipes.seed_stages import BASE, device_of, done, emoji_pictures, model_of, needed

LANGUAGE = "en"
KL = 1e-6  # of the autoencoder's loss, per number of a latent
SIZES: dict[str, dict[str, Any]] = {
    "emoji": {
        "pictures": 800,
        "vae": {"steps": 80, "batch_size": 4, "lr": 1e-5},
        "unet": {"steps": 100, "batch_size": 16, "lr": 1e-5, "warmup_steps": 20},
    },
    "gpu24": {
        "vae": {"steps": 100_000, "batch_size": 1, "lr": 4.5e-6},
        "unet": {"steps": 400_000, "batch_size": 1, "lr": 5e-6, "warmup_steps": 1000, "checkpointing": True},
    },
    "gpu80": {
        "vae": {"steps": 50_000, "batch_size": 4, "lr": 4.5e-6},
        "unet": {"steps": 100_000, "batch_size": 32, "lr": 1e-5, "warmup_steps": 1000, "checkpointing": True},
    },
}


def stages(
    run: Path, size: str, *, base: str, images: str, device: str = "cpu", seed: int = 0,
    caption_column: str | None = None,
) -> tuple[Localizing, ...]:  # fmt: skip
    """The UNet's configuration, on the model with the autoencoder of the first stage."""
    first = str(model_of(run / "vae"))
    return (
        Localizing(
            base=first, student=first, language=LANGUAGE, run=str(run / "unet"), plan="unet", images=images,
            caption_column=caption_column, latents="sample", schedule="constant", beta2=0.999, ema=0.0,
            weighting="plain", dropout=0.1, long_prompt="cut", seed=seed, device=device, **SIZES[size]["unet"],
        ),
    )  # fmt: skip


def vae_plan(size: str, *, device: str = "cpu", seed: int = 0) -> Plan:
    """The autoencoder's configuration."""
    settings = SIZES[size]["vae"]
    return Plan(
        name="vae", trainable=("vae.",), loss=redrawn(), steps=settings["steps"], lr=settings["lr"],
        schedule="constant", warmup_steps=0, betas=(0.9, 0.999), weight_decay=0.0, ema=0.0, seed=seed,
        bf16=device != "cpu",
    )  # fmt: skip


def redrawn() -> Loss:
    """Pictures x (B, 3, H, W) in [-1, 1] again from a sample of their posterior: L1, edges, KL."""

    def loss(modules: Mapping[str, Any], x: Tensor, draw: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        vae = modules["vae"]
        mean, logvar = (part.float() for part in vae.moments(x))  # (B, C, h, w)
        noise = torch.randn(mean.shape, generator=draw).to(mean)
        z = (mean + torch.exp(0.5 * logvar) * noise) * vae.spec.scaling_factor
        l1, edges = unlike(vae.decode(z).float(), x)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return l1 + edges + KL * kl, {"l1": float(l1.detach()), "edges": float(edges.detach())}

    return loss


def pixels_of(wanted: Localizing, how: Any, batch: int) -> tuple[Callable[[int], Tensor], int]:
    """A step's pictures (B, 3, H, W), opened anew at each look; and how many there are. One that doesn't open is an
    error that names it."""
    source = pictures.listed(wanted)

    def batches(step: int) -> Tensor:
        rows = [source.rows[i] for i in sorted(drawn(wanted.seed, step, batch, len(source.rows)))]
        found = []
        for row, one in zip(rows, opened(replace(source, rows=rows), how), strict=True):
            if not isinstance(one, Opened):
                raise UserError(f"{row.name}: {one.reason}", hint="Take it out, or mend it")
            found.append(one.pixels)
        return torch.cat(found).to(wanted.device)

    return batches, len(source.rows)


def fine_tuned_vae(run: Path, base: str, unet_stage: Localizing, size: str) -> Path:
    """The first stage in run; gives the folder of the base with its new autoencoder."""
    bundle = load(base, dtype="float32", device=unet_stage.device)
    modules: dict[str, nn.Module] = {"vae": bundle.vae}
    how = replace(pictures.preparing(bundle, unet_stage), sampled=False)
    batches, count = pixels_of(unet_stage, how, SIZES[size]["vae"]["batch_size"])
    config = {
        "recipe": "seed_cool_japan", "stage": "vae", "base_sha256": bundle.sha256, "images": unet_stage.images,
        "pictures": count, "seed": unet_stage.seed, **SIZES[size]["vae"],
    }  # fmt: skip
    with Run(run, config) as held:
        plan = vae_plan(size, device=unet_stage.device, seed=unet_stage.seed)
        fit(modules, plan, batches, held, device=unet_stage.device)
        out = model_of(run)
        for module in (bundle.unet, bundle.vae):
            module.requires_grad_(False)
        return out if out.exists() else save(replace(bundle, folder=None), out, dtype="float16")


def main(
    run: str | Path, *, size: str = "emoji", device: str | None = None, seed: int = 0, base: str | None = None,
    images: str | None = None, caption_column: str | None = None,
) -> Path:  # fmt: skip
    """Both stages in run; gives the folder of the model. base: Stable Diffusion 2.x at 512 pixels; images: drawings,
    with English captions."""
    run = Path(run)
    if size == "emoji":
        base = base or BASE
        images = images or emoji_pictures(run, (LANGUAGE,), SIZES[size]["pictures"], seed)
    base, images = needed("seed_cool_japan.py", size, base=base, images=images)
    (wanted,) = stages(
        run, size, base=base, images=images, device=device_of(size, device), seed=seed, caption_column=caption_column
    )
    fine_tuned_vae(run / "vae", base, wanted, size)
    return done(wanted)

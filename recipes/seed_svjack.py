"""svjack/Stable-Diffusion-FineTuned-zh-v0: the UNet of Taiyi's model alone, at 256 pixels.

    kotoe train recipes/seed_svjack.py --run runs/svjack --size emoji
    kotoe train recipes/seed_svjack.py --run runs/svjack --size gpu24 --set base=TAIYI --set images=data.parquet \\
        --set caption_column=zh_prompt

One stage: the UNet; the text encoder, Taiyi's, is frozen.

As published: 256 pixels, proportions lost, bilinear; 16 pictures a step (theirs 4, accumulated over 4); rate 1e-5,
constant, no warming up; AdamW 0.9/0.999, weight decay 0.01, gradients clipped at 1; no caption emptied; no average
(theirs was kept and never used); the unweighted loss; samples of the posterior; 10,000 steps (28,000 and 56,000 for v1
and v2). Different: texts are padded to 512 as when drawing (theirs to the longest of four); pictures are not mirrored;
bfloat16 on a card (theirs float32). At emoji size the base is kotoe-emoji, whose Chinese is already taught, at half its
pixels too.

Expected time and score: gpu24 and gpu80 were not run. emoji: see docs/localization.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kotoe.localize.settings import Localizing
from recipes.seed_stages import BASE, device_of, done, emoji_pictures, needed

LANGUAGE = "zh"
SIZES: dict[str, dict[str, Any]] = {
    "emoji": {"pictures": 1200, "unet": {"resolution": 64, "steps": 300}},
    "gpu24": {"unet": {"resolution": 256, "steps": 10_000, "checkpointing": True}},
    "gpu80": {"unet": {"resolution": 256, "steps": 10_000}},
}


def stages(
    run: Path, size: str, *, base: str, images: str, device: str = "cpu", seed: int = 0,
    caption_column: str | None = None,
) -> tuple[Localizing, ...]:  # fmt: skip
    """The one stage's configuration."""
    return (
        Localizing(
            base=base, student=base, language=LANGUAGE, run=str(run / "unet"), plan="unet", images=images,
            caption_column=caption_column, crop="squash", resample="bilinear", latents="sample", batch_size=16, lr=1e-5,
            schedule="constant", warmup_steps=0, weight_decay=0.01, beta2=0.999, ema=0.0, weighting="plain",
            dropout=0.0, long_prompt="cut", seed=seed, device=device, **SIZES[size]["unet"],
        ),
    )  # fmt: skip


def main(
    run: str | Path, *, size: str = "emoji", device: str | None = None, seed: int = 0, base: str | None = None,
    images: str | None = None, caption_column: str | None = None,
) -> Path:  # fmt: skip
    """The stage in run; gives the folder of the model. base: one that reads Chinese; images: captions in Chinese."""
    run = Path(run)
    if size == "emoji":
        base = base or BASE
        images = images or emoji_pictures(run, (LANGUAGE,), SIZES[size]["pictures"], seed)
    base, images = needed("seed_svjack.py", size, base=base, images=images)
    (wanted,) = stages(
        run, size, base=base, images=images, device=device_of(size, device), seed=seed, caption_column=caption_column
    )
    return done(wanted)

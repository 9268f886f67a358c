"""rinna/japanese-stable-diffusion: a Japanese text encoder from scratch, in two stages.

    kotoe train recipes/seed_rinna.py --run runs/rinna --size emoji
    kotoe train recipes/seed_rinna.py --run runs/rinna --size gpu24 --set base=SD14 --set images=PICTURES

1. `stage1`: the encoder alone, from scratch, through the diffusion loss of the frozen model. 2. `stage2`: encoder and
UNet together.

As published: the two stages, what each trains, the tokenizer (SentencePiece unigram, 32,000 pieces, lower case, NFKC,
no bytes; --set tokenizer=FOLDER takes rinna's own) and 77 tokens. Not published: learning rate, batch, steps, dropout,
averages, sizes of pictures; here they are Stable Diffusion's own (AdamW, constant rate after warming up, 512 pixels, a
tenth of the captions emptied, samples of the posterior) with the batch that should fit the card. rinna read 100 million
pictures; both sizes here read a few of them at most once.

Expected time and score: gpu24 and gpu80 were not run. emoji: see docs/localization.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kotoe.localize.pictures import listed
from kotoe.localize.settings import Localizing
from kotoe.localize.vocabulary import train_sentencepiece
from recipes.seed_stages import device_of, done, emoji_english, emoji_pictures, model_of, needed

LANGUAGE = "ja"
SIZES: dict[str, dict[str, Any]] = {
    "emoji": {
        "pictures": 1200, "vocab_size": 1500, "max_tokens": 96,
        "stage1": {"steps": 300, "batch_size": 16, "lr": 5e-4, "warmup_steps": 30, "ema": 0.99},
        "stage2": {"steps": 100, "batch_size": 16, "lr": 1e-4, "warmup_steps": 30, "ema": 0.99},
    },
    "gpu24": {
        "vocab_size": 32_000, "max_tokens": 77,
        "stage1": {"steps": 200_000, "batch_size": 8, "lr": 1e-4, "warmup_steps": 10_000, "ema": 0.9999,
                   "checkpointing": True},
        "stage2": {"steps": 100_000, "batch_size": 2, "lr": 1e-5, "warmup_steps": 10_000, "ema": 0.0,
                   "checkpointing": True},
    },
    "gpu80": {
        "vocab_size": 32_000, "max_tokens": 77,
        "stage1": {"steps": 200_000, "batch_size": 64, "lr": 1e-4, "warmup_steps": 10_000, "ema": 0.9999,
                   "checkpointing": True},
        "stage2": {"steps": 100_000, "batch_size": 32, "lr": 1e-5, "warmup_steps": 10_000, "ema": 0.9999,
                   "checkpointing": True},
    },
}  # fmt: skip


def stages(
    run: Path, size: str, *, base: str, images: str, tokenizer: str | None = None, device: str = "cpu", seed: int = 0,
    caption_column: str | None = None,
) -> tuple[Localizing, ...]:  # fmt: skip
    """Both stages' configurations."""
    common: dict[str, Any] = {
        "language": LANGUAGE, "images": images, "caption_column": caption_column, "cache": str(run / "cache"),
        "latents": "sample", "dropout": 0.1, "long_prompt": "cut", "schedule": "constant", "weighting": "plain",
        "beta2": 0.999, "seed": seed, "device": device,
    }  # fmt: skip
    first = str(model_of(run / "stage1"))
    return (
        Localizing(
            base=base, run=str(run / "stage1"), plan="stage1", start="scratch", tokenizer=tokenizer, **common,
            **SIZES[size]["stage1"],
        ),
        Localizing(
            base=first, student=first, run=str(run / "stage2"), plan="stage2", **common, **SIZES[size]["stage2"]
        ),
    )  # fmt: skip


def main(
    run: str | Path, *, size: str = "emoji", device: str | None = None, seed: int = 0, base: str | None = None,
    images: str | None = None, tokenizer: str | None = None, caption_column: str | None = None,
) -> Path:  # fmt: skip
    """Both stages in run; gives the folder of the model. base: Stable Diffusion 1.4; images: captions in Japanese."""
    run, settings = Path(run), SIZES[size]
    if size == "emoji":
        base = base or emoji_english(run)
        images = images or emoji_pictures(run, (LANGUAGE,), settings["pictures"], seed)
    base, images = needed("seed_rinna.py", size, base=base, images=images)
    given: dict[str, Any] = {"base": base, "images": images, "device": device_of(size, device), "seed": seed}
    given["caption_column"] = caption_column
    if tokenizer is None:
        tokenizer = str(run / "tokenizer")
        if not Path(tokenizer).exists():
            train_sentencepiece(
                [row.caption for row in listed(stages(run, size, **given)[0]).rows], tokenizer, settings["vocab_size"],
                max_tokens=settings["max_tokens"], lower_case=True, byte_fallback=False, at_most=size == "emoji",
            )  # fmt: skip
    return [done(wanted) for wanted in stages(run, size, tokenizer=tokenizer, **given)][-1]

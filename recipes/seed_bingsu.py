"""Bingsu/my-korean-stable-diffusion-v1-5: a Korean CLIP text encoder distilled from texts, put in the old one's place.

    kotoe train recipes/seed_bingsu.py --run runs/bingsu --size emoji
    kotoe train recipes/seed_bingsu.py --run runs/bingsu --size gpu24 --set base=SD15 --set pairs=PAIRS

One stage: the pooled vector of a text and of its translation shall be what the English encoder says, equally much. UNet
and autoencoder stay as they are, and the other 76 states, which the UNet reads, are asked nothing: the author himself
points elsewhere for pictures. `kotoe localize`, which asks for what is read, is the better way; this is the record.

As published: the loss (squared error, Korean and English alike), 64 texts a step, weight decay 1e-4, CLIP's BPE trained
on Korean and English 7 to 3, EOS the last id. Different: AdamW for MADGRAD, at a constant 4e-4, which their scheduler
in practice stayed near; the error counts relative to the teacher's variance; a step's 64 are 32 pairs; the vector is
taken before CLIP's projection, which a Stable Diffusion doesn't hold; a fixed number of steps (theirs: until the loss
on 5 % rose three times). The script that made the published encoder is not public, nor what it began with: here the
English weights with new tokens.

Expected time and score: gpu24 and gpu80 were not run. emoji: see docs/localization.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kotoe.data.texts import read_pairs
from kotoe.localize.plans import Texts
from kotoe.localize.settings import Localizing
from kotoe.localize.vocabulary import train_clip_bpe
from recipes.seed_stages import device_of, done, emoji_english, emoji_pairs, needed

LANGUAGE = "ko"
SIZES: dict[str, dict[str, Any]] = {
    "emoji": {"pairs": 6000, "vocab_size": 1536, "max_tokens": 96, "distil": {"steps": 60}},
    "gpu24": {"vocab_size": 49_408, "max_tokens": 77, "distil": {"steps": 200_000}},
    "gpu80": {"vocab_size": 49_408, "max_tokens": 77, "distil": {"steps": 200_000}},
}


def stages(
    run: Path, size: str, *, base: str, pairs: str, tokenizer: str, device: str = "cpu", seed: int = 0
) -> tuple[Localizing, ...]:
    """The one stage's configuration. pairs: of English and Korean, and of English and English."""
    return (
        Localizing(
            base=base, language=LANGUAGE, run=str(run / "distil"), plan="distil-pooled", start="warm", pairs=(pairs,),
            tokenizer=tokenizer, batch_size=64, lr=4e-4, schedule="constant", warmup_steps=0, weight_decay=1e-4,
            beta2=0.999, ema=0.0, dropout=0.0, long_prompt="cut", seed=seed, device=device, **SIZES[size]["distil"],
        ),
    )  # fmt: skip


def with_english(run: Path, pairs: str) -> str:
    """A file of the pairs and, right after each, of its English with itself."""
    file = run / "both.jsonl"
    if not file.exists():
        run.mkdir(parents=True, exist_ok=True)
        texts = Texts(**read_pairs(pairs))
        part = file.with_suffix(".part")
        with part.open("w", encoding="utf-8") as out:
            for source, target in zip(texts.source, texts.target, strict=True):
                for said in (target, source):
                    out.write(json.dumps({"source": source, "target": said}, ensure_ascii=False) + "\n")
        part.rename(file)
    return str(file)


def main(
    run: str | Path, *, size: str = "emoji", device: str | None = None, seed: int = 0, base: str | None = None,
    pairs: str | None = None, tokenizer: str | None = None,
) -> Path:  # fmt: skip
    """The stage in run; gives the folder of the model. base: Stable Diffusion 1.5; pairs: of English and Korean."""
    run, settings = Path(run), SIZES[size]
    if size == "emoji":
        base = base or emoji_english(run)
        pairs = pairs or emoji_pairs(run, (LANGUAGE,), settings["pairs"], seed)
    base, pairs = needed("seed_bingsu.py", size, base=base, pairs=pairs)
    if tokenizer is None:
        tokenizer = str(run / "tokenizer")
        if not Path(tokenizer).exists():
            texts = Texts(**read_pairs(pairs))
            few = texts.source[: len(texts.source) * 3 // 7]  # 7 to 3
            train_clip_bpe([*texts.target, *few], tokenizer, settings["vocab_size"], max_tokens=settings["max_tokens"])
    (wanted,) = stages(
        run, size, base=base, pairs=with_english(run, pairs), tokenizer=tokenizer, device=device_of(size, device),
        seed=seed,
    )  # fmt: skip
    return done(wanted)

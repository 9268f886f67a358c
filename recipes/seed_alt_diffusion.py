"""BAAI/AltDiffusion: one multilingual encoder, XLM-RoBERTa with a projection, for many languages.

    kotoe train recipes/seed_alt_diffusion.py --run runs/alt --size emoji
    kotoe train recipes/seed_alt_diffusion.py --run runs/alt --size gpu24 --set base=SD21_BASE --set student=ALTCLIP \\
        --set images=PICTURES

1. `kv`: with the encoder frozen, the keys and values of the UNet's cross-attentions, at half the pixels. 2. `unet`: all
of the UNet at all pixels. 3. `empty`: the same with a tenth of the captions emptied. The encoder (`student`) is
AltCLIP's, distilled from texts beforehand; at emoji size stage `altclip` makes one, from random weights.

As published (m18): the stages, what they train, 256 and 512 pixels, AdamW at 1e-4 after 10,000 steps of warming up and
constant from there, weight decay 0.01, averages of 0.9999, squares cut out by chance, the unweighted loss. Different:
the batches, 3,072 and 3,840 there on 64 A100, are what should fit a card, and so the steps aren't as many pictures
(330,000, 270,000 and 150,000 steps there); averages are left out and the UNet's rate is a tenth on 24 GB; a square is
chosen once for each picture; captions over the limit are cut (theirs, from 75 characters on, are left out). Their code
trains queries and outputs in stage 1 as well, against the paper; this is the paper's. `altclip` asks for what the UNet
reads, not for the pooled vector as AltCLIP's first stage, and has no contrastive one.

All languages share the tag `language` ("mul" by default), since one encoder reads them all.

Expected time and score: gpu24 and gpu80 were not run. emoji: see docs/localization.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from kotoe.bert import BertText
from kotoe.checkpoints import conditioners, load
from kotoe.data.captions import vocabulary_texts
from kotoe.localize.settings import Localizing
from kotoe.localize.vocabulary import train_xlm_roberta
from kotoe.rng import initialising
from kotoe.spec import BertSpec
from kotoe.text import Conditioner
from recipes.seed_stages import device_of, done, emoji_english, emoji_pairs, emoji_pictures, model_of, needed

LANGUAGE = "mul"
LANGUAGES = ("ja", "zh", "ko")  # at emoji size
SIZES: dict[str, dict[str, Any]] = {
    "emoji": {
        "pictures": 1200, "pairs": 6000, "vocab_size": 3000, "max_tokens": 64,
        "altclip": {"steps": 300, "batch_size": 32, "lr": 1e-3},
        "kv": {"steps": 150, "batch_size": 16, "lr": 1e-4, "warmup_steps": 20, "ema": 0.99, "resolution": 64},
        "unet": {"steps": 100, "batch_size": 16, "lr": 1e-4, "warmup_steps": 20, "ema": 0.99},
        "empty": {"steps": 50, "batch_size": 16, "lr": 1e-4, "warmup_steps": 20, "ema": 0.99},
    },
    "gpu24": {
        "kv": {"steps": 330_000, "batch_size": 32, "lr": 1e-4, "warmup_steps": 10_000, "ema": 0.9999,
               "resolution": 256, "checkpointing": True},
        "unet": {"steps": 270_000, "batch_size": 2, "lr": 1e-5, "warmup_steps": 10_000, "ema": 0.0,
                 "resolution": 512, "checkpointing": True},
        "empty": {"steps": 150_000, "batch_size": 2, "lr": 1e-5, "warmup_steps": 10_000, "ema": 0.0,
                  "resolution": 512, "checkpointing": True},
    },
    "gpu80": {
        "kv": {"steps": 330_000, "batch_size": 256, "lr": 1e-4, "warmup_steps": 10_000, "ema": 0.9999,
               "resolution": 256, "checkpointing": True},
        "unet": {"steps": 270_000, "batch_size": 48, "lr": 1e-4, "warmup_steps": 10_000, "ema": 0.9999,
                 "resolution": 512, "checkpointing": True},
        "empty": {"steps": 150_000, "batch_size": 48, "lr": 1e-4, "warmup_steps": 10_000, "ema": 0.9999,
                  "resolution": 512, "checkpointing": True},
    },
}  # fmt: skip


def stages(
    run: Path, size: str, *, base: str, student: str, images: str, language: str = LANGUAGE, device: str = "cpu",
    seed: int = 0, caption_column: str | None = None,
) -> tuple[Localizing, ...]:  # fmt: skip
    """The three stages' configurations."""
    common: dict[str, Any] = {
        "language": language, "images": images, "caption_column": caption_column, "cache": str(run / "cache"),
        "crop": "random", "latents": "sample", "long_prompt": "cut", "schedule": "constant", "weighting": "plain",
        "weight_decay": 0.01, "beta2": 0.999, "seed": seed, "device": device,
    }  # fmt: skip
    made = []
    for name, plan, dropout in (("kv", "kv", 0.0), ("unet", "unet", 0.0), ("empty", "unet", 0.1)):
        more = {**common, **SIZES[size][name]}
        made.append(Localizing(base=base, student=student, run=str(run / name), plan=plan, dropout=dropout, **more))
        base = student = str(model_of(run / name))
    return tuple(made)


def random_xlm(run: Path, base: str, settings: dict[str, Any], seed: int) -> str:
    """A small XLM-RoBERTa with a projection and random weights that fits a base, and its tokenizer, in a folder."""
    folder = run / "student"
    if not folder.exists():
        texts = [text for language in ("en", *LANGUAGES) for text in vocabulary_texts(language)]
        most = settings["max_tokens"]
        tokenizer = train_xlm_roberta(texts, run / "tokenizer", settings["vocab_size"], max_tokens=most, overwrite=True)
        width = load(base).unet.spec.cross_attention_dim
        spec = BertSpec(
            vocab_size=tokenizer.vocab_size, hidden_size=width, intermediate_size=4 * width, num_layers=4,
            num_heads=width // 32, positions=most + tokenizer.pad + 1, token_types=1, layer_norm_eps=1e-5,
            bos=tokenizer.bos, eos=tokenizer.eos, pad=tokenizer.pad, counts_from_pad=True, masked=True,
            projection_dim=width,
        )  # fmt: skip
        with initialising(seed):
            encoder = BertText(spec)
            for part in encoder.modules():
                if isinstance(part, (nn.Linear, nn.Embedding)):
                    nn.init.normal_(part.weight, std=0.02 if part is not encoder.transformation else width**-0.5)
        conditioners.write(Conditioner(LANGUAGE, tokenizer, encoder), folder)
    return str(folder)


def altclip(run: Path, settings: dict[str, Any], seed: int, *, base: str, language: str, device: str) -> str:
    """An encoder for the emoji world that is distilled from texts alone; gives the folder of the model with it."""
    pairs = emoji_pairs(run, LANGUAGES, settings["pairs"], seed)
    wanted = Localizing(
        base=base, student=random_xlm(run, base, settings, seed), language=language, run=str(run / "altclip"),
        plan="distil-reader", start="given", pairs=(pairs,), dropout=0.1, long_prompt="cut", seed=seed, device=device,
        **settings["altclip"],
    )  # fmt: skip
    return str(done(wanted))


def main(
    run: str | Path, *, size: str = "emoji", device: str | None = None, seed: int = 0, base: str | None = None,
    student: str | None = None, images: str | None = None, language: str = LANGUAGE, caption_column: str | None = None,
) -> Path:  # fmt: skip
    """All stages in run; gives the folder of the model. base: Stable Diffusion 2.1 at 512 pixels (1.5 with AltCLIP's of
    m2 and m9); student: AltCLIP's text model; images: captions in any of its languages, without a column that names
    another than `language`."""
    run, settings, device = Path(run), SIZES[size], device_of(size, device)
    if size == "emoji":
        base = base or emoji_english(run)
        images = images or emoji_pictures(run, LANGUAGES, settings["pictures"], seed)
        student = student or altclip(run, settings, seed, base=base, language=language, device=device)
    base, student, images = needed("seed_alt_diffusion.py", size, base=base, student=student, images=images)
    given: dict[str, Any] = {"base": base, "student": student, "images": images, "language": language}
    made = stages(run, size, **given, device=device, seed=seed, caption_column=caption_column)
    return [done(wanted) for wanted in made][-1]

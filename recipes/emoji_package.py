"""kotoe-emoji, the last step: the runs' averaged weights as one folder of fp16 safetensors, and its name.

    python -m recipes.emoji_package runs src/kotoe/models/kotoe-emoji

Reads runs/{vae,base,languages,fast,tiny}, of the last three what is done: without any it writes the English model, the
base that the others want. Languages below ENOUGH of English's R@1 are left out.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from kotoe.checkpoints import Bundle, conditioners, save
from kotoe.checkpoints.bundle import Defaults, Fast
from kotoe.checkpoints.fast import with_small_decoder
from kotoe.text import Conditioner
from recipes import emoji_base, emoji_fast, emoji_languages, emoji_vae
from recipes.seed_stages import model_of

ENOUGH = 0.8  # of English's R@1


def bundle_of(runs: Path) -> Bundle:
    """The Bundle of a folder of runs, with the languages that have one."""
    unet, text, tokenizer = emoji_base.trained(runs / "base")
    bundle = Bundle(
        name="kotoe-emoji",
        unet=unet,
        vae=emoji_vae.trained(runs / "vae"),
        schedule=emoji_base.SCHEDULE,
        conditioners={"en": Conditioner("en", tokenizer, text)},
        default_language="en",
        family="sd1",
        licence="apache-2.0",
        defaults=Defaults(steps=emoji_base.STEPS, guidance_scale=emoji_base.GUIDANCE),
    )
    for name in emoji_languages.ENCODERS:
        folder = model_of(runs / "languages" / name)
        if folder.exists():
            shares = emoji_languages.reached(runs / "languages", name)
            tags = [tag for tag, share in shares.items() if share >= ENOUGH]
            if tags:
                bundle = conditioners.swap(bundle, tags, conditioners.read(folder, tags[0]).conditioner)
    return with_fast(bundle, runs)


def with_fast(bundle: Bundle, runs: Path) -> Bundle:
    """The bundle with the small decoder of `emoji_tiny.py` and the LoRA of `emoji_fast.py`, where runs have them."""
    decoder, lora = runs / "tiny" / "decoder", runs / "fast" / emoji_fast.STAGE / emoji_fast.WEIGHTS
    if decoder.exists():
        bundle = with_small_decoder(bundle, decoder, "float32")
    if lora.exists():
        small = "small" if bundle.small_decoder is not None else "full"
        how = replace(bundle.defaults, steps=emoji_fast.FAST_STEPS, guidance_scale=1.0, decoder=small, batch_size=16)
        bundle = replace(bundle, fast=Fast(defaults=how, lora=lora))
    return bundle


def main(runs: str | Path, folder: str | Path) -> Path:
    """Write the folder, all of it or nothing; files such as its card are kept."""
    return save(bundle_of(Path(runs)), folder, dtype="float16", overwrite=True)


if __name__ == "__main__":
    print(main(*sys.argv[1:]))

"""kotoe-emoji, the last step: the runs' averaged weights as one folder of fp16 safetensors, and its name.

    python -m recipes.emoji_package runs src/kotoe/models/kotoe-emoji

Reads runs/{vae,base,languages}. A run that goes on may be packaged too: its latest averages are taken.
"""

from __future__ import annotations

import sys
from pathlib import Path

from kotoe.checkpoints import Bundle, Defaults, save
from kotoe.localize.fit import load_average
from kotoe.text import Conditioner
from kotoe.vae import VAE
from recipes import emoji_base, emoji_languages, emoji_vae


def bundle_of(runs: Path) -> Bundle:
    """The Bundle of a folder of runs, with the languages that have one."""
    vae = VAE(emoji_vae.SPEC)
    last = max(runs.glob("vae/*/state.pt"), key=lambda file: file.stat().st_mtime)
    load_average({"vae": vae}, last.parent)
    unet, text, tokenizer = emoji_base.trained(runs / "base")
    conditioners = {"en": Conditioner("en", tokenizer, text)}
    for language in emoji_languages.LANGUAGES:
        found = emoji_languages.trained(runs / "languages" / language, text)
        if found is not None:
            conditioners[language] = Conditioner(language, *found)
    return Bundle(
        name="kotoe-emoji",
        unet=unet,
        vae=vae,
        schedule=emoji_base.SCHEDULE,
        conditioners=conditioners,
        default_language="en",
        family="sd1",
        licence="apache-2.0",
        defaults=Defaults(steps=10, guidance_scale=2.0),
    )


def main(runs: str | Path, folder: str | Path) -> Path:
    """Write the folder, all of it or nothing; files such as its card are kept."""
    return save(bundle_of(Path(runs)), folder, dtype="float16", overwrite=True)


if __name__ == "__main__":
    print(main(*sys.argv[1:]))

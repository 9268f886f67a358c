"""kotoe-emoji, the last step: the runs' averaged weights as one folder of fp16 safetensors, and its name.

    python -m recipes.emoji_package runs src/kotoe/models/kotoe-emoji

Reads runs/{vae,base,languages}. A run that goes on may be packaged too: its latest averages are taken.
"""

from __future__ import annotations

import sys
from pathlib import Path

from kotoe.checkpoints import Bundle, Defaults, save
from kotoe.text import Conditioner
from recipes import emoji_base, emoji_languages, emoji_vae


def bundle_of(runs: Path) -> Bundle:
    """The Bundle of a folder of runs, with the languages that have one."""
    unet, text, tokenizer = emoji_base.trained(runs / "base")
    conditioners = {"en": Conditioner("en", tokenizer, text)}
    for language in emoji_languages.LANGUAGES:
        found = emoji_languages.trained(runs / "languages" / language, text)
        if found is not None:
            conditioners[language] = Conditioner(language, *found)
    return Bundle(
        name="kotoe-emoji",
        unet=unet,
        vae=emoji_vae.trained(runs / "vae"),
        schedule=emoji_base.SCHEDULE,
        conditioners=conditioners,
        default_language="en",
        family="sd1",
        licence="apache-2.0",
        defaults=Defaults(steps=emoji_base.STEPS, guidance_scale=emoji_base.GUIDANCE),
    )


def main(runs: str | Path, folder: str | Path) -> Path:
    """Write the folder, all of it or nothing; files such as its card are kept."""
    return save(bundle_of(Path(runs)), folder, dtype="float16", overwrite=True)


if __name__ == "__main__":
    print(main(*sys.argv[1:]))

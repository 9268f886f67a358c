"""kotoe-emoji, part 4 of 4: an encoder for Japanese, Chinese and Korean, and one for 38 further languages.

    kotoe train recipes/emoji_languages.py --run runs/languages --set base=ENGLISH
    kotoe train recipes/emoji_languages.py --run runs/languages --set languages=mul

Each is one `kotoe localize` from parallel text alone (plan `distil-behind` from aligned tokens), its model in
runs/languages/<name>/bundle. base: a folder with the English model, as `emoji_package.py` writes it; by default the
built-in one. Large vocabularies pay: words that are one token each begin with a meaning, those in pieces have to be
learnt (docs/log.md). What they reach: benchmarks/localization.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kotoe.checkpoints import SEVERAL
from kotoe.errors import unknown
from kotoe.localize.settings import Localizing
from recipes.seed_stages import device_of, done, emoji_english, emoji_pairs

ENCODERS: dict[str, tuple[str, ...]] = {  # name: the languages it reads
    "cjk": ("ja", "zh", "ko", "zh-Hant"),
    "mul": (
        "am", "ar", "bn", "cs", "de", "el", "es", "eu", "fa", "fi", "fr", "he", "hi", "hu", "hy", "id", "it", "ka",
        "km", "ml", "mn", "my", "ne", "nl", "pl", "pt", "ro", "ru", "si", "sv", "sw", "ta", "te", "th", "tr", "uk",
        "ur", "vi",
    ),
}  # fmt: skip
SIZES: dict[str, dict[str, Any]] = {
    "cpu": {
        "cjk": {"steps": 10_000, "vocab_size": 6_000}, "mul": {"steps": 14_000, "vocab_size": 24_000},
        "pairs": 600_000,
    },
    "gpu": {
        "cjk": {"steps": 20_000, "batch_size": 256, "vocab_size": 6_000},
        "mul": {"steps": 40_000, "batch_size": 512, "vocab_size": 24_000}, "pairs": 20_000_000,
    },
}  # fmt: skip


def stage(run: Path, name: str, size: str, *, base: str, pairs: str, device: str = "cpu", seed: int = 0) -> Localizing:
    """An encoder's configuration."""
    return Localizing(
        base=base, language=SEVERAL, serves=ENCODERS[name], run=str(run / name), pairs=(pairs,), long_prompt="cut",
        seed=seed, device=device, **SIZES[size][name],
    )  # fmt: skip


def main(
    run: str | Path, *, size: str = "cpu", device: str | None = None, seed: int = 0, base: str | None = None,
    languages: str | None = None,
) -> dict[str, Path]:  # fmt: skip
    """Every encoder, or those named with commas between; gives the folders of their models."""
    run, names = Path(run), list(ENCODERS) if languages is None else languages.split(",")
    for name in names:
        if name not in ENCODERS:
            raise unknown("encoder", name, ENCODERS)
    base = base or emoji_english(run)
    made = {}
    for name in names:
        texts = emoji_pairs(run / f"pairs-{name}", ENCODERS[name], SIZES[size]["pairs"], seed)
        made[name] = done(stage(run, name, size, base=base, pairs=texts, device=device_of("emoji", device), seed=seed))
    return made

"""kotoe-emoji, part 4 of 4: Japanese, Chinese and Korean, an encoder each, and one encoder for all languages.

    kotoe train recipes/emoji_languages.py --run runs/languages --set base=ENGLISH
    kotoe train recipes/emoji_languages.py --run runs/languages --set languages=ja,mul

Each is one `kotoe localize` from parallel text alone (plan `distil-behind` from aligned tokens), its model in
runs/languages/<name>/bundle. base: a folder with the English model, as `emoji_package.py` writes it; by default the
built-in one. `mul` reads every language of the captions but English. What they reach: benchmarks/localization.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kotoe.data.captions import LANGUAGES
from kotoe.errors import unknown
from kotoe.localize.settings import Localizing
from recipes.seed_stages import device_of, done, emoji_english, emoji_pairs

OWN = ("ja", "zh", "ko")
ENCODERS: dict[str, tuple[str, ...]] = {  # name: the languages it reads
    **{tag: (tag,) for tag in OWN},
    "mul": tuple(tag for tag in LANGUAGES if tag != "en"),
}
SIZES: dict[str, dict[str, Any]] = {
    "cpu": {
        "pairs": 100_000, "own": {"steps": 3000}, "pairs_of_all": 600_000,
        "mul": {"steps": 16_000, "vocab_size": 16_000},
    },
    "gpu": {
        "pairs": 1_000_000, "own": {"steps": 10_000, "batch_size": 128}, "pairs_of_all": 20_000_000,
        "mul": {"steps": 40_000, "batch_size": 512, "vocab_size": 16_000},
    },
}  # fmt: skip


def stage(run: Path, name: str, size: str, *, base: str, pairs: str, device: str = "cpu", seed: int = 0) -> Localizing:
    """An encoder's configuration."""
    several = ENCODERS[name] if len(ENCODERS[name]) > 1 else ()
    return Localizing(
        base=base, language=name, serves=several, run=str(run / name), pairs=(pairs,), long_prompt="cut", seed=seed,
        device=device, **SIZES[size]["mul" if several else "own"],
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
        count = SIZES[size]["pairs" if len(ENCODERS[name]) == 1 else "pairs_of_all"]
        texts = emoji_pairs(run / f"pairs-{name}", ENCODERS[name], count, seed)
        made[name] = done(stage(run, name, size, base=base, pairs=texts, device=device_of("emoji", device), seed=seed))
    return made

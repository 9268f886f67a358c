"""kotoe-emoji, part 4 of 4: an encoder for Japanese, Chinese and Korean, and one for 38 further languages.

    kotoe train recipes/emoji_languages.py --run runs/languages --set base=ENGLISH
    kotoe train recipes/emoji_languages.py --run runs/languages --set languages=mul

Each is one `kotoe localize` from parallel text alone (plan `distil-behind` from aligned tokens), its model in
runs/languages/<name>/bundle, and what is reached by it in runs/languages/<name>-reached.json. base: a folder with the
English model, as `emoji_package.py` writes it; by default the built-in one. Large vocabularies pay: words that are one
token each begin with a meaning, those in pieces have to be learnt (docs/log.md).

Both are the built-in model's; its `cjk` had 10,000 steps and then, from there, 15,000 at the full rate again. What they
reach: the model's card.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kotoe import evaluate
from kotoe.checkpoints import SEVERAL, load
from kotoe.config import read_json
from kotoe.errors import unknown
from kotoe.localize.settings import Localizing
from kotoe.runs import write_atomic
from recipes.seed_stages import device_of, done, emoji_english, emoji_pairs, model_of

ENCODERS: dict[str, tuple[str, ...]] = {  # name: the languages it reads
    "cjk": ("ja", "zh", "ko", "zh-Hant"),
    "mul": (
        "am", "ar", "bn", "cs", "de", "el", "es", "eu", "fa", "fi", "fr", "he", "hi", "hu", "hy", "id", "it", "ka",
        "km", "ml", "mn", "my", "ne", "nl", "pl", "pt", "ro", "ru", "si", "sv", "sw", "ta", "te", "th", "tr", "uk",
        "ur", "vi",
    ),
}  # fmt: skip
JUDGED = 100  # prompts of one object in each language, and half as many of two
SIZES: dict[str, dict[str, Any]] = {
    "cpu": {
        "cjk": {"steps": 25_000, "vocab_size": 6_000}, "mul": {"steps": 20_000, "vocab_size": 24_000},
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
        reached(run, name)
    return made


def reached(run: Path, name: str) -> dict[str, float]:
    """R@1 of the languages that an encoder reads, as a share of English's (0 where that is 0). Drawn once, and kept."""
    file = run / f"{name}-reached.json"
    if not file.exists():
        bundle = load(model_of(run / name), dtype="float32")
        found = evaluate.run(bundle, languages=("en", *ENCODERS[name]), n=JUDGED, controls=False)
        write_atomic(file, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    languages = read_json(file)["languages"]
    return {tag: found["gap"]["value"] if "gap" in found else 0.0 for tag, found in languages.items() if tag != "en"}

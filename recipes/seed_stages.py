"""What the recipes of the published systems share: how a stage is done, and the emoji world's data for small sizes.

A recipe's `stages` gives configurations, one `kotoe localize` each; `main` does them in turn. Stopped anywhere, the
same command goes on: a stage that is done costs no more than loading it.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path

from PIL import Image

from kotoe import builtin
from kotoe.checkpoints import conditioners, load
from kotoe.data.captions import caption
from kotoe.data.emoji import atlas, scene
from kotoe.data.pairs import TWO, pairs
from kotoe.data.texts import read_pairs
from kotoe.errors import UserError
from kotoe.localize import localize as workbench
from kotoe.localize import pictures
from kotoe.localize.plans import Texts
from kotoe.localize.settings import Localizing

BASE = builtin.DEFAULT  # of every recipe at emoji size


def device_of(size: str, device: str | None) -> str:
    """The processor at emoji size, else the first card, where nothing is asked for."""
    return device or ("cpu" if size == "emoji" else "cuda")


def needed(recipe: str, size: str, **given: str | None) -> list[str]:
    """What was given, in its order. Raises UserError for a size for which some of it wasn't."""
    missing = [name for name, value in given.items() if value is None]
    if missing:
        asked = " ".join(f"--set {name}={name.upper()}" for name in missing)
        raise UserError(f"{recipe} at size {size} without {', '.join(missing)}", allowed=asked)
    return [value for value in given.values() if value is not None]


def done(wanted: Localizing) -> Path:
    """Do a stage, or go on with it; gives the folder of its model."""
    texts = Texts(**read_pairs(*wanted.pairs)) if wanted.pairs else None
    bundle = load(wanted.base, dtype="float32", device=wanted.device)
    captions = None
    if wanted.images is not None:
        captions = pictures.Pictures(source=pictures.listed(wanted), wanted=wanted, bundle=bundle, say=print)
    found = workbench.localize(bundle, wanted, pairs=texts, captions=captions, on_finding=print)
    out = model_of(wanted.run)
    return out if out.exists() else workbench.write(found, wanted)


def model_of(run: str | Path) -> Path:
    """Where a stage's model is put."""
    return Path(run) / "bundle"


# --- The emoji world ---------------------------------------------------------------------------------------------


def emoji_english(run: Path) -> str:
    """kotoe-emoji with its English conditioner alone: a base that has the other languages still to learn."""
    folder = run / "base"
    if not folder.exists():
        part = run / "base.part"
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(builtin.resolve(BASE), part)
        for language in conditioners.languages(part)[1:]:
            conditioners.remove(part, language)
        part.rename(folder)
    return str(folder)


def emoji_pairs(run: Path, languages: Sequence[str], count: int, seed: int) -> str:
    """A file of English texts and their translations, the languages in turn, each of other scenes."""
    file = run / "pairs.tsv"
    if not file.exists():
        run.mkdir(parents=True, exist_ok=True)
        each = -(-count // len(languages))
        sides = [pairs(language, each, seed=seed + k) for k, language in enumerate(languages)]
        rows = islice(chain.from_iterable(zip(*sides, strict=True)), count)
        part = file.with_suffix(".part")
        with part.open("w", encoding="utf-8", newline="\n") as out:
            out.writelines(f"{a}\t{b}\n" for a, b in chain([("source", "target")], rows))
        part.rename(file)
    return str(file)


def emoji_pictures(run: Path, languages: Sequence[str], count: int, seed: int) -> str:
    """A folder of pictures and their captions, the languages in turn."""
    folder = run / "pictures"
    if not folder.exists():
        part = run / "pictures.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        world = atlas()
        rows = []
        for i in range(count):
            shown = scene(seed, i, world.glyphs, pairs=TWO)
            pixels = world.render([shown])[0].permute(1, 2, 0)  # (H, W, 3)
            Image.fromarray(pixels.numpy()).save(part / f"{i:06}.png")
            language = languages[i % len(languages)]
            text = caption(shown, language, random.Random(f"{seed}:{i}:{language}"), tier="everyday")
            rows.append(json.dumps({"file_name": f"{i:06}.png", "text": text}, ensure_ascii=False))
        (part / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        part.rename(folder)
    return str(folder)

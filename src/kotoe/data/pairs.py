"""Parallel text: what English and another language say of the same scenes of the emoji world.

Row i is a pure function of (seed, i, split, tier), its English side whatever the other language is, so that files of
several languages made with one seed are parallel too.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from kotoe.data.captions import LANGUAGES, caption, word
from kotoe.data.cldr import load_objects
from kotoe.data.emoji import scene
from kotoe.errors import UserError, unknown

SOURCE = "en"
SPLITS = ("train", "held-out")
TWO = 0.25  # share of scenes with two objects, as in the recipes


def pairs(
    language: str, count: int, *, tier: str = "everyday", seed: int = 0, split: str = "train"
) -> Iterator[tuple[str, str]]:
    """(English caption, caption in the language) of `count` scenes, each side worded by chance.

    split: `train` draws only combinations that training may see, `held-out` only those it never does.
    Raises UserError, before the first row, for a language or tier without captions, English, a split or count there
    isn't.
    """
    others = tuple(tag for tag in LANGUAGES if tag != SOURCE)
    if language == SOURCE:
        raise UserError("parallel text of English and English", allowed=", ".join(others))
    if language not in others:
        raise unknown("caption language", language, others)
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if count < 1:
        raise UserError(f"{count} pairs", allowed="1 or more")
    glyphs = load_objects(tier)
    for tag in (SOURCE, language):
        word(0, tag, tier)  # are there names?

    def rows() -> Iterator[tuple[str, str]]:
        for i in range(count):
            shown = scene(seed, i, glyphs, pairs=TWO, held_out=split == "held-out")
            source, target = (
                caption(shown, tag, random.Random(f"{seed}:{i}:{side}"), tier=tier)
                for side, tag in (("source", SOURCE), ("target", language))
            )
            yield source, target

    return rows()

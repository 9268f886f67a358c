"""What a language must tell to describe scenes. One `Language` is one table: a file with a language's own grammar, or a
block of phrases that needs none (`plain.py`).

In the first entry of every list stands what the fixed evaluation caption says, the rest are other ways of saying it.
Template fields:

    {x} {y}   the objects ("x is <relation> of y"); {x.a} with its English article, {x.ga} {x.eun} {x.reul}
              {x.wa} {x.ro} the Korean particle that follows it
    {bg}      the background colour before the word for background; {bg.a} with its article, {bg.alone} standing alone
    {at}      the place in the picture; {at.short} as an item of a list
    {rel}     the relation; {p1} {p2} the places of x and y
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Words = tuple[str, ...]

CLOCKS = "🕛🕐🕑🕒🕓🕔🕕🕖🕗🕘🕙🕚"  # twelve, one, ... eleven o'clock
HALF_CLOCKS = "🕧🕜🕝🕞🕟🕠🕡🕢🕣🕤🕥🕦"  # half past the same


class Form(SimpleNamespace):
    """A phrase `n` and its inflected forms; formats as the plain phrase."""

    n: str

    def __format__(self, spec: str) -> str:
        return self.n


@dataclass(frozen=True, kw_only=True)
class Language:
    """One language's way of describing scenes.

    single, pair: templates by what is said: (colour, place) of one object, (colour, relation) of two.
    things:       everyday words by glyph, the one to use first; the bool is whether CLDR's name may be said too.
    """

    tag: str
    colours: Mapping[str, Words]  # before the word for background
    colour_nouns: Mapping[str, Words]  # standing alone
    sizes: Mapping[str, Words]
    places: Mapping[str, Words]
    short_places: Mapping[str, Words]
    relations: Mapping[str, Words]
    sides: Mapping[str, Words]  # where the first of two objects stands
    single: Mapping[tuple[bool, bool], Words]
    pair: Mapping[tuple[bool, bool], Words]
    forms: Callable[[str], Form]  # a noun phrase with its article or particles
    sized: str  # {size} and the noun {x} together
    things: Mapping[str, tuple[Words, bool]]
    rename: Callable[[str], str] = str  # a CLDR name as the language would say it ("flag: Japan": "flag of Japan")


def split(table: Mapping[str, str]) -> dict[str, Words]:
    """{"small": "small,tiny"} as {"small": ("small", "tiny")}."""
    return {key: tuple(value.split(",")) for key, value in table.items()}


def things(text: str) -> dict[str, tuple[Words, bool]]:
    """Everyday words from lines of `glyph word, another word; glyph ! word`.

    Words stand in order of preference. After `!` CLDR's own name is not said: it is wrong, or means another glyph too.
    """
    table: dict[str, tuple[Words, bool]] = {}
    for entry in text.replace("\n", ";").split(";"):
        if not entry.strip():
            continue
        glyph, words = entry.split(maxsplit=1)
        name_too = not words.startswith("!")
        glyph = glyph.replace("\ufe0f", "")
        if glyph in table:
            raise ValueError(f"{glyph} is listed twice")
        table[glyph] = (tuple(word.strip() for word in words.lstrip("! ").split(",")), name_too)
    return table

"""Languages that say a scene as a prompt of phrases, each complete in itself: "cat, at the top left, blue background".

Nothing is inflected by what stands beside it, so a table needs no grammar: names come from CLDR in the nominative,
the phrases round them from `phrases.py`. Adding a language is adding a block there, and here its comma if need be.
"""

from __future__ import annotations

from collections.abc import Mapping

from kotoe.data.languages.base import Form, Language, Words, things
from kotoe.data.languages.phrases import PHRASES

COLOURS = tuple("white,black,red,orange,yellow,green,light blue,blue,purple,pink,brown,grey".split(","))
PLACES = tuple("centre,top left,top,top right,left,right,bottom left,bottom,bottom right".split(","))
SIZES = ("small", "large")
SIDES = {"left_of": "left", "right_of": "right", "above": "top", "below": "bottom"}
COMMAS = {  # what parts phrases; elsewhere a comma and a space
    **dict.fromkeys(("ar", "fa", "ur"), "، "),
    **dict.fromkeys(("km", "lo", "th"), " "),
    **dict.fromkeys(("yue", "zh-Hant"), "，"),
    "am": "፣ ",
    "my": "၊ ",
}
_THINGS = {"id": "😶‍🌫️ wajah di dalam awan"}  # what CLDR 41 has no name for


def tables(text: str) -> dict[str, Language]:
    """Languages by tag from blocks as `phrases.py` describes them. ValueError for a block of another shape."""
    found: dict[str, Language] = {}
    for block in text.strip().split("\n\n"):
        language = _table(block)
        if language.tag in found:
            raise ValueError(f"{language.tag} is there twice")
        found[language.tag] = language
    return found


def _table(block: str) -> Language:
    lines = block.replace("\n  ", " ").split("\n")
    tag, _, beside = lines[0].partition(" ")
    if len(lines) != 6 or "{x}" not in beside or "{p}" not in beside:
        raise ValueError(f"{tag}: {len(lines)} lines, the first {lines[0]!r}")
    (grounds,), colours, places, sizes, (pictures,) = (
        _items(tag, line, count) for line, count in zip(lines[1:], (1, len(COLOURS), len(PLACES), len(SIZES), 1))
    )
    said = {
        colour: tuple(ground.format(word) for ground in grounds for word in words)
        for colour, words in zip(COLOURS, colours)
    }
    at = dict(zip(PLACES, places))
    sides = {relation: at[place] for relation, place in SIDES.items()}
    comma = COMMAS.get(tag, ", ")
    return Language(
        tag=tag,
        colours=said,
        colour_nouns=said,
        sizes=dict(zip(SIZES, sizes)),
        places=at,
        short_places=at,
        relations=sides,
        sides=sides,
        single=_single(comma, pictures),
        pair=_pair(comma, pictures, beside),
        forms=_uninflected,
        sized="{x}" + comma + "{size}",
        things=things(_THINGS.get(tag, "")),
    )


def _items(tag: str, line: str, count: int) -> list[Words]:
    """The line `a, b / c` as [("a",), ("b", "c")]."""
    items = [tuple(wording.strip() for wording in item.split("/")) for item in line.split(",")]
    if len(items) != count or not all(wording for words in items for wording in words):
        raise ValueError(f"{tag}: {len(items)} items instead of {count} in {line!r}")
    return items


def _uninflected(phrase: str) -> Form:
    return Form(n=phrase)


def _joined(comma: str, pictures: Words, *templates: str) -> Words:
    """Templates from phrases parted by "|"; one with PICTURE for each word for it."""
    said = [t.replace("PICTURE", word) for t in templates for word in (pictures if "PICTURE" in t else ("",))]
    return tuple(comma.join(template.split("|")) for template in said)


def _single(comma: str, pictures: Words) -> Mapping[tuple[bool, bool], Words]:
    return {
        (True, False): _joined(comma, pictures, "{x}|{bg}", "{bg}|{x}", "PICTURE|{x}|{bg}", "{x}|PICTURE|{bg}"),
        (True, True): _joined(
            comma, pictures, "{x}|{at}|{bg}", "{bg}|{x}|{at}", "{at}|{x}|{bg}", "PICTURE|{x}|{at}|{bg}"
        ),
        (False, False): _joined(comma, pictures, "{x}", "PICTURE|{x}", "{x}|PICTURE"),
        (False, True): _joined(comma, pictures, "{x}|{at}", "{at}|{x}", "PICTURE|{x}|{at}"),
    }


def _pair(comma: str, pictures: Words, beside: str) -> Mapping[tuple[bool, bool], Words]:
    first = beside.replace("{p}", "{p1}")
    second = beside.replace("{x}", "{y}").replace("{p}", "{p2}")
    both, other_way = f"{first}|{second}", f"{second}|{first}"
    return {
        (True, True): _joined(
            comma, pictures, f"{both}|{{bg}}", f"{{bg}}|{both}", f"{other_way}|{{bg}}", f"PICTURE|{both}|{{bg}}"
        ),
        (True, False): _joined(comma, pictures, "{x}|{y}|{bg}", "{bg}|{x}|{y}", "PICTURE|{x}|{y}|{bg}"),
        (False, True): _joined(comma, pictures, both, other_way, f"PICTURE|{both}"),
        (False, False): _joined(comma, pictures, "{x}|{y}", "PICTURE|{x}|{y}", "{x}|{y}|PICTURE"),
    }


PLAIN: dict[str, Language] = tables(PHRASES)

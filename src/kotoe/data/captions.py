"""Captions: what a person would type to get a scene drawn, in the languages of kotoe-emoji and in many it could learn.

The words come from `languages/` (colours, places, templates, everyday names) and from CLDR (all other names). A caption
by template number is fixed, for evaluation; a caption by a random generator varies template and wording, for training.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Protocol

from kotoe.data.cldr import Glyph, key, load_objects, names
from kotoe.data.languages import LANGUAGES, Form, Language
from kotoe.errors import UserError, unknown

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, kw_only=True, slots=True)
class Colour:
    """A background colour: sRGB 0 to 255. What a language calls it, its table says."""

    rgb: tuple[int, int, int]


COLOURS: dict[str, Colour] = {
    name: Colour(rgb=rgb)
    for name, rgb in {
        "white": (255, 255, 255),
        "black": (22, 22, 26),
        "red": (221, 51, 51),
        "orange": (247, 143, 40),
        "yellow": (252, 217, 64),
        "green": (62, 160, 85),
        "light blue": (150, 212, 242),
        "blue": (44, 96, 212),
        "purple": (128, 70, 180),
        "pink": (248, 158, 192),
        "brown": (124, 82, 52),
        "grey": (148, 150, 154),
    }.items()
}
POSITIONS = tuple(LANGUAGES["en"].places)
RELATIONS = ("left_of", "right_of", "above", "below")
OPPOSITE = {"left_of": "right_of", "right_of": "left_of", "above": "below", "below": "above"}

_SYNONYM_SHARE = 0.3  # of random captions say another word than the glyph's first one
_FLIP_SHARE = 0.3  # of random captions of pairs say "y right of x" for "x left of y"
_CENTRE_SHARE = 0.15  # of random captions say that a centred object is in the centre


# Soft hyphen, zero-width space and no-break space; direction marks, which only a display needs (52 Arabic names in
# CLDR 41 open an embedding that they don't close).
_UNSEEN = "\u00ad\u200b\ufeff" + "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_TYPED = str.maketrans(dict.fromkeys('“”„«»「」『』"' + _UNSEEN, "") | dict.fromkeys("’‘ʼʻ", "'"))


class SceneLike(Protocol):
    """What a caption needs to know of a scene. `objects` are one or two places in the tier's list of glyphs."""

    @property
    def objects(self) -> tuple[int, ...]: ...
    @property
    def size(self) -> str: ...
    @property
    def position(self) -> str: ...
    @property
    def relation(self) -> str | None: ...
    @property
    def background(self) -> str: ...
    @property
    def background_said(self) -> bool: ...


def caption(scene: SceneLike, language: str, template: int | random.Random = 0, *, tier: str = "all") -> str:
    """The scene in words.

    template: a number from 0 (fixed wording; 0 is what evaluation uses) or a random generator (any template, now and
    then another word, the opposite relation, the centre said).
    tier: the list of glyphs that `scene.objects` count in. `everyday` and `all` count alike.
    Raises UserError for a language, object, colour, size, position, relation or template there is none of.
    """
    table = _language(language)
    words = _words(language, tier)
    first, *others = scene.objects
    if not others:
        return _single(scene, table, words, first, template)
    return _pair(scene, table, words, first, others[0], template)


def templates(scene: SceneLike, language: str) -> tuple[str, ...]:
    """The templates that can describe this scene."""
    table = _language(language)
    if len(scene.objects) == 1:
        return table.single[scene.background_said, scene.position != "centre"]
    return table.pair[scene.background_said, scene.relation is not None]


def _single(scene: SceneLike, table: Language, words: _Words, index: int, template: int | random.Random) -> str:
    said, placed = scene.background_said, scene.position != "centre"
    if isinstance(template, int):
        x = _noun(table.tag, words.of(index)[0], scene.size, 0)
        chosen = _numbered(table.single[said, placed], template)
        return chosen.format(
            x=x, bg=_background(table.tag, scene.background, 0), at=_place(table.tag, scene.position, 0)
        )
    roll = template.random
    placed = placed or roll() < _CENTRE_SHARE
    options = table.single[said, placed]
    x = _noun(table.tag, _pick_word(words.of(index), roll), scene.size, int(roll() * 6))
    bg = _background(table.tag, scene.background, int(roll() * 12))
    at = _place(table.tag, scene.position, int(roll() * 6))
    return options[int(roll() * len(options))].format(x=x, bg=bg, at=at)


def _pair(
    scene: SceneLike, table: Language, words: _Words, first: int, second: int, template: int | random.Random
) -> str:
    relation = scene.relation
    options = table.pair[scene.background_said, relation is not None]
    if isinstance(template, int):
        x, y = (_noun(table.tag, words.of(i)[0], "medium", 0) for i in (first, second))
        chosen, way, tint = _numbered(options, template), 0, 0
    else:
        roll = template.random
        if roll() < _FLIP_SHARE:
            first, second = second, first
            relation = OPPOSITE[relation] if relation is not None else None
        x = _noun(table.tag, _pick_word(words.of(first), roll), "medium", 0)
        y = _noun(table.tag, _pick_word(words.of(second), roll), "medium", 0)
        chosen, way, tint = options[int(roll() * len(options))], int(roll() * 6), int(roll() * 12)
    bg = _background(table.tag, scene.background, tint)
    if relation is None:
        return chosen.format(x=x, y=y, bg=bg)
    rel, p1, p2 = _relation(table.tag, relation, way)
    return chosen.format(x=x, y=y, bg=bg, rel=rel, p1=p1, p2=p2)


def _numbered(options: tuple[str, ...], template: int) -> str:
    if not 0 <= template < len(options):
        raise UserError(f"no caption template {template} for this kind of scene", allowed=f"0 to {len(options) - 1}")
    return options[template]


def _pick_word(options: tuple[str, ...], roll: Callable[[], float]) -> str:
    if len(options) == 1 or roll() >= _SYNONYM_SHARE:
        return options[0]
    return options[1 + int(roll() * (len(options) - 1))]


@cache
def _noun(tag: str, word: str, size: str, way: int) -> Form:
    table = LANGUAGES[tag]
    if size == "medium":
        return table.forms(word)
    if size not in table.sizes:
        raise unknown("size", size, ("medium", *table.sizes))
    options = table.sizes[size]
    return table.forms(table.sized.format(size=options[way % len(options)], x=word))


@cache
def _background(tag: str, colour: str, way: int) -> Form:
    table = LANGUAGES[tag]
    if colour not in table.colours:
        raise unknown("colour", colour, COLOURS)
    options, nouns = table.colours[colour], table.colour_nouns[colour]
    form = LANGUAGES[tag].forms(options[way % len(options)])
    return Form(**{**vars(form), "alone": nouns[way % len(nouns)]})


@cache
def _place(tag: str, position: str, way: int) -> Form:
    table = LANGUAGES[tag]
    if position not in table.places:
        raise unknown("position", position, POSITIONS)
    options, short = table.places[position], table.short_places[position]
    return Form(n=options[way % len(options)], short=short[way % len(short)])


@cache
def _relation(tag: str, relation: str, way: int) -> tuple[str, str, str]:
    table = LANGUAGES[tag]
    if relation not in table.relations:
        raise unknown("relation", relation, RELATIONS)
    options, here, there = table.relations[relation], table.sides[relation], table.sides[OPPOSITE[relation]]
    return options[way % len(options)], here[way % len(here)], there[way % len(there)]


# ---- what things are called -----------------------------------------------------------------------------------------


class _Words:
    """The words for each glyph of a tier: first the one to use, then others that mean only this glyph."""

    def __init__(self, table: Language, tier: str) -> None:
        self.tier, self.glyphs = tier, load_objects(tier)
        taken = {word.casefold(): glyph for glyph, (words, _) in table.things.items() for word in words}
        cldr = names(table.tag)
        self.words: list[tuple[str, ...]] = []
        nameless: list[str] = []
        for glyph in (key(g.codepoints) for g in self.glyphs):
            mine, name_too = table.things.get(glyph, ((), True))
            own = (clean(cldr[glyph].tts, table),) if glyph in cldr else ()
            if name_too and all(taken.get(name.casefold(), glyph) == glyph for name in own):
                mine = (*mine, *own)
            said: dict[str, str] = {}
            for option in mine:
                said.setdefault(option.casefold(), option)  # "t-shirt" once, as "T-shirt"
            self.words.append(tuple(said.values()) or own)
            nameless += [] if self.words[-1] else [glyph]
        if nameless:
            raise UserError(
                f"CLDR has no name in {table.tag} for {len(nameless)} glyphs of the tier {tier!r}: {nameless[0]} ...",
                allowed="CLDR 41 or newer, and a tier it names whole",
            )

    def of(self, index: int) -> tuple[str, ...]:
        if not 0 <= index < len(self.words):
            raise UserError(f"no glyph {index} in the tier {self.tier!r}", allowed=f"0 to {len(self.words) - 1}")
        return self.words[index]


@cache
def _words(language: str, tier: str) -> _Words:
    return _Words(_language(language), tier)


def _language(tag: str) -> Language:
    if tag not in LANGUAGES:
        raise unknown("caption language", tag, LANGUAGES)
    return LANGUAGES[tag]


def clean(name: str, table: Language) -> str:
    """A CLDR name as one would type it in a sentence: without quotation marks, colons put in words.

    Signs that nobody sees and few keyboards have are dropped. The joiners U+200C and U+200D stay: they change letters.
    """
    return " ".join(table.rename(name.translate(_TYPED)).split())


def word(index: int, language: str, tier: str = "all") -> str:
    """What a language calls the tier's glyph with this index."""
    return _words(language, tier).of(index)[0]


def synonyms(language: str, tier: str = "everyday") -> dict[int, tuple[str, ...]]:
    """Further words of each glyph, none of which means another glyph too; glyphs without any are left out."""
    return {i: said[1:] for i, said in enumerate(_words(language, tier).words) if len(said) > 1}


def equivalents(language: str, tier: str = "everyday") -> dict[int, set[int]]:
    """For each glyph all glyphs (itself too) that the language calls by the same word: either picture is right."""
    groups: dict[str, set[int]] = {}
    for i, said in enumerate(_words(language, tier).words):
        groups.setdefault(said[0].casefold(), set()).add(i)
    return {i: group for group in groups.values() for i in group}


def ambiguous(language: str, tier: str = "everyday") -> dict[str, tuple[Glyph, ...]]:
    """Words that name more than one glyph of the tier, with those glyphs."""
    words = _words(language, tier)
    same = {min(group): group for group in equivalents(language, tier).values() if len(group) > 1}
    return {words.of(first)[0]: tuple(words.glyphs[i] for i in sorted(group)) for first, group in same.items()}


def vocabulary_texts(language: str, tier: str = "everyday") -> tuple[str, ...]:
    """All texts a tokenizer should be trained on: every word alone, and captions that use every template and word."""
    words = _words(language, tier)
    draw = random.Random(0)
    texts = [said for options in words.words for said in options]
    for index in range(len(words.words)):
        for colour in draw.sample(tuple(COLOURS), 4):
            size, position = draw.choice(("small", "medium", "large")), draw.choice(POSITIONS)
            single = _Described(objects=(index,), background=colour, size=size, position=position)
            other = draw.randrange(len(words.words))
            both = _Described(objects=(index, other), background=colour, relation=draw.choice(RELATIONS))
            texts += [caption(scene, language, draw, tier=tier) for scene in (single, both)]
    return tuple(texts)


@dataclass(frozen=True, kw_only=True)
class _Described:
    objects: tuple[int, ...]
    background: str
    background_said: bool = True
    size: str = "medium"
    position: str = "centre"
    relation: str | None = None


DEMO_PROMPTS: tuple[tuple[str, str], ...] = (  # language, prompt: the grid at the head of the README
    ("en", "a cat on a blue background"),
    ("en", "a strawberry on a white background"),
    ("en", "a rocket on a black background"),
    ("ja", "青い背景に猫"),
    ("ja", "黄色い背景に自転車"),
    ("ja", "ピンクの背景にタコ"),
    ("zh", "蓝色背景上的猫"),
    ("zh", "绿色背景上的熊猫"),
    ("zh", "白色背景上的向日葵"),
    ("ko", "파란 배경의 고양이"),
    ("ko", "하늘색 배경의 돌고래"),
    ("ko", "주황색 배경의 기타"),
)

"""Languages as prompts of phrases: whole, in their own script, agreeing with CLDR's words, and telling scenes apart."""

from __future__ import annotations

import random
import re
import time
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from kotoe.data import captions, cldr
from kotoe.data.captions import COLOURS, POSITIONS, RELATIONS, caption, templates, word
from kotoe.data.cldr import load_objects, names
from kotoe.data.languages import LANGUAGES, Language
from kotoe.data.languages.phrases import PHRASES
from kotoe.data.languages.plain import PLAIN, tables
from kotoe.errors import UserError
from scenes import Scene

pytestmark = [pytest.mark.needs("cldr"), pytest.mark.needs("unicode-data")]

ROOT = Path(__file__).resolve().parent.parent
TAGS = tuple(PLAIN)
SCRIPTS = {  # the first word of their letters' Unicode names; the others are written in Latin
    **dict.fromkeys(("ar", "fa", "ur"), "ARABIC"),
    **dict.fromkeys(("be", "bg", "kk", "mk", "mn", "ru", "sr", "uk"), "CYRILLIC"),
    **dict.fromkeys(("hi", "mr", "ne"), "DEVANAGARI"),
    **dict.fromkeys(("yue", "zh-Hant"), "CJK"),
    "am": "ETHIOPIC", "bn": "BENGALI", "el": "GREEK", "gu": "GUJARATI", "he": "HEBREW", "hy": "ARMENIAN",
    "ka": "GEORGIAN", "km": "KHMER", "kn": "KANNADA", "lo": "LAO", "ml": "MALAYALAM", "my": "MYANMAR",
    "pa": "GURMUKHI", "si": "SINHALA", "ta": "TAMIL", "te": "TELUGU", "th": "THAI",
}  # fmt: skip
ENGLISH = set(
    """background the top left right bottom upper lower corner side centre center middle small large size on at in of to
    a an and picture drawing image white black red orange yellow green light blue purple pink brown grey gray""".split()
)
SAME_AS_ENGLISH = {  # words that these languages write alike
    "af": {"in"}, "ca": {"a", "centre"}, "cy": {"brown"}, "da": {"orange"}, "de": {"in"}, "es": {"a"},
    "fr": {"centre", "image", "orange"}, "ga": {"an"}, "it": {"a", "in"}, "nl": {"in"}, "sv": {"orange"},
}  # fmt: skip


def phrases(table: Language) -> Iterator[tuple[str, str]]:
    """(what it means, phrase) of every phrase of a table."""
    for kind, said in (("background", table.colours), ("place", table.places), ("size", table.sizes)):
        for key, wordings in said.items():
            yield from ((f"{kind} {key}", wording) for wording in wordings)
    for template in table.single[False, False]:
        if picture := template.replace("{x}", "").strip("، ,，፣၊"):
            yield "picture", picture


# ---- the tables -----------------------------------------------------------------------------------------------------


def test_there_are_enough_and_the_ones_asked_for() -> None:
    assert len(PLAIN) >= 36
    assert {"sw", "hi", "ar", "th", "el", "fi"} <= PLAIN.keys()
    assert {"he", "fa", "ur", "km", "my", "yue", "zh-Hant"} <= PLAIN.keys()
    assert list(LANGUAGES)[:4] == ["en", "ja", "zh", "ko"]
    assert list(LANGUAGES)[4:] == sorted(PLAIN)


@pytest.mark.parametrize("tag", TAGS)
def test_tables_are_whole(tag: str) -> None:
    table, english = PLAIN[tag], LANGUAGES["en"]
    for field in ("colours", "colour_nouns", "sizes", "places", "short_places", "relations", "sides", "single", "pair"):
        assert set(getattr(table, field)) == set(getattr(english, field)), field
    for kind in (table.single, table.pair):
        for said, found in kind.items():
            assert len(found) >= 3, said
            assert len(set(found)) == len(found), said
    for relation, wordings in table.sides.items():  # "a at the top, b at the bottom": both in one manner
        assert len(wordings) == len(table.sides[captions.OPPOSITE[relation]]), relation


@pytest.mark.parametrize("tag", TAGS)
def test_phrases_are_clean_and_in_their_script(tag: str) -> None:
    script = SCRIPTS.get(tag, "LATIN")
    for meaning, phrase in phrases(PLAIN[tag]):
        assert phrase == " ".join(phrase.split()) == unicodedata.normalize("NFC", phrase), meaning
        assert not re.search(r"[{}/|,]", phrase), meaning
        for c in phrase:
            if unicodedata.category(c)[0] in "LM":
                assert unicodedata.name(c).startswith(script), (phrase, c)
            else:
                assert c in " '-\u200c\u200d", (phrase, c)  # joiners: Persian, Sinhala
        english = set(re.findall(r"[\w']+", phrase.casefold())) & ENGLISH
        assert english <= SAME_AS_ENGLISH.get(tag, set()), phrase


def test_every_word_taken_for_english_is_one() -> None:
    """No exception stands in SAME_AS_ENGLISH that is not needed."""
    for tag, alike in SAME_AS_ENGLISH.items():
        said = {w for _, phrase in phrases(PLAIN[tag]) for w in re.findall(r"[\w']+", phrase.casefold())}
        assert said & ENGLISH == alike, tag


def shared_phrases(table: Language) -> dict[str, set[str]]:
    """Phrases of a table that mean two things."""
    meanings: dict[str, set[str]] = {}
    for meaning, phrase in phrases(table):
        meanings.setdefault(phrase.casefold(), set()).add(meaning)
    return {phrase: said for phrase, said in meanings.items() if len(said) > 1}


@pytest.mark.parametrize("tag", TAGS)
def test_phrases_differ(tag: str) -> None:
    assert shared_phrases(PLAIN[tag]) == {}


def block(tag: str) -> str:
    return next(b for b in PHRASES.strip().split("\n\n") if b.startswith(f"{tag} "))


def test_tables_are_read_quickly() -> None:
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        tables(PHRASES)
        best = min(best, time.process_time() - began)
    assert best < 0.1, f"{best:.3f} s"  # 0.007 s on one core of a 2026 server


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("blauw", "", "12 items"),
        (", grijze", "", "11 items instead of 12"),
        ("klein formaat", "klein formaat, klein", "3 items instead of 2"),
        ("afbeelding", "een, afbeelding", "2 items instead of 1"),
        ("\n{} achtergrond", "", "5 lines"),
        ("{x} {p}", "{x}", "the first 'nl {x}'"),
    ],
)
def test_a_block_of_another_shape_is_refused(old: str, new: str, message: str) -> None:
    assert old in block("nl")
    if old == "blauw":  # an empty item
        old, new = "blauwe,", ","
    with pytest.raises(ValueError, match=message):
        tables(block("nl").replace(old, new))


def test_a_language_stands_there_once() -> None:
    with pytest.raises(ValueError, match="fi is there twice"):
        tables(f"{block('fi')}\n\n{block('fi')}")


# ---- against CLDR's own words ---------------------------------------------------------------------------------------

CIRCLES = dict(zip("white black red orange yellow green blue purple brown".split(), "⚪⚫🔴🟠🟡🟢🔵🟣🟤"))
OTHER_WORD = {  # where CLDR calls the circle something else than we call the background
    ("bn", "yellow"): "misspelt in CLDR 41",
    ("fil", "brown"): "English in CLDR",
    ("fil", "orange"): "English in CLDR",
    ("ml", "brown"): "English in CLDR",
    ("ru", "blue"): "CLDR's circle is light blue",
    ("sl", "purple"): "škrlaten in CLDR",
    ("ta", "purple"): "English in CLDR",
    ("uz", "orange"): "CLDR says carrot-coloured",
    ("vi", "blue"): "xanh is green too",
}
ALIKE = {"bn", "ml", "ne"}  # left and right share letters with one another, or with what else CLDR's arrows say


@cache
def in_common(a: str, b: str) -> int:
    """Length of the longest string that is in both."""
    a, b, best = a.casefold(), b.casefold(), 0
    for i in range(len(a)):
        while i + best < len(a) and a[i : i + best + 1] in b:
            best += 1
    return best


def nearest(wording: str, options: dict[str, str]) -> set[str]:
    """Those of the options that share most with a wording, if that is two letters or a Han character."""
    scores = {key: in_common(wording, option) for key, option in options.items()}
    most = max(*scores.values(), 1 if "\u4e00" <= wording[0] <= "\u9fff" else min(2, len(wording)))
    return {key for key, score in scores.items() if score == most}


def bare_colours(table: Language) -> dict[str, list[str]]:
    """The colours of a table's first way of saying a background, without what all of these begin and end with."""
    first = [said[0] for said in table.colours.values()]
    begin, end = _prefix(first), _prefix([w[::-1] for w in first])[::-1]
    return {
        colour: [w[len(begin) : len(w) - len(end)] for w in said if w.startswith(begin) and w.endswith(end)]
        for colour, said in table.colours.items()
    }


def _prefix(texts: list[str]) -> str:
    low, high = min(texts), max(texts)
    return low[: next((i for i, (a, b) in enumerate(zip(low, high)) if a != b), len(low))]


def disagreements(tag: str, table: Language) -> set[str]:
    """Colours, sides and corners that CLDR's names of circles and arrows, or the table itself, contradict."""
    said, found = names(tag), set()
    circles = {colour: said[circle].tts for colour, circle in CIRCLES.items()}
    bare = bare_colours(table)
    found |= {c for c in CIRCLES if not any(c in nearest(wording, circles) for wording in bare[c])}
    arrows = {"left": said["⬅"].tts, "right": said["➡"].tts}
    places = table.places
    for side in arrows:
        if tag not in ALIKE and not any(nearest(wording, arrows) == {side} for wording in places[side]):
            found.add(side)
    for v, h in product(("top", "bottom"), ("left", "right")):
        other_v, other_h = {"top": "bottom", "bottom": "top"}[v], {"left": "right", "right": "left"}[h]

        def most(wording: str, place: str) -> int:
            return max(in_common(wording, other) for other in places[place])

        for wording in places[f"{v} {h}"]:
            across, down = most(wording, f"{v} {other_h}"), most(wording, f"{other_v} {h}")
            if min(across, down) < most(wording, f"{other_v} {other_h}") or most(wording, h) < most(wording, other_h):
                found.add(f"{v} {h}")
    return found


@pytest.mark.parametrize("tag", TAGS)
def test_colours_and_sides_are_those_of_cldr(tag: str) -> None:
    assert disagreements(tag, PLAIN[tag]) == {colour for other, colour in OTHER_WORD if other == tag}


def test_swapped_words_are_seen() -> None:
    table = PLAIN["fi"]
    for kind, a, b in (
        ("colours", "blue", "green"),
        ("places", "left", "right"),
        ("places", "top left", "bottom right"),
    ):
        said = dict(getattr(table, kind))
        said[a], said[b] = said[b], said[a]
        assert {a, b} <= disagreements("fi", replace(table, **{kind: said})), (a, b)


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", TAGS)
def test_every_everyday_glyph_has_a_name_of_its_own(tag: str) -> None:
    """In the language or, for Norwegian Bokmål, in the one CLDR has it inherit from; none is taken from elsewhere."""
    chain = cldr._chain(cldr._cldr(), tag.replace("-", "_"))
    assert chain in ((tag.replace("-", "_"), "root"), ("no", "root"))
    everyday = {cldr.key(g.codepoints) for g in load_objects("everyday")}
    assert not names("root").keys() & everyday
    assert len(names(tag).keys() & everyday) == 836


@pytest.mark.parametrize("tag", TAGS)
def test_names_are_typed_signs_and_mean_one_glyph(tag: str) -> None:
    for tier in cldr.TIERS:
        count = len(load_objects(tier))
        assert captions.equivalents(tag, tier) == {i: {i} for i in range(count)}
        said = [word(i, tag, tier) for i in range(count)]
        for name in said:
            assert name == " ".join(name.split()) == unicodedata.normalize("NFC", name)
            assert {c for c in name if unicodedata.category(c) in ("Cc", "Cf")} <= {
                "\u200c",
                "\u200d",
            } or tier == "flags"
    table = {phrase.casefold() for _, phrase in phrases(PLAIN[tag])}
    assert not table & {word(i, tag).casefold() for i in range(836)}


def test_joiners_that_change_letters_are_kept() -> None:
    assert captions.clean("توپ\u200cفوتبال \u200f\u202bو", PLAIN["fa"]) == "توپ\u200cفوتبال و"
    assert captions.clean("bad\u00adkuip", PLAIN["nl"]) == "badkuip"
    assert captions.clean("o‘ng va oʻng", PLAIN["uz"]) == "o'ng va o'ng"
    assert sum("\u200c" in word(i, "fa") for i in range(836)) > 50


def test_a_tier_without_names_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for part in ("annotations", "annotationsDerived"):
        (tmp_path / part).mkdir()
    (tmp_path / "annotations" / "fi.xml").write_text('<ldml><annotation cp="🐈" type="tts">kissa</annotation></ldml>')
    monkeypatch.setenv("KOTOE_CLDR", str(tmp_path))
    with pytest.raises(UserError, match=r"no name in fi for 835 glyphs of the tier 'everyday'.*CLDR 41"):
        captions._Words(PLAIN["fi"], "everyday")


# ---- captions -------------------------------------------------------------------------------------------------------

GOLDEN = {
    "fi": ("kissa, sininen tausta", "kissa, pieni koko, ylhäällä vasemmalla, punainen tausta"),
    "ru": ("кошка, синий фон", "кошка, маленький размер, вверху слева, красный фон"),
    "ar": ("قطة، خلفية زرقاء", "قطة، حجم صغير، في أعلى اليسار، خلفية حمراء"),
    "th": ("แมว พื้นหลังสีน้ำเงิน", "แมว ขนาดเล็ก มุมซ้ายบน พื้นหลังสีแดง"),
    "sw": ("paka, mandharinyuma ya bluu", "paka, ukubwa mdogo, juu kushoto, mandharinyuma nyekundu"),
    "zh-Hant": ("貓，藍色背景", "貓，小尺寸，左上角，紅色背景"),
    "hi": ("बिल्ली, नीली पृष्ठभूमि", "बिल्ली, छोटा आकार, ऊपर बाईं ओर, लाल पृष्ठभूमि"),
}
GOLDEN_PAIR = {
    "fi": "kissa vasemmalla, koira oikealla, vihreä tausta",
    "tr": "solda kedi, sağda köpek, yeşil arka plan",
    "th": "แมวอยู่ด้านซ้าย สุนัขอยู่ด้านขวา พื้นหลังสีเขียว",
    "zh-Hant": "貓在左邊，狗在右邊，綠色背景",
    "he": "חתול משמאל, כלב מימין, רקע ירוק",
}
CAT, DOG = (next(g.index for g in load_objects() if g.codepoints == emoji) for emoji in "🐈🐕")


def test_golden() -> None:
    small = Scene(objects=(CAT,), size="small", position="top left", background="red")
    both = Scene(objects=(CAT, DOG), relation="left_of", background="green")
    assert {tag: (caption(Scene(objects=(CAT,)), tag), caption(small, tag)) for tag in GOLDEN} == GOLDEN
    assert {tag: caption(both, tag) for tag in GOLDEN_PAIR} == GOLDEN_PAIR


def test_the_page_of_languages_is_right() -> None:
    page = (ROOT / "docs/world.md").read_text("utf-8")
    rows = [row.strip("| ").split(" | ") for row in re.findall(r"^\|.*\|$", page, re.M)[2:]]
    small = Scene(objects=(CAT,), size="small", position="top left", background="red")
    assert {tag: said for tag, _, said in rows} == {tag: caption(small, tag) for tag in TAGS}
    assert f"in {len(PLAIN)} more" in page
    assert f"All {len(PLAIN)} languages" in page
    assert f"({len(OTHER_WORD)} words for colours of the {len(PLAIN) * len(CIRCLES)}," in page
    for other in ("README.md", "docs/evaluation.md"):
        assert re.search(rf"\b{len(LANGUAGES)}\b (with captions|languages)", (ROOT / other).read_text("utf-8")), other


@pytest.mark.parametrize("tag", TAGS)
def test_every_kind_of_every_glyph_is_well_formed(tag: str) -> None:
    """A fifth of the glyphs in each language, all of them in five."""
    draw = random.Random(tag)
    for index in range(TAGS.index(tag) % 5, 836, 5):
        background, size, position = draw.choice(list(COLOURS)), draw.choice(("small", "large")), draw.choice(POSITIONS)
        other, relation = (index + 1) % 836, draw.choice(RELATIONS)
        said = index % 4 > 0  # the colour
        single = Scene(objects=(index,), size=size, position=position, background=background, background_said=said)
        pair = Scene(objects=(index, other), relation=relation, background=background, background_said=said)
        apart = replace(pair, relation=None)
        for scene in (single, pair, apart):
            options = templates(scene, tag)
            for template in (index % len(options), draw):
                text = caption(scene, tag, template)
                assert text == " ".join(text.split())
                assert not re.search(r"[{}|]|, *,|，，|، *،|PICTURE", text), text
                assert word(index, tag) in text


@pytest.mark.parametrize("tag", ["sw", "hi", "ar", "th", "zh-Hant", "id"])
def test_vocabulary_holds_every_word_and_phrase(tag: str) -> None:
    """What a tokenizer of the language is trained on."""
    texts = captions.vocabulary_texts(tag, "all")
    assert {word(i, tag) for i in range(1580)} <= set(texts)
    everything = "\n".join(texts)
    assert [phrase for _, phrase in phrases(PLAIN[tag]) if phrase not in everything] == []


Meaning = tuple[object, ...]


def every_caption(table: Language, x: str, y: str) -> Iterator[tuple[str, Meaning]]:
    """Every wording of every scene of an object x, and of x and an object y, with what it means."""

    def grounds(said: bool) -> Iterable[tuple[str | None, str]]:
        return ((c, w) for c, words in table.colours.items() for w in words) if said else ((None, ""),)

    for (coloured, placed), options in table.single.items():
        sizes = [("medium", x), *((s, table.sized.format(size=w, x=x)) for s in table.sizes for w in table.sizes[s])]
        places = [(p, w) for p in table.places for w in table.places[p]] if placed else [("centre", "")]
        for (colour, bg), (size, sized), (place, at), option in product(grounds(coloured), sizes, places, options):
            yield option.format(x=sized, bg=bg, at=at), ("one", size, place, colour)
    for (coloured, related), options in table.pair.items():
        sides = [
            (relation, p1, p2)
            for relation in (table.sides if related else ())
            for p1, p2 in zip(table.sides[relation], table.sides[captions.OPPOSITE[relation]])
        ] or [(None, "", "")]
        for (colour, bg), (relation, p1, p2), option in product(grounds(coloured), sides, options):
            yield option.format(x=x, y=y, bg=bg, p1=p1, p2=p2), ("two", relation, colour)
            if relation is not None:  # and said of y and x
                yield option.format(x=y, y=x, bg=bg, p1=p1, p2=p2), ("two", captions.OPPOSITE[relation], colour)


def read_back(table: Language, x: str, y: str) -> dict[str, set[Meaning]]:
    meanings: dict[str, set[Meaning]] = {}
    for text, meaning in every_caption(table, x, y):
        meanings.setdefault(text.casefold(), set()).add(meaning)
    return meanings


@pytest.mark.parametrize("tag", TAGS)
def test_a_caption_says_one_scene(tag: str) -> None:
    """Colour, place, size and relation can be told back from any caption, in any of its wordings."""
    draw = random.Random(f"back {tag}")
    i, j = draw.sample(range(836), 2)
    meanings = read_back(PLAIN[tag], word(i, tag), word(j, tag))
    assert {text: found for text, found in meanings.items() if len(found) > 1} == {}
    for _ in range(60):
        said, colour, relation = draw.random() < 0.9, draw.choice(list(COLOURS)), draw.choice(RELATIONS)
        size, place = draw.choice(("small", "medium", "large")), draw.choice(POSITIONS)
        one = Scene(objects=(i,), size=size, position=place, background=colour, background_said=said)
        two = Scene(objects=(i, j), relation=relation, background=colour, background_said=said)
        shown = colour if said else None
        assert meanings[caption(one, tag, draw).casefold()] == {("one", size, place, shown)}
        assert meanings[caption(two, tag, draw).casefold()] == {("two", relation, shown)}


@pytest.mark.parametrize(("kind", "one", "other"), [("colours", "pink", "red"), ("places", "top", "left")])
def test_two_meanings_of_a_caption_are_seen(kind: str, one: str, other: str) -> None:
    table = PLAIN["fi"]
    said = {**getattr(table, kind), one: getattr(table, kind)[other]}
    meanings = read_back(replace(table, **{kind: said}), "kissa", "koira")
    assert any(len(found) > 1 for found in meanings.values())

"""Which of a model's languages a prompt is in: by script first, and honest about doubt. Standard library only.

Han characters alone may be Chinese or Japanese. The national character sets tell many apart: a character of GB 2312
that JIS X 0208 lacks was simplified in China, one of JIS X 0208 that neither GB 2312 nor Big5 has was in Japan.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from kotoe.errors import UserError, nearest

# Marks of Chinese and Japanese texts and the ASCII ones that stand for them. Taiyi's handbook: its pictures get
# watermarks from the former, since captions with them were advertisements.
ASCII_MARKS = str.maketrans("，。、！？；：（）", ",.,!?;:()")

# Scripts by the first word of their characters' Unicode names, and the languages they are read as, likeliest first.
# The Latin alphabet serves most languages: a model with several of them needs to be told.
SCRIPTS: dict[str, tuple[str, ...]] = {
    "ARABIC": ("ar", "fa", "ur", "ps"),
    "ARMENIAN": ("hy",),
    "BENGALI": ("bn", "as"),
    "BOPOMOFO": ("zh",),
    "CYRILLIC": ("ru", "uk", "bg", "sr", "be", "mk", "kk", "ky", "mn"),
    "DEVANAGARI": ("hi", "mr", "ne"),
    "ETHIOPIC": ("am", "ti"),
    "GEORGIAN": ("ka",),
    "GREEK": ("el",),
    "GUJARATI": ("gu",),
    "GURMUKHI": ("pa",),
    "HANGUL": ("ko",),
    "HEBREW": ("he", "yi"),
    "JAPANESE": ("ja",),
    "KANNADA": ("kn",),
    "KHMER": ("km",),
    "LAO": ("lo",),
    "MALAYALAM": ("ml",),
    "MYANMAR": ("my",),
    "ORIYA": ("or",),
    "SINHALA": ("si",),
    "TAMIL": ("ta",),
    "TELUGU": ("te",),
    "THAI": ("th",),
    "TIBETAN": ("bo",),
}
# ISO 639-3 for 639-1, where a translator of two hundred languages (NLLB) knows the language by the former: of a group
# of languages (Arabic, Malay, ...) the member that stands for it there.
_THREE = """
af afr ak aka am amh ar arb as asm ay ayr az azj ba bak be bel bg bul bm bam bn ben bo bod bs bos ca cat cs ces cy cym
da dan de deu dz dzo ee ewe el ell en eng eo epo es spa et est eu eus fa pes fi fin fj fij fo fao fr fra ga gle gd gla
gl glg gn grn gu guj ha hau he heb hi hin hr hrv ht hat hu hun hy hye id ind ig ibo is isl it ita ja jpn jv jav ka kat
kg kon ki kik kk kaz km khm kn kan ko kor ks kas ku kmr ky kir lb ltz lg lug li lim ln lin lo lao lt lit lv lvs mg plt
mi mri mk mkd ml mal mn khk mr mar ms zsm mt mlt my mya nb nob ne npi nl nld nn nno ny nya oc oci om gaz or ory pa pan
pl pol ps pbt pt por qu quy rn run ro ron ru rus rw kin sa san sc srd sd snd sg sag si sin sk slk sl slv sm smo sn sna
so som sq als sr srp ss ssw st sot su sun sv swe sw swh ta tam te tel tg tgk th tha ti tir tk tuk tl tgl tn tsn tr tur
ts tso tt tat tw twi ug uig uk ukr ur urd uz uzn vi vie wo wol xh xho yi ydd yo yor zh zho zu zul
""".split()
SAME = {**dict(zip(_THREE[1::2], _THREE[::2])), "no": "nb", "fil": "tl", "cmn": "zh", "iw": "he", "in": "id"}
CHINESE = {"CN": "Hans", "SG": "Hans", "TW": "Hant", "HK": "Hant", "MO": "Hant"}  # the script that a region writes
UNDETERMINED = "und"  # BCP 47's word for a language that nobody has named
HAN = ("zh", "ja", "yue")
NOT_LATIN = {tag for tags in (*SCRIPTS.values(), HAN) for tag in tags}
JAPANESE = ("HIRAGANA", "KATAKANA")
WEIGHT = {"CJK": 3, "HANGUL": 3, "HIRAGANA": 2, "KATAKANA": 2}  # a Han character says as much as 3 letters
SURE_HAN = 6  # this many Han characters without kana are hardly Japanese
MIXED = 0.3  # a second script with this share of the text makes the first doubtful

TRANSLATED = "With --translator a prompt in another language is translated first"

Source = Literal["asked", "detected", "shared", "unsure"]
Spelt = Callable[[str], tuple[object, int]]
"""Of a language: what reads it, and how many tokens that makes of the text. One reader can have several languages."""


@dataclass(frozen=True, kw_only=True)
class Detected:
    """A language the model has, and how it was found. "shared": one reader has this and others that it may be in."""

    tag: str
    source: Source


def canonical(asked: str) -> str:
    """A tag as BCP 47 writes it: fr of FRA, zh-Hant-TW of zh_hant_tw, pt-BR of por-br."""
    head, *rest = asked.replace("_", "-").split("-")
    head = SAME.get(head.lower(), head.lower())
    return "-".join([head, *(p.title() if len(p) == 4 else p.upper() if len(p) == 2 else p.lower() for p in rest)])


def primary(tag: str) -> str:
    """The language of a tag without script and region: zh of zh-Hant-TW."""
    return canonical(tag).split("-")[0]


def script_of(tag: str) -> str | None:
    """The script that a tag names (Latn, Hant, ...), or that is written in its region, where Chinese has two."""
    head, *rest = canonical(tag).split("-")
    named = [part for part in rest if len(part) == 4 and part.isalpha()]
    if head == "zh" and not named:
        named = [CHINESE[part] for part in rest if part in CHINESE]
    return named[0] if named else None


def covering(asked: str, available: Collection[str]) -> str | None:
    """As `choose`, but None where no available language is `asked`. UserError when it is ambiguous."""
    return choose(asked, available) if _named(asked, available) else None


def choose(asked: str, available: Collection[str]) -> str:
    """The available language that `asked` (BCP 47, any case) names: itself, or the language without its region."""
    named = _named(asked, available)
    if len(named) == 1:
        return named[0]
    by_lower = {canonical(tag).lower(): tag for tag in available}
    near = nearest(canonical(asked).lower(), by_lower)
    raise UserError(
        f"language {asked!r} is {'ambiguous' if named else 'not in this model'}",
        allowed=", ".join(sorted(named if named else available)),
        hint="" if named else f"Did you mean {by_lower[near]!r}? {TRANSLATED}" if near else TRANSLATED,
    )


def _named(asked: str, available: Collection[str]) -> list[str]:
    """The available languages that `asked` may mean."""
    by_lower = {canonical(tag).lower(): tag for tag in available}
    wanted = canonical(asked).lower()
    parts = wanted.split("-")
    for length in range(len(parts), 0, -1):
        found = by_lower.get("-".join(parts[:length]))
        if found is not None:
            return [found]
    return [tag for lower, tag in by_lower.items() if lower.startswith(wanted + "-")]


def has_letters(text: str) -> bool:
    """Whether there is a letter of a script known here: something to tell a language by."""
    return bool(_scripts(text))


def of_script(text: str) -> str | None:
    """The language of a text where its script leaves no choice among all languages known here: th, ja, ko, ..."""
    everyone = [tag for tags in (*SCRIPTS.values(), ("zh", "en", "fr")) for tag in tags]
    found = detect(text, everyone)
    return found.tag if found.source == "detected" else None


def written_in(text: str, language: str) -> bool:
    """Whether a text's script is one that a language is written in; a text without letters is in every script."""
    try:
        detect(text, (language,))
    except UserError:
        return False
    return True


def detect(
    text: str, available: Collection[str], default: str | None = None, *, spelt: Spelt | None = None
) -> Detected:
    """The likeliest of the available languages for a text.

    source is "shared" when the script leaves a choice of languages, but not of what reads them, and "unsure" when it
    leaves a choice of readers, when scripts are mixed, or when there are no letters.
    default: the model's own language, taken when the text says nothing. A conditioner whose language nobody has named
    ("und") reads every text that no other does. UserError when its script has no language here.
    spelt:   decides where the script doesn't: a tokenizer needs few tokens for the language that it was made of. None:
             each language has a reader of its own, and none is better than another.
    """
    default = next(iter(available)) if default is None else default
    if set(available) == {UNDETERMINED}:
        return Detected(tag=UNDETERMINED, source="detected")
    scripts = _scripts(text)
    if not scripts:
        return Detected(tag=default, source="unsure")
    (script, most), *others = scripts.most_common()
    mixed = sum(count for _, count in others) >= MIXED * (most + sum(count for _, count in others))
    tag, source = _language(script, text, available, default, spelt)
    return Detected(tag=tag, source="unsure" if mixed else source)


def _language(
    script: str, text: str, available: Collection[str], default: str, spelt: Spelt | None
) -> tuple[str, Source]:
    by_base: dict[str, str] = {}
    for tag in available:
        by_base.setdefault(tag.lower().replace("_", "-").split("-")[0], tag)
    if script == "CJK":
        return _han(text, available, by_base, spelt)
    if script == "LATIN":
        latin = [tag for base, tag in by_base.items() if base not in NOT_LATIN]
        if not latin:
            return _unnamed("Latin", available), "unsure"
        latin.sort(key=lambda tag: tag != default)
        tag, source = _fewest_tokens(latin, spelt)
        return tag, source if len(latin) > 1 or text.isascii() else "unsure"
    readings = [by_base[base] for base in SCRIPTS.get(script, ()) if base in by_base]
    if not readings:
        return _unnamed(script.capitalize(), available), "unsure"
    return _fewest_tokens(readings, spelt)


def _fewest_tokens(languages: Sequence[str], spelt: Spelt | None) -> tuple[str, Source]:
    """The language whose reader makes the fewest tokens of the text, the first of equals, and whether no other does."""
    if spelt is None or len(languages) == 1:
        return languages[0], "detected" if len(languages) == 1 else "unsure"
    read = [(*spelt(tag), tag) for tag in languages]
    fewest = min(tokens for _, tokens, _ in read)
    least = [(reader, tag) for reader, tokens, tag in read if tokens == fewest]
    if len({reader for reader, _ in least}) > 1:
        return least[0][1], "unsure"
    return least[0][1], "detected" if len(least) == 1 else "shared"


def _unnamed(script: str, available: Collection[str]) -> str:
    """The conditioner whose language nobody has named, for a script that none of the others is written in."""
    if UNDETERMINED in available:
        return UNDETERMINED
    raise _no_language(script, available)


def _han(text: str, available: Collection[str], by_base: dict[str, str], spelt: Spelt | None) -> tuple[str, Source]:
    readings = [by_base[base] for base in HAN if base in by_base]
    if not readings:
        return _unnamed("Han", available), "unsure"
    han = [c for c in unicodedata.normalize("NFKC", text) if _script(c) == "CJK"]
    simplified = sum(_in("gb2312", c) and not _in("shift_jis", c) for c in han)
    japanese = sum(_in("shift_jis", c) and not _in("gb2312", c) and not _in("big5", c) for c in han)
    traditional = sum(_in("big5", c) and not _in("gb2312", c) for c in han)
    if japanese > simplified:
        return by_base.get("ja", readings[0]), "detected" if "ja" in by_base else "unsure"
    chinese = [tag for tag in available if tag.lower().split("-")[0] in ("zh", "yue")]
    if not chinese:
        return readings[0], "unsure"
    if len(chinese) > 1:  # zh-Hans beside zh-Hant: the forms decide where they differ
        ending = "hant" if traditional > simplified else "hans"
        chinese = [t for t in chinese if t.lower().endswith(ending)] or chinese
    possessive = "的" in text.replace("目的", "")  # between nouns only in Chinese
    if simplified > japanese or possessive or (len(han) >= SURE_HAN and not japanese) or "ja" not in by_base:
        return chinese[0], "detected"
    return _fewest_tokens((chinese[0], by_base["ja"]), spelt)


def _no_language(script: str, available: Collection[str]) -> UserError:
    return UserError(
        f"the prompt is in {script} script, and this model has no language written in it",
        allowed=", ".join(sorted(available)),
        hint=f"Write the prompt in one of these, or name the one to read it as with --language. {TRANSLATED}",
    )


def _scripts(text: str) -> Counter[str]:
    """Weighted letters by script, kana and the Han around them as one."""
    found: Counter[str] = Counter()
    for c in unicodedata.normalize("NFKC", text):
        script = _script(c)
        if script:
            found[script] += WEIGHT.get(script, 1)
    if any(found[s] for s in JAPANESE):
        found["JAPANESE"] = sum(found.pop(s, 0) for s in (*JAPANESE, "CJK"))
    if found["HANGUL"] and found["HANGUL"] >= found["CJK"]:  # Korean with Han in it
        found["HANGUL"] += found.pop("CJK", 0)
    return +found


@cache
def _script(c: str) -> str:
    if c == "々":
        return "CJK"
    if not unicodedata.category(c).startswith("L"):
        return ""
    word = unicodedata.name(c, "").replace("-", " ").split(" ")[0]
    return word if word in SCRIPTS or word in WEIGHT or word == "LATIN" else ""


def _in(charset: str, c: str) -> bool:
    try:
        c.encode(charset)
    except UnicodeEncodeError:
        return False
    return True

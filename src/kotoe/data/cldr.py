"""What Unicode says about emoji: the list of glyphs, and their names and keywords in a hundred languages.

Reads `emoji-test.txt` (the list) and CLDR's `annotations*/*.xml` (the names) of the user's own machine; nothing of
either is shipped. Standard library only. Emoji newer than `NEWEST` are left out, so that indices mean the same on
every machine whatever release of the data it has.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING
from xml.parsers import expat

from kotoe.errors import UserError, unknown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NEWEST = (14, 0)  # the newest Emoji version whose names CLDR 41 (Debian 12) has in every language we speak
EVERYDAY_GROUPS = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")
TIERS = ("everyday", "all", "flags")

_CLDR_DEFAULT = "/usr/share/unicode/cldr"
_EMOJI_TEST_DEFAULT = "/usr/share/unicode/emoji/emoji-test.txt"
_INHERITED = "↑↑↑"  # CLDR's mark for "as in the parent locale"
_VARIATION = "\ufe0f"  # emoji presentation selector; CLDR leaves it out of its keys
_LINE = re.compile(r"([0-9A-F ]+?)\s*; fully-qualified\s*# \S+ E(\d+)\.(\d+) (.+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Glyph:
    """One emoji. `index` is its place in `load_objects("all")` followed by the flags, whatever tier it came from."""

    index: int
    codepoints: str
    group: str
    subgroup: str
    name_en: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Name:
    """What one language calls a glyph: its short name (`tts`) and further search words."""

    tts: str
    keywords: tuple[str, ...]


def load_objects(tier: str = "everyday") -> tuple[Glyph, ...]:
    """The glyphs of a tier, in an order that never changes: everyday things, then the rest, then flags.

    everyday: animals, food, places, activities, things. all: everyday, then faces, people and symbols. flags: flags.
    No skin-tone variants. Indices of `everyday` are 0 .. n-1, `all` continues them, `flags` comes after.
    Raises UserError for an unknown tier or when `emoji-test.txt` is not installed.
    """
    if tier not in TIERS:
        raise unknown("tier", tier, TIERS)
    everyday, rest, flags = _glyphs(_emoji_test())
    return {"everyday": everyday, "all": everyday + rest, "flags": flags}[tier]


def names(language: str) -> Mapping[str, Name]:
    """Names and keywords of a language, keyed by codepoints without U+FE0F (`key` makes that of any glyph).

    language: a BCP-47 tag (`ja`, `zh-Hant`, `pt_PT`); a missing name is taken from its CLDR parents, last from `root`.
    Raises UserError when CLDR is not installed or has no annotations in the language.
    """
    return _names(_cldr(), language.replace("-", "_"))


def languages() -> tuple[str, ...]:
    """BCP-47 tags of every language CLDR names emoji in, sorted; regional variants included, `root` not."""
    found = (p.stem for p in (_cldr() / "annotations").glob("*.xml"))
    return tuple(sorted(tag.replace("_", "-") for tag in found if tag != "root"))


def key(codepoints: str) -> str:
    """The codepoints as CLDR writes them: without the emoji presentation selector."""
    return codepoints.replace(_VARIATION, "")


# ---- where the data is ----------------------------------------------------------------------------------------------


def _emoji_test() -> Path:
    path = Path(os.environ.get("KOTOE_EMOJI_TEST") or _EMOJI_TEST_DEFAULT)
    if path.is_dir():
        path = path / "emoji-test.txt"
    if not path.is_file():
        raise UserError(
            f"no list of emoji at {path}",
            allowed="Unicode's emoji-test.txt",
            hint="On Debian or Ubuntu install the package unicode-data; elsewhere (macOS) take emoji-test.txt from "
            "unicode.org (Public/emoji) and set KOTOE_EMOJI_TEST to it",
        )
    return path


def _cldr() -> Path:
    given = Path(os.environ.get("KOTOE_CLDR") or _CLDR_DEFAULT)
    for folder in (given / "common", given):
        if (folder / "annotations").is_dir():
            return folder
    raise UserError(
        f"no CLDR annotations under {given}",
        allowed="a CLDR folder that holds common/annotations and common/annotationsDerived",
        hint="On Debian or Ubuntu install the package unicode-cldr-core; elsewhere (macOS) take CLDR's core.zip from "
        "unicode.org (Public/cldr), unpack it and set KOTOE_CLDR to the folder",
    )


# ---- the list -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _glyphs(path: Path) -> tuple[tuple[Glyph, ...], tuple[Glyph, ...], tuple[Glyph, ...]]:
    rows: dict[str, list[tuple[str, str, str, str]]] = {"everyday": [], "rest": [], "flags": []}
    for codepoints, group, subgroup, name in _rows(path):
        kind = "everyday" if group in EVERYDAY_GROUPS else "flags" if group == "Flags" else "rest"
        rows[kind].append((codepoints, group, subgroup, name))
    if not rows["everyday"]:
        raise UserError(
            f"{path} lists no emoji",
            allowed="Unicode's emoji-test.txt, as published",
            hint="Install it again",
        )
    parts, start = [], 0
    for part in rows.values():
        parts.append(
            tuple(
                Glyph(index=start + i, codepoints=c, group=g, subgroup=s, name_en=n)
                for i, (c, g, s, n) in enumerate(part)
            )
        )
        start += len(part)
    return parts[0], parts[1], parts[2]


def _rows(path: Path) -> Iterator[tuple[str, str, str, str]]:
    group = subgroup = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group:"):
            group = line.removeprefix("# group:").strip()
        elif line.startswith("# subgroup:"):
            subgroup = line.removeprefix("# subgroup:").strip()
        elif (found := _LINE.match(line)) and group != "Component":
            codepoints = "".join(chr(int(code, 16)) for code in found[1].split())
            toned = any(0x1F3FB <= ord(c) <= 0x1F3FF for c in codepoints)
            if not toned and (int(found[2]), int(found[3])) <= NEWEST:
                yield codepoints, group, subgroup, found[4].strip()


# ---- the names ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _names(folder: Path, language: str) -> Mapping[str, Name]:
    chain = _chain(folder, language)
    if chain == ("root",) and language != "root":
        tags = [p.stem for p in (folder / "annotations").glob("*.xml") if p.stem != "root"]
        raise unknown("CLDR language", language.replace("_", "-"), [t.replace("_", "-") for t in tags])
    tts: dict[str, str] = {}
    words: dict[str, tuple[str, ...]] = {}
    for locale in reversed(chain):  # root first, so that nearer locales win
        for part in ("annotations", "annotationsDerived"):
            path = folder / part / f"{locale}.xml"
            if path.is_file():
                _read_annotations(path, tts, words)
    return MappingProxyType({k: Name(tts=name, keywords=words.get(k, ())) for k, name in tts.items()})


def _read_annotations(path: Path, tts: dict[str, str], words: dict[str, tuple[str, ...]]) -> None:
    """Adds one file's names to `tts` and `words`. Entity declarations are refused, so that no file can blow up."""
    attributes: dict[str, str] = {}
    text: list[str] = []
    inside = False

    def start(tag: str, attrs: dict[str, str]) -> None:
        nonlocal attributes, inside
        if tag == "annotation":
            attributes, inside = attrs, True
            text.clear()

    def data(chunk: str) -> None:
        if inside:
            text.append(chunk)

    def end(tag: str) -> None:
        nonlocal inside
        if tag != "annotation":
            return
        inside = False
        value = "".join(text).strip()
        if not value or value == _INHERITED:
            return
        glyph = key(attributes["cp"])
        if attributes.get("type") == "tts":
            tts[glyph] = value
        else:
            parts = (part.strip() for part in value.split("|"))
            words[glyph] = tuple(part for part in parts if part and part != _INHERITED)

    def entity(name: str, *_: object) -> None:
        raise UserError(
            f"{path} declares the XML entity {name!r}", allowed="CLDR files as published, which declare none"
        )

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.CharacterDataHandler, parser.EndElementHandler = start, data, end
    parser.EntityDeclHandler = entity
    try:
        parser.Parse(path.read_bytes(), True)
    except expat.ExpatError as error:
        raise UserError(f"{path} is not well-formed XML ({error})", hint="Install CLDR again") from error


def _chain(folder: Path, language: str) -> tuple[str, ...]:
    """The locales to look in, nearest first, then root: CLDR's explicit parents, else the tag cut from the right."""
    parents, likely = _parents(folder), _likely(folder)
    chain: list[str] = []
    locale = language
    if "_" in locale and locale not in parents:
        base, *more = locale.split("_")
        full = likely.get(locale, "").split("_")
        # zh_TW is written in another script than zh: without this it would inherit simplified names
        if len(full) == 3 and len(more[0]) != 4 and full[1] != likely.get(base, "__").split("_")[1]:
            locale = "_".join(full)
    while locale != "root":
        if any((folder / part / f"{locale}.xml").is_file() for part in ("annotations", "annotationsDerived")):
            chain.append(locale)
        locale = parents.get(locale) or (locale.rpartition("_")[0] or "root")
    return (*chain, "root")


@lru_cache(maxsize=4)
def _parents(folder: Path) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for attrs in _elements(folder / "supplemental" / "supplementalData.xml", "parentLocale"):
        found.update(dict.fromkeys(attrs["locales"].split(), attrs["parent"]))
    return found or {
        "zh_Hant": "root",
        "pt_PT": "pt",
        "en_AU": "en_001",
        "en_GB": "en_001",
        "en_IN": "en_001",
    }


@lru_cache(maxsize=4)
def _likely(folder: Path) -> Mapping[str, str]:
    path = folder / "supplemental" / "likelySubtags.xml"
    return {attrs["from"]: attrs["to"] for attrs in _elements(path, "likelySubtag")}


def _elements(path: Path, tag: str) -> list[dict[str, str]]:
    """Attributes of every `tag` of a file; none when there is no such file."""
    if not path.is_file():
        return []
    rows: list[dict[str, str]] = []
    parser = expat.ParserCreate()
    parser.StartElementHandler = lambda name, attrs: rows.append(attrs) if name == tag else None
    parser.Parse(path.read_bytes(), True)
    return rows

"""Prompts against a list of terms, in scripts with and without spaces between words.

A term is looked up in the prompt's letters as they sound rather than as they are written: case, width, kana, accents,
zero-width signs, the parts of hangul syllables and the forms of hanzi make no difference. What is a word is then
decided script by script, since only some have spaces:

- Latin: a term is a whole word. With digits for letters (p0rn) and letters of other alphabets in between, too.
- Kanji, hanzi, kana, hangul: a term stands anywhere, unless it lies inside a longer innocent word of the list (裸 in
  裸眼, 色情 in 特色情侣, 누드 in 누드김밥); some only where a word begins, or a run of katakana.
- Letters set apart (p o r n, ヌ・ー・ド, 누 드) are read together, where each is alone; by brackets and weights, too.

It finds words, not meanings: what is described without any of them passes. docs/safety.md says how it was measured.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate, product
from pathlib import Path
from typing import Literal, NamedTuple

from kotoe.record import Found, Verdict
from kotoe.safety import reasons

CHECKER = "kotoe-terms"
TERMS = Path(__file__).parent / "terms.json"
SEXUAL, MINORS, MINOR = "sexual", "sexual-minors", "minor"  # minor: no category of its own, see `find`
ADULT_YEARS = 18
AGES = (  # the number is an age, in prompts as they are folded
    re.compile(r"(?<!\d)(\d{1,2}) ?(?:years? old|yrs? old|y o|yo)(?![a-z])"),
    re.compile(r"(?<!\d)(\d{1,2}) ?[岁才]"),
    re.compile(r"(?<!\d)(\d{1,2}) ?(?:살|세(?!기|대|트|계))"),
    re.compile(r"(?<![a-z])(" + "|".join("one two three four five six seven eight nine ten eleven twelve thirteen "
               "fourteen fifteen sixteen seventeen".split()) + r") years? old(?![a-z])"),
    re.compile(r"(?<![一二三四五六七八九十])(十?[一二三四五六七八九]|十)岁"),
)  # fmt: skip

# --- Letters --------------------------------------------------------------------------------------


class Letter(NamedTuple):
    """A letter as it is compared, its script, and where it is in the prompt (characters start up to end).

    script: l Latin, d digit, k katakana, h hiragana, c Han, g hangul, o another; " " a gap (one letter, however long),
            "." punctuation that ends a phrase.
    """

    char: str
    script: str
    start: int
    end: int


PHRASE_ENDS = frozenset('。、,;:!?<>"|\n')
ASCII_WIDE = {code + 0xFEE0: code for code in range(0x21, 0x7F)}
LEET_WORD = re.compile(r"[A-Za-z0-9@$!]+")
LEET = {"0": "o", "1": "i", "3": "e", "4": "a", "5": "s", "7": "t", "@": "a", "$": "s", "!": "i"}
# Letters of Cyrillic and Greek that look like Latin ones; read so only in words that have Latin letters, too.
LOOK_ALIKE = str.maketrans("аеорсухіјѕԁԛԝһηοαυνικρτε", "aeopcyxijsdqwhnoauvikpte")
WEIGHT = re.compile(r"[:：]\s*[+-]?[\d.．]+\s*(?=[)\]）］])")  # (word:1.3), and the brackets are gaps
LONGEST_CLUSTER = 16  # characters; sorting thousands of marks on one letter would take minutes
FILLERS = frozenset("\u115f\u1160\u3164\uffa0")
HALF_WIDTH_MARKS = frozenset("\uff9e\uff9f")
LEADS, VOWELS, TAILS = 0x1100, 0x1161, 0x11A7  # of hangul; a tail of 0 is none
SYLLABLES, LAST_SYLLABLE = 0xAC00, 0xD7A3
# Lead consonant to the tail of the same sound; ㄸ, ㅃ and ㅉ are never tails.
TAIL_OF = dict(zip((0, 1, 2, 3, 5, 6, 7, 9, 10, 11, 12, 14, 15, 16, 17, 18),
                   (1, 2, 4, 7, 8, 16, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27), strict=True))  # fmt: skip


def _script(c: str) -> str:
    code = ord(c)
    if "a" <= c <= "z":
        return "l"
    if c.isdigit() and c.isascii():
        return "d"
    if 0x30A1 <= code <= 0x30FA or c == "ー":
        return "k"
    if 0x3041 <= code <= 0x3096:
        return "h"
    if SYLLABLES <= code <= LAST_SYLLABLE or 0x1100 <= code <= 0x11FF:
        return "g"
    if c == "々" or 0x3400 <= code <= 0x9FFF or 0x20000 <= code <= 0x3FFFF or 0xF900 <= code <= 0xFAFF:
        return "c"
    if c in PHRASE_ENDS:
        return "."
    return "o" if c.isalnum() else " "


def _clusters(text: str) -> Iterator[tuple[str, int, int]]:
    """Characters with the marks and the hangul vowels and tails that belong to them."""
    start = 0
    for end in range(1, len(text) + 1):
        if end < len(text) and end - start < LONGEST_CLUSTER:
            c = text[end]
            if unicodedata.category(c) in ("Mn", "Mc", "Me") or c in HALF_WIDTH_MARKS or "\u1160" <= c <= "\u11ff":
                continue
        yield text[start:end], start, end
        start = end


def folded(text: str, forms: Mapping[str, str]) -> list[Letter]:
    """The letters of a prompt as they are compared. forms: character to the one it counts as."""
    letters: list[Letter] = []
    for cluster, start, end in _clusters(text):
        said = unicodedata.normalize("NFKC", cluster).casefold()
        if said and not "\u3040" <= said[0] <= "\u30ff" and not _script(said[0]) == "g":  # ä as a, but not が as か
            said = unicodedata.normalize("NFD", said)
        for c in said:
            if c in FILLERS or unicodedata.category(c) in ("Cf", "Mn", "Me"):
                continue  # seen by nobody
            script = _script(c)
            if script == "k" and c != "ー":
                c = chr(ord(c) - 0x60) if ord(c) <= 0x30F6 else c  # as hiragana
            c = forms.get(c, c) if script == "c" else " " if script == " " else c
            if letters and script == " " == letters[-1].script:
                letters[-1] = letters[-1]._replace(end=end)
            else:
                letters.append(Letter(c, script, start, end))
    return _syllables(_latin(letters))


def _latin(letters: list[Letter]) -> list[Letter]:
    """Words of mixed alphabets as Latin ones."""
    for first, last in _words(letters, "lo"):
        word = letters[first:last]
        if {"l", "o"} <= {x.script for x in word}:
            for i, letter in enumerate(word, first):
                c = letter.char.translate(LOOK_ALIKE)
                letters[i] = letter._replace(char=c, script="l" if "a" <= c <= "z" else letter.script)
    return letters


def _words(letters: Sequence[Letter], scripts: str) -> Iterator[tuple[int, int]]:
    """Runs of letters of these scripts, (first, last) each."""
    first = 0
    for i in range(len(letters) + 1):
        if i == len(letters) or letters[i].script not in scripts:
            if first < i:
                yield first, i
            first = i + 1


def _syllables(letters: list[Letter], *, closing: bool = False) -> list[Letter]:
    """Loose parts of hangul as syllables, as an input method would join them: ㅅㅔㄱㅅㅡ is 섹스.

    closing: a loose consonant between two syllables closes the one before it: 세ㄱ스 is 섹스.
    """
    made: list[Letter] = []

    def part(i: int, base: int, count: int) -> int | None:
        code = ord(letters[i].char) - base if i < len(letters) else -1
        return code if 0 <= code < count else None

    i = 0
    while i < len(letters):
        lead, vowel = part(i, LEADS, 19), part(i + 1, VOWELS, 21)
        if lead is not None and vowel is not None:
            code, last = SYLLABLES + (lead * 21 + vowel) * 28, i + 1
            tail = part(i + 2, LEADS, 19)
            if tail in TAIL_OF and part(i + 3, VOWELS, 21) is None:
                code, last = code + TAIL_OF[tail], i + 2
            made.append(Letter(chr(code), "g", letters[i].start, letters[last].end))
            i = last + 1
            continue
        before = ord(made[-1].char) - SYLLABLES if made else -1
        after = i + 1 < len(letters) and SYLLABLES <= ord(letters[i + 1].char) <= LAST_SYLLABLE
        if closing and lead in TAIL_OF and 0 <= before <= LAST_SYLLABLE - SYLLABLES and before % 28 == 0 and after:
            made[-1] = Letter(chr(before + SYLLABLES + TAIL_OF[lead]), "g", made[-1].start, letters[i].end)
        else:
            made.append(letters[i])
        i += 1
    return made


def deciphered(text: str) -> Iterator[str]:
    """The prompt with the letters that digits and signs inside its Latin words stand for, character for character."""
    narrow = text.translate(ASCII_WIDE)
    for one in ("i", "l"):
        table = str.maketrans({**LEET, "1": one})

        def read(match: re.Match[str], table: dict[int, str] = table) -> str:
            word = match[0]
            if not any(c.isalpha() for c in word):
                return word
            whole = word.rstrip("!")  # of a sentence
            return whole.translate(table) + word[len(whole) :]

        found = LEET_WORD.sub(read, narrow)
        if found != narrow:
            yield found
        if "1" not in narrow:
            return


# --- Terms ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Term:
    """A term or an innocent word, its letters folded. begins, ends: only where a word or a run of its script does."""

    category: str
    language: str
    said: str
    text: str
    begins: bool
    ends: bool
    open: bool


@dataclass(frozen=True, kw_only=True)
class Data:
    """terms.json, read. forms: character to the one that it counts as."""

    forms: dict[str, str]
    terms: tuple[Term, ...]
    innocent: tuple[Term, ...]
    sha256: str


@cache
def data() -> Data:
    """The list that comes with Kotoe."""
    content = TERMS.read_bytes()
    document = json.loads(content)
    forms = {c: group[0] for group in document["forms"] for c in group[1:]}

    def term(category: str, language: str, said: str) -> Term:
        bare = said.removeprefix("^").removesuffix("*").removesuffix("$")
        text = "".join(x.char for x in folded(bare, forms))
        return Term(
            category=category, language=language, said=bare, text=text,
            begins=said.startswith("^"), ends=said.endswith("$"), open=said.endswith("*"),
        )  # fmt: skip

    terms = [
        term(category, language, said)
        for language, categories in document["terms"].items()
        for category, listed in categories.items()
        for said in listed
    ]
    innocent = [
        term("", language, said)
        for language, listed in document["innocent"].items()
        for pattern in listed
        for said in _expanded(pattern)
    ]
    return Data(forms=forms, terms=tuple(terms), innocent=tuple(innocent), sha256=hashlib.sha256(content).hexdigest())


def _expanded(pattern: str) -> Iterator[str]:
    """[ab]c is ac and bc."""
    parts = [part[1:-1] if part.startswith("[") else (part,) for part in re.findall(r"\[[^\]]+\]|[^\[]+", pattern)]
    yield from ("".join(chosen) for chosen in product(*parts))


# --- Looking them up ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class View:
    """Letters to look terms up in. gaps: what stood before each letter and was taken out; None: nothing was."""

    letters: Sequence[Letter]
    gaps: Sequence[str | None]
    joined: bool

    @property
    def text(self) -> str:
        """The letters as a text of the same length."""
        return "".join(letter.char for letter in self.letters)


def _plain(letters: Sequence[Letter]) -> View:
    return View(letters=letters, gaps=[None] * len(letters), joined=False)


def _joined(prompt: str, letters: Sequence[Letter]) -> View:
    """Without the gaps between letters."""
    kept: list[Letter] = []
    gaps: list[str | None] = []
    gap: str | None = None
    for letter in letters:
        if letter.script == " ":
            gap = prompt[letter.start : letter.end]
        else:
            kept.append(letter)
            gaps.append(gap)
            gap = None
    return View(letters=kept, gaps=gaps, joined=True)


def views(prompt: str) -> Iterator[View]:
    """The ways in which a prompt is read."""
    prompt = WEIGHT.sub(lambda match: " " * len(match[0]), prompt)  # places stay what they are
    forms = data().forms
    letters = folded(prompt, forms)
    yield _plain(letters)
    if (closed := _syllables(letters, closing=True)) != letters:
        yield _plain(closed)
    joined = _joined(prompt, letters)
    if any(gap is not None for gap in joined.gaps[1:]):
        yield joined
        parts = _syllables(list(joined.letters))  # loose parts of hangul that were set apart
        if parts != joined.letters:
            before = {letter.start: gap for letter, gap in zip(joined.letters, joined.gaps, strict=True)}
            yield View(letters=parts, gaps=[before[part.start] for part in parts], joined=False)
    yield from (_plain(folded(text, forms)) for text in deciphered(prompt))


def _places(view: View, text: str, term: Term, *, innocent: bool = False) -> Iterator[tuple[int, int]]:
    """Where a term stands in a view, (first, last) letter, as a word of its script should.

    innocent: in letters set apart, however they are.
    """
    letters, gaps = view.letters, view.gaps
    at = text.find(term.text)
    while at >= 0:
        first, last = at, at + len(term.text)
        at = text.find(term.text, at + 1)
        if letters[last - 1].script == "l":
            tail = next((s for s in ("es", "s") if text.startswith(s, last) and not _latin_at(view, last + len(s))), "")
            last += len(tail)
            apart = view.joined and all(gap is not None for gap in gaps[first + 1 : last])
            while term.open and (_latin_at(view, last) or (apart and _latin_single(view, last))):
                last += 1
            if _latin_at(view, last):
                continue
        if letters[first].script == "l" and first and letters[first - 1].script == "l" and gaps[first] is None:
            continue
        if view.joined and not innocent and not _set_apart(view, first, last):
            continue
        if (term.begins and not _begins(view, first)) or (term.ends and not _ends(view, last)):
            continue
        yield first, last


def _latin_at(view: View, i: int) -> bool:
    return i < len(view.letters) and view.letters[i].script == "l" and view.gaps[i] is None


def _set_apart(view: View, first: int, last: int) -> bool:
    """Whether the letters from first to last were written apart to be read together, and not by chance."""
    letters, gaps = view.letters, view.gaps
    inner = gaps[first + 1 : last]
    opens = first == 0 or gaps[first] is not None or letters[first - 1].script == "."
    closes = last == len(letters) or gaps[last] is not None or letters[last].script == "."
    if letters[first].script == "l":
        closes = closes or letters[last].script != "l"
        if not opens or not closes or all(gap is None for gap in inner):
            return False
        if any(gap is None for gap in inner):  # nu-de, but not po rn, nor a part of a longer chain
            outer = (gaps[first] if first else None, gaps[last] if last < len(letters) else None)
            return all(gap is None or not _spacious(gap) for gap in inner) and all(
                gap is None or _spacious(gap) for gap in outer
            )
        # a n a l y s i s is no a n a l: no other single letter beside it, unless that is a word
        widest = max(len(gap or "") for gap in inner)  # wider gaps are between words
        before, after = (len(gaps[i] or "") if i < len(gaps) else 0 for i in (first, last))
        beside = letters[first - 1].char if before <= widest and _latin_single(view, first - 1) else "a"
        return beside in "ai" and (after > widest or not _latin_single(view, last))
    if not inner or any(gap is None for gap in inner):
        return False
    return opens or closes or last - first > 2  # 女性 交差点 is no 性交


def _apart_alone(view: View, first: int, last: int) -> bool:
    """Whether every letter from first to last stands alone."""
    return all(_single(view, i) for i in range(first, last))


def _spacious(gap: str) -> bool:
    return any(c.isspace() for c in gap)


def _single(view: View, i: int) -> bool:
    """Whether a letter stands alone, apart from others of its script."""
    letters, gaps = view.letters, view.gaps
    if i >= len(letters):
        return False
    script = letters[i].script
    after = i + 1 == len(letters) or gaps[i + 1] is not None or letters[i + 1].script != script
    return after and (i == 0 or gaps[i] is not None or letters[i - 1].script != script)


def _latin_single(view: View, i: int) -> bool:
    return 0 <= i < len(view.letters) and view.letters[i].script == "l" and _single(view, i)


def _begins(view: View, first: int) -> bool:
    letters, script = view.letters, view.letters[first].script
    # What is set apart letter by letter is one word: ピ エ ロ begins with ピ.
    chained = first > 0 and view.gaps[first] is not None and _single(view, first - 1)
    before = "" if first == 0 or (view.gaps[first] is not None and not chained) else letters[first - 1].script
    # In hiragana nothing says where a word begins: it does at the beginning of a phrase.
    return before not in ("h", "c", "k") if script == "h" else before != script


def _ends(view: View, last: int) -> bool:
    letters, script = view.letters, view.letters[last - 1].script
    return last == len(letters) or view.gaps[last] is not None or letters[last].script != script


class Spans:
    """Stretches of a text, many of them: is another inside a longer one?"""

    def __init__(self, spans: Iterable[tuple[int, int]]) -> None:
        ordered = sorted(spans)
        self.starts = [a for a, _ in ordered]
        self.ends = list(accumulate((b for _, b in ordered), max))  # the furthest of those that start no later

    def hold(self, start: int, end: int) -> bool:
        """Whether start to end lies inside one of them that is longer."""
        earlier, no_later = bisect_left(self.starts, start), bisect_right(self.starts, start)
        return (earlier > 0 and self.ends[earlier - 1] >= end) or (no_later > 0 and self.ends[no_later - 1] > end)


def find(prompt: str, language: str | None = None) -> tuple[Found, ...]:
    """The terms in a prompt, from left to right.

    language: of several languages that have a term, the one that is named. Words for minors, and ages under 18, count
    only beside a sexual term, and then as a category of their own.
    """
    hits: dict[tuple[str, int, int], Found] = {}
    shields: set[tuple[int, int]] = set()  # in letters as they stand, and in letters set apart: these only hide such
    loose: set[tuple[int, int]] = set()
    apart: set[tuple[str, int, int]] = set()
    known, own = data(), reasons.spoken(language)
    for view in views(prompt):
        text, letters = view.text, view.letters
        for term in known.innocent:
            for first, last in _places(view, text, term, innocent=True):
                whole = not view.joined or _apart_alone(view, first, last)
                (shields if whole else loose).add((letters[first].start, letters[last - 1].end))
        for term in known.terms:
            for first, last in _places(view, text, term):
                start, end = letters[first].start, letters[last - 1].end
                key = (term.category, start, end)
                if key not in hits or term.language == own:
                    hits[key] = _found(prompt, term.category, term.said, term.language, start, end)
                    if view.joined:
                        apart.add(key)
        for pattern in AGES:
            for match in pattern.finditer(text):
                if not match[1].isdigit() or int(match[1]) < ADULT_YEARS:
                    start, end = letters[match.start()].start, letters[match.end() - 1].end
                    said = f"age under {ADULT_YEARS}"
                    hits[MINOR, start, end] = _found(prompt, MINOR, said, own, start, end)
    plain, all_of_them = Spans(shields), Spans(shields | loose)
    found = [one for key, one in hits.items() if not (all_of_them if key in apart else plain).hold(one.start, one.end)]
    if any(one.category == SEXUAL for one in found):
        found = [replace(one, category=MINORS) if one.category == MINOR else one for one in found]
    found = [one for one in found if one.category != MINOR]
    # A longer find of the same category, or of the gravest, says a shorter one already.
    graver = {c: Spans((x.start, x.end) for x in found if x.category in (c, MINORS)) for c in reasons.CATEGORIES}
    kept = [one for one in found if not graver[one.category].hold(one.start, one.end)]
    return tuple(sorted(kept, key=lambda one: (one.start, one.end, one.category)))


def _found(prompt: str, category: str, term: str, language: str, start: int, end: int) -> Found:
    return Found(
        category=category, term=term, language=language, written=prompt[start:end], start=start, end=end
    )  # fmt: skip


def check_prompt(
    prompt: str, *, read: str | None = None, language: str | None = None, action: Literal["flag", "block"] = "flag"
) -> Verdict:
    """The Verdict on a prompt. language: BCP 47, for the reason.

    read: what the encoder reads of it, without brackets and weights, where that is something else: looked at where the
          prompt as it was written has no terms, or none as grave.
    Sexual content with minors is never only flagged: its action is "block".
    """
    found = find(prompt, language)
    if read is not None and read != prompt:
        further = find(read, language)
        found = further if not found or any(one.category == MINORS for one in further) else found
    grave = any(one.category == MINORS for one in found)
    return Verdict(
        allowed=not found,
        reason=reasons.of_prompt(found, language),
        checker=CHECKER,
        checker_sha256=data().sha256,
        action="block" if grave else action,
        score=float(len(found)),
        found=found,
    )

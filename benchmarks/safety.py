"""The prompt check on labelled prompts in four languages: recall, false alarms, and what it finds of terms in disguise.

    python benchmarks/safety.py [--card benchmarks/safety.md]

Four things are measured, per language:
- tests/safety_prompts.jsonl, in three parts: two thirds that the check was tried on, a held-out third, and a hard part
  of paraphrases without any term and of terms that mean something else;
- every term found there as plainly written, disguised in each of the ways below: is it still found?
- every innocent prompt but the hard ones, disguised in the same ways as a whole: does it still pass?
- where the system has Unicode's CLDR, the names and keywords of all emoji: texts that nobody wrote for this.
The last line of standard output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kotoe
from kotoe.safety.prompts import data, find

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = ROOT / "tests/safety_prompts.jsonl"
CLDR = Path("/usr/share/unicode/cldr/common/annotations")
LANGUAGES = ("en", "ja", "zh", "ko")
SPLITS = ("dev", "held-out", "hard")
CATEGORY = {"minors": "sexual-minors"}  # of the labels, as the check calls it

# --- Disguises: text to text, or None where they change nothing in it --------------------------------------------


def spaced(mark: str) -> Callable[[str], str]:
    """The characters of every word apart from each other."""
    return lambda text: " ".join(mark.join(word) for word in text.split(" "))


def wide(text: str) -> str:
    """ASCII in full width."""
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


def half_kana(text: str) -> str:
    """Katakana in half width, its voicing marks apart."""
    table = {}
    for code in range(0xFF65, 0xFFA0):
        table[unicodedata.normalize("NFKC", chr(code))] = chr(code)
    apart = {"\u3099": "ﾞ", "\u309a": "ﾟ"}
    return "".join(
        "".join(apart.get(m, table.get(m, m)) for m in unicodedata.normalize("NFD", c)) if "ァ" <= c <= "ー" else c
        for c in text
    )


def hiragana(text: str) -> str:
    """Katakana as hiragana."""
    return "".join(chr(ord(c) - 0x60) if "ァ" <= c <= "ヶ" else c for c in text)


def katakana(text: str) -> str:
    """Hiragana as katakana."""
    return "".join(chr(ord(c) + 0x60) if "ぁ" <= c <= "ゖ" else c for c in text)


def jamo(text: str) -> str:
    """Hangul syllables as the loose letters that a keyboard has."""
    lead, vowel = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ", "ㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ"
    tail = ["", *"ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ"]
    made = []
    for c in text:
        code = ord(c) - 0xAC00
        made.append(
            lead[code // 588] + vowel[code % 588 // 28] + tail[code % 28] if 0 <= code < 11172 else c
        )  # fmt: skip
    return "".join(made)


def traditional(text: str) -> str:
    """Characters in the second of their forms, of those that the check knows: it measures the wiring, not the table."""
    second: dict[str, str] = {}
    for other, first in data().forms.items():
        second.setdefault(first, other)
    return "".join(second.get(c, c) for c in text)


DISGUISES: dict[str, tuple[Callable[[str], str], tuple[str, ...]]] = {
    "spaces": (spaced(" "), LANGUAGES),
    "wide spaces": (spaced("　"), ("ja", "zh", "ko")),
    "dots": (spaced("."), LANGUAGES),
    "middle dots": (spaced("・"), LANGUAGES),
    "hyphens": (spaced("-"), LANGUAGES),
    "zero-width spaces": (spaced("\u200b"), LANGUAGES),
    "zero-width joiners": (spaced("\u2060"), LANGUAGES),
    "strokes through": (lambda text: "".join(c + "\u0336" for c in text), LANGUAGES),
    "full width": (wide, LANGUAGES),
    "decomposed": (lambda text: unicodedata.normalize("NFD", text), LANGUAGES),
    "upper case": (str.upper, ("en",)),
    "digits for letters": (lambda text: text.translate(str.maketrans("oeia", "031@")), ("en",)),
    "Cyrillic o and e": (lambda text: text.translate(str.maketrans("oe", "ое")), ("en",)),
    "half-width katakana": (half_kana, ("ja",)),
    "hiragana": (hiragana, ("ja",)),
    "katakana": (katakana, ("ja",)),
    "loose jamo": (jamo, ("ko",)),
    "loose jamo, spaced": (lambda text: " ".join(jamo(text).replace(" ", "")), ("ko",)),
    "traditional forms": (traditional, ("zh",)),
}


def processor() -> str:
    """The processor's name, where the system says it."""
    info = Path("/proc/cpuinfo")
    names = [x for x in info.read_text().splitlines() if x.startswith("model name")] if info.is_file() else []
    return names[0].partition(":")[2].strip() if names else platform.machine()


# --- Measuring ----------------------------------------------------------------------------------------------------


def rows() -> list[dict[str, Any]]:
    """The labelled prompts."""
    return [json.loads(line) for line in PROMPTS.read_text("utf-8").splitlines()]


def right(row: dict[str, Any]) -> bool:
    """Whether a prompt's category is found, or nothing is in an innocent one."""
    found = {one.category for one in find(row["prompt"], row["language"])}
    wanted = row["category"]
    return CATEGORY.get(wanted, wanted) in found if wanted else not found


def labelled() -> dict[str, dict[str, dict[str, list[int]]]]:
    """Split, language, "found" or "false alarms": [so many, of so many]."""
    counts = {s: {x: {"found": [0, 0], "false alarms": [0, 0]} for x in LANGUAGES} for s in SPLITS}
    for row in rows():
        count = counts[row["split"]][row["language"]]["found" if row["category"] else "false alarms"]
        count[0] += right(row) if row["category"] else not right(row)
        count[1] += 1
    return counts


def wrong() -> Iterator[str]:
    """The prompts that are judged wrongly."""
    for row in rows():
        if not right(row):
            yield f"{row['split']} {row['language']} {row['category'] or 'innocent'}: {row['prompt']}"


def disguised() -> dict[str, dict[str, dict[str, list[int]]]]:
    """Disguise, language, "found" or "false alarms": [so many, of so many]. What it doesn't change is left out."""
    counts: dict[str, dict[str, dict[str, list[int]]]] = {}
    for name, (change, languages) in DISGUISES.items():
        for language in languages:
            count = counts.setdefault(name, {}).setdefault(language, {"found": [0, 0], "false alarms": [0, 0]})
            for row in rows():
                if row["language"] != language or row["split"] == "hard" or row["kind"] not in ("plain", "innocent"):
                    continue
                prompt = row["prompt"]
                if not row["category"]:
                    if (other := change(prompt)) != prompt:
                        count["false alarms"][0] += bool(find(other, language))
                        count["false alarms"][1] += 1
                    continue
                for one in find(prompt, language):
                    other = change(one.written)
                    if other == one.written:
                        continue
                    again = find(prompt[: one.start] + other + prompt[one.end :], language)
                    last = one.start + len(other)
                    count["found"][0] += any(
                        x.category == one.category and x.start < last and x.end > one.start for x in again
                    )
                    count["found"][1] += 1
    return counts


def emoji_names() -> dict[str, list[int]]:
    """Language: names and keyword lists of emoji in which something is found, [so many, of so many]."""
    counts = {}
    for language in LANGUAGES:
        texts = []
        for folder in (CLDR, CLDR.parent / "annotationsDerived"):
            path = folder / f"{language}.xml"
            if path.is_file():
                texts += [(a.text or "").replace(" | ", ", ") for a in ET.parse(path).iter("annotation")]
        if texts:
            counts[language] = [sum(bool(find(text, language)) for text in texts), len(texts)]
    return counts


def measured() -> dict[str, Any]:
    """All of it."""
    return {"labelled": labelled(), "disguised": disguised(), "emoji_names": emoji_names()}


# --- The card -----------------------------------------------------------------------------------------------------


def _of(count: list[int] | None) -> str:
    return "" if count is None or not count[1] else f"{count[0]} of {count[1]}"


def tables(result: dict[str, Any]) -> str:
    """The figures of the card, without its head."""
    head = "| | English | Japanese | Chinese | Korean |\n|---|---|---|---|---|\n"

    def row(name: str, cells: list[str]) -> str:
        return f"| {name} | {' | '.join(cells)} |\n"

    parts = []
    names = {"dev": "tried on", "held-out": "**held out**", "hard": "hard"}
    for what, title in (("found", "Found, of what should be"), ("false alarms", "False alarms, of innocent prompts")):
        lines = [row(names[s], [_of(result["labelled"][s][x][what]) for x in LANGUAGES]) for s in SPLITS]
        if what == "false alarms" and result["emoji_names"]:
            lines.append(row("names of emoji", [_of(result["emoji_names"].get(x)) for x in LANGUAGES]))
        parts.append(f"## {title}\n\n{head}{''.join(lines)}")
    for what, title in (
        ("found", "Terms in disguise that are found"),
        ("false alarms", "Innocent prompts in disguise that are flagged"),
    ):
        lines = []
        for name, by_language in result["disguised"].items():
            cells = [_of(by_language.get(x, {}).get(what)) for x in LANGUAGES]
            if any(cells):
                lines.append(row(name, cells))
        parts.append(f"## {title}\n\n{head}{''.join(lines)}")
    return "\n".join(parts)


def card(result: dict[str, Any]) -> str:
    terms = data()
    return f"""# The prompt check

`python benchmarks/safety.py --card benchmarks/safety.md`, {time.strftime("%Y-%m-%d", time.gmtime())}.
{len(terms.terms)} terms and {len(terms.innocent)} innocent words, list {terms.sha256[:12]}. A prompt takes
{result["ms"]:.1f} ms on average, the list is read in {result["read_ms"]:.0f} ms.
{processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, kotoe {kotoe.__version__}.

**This measures regressions, not the world.** The prompts were written by the authors of the check. The held-out third
was written before the check, and no term was changed for it: on its first run all of it was right already. But whoever
knows which words to try also knows which to list, so that says little. What is to be expected shows better in the hard
part, written after the first run and not tried for since: paraphrases that have none of the terms, and innocent prompts
in which a term means something else. The check finds words, not meanings.

{tables(result)}
Disguises are put on a term as it stands in its prompt, or on the whole of an innocent one (the hard part apart); what
they leave as it was isn't counted. Missed of letters set apart: ages, some terms of several words, terms of two
characters in the middle of others that aren't apart, and in Korean those beside a word of one syllable. Names of emoji
are those of Unicode's CLDR, with their keywords, written by others for something else; the check was tried on them,
too, and what is left is 🔞.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", help="write the card to this file")
    options = parser.parse_args()
    began = time.perf_counter()
    data()
    read_ms = (time.perf_counter() - began) * 1e3
    prompts = [(row["prompt"], row["language"]) for row in rows()]
    began = time.perf_counter()
    for prompt, language in prompts:
        find(prompt, language)
    took = (time.perf_counter() - began) / len(prompts)
    result = {**measured(), "ms": took * 1e3, "read_ms": read_ms, "terms_sha256": data().sha256}
    for line in wrong():
        sys.stderr.write(f"wrong: {line}\n")
    text = card(result)
    if options.card:
        Path(options.card).write_text(text, "utf-8")
    sys.stderr.write(text)
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()

r"""A prompt as people write it: weights in brackets, BREAK, full-width forms. Pure functions from text to text.

The grammar is that of AUTOMATIC1111's web interface, as its documentation describes it, read strictly:

    (word)        1.1 times the weight     (word:1.3)   1.3 times, 0 and negative numbers too
    [word]        1 / 1.1 of the weight    \( \) \[ \] \: \\   the mark itself
    BREAK         what follows is read in a window of its own

Brackets nest, and their weights multiply. What that program would guess at is an error here: a bracket without its
other half, a weight that is no number, and what Kotoe does not do (prompt editing `[a:b:0.5]`, alternation `[a|b]`,
adapters named in the prompt).
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from kotoe.errors import UserError

STRONGER, WEAKER = 1.1, 1 / 1.1
ESCAPED = "()[]:\\"
BREAK = re.compile(r"\bBREAK\b")
LARGEST = 10**6  # weight
DEEPEST = 100  # brackets in brackets; weighing takes time in proportion
NUMBER = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*", re.ASCII)
ADAPTER = re.compile(r"<(lora|lyco|hypernet):[^>]*>", re.IGNORECASE)
WIDE = re.compile(r"[\u3000\uFF00-\uFFEF]+")  # the ideographic space, and Unicode's half-width and full-width forms
AROUND = 12  # characters shown on either side of a fault


@dataclass(frozen=True, kw_only=True)
class Part:
    """A stretch of a prompt that is read together. weights: of each character; empty where all are 1.0."""

    text: str
    weights: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What a prompt says: its parts, between BREAKs, each to be read in windows of its own."""

    parts: tuple[Part, ...]

    @property
    def words(self) -> str:
        """What is read, without marks of grammar."""
        return " ".join(part.text for part in self.parts)

    @property
    def plain(self) -> bool:
        """Whether it is text alone: nothing weighted, in one part."""
        return len(self.parts) == 1 and not self.parts[0].weights


def literal(text: str) -> Prompt:
    """A prompt whose every character is text."""
    return Prompt(parts=(Part(text=text),))


def unweighted(prompt: Prompt) -> Prompt:
    """The same with every weight 1.0."""
    return Prompt(parts=tuple(Part(text=part.text) for part in prompt.parts))


def folded(text: str) -> str:
    """The text with full-width letters, digits and marks as their ordinary forms, and half-width kana as ordinary kana.

    Unicode's NFKC, of these characters alone: （猫：１．３） is (猫:1.3).
    """
    return WIDE.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)


def parse(text: str) -> Prompt:
    """What a prompt says by the grammar above. Raises UserError that shows the place."""
    adapter = ADAPTER.search(text)
    if adapter:
        raise _fault(
            text,
            adapter.start(),
            f"an adapter {adapter[0]} in the prompt",
            allowed="words",
            hint="Adapters stand outside of it: --lora FILE:WEIGHT",
        )
    said, weights = _weighted(text)
    breaks = list(BREAK.finditer(said))
    parts = []
    for k in range(len(breaks) + 1):
        first = breaks[k - 1].end() if k else 0
        last = breaks[k].start() if k < len(breaks) else len(said)
        if k:  # the spaces round a BREAK go with it
            first += len(said[first:last]) - len(said[first:last].lstrip())
        if k < len(breaks):
            last = first + len(said[first:last].rstrip())
        own = tuple(weights[first:last])
        parts.append(Part(text=said[first:last], weights=own if any(w != 1.0 for w in own) else ()))
    if len(parts) > 1 and not parts[-1].text:  # a BREAK at the end begins nothing
        parts.pop()
    return Prompt(parts=tuple(parts))


@dataclass
class _Open:
    """A bracket that waits for its other half: where it stands in the prompt and in what has been said."""

    mark: str
    place: int
    begins: int
    colon: tuple[int, int] | None = None  # the last one directly inside it: in the prompt, and in what has been said


def _weighted(text: str) -> tuple[str, list[float]]:
    """What is said without the grammar's marks, and the weight of each character."""
    said: list[str] = []
    weights: list[float] = []
    waiting: list[_Open] = []
    place = 0
    while place < len(text):
        mark = text[place]
        if mark == "\\" and text[place + 1 : place + 2] and text[place + 1] in ESCAPED:
            place += 1
            said.append(text[place])
            weights.append(1.0)
        elif mark in "([":
            if len(waiting) == DEEPEST:
                raise _fault(text, place, "brackets too deep in brackets", allowed=f"{DEEPEST} at most")
            waiting.append(_Open(mark, place, len(said)))
        elif mark in ")]":
            if not waiting or waiting[-1].mark != "(["[")]".index(mark)]:
                raise _unbalanced(text, place if not waiting or mark == ")" else waiting[-1].place)
            opened = waiting.pop()
            factor = _factor(text, place, opened, said, weights)
            weights[opened.begins :] = heavier = [w * factor for w in weights[opened.begins :]]
            if any(abs(w) > LARGEST for w in heavier):
                raise _fault(text, opened.place, "a weight out of range", allowed=f"-{LARGEST} to {LARGEST}")
        else:
            if waiting and mark == ":":
                waiting[-1].colon = (place, len(said))
            elif waiting and mark == "|" and waiting[-1].mark == "[":
                raise _fault(text, place, "alternation [a|b], which Kotoe doesn't do", allowed="[words]")
            said.append(mark)
            weights.append(1.0)
        place += 1
    if waiting:
        raise _unbalanced(text, waiting[-1].place)
    return "".join(said), weights


def _factor(text: str, place: int, opened: _Open, said: list[str], weights: list[float]) -> float:
    """By what a bracket that closes at `place` multiplies. Takes its number out of what is said."""
    if opened.mark == "[":
        if opened.colon is not None:
            raise _fault(
                text,
                opened.place,
                "prompt editing [a:b:0.5], which Kotoe doesn't do",
                allowed="[words], or (words:0.9)",
                hint="A colon that is meant is written \\:",
            )
        return WEAKER
    if opened.colon is None:
        return STRONGER
    number = text[opened.colon[0] + 1 : place]
    if not NUMBER.fullmatch(number):
        raise _fault(
            text,
            opened.place,
            f"the weight {number.strip()!r} is no number",
            allowed="(words:1.3)",
            hint="A colon that is meant is written \\:",
        )
    del said[opened.colon[1] :], weights[opened.colon[1] :]
    return float(number)


def _unbalanced(text: str, place: int) -> UserError:
    mark = text[place]
    other = {"(": ")", "[": "]", ")": "(", "]": "["}[mark]
    return _fault(
        text,
        place,
        f"a {mark} without its {other}",
        allowed="brackets in pairs",
        hint=f"A bracket that is meant is written \\{mark}; --emphasis none reads all of them as text",
    )


def _fault(text: str, place: int, what: str, *, allowed: str, hint: str = "") -> UserError:
    text = "".join(c if c.isprintable() else " " for c in text)  # a terminal obeys some of the others
    before, after = text[max(0, place - AROUND) : place], text[place + 1 : place + 1 + AROUND]
    shown = f"{'…' if place > AROUND else ''}{before}▸{text[place]}◂{after}"
    shown += "…" if place + 1 + AROUND < len(text) else ""
    return UserError(f"{what}, at character {place + 1} of the prompt: {shown}", allowed=allowed, hint=hint)

"""What is wrong with a plan before anything is spent on it, and what it will cost."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kotoe.checkpoints import Bundle
from kotoe.language import SCRIPTS, UNDETERMINED, detect
from kotoe.localize.fertility import UNKNOWN, vocabulary
from kotoe.localize.plans import Texts
from kotoe.localize.settings import PLANS, Localizing
from kotoe.text import Conditioner
from kotoe.tokens import Tokenizer

LOOKED_AT = 20_000  # texts: a share is known to a hundredth from so many
MUCH = 0.05  # share of rows above which a finding is a warning
SHOWN = 3  # examples in a finding

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing to know before training. An error would stop it; a warning makes the result worse."""

    level: Level
    what: str
    do: str = ""

    def __str__(self) -> str:
        return f"{self.level}: {self.what}" + (f". {self.do}" if self.do else "")


def lint(
    bundle: Bundle, wanted: Localizing, student: Conditioner, pairs: Texts | None, captions: Sequence[str] | None = None
) -> list[Finding]:
    """Everything found, errors first."""
    way = PLANS[wanted.plan]
    found: list[Finding] = []
    texts = pairs.target if pairs is not None else captions or ()
    if pairs is not None:
        found += rows(pairs)
        found += over_limit(bundle.conditioner().tokenizer, pairs.source, "translations", wanted.long_prompt)
    if texts:
        found += of_languages(texts, wanted.tags)
        found += over_limit(student.tokenizer, texts, "texts", wanted.long_prompt)
        found += unknown_pieces(student.tokenizer, texts)
    found += encoders(bundle.conditioner(), student)
    if way.reads != "nothing" and wanted.dropout == 0:
        found.append(
            Finding(
                level="warning",
                what="no text is emptied, and guidance compares every prompt with the empty one",
                do="--dropout 0.05 teaches it too",
            )
        )
    if way.changes_unet:
        found.append(
            Finding(
                level="note",
                what=f"{wanted.plan} changes the UNet: {', '.join(bundle.languages)} will draw otherwise than before",
                do="Evaluate them again; text-only plans leave the UNet as it is",
            )
        )
    order = ("error", "warning", "note")
    return sorted(found, key=lambda f: order.index(f.level))


# --- Texts -----------------------------------------------------------------------------------------------------


def rows(pairs: Texts) -> list[Finding]:
    """Duplicates, contradictions and texts that aren't translated."""
    found: list[Finding] = []
    count = len(pairs.target)
    twice = count - len(set(zip(pairs.source, pairs.target, strict=True)))
    if twice:
        level: Level = "warning" if twice > MUCH * count else "note"
        found.append(Finding(level=level, what=f"{twice} of {count} pairs are there more than once"))
    sources: dict[str, set[str]] = {}
    for source, target in zip(pairs.source, pairs.target, strict=True):
        sources.setdefault(target, set()).add(source)
    unlike = {target: said for target, said in sources.items() if len(said) > 1}
    if unlike:
        example, said = next(iter(unlike.items()))
        found.append(
            Finding(
                level="note",
                what=f"{len(unlike)} texts have several translations: {example!r} is {_some(sorted(said))}",
                do="Other words for the same are well; other meanings teach their mean",
            )
        )
    same = sum(source == target for source, target in zip(pairs.source, pairs.target, strict=True))
    if same:
        level = "warning" if same > MUCH * count else "note"
        found.append(Finding(level=level, what=f"{same} of {count} pairs say the same on both sides: not translated?"))
    return found


def of_languages(texts: Sequence[str], languages: Sequence[str]) -> list[Finding]:
    """Texts in a script that none of these languages is written in, as far as scripts tell."""
    scripted = {"zh", "ja", "yue", *(tag for tags in SCRIPTS.values() for tag in tags)}
    if any(language.lower().split("-")[0] not in scripted for language in languages):
        return []  # Latin letters stand in texts of every language
    looked = texts[:LOOKED_AT]
    other = [text for text in looked if _tells(text) and not _may_be(text, languages)]
    if not other:
        return []
    share = len(other) / len(looked)
    return [
        Finding(
            level="error" if share > 0.5 else "warning" if share > MUCH else "note",
            what=f"{share:.1%} of the texts are not in {' or '.join(languages)} by their script: {_some(other)}",
            do="Take them out, or say which language they are in",
        )
    ]


def _tells(text: str) -> bool:
    return any(unicodedata.category(c).startswith("L") for c in text)


def _may_be(text: str, languages: Sequence[str]) -> bool:
    return detect(text, ("en", *languages, UNDETERMINED), "en").tag in languages


def over_limit(tokenizer: Tokenizer, texts: Sequence[str], what: str, long_prompt: str) -> list[Finding]:
    """Texts with more tokens than the encoder has positions."""
    counts = [len(ids) for ids in tokenizer.text_ids(list(texts))]
    over = [i for i, count in enumerate(counts) if count > tokenizer.room]
    if not over:
        return []
    longest = max(over, key=counts.__getitem__)
    stops = long_prompt == "error"
    return [
        Finding(
            level="error" if stops else "warning",
            what=f"{len(over)} of {len(texts)} {what} have over {tokenizer.room} tokens, {texts[longest]!r} "
            f"{counts[longest]}",
            do="Shorten them, take a larger vocabulary, or --long-prompt cut" if stops else "Their ends are cut off",
        )
    ]


def unknown_pieces(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Finding]:
    """Texts with characters that the tokenizer can't tell from each other."""
    looked = list(texts[:LOOKED_AT])
    unknown = set(np.flatnonzero(vocabulary(tokenizer).kinds == UNKNOWN).tolist())
    strange = [text for text, ids in zip(looked, tokenizer.text_ids(looked), strict=True) if unknown & set(ids)]
    if not strange:
        return []
    return [
        Finding(
            level="warning",
            what=f"{len(strange)} of {len(looked)} texts have what the tokenizer reads as unknown: {_some(strange)}",
            do="A tokenizer with byte fallback spells it",
        )
    ]


# --- Encoders --------------------------------------------------------------------------------------------------


def encoders(teacher: Conditioner, student: Conditioner) -> list[Finding]:
    """Where the new encoder is fed otherwise than the old one."""
    found: list[Finding] = []
    mine, theirs = student.tokenizer, teacher.tokenizer
    if mine.max_tokens != theirs.max_tokens:
        found.append(
            Finding(
                level="warning",
                what=f"the UNet has learnt from {theirs.max_tokens} states and will read {mine.max_tokens}",
                do=f"--max-tokens {theirs.max_tokens} when the tokenizer is trained",
            )
        )
    if (mine.pad == mine.eos) != (theirs.pad == theirs.eos):
        ours, others = (("EOS" if t.pad == t.eos else "a token of its own") for t in (mine, theirs))
        found.append(
            Finding(
                level="note",
                what=f"the new tokenizer pads with {ours}, {teacher.language}'s with {others}",
                do="What stands behind the words differs at first; text-only plans teach it",
            )
        )
    if (mine.bos is None) != (theirs.bos is None):
        ours, others = (("no" if t.bos is None else "a") for t in (mine, theirs))
        found.append(Finding(level="note", what=f"the new tokenizer sets {ours} BOS, {teacher.language}'s {others}"))
    return found


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ", ".join(repr(text if len(text) < 60 else text[:57] + "…") for text in texts[:SHOWN]) + more

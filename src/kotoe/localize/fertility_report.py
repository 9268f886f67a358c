"""Tokenizers compared on texts, as files for people: report.json, report.md and fertility.png."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width

from PIL import Image, ImageDraw

from kotoe import __version__, labels
from kotoe.config import dumps
from kotoe.errors import UserError
from kotoe.localize.fertility import Corpus, measure
from kotoe.runs import atomic, write_atomic
from kotoe.tokens import Tokenizer

FERTILITY = {  # key of a Fertility: heading
    "per_word": "tokens/word",
    "per_character": "tokens/character",
    "per_grapheme": "tokens/grapheme",
    "continued_words": "words continued %",
}
REST = {
    "covered_characters": "characters covered %",
    "covered_words": "words covered %",
    "unknown_rate": "<unk> %",
    "byte_rate": "bytes %",
    "median": "median",
    "p95": "95 %",
    "longest": "longest",
    "limit": "limit",
    "over_limit": "over limit %",
    "vocabulary_used": "vocabulary used %",
}
COUNTS = ("median", "p95", "longest", "limit")
RATES = ("per_word", "per_character", "per_grapheme")  # the others are shares, shown in percent
OF_WORDS = ("per_word", "continued_words", "covered_words")
MEANING = """Tokens are counted without special tokens. In brackets: 95 % interval for other texts of the kind.

- **tokens/word, /character, /grapheme**: fertility. Words are what stands between white space; a grapheme is what a
  reader takes for one character. Compare tokenizers on the same texts, not languages with each other.
- **words continued**: words of two tokens or more.
- **characters, words covered**: spelt in pieces, neither in bytes nor as `<unk>`; of the text as the tokenizer
  normalises it.
- **`<unk>`, bytes**: shares of all tokens. A byte is also a piece of byte-level BPE that is less than a character. Few
  tokens are no good sign where many of them are `<unk>`: one may stand for a whole word.
- **median, 95 %, longest**: tokens of a text; half of the texts, and 95 % of them, have no more.
- **limit**: tokens of text that fit; **over limit**: texts with more.
- **vocabulary used**: different ids of all that there are."""


def compare(
    tokenizers: Mapping[str, Tokenizer],
    texts: Mapping[str, Corpus],
    *,
    limit: int | None = None,
    places: Mapping[str, str] | None = None,
    files: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Every tokenizer on every set of texts, by their names; JSON-able.

    limit:  positions of the text encoder, special tokens included; each tokenizer's own by default.
    places: where tokenizers came from, by name, and files: where texts did, to be kept in the report.
    """
    if not tokenizers or not texts:
        raise UserError(f"{len(tokenizers)} tokenizers and {len(texts)} sets of texts", allowed="one of each, or more")
    return {
        "kotoe": __version__,
        "limit": limit,
        "texts": {name: {"source": (files or {}).get(name), **found.to_json()} for name, found in texts.items()},
        "tokenizers": {
            name: {
                "source": (places or {}).get(name),
                "kind": tokenizer.kind,
                "vocab_size": tokenizer.vocab_size,
                "max_tokens": tokenizer.max_tokens,
                "sha256": tokenizer.sha256,
            }
            for name, tokenizer in tokenizers.items()
        },
        "figures": {
            name: {label: measure(tokenizer, found, limit=limit).to_json() for label, tokenizer in tokenizers.items()}
            for name, found in texts.items()
        },
    }


# --- Tables -----------------------------------------------------------------------------------------------------------


def text(results: Mapping[str, Any]) -> str:
    """The tables alone, for a terminal."""
    return "\n".join(_tables(results)) + "\n"


def markdown(results: Mapping[str, Any], picture: str | None = None) -> str:
    """The tables with what they mean. picture: the name of a picture to show."""
    head = ["# Tokenizers", "", MEANING, ""]
    shown = [f"![Tokens per character, tokens of a text, characters covered]({picture})", ""] if picture else []
    made = ["", f"Measured by Kotoe {results['kotoe']}.", ""]
    keys = ("kind", "vocab_size", "max_tokens", "sha256")
    which = _table(
        ["tokenizer", "kind", "ids", "positions", "sha256"],
        [[name, *(str(about[key])[:16] for key in keys)] for name, about in results["tokenizers"].items()],
    )
    return "\n".join([*head, *which, "", *shown, *_tables(results), *made])


def _tables(results: Mapping[str, Any]) -> Iterator[str]:
    for k, (name, rows) in enumerate(results["figures"].items()):
        if k:
            yield ""
        yield f"## {name}"
        yield ""
        yield said(results["texts"][name])
        for headings in (FERTILITY, REST):
            keys = [key for key in headings if results["texts"][name]["spaced"] or key not in OF_WORDS]
            yield ""
            cells = [[label, *(_cell(key, row[key]) for key in keys)] for label, row in rows.items()]
            yield from _table(["tokenizer", *(headings[key] for key in keys)], cells)


def said(about: Mapping[str, Any]) -> str:
    """What a set of texts holds, in a sentence, and which fertility counts for it."""
    found = f"{_texts(about)}, {about['graphemes']:,} graphemes"
    blank = f" ({about['blank']:,} blank ones are left out)" if about["blank"] else ""
    if about["spaced"]:
        return f"{found}, {about['words']:,} words{blank}. Tokens per word count."
    return f"{found}{blank}. No spaces between words: tokens per character and per grapheme count."


def _texts(about: Mapping[str, Any]) -> str:
    count = about["texts"]
    return f"{count:,} text{'s' * (count != 1)}, {about['characters']:,} characters"


def _cell(key: str, value: Any) -> str:
    if value is None:
        return ""
    if key in COUNTS:
        return str(value)
    times, digits = (1, 3) if key in RATES else (100, 2)
    if not isinstance(value, Mapping):
        return f"{times * value:.{digits}f}"
    middle, low, high = (f"{times * value[part]:.{digits}f}" for part in ("value", "low", "high"))
    return f"{middle} [{low}, {high}]"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table of Markdown that reads as a table in a terminal too."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    for k, row in enumerate(rows):
        padded = [cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)]
        yield "| " + " | ".join(padded) + " |"
        if k == 0:
            yield "|" + "|".join("-" * (width + 2) for width in widths) + "|"


def _width(cell: str) -> int:
    """Columns of a terminal."""
    return sum(2 if east_asian_width(c) in "WF" else 1 for c in cell)


# --- Files ------------------------------------------------------------------------------------------------------------


def check(out: Path, names: Sequence[str]) -> None:
    """Raise a UserError now, not after the work, when `out` can't be a folder of ours or no font here has the names."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file", allowed="a folder, there or not")
    labels.check_labels(list(names))


def write(results: Mapping[str, Any], out: Path) -> dict[str, Path]:
    """Write the report into the folder `out`, each file whole. Returns the files: results, report, picture."""
    files = {"results": out / "report.json", "report": out / "report.md", "picture": out / "fertility.png"}
    try:
        write_atomic(files["results"], dumps(results, indent=2) + "\n")
        with atomic(files["picture"]) as temp:
            picture(results).save(temp, format="PNG")
        write_atomic(files["report"], markdown(results, files["picture"].name))
    except OSError as error:
        raise UserError(f"can't write in {out}: {error.strerror or error}", allowed="a writable folder") from error
    return files


# --- The picture ------------------------------------------------------------------------------------------------------

Place = tuple[int, int]
Ink = tuple[int, int, int]
Row = Mapping[str, Any]
Drawing = ImageDraw.ImageDraw

TEXT_PX, SMALL_PX, ROW_PX, BAR_PX, HEAD_PX, MARGIN_PX = 22, 18, 40, 22, 52, 28
BARS_PX, FIGURES_PX = 280, 240  # of each panel: its bars, and the figures to their right
INK, FAINT, RULE, OVER = (32, 32, 32), (110, 110, 110), (225, 225, 225), (200, 40, 40)
BARS = ((66, 113, 174), (222, 143, 68), (86, 152, 100), (151, 105, 171), (120, 120, 120), (176, 85, 100))
PANELS = (
    "tokens per character",
    "tokens of a text: median, 95 %, limit",
    "characters covered; <unk>, bytes of tokens",
)


def picture(results: Mapping[str, Any]) -> Image.Image:
    """Bars, a row for each tokenizer on each set of texts: fertility, length against the limit, coverage."""
    figures, order = results["figures"], list(results["tokenizers"])
    rows = [row for each in figures.values() for row in each.values()]
    names = max(labels.line_width(name, size_px=TEXT_PX) for name in order)
    titles = max(labels.line_width(name + _after(results, name), name, size_px=TEXT_PX) for name in figures)
    left = MARGIN_PX + round(names) + 16
    panel = BARS_PX + FIGURES_PX
    width = max(left + len(PANELS) * panel + MARGIN_PX, round(titles) + 2 * MARGIN_PX)
    height = 2 * MARGIN_PX + HEAD_PX + len(figures) * (HEAD_PX + len(order) * ROW_PX)
    image = Image.new("RGB", (width, height), "white")
    drawing = ImageDraw.Draw(image)
    most = max(row["per_character"]["value"] for row in rows)
    longest = max(max(row["p95"], row["limit"]) for row in rows)
    for k, heading in enumerate(PANELS):
        labels.draw_line(drawing, (left + k * panel, MARGIN_PX + TEXT_PX), heading, size_px=TEXT_PX)
    top = MARGIN_PX + HEAD_PX
    for name, each in figures.items():
        drawing.line([(MARGIN_PX, top), (width - MARGIN_PX, top)], RULE, 2)
        end = MARGIN_PX + labels.draw_line(drawing, (MARGIN_PX, top + 36), name, name, size_px=TEXT_PX)
        labels.draw_line(drawing, (end, top + 36), _after(results, name), size_px=TEXT_PX)  # a name may run leftwards
        top += HEAD_PX
        for label, row in each.items():
            base, colour = top + 24, BARS[order.index(label) % len(BARS)]
            labels.draw_line(drawing, (MARGIN_PX, base), label, size_px=TEXT_PX)
            _fertility(drawing, (left, base), row, most, colour)
            _length(drawing, (left + panel, base), row, longest, colour)
            _coverage(drawing, (left + 2 * panel, base), row, colour)
            top += ROW_PX
    return image


def _after(results: Mapping[str, Any], name: str) -> str:
    return f": {_texts(results['texts'][name])}"


def _bar(drawing: Drawing, place: Place, share: float, colour: Ink) -> None:
    x, base = place
    if share > 0:
        drawing.rectangle([x, base - BAR_PX + 4, x + max(1, round(share * BARS_PX)), base + 4], colour)


def _beside(drawing: Drawing, place: Place, said: str, ink: Ink = INK) -> None:
    x, base = place
    labels.draw_line(drawing, (x + BARS_PX + 12, base), said, size_px=SMALL_PX, ink=ink)


def _fertility(
    drawing: Drawing,
    place: Place,
    row: Row,
    most: float,
    colour: Ink,
) -> None:
    x, base = place
    found = row["per_character"]
    _bar(drawing, place, found["value"] / (most or 1), colour)
    low, high = (x + round(min(found[end] / (most or 1), 1) * BARS_PX) for end in ("low", "high"))
    drawing.line([(low, base - 7), (high, base - 7)], INK, 2)
    word = "" if row["per_word"] is None else f", {row['per_word']['value']:.2f} a word"
    _beside(drawing, place, f"{found['value']:.2f}{word}")


def _length(
    drawing: Drawing,
    place: Place,
    row: Row,
    longest: int,
    colour: Ink,
) -> None:
    """A bar up to 95 % of the texts, a white tick at the median, a red one at the limit."""
    x, base = place
    _bar(drawing, place, row["p95"] / longest, colour)
    for at, ink, reach in ((row["median"], (255, 255, 255), 0), (row["limit"], OVER, 5)):
        tick = x + round(at / longest * BARS_PX)
        drawing.line([(tick, base - BAR_PX + 4 - reach), (tick, base + 4 + reach)], ink, 3)
    over = row["over_limit"]["value"]
    said = f"{row['median']}, {row['p95']} of {row['limit']}" + (f", {100 * over:.1f} % over" if over else "")
    _beside(drawing, place, said, OVER if row["p95"] > row["limit"] else INK)


def _coverage(drawing: Drawing, place: Place, row: Row, colour: Ink) -> None:
    x, base = place
    drawing.rectangle([x, base - BAR_PX + 4, x + BARS_PX, base + 4], RULE)
    found = row["covered_characters"]
    if found is None:
        _beside(drawing, place, "no characters", FAINT)
        return
    _bar(drawing, place, found["value"], colour)
    parts = (("<unk>", row["unknown_rate"]), ("bytes", row["byte_rate"]))  # of tokens: few of them may be no good sign
    lost = "".join(f", {name} {100 * rate:.1f} %" for name, rate in parts if rate >= 0.0005)
    _beside(drawing, place, f"{100 * found['value']:.1f} %{lost}")

"""Pictures in a grid with labels under them, in any script that some font here has: no missing-glyph boxes.

A font's own character map (the `cmap` table of OpenType) says which characters it has; a label takes the first font
that has each of its characters. KOTOE_LABEL_FONT names fonts to try before the system's.
"""

from __future__ import annotations

import math
import os
import re
import struct
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from kotoe.errors import UserError

FONT_VARIABLE = "KOTOE_LABEL_FONT"  # one path or several, separated as in PATH
SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
# Tried first, in this order; a file whose name starts so. Then every other font of the system.
PREFERRED = (
    *("NotoSansCJK-Regular", "NotoSansCJK", "SourceHanSans-Regular", "SourceHanSans", "ヒラギノ角ゴシック W3"),
    *("Hiragino Sans", "PingFang", "AppleSDGothicNeo", "Arial Unicode", "DroidSansFallback", "wqy-microhei"),
    *("YuGothM", "msgothic", "msyh", "malgun", "ipag", "NanumGothic", "NotoSans-Regular", "DejaVuSans"),
)
CUT = re.compile(r"(?i)bold|black|heavy|medium|light|thin|italic|oblique|condensed|slanted")
# Collections hold one face per country, with its own forms of the same characters.
FACES = {"ja": "JP", "ko": "KR", "zh": "SC", "zh-hans": "SC", "zh-hant": "TC", "zh-tw": "TC", "zh-hk": "HK"}
LARGEST_FONT_BYTES = 256 * 2**20
TEXT_PX, MARGIN_PX = 14, 8
PAPER, INK = (255, 255, 255), (32, 32, 32)


@dataclass(frozen=True)
class Face:
    """One face of a font file."""

    path: Path
    index: int = 0

    def has(self, character: str) -> bool:
        return _glyph(_cmap(self.path, self.index), ord(character)) != 0

    def at(self, size_px: int) -> ImageFont.FreeTypeFont:
        return ImageFont.truetype(self.path, size_px, index=self.index)


Run = tuple[Face, str]  # a piece of text and the face to draw it in


def labelled_grid(
    pictures: Sequence[Image.Image],
    labels: Sequence[str],
    languages: Sequence[str | None] | None = None,
    *,
    columns: int | None = None,
) -> Image.Image:
    """Pictures of one size, row by row, each with its whole label under it.

    languages: BCP 47 tags of the labels, for the right forms of Han characters.
    columns:   None is about as many as rows.
    Raises UserError naming the characters that no font here has.
    """
    if not pictures or len(pictures) != len(labels):
        raise UserError(
            f"{len(pictures)} pictures and {len(labels)} labels", allowed="one label per picture, one or more"
        )
    sizes = {p.size for p in pictures}
    if len(sizes) != 1:
        raise UserError(f"pictures of different sizes {sorted(sizes)}", allowed="one size")
    (width, height), count = sizes.pop(), len(pictures)
    columns = math.ceil(math.sqrt(count)) if columns is None else columns
    if columns < 1:
        raise UserError(f"columns {columns}", allowed="1 or more")
    columns = min(columns, count)
    tags = [None] * count if languages is None else list(languages)
    texts = [_wrapped(_runs(label, tag), width) for label, tag in zip(labels, tags, strict=True)]
    line_px = round(TEXT_PX * 1.4)
    rows = [texts[first : first + columns] for first in range(0, count, columns)]
    heights = [height + 4 + line_px * max(len(lines) for lines in row) + MARGIN_PX for row in rows]
    grid = Image.new("RGB", (columns * (width + MARGIN_PX) + MARGIN_PX, sum(heights) + MARGIN_PX), PAPER)
    drawing = ImageDraw.Draw(grid)
    top = MARGIN_PX
    for r, row in enumerate(rows):
        for c, lines in enumerate(row):
            left = MARGIN_PX + c * (width + MARGIN_PX)
            grid.paste(pictures[r * columns + c], (left, top))
            for k, line in enumerate(lines):
                x = left + (width - _width(line)) / 2
                base = top + height + 4 + k * line_px + TEXT_PX
                for face, text in line:
                    drawing.text((x, base), text, INK, face.at(TEXT_PX), anchor="ls")
                    x += face.at(TEXT_PX).getlength(text)
        top += heights[r]
    return grid


def check_labels(labels: Sequence[str], languages: Sequence[str | None] | None = None) -> None:
    """Raise a UserError naming the characters of the labels that no font here has."""
    tags = [None] * len(labels) if languages is None else list(languages)
    for label, tag in zip(labels, tags, strict=True):
        _runs(label, tag)


def draw_line(
    drawing: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    language: str | None = None,
    *,
    size_px: int = TEXT_PX,
    ink: tuple[int, int, int] = INK,
) -> float:
    """Draw one line whose baseline begins at `place` (x, y), and return its width in pixels.

    A text that some font has whole is drawn in that font alone, so that Pillow's layout engine can join and turn
    Arabic and Hebrew. Raises UserError naming the characters that no font here has.
    """
    x, base = place
    for face, piece in _line_runs(text, language):
        font = face.at(size_px)
        drawing.text((x, base), piece, ink, font, anchor="ls")
        x += font.getlength(piece)
    return x - place[0]


def line_width(text: str, language: str | None = None, *, size_px: int = TEXT_PX) -> float:
    """Pixels that `draw_line` takes for a text."""
    return sum(face.at(size_px).getlength(piece) for face, piece in _line_runs(text, language))


def _line_runs(text: str, language: str | None) -> list[Run]:
    runs = _runs(text, language)
    if len(runs) > 1:
        whole = "".join(piece for _, piece in runs)
        for path in _fonts(os.environ.get(FONT_VARIABLE, "")):
            for face in _ordered(path, language):
                if all(face.has(character) for character in whole):
                    return [(face, whole)]
    return runs


# --- Text to runs and lines -----------------------------------------------------------------------


def _runs(label: str, language: str | None) -> list[Run]:
    """The label in pieces of one face each: the first face that has the character."""
    text = " ".join(unicodedata.normalize("NFC", label).split())
    faces: list[Face] = []
    missing: list[str] = []
    for character in text:
        if faces and _clings(character):
            faces.append(faces[-1])
            continue
        face = _face_for(character, language, os.environ.get(FONT_VARIABLE, ""))
        if face is None:
            missing.append(character)
        else:
            faces.append(face)
    if missing:
        named = ", ".join(f"{c} (U+{ord(c):04X})" for c in dict.fromkeys(missing))
        raise UserError(
            f"no font here has {named}",
            allowed="labels in scripts with a font installed",
            hint="Install one (Debian: fonts-noto-cjk, for further scripts fonts-noto-core; anywhere, for Chinese, "
            f"Japanese and Korean: pip install noto-cjk-sans-otc), or name one in {FONT_VARIABLE}",
        )
    pairs = groupby(zip(faces, text, strict=True), key=lambda pair: pair[0])
    return [(face, "".join(character for _, character in group)) for face, group in pairs]


def _clings(character: str) -> bool:
    """Combining marks, joiners and variation selectors are drawn with what they follow."""
    return unicodedata.category(character) in ("Mn", "Me", "Mc", "Cf")


def _width(line: Sequence[Run]) -> float:
    return sum(face.at(TEXT_PX).getlength(text) for face, text in line)


def _wrapped(runs: Sequence[Run], width: int) -> list[list[Run]]:
    """Lines at most `width` pixels wide, broken at spaces, between Han and kana, or in a word that is wider."""
    lines: list[list[Run]] = [[]]
    for piece in _pieces(runs):
        letters = [[(face, c)] for face, text in piece for c in text]
        for part in [piece] if _width(piece) <= width else letters:
            if lines[-1] and _width(lines[-1]) + _width(part) > width:
                lines.append([])
            at_start = not lines[-1]
            lines[-1] = _joined([*lines[-1], *(_stripped(part) if at_start else part)])
    return lines


def _pieces(runs: Sequence[Run]) -> Iterator[list[Run]]:
    """What a line break may not split: a word with the space before it, one character of Han or kana."""
    word: list[Run] = []
    for face, text in runs:
        for character in text:
            may_break = character == " " or _is_wide(character) or (word and _is_wide(word[-1][1]))
            # no full stop or bracket at the start of a line
            if word and may_break and unicodedata.category(character) not in ("Po", "Pe", "Pf", "Mn", "Me", "Mc", "Cf"):
                yield _joined(word)
                word = []
            word.append((face, character))
    if word:
        yield _joined(word)


def _is_wide(character: str) -> bool:
    """Whether lines may break beside it. Korean breaks at its spaces."""
    return unicodedata.east_asian_width(character) in "WF" and "HANGUL" not in unicodedata.name(character, "")


def _joined(runs: Sequence[Run]) -> list[Run]:
    return [(face, "".join(t for _, t in group)) for face, group in groupby(runs, key=lambda run: run[0])]


def _stripped(piece: list[Run]) -> list[Run]:
    face, text = piece[0]
    return [(face, text.lstrip()), *piece[1:]] if text.strip() else piece[1:]


# --- Fonts ----------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _face_for(character: str, language: str | None, asked: str) -> Face | None:
    """asked: the content of KOTOE_LABEL_FONT, an argument so that a change is seen."""
    for path in _fonts(asked):
        for face in _ordered(path, language):
            if face.has(character):
                return face
    return None


@lru_cache(maxsize=8)
def _fonts(asked: str) -> tuple[Path, ...]:
    """Every font file to try, best first."""
    own = [Path(p) for p in asked.split(os.pathsep) if p]
    for path in own:
        if not path.is_file() or not _faces(path):
            raise UserError(f"{FONT_VARIABLE} names {path}, which is not a font", allowed="a TrueType or OpenType file")
    found = [p for folder in _folders() for p in sorted(folder.rglob("*")) if p.suffix.lower() in SUFFIXES]

    def rank(path: Path) -> tuple[int, bool, int]:  # the plain cut before Bold and Oblique
        named = (i for i, name in enumerate(PREFERRED) if path.name.startswith(name))
        return next(named, len(PREFERRED)), CUT.search(path.stem) is not None, len(path.name)

    return tuple(dict.fromkeys([*own, *sorted(found, key=rank)]))


def _folders() -> list[Path]:
    home = Path.home()
    if sys.platform == "darwin":
        folders = [home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts")]
    elif sys.platform == "win32":
        folders = [Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts"]
    else:
        shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
        folders = [home / ".local/share/fonts", home / ".fonts", *(Path(d) / "fonts" for d in shared.split(":"))]
    package = find_spec("noto_cjk_sans_otc")  # a font as a Python package: the `demo` extra
    if package is not None and package.origin is not None:
        folders.insert(0, Path(package.origin).parent)
    return [folder for folder in folders if folder.is_dir()]


@lru_cache(maxsize=256)
def _ordered(path: Path, language: str | None) -> tuple[Face, ...]:
    """The faces of a file, the one for the language first."""
    faces = _faces(path)
    tag = "" if language is None else language.lower()
    country = FACES.get(tag, FACES.get(tag.split("-")[0], ""))
    if len(faces) > 1 and country:
        return tuple(sorted(faces, key=lambda face: not str(face.at(TEXT_PX).getname()[0]).endswith(country)))
    return faces


@lru_cache(maxsize=256)
def _faces(path: Path) -> tuple[Face, ...]:
    """The faces of a font file that can be drawn at any size; none for a file that is no such font."""
    try:
        if path.stat().st_size > LARGEST_FONT_BYTES:
            return ()
        with path.open("rb") as file:
            head = file.read(12)
        count = struct.unpack(">I", head[8:12])[0] if head[:4] == b"ttcf" else 1
        faces = tuple(Face(path, i) for i in range(min(count, 64)))
        faces[0].at(TEXT_PX)  # bitmap-only fonts and damaged files fail here
    except (OSError, struct.error):
        return ()
    return faces


# --- The character map ----------------------------------------------------------------------------


Cmap = tuple[str, bytes]


@lru_cache(maxsize=64)
def _cmap(path: Path, index: int) -> Cmap:
    """(format, bytes) of the best Unicode subtable; ("", b"") when there is none that is read."""
    try:
        with path.open("rb") as file:
            offset = 0
            if file.read(4) == b"ttcf":
                file.seek(12 + 4 * index)
                (offset,) = struct.unpack(">I", file.read(4))
            file.seek(offset + 4)
            (tables,) = struct.unpack(">H6x", file.read(8))
            start = None
            for _ in range(tables):
                tag, at, size = struct.unpack(">4s4xII", file.read(16))
                if tag == b"cmap":
                    start, length = at, size
            if start is None:
                return "", b""
            file.seek(start)
            data = file.read(min(length, 8 * 2**20))
        (subtables,) = struct.unpack_from(">2xH", data)
        found = {}
        for k in range(subtables):
            platform, encoding, at = struct.unpack_from(">HHI", data, 4 + 8 * k)
            (form,) = struct.unpack_from(">H", data, at)
            if (platform == 0 or (platform, encoding) in ((3, 1), (3, 10))) and form in (4, 12):
                found[form] = at
        if 12 in found:  # all of Unicode
            (size,) = struct.unpack_from(">4xI", data, found[12])
            return "12", data[found[12] : found[12] + size]
        if 4 in found:  # the first 65,536 characters
            (size,) = struct.unpack_from(">2xH", data, found[4])
            return "4", data[found[4] : found[4] + size]
    except (OSError, struct.error):
        pass
    return "", b""


def _glyph(cmap: Cmap, code: int) -> int:
    """The glyph number of a character, 0 when the font has none (OpenType specification, cmap, formats 4 and 12)."""
    form, data = cmap
    try:
        if form == "12":
            low, high = 0, struct.unpack_from(">I", data, 12)[0] - 1
            while low <= high:
                middle = (low + high) // 2
                first, last, glyph = struct.unpack_from(">III", data, 16 + 12 * middle)
                if code < first:
                    high = middle - 1
                elif code > last:
                    low = middle + 1
                else:
                    return int(glyph + code - first)
        elif form == "4" and code < 0x10000:
            double = struct.unpack_from(">H", data, 6)[0]  # twice the number of segments
            for k in range(0, double, 2):
                if struct.unpack_from(">H", data, 14 + k)[0] >= code:
                    (first,) = struct.unpack_from(">H", data, 16 + double + k)
                    (delta,) = struct.unpack_from(">H", data, 16 + 2 * double + k)
                    (offset,) = struct.unpack_from(">H", data, 16 + 3 * double + k)
                    if code < first:
                        return 0
                    if offset == 0:
                        return int((code + delta) % 65536)
                    (glyph,) = struct.unpack_from(">H", data, 16 + 3 * double + k + offset + 2 * (code - first))
                    return int((glyph + delta) % 65536) if glyph else 0
    except struct.error:
        pass
    return 0

"""A captioned picture, and what its caption and its other fields can be. Sources of them are in sources.py."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kotoe.errors import UserError, nearest

# Ends of names that are meant as pictures. Those that Kotoe doesn't read are listed as skipped when they are opened.
PICTURES = frozenset("avif bmp gif heic heif jfif jp2 jpe jpeg jpg jxl png tif tiff webp".split())
LAYOUTS = "a folder with metadata.jsonl or metadata.csv, or with .txt beside its pictures; .tar shards; .parquet"
LARGEST_CAPTION_BYTES = 2**20
TOLD = ("language", "lang", "source", "url", "licence", "license")  # fields of a row besides its caption and picture
TAG = re.compile(r"[a-z]{2,3}([-_]\w+)*", re.IGNORECASE)
SHOWN = 12  # column names in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One captioned picture.

    name:     where the picture is: its path in the folder, its name in a shard, or its file and row.
    caption:  as the source has it; of a text file without the blanks around it.
    language, source, licence: as far as the row says (columns of these names, also `url` and `license`).
    file, start, size: of which file of the source, where in it (byte, or row of a parquet file), and how many bytes.
    """

    name: str
    caption: str
    language: str | None = None
    source: str | None = None
    licence: str | None = None
    file: int = 0
    start: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class Skipped:
    """What is no row, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Columns:
    """What the user has named; None where he hasn't."""

    caption: str | None
    image: str | None


# --- What a row says ----------------------------------------------------------------------------------------------


def row_of(name: str, caption: str, fields: Mapping[str, Any], *, file: int = 0, start: int = 0, size: int = 0) -> Row:
    """A row with its language, source and licence, where its other fields say them."""
    known = {key.lower(): value for key, value in fields.items()}

    def first(*names: str) -> str | None:
        return next((v.strip() for n in names if isinstance(v := known.get(n), str) and v.strip()), None)

    language = first("language", "lang")
    return Row(
        name=name,
        caption=caption,
        language=language if language is not None and TAG.fullmatch(language) else None,
        source=first("source", "url"),
        licence=first("licence", "license"),
        file=file,
        start=start,
        size=size,
    )


def caption_of(value: Any) -> tuple[str, str]:
    """(caption, ""), or ("", why there is none)."""
    if value is None:
        return "", "no caption"
    if not isinstance(value, str):
        return "", f"its caption is a {type(value).__name__}, no text"
    if not value.strip():
        return "", "its caption is empty"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "", "its caption holds half a surrogate pair"
    return value, ""


def text_of(content: bytes) -> tuple[str, str]:
    """The caption in a text file, as `caption_of` gives it."""
    try:
        return caption_of(content.decode("utf-8-sig").strip())
    except UnicodeDecodeError as error:
        return "", f"its caption is not UTF-8 (byte {error.start + 1})"


def no_column(where: Path, column: str, there: Sequence[str], option: str) -> UserError:
    """The error for a column that a table doesn't have. option: which one names it."""
    near = nearest(column, there)
    more = [f"and {len(there) - SHOWN} more"] if len(there) > SHOWN else []
    return UserError(
        f"{where} has no column {column!r}",
        allowed=", ".join([*there[:SHOWN], *more]) or "none: it has no columns",
        hint=f"Did you mean {option} {near}?" if near else f"{option} names it",
    )

"""Where captioned pictures are kept. Listed first, without opening a picture; their bytes come later, in turn.

    a folder with metadata.csv or metadata.jsonl   columns file_name and text, as `imagefolder` of Hugging Face's
                                                   datasets has it; one such file for each folder with pictures
    a folder of pairs                              picture.png and picture.txt (or .caption)
    .tar shards, as webdataset writes them         key.jpg with key.txt, or with key.json and a caption in it;
                                                   one, a folder of them, or a range: laion-{000..012}.tar
    .parquet                                       a column of pictures (bytes, or datasets' {bytes, path}) and one of
                                                   captions; one, a folder of them, or a range

What can't be a row is in `skipped` with its reason; nothing is left out without one. Hidden files, and files that are
neither a picture nor a caption, are no rows at all. A container that is damaged is a UserError.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from kotoe.data import containers
from kotoe.data.rows import (
    LARGEST_CAPTION_BYTES,
    LAYOUTS,
    PICTURES,
    Columns,
    Row,
    Skipped,
    caption_of,
    no_column,
    row_of,
    text_of,
)
from kotoe.data.texts import numbered_lines
from kotoe.errors import CheckpointError, UserError
from kotoe.images import LARGEST_FILE_BYTES
from kotoe.tokenizers import parse_json

METADATA = ("metadata.csv", "metadata.jsonl")
BESIDE = ("txt", "caption")  # of a picture's caption, in a folder of pairs
MOST_SHARDS = 100_000
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A place with captioned pictures, listed.

    kind:         "folder", "shards" or "parquet".
    files:        the shards or parquet files, in order; the folder itself.
    rows:         in the source's order, the same at every listing of the same files.
    image_column: of parquet files.
    """

    kind: str
    files: tuple[Path, ...]
    rows: Sequence[Row]
    skipped: Sequence[Skipped]
    image_column: str = ""

    def contents(self, first: int = 0) -> Iterator[tuple[Row, bytes | Skipped]]:
        """The rows from `first` on, each with its picture's bytes, or with why there are none. A stream."""
        rows = itertools.islice(self.rows, first, None)
        return READERS[self.kind](self.files, rows, self.image_column)

    def digest(self, *, stamps: bool) -> str:
        """sha256 of which pictures these are: names and sizes; with `stamps` also when files were last changed."""
        found = hashlib.sha256(self.kind.encode())
        for row in self.rows:
            said: list[Any] = [row.name, row.start, row.size]
            if stamps and self.kind == "folder":
                said.append(_stamp(self.files[0] / row.name))
            found.update(json.dumps(said).encode() + b"\n")
        if stamps and self.kind != "folder":
            found.update(json.dumps([[file.name, _stamp(file)] for file in self.files]).encode())
        return found.hexdigest()


def read_rows(source: str | Path, *, caption_column: str | None = None, image_column: str | None = None) -> Source:
    """List the captioned pictures of a source.

    caption_column: by default `text`; in shards the .txt, or else `text` or `caption` of the .json.
    image_column:   by default `image` of parquet files, and `file_name` of a folder's metadata.
    Raises UserError for a source of no such kind, without the columns, damaged, or without any row.
    """
    files = _expanded(str(source))
    if len(files) == 1 and files[0].is_dir():
        kind, files = _kind_of_folder(files[0])
    else:
        kinds = {_kind_of_file(file) for file in files}
        if len(kinds) > 1:
            raise UserError(f"{source} is of several kinds", allowed="shards alone, or parquet files alone")
        kind = kinds.pop()
    skipped: list[Skipped] = []
    columns = Columns(caption_column, image_column)
    try:
        rows = list(LISTERS[kind](files, columns, skipped))
    except OSError as error:
        raise UserError(f"can't read {source}: {error.strerror or error}", allowed="readable files") from None
    if not rows:
        some = "; ".join(f"{s.name}: {s.reason}" for s in skipped[:3])
        raise UserError(f"{source} has no captioned picture" + (f" ({some})" if some else ""), allowed=LAYOUTS)
    image = columns.image or "image"
    return Source(kind=kind, files=tuple(files), rows=rows, skipped=skipped, image_column=image)


# --- Which kind ---------------------------------------------------------------------------------------------------


def _expanded(source: str) -> list[Path]:
    """The files that a range like {000..012} means; each must be there."""
    if Path(source).exists():
        return [Path(source)]
    ranges = RANGE.findall(source)
    if not ranges:
        raise UserError(f"there is nothing at {source}", allowed=LAYOUTS)
    choices = []
    for first, last in ranges:
        if int(last) < int(first):
            raise UserError(f"the range {{{first}..{last}}} ends before it begins", allowed="as {000..012}")
        choices.append((int(first), int(last), len(first)))
    count = 1
    for low, high, _ in choices:
        count *= high - low + 1
    if count > MOST_SHARDS:
        raise UserError(f"{source} means {count} files", allowed=f"{MOST_SHARDS} at most")
    plain = RANGE.split(source)[::3]
    files = []
    for numbers in itertools.product(*(range(low, high + 1) for low, high, _ in choices)):
        said = [f"{n:0{width}d}" for n, (_, _, width) in zip(numbers, choices, strict=True)]
        files.append(Path("".join(itertools.chain(*zip(plain, [*said, ""], strict=True)))))
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UserError(f"{source}: {len(missing)} of {len(files)} files are not there, the first is {missing[0]}")
    return files


def _kind_of_file(file: Path) -> str:
    kinds = {".tar": "shards", ".parquet": "parquet"}
    if file.suffix.lower() in kinds and file.is_file():
        return kinds[file.suffix.lower()]
    packed = file.name.lower().endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz"))
    raise UserError(
        f"{file} is no source of captioned pictures",
        allowed=LAYOUTS,
        hint="Unpack it to a .tar first: pictures don't get smaller, and can't be found in it" if packed else "",
    )


def _walk(folder: Path) -> Iterator[PurePosixPath]:
    """The files in a folder and its folders by their paths in it, sorted; nothing that is hidden."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield PurePosixPath(Path(place, name).relative_to(folder).as_posix())


def _end(path: PurePosixPath) -> str:
    return path.suffix.lower().removeprefix(".")


def _kind_of_folder(folder: Path) -> tuple[str, list[Path]]:
    found: dict[str, list[Path]] = {"folder": [], "shards": [], "parquet": []}
    for path in _walk(folder):
        if _end(path) in PICTURES or path.name in METADATA:
            found["folder"] = [folder]
        elif _end(path) in ("tar", "parquet"):
            found["shards" if _end(path) == "tar" else "parquet"].append(folder / path)
    kinds = [kind for kind, files in found.items() if files]
    if len(kinds) != 1:
        held = {"folder": "pictures", "shards": ".tar files", "parquet": ".parquet files"}
        said = "neither pictures nor shards" if not kinds else " and ".join(held[kind] for kind in kinds)
        raise UserError(f"{folder} holds {said}", allowed=LAYOUTS)
    return kinds[0], found[kinds[0]]


# --- Folders ------------------------------------------------------------------------------------------------------


def _folder(files: list[Path], columns: Columns, skipped: list[Skipped]) -> Iterator[Row]:
    folder = files[0]
    paths = list(_walk(folder))
    described = [path for path in paths if path.name in METADATA]
    if not described:
        if columns.caption is not None or columns.image is not None:
            raise UserError(f"{folder} has no metadata.csv or metadata.jsonl, and so no columns", allowed=LAYOUTS)
        yield from _pairs(folder, paths, skipped)
        return
    twice = [place for place, count in Counter(path.parent for path in described).items() if count > 1]
    if twice:
        raise UserError(f"{folder / twice[0]} has metadata.csv and metadata.jsonl", allowed="one of them")
    there = {path for path in paths if _end(path) in PICTURES}
    named: set[PurePosixPath] = set()
    for path in described:
        for where, name, value, fields in _table(folder / path, columns):
            if not isinstance(name, str) or not name:
                skipped.append(Skipped(f"{path}, row {where}", "it names no file"))
                continue
            place = PurePosixPath(os.path.normpath(path.parent / name))
            named.add(place)
            if place.is_absolute() or ".." in place.parts:
                skipped.append(Skipped(name, "its name leads out of the folder"))
                continue
            caption, reason = caption_of(value)
            if reason:
                skipped.append(Skipped(str(place), reason))
            elif not (folder / place).is_file():
                skipped.append(Skipped(str(place), "there is no such file"))
            else:
                size = (folder / place).stat().st_size
                yield row_of(str(place), caption, fields, size=size)
    for path in sorted(there - named):
        skipped.append(Skipped(str(path), "no caption: no metadata file names it"))


def _table(path: Path, columns: Columns) -> Iterator[tuple[int, Any, Any, Mapping[str, Any]]]:
    """(row or line, file name, caption, all fields) of a metadata file; None for what a row doesn't have."""
    image, caption = columns.image or "file_name", columns.caption or "text"
    seen: set[str] = set()
    first: list[str] = []
    for line, fields in (_csv if path.suffix == ".csv" else _jsonl)(path):
        first = first or list(fields)
        seen.update(fields)
        yield line, fields.get(image), fields.get(caption), fields
    for column, option in ((image, "--image-column"), (caption, "--caption-column")):
        if column not in seen:
            raise no_column(path, column, first, option)


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(record, its fields) from 1 on, the first after the one that names the columns; empty lines are none."""
    names: list[str] = []
    number = 0
    with path.open("rb") as file:
        try:
            for fields in csv.reader((line + "\n" for _, line in numbered_lines(file, path)), strict=True):
                if not fields:
                    continue
                if not names:
                    names = fields
                    if len(set(names)) < len(names):
                        raise UserError(f"{path} names a column twice", allowed="different names")
                    continue
                number += 1
                if len(fields) != len(names):
                    raise UserError(
                        f"{path}, row {number} has {len(fields)} fields", allowed=f"{len(names)}, as its first line"
                    )
                yield number, dict(zip(names, fields, strict=True))
        except csv.Error as error:
            raise UserError(
                f"{path} after row {number} is no CSV ({error})", allowed="fields as RFC 4180 has them"
            ) from None
    if not names:
        raise UserError(f"{path} is empty", allowed="a first line that names the columns")


def _jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open("rb") as file:
        for number, line in numbered_lines(file, path):
            if line.strip():
                try:
                    yield number, parse_json(line.encode(), f"{path}, line {number}")
                except CheckpointError as error:
                    raise UserError(error.given, allowed=error.allowed or "one JSON object a line") from None


def _pairs(folder: Path, paths: list[PurePosixPath], skipped: list[Skipped]) -> Iterator[Row]:
    there = set(paths)
    pictures = [path for path in paths if _end(path) in PICTURES]
    shared = Counter(path.with_suffix("") for path in pictures)
    for path in pictures:
        beside = [place for end in BESIDE if (place := path.with_suffix(f".{end}")) in there]
        if shared[path.with_suffix("")] > 1:
            skipped.append(Skipped(str(path), "another picture has the same name, and so the same caption file"))
        elif len(beside) != 1:
            said = " and ".join(place.name for place in beside)
            skipped.append(Skipped(str(path), f"two captions: {said}" if beside else "no caption"))
        else:
            caption, reason = _read_caption(folder / beside[0])
            if reason:
                skipped.append(Skipped(str(path), reason))
            else:
                yield Row(name=str(path), caption=caption, size=(folder / path).stat().st_size)
    for path in paths:
        if _end(path) in BESIDE and path.with_suffix("") not in shared:
            skipped.append(Skipped(str(path), "no picture of that name"))


def _read_caption(file: Path) -> tuple[str, str]:
    if not file.is_file():
        return "", "its caption is no file"
    with file.open("rb") as opened:
        content = opened.read(LARGEST_CAPTION_BYTES + 1)
    if len(content) > LARGEST_CAPTION_BYTES:
        return "", f"its caption has over {LARGEST_CAPTION_BYTES} bytes"
    return text_of(content)


def _from_folder(files: Sequence[Path], rows: Iterable[Row], column: str) -> Iterator[tuple[Row, bytes | Skipped]]:
    for row in rows:
        try:
            with (files[0] / row.name).open("rb") as file:
                content = file.read(LARGEST_FILE_BYTES + 1)
        except OSError as error:
            yield row, Skipped(row.name, f"can't be read: {error.strerror or error}")
            continue
        yield row, content


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return -1


LISTERS: dict[str, Callable[[list[Path], Columns, list[Skipped]], Iterator[Row]]] = {
    "folder": _folder,
    "shards": containers.shards,
    "parquet": containers.parquet,
}
READERS: dict[str, Callable[[Sequence[Path], Iterable[Row], str], Iterator[tuple[Row, bytes | Skipped]]]] = {
    "folder": _from_folder,
    "shards": containers.from_shards,
    "parquet": containers.from_parquet,
}

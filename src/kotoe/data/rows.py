"""Rows: captioned pictures as people keep them. Listed first, without opening a picture; their bytes come later, in turn.

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
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from kotoe.data.texts import numbered_lines
from kotoe.errors import CheckpointError, UserError, nearest
from kotoe.images import LARGEST_FILE_BYTES
from kotoe.tokenizers import parse_json

# Ends of names that are meant as pictures. Those that Kotoe doesn't read are listed as skipped when they are opened.
PICTURES = frozenset(
    "avif bmp gif heic heif jfif jp2 jpe jpeg jpg jxl png tif tiff webp".split()
)  # fmt: skip
METADATA = ("metadata.csv", "metadata.jsonl")
BESIDE = ("txt", "caption")  # of a picture's caption, in a folder of pairs
CAPTIONS = ("text", "caption")  # fields of a shard's .json that are looked for, if none is named
LARGEST_CAPTION_BYTES = 2**20
MOST_SHARDS = 100_000
BATCH = 32  # pictures of a parquet file that are in memory at once
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
TAG = re.compile(r"[a-z]{2,3}([-_]\w+)*", re.IGNORECASE)
SHOWN = 12


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
        return {"folder": _from_folder, "shards": _from_shards, "parquet": _from_parquet}[self.kind](self, first)

    def digest(self, *, stamps: bool) -> str:
        """sha256 of which pictures these are: names and sizes; with `stamps` also when their files were last changed."""
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
    columns = _Columns(caption_column, image_column)
    try:
        rows = list(LISTERS[kind](files, columns, skipped))
    except OSError as error:
        raise UserError(f"can't read {source}: {error.strerror or error}", allowed="readable files") from None
    if not rows:
        some = "; ".join(f"{s.name}: {s.reason}" for s in skipped[:3])
        raise UserError(f"{source} has no captioned picture" + (f" ({some})" if some else ""), allowed=LAYOUTS)
    image = columns.image or "image"
    return Source(kind=kind, files=tuple(files), rows=rows, skipped=skipped, image_column=image)


LAYOUTS = "a folder with metadata.jsonl or metadata.csv, or with .txt beside its pictures; .tar shards; .parquet"


@dataclass(frozen=True)
class _Columns:
    """What the user has named; None where he hasn't."""

    caption: str | None
    image: str | None


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


# --- What a row says ----------------------------------------------------------------------------------------------


def _told(fields: Mapping[str, Any]) -> dict[str, str | None]:
    """Language, source and licence of a row, where its fields say them."""

    def first(*names: str) -> str | None:
        return next((v.strip() for n in names if isinstance(v := fields.get(n), str) and v.strip()), None)

    language = first("language", "LANGUAGE", "lang")
    if language is not None and not TAG.fullmatch(language):
        language = None
    return {
        "language": language,
        "source": first("source", "url", "URL"),
        "licence": first("licence", "license", "LICENSE"),
    }


def _caption(value: Any) -> tuple[str, str]:
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


def _text_of(content: bytes) -> tuple[str, str]:
    """The caption in a text file, as `_caption` gives it."""
    try:
        return _caption(content.decode("utf-8-sig").strip())
    except UnicodeDecodeError as error:
        return "", f"its caption is not UTF-8 (byte {error.start + 1})"


def _no_column(where: Path, column: str, there: Sequence[str], option: str) -> UserError:
    near = nearest(column, there)
    more = [f"and {len(there) - SHOWN} more"] if len(there) > SHOWN else []
    return UserError(
        f"{where} has no column {column!r}",
        allowed=", ".join([*there[:SHOWN], *more]) or "none: it has no columns",
        hint=f"Did you mean {option} {near}?" if near else f"{option} names it",
    )


# --- Folders ------------------------------------------------------------------------------------------------------


def _folder(files: list[Path], columns: _Columns, skipped: list[Skipped]) -> Iterator[Row]:
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
                skipped.append(Skipped(f"{path}, line {where}", "it names no file"))
                continue
            place = PurePosixPath(os.path.normpath(path.parent / name))
            named.add(place)
            if place.is_absolute() or ".." in place.parts:
                skipped.append(Skipped(name, "its name leads out of the folder"))
                continue
            caption, reason = _caption(value)
            if reason:
                skipped.append(Skipped(str(place), reason))
            elif not (folder / place).is_file():
                skipped.append(Skipped(str(place), "there is no such file"))
            else:
                size = (folder / place).stat().st_size
                yield Row(name=str(place), caption=caption, size=size, **_told(fields))
    for path in sorted(there - named):
        skipped.append(Skipped(str(path), "no caption: no metadata file names it"))


def _table(path: Path, columns: _Columns) -> Iterator[tuple[int, Any, Any, Mapping[str, Any]]]:
    """(line, file name, caption, all fields) of a metadata file; None for what a row doesn't have."""
    image, caption = columns.image or "file_name", columns.caption or "text"
    seen: set[str] = set()
    first: list[str] = []
    for line, fields in (_csv if path.suffix == ".csv" else _jsonl)(path):
        first = first or list(fields)
        seen.update(fields)
        yield line, fields.get(image), fields.get(caption), fields
    for column, option in ((image, "--image-column"), (caption, "--caption-column")):
        if column not in seen:
            raise _no_column(path, column, first, option)


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open("rb") as file:
        last = 0

        def counted() -> Iterator[str]:
            nonlocal last
            for last, line in numbered_lines(file, path):
                yield line + "\n"

        names: list[str] = []
        try:
            for fields in csv.reader(counted(), strict=True):
                if not names:
                    names = fields
                    if len(set(names)) < len(names):
                        raise UserError(f"{path} names a column twice", allowed="different names")
                elif fields and len(fields) != len(names):
                    raise UserError(
                        f"{path}, line {last} has {len(fields)} fields", allowed=f"{len(names)}, as the first line names"
                    )
                elif fields:
                    yield last, dict(zip(names, fields, strict=True))
        except csv.Error as error:
            raise UserError(f"{path}, line {last} is no CSV ({error})", allowed="fields as RFC 4180 has them") from None
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
    return _text_of(content)


def _from_folder(source: Source, first: int) -> Iterator[tuple[Row, bytes | Skipped]]:
    for row in itertools.islice(source.rows, first, None):
        try:
            with (source.files[0] / row.name).open("rb") as file:
                content = file.read(LARGEST_FILE_BYTES + 1)
        except OSError as error:
            yield row, Skipped(row.name, f"can't be read: {error.strerror or error}")
            continue
        yield row, content


# --- Shards -------------------------------------------------------------------------------------------------------


def _shards(files: list[Path], columns: _Columns, skipped: list[Skipped]) -> Iterator[Row]:
    for number, file in enumerate(files):
        try:
            with tarfile.open(file, "r:") as shard:
                for key, parts in _samples(shard):
                    yield from _sample(shard, f"{file.name}/{key}", parts, number, columns, skipped)
        except (tarfile.TarError, EOFError, ValueError, RecursionError) as error:
            raise UserError(
                f"{file} is damaged or no .tar file ({error})", allowed="a whole one", hint="Download it again"
            ) from None


def _samples(shard: tarfile.TarFile) -> Iterator[tuple[str, list[tuple[str, tarfile.TarInfo]]]]:
    """(key, its files by their ends) as webdataset groups them: neighbours whose names are alike up to the first dot."""
    key, parts = None, []
    for member in shard:
        shard.members = []  # type: ignore[attr-defined]  # or tarfile keeps them all
        folder, _, name = member.name.rpartition("/")
        base, dot, end = name.partition(".")
        if not member.isreg() or not dot or not base or re.match(r"__[^/]*__($|/)", member.name):
            continue
        here = f"{folder}/{base}" if folder else base
        if here != key and key is not None:
            yield key, parts
        if here != key:
            key, parts = here, []
        parts.append((end.lower(), member))
    if key is not None:
        yield key, parts
    if shard.fileobj is not None:  # a shard cut off between two files ends without the blocks that end a .tar
        shard.fileobj.seek(0, os.SEEK_END)
        if shard.fileobj.tell() < shard.offset:
            raise tarfile.ReadError("its end is missing")


def _sample(
    shard: tarfile.TarFile,
    name: str,
    parts: list[tuple[str, tarfile.TarInfo]],
    number: int,
    columns: _Columns,
    skipped: list[Skipped],
) -> Iterator[Row]:
    ends = Counter(end for end, _ in parts)
    pictures = [(end, member) for end, member in parts if end in PICTURES]
    if max(ends.values()) > 1 or len(pictures) != 1:
        reason = "several files of one name" if max(ends.values()) > 1 else "several pictures" if pictures else "no picture"
        skipped.append(Skipped(name, reason))
        return
    end, picture = pictures[0]
    name = f"{name}.{end}"
    fields: Mapping[str, Any] = {}
    by_end = dict(parts)
    large = next((m for e, m in parts if e in ("txt", "json") and m.size > LARGEST_CAPTION_BYTES), None)
    if large is not None or picture.size > LARGEST_FILE_BYTES:
        which = picture if large is None else large
        skipped.append(Skipped(name, f"{PurePosixPath(which.name).name} has {which.size} bytes"))
        return
    if "json" in by_end:
        try:
            fields = parse_json(_bytes(shard, by_end["json"]), "its .json")
        except CheckpointError as error:
            skipped.append(Skipped(name, str(error)))
            return
    if columns.caption is None and "txt" in by_end:
        caption, reason = _text_of(_bytes(shard, by_end["txt"]))
    else:
        wanted = CAPTIONS if columns.caption is None else (columns.caption,)
        caption, reason = _caption(next((fields[field] for field in wanted if fields.get(field) is not None), None))
        if reason == "no caption" and fields:
            reason = f"no caption: its .json has {', '.join(list(fields)[:SHOWN])}"
    if reason:
        skipped.append(Skipped(name, reason))
        return
    yield Row(
        name=name, caption=caption, file=number, start=picture.offset_data, size=picture.size, **_told(fields)
    )


def _bytes(shard: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    opened = shard.extractfile(member)
    assert opened is not None  # a regular file
    return opened.read()


def _from_shards(source: Source, first: int) -> Iterator[tuple[Row, bytes | Skipped]]:
    for number, rows in itertools.groupby(itertools.islice(source.rows, first, None), lambda row: row.file):
        try:
            with source.files[number].open("rb") as file:
                for row in rows:
                    file.seek(row.start)
                    yield row, file.read(row.size)
        except OSError as error:
            raise UserError(f"can't read {source.files[number]}: {error.strerror or error}") from None


# --- Parquet ------------------------------------------------------------------------------------------------------


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            f"{path}: reading parquet needs pyarrow, which is not installed",
            allowed="a folder or .tar shards without it",
            hint="pip install 'kotoe[parquet]'",
        ) from None
    return pyarrow


def _parquet(files: list[Path], columns: _Columns, skipped: list[Skipped]) -> Iterator[Row]:
    image, caption_column = columns.image or "image", columns.caption or "text"
    for number, path in enumerate(files):
        pyarrow = _pyarrow(path)
        try:
            with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
                names = list(file.schema_arrow.names)
                for column, option in ((image, "--image-column"), (caption_column, "--caption-column")):
                    if column not in names:
                        raise _no_column(path, column, names, option)
                _check_images(path, image, file.schema_arrow.field(image).type)
                told = [n for n in names if n.lower() in ("language", "lang", "source", "url", "licence", "license")]
                read = list(dict.fromkeys([caption_column, *(n for n in told if n != image)]))
                at = 0
                for batch in file.iter_batches(batch_size=1024, columns=read):
                    for fields in batch.select(read).to_pylist():
                        name = f"{path.name}, row {at + 1}"
                        caption, reason = _caption(fields[caption_column])
                        if reason:
                            skipped.append(Skipped(name, reason))
                        else:
                            yield Row(name=name, caption=caption, file=number, start=at, **_told(fields))
                        at += 1
        except pyarrow.ArrowException as error:
            raise UserError(f"{path} is damaged or no parquet file ({_line(error)})", allowed="a whole one") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: a text is not UTF-8 (byte {error.start + 1})", allowed="UTF-8") from None


def _check_images(path: Path, column: str, kind: Any) -> None:
    held = str(kind)
    if held in ("binary", "large_binary") or (held.startswith("struct<") and "bytes: " in held):
        return
    raise UserError(
        f"{path}: column {column!r} holds {held}",
        allowed="pictures: bytes, or datasets' {bytes, path}",
        hint="Paths alone? Then write metadata.csv with file_name and text beside the pictures",
    )


def _from_parquet(source: Source, first: int) -> Iterator[tuple[Row, bytes | Skipped]]:
    for number, group in itertools.groupby(itertools.islice(source.rows, first, None), lambda row: row.file):
        path = source.files[number]
        pyarrow = _pyarrow(path)
        rows = list(group)
        try:
            with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
                yield from _of_groups(file, rows, source.image_column)
        except pyarrow.ArrowException as error:
            raise UserError(f"{path} is damaged ({_line(error)})", allowed="a whole parquet file") from None
        except OSError as error:
            raise UserError(f"can't read {path}: {error.strerror or error}") from None


def _of_groups(file: Any, rows: list[Row], column: str) -> Iterator[tuple[Row, bytes | Skipped]]:
    """The wanted rows of one parquet file, row group by row group; groups without any are not read."""
    wanted, start = iter(rows), 0
    row = next(wanted, None)
    for group in range(file.metadata.num_row_groups):
        end = start + file.metadata.row_group(group).num_rows
        if row is not None and row.start < end:
            at = start
            for batch in file.iter_batches(batch_size=BATCH, row_groups=[group], columns=[column]):
                values = batch.column(column)
                while row is not None and row.start < at + len(values):
                    yield row, _content(row, values[row.start - at].as_py())
                    row = next(wanted, None)
                at += len(values)
        start = end


def _content(row: Row, value: Any) -> bytes | Skipped:
    held = value.get("bytes") if isinstance(value, dict) else value
    if held is not None:
        return bytes(held)
    path = value.get("path") if isinstance(value, dict) else None
    return Skipped(row.name, "no picture" if path is None else f"no picture, only a path: {path}")


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0][:120]


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return -1


LISTERS: dict[str, Callable[[list[Path], _Columns, list[Skipped]], Iterator[Row]]] = {
    "folder": _folder,
    "shards": _shards,
    "parquet": _parquet,
}

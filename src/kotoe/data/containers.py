"""Captioned pictures in files that hold many: webdataset's .tar shards, and parquet.

Shards are read by the standard library's tarfile: of webdataset's own reader we would need the grouping of names alone.
It runs shell commands in file names (`pipe:`), and at a broken sample it stops or goes on without saying which it was.
A test compares both on what webdataset writes.
"""

from __future__ import annotations

import itertools
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from kotoe.data.rows import (
    LARGEST_CAPTION_BYTES,
    PICTURES,
    SHOWN,
    TOLD,
    Columns,
    Row,
    Skipped,
    caption_of,
    no_column,
    row_of,
    text_of,
)
from kotoe.errors import CheckpointError, UserError
from kotoe.images import LARGEST_FILE_BYTES
from kotoe.tokenizers import parse_json

FIELDS = ("text", "caption")  # of a shard's .json that are looked for, if none is named
META = re.compile(r"__[^/]*__($|/)")  # names of files about a shard
BATCH = 32  # pictures of a parquet file that are in memory at once


# --- Shards -------------------------------------------------------------------------------------------------------


def shards(files: list[Path], columns: Columns, skipped: list[Skipped]) -> Iterator[Row]:
    """The rows of .tar shards."""
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
    """(key, its files by their ends) as webdataset groups them: neighbours with one name up to the first dot."""
    key: str | None = None
    parts: list[tuple[str, tarfile.TarInfo]] = []
    while (member := shard.next()) is not None:
        shard.members.clear()  # type: ignore[attr-defined]  # or tarfile keeps them all
        folder, _, name = member.name.rpartition("/")
        base, dot, end = name.partition(".")
        if not member.isreg() or not dot or not base or META.match(member.name):
            continue
        here = f"{folder}/{base}" if folder else base
        if here != key:
            if key is not None:
                yield key, parts
            key, parts = here, []
        parts.append((end.lower(), member))
    if key is not None:
        yield key, parts
    _check_end(shard)


def _check_end(shard: tarfile.TarFile) -> None:
    """A .tar ends in blocks of zeros. tarfile takes one that was cut off, or goes on as rubbish, for a whole one."""
    assert shard.fileobj is not None
    shard.fileobj.seek(shard.offset)  # type: ignore[attr-defined]
    if shard.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("its end is missing")


def _sample(
    shard: tarfile.TarFile,
    name: str,
    parts: list[tuple[str, tarfile.TarInfo]],
    number: int,
    columns: Columns,
    skipped: list[Skipped],
) -> Iterator[Row]:
    ends = Counter(end for end, _ in parts)
    pictures = [(end, member) for end, member in parts if end in PICTURES]
    if max(ends.values()) > 1 or len(pictures) != 1:
        reason = (
            "several files of one name" if max(ends.values()) > 1 else "several pictures" if pictures else "no picture"
        )
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
        caption, reason = text_of(_bytes(shard, by_end["txt"]))
    else:
        wanted = FIELDS if columns.caption is None else (columns.caption,)
        caption, reason = caption_of(next((fields[field] for field in wanted if fields.get(field) is not None), None))
        if reason == "no caption" and fields:
            reason = f"no caption: its .json has {', '.join(list(fields)[:SHOWN])}"
    if reason:
        skipped.append(Skipped(name, reason))
        return
    yield row_of(name, caption, fields, file=number, start=picture.offset_data, size=picture.size)


def _bytes(shard: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    opened = shard.extractfile(member)
    assert opened is not None  # a regular file
    return opened.read()


def from_shards(files: Sequence[Path], rows: Iterable[Row], column: str) -> Iterator[tuple[Row, bytes | Skipped]]:
    """The rows' pictures, in their order."""
    for number, here in itertools.groupby(rows, lambda row: row.file):
        try:
            with files[number].open("rb") as file:
                for row in here:
                    file.seek(row.start)
                    yield row, file.read(row.size)
        except OSError as error:
            raise UserError(f"can't read {files[number]}: {error.strerror or error}") from None


# --- Parquet ------------------------------------------------------------------------------------------------------


def _pyarrow(path: Path) -> Any:
    """pyarrow, with its parquet."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            f"{path}: reading parquet needs pyarrow, which is not installed",
            allowed="a folder or .tar shards without it",
            hint="pip install 'kotoe[parquet]'",
        ) from None
    return pyarrow


def parquet(files: list[Path], columns: Columns, skipped: list[Skipped]) -> Iterator[Row]:
    """The rows of parquet files."""
    image, caption_column = columns.image or "image", columns.caption or "text"
    for number, path in enumerate(files):
        pyarrow = _pyarrow(path)
        try:
            with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
                names = list(file.schema_arrow.names)
                for column, option in ((image, "--image-column"), (caption_column, "--caption-column")):
                    if column not in names:
                        raise no_column(path, column, names, option)
                _check_images(path, image, file.schema_arrow.field(image).type)
                told = [n for n in names if n.lower() in TOLD and n != image]
                read = list(dict.fromkeys([caption_column, *told]))
                at = 0
                for batch in file.iter_batches(batch_size=1024, columns=read):
                    for fields in batch.select(read).to_pylist():
                        name = f"{path.name}, row {at + 1}"
                        caption, reason = caption_of(fields[caption_column])
                        if reason:
                            skipped.append(Skipped(name, reason))
                        else:
                            yield row_of(name, caption, fields, file=number, start=at)
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


def from_parquet(files: Sequence[Path], rows: Iterable[Row], column: str) -> Iterator[tuple[Row, bytes | Skipped]]:
    """The rows' pictures, in their order, which is the files'."""
    for number, here in itertools.groupby(rows, lambda row: row.file):
        path = files[number]
        pyarrow = _pyarrow(path)
        try:
            with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
                yield from _of_groups(file, here, column)
        except pyarrow.ArrowException as error:
            raise UserError(f"{path} is damaged ({_line(error)})", allowed="a whole parquet file") from None
        except OSError as error:
            raise UserError(f"can't read {path}: {error.strerror or error}") from None


def _of_groups(file: Any, rows: Iterable[Row], column: str) -> Iterator[tuple[Row, bytes | Skipped]]:
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

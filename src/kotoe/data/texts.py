"""Texts from files: one a line, or columns of a table. Read as a stream, every error with its file and line.

    .txt             one text a line; no columns
    .tsv             fields between tabs, nothing quoted; the first line names the columns
    .csv             fields between commas, quoted as RFC 4180 has it; the first line names the columns
    .jsonl           one JSON object a line; its keys are the columns
    .parquet         needs pyarrow: pip install 'kotoe[parquet]'

Texts come as they are in the file, blank ones too. Only a line feed ends a line (a carriage return before it belongs to
it), and a byte order mark at the start of a file is no text.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from kotoe.errors import CheckpointError, UserError, nearest
from kotoe.tokenizers import parse_json

LONGEST_LINE = 2**20  # bytes: a file without line feeds is no text file
PARQUET_ROWS = 1024  # read at a time
SHOWN = 12  # column names in a message
UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class Fields:
    """The wanted fields of one row. line: where it is in the file, from 1; of a parquet file the row's number."""

    line: int
    texts: tuple[str, ...]


def read_columns(path: str | Path, columns: Sequence[str] = ()) -> Iterator[Fields]:
    """The rows of a file, each with the texts of these columns in this order; of a .txt file its lines.

    columns: names, as the file's first line or its objects have them; none for a .txt file.
    Raises UserError, while reading, for what the file is not: readable, UTF-8, of a known kind, with these columns,
    with a text in every field of them, with at least one row.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in KINDS:
        near = nearest(kind, KINDS)
        raise UserError(
            f"{path}: no kind of text file ends in {kind!r}",
            allowed=", ".join(KINDS),
            hint=f"Did you mean {near!r}?" if near else "",
        )
    if kind == ".txt" and columns:
        raise UserError(
            f"{path} has one text a line and no columns ({', '.join(columns)} asked for)",
            allowed=".tsv, .csv, .jsonl or .parquet for columns",
        )
    if kind != ".txt" and not columns:
        raise UserError(f"{path} has columns, and none is asked for", allowed="one of its columns, or more")
    some = False
    try:
        for row in KINDS[kind](path, list(columns)):
            some = True
            for text in row.texts:
                _check_unicode(text, path, row.line)
            yield row
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror or error}", allowed="a readable file") from None
    if not some:
        raise UserError(f"{path} is empty", allowed="a file with one row or more")


def read_texts(path: str | Path, column: str | None = None) -> Iterator[str]:
    """The texts of one column, or of a .txt file's lines. See `read_columns`."""
    return (row.texts[0] for row in read_columns(path, () if column is None else (column,)))


def read_pairs(*paths: str | Path) -> dict[str, list[str]]:
    """The columns source and target of files of parallel text, each row with something in both."""
    rows: list[tuple[str, ...]] = []
    for path in paths:
        new = [row.texts for row in read_columns(path, ("source", "target"))]
        empty = sum(not source.strip() or not target.strip() for source, target in new)
        if empty:
            raise UserError(
                f"{path}: {empty} of {len(new)} pairs have nothing on one side",
                allowed="a text in both columns of every row",
            )
        rows += new
    return {"source": [source for source, _ in rows], "target": [target for _, target in rows]}


# --- Lines ------------------------------------------------------------------------------------------------------------


def numbered_lines(file: BinaryIO, path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end)."""
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if number == 1 and line.startswith(UTF16):
            raise UserError(f"{path} is UTF-16", allowed="UTF-8", hint=f"iconv -f UTF-16 -t UTF-8 {path} converts it")
        if len(line) > LONGEST_LINE:
            raise UserError(f"{path}, line {number} is longer than {LONGEST_LINE} bytes", allowed="a text file")
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}, line {number} is not UTF-8: byte {error.start + 1} of the line is 0x{line[error.start]:02x} "
                f"({error.reason})",
                allowed="UTF-8",
            ) from None
        yield number, text.removesuffix("\n").removesuffix("\r")


def _check_unicode(text: str, path: Path, line: int) -> None:
    """JSON can spell half a character, which no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{path}, line {line}: character {error.start + 1} is half a surrogate pair", allowed="whole characters"
        ) from None


def _no_column(path: Path, columns: Sequence[str], there: Sequence[str], line: int | None = None) -> UserError:
    missing = [column for column in columns if column not in there]
    near = nearest(missing[0], there)
    shown = [*there[:SHOWN], f"and {len(there) - SHOWN} more"] if len(there) > SHOWN else there
    return UserError(
        f"{path}{'' if line is None else f', line {line}'} has no column {', '.join(map(repr, missing))}",
        allowed=", ".join(shown) or "none: it has no columns",
        hint=f"Did you mean {near!r}?" if near else "",
    )


# --- Kinds ------------------------------------------------------------------------------------------------------------


def _txt(path: Path, columns: list[str]) -> Iterator[Fields]:
    with path.open("rb") as file:
        for number, line in numbered_lines(file, path):
            yield Fields(number, (line,))


def _places(path: Path, names: list[str], columns: list[str]) -> list[int]:
    """Where the columns are among those that a first line names."""
    twice = next((name for name in columns if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path} names the column {twice!r} twice", allowed="different names")
    if not set(columns) <= set(names):
        raise _no_column(path, columns, names, 1)
    return [names.index(column) for column in columns]


def _row(path: Path, line: int, fields: list[str], names: list[str], places: list[int]) -> Fields:
    if len(fields) != len(names):
        raise UserError(
            f"{path}, line {line} has {len(fields)} fields", allowed=f"{len(names)}, as the first line names"
        )
    return Fields(line, tuple(fields[k] for k in places))


def _tsv(path: Path, columns: list[str]) -> Iterator[Fields]:
    with path.open("rb") as file:
        lines = numbered_lines(file, path)
        head = next(lines, None)
        if head is None:
            return
        names = head[1].split("\t")
        places = _places(path, names, columns)
        for number, line in lines:
            yield _row(path, number, line.split("\t"), names, places)


def _csv(path: Path, columns: list[str]) -> Iterator[Fields]:
    with path.open("rb") as file:
        at = 0  # the last line read: a quoted field may run over several

        def lines() -> Iterator[str]:
            nonlocal at
            for number, line in numbered_lines(file, path):
                at = number
                yield line + "\n"

        reader = csv.reader(lines(), strict=True)
        names: list[str] | None = None
        places: list[int] = []
        while True:
            first = at + 1
            try:
                fields = next(reader, None)
            except csv.Error as error:
                given = f"{path}, line {first} is no CSV ({error})"
                raise UserError(given, allowed="fields as RFC 4180 has them") from None
            if fields is None:
                return
            if names is None:
                names = fields
                places = _places(path, names, columns)
            else:  # csv gives no field at all for a line without any character
                yield _row(path, first, fields or [""], names, places)


def _jsonl(path: Path, columns: list[str]) -> Iterator[Fields]:
    with path.open("rb") as file:
        for number, line in numbered_lines(file, path):
            if not line.strip():
                raise UserError(f"{path}, line {number} is blank", allowed="one JSON object a line")
            try:
                value = parse_json(line.encode(), f"{path}, line {number}")
            except CheckpointError as error:
                raise UserError(error.given, allowed=error.allowed or "one JSON object a line") from None
            if not set(columns) <= value.keys():
                raise _no_column(path, columns, list(value), number)
            yield Fields(number, tuple(_text(value[column], path, number, column) for column in columns))


JSON_TYPES = {type(None): "null", bool: "true or false", int: "a number", float: "a number", list: "a list"}


def _text(value: Any, path: Path, line: int, column: str) -> str:
    if not isinstance(value, str):
        said = JSON_TYPES.get(type(value), "an object")
        raise UserError(f"{path}, line {line}: {column} is {said}", allowed="a text")
    return value


def _parquet(path: Path, columns: list[str]) -> Iterator[Fields]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f"{path}: reading parquet needs pyarrow, which is not installed",
            allowed=".txt, .tsv, .csv, .jsonl without it",
            hint="pip install 'kotoe[parquet]'",
        ) from None
    path.open("rb").close()  # the error of a missing file is then the same as for the others
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            there = list(file.schema_arrow.names)
            if not set(columns) <= set(there):
                raise _no_column(path, columns, there)
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=columns):
                found = [batch.column(column).to_pylist() for column in columns]
                for values in zip(*found, strict=True):
                    number += 1
                    yield Fields(number, tuple(_text(v, path, number, c) for v, c in zip(values, columns, strict=True)))
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is damaged or no parquet file ({_line(error)})", allowed="a parquet file") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: a text after row {number} is not UTF-8 (byte {error.start + 1})", allowed="UTF-8"
        ) from None


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0][:120]


KINDS: dict[str, Callable[[Path, list[str]], Iterator[Fields]]] = {
    ".txt": _txt,
    ".tsv": _tsv,
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}

"""Texts from files: what is read, as it is, and an error with file and line for everything else."""

from __future__ import annotations

import builtins
import csv
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kotoe.data.texts import LONGEST_LINE, Fields, read_columns, read_pairs, read_texts
from kotoe.errors import UserError

PAIRS = [("a cat", "青い猫"), ("", "  "), ("tab-free, “quoted”", "\u2028 x"), ("🐈‍⬛", "고양이")]
LINE = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\n\r\t"), max_size=12)


def write_tsv(path: Path, rows: list[tuple[str, ...]]) -> None:
    path.write_bytes("".join("\t".join(row) + "\n" for row in rows).encode())


def write_csv(path: Path, rows: list[tuple[str, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def write_jsonl(path: Path, rows: list[tuple[str, ...]]) -> None:
    head, *others = rows
    path.write_text("".join(json.dumps(dict(zip(head, row, strict=True))) + "\n" for row in others), "utf-8")


def write_parquet(path: Path, rows: list[tuple[str, ...]]) -> None:
    import pyarrow
    from pyarrow import parquet

    head, *others = rows
    parquet.write_table(pyarrow.table({name: [row[k] for row in others] for k, name in enumerate(head)}), path)


WRITERS: dict[str, Callable[[Path, list[tuple[str, ...]]], None]] = {
    ".tsv": write_tsv,
    ".csv": write_csv,
    ".jsonl": write_jsonl,
    ".parquet": write_parquet,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_columns_come_as_they_are(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"pairs{kind}"
    WRITERS[kind](path, [("source", "target"), *PAIRS])
    first = 1 if kind in (".jsonl", ".parquet") else 2  # a table's first line names the columns
    assert list(read_columns(path, ["source", "target"])) == [Fields(first + k, pair) for k, pair in enumerate(PAIRS)]
    assert list(read_texts(path, "target")) == [target for _, target in PAIRS]
    assert [row.texts for row in read_columns(path, ["target", "source"])] == [(b, a) for a, b in PAIRS]


@given(rows=st.lists(st.tuples(LINE, LINE), min_size=1, max_size=5))
def test_every_kind_reads_the_same(rows: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("texts")
    for kind, write in WRITERS.items():
        write(folder / f"x{kind}", [("a", "b"), *rows])
        assert [row.texts for row in read_columns(folder / f"x{kind}", ["a", "b"])] == rows, kind


def test_lines_of_text(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes("\ufeffa cat\r\n\n  青い\tx\u2028y \x0c\nlast".encode())
    assert list(read_columns(path)) == [
        Fields(1, ("a cat",)),
        Fields(2, ("",)),
        Fields(3, ("  青い\tx\u2028y \x0c",)),
        Fields(4, ("last",)),
    ]


def test_csv_fields_may_run_over_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b'a,b\n"one\ntwo",x\ny,"a ""b"""\n')
    assert list(read_columns(path, ["a", "b"])) == [Fields(2, ("one\ntwo", "x")), Fields(4, ("y", 'a "b"'))]


BAD: dict[str, tuple[str, bytes, list[str], str]] = {
    "no such kind": ("x.doc", b"a", [], r"no kind of text file ends in '.doc'.*Allowed: .txt, .tsv"),
    "near kind": ("x.jsnl", b"a", [], r"Did you mean '.jsonl'"),
    "empty txt": ("x.txt", b"", [], "x.txt is empty"),
    "empty tsv": ("x.tsv", b"", ["a"], "x.tsv is empty"),
    "head alone": ("x.tsv", b"a\tb\n", ["a"], "x.tsv is empty"),
    "empty jsonl": ("x.jsonl", b"", ["a"], "x.jsonl is empty"),
    "columns of a txt": ("x.txt", b"a\n", ["target"], r"no columns \(target asked for\)"),
    "no column asked": ("x.tsv", b"a\tb\n1\t2\n", [], "has columns, and none is asked for"),
    "one column where two are needed": ("x.tsv", b"source\nx\n", ["source", "target"], "no column 'target'.*: source"),
    "column not there": ("x.tsv", b"source\ttarget\n1\t2\n", ["targt"], "no column 'targt'.*source, target.*'target'"),
    "many columns": ("x.csv", b",".join(b"c%d" % i for i in range(99)) + b"\n", ["z"], "c11, and 87 more"),
    "column twice": ("x.tsv", b"a\ta\n1\t2\n", ["a"], "names the column 'a' twice"),
    "short row": ("x.tsv", b"a\tb\n1\t2\n3\n", ["a"], r"line 3 has 1 fields.*Allowed: 2, as the first line names"),
    "long row": ("x.csv", b"a,b\n1,2\n\n1,2,3\n", ["a"], r"line 3 has 1 fields"),
    "not UTF-8": ("x.txt", b"fine\nca\xe9t\n", [], r"x.txt, line 2 is not UTF-8: byte 3 of the line is 0xe9"),
    "not UTF-8 tsv": ("x.tsv", b"a\tb\n1\t\xff\n", ["a"], "line 2 is not UTF-8: byte 3 of the line is 0xff"),
    "UTF-16": ("x.txt", "猫\n".encode("utf-16"), [], "is UTF-16.*iconv -f UTF-16 -t UTF-8"),
    "no line ends": ("x.txt", b"a" * (LONGEST_LINE + 1), [], f"line 1 is longer than {LONGEST_LINE} bytes"),
    "open quote": ("x.csv", b'a,b\n1,2\n"3,4\n', ["a"], "line 3 is no CSV"),
    "stray quote": ("x.csv", b'a,b\n"1"2,3\n', ["a"], "line 2 is no CSV"),
    "no JSON": ("x.jsonl", b'{"a": "1"}\n{"a": \n', ["a"], "x.jsonl, line 2 is not valid JSON"),
    "JSON list": ("x.jsonl", b'["a"]\n', ["a"], "line 1 holds a list.*a JSON object"),
    "blank JSON line": ("x.jsonl", b'{"a": "1"}\n\n', ["a"], "line 2 is blank"),
    "number": ("x.jsonl", b'{"a": 1}\n', ["a"], "line 1: a is a number.*Allowed: a text"),
    "null": ("x.jsonl", b'{"a": null}\n', ["a"], "line 1: a is null"),
    "key not there": ("x.jsonl", b'{"a": "1", "b": ""}\n{"b": "2"}\n', ["a"], "line 2 has no column 'a'.*Allowed: b"),
    "half a character": ("x.jsonl", b'{"a": "x\\ud800"}\n', ["a"], "line 1: character 2 is half a surrogate pair"),
    "no parquet": ("x.parquet", b"PAR1 no", ["a"], "x.parquet is damaged or no parquet file"),
    "empty parquet": ("x.parquet", b"", ["a"], "x.parquet is damaged or no parquet file"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files_teach(case: str, tmp_path: Path) -> None:
    name, content, columns, message = BAD[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        list(read_columns(tmp_path / name, columns))
    assert type(error.value) is UserError  # no checkpoint


@pytest.mark.parametrize("kind", [".txt", *WRITERS])
def test_a_file_that_is_not_there(kind: str, tmp_path: Path) -> None:
    columns = [] if kind == ".txt" else ["a"]
    with pytest.raises(UserError, match="can't read .*No such file"):
        list(read_columns(tmp_path / f"x{kind}", columns))
    (tmp_path / f"x{kind}").mkdir()
    with pytest.raises(UserError, match="can't read .*Is a directory"):
        list(read_columns(tmp_path / f"x{kind}", columns))


def test_parquet_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"a": ["1", None], "n": [1, 2]}), path)
    with pytest.raises(UserError, match="line 2: a is null"):
        list(read_columns(path, ["a"]))
    with pytest.raises(UserError, match="line 1: n is a number"):
        list(read_columns(path, ["n"]))
    with pytest.raises(UserError, match="no column 'b'.*Allowed: a, n"):
        list(read_columns(path, ["b"]))
    parquet.write_table(pyarrow.table({"a": pyarrow.array([], pyarrow.string())}), path)
    with pytest.raises(UserError, match="is empty"):
        list(read_columns(path, ["a"]))
    latin = pyarrow.array([b"caf\xe9"], pyarrow.binary()).cast(pyarrow.string(), safe=False)
    parquet.write_table(pyarrow.table({"a": latin}), path)
    with pytest.raises(UserError, match="after row 0 is not UTF-8"):
        list(read_columns(path, ["a"]))
    real = builtins.__import__

    def without(name: str, *more: object, **named: object) -> object:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"needs pyarrow.*pip install 'kotoe\[parquet\]'"):
        list(read_columns(path, ["a"]))


def test_reading_is_a_stream(tmp_path: Path) -> None:
    """A large file is not held in memory, and its first row comes before its last one is looked at."""
    path = tmp_path / "x.tsv"
    with path.open("wb") as file:
        file.write(b"a\tb\n")
        file.writelines(b"%d\t%s\n" % (k, b"x" * 200) for k in range(50_000))  # 10 MB
        file.write(b"\xff\n")
    rows = read_columns(path, ["a"])
    assert next(rows).texts == ("0",)
    tracemalloc.start()
    with pytest.raises(UserError, match="line 50002 is not UTF-8"):
        for _ in rows:
            pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_pairs_have_a_text_on_both_sides(tmp_path: Path) -> None:
    file = tmp_path / "pairs.tsv"
    file.write_text("source\ttarget\na cat\tpaka\na dog\tmbwa\n", encoding="utf-8")
    assert read_pairs(file) == {"source": ["a cat", "a dog"], "target": ["paka", "mbwa"]}
    file.write_text("source\ttarget\na cat\tpaka\na dog\t \n", encoding="utf-8")
    with pytest.raises(UserError, match=r"1 of 2 pairs have nothing on one side"):
        read_pairs(file)

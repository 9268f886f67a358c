"""Captioned pictures in every layout: each row is found in its order, or listed with the reason why not."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from webdataset import tariterators

from captioned import LAYOUTS, PICTURES, TEXTS, bytes_parquet, csv_folder, jsonl_folder, pairs_folder, txt_shards
from kotoe.data.containers import BATCH
from kotoe.data.rows import Skipped
from kotoe.data.sources import Source, read_rows
from kotoe.errors import UserError


def reasons(source: Source) -> dict[str, str]:
    return {one.name: one.reason for one in source.skipped}


def names(source: Source) -> list[str]:
    return [row.name for row in source.rows]


# --- Layouts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_captions_and_bytes(layout: str, tmp_path: Path) -> None:
    write, what, columns = LAYOUTS[layout]
    found = read_rows(write(tmp_path / "data") / what, **columns)
    assert [row.caption for row in found.rows] == list(TEXTS)
    assert not found.skipped
    assert [content for _, content in found.contents()] == list(PICTURES)
    for first in (1, 3, 5, 6):
        assert list(found.contents(first)) == list(zip(found.rows[first:], PICTURES[first:], strict=True))
    again = read_rows(tmp_path / "data" / what, **columns)
    assert again.rows == found.rows
    assert len(set(names(found))) == len(TEXTS)


def test_what_a_row_says_of_itself_is_kept(tmp_path: Path) -> None:
    row = read_rows(txt_shards(tmp_path / "a")).rows[4]
    assert (row.name, row.language, row.source, row.licence) == (
        "part-09.tar/000004.png", "ko", "https://example.org/x.png", "CC-BY-4.0",
    )  # fmt: skip
    row = read_rows(csv_folder(tmp_path / "b")).rows[5]
    assert (row.name, row.language, row.source, row.licence) == ("b/c/005.png", None, None, "CC0-1.0")


def test_the_list_knows_its_pictures_and_when_they_changed(tmp_path: Path) -> None:
    for layout, (write, what, columns) in LAYOUTS.items():
        place = write(tmp_path / layout) / what
        before = read_rows(place, **columns)
        digests = before.digest(stamps=False), before.digest(stamps=True)
        assert digests == tuple(read_rows(place, **columns).digest(stamps=s) for s in (False, True))
        file = next(p for p in (tmp_path / layout).rglob("*") if p.suffix in (".png", ".tar", ".parquet"))
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)
        after = read_rows(place, **columns)
        assert after.digest(stamps=False) == digests[0]
        assert after.digest(stamps=True) != digests[1]


# --- What is no row ------------------------------------------------------------------------------------------------


def test_captions_that_are_none_are_listed(tmp_path: Path) -> None:
    texts = ["", "  ", None, 7, ["a", "b"], "half \ud83d", "고양이"]
    folder = jsonl_folder(tmp_path)
    lines = [f'{{"file_name": "{i:03}.png", "text": {_json(text)}}}' for i, text in enumerate(texts)]
    (folder / "metadata.jsonl").write_text("\n".join([*lines, '{"file_name": "007.png"}']) + "\n")
    found = read_rows(folder)
    assert names(found) == ["006.png"]
    assert reasons(found) == {
        "000.png": "its caption is empty",
        "001.png": "its caption is empty",
        "002.png": "no caption",
        "003.png": "its caption is a int, no text",
        "004.png": "its caption is a list, no text",
        "005.png": "its caption holds half a surrogate pair",
        "007.png": "no caption",
    }


def _json(value: Any) -> str:
    import json

    return json.dumps(value)


def test_pictures_and_rows_that_miss_each_other_are_listed(tmp_path: Path) -> None:
    folder = jsonl_folder(tmp_path / "data")
    (tmp_path / "secret.png").write_bytes(PICTURES[0])
    (folder / "more").mkdir()
    (folder / "more" / "unnamed.JPG").write_bytes(PICTURES[0])
    (folder / ".hidden.png").write_bytes(PICTURES[0])
    (folder / "folder.png").mkdir()
    with (folder / "metadata.jsonl").open("a") as file:
        for name in ("../secret.png", str(tmp_path / "secret.png"), "gone.png", "folder.png", "", "./more/../000.png"):
            file.write(f'{{"file_name": "{name}", "text": "x"}}\n')
    found = read_rows(folder)
    assert reasons(found) == {
        "../secret.png": "its name leads out of the folder",
        str(tmp_path / "secret.png"): "its name leads out of the folder",
        "gone.png": "there is no such file",
        "folder.png": "there is no such file",
        "metadata.jsonl, row 12": "it names no file",
        "more/unnamed.JPG": "no caption: no metadata file names it",
    }
    assert names(found)[7:] == ["000.png"]  # a picture may have two captions


def test_a_folder_of_pairs_lists_what_has_no_partner(tmp_path: Path) -> None:
    folder = pairs_folder(tmp_path / "data")
    (folder / "lonely.jpg").write_bytes(PICTURES[0])
    (folder / "notes.txt").write_text("about this folder")
    (folder / "003.jpg").write_bytes(PICTURES[0])
    (folder / "000.txt").write_bytes("고양이".encode("cp949"))
    (folder / "001.txt").write_text(" \n")
    (folder / "002.txt").write_text("a second caption")
    (folder / "004.txt").write_text("\ufeff달\r\n밤\r\n", encoding="utf-8")
    (folder / "005.txt").write_bytes(b"x" * (2**20 + 1))
    found = read_rows(folder)
    assert reasons(found) == {
        "000.png": "its caption is not UTF-8 (byte 1)",
        "001.png": "its caption is empty",
        "002.png": "two captions: 002.txt and 002.caption",
        "003.png": "another picture has the same name, and so the same caption file",
        "003.jpg": "another picture has the same name, and so the same caption file",
        "005.png": "its caption has over 1048576 bytes",
        "lonely.jpg": "no caption",
        "notes.txt": "no picture of that name",
    }
    assert [(row.name, row.caption) for row in found.rows] == [("004.png", "달\r\n밤"), ("006.png", TEXTS[6])]


def add(shard: tarfile.TarFile, name: str, content: bytes, **head: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in head.items():
        setattr(member, key, value)
    shard.addfile(member, io.BytesIO(content))


def odd_shard(path: Path) -> Path:
    with tarfile.open(path, "w") as shard:
        add(shard, "__about__/x.png", PICTURES[0])
        add(shard, "a/x.1.png", b"no picture's end")  # key a/x, end 1.png
        add(shard, "a/x.TXT", b"x")
        add(shard, "./b.PNG", PICTURES[0])
        add(shard, "./b.txt", " 고양이\n".encode())
        add(shard, "b.txt", b"another key")
        add(shard, "c", b"no end")
        add(shard, "c.v1/d.jpg", PICTURES[1])
        add(shard, "c.v1/d.seg.png", PICTURES[2])
        add(shard, "c.v1/d.json", '{"text": "달", "caption": "x"}'.encode())
        add(shard, "._e.png", b"a Mac's shadow")
        add(shard, "f.png", PICTURES[0])
        add(shard, "f.webp", PICTURES[0])
        add(shard, "f.txt", b"x")
        add(shard, "g.png", PICTURES[0])
        add(shard, "g.json", b'{"title": "x"}')
        add(shard, "h.png", PICTURES[0])
        add(shard, "h.json", b'{"text": ')
        add(shard, "i.png", b"", type=tarfile.SYMTYPE, linkname="b.PNG")
        add(shard, "i.txt", b"x")
        add(shard, "j.png", PICTURES[0])
        add(shard, "k.png", PICTURES[3])
        add(shard, "k.txt", "성".encode())
    return path


def by_webdataset(path: Path) -> list[dict[str, Any]]:
    """The samples of a shard as webdataset's own reader groups them."""
    with path.open("rb") as file:
        opened = tariterators.tar_file_expander([{"url": path.name, "stream": file}])
        return list(tariterators.group_by_keys(opened))


def test_an_odd_shard_is_read_as_webdataset_groups_it(tmp_path: Path) -> None:
    path = odd_shard(tmp_path / "odd.tar")
    found = read_rows(path)
    assert [(row.name, row.caption) for row in found.rows] == [
        ("odd.tar/./b.png", "고양이"),
        ("odd.tar/c.v1/d.jpg", "달"),
        ("odd.tar/k.png", "성"),
    ]
    assert reasons(found) == {
        "odd.tar/a/x": "no picture",
        "odd.tar/b": "no picture",
        "odd.tar/f": "several pictures",
        "odd.tar/g.png": "no caption: its .json has title",
        "odd.tar/h.png": "its .json is not valid JSON (Expecting value: line 1 column 10 (char 9)).",
        "odd.tar/i": "no picture",
        "odd.tar/j.png": "no caption",
    }
    theirs = by_webdataset(path)
    keys = {sample["__key__"] for sample in theirs}
    ours = {row.name.removeprefix("odd.tar/").rpartition(".")[0] for row in found.rows}
    assert keys == ours | {"a/x", "b", "f", "g", "h", "i", "j"}
    for row, content in found.contents():
        key, _, end = row.name.removeprefix("odd.tar/").rpartition(".")
        assert next(s for s in theirs if s["__key__"] == key)[end] == content


def test_a_shard_with_a_file_twice_is_listed_where_webdataset_stops(tmp_path: Path) -> None:
    path = tmp_path / "twice.tar"
    with tarfile.open(path, "w") as shard:
        for name in ("a.png", "a.txt", "a.png", "b.png", "b.txt"):
            add(shard, name, PICTURES[0] if name.endswith("png") else b"x")
    found = read_rows(path)
    assert names(found) == ["twice.tar/b.png"]
    assert reasons(found) == {"twice.tar/a": "several files of one name"}
    with pytest.raises(ValueError, match="duplicate file name"):
        by_webdataset(path)


def test_a_shard_cut_anywhere_is_refused(tmp_path: Path) -> None:
    """tarfile alone takes some of these for whole shards with fewer files."""
    whole = (txt_shards(tmp_path / "data") / "part-08.tar").read_bytes()
    path = tmp_path / "cut.tar"
    path.write_bytes(whole)
    at = read_rows(path).rows[-1]
    end = whole.rindex(b"ustar", 0, whole.index(bytes(1024), at.start + at.size) + 512)
    taken = 0
    for cut in (0, 1, 511, 512, 1024, *range(1024, end, 700), *range(1024, end, 1024)):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="damaged or no .tar file"):
            read_rows(path)
        try:
            with tarfile.open(path) as shard:
                taken += len(shard.getnames()) > 0
        except tarfile.TarError:
            pass
    assert taken


def test_pictures_in_parquet_that_are_none_are_listed(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    count = 3 * BATCH  # over several batches of one row group
    images = [{"bytes": b"%d" % i, "path": None} for i in range(count)]
    images[40] = {"bytes": None, "path": "there/40.png"}
    images[50] = None
    texts: list[Any] = [f"text {i}" for i in range(count)]
    texts[3] = None
    texts[90] = ""
    parquet.write_table(pyarrow.table({"image": images, "text": texts}), tmp_path / "x.parquet")
    found = read_rows(tmp_path / "x.parquet")
    assert reasons(found) == {"x.parquet, row 4": "no caption", "x.parquet, row 91": "its caption is empty"}
    contents = dict(found.contents())
    gone = {row.name: c.reason for row, c in contents.items() if isinstance(c, Skipped)}
    assert gone == {
        "x.parquet, row 41": "no picture, only a path: there/40.png",
        "x.parquet, row 51": "no picture",
    }
    assert all(c == b"%d" % row.start for row, c in contents.items() if isinstance(c, bytes))
    assert len(contents) == count - 2


def test_a_picture_that_has_gone_since_is_listed(tmp_path: Path) -> None:
    """And so: pictures are read one by one."""
    found = read_rows(jsonl_folder(tmp_path))
    contents = found.contents()
    assert next(contents)[1] == PICTURES[0]
    (tmp_path / "001.png").unlink()
    assert next(contents)[1] == Skipped("001.png", "can't be read: No such file or directory")
    assert next(contents)[1] == PICTURES[2]


# --- Sources that are none -----------------------------------------------------------------------------------------


def mixed(folder: Path) -> Path:
    txt_shards(folder / "shards")
    return jsonl_folder(folder)


def two_tables(folder: Path) -> Path:
    (jsonl_folder(folder) / "metadata.csv").write_text("file_name,text\n")
    return folder


def table(content: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        folder.mkdir()
        (folder / "metadata.csv").write_text(content)
        return folder

    return write


def file(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        folder.mkdir()
        (folder / name).write_bytes(content)
        return folder / name

    return write


def bare(folder: Path) -> Path:
    return file("readme.md", b"")(folder).parent


def paths_in_parquet(folder: Path) -> Path:
    import pyarrow
    from pyarrow import parquet

    folder.mkdir()
    parquet.write_table(pyarrow.table({"image": ["a.png"], "text": ["x"]}), folder / "x.parquet")
    return folder


@pytest.mark.parametrize(
    ("write", "what", "columns", "message"),
    [
        (jsonl_folder, "nowhere", {}, "there is nothing at .*nowhere.*a folder with metadata.jsonl"),
        (txt_shards, "part-{07..09}.tar", {}, r"1 of 3 files are not there, the first is .*part-07.tar"),
        (txt_shards, "part-{9..8}.tar", {}, "ends before it begins"),
        (txt_shards, "part-{0..9}{0000..99999}.tar", {}, "means 1000000 files.*100000 at most"),
        (jsonl_folder, "000.png", {}, "000.png is no source of captioned pictures"),
        (file("x.tar.gz", b""), "", {}, "Unpack it to a .tar first"),
        (file("x.tar", b"no tar"), "", {}, "x.tar is damaged or no .tar file"),
        (file("x.tar", bytes(10240)), "", {}, "has no captioned picture"),
        (file("x.parquet", b"PAR1PAR1"), "", {}, "x.parquet is damaged or no parquet file"),
        (bare, "", {}, "holds neither pictures nor shards"),
        (mixed, "", {}, "holds pictures and .tar files"),
        (two_tables, "", {}, "has metadata.csv and metadata.jsonl"),
        (jsonl_folder, "", {"caption_column": "texts"}, "no column 'texts'.*Did you mean --caption-column text?"),
        (jsonl_folder, "", {"image_column": "image"}, "no column 'image'.*file_name, text.*--image-column names it"),
        (pairs_folder, "", {"caption_column": "text"}, "and so no columns"),
        (bytes_parquet, "", {"caption_column": "txt"}, "no column 'txt'.*Did you mean --caption-column text"),
        (bytes_parquet, "", {"image_column": "text"}, "column 'text' holds string.*pictures: bytes"),
        (paths_in_parquet, "", {}, "column 'image' holds string.*write metadata.csv"),
        (txt_shards, "", {"caption_column": "captions"}, "no captioned picture .*its .json has url, license"),
        (table(""), "", {}, "metadata.csv is empty"),
        (table("file_name,text,text\n"), "", {}, "names a column twice"),
        (table("file_name,text\na.png\n"), "", {}, "row 1 has 1 fields"),
        (table('file_name,text\na.png,"x\n'), "", {}, "after row 0 is no CSV"),
    ],
)
def test_sources_that_are_none_say_why(
    write: Callable[[Path], Path], what: str, columns: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        read_rows(write(tmp_path / "data") / what, **columns)


def test_a_name_with_a_pipe_is_no_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is nothing at pipe:touch seen"):
        read_rows("pipe:touch seen")
    assert not (tmp_path / "seen").exists()


def test_braces_in_a_name_that_is_there_are_no_range(tmp_path: Path) -> None:
    whole = txt_shards(tmp_path / "data") / "part-08.tar"
    (tmp_path / "{0..9}.tar").write_bytes(whole.read_bytes())
    assert len(read_rows(tmp_path / "{0..9}.tar").rows) == 3

"""Small captioned pictures, as files of every layout that is read; shards are written by webdataset itself."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TEXTS = ("빨간 고양이", "부엉이, 그리고 달", "강아지 두 마리", '"성" 그림', "노란 달", "초록 나무", "빨간 성")


def picture(seed: int, width: int = 48, height: int = 32) -> Image.Image:
    """Smooth colours, no two pictures alike."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture's file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


PICTURES = tuple(saved(picture(i)) for i in range(len(TEXTS)))


def jsonl_folder(folder: Path, texts: Sequence[Any] = TEXTS, pictures: Sequence[bytes] = PICTURES) -> Path:
    """datasets' imagefolder: metadata.jsonl beside the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, (text, content) in enumerate(zip(texts, pictures, strict=True)):
        (folder / f"{i:03}.png").write_bytes(content)
        rows.append(json.dumps({"file_name": f"{i:03}.png", "text": text}, ensure_ascii=False))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def csv_folder(folder: Path) -> Path:
    """The same with metadata.csv, one for each of two folders."""
    for part, places in (("a", range(4)), ("b/c", range(4, len(TEXTS)))):
        (folder / part).mkdir(parents=True)
        with (folder / part / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["license", "text", "file_name"])
            for i in places:
                (folder / part / f"{i:03}.png").write_bytes(PICTURES[i])
                rows.writerow(["CC0-1.0", TEXTS[i], f"{i:03}.png"])
    return folder


def pairs_folder(folder: Path) -> Path:
    """kohya's layout: a text file beside each picture."""
    folder.mkdir(parents=True)
    for i, text in enumerate(TEXTS):
        (folder / f"{i:03}.png").write_bytes(PICTURES[i])
        (folder / f"{i:03}.{'caption' if i == 2 else 'txt'}").write_text(f"{text}\n", encoding="utf-8")
    return folder


def _write_shards(folder: Path, sample: Callable[[int], dict[str, Any]]) -> Path:
    import webdataset

    folder.mkdir(parents=True)
    for shard, places in enumerate((range(3), range(3, len(TEXTS)))):
        with webdataset.TarWriter(str(folder / f"part-{shard + 8:02}.tar")) as file:
            for i in places:
                file.write({"__key__": f"{i:06}", **sample(i)})
    return folder


def txt_shards(folder: Path) -> Path:
    """webdataset: key.png and key.txt, and a .json that says more."""
    more = {"url": "https://example.org/x.png", "license": "CC-BY-4.0", "LANGUAGE": "ko", "caption": "not this"}
    return _write_shards(folder, lambda i: {"png": PICTURES[i], "txt": TEXTS[i], "json": more})


def json_shards(folder: Path) -> Path:
    """As img2dataset writes them: the caption in the .json."""
    return _write_shards(folder, lambda i: {"png": PICTURES[i], "json": {"caption": TEXTS[i], "sha256": "0"}})


def bytes_parquet(folder: Path) -> Path:
    """A column of bytes; two files, one of them in row groups of two."""
    import pyarrow
    from pyarrow import parquet

    folder.mkdir(parents=True)
    for number, places in enumerate((range(5), range(5, len(TEXTS)))):
        columns = {"text": [TEXTS[i] for i in places], "image": [PICTURES[i] for i in places]}
        parquet.write_table(pyarrow.table(columns), folder / f"train-{number:05}.parquet", row_group_size=2)
    return folder


def struct_parquet(folder: Path) -> Path:
    """As datasets writes pictures."""
    import pyarrow
    from pyarrow import parquet

    folder.mkdir(parents=True)
    images = [{"bytes": content, "path": f"{i}.png"} for i, content in enumerate(PICTURES)]
    table = pyarrow.table({"image": images, "zh_prompt": list(TEXTS), "lang": ["ko"] * len(TEXTS)})
    parquet.write_table(table, folder / "data.parquet")
    return folder


LAYOUTS: dict[str, tuple[Callable[[Path], Path], str, dict[str, str]]] = {  # writer, what is asked for in it, columns
    "metadata.jsonl": (jsonl_folder, "", {}),
    "metadata.csv": (csv_folder, "", {}),
    "pairs": (pairs_folder, "", {}),
    "shards": (txt_shards, "", {}),
    "a range of shards": (txt_shards, "part-{08..09}.tar", {}),
    "img2dataset": (json_shards, "", {}),
    "json by name": (json_shards, "", {"caption_column": "caption"}),
    "bytes in parquet": (bytes_parquet, "", {}),
    "datasets' parquet": (struct_parquet, "data.parquet", {"caption_column": "zh_prompt"}),
}

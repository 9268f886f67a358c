"""Captioned pictures as latents on disk: prepared, encoded once, and read from there without being loaded.

    latents.npy     (N, 1 or 2, C, h, w) float16, unit-scaled: the posterior's mean, and its spread if that is wanted
    chunks.jsonl    one line for each chunk of rows that is in it: how many were kept, and which were not, and why
    config.json     what it was made from; the folder's name is a hash of that

Pictures go through in chunks. A chunk's latents are on disk before its line is; what a kill leaves behind the last line
is cut off when it goes on, and the files come out the same to the byte. N is written into latents.npy at the end.

Legend: N pictures, C latent channels, h w latent rows and columns.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kotoe.config import dumps
from kotoe.data.rows import Row as Row  # Row and read_rows are for localize, which sees this module alone
from kotoe.data.rows import Skipped
from kotoe.data.sources import Source
from kotoe.data.sources import read_rows as read_rows
from kotoe.errors import UserError, unknown
from kotoe.images import picture_of, to_tensor
from kotoe.runs import Run, write_atomic
from kotoe.vae import VAE

CROPS = ("center", "random", "squash")
RESAMPLES = {
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
}
CHUNK = 64  # rows between two lines of chunks.jsonl: what a kill may cost
PIXELS_AT_ONCE = 2**20  # of a batch: four pictures of 512 x 512
MOST_AT_ONCE = 32
FORMAT = 1  # of the files: another number is another cache


@dataclass(frozen=True, kw_only=True)
class Preparing:
    """How a picture becomes size_px x size_px pixels.

    crop:     center; random, where chance (seed and the picture's name) puts it along the longer edge, once for all; or
              squash, the whole picture, its proportions lost.
    resample: bicubic, lanczos or bilinear, each over all the pixels that fall together (antialiased).
    sampled:  keep the posterior's spread too, so that each look at a picture is another sample.
    """

    size_px: int
    crop: str = "center"
    resample: str = "bicubic"
    seed: int = 0
    sampled: bool = False

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise unknown("crop", self.crop, CROPS)
        if self.resample not in RESAMPLES:
            raise unknown("resample", self.resample, RESAMPLES)

    def box(self, width: int, height: int, name: str) -> tuple[int, int, int, int]:
        """Which part of a picture is seen: left, upper, right, lower."""
        if self.crop == "squash":
            return 0, 0, width, height
        edge = min(width, height)
        spare = max(width, height) - edge
        at = spare // 2
        if self.crop == "random":
            digest = hashlib.blake2s(f"{self.seed}:{name}:crop".encode(), digest_size=8).digest()
            at = int.from_bytes(digest, "big") % (spare + 1)
        left, upper = (at, 0) if width > height else (0, at)
        return left, upper, left + edge, upper + edge


def prepare(image: Image.Image, wanted: Preparing, name: str) -> Tensor:
    """(1, 3, size, size) in [-1, 1] of an RGB picture."""
    size = wanted.size_px, wanted.size_px
    box = wanted.box(*image.size, name)
    return to_tensor(image.resize(size, RESAMPLES[wanted.resample], box=box))  # no larger picture in between


@dataclass(frozen=True, kw_only=True)
class Shards:
    """What is in the cache: which rows of the source, and their latents.

    kept:     places of rows in `source.rows`, in order.
    skipped:  rows whose pictures don't open.
    latents:  (N, C, h, w) float16, the posterior's mean; mapped from disk.
    spread:   (N, C, h, w) float16, its standard deviation, or None.
    enlarged, transparent: how many were smaller than asked, and how many were put on white.
    """

    kept: Sequence[int]
    skipped: Sequence[Skipped]
    latents: Tensor
    spread: Tensor | None
    enlarged: int
    transparent: int
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A row's picture, ready: (1, 3, size, size) in [-1, 1]."""

    pixels: Tensor
    enlarged: bool
    transparent: bool


def opened(source: Source, wanted: Preparing, first: int = 0) -> Iterator[Opened | Skipped]:
    """The pictures of the rows from `first` on, one at a time, or why there is none. They are untrusted."""
    for row, content in source.contents(first):
        if isinstance(content, Skipped):
            yield content
            continue
        try:
            image, clear = picture_of(content, "it")
        except UserError as error:
            yield Skipped(row.name, str(error))
            continue
        small = min(image.size) < wanted.size_px
        yield Opened(pixels=prepare(image, wanted, row.name), enlarged=small, transparent=clear)


def moments(vae: VAE, pixels: Tensor, sampled: bool) -> Tensor:
    """(B, 1 or 2, C, h, w) float16, unit-scaled, of pixels (B, 3, H, W) in [-1, 1]."""
    with torch.inference_mode():
        mean, logvar = vae.moments(pixels.to(next(vae.parameters())))
        parts = [mean, torch.exp(0.5 * logvar)] if sampled else [mean]
        found = (torch.stack(parts, dim=1) * vae.spec.scaling_factor).to("cpu", torch.float16)  # (B, K, C, h, w)
    if not bool(found.isfinite().all()):
        raise UserError("latents that float16 can't hold", hint="Load the model in float32; or its weights are damaged")
    return found


def at_once(size_px: int) -> int:
    """How many pictures are encoded together."""
    return max(1, min(MOST_AT_ONCE, PIXELS_AT_ONCE // size_px**2))


def encode(
    source: Source,
    wanted: Preparing,
    vae: VAE,
    cache: str | Path,
    *,
    vae_sha256: str,
    on_progress: Callable[[int, int], None] | None = None,
) -> Shards:
    """The source's latents from the cache, first put there as far as they aren't.

    cache:       a folder; what has been made from other pictures, another VAE or other settings lies beside it.
    vae_sha256:  the VAE's identity.
    on_progress: gets rows done and rows in all.
    Raises UserError when no picture opens, or when another process is at it.
    """
    about = {
        "format": FORMAT,
        "vae": vae_sha256,
        "pictures": source.digest(stamps=True),
        "rows": len(source.rows),
        "preparing": asdict(wanted if wanted.crop == "random" else replace(wanted, seed=0)),
    }
    folder = Path(cache) / hashlib.sha256(dumps(about).encode()).hexdigest()[:16]
    if not (folder / "done").exists():
        with Run(folder, about) as run:
            try:
                _fill(run, source, wanted, vae, on_progress)
            except OSError as error:
                raise UserError(f"can't write in {folder}: {error.strerror or error}") from error
    return _read(folder, source)


def _fill(
    run: Run, source: Source, wanted: Preparing, vae: VAE, on_progress: Callable[[int, int], None] | None
) -> None:
    """Encode what is missing. The run's lock is held."""
    spec = vae.spec
    edge = wanted.size_px // spec.downscale
    shape = (2 if wanted.sampled else 1, spec.latent_channels, edge, edge)
    data, journal = run.path("latents.npy"), run.path("chunks.jsonl")
    head, row_bytes = _head(0, shape), 2 * int(np.prod(shape))
    if not data.exists():
        write_atomic(data, head)
    lines = _whole_lines(journal, (data.stat().st_size - len(head)) // row_bytes)
    rows = sum(line["rows"] for line in lines)
    kept = sum(line["kept"] for line in lines)
    ready = opened(source, wanted, rows)
    with data.open("r+b") as file, journal.open("r+b" if journal.exists() else "w+b") as book:
        file.truncate(len(head) + kept * row_bytes)
        book.truncate(sum(len(_line(line)) for line in lines))
        file.seek(0, os.SEEK_END)
        book.seek(0, os.SEEK_END)
        while rows < len(source.rows):
            line = _chunk(ready, min(CHUNK, len(source.rows) - rows), wanted, vae, file.write)
            _sync(file)
            book.write(_line(line))
            _sync(book)
            rows, kept = rows + line["rows"], kept + line["kept"]
            if on_progress is not None:
                on_progress(rows, len(source.rows))
        file.seek(0)
        file.write(_head(kept, shape))
        _sync(file)
    write_atomic(run.path("done"), "latents.npy is whole\n")


def _chunk(
    ready: Iterator[Opened | Skipped], count: int, wanted: Preparing, vae: VAE, write: Callable[[bytes], Any]
) -> dict[str, Any]:
    """Write the latents of the next `count` rows, batch by batch; gives the chunk's line."""
    line: dict[str, Any] = {"rows": count, "kept": 0, "enlarged": 0, "transparent": 0, "skipped": []}
    batch: list[Tensor] = []

    def flush() -> None:
        if batch:
            write(moments(vae, torch.cat(batch), wanted.sampled).numpy().tobytes())
            batch.clear()

    for k, one in enumerate(itertools.islice(ready, count)):
        if isinstance(one, Skipped):
            line["skipped"].append([k, one.reason])
            continue
        line["kept"] += 1
        line["enlarged"] += one.enlarged
        line["transparent"] += one.transparent
        batch.append(one.pixels)
        if len(batch) == at_once(wanted.size_px):
            flush()
    flush()
    return line


def _read(folder: Path, source: Source) -> Shards:
    kept: list[int] = []
    skipped: list[Skipped] = []
    start, sums = 0, {"enlarged": 0, "transparent": 0}
    for line in _whole_lines(folder / "chunks.jsonl", None):
        gone = dict(line["skipped"])
        kept += [start + k for k in range(line["rows"]) if k not in gone]
        skipped += [Skipped(source.rows[start + k].name, reason) for k, reason in gone.items()]
        start += line["rows"]
        sums = {key: value + line[key] for key, value in sums.items()}
    if start != len(source.rows):
        raise _damaged(folder, f"chunks.jsonl has {start} of {len(source.rows)} rows")
    if not kept:
        some = "; ".join(f"{s.name}: {s.reason}" for s in skipped[:3])
        raise UserError(f"none of {len(source.rows)} pictures opens ({some})", allowed="one that does")
    try:
        array = np.load(folder / "latents.npy", mmap_mode="c", allow_pickle=False)  # c: torch wants to be able to write
    except (OSError, EOFError, ValueError) as error:
        raise _damaged(folder, str(error)) from None
    if array.dtype != np.float16 or array.ndim != 5 or len(array) != len(kept):
        raise _damaged(folder, f"{array.dtype} {array.shape} for {len(kept)} pictures")
    latents = torch.from_numpy(array)  # (N, K, C, h, w)
    spread = latents[:, 1] if latents.shape[1] == 2 else None
    return Shards(kept=kept, skipped=skipped, latents=latents[:, 0], spread=spread, folder=folder, **sums)


# --- Files --------------------------------------------------------------------------------------------------------


def _head(count: int, shape: tuple[int, ...]) -> bytes:
    """The first bytes of a .npy file, always as many: NumPy leaves room for the first number to grow."""
    head = BytesIO()
    what = {"descr": "<f2", "fortran_order": False, "shape": (count, *shape)}
    np.lib.format.write_array_header_1_0(head, what)
    return head.getvalue()


def _line(line: Mapping[str, Any]) -> bytes:
    return (dumps(line) + "\n").encode()


def _whole_lines(journal: Path, most: int | None) -> list[dict[str, Any]]:
    """The chunks that are on disk: whole lines whose latents are there too. most: how many latents there are."""
    if not journal.exists():
        return []
    found: list[dict[str, Any]] = []
    kept = 0
    for raw in journal.read_bytes().splitlines(keepends=True):
        if not raw.endswith(b"\n"):
            break
        try:
            line = json.loads(raw)
            kept += line["kept"]
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(journal.parent, f"{journal.name}: {error}") from None
        if most is not None and kept > most:
            break
        found.append(line)
    return found


def _damaged(folder: Path, reason: str) -> UserError:
    return UserError(f"the cache {folder} is damaged ({reason})", hint="Remove that folder; it is made again")


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())

"""Pictures become latents: prepared as said, encoded as diffusers does, kept on disk, the same after any kill."""

from __future__ import annotations

import io
import re
import shutil
import struct
import typing
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from captioned import TEXTS, bytes_parquet, jsonl_folder, picture, saved, txt_shards
from kotoe.data import shards
from kotoe.data.rows import Skipped
from kotoe.data.shards import Opened, Preparing, Shards, encode, opened, prepare
from kotoe.data.sources import Source, read_rows
from kotoe.errors import UserError
from kotoe.images import open_picture, picture_of, to_tensor
from kotoe.localize.settings import Localizing
from kotoe.vae import VAE
from tiny import seeded, tiny_bundle

SIZE = 16
HOW = Preparing(size_px=SIZE)


# --- Pictures that don't open --------------------------------------------------------------------------------------


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that says it is enormous."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def moving(kind: str) -> bytes:
    return saved(picture(0), kind, save_all=True, append_images=[picture(1), picture(2)])


def broken_jpeg() -> bytes:
    content = bytearray(saved(picture(0), "JPEG"))
    at = content.index(b"\xff\xc0")  # the frame's head: 7 components of 200 bits
    content[at + 4], content[at + 9] = 200, 7
    return bytes(content)


def broken_png() -> bytes:
    content = bytearray(saved(picture(0)))
    at = content.index(b"IDAT") + 40
    content[at : at + 200] = bytes(200)
    return bytes(content)


def clear_grey() -> bytes:
    """16-bit grey whose level 7 is see-through."""
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), 7, np.uint16)).save(file, "PNG", transparency=7)
    return file.getvalue()


CLOSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "cut JPEG": (lambda: saved(picture(0, 300, 200), "JPEG")[:-500], "damaged"),
    "broken JPEG": (broken_jpeg, "damaged|not a picture"),
    "cut PNG": (lambda: saved(picture(0, 300, 200))[:-500], "damaged"),
    "broken PNG": (broken_png, "damaged"),
    "cut head": (lambda: saved(picture(0))[:20], "can't read it: Truncated"),
    "bomb": (lambda: bomb(50_000, 50_000), "damaged or hostile"),
    "smaller bomb": (lambda: bomb(8193, 8193), "is 8193x8193.*67108864 pixels at most"),
    "moving GIF": (lambda: moving("GIF"), "not a picture that can be read.*PNG, JPEG"),
    "moving PNG": (lambda: moving("PNG"), "moves: it has 3 frames"),
    "moving WebP": (lambda: moving("WEBP"), "moves: it has 3 frames"),
    "TIFF": (lambda: saved(picture(0), "TIFF"), "not a picture that can be read"),
    "text": (lambda: "이것은 그림이 아니다".encode(), "not a picture that can be read"),
    "nothing": (lambda: b"", "not a picture that can be read"),
    "16-bit grey with a clear level": (clear_grey, "16-bit grey with a transparent level"),
}


def test_pictures_that_do_not_open_are_listed_and_the_others_read(tmp_path: Path) -> None:
    """The same from every kind of source, each with its reason."""
    contents = [make() for make, _ in CLOSED.values()]
    contents = [c for bad in contents for c in (saved(picture(9)), bad)]
    source = read_rows(jsonl_folder(tmp_path, [f"row {i}" for i in range(len(contents))], contents))
    assert not source.skipped
    found = list(opened(source, HOW))
    assert len(found) == len(contents)
    whole = prepare(picture(9), HOW, "")
    assert all(isinstance(one, Opened) and torch.equal(one.pixels, whole) for one in found[::2])
    for (name, (_, reason)), one in zip(CLOSED.items(), found[1::2], strict=True):
        assert isinstance(one, Skipped), name
        assert re.search(reason, one.reason), (name, one.reason)


def test_a_file_over_the_limit_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    content = saved(picture(0))
    picture_of(content)
    monkeypatch.setattr("kotoe.images.LARGEST_FILE_BYTES", len(content) - 1)
    with pytest.raises(UserError, match=f"has {len(content)} bytes"):
        picture_of(content)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_files_damaged_at_random_give_a_picture_or_a_reason(kind: str) -> None:
    """And nothing else: no other exception, whatever a decoder trips over."""
    exif = Image.Exif()
    exif[0x0112] = 8
    whole = saved(picture(0), kind, **({} if kind == "BMP" else {"exif": exif}))
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(300):
        content = bytearray(whole)
        for at in rng.integers(0, min(len(content), 400), rng.integers(1, 5)):
            content[at] = rng.integers(256)
        try:
            image, _ = picture_of(bytes(content[: rng.integers(len(content) // 2, 2 * len(content))]))
        except UserError:
            outcomes.add("refused")
        else:
            assert image.mode == "RGB"
            outcomes.add("read")
    assert outcomes == {"refused", "read"}


# --- Pictures that are odd -----------------------------------------------------------------------------------------


def pixels(content: bytes) -> tuple[torch.Tensor, bool]:
    image, clear = picture_of(content)
    return to_tensor(image), clear


def test_what_is_see_through_is_put_on_white() -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 0], rgba[..., 3] = 200, 255
    rgba[0, 0] = 10, 20, 30, 0  # a colour that nobody sees
    rgba[1, 1] = 100, 0, 255, 102  # two fifths
    image, clear = picture_of(saved(Image.fromarray(rgba)))
    seen = np.asarray(image)
    assert clear
    assert seen[0, 0].tolist() == [255, 255, 255]
    assert seen[1, 1].tolist() == [193, 153, 255]
    assert seen[2, 2].tolist() == [200, 0, 0]
    palette = Image.fromarray(rgba[..., :3]).quantize(4)
    _, clear = picture_of(saved(palette, transparency=palette.getpixel((3, 3))))
    assert clear
    opaque = Image.fromarray(rgba[..., :3]).convert("RGBA")
    assert picture_of(saved(opaque))[1] is False


def test_16_bits_of_grey_keep_their_levels(tmp_path: Path) -> None:
    levels = np.array([[0, 257, 32896, 65535, 128, 129]], np.uint16)
    content = saved(Image.fromarray(levels))
    image, _ = picture_of(content)
    assert np.asarray(image)[0, :, 1].tolist() == [0, 1, 128, 255, 0, 1]
    with Image.open(io.BytesIO(content)) as theirs:  # the fault: what Pillow makes of it
        assert theirs.mode == "I;16"
        assert np.asarray(theirs.convert("RGB"))[0, :, 1].tolist() == [0, 255, 255, 255, 128, 129]
    (tmp_path / "grey.png").write_bytes(content)
    assert np.asarray(open_picture(tmp_path / "grey.png"))[0, :, 1].tolist() == [0, 1, 128, 255, 0, 1]


def test_cmyk_becomes_the_colours_it_prints(tmp_path: Path) -> None:
    content = saved(picture(3).convert("CMYK"), "JPEG", quality=100, subsampling=0)
    with Image.open(io.BytesIO(content)) as image:
        assert image.mode == "CMYK"
    found, clear = pixels(content)
    assert not clear
    assert float((found - to_tensor(picture(3))).abs().max()) < 0.1


def test_a_camera_on_its_side_is_turned() -> None:
    turned = picture(4).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    found, _ = pixels(saved(turned, exif=exif))
    assert torch.equal(found, to_tensor(picture(4)))
    assert not torch.equal(pixels(saved(turned))[0], found)


# --- Preparing -----------------------------------------------------------------------------------------------------


def test_the_middle_is_cut_out_and_resized() -> None:
    """As resizing all of it and then cutting: equal but at the edges, where the filter sees no further."""
    image = picture(5, 128, 64)
    whole = image.resize((64, 32), Image.Resampling.BICUBIC).crop((16, 0, 48, 32))
    found = prepare(image, Preparing(size_px=32), "x")
    assert found.shape == (1, 3, 32, 32)
    assert float((found - to_tensor(whole))[..., 2:-2].abs().max()) <= 1.01 / 127.5
    tall = prepare(image.transpose(Image.Transpose.ROTATE_90), Preparing(size_px=32), "x")
    assert torch.equal(tall, found.rot90(1, (2, 3)))


def test_what_is_made_smaller_is_averaged_over_all_of_its_pixels() -> None:
    """A fine checkerboard becomes grey, whichever the filter; without antialiasing it stays black and white."""
    board = np.indices((128, 128)).sum(0) % 2 * 255
    image = Image.fromarray(board.astype(np.uint8)).convert("RGB")
    for resample in shards.RESAMPLES:
        assert float(prepare(image, replace(HOW, resample=resample), "x")[..., 1:-1, 1:-1].abs().max()) < 0.02
    aliased = to_tensor(image.resize((SIZE, SIZE), Image.Resampling.NEAREST))
    assert float(aliased.abs().min()) == 1.0


def test_chance_picks_a_part_by_seed_and_name() -> None:
    how = Preparing(size_px=SIZE, crop="random")
    boxes = {name: how.box(100, 40, name) for name in map(str, range(200))}
    assert boxes == {name: how.box(100, 40, name) for name in boxes}
    lefts = {left for left, upper, right, lower in boxes.values() if (upper, right - left, lower) == (0, 40, 40)}
    assert len(lefts) > 40
    assert min(lefts) < 5
    assert max(lefts) > 55
    assert all(0 <= left <= 60 for left in lefts)
    assert [replace(how, seed=1).box(100, 40, name) for name in boxes] != list(boxes.values())
    assert how.box(40, 100, "1") == tuple(boxes["1"][k] for k in (1, 0, 3, 2))
    assert Preparing(size_px=SIZE).box(101, 40, "x") == (30, 0, 70, 40)
    assert Preparing(size_px=SIZE, crop="squash").box(100, 40, "x") == (0, 0, 100, 40)
    assert how.box(40, 40, "x") == (0, 0, 40, 40)


def test_a_picture_like_a_thread_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shorter edge made 512 pixels, it would be 10 million pixels long."""
    sizes: list[tuple[int, int]] = []
    honest = Image.Image.resize

    def watched(self: Image.Image, size: tuple[int, int], *args: Any, **kwargs: Any) -> Image.Image:
        sizes.append(size)
        return honest(self, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", watched)
    thread = Image.new("RGB", (20_000, 1), "red")
    found = prepare(thread, Preparing(size_px=512), "x")
    assert sizes == [(512, 512)]
    assert found.amin(dim=(0, 2, 3)).tolist() == [1.0, -1.0, -1.0]


def test_preparing_refuses_other_words() -> None:
    with pytest.raises(UserError, match="unknown crop 'centre'.*Did you mean 'center'"):
        Preparing(size_px=8, crop="centre")
    with pytest.raises(UserError, match="unknown resample 'nearest'"):
        Preparing(size_px=8, resample="nearest")
    hints = typing.get_type_hints(Localizing)
    assert typing.get_args(hints["crop"]) == shards.CROPS
    assert typing.get_args(hints["resample"]) == tuple(shards.RESAMPLES)


# --- Latents as diffusers makes them -------------------------------------------------------------------------------


def vaes() -> tuple[VAE, AutoencoderKL]:
    ours = tiny_bundle("sd2").vae
    spec = ours.spec
    theirs = AutoencoderKL(
        block_out_channels=spec.block_out_channels,
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    seeded(theirs, 1)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def in_cache(folder: Path, vae: VAE, how: Preparing = HOW, source: Source | None = None, name: str = "vae") -> Shards:
    if source is None:
        source = read_rows(jsonl_folder(folder / "data"))
    return encode(source, how, vae, folder / "cache", vae_sha256=name)


def far_from_diffusers(folder: Path, ours: VAE, theirs: AutoencoderKL) -> float:
    """Largest difference of mean and spread in the cache to diffusers' over their scale."""
    how = replace(HOW, sampled=True)
    found = in_cache(folder, ours, how)
    x = torch.cat([prepare(picture(i), how, "x") for i in range(len(TEXTS))])
    with torch.inference_mode():
        said = theirs.encode(x).latent_dist
        asked = said.mean * theirs.config.scaling_factor, said.std * theirs.config.scaling_factor
    assert found.spread is not None
    pairs = zip((found.latents, found.spread), asked, strict=True)
    return max(float((a.float() - b).abs().max() / b.abs().max()) for a, b in pairs)


def test_latents_are_those_of_diffusers(tmp_path: Path) -> None:
    assert far_from_diffusers(tmp_path, *vaes()) < 2**-10  # float16


def unscaled(vae: VAE, pixels: torch.Tensor, sampled: bool) -> torch.Tensor:
    with torch.inference_mode():
        mean, logvar = vae.moments(pixels)
    return torch.stack([mean, torch.exp(0.5 * logvar)], dim=1).half()


def variance(vae: VAE, pixels: torch.Tensor, sampled: bool) -> torch.Tensor:
    with torch.inference_mode():
        mean, logvar = vae.moments(pixels)
    return (torch.stack([mean, torch.exp(logvar)], dim=1) * vae.spec.scaling_factor).half()


def from_zero_to_one(vae: VAE, pixels: torch.Tensor, sampled: bool) -> torch.Tensor:
    return HONEST(vae, (pixels + 1) / 2, sampled)


HONEST = shards.moments


@pytest.mark.parametrize("fault", [unscaled, variance, from_zero_to_one])
def test_a_fault_in_the_latents_is_seen(fault: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "moments", fault)
    assert far_from_diffusers(tmp_path, *vaes()) > 0.01


def test_latents_that_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    vae, _ = vaes()
    with torch.no_grad():
        vae.quant_conv.bias[0] = 1e6
    with pytest.raises(UserError, match="float16 can't hold"):
        in_cache(tmp_path, vae)


# --- The cache -----------------------------------------------------------------------------------------------------


def many(folder: Path, count: int = 45) -> Source:
    """Rows of which every seventh doesn't open."""
    contents = [b"nothing" if i % 7 == 3 else saved(picture(i)) for i in range(count)]
    return read_rows(jsonl_folder(folder, [f"row {i}" for i in range(count)], contents))


def files(found: Path) -> dict[str, bytes]:
    return {name: (found / name).read_bytes() for name in ("latents.npy", "chunks.jsonl", "config.json", "done")}


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "CHUNK", 8)
    monkeypatch.setattr(shards, "MOST_AT_ONCE", 3)


@pytest.mark.usefixtures("small_chunks")
def test_killed_anywhere_it_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae, _ = vaes()
    source = many(tmp_path / "data")
    whole = encode(source, HOW, vae, tmp_path / "whole", vae_sha256="vae")
    assert len(whole.kept) == 39
    assert [s.name for s in whole.skipped] == [f"{i:03}.png" for i in range(3, 45, 7)]
    assert list(whole.kept) == [i for i in range(45) if i % 7 != 3]
    batches: list[int] = []
    dies_at = 0

    def dying(vae: VAE, pixels: torch.Tensor, sampled: bool) -> torch.Tensor:
        batches.append(len(pixels))
        if len(batches) == dies_at:
            raise KeyboardInterrupt
        return HONEST(vae, pixels, sampled)

    monkeypatch.setattr(shards, "moments", dying)
    for at, left in ((1, 39), (2, 39), (4, 32), (9, 25), (15, 5)):
        batches.clear()
        dies_at = at
        cache = tmp_path / f"cut{at}"
        with pytest.raises(KeyboardInterrupt):
            encode(source, HOW, vae, cache, vae_sha256="vae")
        batches.clear()
        dies_at = 0
        again = encode(source, HOW, vae, cache, vae_sha256="vae")
        assert files(again.folder) == files(whole.folder)
        assert sum(batches) == left  # whole chunks are not encoded again
        assert torch.equal(again.latents, whole.latents)


@pytest.mark.usefixtures("small_chunks")
def test_whatever_a_power_cut_leaves_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    """Files cut off anywhere, or with rubbish behind; and the pictures of whole chunks are not even opened."""
    vae, _ = vaes()
    source = many(tmp_path / "data", 24)
    whole = encode(source, HOW, vae, tmp_path / "whole", vae_sha256="vae")
    asked = files(whole.folder)
    data, book = asked["latents.npy"], asked["chunks.jsonl"]
    lines = book.splitlines(keepends=True)
    assert len(lines) == 3
    states = [
        (data, lines[0]),
        (data[:-5], b"".join(lines[:2])),
        (data[: len(data) // 2], book),
        (data[:128], book),
        (data + b"rubbish", lines[0] + lines[1][:20]),
        (data, b""),
        (None, book),
        (data, None),
    ]
    for latents, journal in states:
        cut = tmp_path / "cut" / whole.folder.name
        shutil.copytree(whole.folder, cut)
        (cut / "done").unlink()
        for name, content in (("latents.npy", latents), ("chunks.jsonl", journal)):
            (cut / name).unlink() if content is None else (cut / name).write_bytes(content)
        encode(source, HOW, vae, tmp_path / "cut", vae_sha256="vae")
        assert files(cut) == asked
        shutil.rmtree(tmp_path / "cut")


def test_what_is_there_is_read_from_disk_and_not_encoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae, _ = vaes()
    first = in_cache(tmp_path, vae)

    def never(*_: Any) -> Any:
        raise AssertionError("encoded again")

    loaded: list[np.ndarray] = []
    honest = np.load

    def watched(*args: Any, **kwargs: Any) -> np.ndarray:
        loaded.append(honest(*args, **kwargs))
        return loaded[-1]

    monkeypatch.setattr(shards, "moments", never)
    monkeypatch.setattr(np, "load", watched)
    again = in_cache(tmp_path, vae, source=read_rows(tmp_path / "data"))
    assert torch.equal(again.latents, first.latents)
    (array,) = loaded
    assert isinstance(array, np.memmap)
    assert again.latents.data_ptr() == array.ctypes.data  # no copy of it
    assert (array.shape, array.dtype) == ((len(TEXTS), 1, 4, SIZE // 2, SIZE // 2), np.float16)
    rows = again.latents[[4, 1]]  # what a step does
    rows += 1.0
    assert torch.equal(again.latents, first.latents)


def test_other_pictures_settings_or_autoencoders_have_a_cache_of_their_own(tmp_path: Path) -> None:
    vae, _ = vaes()
    source = read_rows(jsonl_folder(tmp_path / "data"))
    folders = {
        in_cache(tmp_path, vae, how, source, name).folder
        for how, name in [
            (HOW, "vae"),
            (HOW, "another"),
            (replace(HOW, size_px=32), "vae"),
            (replace(HOW, crop="squash"), "vae"),
            (replace(HOW, resample="lanczos"), "vae"),
            (replace(HOW, sampled=True), "vae"),
            (replace(HOW, crop="random"), "vae"),
            (replace(HOW, crop="random", seed=1), "vae"),
        ]
    }
    assert len(folders) == 8
    assert in_cache(tmp_path, vae, replace(HOW, seed=1), source).folder in folders  # nothing is drawn
    (tmp_path / "data" / "000.png").write_bytes(saved(picture(50)))
    changed = in_cache(tmp_path, vae, HOW, read_rows(tmp_path / "data"))
    assert changed.folder not in folders
    assert [read_rows(tmp_path / "data").rows[0].caption] == [TEXTS[0]]


@pytest.mark.parametrize("write", [txt_shards, bytes_parquet])
def test_every_source_gives_the_same_latents(write: Callable[[Path], Path], tmp_path: Path) -> None:
    vae, _ = vaes()
    found = in_cache(tmp_path, vae, source=read_rows(write(tmp_path / "other")))
    assert torch.equal(found.latents, in_cache(tmp_path, vae).latents)
    assert (found.enlarged, found.transparent) == (0, 0)


def test_pictures_that_had_to_be_changed_are_counted(tmp_path: Path) -> None:
    contents = [saved(picture(0, 8, 9)), saved(picture(1).convert("RGBA")), saved(Image.new("RGBA", (20, 20)))]
    source = read_rows(jsonl_folder(tmp_path / "data", ["a", "b", "c"], contents))
    found = in_cache(tmp_path, vaes()[0], source=source)
    assert (found.enlarged, found.transparent) == (1, 1)


def test_progress_is_told_row_by_chunk(tmp_path: Path, small_chunks: None) -> None:
    said: list[tuple[int, int]] = []
    source = many(tmp_path / "data", 20)
    encode(source, HOW, vaes()[0], tmp_path / "c", vae_sha256="v", on_progress=lambda *now: said.append(now))
    assert said == [(8, 20), (16, 20), (20, 20)]


def test_no_picture_that_opens_is_an_error(tmp_path: Path) -> None:
    source = read_rows(jsonl_folder(tmp_path / "data", ["a", "b"], [b"x", b"y"]))
    with pytest.raises(UserError, match=r"none of 2 pictures opens \(000.png: it is not a picture"):
        in_cache(tmp_path, vaes()[0], source=source)


def test_a_damaged_cache_is_told_from_a_whole_one(tmp_path: Path) -> None:
    vae, _ = vaes()
    found = in_cache(tmp_path, vae)
    source = read_rows(tmp_path / "data")
    whole = (found.folder / "latents.npy").read_bytes()
    for content in (whole[:-2], b"", b"rubbish" * 100):
        (found.folder / "latents.npy").write_bytes(content)
        with pytest.raises(UserError, match="is damaged .*Remove that folder"):
            in_cache(tmp_path, vae, source=source)
    (found.folder / "latents.npy").write_bytes(whole)
    (found.folder / "chunks.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="is damaged"):
        in_cache(tmp_path, vae, source=source)
    (found.folder / "chunks.jsonl").write_text("")
    with pytest.raises(UserError, match="has 0 of 7 rows"):
        in_cache(tmp_path, vae, source=source)

"""Pictures in and out: rounding, sizes, what is refused, the record inside a PNG, labels in any script."""

from __future__ import annotations

import re
import struct
import zlib
from io import BytesIO
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from kotoe import images, labels
from kotoe.errors import UserError


def gradient(width: int = 16, height: int = 8) -> Image.Image:
    picture = Image.new("RGB", (width, height))
    picture.putdata([(x * 255 // width, y * 255 // height, (x * y) % 256) for y in range(height) for x in range(width)])
    return picture


# --- Tensors


def test_there_and_back_is_the_same_picture() -> None:
    picture = gradient()
    x = images.to_tensor(picture)
    assert x.shape == (1, 3, 8, 16)
    assert images.to_pil(x[0]).tobytes() == picture.tobytes()


def test_layout_is_channels_rows_columns() -> None:
    picture = Image.new("RGB", (3, 2))
    picture.putpixel((2, 1), (255, 0, 51))
    x = images.to_tensor(picture)
    assert x[0, :, 1, 2].tolist() == pytest.approx([1.0, -1.0, -0.6], abs=1e-6)
    assert (x[0, :, 0, :] == -1).all()


def test_t8_levels_are_rounded_not_cut() -> None:
    """T8: 0.498 of the way to the next level goes down, 0.502 goes up; a cut would send both down."""
    level = 100
    for share, expected in ((0.498, level), (0.502, level + 1)):
        value = (level + share) / 127.5 - 1
        assert images.to_pil(torch.full((3, 1, 1), value)).getpixel((0, 0)) == (expected,) * 3
        cut = int((value + 1) * 127.5)
        assert cut == level


def test_out_of_range_is_clamped() -> None:
    x = torch.tensor([-3.0, 0.0, 3.0]).view(3, 1, 1)
    assert images.to_pil(x).getpixel((0, 0)) == (0, 128, 255)


@pytest.mark.parametrize("x", [torch.zeros(1, 3, 4, 4), torch.zeros(4, 4, 3), torch.zeros(3, 4, 4, dtype=torch.uint8)])
def test_wrong_layouts_are_refused(x: torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"\(3, H, W\) floats"):
        images.to_pil(x)


def test_no_numbers_are_refused() -> None:
    with pytest.raises(UserError, match="no numbers"):
        images.to_pil(torch.full((3, 2, 2), float("nan")))


@given(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), st.sampled_from([8, 32, 64]), st.sampled_from([128, 512]))
def test_a_size_that_a_picture_fits_into(size: tuple[int, int], multiple: int, edge: int) -> None:
    found = images.size_like(size, multiple, edge**2)
    if found is None:
        assert max(size) > 1.5 * min(size) or multiple * 8 > edge  # a square fits nearly always
        return
    assert [each % multiple for each in found] == [0, 0]
    assert edge**2 <= 4 * found[0] * found[1] <= 16 * edge**2
    assert found[0] * size[1] == pytest.approx(found[1] * size[0], rel=0.021)


def test_the_nearest_in_pixels_is_taken() -> None:
    assert images.size_like((1500, 1000), 32, 128**2) == (192, 128)
    assert images.size_like((4032, 3024), 32, 128**2) == (128, 96)
    assert images.size_like((300, 150), 32, 128**2) == (192, 96)
    assert images.size_like((5000, 1), 32, 128**2) is None


@given(st.integers(1, 8192), st.sampled_from([4, 8, 64]))
def test_t16_a_size_that_does_not_divide_is_told_the_two_nearest(edge: int, multiple: int) -> None:
    if edge % multiple == 0:
        images.check_size(edge, multiple, multiple)
        return
    with pytest.raises(UserError) as caught:
        images.check_size(multiple, edge, multiple)
    below = edge - edge % multiple
    assert f"height {edge} is not a multiple of {multiple}" in str(caught.value)
    assert (f"{below} or {below + multiple}" if below else f"Allowed: {multiple}.") in str(caught.value)


# --- Files


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    gradient().save(path, **({"lossless": True} if suffix == "webp" else {}))
    picture = images.open_picture(path)
    assert picture.mode == "RGB"
    assert images.differences(picture, gradient())[1] <= (60 if suffix == "jpg" else 0)


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    gradient().save(tmp_path / "a.jpg", exif=exif)
    assert images.open_picture(tmp_path / "a.jpg").size == (8, 16)


def _png_of(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_unreadable_pictures(tmp_path: Path) -> None:
    gradient(200, 200).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    cases = {
        "text.png": (b"hello", "not a picture that can be read"),
        "empty.png": (b"", "not a picture that can be read"),
        "half.png": (data[: len(data) // 2], "damaged"),
        "bomb.png": (_png_of(60_000, 60_000), r"hostile|60000x60000"),
        "large.png": (_png_of(9_000, 9_000), r"9000x9000|hostile"),
        "hollow.png": (_png_of(64, 64), "damaged"),
        "vector.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture that can be read"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message) as caught:
            images.open_picture(tmp_path / name, "init_image")
        assert f"init_image {tmp_path / name}" in str(caught.value)
    with pytest.raises(UserError, match="can't read"):
        images.open_picture(tmp_path / "absent.png")
    with pytest.raises(UserError, match="is no file"):
        images.open_picture(tmp_path)
    with pytest.raises(UserError, match="/dev/zero is no file"):
        images.file_sha256("/dev/zero")


def test_transparency_is_refused_unless_opaque(tmp_path: Path) -> None:
    gradient().convert("RGBA").save(tmp_path / "opaque.png")
    assert images.open_picture(tmp_path / "opaque.png").tobytes() == gradient().tobytes()
    clear = gradient().convert("RGBA")
    clear.putpixel((0, 0), (0, 0, 0, 254))
    clear.save(tmp_path / "clear.png")
    with pytest.raises(UserError, match="partly transparent"):
        images.open_picture(tmp_path / "clear.png")


def test_resizing_never_distorts() -> None:
    assert images.resized(gradient(16, 8), 32, 16).size == (32, 16)
    with pytest.raises(UserError, match="16x8, asked for 16x16: that would distort it"):
        images.resized(gradient(16, 8), 16, 16)


def test_mask_is_one_where_white() -> None:
    mask = Image.new("RGB", (2, 1), (0, 0, 0))
    mask.putpixel((1, 0), (255, 255, 255))
    assert images.mask_tensor(mask).tolist() == [[[[0.0, 1.0]]]]


# --- The record


RECORD = '{"prompt": "青い背景に猫 蓝色 파란 🐱\\u0000"}'


def test_record_in_any_script(tmp_path: Path) -> None:
    images.save_png(gradient(), tmp_path / "a.png", RECORD)
    assert images.read_record(tmp_path / "a.png") == RECORD
    assert images.open_picture(tmp_path / "a.png").tobytes() == gradient().tobytes()
    data = (tmp_path / "a.png").read_bytes()
    assert b"iTXtkotoe\0" in data
    assert "青い背景に猫".encode() in data  # plain UTF-8: other programs can read it


def test_no_record(tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.png")
    gradient().save(tmp_path / "a.jpg")
    for name in ("a.png", "a.jpg"):
        with pytest.raises(UserError, match="carries no record"):
            images.read_record(tmp_path / name)


def test_hostile_records(tmp_path: Path) -> None:
    images.save_png(gradient(), tmp_path / "long.png", "x" * (images.LARGEST_RECORD_CHARACTERS + 1))
    with pytest.raises(UserError, match=r"characters|damaged or hostile"):
        images.read_record(tmp_path / "long.png")
    info = images.PngImagePlugin.PngInfo()
    info.add_itxt(images.RECORD_KEY, "x" * 80_000_000, zip=True)  # 80 MB in 80 kB
    gradient().save(tmp_path / "zip.png", pnginfo=info)
    assert (tmp_path / "zip.png").stat().st_size < 200_000
    with pytest.raises(UserError, match=r"carries no record|damaged or hostile|characters"):
        images.read_record(tmp_path / "zip.png")


def test_differences() -> None:
    other = gradient()
    other.putpixel((3, 3), tuple(c ^ 1 for c in other.getpixel((3, 3))))
    assert images.differences(gradient(), gradient()) == (0, 0)
    assert images.differences(gradient(), other) == (1, 1)
    assert images.differences(gradient(), gradient(8, 8)) == (128, 255)


# --- Labels


def _ink(picture: Image.Image) -> int:
    return sum(picture.convert("L").point(lambda v: 255 if v < 128 else 0).histogram()[1:])


def test_grid_of_labelled_pictures() -> None:
    pictures = [Image.new("RGB", (64, 64), (0, 0, 200))] * 5
    grid = labels.labelled_grid(pictures, ["a cat", "two dogs", "a", "b", ""], columns=3)
    assert grid.width == 3 * 64 + 4 * labels.MARGIN_PX
    assert grid.getpixel((labels.MARGIN_PX, labels.MARGIN_PX)) == (0, 0, 200)
    bare = labels.labelled_grid(pictures, [""] * 5, columns=3)
    assert _ink(grid) > _ink(bare) + 50


def test_labels_stay_inside_their_column() -> None:
    """However long a word is: the columns beside it hold no ink of it."""
    white = Image.new("RGB", (64, 64), (255, 255, 255))
    grid = labels.labelled_grid([white] * 3, ["", "incomprehensibilities " * 6 + "W" * 60, ""], columns=3)
    left = grid.crop((0, 0, labels.MARGIN_PX + 64, grid.height))
    right = grid.crop((3 * labels.MARGIN_PX + 128, 0, grid.width, grid.height))
    assert _ink(left) == _ink(right) == 0
    assert _ink(grid) > 500


def test_a_label_is_drawn_whole() -> None:
    pieces = labels._wrapped(labels._runs("incomprehensibilities of a very long label indeed", None), 64)
    text = " ".join("".join(t for _, t in line) for line in pieces)
    assert text.replace(" ", "") == "incomprehensibilitiesofaverylonglabelindeed"
    assert len(pieces) > 3


@pytest.mark.parametrize("text", ["a cat", "日本語 and 한국어", "العربية 12"])
def test_a_line_is_as_wide_as_it_says(text: str) -> None:
    """In any script that some font here has; the others are named, as in a grid."""
    try:
        labels.check_labels([text])
    except UserError as error:
        with pytest.raises(UserError, match=re.escape(str(error))):
            labels.line_width(text)
        return
    canvas = Image.new("RGB", (500, 60), labels.PAPER)
    width = labels.draw_line(ImageDraw.Draw(canvas), (20, 40), text, size_px=24)
    assert width == labels.line_width(text, size_px=24) > 2 * labels.line_width("a", size_px=24)
    assert _ink(canvas.crop((0, 0, 17, 60))) == _ink(canvas.crop((20 + round(width) + 3, 0, 500, 60))) == 0
    assert _ink(canvas) > 50


def test_a_line_takes_one_font_where_one_has_it_all() -> None:
    """What is cut into fonts word by word can't be turned: the words of Arabic would stand in the wrong order."""
    text = "a \u20ac b"
    assert [piece for _, piece in labels._line_runs(text, None)] == [text]
    whole = next(f for path in labels._fonts("") for f in labels._ordered(path, None) if all(f.has(c) for c in text))
    mixed = [(whole, "a"), (labels.Face(whole.path, whole.index + 1), " \u20ac b")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labels, "_runs", lambda label, language: mixed)
        assert labels._line_runs(text, None) == [(whole, text)]


def test_the_plain_cut_comes_before_a_bold_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "share/fonts"
    folder.mkdir(parents=True)
    for name in ("Sans-Bold", "Sans-Regular", "SansB", "DejaVuSans-Oblique"):
        (folder / f"{name}.ttf").write_bytes(b"")
    monkeypatch.setattr(labels, "_folders", lambda: [folder])
    found = [path.stem for path in labels._fonts.__wrapped__("")]
    assert found == ["DejaVuSans-Oblique", "SansB", "Sans-Regular", "Sans-Bold"]


def test_missing_glyphs_are_named() -> None:
    with pytest.raises(UserError, match=r"no font here has \U000e01f0|no font here has .*\(U\+3FFFD\)"):
        labels.check_labels(["a cat \U0003fffd"])


def test_the_named_font_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / "own.ttf"
    own.write_bytes(labels._runs("a", None)[0][0].path.read_bytes())
    monkeypatch.setenv(labels.FONT_VARIABLE, str(own))
    assert labels._runs("a", None)[0][0].path == own
    (tmp_path / "bad.ttf").write_bytes(b"no font at all")
    monkeypatch.setenv(labels.FONT_VARIABLE, str(tmp_path / "bad.ttf"))
    with pytest.raises(UserError, match=r"KOTOE_LABEL_FONT names .*bad\.ttf"):
        labels.check_labels(["a"])


def test_faces_know_what_they_have() -> None:
    """Against the drawing itself: a character the map has is drawn otherwise than the font's missing-glyph box."""
    face = labels._runs("a", None)[0][0]
    font = face.at(40)
    box = bytes(font.getmask("\U0003fffd"))
    assert not face.has("\U0003fffd")
    checked = [c for c in "aZ9éñ§Ωж" if face.has(c)]
    assert len(checked) >= 3
    for character in checked:
        assert bytes(font.getmask(character)) != box


def test_damaged_fonts_are_passed_over(tmp_path: Path) -> None:
    data = labels._runs("a", None)[0][0].path.read_bytes()[:5000]
    (tmp_path / "cut.ttf").write_bytes(data)
    assert labels._glyph(labels._cmap(tmp_path / "cut.ttf", 0), ord("a")) == 0


def test_four_scripts_in_one_grid() -> None:
    prompts = {"en": "a cat", "ja": "青い背景に猫", "zh": "蓝色背景上的猫", "ko": "파란 배경의 고양이"}
    white = Image.new("RGB", (128, 128), (255, 255, 255))
    grid = labels.labelled_grid([white] * 4, list(prompts.values()), list(prompts), columns=4)
    for k in range(4):
        left = labels.MARGIN_PX + k * (128 + labels.MARGIN_PX)
        assert _ink(grid.crop((left, 0, left + 128, grid.height))) > 40
    ja, zh = (labels._runs("骨直", tag)[0][0] for tag in ("ja", "zh"))
    if ja.path.suffix == ".ttc" and ja.path == zh.path:  # a collection: each country's own forms
        assert ja.index != zh.index


# --- Sizes before pixels, and what is see-through


def test_too_many_pixels_are_told_from_the_header() -> None:
    """Of a file without pixels: whoever decodes it first says that it is damaged."""
    content = _png_of(400, 300)
    assert images.size_of(content, "it", 120_000) == (400, 300)
    for read in (images.size_of, images.layers_of, images.picture_of, images.texts):
        with pytest.raises(UserError, match="it is 400x300. Allowed: 119999 pixels at most"):
            read(content, "it", 119_999)
    with pytest.raises(UserError, match="it is damaged"):
        images.layers_of(content, "it", 120_000)


@pytest.mark.parametrize("turn", [1, 3, 6])
def test_colours_and_alpha_come_upright_and_apart(turn: int) -> None:
    clear = gradient().convert("RGBA")
    clear.paste((10, 20, 30, 77), (0, 0, 5, 3))
    file, exif = BytesIO(), Image.Exif()
    exif[0x0112] = turn
    clear.save(file, "PNG", exif=exif)
    colours, alpha = images.layers_of(file.getvalue())
    assert alpha is not None
    upright = {1: clear, 3: clear.rotate(180), 6: clear.rotate(-90, expand=True)}[turn]
    assert colours.tobytes() == upright.convert("RGB").tobytes()
    assert alpha.tobytes() == upright.getchannel("A").tobytes()
    ground = Image.new("RGBA", upright.size, "white")
    ground.alpha_composite(upright)
    assert images.picture_of(file.getvalue())[0].tobytes() == ground.convert("RGB").tobytes()


def test_every_level_of_sixteen_bit_grey_is_the_nearest_of_eight() -> None:
    file = BytesIO()
    levels = torch.arange(65536, dtype=torch.float64).view(256, 256)
    Image.fromarray(levels.numpy().astype("uint16")).save(file, "PNG")
    found = images.to_tensor(images.picture_of(file.getvalue())[0])[0, 0]
    assert torch.equal(((found + 1) * 127.5).round().double(), (levels / 257).round())


def test_a_moving_png_is_not_decoded_for_its_texts_where_pixels_are_counted() -> None:
    file = BytesIO()
    gradient().save(file, "PNG", save_all=True, append_images=[gradient(16, 8).transpose(Image.Transpose.ROTATE_180)])
    assert images.texts(file.getvalue()) == {}
    with pytest.raises(UserError, match="it moves: it has 2 frames"):
        images.texts(file.getvalue(), "it", 1000)

"""What a picture begins with: the part of it around a mask's white, cut out, and put back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops

from kotoe.checkpoints import Bundle
from kotoe.config import Request, dumps, from_json
from kotoe.drawing import Picture, generate, replay, resolve
from kotoe.errors import UserError
from kotoe.provenance.infotext import from_infotext, infotext
from kotoe.record import Record
from kotoe.starting import box_around, cut_out, picture_size, put_back, start
from tiny import tiny_bundle

PHOTO = (61, 43)  # no multiple of anything


def white(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", size, 0)
    mask.paste(255, box)
    return mask


def noisy(size: tuple[int, int]) -> Image.Image:
    levels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(levels)


# --- The part


edges = st.integers(1, 200)


@given(data=st.data(), size=st.tuples(edges, edges), drawn=st.tuples(edges, edges), padding=st.integers(0, 300))
def test_the_part_is_that_of_diffusers(
    data: st.DataObject, size: tuple[int, int], drawn: tuple[int, int], padding: int
) -> None:
    """Where its shape fits into the picture; else diffusers cuts it off, and ours sticks out, alike on both sides."""
    left, top = data.draw(st.integers(0, size[0] - 1)), data.draw(st.integers(0, size[1] - 1))
    right, bottom = data.draw(st.integers(left + 1, size[0])), data.draw(st.integers(top + 1, size[1]))
    mask = white(size, (left, top, right, bottom))
    found = box_around(mask, *drawn, padding)
    expected = VaeImageProcessor.get_crop_region(mask, *drawn, pad=padding)
    for low, length in ((0, size[0]), (1, size[1])):
        begin, end = found[low], found[low + 2]
        if end - begin <= length:
            assert abs(begin - expected[low]) <= 1  # theirs goes through floating point
            assert abs(end - expected[low + 2]) <= 1
        else:
            assert (expected[low], expected[low + 2]) == (0, length)
            assert abs(-begin - (end - length)) <= 1
    assert found[0] <= left < right <= found[2]
    assert found[1] <= top < bottom <= found[3]
    wide, high = found[2] - found[0], found[3] - found[1]
    assert abs(wide * drawn[1] - high * drawn[0]) < max(drawn), "it has another shape than what is drawn"


def test_grey_is_painted_too() -> None:
    mask = Image.new("L", (40, 40), 0)
    mask.paste(1, (10, 12, 20, 22))
    assert box_around(mask, 8, 8, 0) == (10, 12, 20, 22)
    assert box_around(mask, 8, 8, 3) == (7, 9, 23, 25)
    assert box_around(mask, 8, 8, 15) == (0, 0, 37, 37)  # at the edge there is less around it, and it is moved


def test_a_mask_without_white() -> None:
    with pytest.raises(UserError, match="mask is black everywhere. Allowed: some white"):
        box_around(Image.new("L", (40, 40)), 8, 8, 3)


def test_a_part_too_large_to_be_made() -> None:
    """A wide strip in a tall shape: its edges would be repeated a million times."""
    with pytest.raises(UserError, match=r"would be 8000x1024000, in the shape of 64x8192. Allowed: 67108864 pixels"):
        box_around(Image.new("L", (8000, 10), 255), 64, 8192, 0)


def test_what_sticks_out_repeats_the_edge() -> None:
    image = noisy((10, 4))
    part = cut_out(image, (0, -3, 10, 7), 10, 10)
    assert part.crop((0, 3, 10, 7)).tobytes() == image.tobytes()
    for row in (0, 1, 2):
        assert part.crop((0, row, 10, row + 1)).tobytes() == image.crop((0, 0, 10, 1)).tobytes()
    assert part.crop((0, 9, 10, 10)).tobytes() == image.crop((0, 3, 10, 4)).tobytes()


@given(data=st.data(), drawn=st.tuples(edges, edges), padding=st.integers(0, 40))
def test_what_is_cut_out_and_put_back_is_the_picture(data: st.DataObject, drawn: tuple[int, int], padding: int) -> None:
    image = noisy((31, 21))
    left, top = data.draw(st.integers(0, 30)), data.draw(st.integers(0, 20))
    box = box_around(white(image.size, (left, top, 31, 21)), *drawn, padding)
    part = cut_out(image, box, box[2] - box[0], box[3] - box[1])
    assert put_back(part, image, Image.new("L", image.size, 255), box).tobytes() == image.tobytes()
    assert put_back(noisy((8, 8)), image, Image.new("L", image.size, 0), box).tobytes() == image.tobytes()


def test_of_a_large_picture_only_what_is_drawn_is_kept_while_it_is_drawn(tmp_path: Path) -> None:
    """The decoded photo, some 64 MB of 16 megapixels, would stay for as long; a part is put back into it."""
    noisy((640, 480)).save(tmp_path / "photo.png")
    white((640, 480), (100, 100, 200, 200)).save(tmp_path / "mask.png")
    request = Request(
        prompt="a", width=64, height=48, init_image=str(tmp_path / "photo.png"), mask=str(tmp_path / "mask.png")
    )
    for crop, size in ((None, (64, 48)), (8, (640, 480))):
        found = start(SimpleNamespace(**{**vars(request), "padding_mask_crop": crop}))  # type: ignore[arg-type]
        assert found is not None
        assert found.opened.mask is not None
        assert found.opened.init.size == found.opened.mask.size == size
        assert found.picture.shape == (1, 3, 48, 64)


# --- Drawn


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return tiny_bundle("sd2", languages=("en",))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    place = tmp_path_factory.mktemp("starting")
    noisy(PHOTO).save(place / "photo.png")
    white(PHOTO, (30, 10, 42, 20)).save(place / "mask.png")
    Image.new("L", PHOTO).save(place / "black.png")
    return {"init_image": str(place / "photo.png"), "mask": str(place / "mask.png")}


def one(bundle: Bundle, files: dict[str, str], **changes: object) -> Picture:
    asked = {"prompt": "a red cat", "seed": 3, "padding_mask_crop": 4, **files, **changes}
    return generate(bundle, Request(**asked))[0]  # type: ignore[arg-type]


def test_only_the_part_is_drawn_and_the_picture_has_its_size(bundle: Bundle, files: dict[str, str]) -> None:
    """A photo of any size, with a part of it at the model's own."""
    done = one(bundle, files, strength=1.0)
    photo = Image.open(files["init_image"])
    assert done.image.size == PHOTO
    assert (done.record.width, done.record.height, done.record.padding_mask_crop) == (16, 16, 4)
    changed = ImageChops.difference(done.image, photo).convert("L").point(lambda v: 255 * (v > 0)).getbbox()
    assert changed == (30, 10, 42, 20)  # the white, and no pixel beside it
    wider = one(bundle, files, strength=1.0, padding_mask_crop=12)
    assert wider.image.tobytes() != done.image.tobytes()


def test_a_size_that_is_asked_for_is_that_of_the_part(bundle: Bundle, files: dict[str, str]) -> None:
    done = one(bundle, files, width=24, height=16)
    assert (done.image.size, done.record.width, done.record.height) == (PHOTO, 24, 16)
    resolved = resolve(bundle, Request(prompt="a", padding_mask_crop=0, width=24, **files))  # type: ignore[arg-type]
    assert (resolved.width, resolved.height, picture_size(resolved)) == (24, 16, PHOTO)
    whole = resolve(bundle, Request(prompt="a", width=16, height=16))
    assert picture_size(whole) == (16, 16)


def test_its_replay_is_the_same(bundle: Bundle, files: dict[str, str]) -> None:
    done = one(bundle, files, n=2)
    record = from_json(Record, json.loads(dumps(done.record)))
    assert replay(bundle, record).image.tobytes() == done.image.tobytes()


def test_no_photo_of_another_shape_is_distorted(bundle: Bundle, files: dict[str, str]) -> None:
    """Without padding_mask_crop the same photo is refused, whole as it is."""
    for size in ({}, {"width": 16, "height": 16}):
        with pytest.raises(UserError, match="61 is not a multiple|would distort it"):
            one(bundle, files, padding_mask_crop=None, **size)


def test_a_photo_that_does_not_fit_is_told_what_does(bundle: Bundle, files: dict[str, str]) -> None:
    photo = {"init_image": files["init_image"]}  # 61 x 43
    for size in ({}, {"width": 16, "height": 16}):
        with pytest.raises(UserError, match="init_image, 61x43, fits into width") as told:
            resolve(bundle, Request(prompt="a", **photo, **size))  # type: ignore[arg-type]
        width, height = map(int, re.findall(r"fits into width (\d+), height (\d+)", str(told.value))[0])
        request = Request(prompt="a", width=width, height=height, **photo)  # type: ignore[arg-type]
        assert generate(bundle, request)[0].image.size == (width, height)
        assert "padding_mask_crop" not in str(told.value)
    with pytest.raises(UserError, match="or padding_mask_crop, which draws the masked part alone"):
        resolve(bundle, Request(prompt="a", **files))  # type: ignore[arg-type]


def test_a_black_mask_is_told_before_anything_is_drawn(bundle: Bundle, files: dict[str, str]) -> None:
    black = {**files, "mask": files["mask"].replace("mask.png", "black.png")}
    with pytest.raises(UserError, match="mask is black everywhere"):
        resolve(bundle, Request(prompt="a", padding_mask_crop=0, **black))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"mask": None}, "padding_mask_crop without mask"),
        ({"padding_mask_crop": -1}, "padding_mask_crop -1. Allowed: 0 to 8192"),
        ({"padding_mask_crop": 8193}, "padding_mask_crop 8193. Allowed: 0 to 8192"),
    ],
)
def test_what_makes_no_sense_is_refused(files: dict[str, str], asked: dict[str, object], why: str) -> None:
    with pytest.raises(UserError, match=why):
        Request(**{"prompt": "a", "padding_mask_crop": 0, **files, **asked})  # type: ignore[arg-type]


def test_a_picture_read_back_says_it(bundle: Bundle, files: dict[str, str]) -> None:
    record = one(bundle, files, padding_mask_crop=0).record
    text = infotext(record)
    assert "Inpaint area: Only masked, Masked area padding: 0" in text
    found = from_infotext(text)
    assert found is not None
    assert found.request["padding_mask_crop"] == 0
    whole = from_infotext(text.replace("Inpaint area: Only masked, ", ""))
    assert whole is not None
    assert "padding_mask_crop" not in whole.request
    assert "Masked area padding '0' goes with Inpaint area: Only masked" in whole.notes

"""The watermark: it is hardly there, outlives what pictures go through, and isn't found where it isn't.

The figures of benchmarks/watermark.md are measured on many more pictures; here each claim has a few that must hold.
"""

from __future__ import annotations

import itertools
import math
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from kotoe import images
from kotoe.errors import UserError
from kotoe.provenance import watermark
from kotoe.provenance.watermark import NUMBERS, detect, embed
from kotoe.rng import generator
from pictures import scene


def noise(size: int = 128, seed: int = 0, power: float = 1.0) -> Image.Image:
    """Random colours whose amplitudes fall with frequency to a power: 1 as in photographs, 0 is white noise."""
    import torch

    drawn = torch.randn(3, size, size, generator=generator(seed)).numpy()
    f = np.fft.fftfreq(size)
    radius = np.hypot(*np.meshgrid(f, f))
    radius[0, 0] = 1
    values = np.fft.ifft2(np.fft.fft2(drawn) / radius**power).real
    levels = 128 + 50 * (values / values.std())
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0).copy())


def decibels(a: Image.Image, b: Image.Image) -> float:
    x, y = (np.asarray(image, dtype=np.float64) for image in (a, b))
    return 10 * math.log10(255**2 / float(((x - y) ** 2).mean()))


def saved(image: Image.Image, format: str, quality: int) -> Image.Image:
    file = BytesIO()
    image.save(file, format, quality=quality)
    return Image.open(BytesIO(file.getvalue())).convert("RGB")


def resized(image: Image.Image, by: float) -> Image.Image:
    return image.resize((round(image.width * by), round(image.height * by)), Image.Resampling.BICUBIC)


SCENES = {"scene": scene(), "light": scene(seed=4), "wide": scene(320, 192, seed=2), "noise": noise()}


# --- There and back


@settings(max_examples=25)
@given(st.integers(0, NUMBERS - 1), st.integers(0, 999), st.integers(128, 300), st.integers(128, 300))
def test_every_number_comes_back(number: int, seed: int, width: int, height: int) -> None:
    image = scene(width, height, seed)
    marked = embed(image, number)
    assert marked.size == image.size
    read = detect(marked)
    assert (read.number, read.found) == (number, True)
    assert decibels(image, marked) >= 38
    assert embed(image, number).tobytes() == marked.tobytes()


@pytest.mark.parametrize("colour", ["white", "black", "red", "#010203"])
def test_one_colour_holds_a_mark(colour: str) -> None:
    """Also where levels can go one way only."""
    marked = embed(Image.new("RGB", (128, 128), colour), 65535)
    assert detect(marked).number == 65535
    assert decibels(Image.new("RGB", (128, 128), colour), marked) >= 38


@pytest.mark.parametrize("name", SCENES)
def test_it_outlives_what_pictures_go_through(name: str) -> None:
    image = SCENES[name]
    marked = embed(image, 4660)
    for what, changed in {
        "JPEG 90": saved(marked, "JPEG", 90),
        "JPEG 75": saved(marked, "JPEG", 75),
        "JPEG 50": saved(marked, "JPEG", 50),
        "WebP 80": saved(marked, "WEBP", 80),
        "smaller": resized(marked, 0.75),
        "larger": resized(marked, 1.25),
        "smaller and back": resized(marked, 0.75).resize(marked.size, Image.Resampling.BICUBIC),
        "darker": ImageEnhance.Brightness(marked).enhance(0.9),
        "brighter": ImageEnhance.Brightness(marked).enhance(1.1),
        "grey": marked.convert("L").convert("RGB"),
    }.items():
        read = detect(changed)
        assert read.found, (what, read)
        assert read.number == 4660, what


# --- Where there is none


def test_it_is_not_found_where_it_is_not() -> None:
    """Whatever an unmarked picture scores, the bound holds: of n pictures hardly more than n p have a p below p."""
    unmarked = [scene(seed=seed) for seed in range(200)] + [noise(seed=seed) for seed in range(50)]
    unmarked += [noise(seed=seed, power=power) for seed in range(25) for power in (0.0, 2.0)]
    values = sorted(detect(image).p_value for image in unmarked)
    assert values[0] > 1e-3
    assert detect(Image.new("RGB", (128, 128))).p_value == 1.0
    assert not detect(Image.new("RGB", (1, 1), "red")).found


def test_a_mark_that_was_taken_out_is_not_found() -> None:
    marked = embed(SCENES["scene"], 7)
    assert not detect(resized(marked, 0.1).resize(marked.size)).found


def test_the_bound_is_hoeffdings_and_holds_for_random_keys() -> None:
    """The score of a fixed picture under other keys: what an unmarked picture's is, were the key drawn anew."""
    soft = np.clip(watermark._coefficients(noise()), -watermark.CUT, watermark.CUT)
    import torch

    keys = torch.randint(0, 2, (20_000, len(soft)), generator=generator(5)).numpy() * 2.0 - 1.0
    scores = keys @ soft / np.sqrt((soft**2).sum())
    for z in (1.0, 2.0, 3.0):
        assert (scores > z).mean() <= math.exp(-(z**2) / 2)
    assert 0.95 < scores.std() < 1.05


# --- The code


def test_the_transform_finds_what_signs_say() -> None:
    """The fast transform over all numbers against the signs of each: the deliberate fault is another number."""
    marked = embed(SCENES["noise"], 300)
    soft = np.clip(watermark._coefficients(marked), -watermark.CUT, watermark.CUT)
    norm = float(np.sqrt((soft.astype(np.float64) ** 2).sum()))
    score = detect(marked).score
    assert float(soft @ watermark._signs(300)) / norm == pytest.approx(score, abs=1e-4)
    assert max(float(soft @ watermark._signs(n)) / norm for n in (301, 299, 0, 65535)) < score / 2


def test_signs_of_two_numbers_agree_as_often_as_chance() -> None:
    numbers = (0, 1, 2, 255, 256, 4660, 65534, 65535)
    for a, b in itertools.combinations(numbers, 2):
        agreement = float(watermark._signs(a) @ watermark._signs(b)) / len(watermark._signs(a))
        assert abs(agreement) < 0.15, (a, b)


def test_pictures_that_were_marked_stay_readable() -> None:
    """The key and the places never change: the signs of a number are those of the first release."""
    import hashlib

    signs = (watermark._signs(4660) > 0).tobytes()
    assert hashlib.sha256(signs).hexdigest()[:16] == "857640ee2b7aa192"
    transform = watermark._cosines()
    assert np.allclose(transform @ transform.T, np.eye(8), atol=1e-6)


# --- Refused


def test_what_is_refused() -> None:
    for image, number, message in (
        (scene(), 65536, "watermark 65536. Allowed: 0 to 65535"),
        (scene(), -1, "watermark -1"),
        (scene(127, 300), 1, "127x300 pixels is too small for a watermark. Allowed: 128 pixels or more"),
        (noise(power=0.0).convert("1").convert("RGB"), 1, "can't hold a watermark"),
    ):
        with pytest.raises(UserError, match=message):
            embed(image, number)


def test_the_picture_given_stays_as_it_is() -> None:
    image = scene()
    before = images.pixels_sha256(image)
    embed(image, 1)
    assert images.pixels_sha256(image) == before

"""The matcher: true renders are found, soft ones nearly always, empty ones only by chance."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kotoe.data import emoji
from kotoe.errors import UserError
from kotoe.evaluate import match
from kotoe.evaluate.match import Match, Matcher, border_colour

EDGE = 128
WHITE, BLUE = (1.0, 1.0, 1.0), (0.17, 0.38, 0.83)


# ---- sprites of our own: shapes whose answer is known without any font ----------------------------------------------


def shapes() -> Tensor:
    """(8, 4, 96, 96) uint8 premultiplied: black and grey discs, red and green squares, bars, a ring, a triangle."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 96), indexing="ij")
    radius = (x**2 + y**2).sqrt()
    disc, square = radius < 0.9, (x.abs() < 0.8) & (y.abs() < 0.8)
    drawn = [
        (disc, (0, 0, 0)),
        (disc, (120, 120, 120)),
        (square, (220, 30, 30)),
        (square, (30, 160, 60)),
        ((x.abs() < 0.25) & (y.abs() < 0.9), (240, 180, 0)),
        ((y.abs() < 0.25) & (x.abs() < 0.9), (240, 180, 0)),
        (disc & (radius > 0.6), (30, 30, 200)),
        ((y > -0.8) & (y < 0.8) & (x.abs() < (y + 0.8) / 2), (160, 60, 180)),
    ]
    sprites = torch.zeros(len(drawn), 4, 96, 96, dtype=torch.uint8)
    for sprite, (where, colour) in zip(sprites, drawn):
        sprite[:, where] = torch.tensor([*colour, 255], dtype=torch.uint8)[:, None]
    return sprites


def composed(sprite: Tensor, size: int, centre: tuple[int, int], background: tuple[float, float, float]) -> Tensor:
    """(1, 3, 128, 128) in 0 to 1: the sprite (4, S, S) over the background, this test's own compositor."""
    canvas = torch.tensor(background)[:, None, None].repeat(1, EDGE, EDGE)
    small = F.interpolate(sprite[None].float() / 255, size=(size, size), mode="bilinear", antialias=True)[0]
    left, top = centre[0] - size // 2, centre[1] - size // 2
    under = canvas[:, top : top + size, left : left + size]
    canvas[:, top : top + size, left : left + size] = small[:3] + (1 - small[3:]) * under
    return canvas[None]


@pytest.fixture(scope="module")
def own() -> Matcher:
    return Matcher(shapes())


@pytest.mark.parametrize("background", [WHITE, BLUE], ids=["white", "blue"])
@pytest.mark.parametrize(("size", "centre"), [(46, (30, 95)), (61, (64, 64)), (77, (83, 45)), (104, (70, 60))])
def test_glyph_size_and_place_are_found(own: Matcher, size: int, centre: tuple[int, int], background: tuple) -> None:
    for k, sprite in enumerate(shapes()):
        found = own.match(composed(sprite, size, centre, background))
        assert found.glyphs[0, 0] == k
        assert found.sizes[0, 0].item() == pytest.approx(size, rel=0.08)
        assert found.centres[0, 0].tolist() == pytest.approx(centre, abs=2.5)
        assert found.scores[0, 0] > 0.9
        assert found.background[0].tolist() == pytest.approx(background, abs=1e-6)


def test_grey_is_not_black(own: Matcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """On white a grey disc is a black one of less contrast. Free contrast, the deliberate fault, mistakes it."""
    pictures = torch.cat([composed(shapes()[k], 72, (64, 64), WHITE) for k in (0, 1)])
    assert own.match(pictures).glyphs[:, 0].tolist() == [0, 1]
    monkeypatch.setattr(match, "LOW", 0.01)
    monkeypatch.setattr(match, "HIGH", 100.0)
    scores = own.match(pictures).scores
    assert (scores[:, 0] - scores[:, 1]).max() < 1e-3, "nothing tells them apart any more"


def test_softness_costs_no_rank(own: Matcher) -> None:
    pictures = torch.cat([composed(sprite, 72, (64, 64), BLUE) for sprite in shapes()])
    assert own.match(blurred(pictures, 4.0)).glyphs[:, 0].tolist() == list(range(8))


def test_only_the_region_is_looked_at(own: Matcher) -> None:
    left, right = composed(shapes()[2], 56, (32, 64), WHITE), composed(shapes()[6], 56, (96, 64), WHITE)
    both = torch.minimum(left, right)
    half = torch.zeros(1, EDGE, EDGE, dtype=torch.bool)
    half[:, :, :64] = True
    assert own.match(both, regions=half).glyphs[0, 0] == 2
    assert own.match(both, regions=~half).glyphs[0, 0] == 6


def test_background_is_a_median_of_the_border() -> None:
    picture = torch.full((1, 3, EDGE, EDGE), 0.5)
    picture[:, 0, :, :20] = 1.0  # an object over one whole side
    picture[:, :, 30:90, 30:90] = 0.0
    assert border_colour(picture).tolist() == [[0.5, 0.5, 0.5]]
    assert border_colour((picture * 255).to(torch.uint8))[0, 1].item() == pytest.approx(127 / 255)


def test_what_cannot_be_looked_up_is_refused(own: Matcher) -> None:
    with pytest.raises(UserError, match="pictures of shape"):
        own.match(torch.zeros(1, 1, EDGE, EDGE))
    with pytest.raises(UserError, match="120 x 128"):
        own.match(torch.zeros(1, 3, EDGE, 120))
    with pytest.raises(UserError, match="sprites"):
        Matcher(torch.zeros(4, 4, 96, 96))


# ---- the glyphs themselves ------------------------------------------------------------------------------------------


def blurred(pictures: Tensor, sigma: float) -> Tensor:
    reach = round(3 * sigma)
    window = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * sigma**2))
    window = window / window.sum()
    wide = F.pad(pictures, (reach,) * 4, mode="replicate")
    rows = F.conv2d(wide, window.view(1, 1, 1, -1).expand(3, 1, 1, -1), groups=3)
    return F.conv2d(rows, window.view(1, 1, -1, 1).expand(3, 1, -1, 1), groups=3)


def share(found: Match, asked: list[int]) -> float:
    return float((found.glyphs[:, 0] == torch.tensor(asked)).float().mean())


@pytest.fixture(scope="module")
def world() -> emoji.Atlas:
    return emoji.atlas("everyday")


@pytest.fixture(scope="module")
def matcher(world: emoji.Atlas) -> Matcher:
    return Matcher(world.sprites)


@pytest.fixture(scope="module")
def sample(world: emoji.Atlas) -> tuple[Tensor, list[int]]:
    """150 renders (150, 3, 128, 128) uint8 of random objects, colours, sizes and places, and the objects."""
    scenes = [emoji.scene(77, i, world.glyphs, pairs=0.0) for i in range(150)]
    return world.render(scenes), [s.objects[0] for s in scenes]


unicode = [pytest.mark.needs(name) for name in ("emoji-font", "cldr", "unicode-data")]


class TestEmoji:
    pytestmark = unicode

    def test_true_renders(self, matcher: Matcher, sample: tuple[Tensor, list[int]]) -> None:
        pictures, asked = sample
        assert share(matcher.match(pictures), asked) >= 0.99

    def test_swapped_colours_are_found_out(self, world: emoji.Atlas, sample: tuple[Tensor, list[int]]) -> None:
        """Deliberate fault: a matcher that takes red for blue must not reach the ceiling."""
        pictures, asked = sample
        wrong = Matcher(world.sprites[:, [2, 1, 0, 3]])
        assert share(wrong.match(pictures[:40]), asked[:40]) < 0.7

    def test_soft_renders(self, matcher: Matcher, sample: tuple[Tensor, list[int]]) -> None:
        pictures, asked = sample
        assert share(matcher.match(blurred(pictures.float() / 255, 1.5)), asked) >= 0.95

    def test_near_twins(self, world: emoji.Atlas, matcher: Matcher) -> None:
        """Clock faces, moons and books: they differ in a hand, a shadow or a colour."""
        twins = [
            k for k, g in enumerate(world.glyphs) if any(w in g.name_en for w in ("o’clock", "-thirty", "moon", "book"))
        ]
        assert len(twins) > 35
        colours = list(emoji.COLOURS)
        scenes = [emoji.Scene(objects=(k,), background=colours[k % len(colours)]) for k in twins]
        assert share(matcher.match(world.render(scenes)), twins) >= 0.99

    def test_empty_pictures_are_found_by_chance_only(self, world: emoji.Atlas, matcher: Matcher) -> None:
        draw = random.Random(0)
        flat = [replace(emoji.scene(3, i, world.glyphs, pairs=0.0), size="small") for i in range(60)]
        pictures = world.render(flat)
        pictures[:] = pictures[:, :, :1, :1]  # nothing but background
        asked = [draw.randrange(len(world.glyphs)) for _ in flat]
        found = matcher.match(pictures)
        assert share(found, asked) <= 0.05
        assert found.scores.max() < 0.1

    def test_a_picture_in_a_batch_is_the_picture_alone(
        self, matcher: Matcher, sample: tuple[Tensor, list[int]]
    ) -> None:
        pictures = sample[0][:11]  # more than one chunk, the last one not full
        together, again = matcher.match(pictures), matcher.match(pictures)
        for name in ("glyphs", "scores", "sizes", "centres"):
            assert torch.equal(getattr(together, name), getattr(again, name)), "the same pictures, other results"
        for i in (0, 7, 8, 10):
            alone = matcher.match(pictures[i : i + 1])
            assert torch.equal(alone.glyphs[0, :3], together.glyphs[i, :3])
            torch.testing.assert_close(alone.scores[0], together.scores[i], atol=1e-5, rtol=0)

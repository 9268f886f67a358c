"""The emoji world: deterministic scenes, true pictures, combinations that training never sees."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kotoe.data import captions, emoji
from kotoe.data.captions import COLOURS
from kotoe.data.emoji import PIXELS, Scene, atlas, held_out_colour, held_out_pair, layout, scene
from kotoe.data.latents import PATCH, basis, described, looks
from kotoe.errors import UserError

pytestmark = [pytest.mark.needs("emoji-font"), pytest.mark.needs("cldr"), pytest.mark.needs("unicode-data")]


def index_of(name: str) -> int:
    return next(g.index for g in atlas().glyphs if g.name_en == name)


def test_a_scene_is_a_function_of_its_arguments() -> None:
    glyphs = atlas().glyphs
    there = [scene(3, i, glyphs) for i in range(200)]
    random.seed(99)  # whatever else draws, and in any order
    assert [scene(3, i, glyphs) for i in reversed(range(200))] == there[::-1]
    assert [scene(4, i, glyphs) for i in range(200)] != there


def test_held_out_combinations_are_never_trained_on() -> None:
    glyphs = atlas().glyphs
    trained = [scene(0, i, glyphs) for i in range(4000)]
    kept = [scene(0, i, glyphs, held_out=True) for i in range(500)]

    def held(s: Scene) -> bool:
        points = [glyphs[o].codepoints for o in s.objects]
        return held_out_colour(points[0], s.background) if s.relation is None else held_out_pair(*points)

    assert not any(map(held, trained))
    assert all(map(held, kept))
    share = sum(held_out_colour(g.codepoints, c) for g in glyphs for c in COLOURS) / len(glyphs) / len(COLOURS)
    assert 0.08 < share < 0.12
    assert held_out_pair("a", "b") == held_out_pair("b", "a")
    assert {s.background for s in kept} == set(COLOURS)


def test_background_and_object_are_where_the_scene_says() -> None:
    world, cat = atlas(), index_of("cat")
    for position in emoji.POSITIONS:
        s = Scene(objects=(cat,), size="small", position=position, background="blue")
        picture = world.render([s])[0].float()  # (3, PIXELS, PIXELS)
        drawn = (picture - torch.tensor(COLOURS["blue"].rgb)[:, None, None]).abs().sum(0) > 30
        ys, xs = drawn.nonzero().T
        edge, x, y = layout(s)[0]
        assert abs(float(xs.float().mean()) - x) < 6
        assert abs(float(ys.float().mean()) - y) < 6
        assert x - edge / 2 - 1 <= int(xs.min())
        assert int(xs.max()) <= x + edge / 2
        far = PIXELS - 1 if x < PIXELS / 2 else 0
        assert picture[:, 0, far].tolist() == list(COLOURS["blue"].rgb)


@pytest.mark.parametrize("relation", list(emoji.RELATIONS))
def test_the_first_object_lies_where_the_relation_says(relation: str) -> None:
    (_, ax, ay), (_, bx, by) = layout(Scene(objects=(0, 1), relation=relation))
    assert {"left_of": ax < bx, "right_of": ax > bx, "above": ay < by, "below": ay > by}[relation]
    assert (ax == bx) == (relation in ("above", "below"))


def test_swapping_objects_and_relation_is_the_same_picture() -> None:
    one = Scene(objects=(5, 9), relation="left_of", background="red")
    two = replace(one, objects=(9, 5), relation="right_of")
    a, b = atlas().render([one, two])
    assert torch.equal(a, b)
    assert not torch.equal(a, atlas().render([replace(one, relation="right_of")])[0])


def test_a_batch_is_its_pictures() -> None:
    glyphs = atlas().glyphs
    scenes = [scene(8, i, glyphs) for i in range(12)]
    assert torch.equal(atlas().render(scenes), torch.cat([atlas().render([s]) for s in scenes]))


def test_words_of_the_world_are_the_captions_words() -> None:
    """A layout without words for it, or words without a layout, would train on nonsense."""
    assert set(emoji.POSITIONS) == set(captions.POSITIONS)
    assert set(emoji.RELATIONS) == set(captions.RELATIONS)


def test_no_font_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KOTOE_EMOJI_FONT", str(tmp_path / "none.ttf"))
    with pytest.raises(UserError, match=r"none\.ttf.*fonts-noto-color-emoji"):
        emoji.emoji_font()


def test_latents_are_orthonormal_components_of_unit_spread() -> None:
    base = basis("everyday", 32)
    assert base.components.T @ base.components == pytest.approx(torch.eye(32).numpy(), abs=1e-4)
    x = atlas().render([scene(77, i, atlas().glyphs) for i in range(64)]).float() / 127.5 - 1
    z = base.encode(x)
    assert z.shape == (64, 32, PIXELS // PATCH, PIXELS // PATCH)
    assert float(z.square().mean()) == pytest.approx(1.0, rel=0.15)
    # decode is the closest picture with these latents: encoding it again gives them back
    assert torch.allclose(base.encode(base.decode(z)), z, atol=1e-3)
    assert float((base.decode(z) - x).abs().mean()) < 0.05


def test_looks_tell_every_glyph_from_every_other() -> None:
    code = looks("everyday", 32, 128)
    assert code.shape == (len(atlas().glyphs), 128)
    apart = torch.cdist(code, code).fill_diagonal_(torch.inf).amin(dim=1)
    assert float(apart.min()) > 0.1  # against lengths of about 5
    assert torch.all(code.square().mean(dim=0).diff() <= 1e-6)  # the most telling numbers first
    with pytest.raises(UserError, match="900 numbers.*836"):
        looks("everyday", 32, 900)


def test_what_a_text_must_tell_of_a_scene() -> None:
    code = looks("everyday", 32, 128)
    pair = Scene(objects=(3, 5), relation="right_of", background="white")  # 3 lies right of 5: 5 comes first
    single = Scene(objects=(7,), size="large", background="black")
    told = described([pair, single], code)
    assert told.shape == (2, 2, 136)
    assert torch.equal(told[0, :, :128], code[[5, 3]])
    assert told[0, :, 128:].tolist() == [[1, 0, 0, -1, 0, 1, 1, 1], [1, 0, 0, 1, 0, 1, 1, 1]]
    assert torch.equal(told[1, 0], told[1, 1])
    assert told[1, 0, 128:133].tolist() == [0, 0, 1, 0, 0]

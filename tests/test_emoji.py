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
from kotoe.data.latents import PATCH, PATCHES, Told, basis, looks
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
    told = Told("everyday", 32, 128)
    pair = Scene(objects=(3, 5), relation="right_of", background="white")  # 3 lies right of 5
    single = Scene(objects=(7,), size="large", background="black")
    shifted = Scene(objects=(9,), position="top left", background="black")
    route, drawn = told([pair, single, shifted])
    assert route.shape == (3, PATCHES, told.route_numbers)
    looked = route[..., :128].unflatten(1, (8, 8))
    assert torch.equal(looked[0, 2, 0], code[5])
    assert torch.equal(looked[0, 2, 7], code[3])
    assert not looked[0, :2].any()
    assert not looked[0, 6:].any()
    assert torch.equal(looked[1], code[7].expand(8, 8, -1))  # a large one touches every patch
    assert torch.equal(looked[2, :6, :6], code[9].expand(6, 6, -1))
    assert not looked[2, 6:].any()
    row, column = (part.argmax(-1).unflatten(1, (8, 8)) for part in route[..., 128:-11].chunk(2, dim=-1))
    assert row[0, 2:6, 0].tolist() == row[0, 2:6, 4].tolist() == [0, 1, 2, 3]  # of the four rows of small things
    assert column[0, 2].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert row[1, :, 0].tolist() == list(range(10, 18))  # after small ones' four and middle-sized ones' six
    assert row[2, :, 0].tolist() == [4, 5, 6, 7, 8, 9, 18, 18]  # 18: none
    assert route[0, 0, -11:-8].tolist() == [2, 2, 2]
    assert torch.equal(route[1, 0, -11:-8] / 2, torch.tensor(COLOURS["black"].rgb) / 127.5 - 1)
    assert torch.allclose(drawn[1, 0, :48], drawn[2, 63, :48], atol=1e-3)  # an empty corner is told as empty


def test_what_is_told_of_a_patch_is_what_is_seen_there() -> None:
    """On black the latents follow from what is told by one scale and shift of each number, wherever a thing lies."""
    told, base, world = Told("everyday", 32, 128), basis("everyday", 32), atlas()
    scenes = [replace(scene(5, i, world.glyphs), background="black") for i in range(200)]
    z = base.encode(world.render(scenes).float() / 127.5 - 1).flatten(2).transpose(1, 2)  # (200, 64, 32)
    _, drawn = told(scenes)
    said = drawn[..., :32]
    slope = ((said - said.mean((0, 1))) * (z - z.mean((0, 1)))).mean((0, 1)) / said.var((0, 1), correction=0)
    guess = z.mean((0, 1)) + slope * (said - said.mean((0, 1)))
    assert float((guess - z).square().mean() / z.var()) < 1e-4
    # See-through patches are told alike whatever lies elsewhere, and each place differs from all others.
    empty = drawn[[s.relation == "left_of" for s in scenes], 0]  # the upper left corner
    assert torch.equal(empty, empty[:1].expand_as(empty))
    places = drawn[0, :, -8:]
    assert float(torch.cdist(places, places).fill_diagonal_(torch.inf).min()) > 1

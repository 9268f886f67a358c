"""The emoji suite: its prompts, what counts as right, its controls, and a whole run on a tiny model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kotoe import evaluate
from kotoe.checkpoints import Bundle
from kotoe.data import captions, emoji
from kotoe.errors import UserError
from kotoe.evaluate import report, suites
from kotoe.evaluate.match import Matcher
from kotoe.evaluate.suites import Item, items, judge, look
from kotoe.unet import UNet
from tiny import seeded, tiny_bundle

pytestmark = [pytest.mark.needs(name) for name in ("emoji-font", "cldr", "unicode-data")]


@pytest.fixture(scope="module")
def world() -> emoji.Atlas:
    return emoji.atlas("everyday")


@pytest.fixture(scope="module")
def matcher(world: emoji.Atlas) -> Matcher:
    return Matcher(world.sprites)


def only(k: int) -> set[int]:
    return {k}


# ---- the prompts ----------------------------------------------------------------------------------------------------


def test_four_hundred_and_two_hundred(world: emoji.Atlas) -> None:
    all_of_them = items("en")
    single = [i for i in all_of_them if len(i.scene.objects) == 1]
    pair = [i for i in all_of_them if len(i.scene.objects) == 2]
    assert (len(single), len(pair)) == (400, 200)
    assert single + pair == all_of_them
    assert len({i.seed for i in all_of_them}) == 600
    assert all(i.scene.background_said for i in all_of_them)
    assert len({i.scene.objects for i in single}) == 400, "no object twice while there are others"
    assert len({i.scene.background for i in single}) == 12
    codes = [g.codepoints for g in world.glyphs]
    for i in single:
        assert emoji.held_out_colour(codes[i.scene.objects[0]], i.scene.background) == i.held_out
    assert sum(i.held_out for i in single) == 200
    for i in pair:
        assert emoji.held_out_pair(*(codes[k] for k in i.scene.objects))
    assert {i.scene.relation for i in pair[:4]} == set(emoji.RELATIONS)


def test_languages_get_the_same_scenes_and_noise() -> None:
    english, japanese = items("en", n=20), items("ja", n=20)
    assert [(i.scene, i.seed, i.held_out) for i in english] == [(i.scene, i.seed, i.held_out) for i in japanese]
    assert not {i.prompt for i in english} & {i.prompt for i in japanese}


def test_fewer_are_the_first_of_all() -> None:
    few, many = items("ko", n=10), items("ko")
    assert len(few) == 15
    assert few == many[:10] + many[400:405]


def test_captions_use_template_0_and_the_others() -> None:
    todo = [i for i in items("en") if len(i.scene.objects) == 1]
    fixed = [i.prompt == captions.caption(i.scene, "en", 0, tier="everyday") for i in todo]
    assert 0.45 <= np.mean(fixed) <= 0.7
    seen, held = (np.mean([f for f, i in zip(fixed, todo) if i.held_out is h]) for h in (False, True))
    assert abs(seen - held) < 0.1, "wording and held-out combinations are mixed up"


def test_the_scenes_of_version_1_do_not_change() -> None:
    """A change here makes old and new results incomparable: it needs a new version of the suite."""
    assert suites.SUITES == {"emoji": 1}
    shown = [
        (i.scene.objects, i.scene.size, i.scene.position, i.scene.relation, i.scene.background, i.seed)
        for i in items("en")
    ]
    assert hashlib.sha256(repr(shown).encode()).hexdigest()[:16] == "4e3b88ac4ecfd745"


PROMPTS = {  # over CLDR 41, the release of Debian 12: what CLDR calls a glyph is part of most prompts
    "en": "739a9f06d1f5008c",
    "ja": "c5e87f5f3ce87461",
    "zh": "bcd966cf566c0707",
    "ko": "856efc6e382dde21",
}


@pytest.mark.parametrize("language", list(PROMPTS))
def test_the_words_of_version_1_do_not_change(language: str) -> None:
    """In the languages of kotoe-emoji, on which published figures stand."""
    assert suites._digest(items(language))[:16] == PROMPTS[language]


def test_other_languages_have_the_suite_too(world: emoji.Atlas) -> None:
    english, swahili = items("en"), items("sw")
    assert [(i.scene, i.seed, i.held_out) for i in english] == [(i.scene, i.seed, i.held_out) for i in swahili]
    assert len({i.prompt for i in swahili}) > 595
    assert {i.language for i in swahili} == {"sw"}


# ---- right and wrong ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def some() -> list[Item]:
    """16 singles and 12 pairs."""
    every = items("en")
    return every[:16] + every[400:412]


def test_true_renders_are_right(world: emoji.Atlas, matcher: Matcher, some: list[Item]) -> None:
    scenes = [i.scene for i in some]
    found = judge(look(matcher, world.render(scenes), scenes), scenes, only)
    assert found.r1.tolist() == [True] * 16
    assert found.relation.tolist() == [True] * 12
    assert found.background.tolist() == [True] * 28


def test_swapped_objects_fail_the_relation(world: emoji.Atlas, matcher: Matcher, some: list[Item]) -> None:
    pairs = [i.scene for i in some[16:]]
    swapped = world.render([replace(s, relation=captions.OPPOSITE[s.relation or ""]) for s in pairs])
    found = judge(look(matcher, swapped, pairs), pairs, only)
    assert not found.relation.any()
    assert not found.relation5.any()
    assert found.background.all()


def test_one_object_alone_is_no_relation(world: emoji.Atlas, matcher: Matcher, some: list[Item]) -> None:
    pairs = [i.scene for i in some[16:]]
    alone = world.render([replace(s, objects=s.objects[:1], relation=None, size="medium") for s in pairs])
    assert not judge(look(matcher, alone, pairs), pairs, only).relation.any()


def test_wrong_background_fails_background_only(world: emoji.Atlas, matcher: Matcher, some: list[Item]) -> None:
    single = [i.scene for i in some[:16]]
    names = list(emoji.COLOURS)
    other = [replace(s, background=names[(names.index(s.background) + 5) % 12]) for s in single]
    found = judge(look(matcher, world.render(other), single), single, only)
    assert not found.background.any()
    assert found.r1.mean() > 0.9


def test_a_blank_picture_is_right_by_chance_only(world: emoji.Atlas, matcher: Matcher, some: list[Item]) -> None:
    scenes = [i.scene for i in some]
    blank = world.render(scenes)
    blank[:] = blank[:, :, :1, :1]
    found = judge(look(matcher, blank, scenes), scenes, only)
    assert found.r1.sum() <= 1
    assert found.relation.sum() == 0
    assert found.background.all()


def test_equivalents_count(world: emoji.Atlas, matcher: Matcher, some: list[Item]) -> None:
    single = [i.scene for i in some[:4]]
    shown = [replace(s, objects=((s.objects[0] + 1) % len(world.glyphs),)) for s in single]
    seen = look(matcher, world.render(shown), single)
    assert not judge(seen, single, only).r1.any()
    assert judge(seen, single, lambda k: {k, (k + 1) % len(world.glyphs)}).r1.all()


def test_shuffled_scenes_ask_for_something_else(some: list[Item]) -> None:
    scenes = [i.scene for i in some]
    other = suites._shuffled(scenes)
    assert [s.relation for s in other] == [s.relation for s in scenes]
    assert all(a.objects != b.objects for a, b in zip(scenes, other))
    assert sorted(s.objects for s in other) == sorted(s.objects for s in scenes)


# ---- a whole run ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """The tiny random model, drawing 128 x 128."""
    tiny = tiny_bundle("sd2", languages=("en", "ja"))
    unet = seeded(UNet(replace(tiny.unet.spec, sample_size=64)), 0)
    return tiny.changed(unet=unet)


def run(bundle: Bundle, **more: object) -> dict:
    return evaluate.run(bundle, n=2, steps=1, guidance_scale=1.0, batch=4, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def ran(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path, list[tuple[int, int, str]]]:
    steps: list[tuple[int, int, str]] = []
    out = tmp_path_factory.mktemp("report") / "new"
    return run(bundle, out=out, progress=lambda *step: steps.append(step)), out, steps


FIGURE = {"value", "n", "low", "high"}


def test_the_keys_are_a_contract(ran: tuple[dict, Path, list]) -> None:
    results = ran[0]
    assert (results["suite"], results["version"], results["tier"]) == ("emoji", 1, "everyday")
    assert list(results["languages"]) == ["en", "ja"]
    for figures in results["languages"].values():
        assert {"r1", "r5", "background", "relation", "ssim"} <= set(figures)
        for figure in figures.values():
            assert set(figure) == FIGURE
            assert figure["low"] <= figure["value"] <= figure["high"]
    assert results["languages"]["en"]["r1"]["n"] == 2
    assert results["languages"]["en"]["relation"]["n"] == 1
    assert results["languages"]["en"]["background"]["n"] == 3
    assert results["prompts"] == {"single": 2, "pair": 1}
    controls = results["controls"]
    assert controls["true_renders"]["r1"]["value"] == 1.0
    assert controls["true_renders"]["relation"]["value"] == 1.0
    assert set(controls["shuffled"]) == {"en", "ja"}
    assert set(controls["english_encoder"]) == {"ja"}
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_in_int8_pictures_are_drawn_one_at_a_time(bundle: Bundle) -> None:
    asked = {"n": 1, "languages": ("en",), "steps": 1, "guidance_scale": 1.0, "controls": False}
    found = [evaluate.run(bundle, engine=name, **asked) for name in ("fast", "int8")]  # type: ignore[arg-type]
    assert [results["settings"]["batch"] for results in found] == [16, 1]


def test_a_random_model_draws_nothing_that_was_asked(ran: tuple[dict, Path, list]) -> None:
    for figures in ran[0]["languages"].values():
        assert figures["r1"]["value"] == 0.0
        assert figures["ssim"]["value"] < 0.5


def test_progress_counts_every_picture(ran: tuple[dict, Path, list]) -> None:
    steps = ran[2]
    assert [done for done, _, _ in steps] == list(range(1, 9))  # 2 languages x 3, and 2 foreign prompts
    assert {total for _, total, _ in steps} == {8}
    assert steps[-1][2] == "ja read by the English encoder"


def test_the_same_twice(bundle: Bundle, ran: tuple[dict, Path, list]) -> None:
    again = run(bundle, languages=("ja",), controls=False)
    assert "controls" not in again
    first = {k: v for k, v in ran[0]["languages"]["ja"].items() if k != "gap"}
    assert again["languages"]["ja"] == first
    assert again["prompts_sha256"]["ja"] == ran[0]["prompts_sha256"]["ja"]


def test_the_report(ran: tuple[dict, Path, list]) -> None:
    results, out, _ = ran
    assert json.loads((out / "results.json").read_text("utf-8")) == results
    text = (out / "report.md").read_text("utf-8")
    assert "| en | 0.0 [0.0, 0.0] |" in text
    assert "true renders (ceiling) | 100.0 [100.0, 100.0]" in text
    failed = json.loads((out / "failures.json").read_text("utf-8"))
    assert len(failed) == 6
    assert failed[3]["prompt"] == items("ja", n=2)[0].prompt
    assert failed[3]["prompt"] in text
    with Image.open(out / "pictures.png") as picture:
        assert picture.width > 4 * 258
    assert sorted(p.name for p in out.iterdir()) == ["failures.json", "pictures.png", "report.md", "results.json"]


def test_bad_input_is_refused_before_anything_is_drawn(bundle: Bundle, tmp_path: Path) -> None:
    for match, wrong in {
        "unknown suite 'emojis'": {"suite": "emojis"},
        "unknown evaluation language 'jp'": {"languages": ("jp",)},
        "unknown tier": {"tier": "every"},
        "n = 0 prompts": {"n": 0},
        "n = 401 prompts": {"n": 401},
        "sampler": {"sampler": "eulr"},
        "steps 0": {"steps": 0},
        "can't write": {"out": tmp_path / "file" / "folder"},
    }.items():
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match=match):
            evaluate.run(bundle, **{"progress": lambda *_: pytest.fail("drawn"), **wrong})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="draws 16 x 16 pixels"):
        evaluate.run(tiny_bundle("sd2"), n=1)


def test_a_model_without_english_has_no_english_control(bundle: Bundle) -> None:
    japanese = bundle.changed(conditioners={"ja": bundle.conditioner("ja")}, default_language="ja")
    results = evaluate.run(japanese, n=1, steps=1, guidance_scale=1.0)
    assert list(results["languages"]) == ["ja"]
    assert results["controls"]["english_encoder"] == {}
    assert "gap" not in results["languages"]["ja"]


def test_failures_name_what_was_asked_and_found(world: emoji.Atlas, matcher: Matcher) -> None:
    todo = items("en", n=2)
    scenes = [i.scene for i in todo]
    shown = [replace(scenes[0], objects=(0,)), replace(scenes[1], background="pink"), scenes[2]]
    pictures = world.render(shown)
    seen = look(matcher, pictures, scenes)
    drawn = suites.Drawn(
        language="en",
        items=todo,
        pictures=pictures,
        seen=seen,
        found=judge(seen, scenes, only),
        likeness=np.zeros(2),
    )
    names = tuple(g.name_en for g in world.glyphs)
    evaluation = suites.Evaluation(results={}, drawn={"en": drawn}, renders={"en": world.render(scenes)}, names=names)
    wrong, background = islice(report.failures(evaluation), 2)
    assert (wrong["asked"], wrong["found"]) == ([names[scenes[0].objects[0]]], [names[0]])
    assert background["objects_right"]
    assert (background["background"], background["background_found"]) == (scenes[1].background, "pink")
    assert len(list(report.failures(evaluation))) == 2

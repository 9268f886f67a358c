"""Captions in the languages of kotoe-emoji: grammar, golden examples, and words that mean one thing."""

from __future__ import annotations

import hashlib
import random
import re
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kotoe.data import captions
from kotoe.data.captions import COLOURS, DEMO_PROMPTS, POSITIONS, RELATIONS, caption, templates, word
from kotoe.data.cldr import load_objects
from kotoe.data.emoji import scene as world_scene
from kotoe.data.languages import LANGUAGES
from kotoe.data.languages.base import things
from kotoe.data.languages.en import article, with_article
from kotoe.data.languages.ko import final_consonant
from kotoe.errors import UserError
from scenes import Scene

pytestmark = [pytest.mark.needs("cldr"), pytest.mark.needs("unicode-data")]

TAGS = ("en", "ja", "zh", "ko")


def glyph(emoji: str) -> int:
    return next(g.index for g in load_objects("all") if g.codepoints == emoji)


CAT, DOG, APPLE, UMBRELLA, BOOKS = ("🐈", "🐕", "🍎", "☂️", "📚")
GOLDEN = [
    (Scene(objects=(0,)), CAT, {
        "en": "a cat on a blue background", "ja": "青い背景に猫", "zh": "蓝色背景上的猫", "ko": "파란 배경의 고양이",
    }),
    (Scene(objects=(0,), size="small", position="top left", background="red"), CAT, {
        "en": "a small cat in the top left corner on a red background", "ja": "赤い背景の左上に小さな猫",
        "zh": "红色背景左上角的小小的猫", "ko": "빨간 배경 왼쪽 위에 작은 고양이",
    }),
    (Scene(objects=(0, 0), relation="left_of", background="green"), CAT + DOG, {
        "en": "a cat to the left of a dog on a green background", "ja": "犬の左に猫、緑の背景",
        "zh": "猫在狗的左边，绿色背景", "ko": "개 왼쪽에 고양이, 초록색 배경",
    }),
    (Scene(objects=(0, 0), relation="above", background="orange"), APPLE + CAT, {
        "en": "an apple above a cat on an orange background", "ja": "猫の上にりんご、オレンジ色の背景",
        "zh": "苹果在猫的上方，橙色背景", "ko": "고양이 위쪽에 사과, 주황색 배경",
    }),
    (Scene(objects=(0,), background="grey"), BOOKS, {
        "en": "books on a gray background", "ja": "灰色の背景に積まれた本",
        "zh": "灰色背景上的一摞书", "ko": "회색 배경의 책 더미",
    }),
    (Scene(objects=(0,), background_said=False), APPLE, {"en": "an apple", "ja": "りんご", "zh": "苹果", "ko": "사과"}),
]  # fmt: skip


@pytest.mark.parametrize(("scene", "emoji", "wanted"), GOLDEN)
def test_golden(scene: Scene, emoji: str, wanted: dict[str, str]) -> None:
    scene = Scene(**{**vars(scene), "objects": tuple(glyph(e) for e in emoji)})
    assert {tag: caption(scene, tag) for tag in wanted} == wanted


def every_kind(objects: tuple[int, ...], background: str = "orange") -> list[Scene]:
    """A scene of every kind there are templates for."""
    single = [
        Scene(objects=objects[:1], size=size, position=position, background=background, background_said=said)
        for size, position, said in product(("small", "medium", "large"), POSITIONS, (True, False))
    ]
    pairs = [
        Scene(objects=objects, relation=relation, background=background, background_said=said)
        for relation, said in product((*RELATIONS, None), (True, False))
    ]
    return single + pairs


def assert_well_formed(text: str) -> None:
    assert text == text.strip()
    assert not re.search(r"  |[{}<>“”‘’]|None| ,|, *,|、、|，，", text), text


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("tier", ["all", "flags"])
def test_every_glyph_has_captions(tag: str, tier: str) -> None:
    draw = random.Random(0)
    count = len(load_objects(tier))
    for index in range(count):
        scene = Scene(objects=(index,))
        for number in range(len(templates(scene, tag))):
            assert_well_formed(caption(scene, tag, number, tier=tier))
        assert_well_formed(caption(Scene(objects=(index, (index + 1) % count), relation="below"), tag, draw, tier=tier))


@pytest.mark.parametrize("tag", TAGS)
def test_every_template_fills_and_says_its_words(tag: str) -> None:
    objects = (glyph(CAT), glyph(UMBRELLA))
    for background, scene in ((b, s) for b in COLOURS for s in every_kind(objects, b)):
        for number in range(len(templates(scene, tag))):
            text = caption(scene, tag, number)
            assert_well_formed(text)
            assert all(word(i, tag) in text for i in scene.objects)
            table = LANGUAGES[tag]
            colour_words = {*table.colours[background], *table.colour_nouns[background]}
            assert not scene.background_said or any(w in text for w in colour_words)


@pytest.mark.parametrize("tag", TAGS)
def test_all_tables_have_the_same_keys(tag: str) -> None:
    table, english = LANGUAGES[tag], LANGUAGES["en"]
    for field in ("colours", "colour_nouns", "sizes", "places", "short_places", "relations", "sides", "single", "pair"):
        assert set(getattr(table, field)) == set(getattr(english, field)), field
    assert set(table.colours) == set(COLOURS)


@pytest.mark.parametrize("tag", TAGS)
def test_captions_are_deterministic_and_vary(tag: str) -> None:
    scenes = every_kind((glyph(CAT), glyph(APPLE)))
    first, second, third = (
        [caption(s, tag, draw) for s in scenes] for draw in (random.Random(7), random.Random(7), random.Random(8))
    )
    assert first == second
    assert sum(a != b for a, b in zip(first, third)) > len(scenes) / 2


def test_random_captions_say_every_word_and_flip_relations() -> None:
    draw = random.Random(0)
    scene = Scene(objects=(glyph(CAT), glyph(APPLE)), relation="left_of", background="white")
    said = {caption(scene, "ja", draw) for _ in range(2000)}
    for wanted in ("猫", "ネコ", "ねこ", "りんご", "リンゴ", "白い背景", "白の背景", "りんごの左", "猫の右"):
        assert any(wanted in text for text in said), wanted
    assert not any("りんごの右" in text or "猫の左" in text for text in said), "the wrong way round"


DRAWN = {"en": "0459f5690a08f201", "ja": "cef711ee7b931b82", "zh": "81f42d89c4307df8", "ko": "71ee0a27c47170c7"}


@pytest.mark.parametrize("tag", TAGS)
def test_what_training_reads_does_not_change(tag: str) -> None:
    """Every template and the random wording of 500 scenes, over CLDR 41: a model trained again reads the same."""
    digest = hashlib.sha256()
    for tier in ("all", "flags"):
        glyphs = load_objects(tier)
        for i in range(250):
            shown = world_scene(5, i, glyphs)
            fixed = [caption(shown, tag, number, tier=tier) for number in range(len(templates(shown, tag)))]
            digest.update("\n".join([*fixed, caption(shown, tag, random.Random(i), tier=tier)]).encode())
    assert digest.hexdigest()[:16] == DRAWN[tag]


# ---- grammar ----


@pytest.mark.parametrize(
    ("phrase", "wanted"),
    [
        ("cat", "a cat"),
        ("apple", "an apple"),
        ("small apple", "a small apple"),
        ("orange", "an orange"),
        ("hourglass", "an hourglass"),
        ("unicorn", "a unicorn"),
        ("umbrella", "an umbrella"),
        ("ewe", "a ewe"),
        ("UFO", "a UFO"),
        ("SUV", "an SUV"),
        ("X-ray", "an X-ray"),
        ("8 ball", "an 8 ball"),
        ("one-piece swimsuit", "a one-piece swimsuit"),
        ("office building", "an office building"),
        ("O button (blood type)", "an O button (blood type)"),
        ("T-shirt", "a T-shirt"),
        ("grapes", "grapes"),
        ("large scissors", "large scissors"),
        ("bread", "bread"),
        ("bus", "a bus"),
        ("cactus", "a cactus"),
        ("glass of milk", "a glass of milk"),
        ("nest with eggs", "a nest with eggs"),
        ("money with wings", "money with wings"),
        ("clock showing one o'clock", "a clock showing one o'clock"),
        ("one o'clock", "one o'clock"),
        ("Statue of Liberty", "the Statue of Liberty"),
    ],
)
def test_english_articles(phrase: str, wanted: str) -> None:
    assert with_article(phrase) == wanted


def test_english_articles_over_all_words() -> None:
    for index in range(len(load_objects("all"))):
        said = with_article(word(index, "en"))
        found = re.match(r"(a|an) ([aeiou])", said)
        if found and found[1] == "a":
            assert re.match(r"a (uni|one|ewe|eu|use)", said), said


@pytest.mark.parametrize("colour", list(COLOURS))
def test_article_before_every_colour(colour: str) -> None:
    assert article(colour) == ("an" if colour == "orange" else "a")


PARTICLES = {"ga": ("이", "가"), "eun": ("은", "는"), "reul": ("을", "를"), "wa": ("과", "와")}


def test_korean_particles_over_all_words() -> None:
    """Against a second way of telling: the decomposed syllable ends in a final consonant or does not."""
    import unicodedata

    seen = set()
    for index in range(len(load_objects("all"))):
        name = word(index, "ko")
        last = name.rstrip(")")[-1]
        if not "가" <= last <= "힣":
            continue
        closed = len(unicodedata.normalize("NFD", last)) == 3
        form = LANGUAGES["ko"].forms(name)
        for field, (after_consonant, after_vowel) in PARTICLES.items():
            assert getattr(form, field) == (after_consonant if closed else after_vowel), name
        rieul = unicodedata.normalize("NFD", last)[-1] == "\u11af"
        assert form.ro == ("으로" if closed and not rieul else "로"), name
        seen.add((closed, rieul))
    assert seen == {(True, True), (True, False), (False, False)}


@pytest.mark.parametrize(
    ("name", "ga", "ro"),
    [
        ("고양이", "가", "로"),
        ("집", "이", "으로"),
        ("별", "이", "로"),
        ("CD", "가", "로"),
        ("티켓 (10)", "이", "으로"),  # 십
        ("키캡 1", "이", "로"),  # 일
        ("키캡 3", "이", "으로"),  # 삼
        ("키캡 5", "가", "로"),  # 오
        ("DVD", "가", "로"),
        ("ATM", "이", "으로"),  # 엠
        ("URL", "이", "로"),  # 엘
    ],
)
def test_korean_particles_after_digits_and_letters(name: str, ga: str, ro: str) -> None:
    form = LANGUAGES["ko"].forms(name)
    assert (form.ga, form.ro) == (ga, ro)


@given(st.integers(0, 11171))
def test_final_consonant_is_the_syllables_third_part(offset: int) -> None:
    assert final_consonant("가나" + chr(0xAC00 + offset)) == offset % 28


# ---- words ----


@pytest.mark.parametrize(
    ("tag", "cats", "dogs"),
    [
        ("en", ("cat",), ("dog",)),
        ("ja", ("猫", "ネコ", "ねこ"), ("犬", "イヌ")),
        ("zh", ("猫", "小猫"), ("狗", "小狗")),
        ("ko", ("고양이", "야옹이"), ("개", "강아지", "멍멍이")),
    ],
)
def test_plain_words_mean_the_whole_animal(tag: str, cats: tuple[str, ...], dogs: tuple[str, ...]) -> None:
    for emoji, wanted in ((CAT, cats), (DOG, dogs)):
        assert (word(glyph(emoji), tag), *captions.synonyms(tag).get(glyph(emoji), ())) == wanted


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("tier", ["everyday", "all", "flags"])
def test_no_word_means_two_glyphs(tag: str, tier: str) -> None:
    owner: dict[str, int] = {}
    more = captions.synonyms(tag, tier)
    for index in range(len(load_objects(tier))):
        for said in (word(index, tag, tier), *more.get(index, ())):
            assert owner.setdefault(said.casefold(), index) == index, said
    assert captions.ambiguous(tag, tier) == {}
    assert captions.equivalents(tag, tier) == {i: {i} for i in range(len(load_objects(tier)))}


def test_ambiguous_words_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    words = captions._words("en", "everyday")
    shared = list(words.words)
    shared[glyph(DOG)] = ("Cat",)
    monkeypatch.setattr(words, "words", shared)
    assert {w: [g.codepoints for g in same] for w, same in captions.ambiguous("en").items()} == {"Cat": [DOG, CAT]}
    assert captions.equivalents("en")[glyph(DOG)] == {glyph(CAT), glyph(DOG)}


@pytest.mark.parametrize("tag", TAGS)
def test_tables_name_glyphs_that_exist(tag: str) -> None:
    known = {g.codepoints.replace("\ufe0f", "") for tier in ("all", "flags") for g in load_objects(tier)}
    assert set(LANGUAGES[tag].things) <= known


def test_a_glyph_is_listed_once() -> None:
    with pytest.raises(ValueError, match="🐈 is listed twice"):
        things("🐈 cat; 🐕 dog\n🐈 kitty")


@pytest.mark.parametrize("tag", TAGS)
def test_vocabulary_holds_every_word_and_colour(tag: str) -> None:
    texts = captions.vocabulary_texts(tag)
    letters = set("".join(texts))
    draw = random.Random(99)
    scenes = [s for i in range(0, 836, 19) for s in every_kind((i, 835 - i), draw.choice(list(COLOURS)))]
    assert {c for s in scenes for c in caption(s, tag, draw)} <= letters
    assert texts == captions.vocabulary_texts(tag)


def test_demo_prompts_are_captions() -> None:
    """Each says one thing on one colour, in words that training uses."""
    for tag, prompt in DEMO_PROMPTS:
        matches = [
            g.codepoints
            for g in load_objects("everyday")
            if word(g.index, tag) in prompt
            for colour in COLOURS
            if caption(Scene(objects=(g.index,), background=colour), tag) == prompt
        ]
        assert len(matches) == 1, prompt
    assert {tag for tag, _ in DEMO_PROMPTS} == set(TAGS)


def test_colours_are_far_apart() -> None:
    rgb = [c.rgb for c in COLOURS.values()]
    nearest = min(sum((p - q) ** 2 for p, q in zip(a, b)) ** 0.5 for i, a in enumerate(rgb) for b in rgb[:i])
    assert len(rgb) == 12
    assert nearest > 60


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"background": "bleu"}, "unknown colour 'bleu'.*Did you mean 'blue'"),
        ({"size": "smal"}, "unknown size 'smal'.*Did you mean 'small'"),
        ({"position": "top-left", "size": "small"}, "unknown position 'top-left'.*Did you mean 'top left'"),
        ({"objects": (0, 1), "relation": "left"}, "unknown relation 'left'.*Did you mean 'left_of'"),
        ({"objects": (836,)}, "no glyph 836 in the tier 'everyday'. Allowed: 0 to 835"),
        ({"objects": (-1,)}, "no glyph -1"),
    ],
)
def test_errors_teach(change: dict[str, object], message: str) -> None:
    scene = Scene(**{"objects": (0,), **change})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        caption(scene, "en", tier="everyday")


def test_unknown_language_and_template() -> None:
    with pytest.raises(UserError, match=r"unknown caption language 'jp'.*Did you mean 'ja'"):
        caption(Scene(objects=(0,)), "jp")
    with pytest.raises(UserError, match=r"no caption template 99.*Allowed: 0 to"):
        caption(Scene(objects=(0,)), "en", 99)

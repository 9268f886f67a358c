"""Which language a prompt is in, and whether that is said to be sure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kotoe.errors import UserError
from kotoe.language import Detected, canonical, choose, covering, detect, has_letters, of_script, primary, script_of

FOUR = ("en", "ja", "zh", "ko")


@pytest.mark.parametrize(
    ("text", "tag", "source"),
    [
        ("a cat on a blue background", "en", "detected"),
        ("青い背景に猫", "ja", "detected"),
        ("ピンクの背景にタコ", "ja", "detected"),
        ("ﾈｺ", "ja", "detected"),  # half-width kana
        ("蓝色背景上的猫", "zh", "detected"),
        ("绿色背景上的熊猫", "zh", "detected"),
        ("白色背景上的向日葵", "zh", "detected"),  # every character is Japanese too; 的 is not
        ("紅色背景上的貓", "zh", "detected"),
        ("파란 배경의 고양이", "ko", "detected"),
        ("파란 배경의 猫", "ko", "detected"),
        ("図書館", "ja", "detected"),  # 図 is Japanese only
        ("桜", "ja", "detected"),
        ("猫", "zh", "unsure"),
        ("自動車", "zh", "unsure"),
        ("目的地", "zh", "unsure"),
        ("", "en", "unsure"),
        ("🐱 123", "en", "unsure"),
        ("un café", "en", "unsure"),
        ("a sign saying こんにちは", "en", "unsure"),
        ("ｃａｔ", "en", "unsure"),  # full-width letters are Latin, and unusual
    ],
)
def test_detect(text: str, tag: str, source: str) -> None:
    found = detect(text, FOUR, "en")
    assert (found.tag, found.source) == (tag, source)


def test_fewer_languages_leave_less_doubt() -> None:
    assert detect("猫", ("en", "zh")) == detect("蓝", ("en", "zh"))
    assert detect("猫", ("en", "ja")).tag == "ja"
    assert detect("猫", ("en", "ja")).source == "unsure"
    assert detect("кот", ("en", "ru")).source == "detected"
    assert detect("кот", ("en", "ru", "uk")).source == "unsure"
    assert detect("a cat", ("en", "de")).source == "unsure"
    assert detect("แมว", ("en", "th")).tag == "th"


def test_where_the_script_leaves_a_choice_the_fewest_tokens_decide() -> None:
    """French and Ukrainian, Russian: one encoder reads them all. A doubt that changes no reader is none."""
    tokens = {"en": 5, "fr": 3, "uk": 4, "ru": 4, "ja": 6, "zh": 6}
    reader = {"fr": "mul", "uk": "mul", "ru": "mul"}

    def spelt(tag: str) -> tuple[object, int]:
        return reader.get(tag, tag), tokens[tag]

    assert detect("un chat", ("en", "fr"), spelt=spelt) == Detected(tag="fr", source="detected")
    assert detect("кот", ("en", "ru", "uk"), spelt=spelt) == Detected(tag="ru", source="shared")
    assert detect("un café", ("en", "fr"), spelt=spelt) == Detected(tag="fr", source="detected")
    assert detect("un café", ("en",), spelt=spelt) == Detected(tag="en", source="unsure")
    reader.clear()
    assert detect("кот", ("en", "uk", "ru"), spelt=spelt) == Detected(tag="ru", source="unsure")
    assert detect("猫", ("ja", "zh"), spelt=spelt) == Detected(tag="zh", source="unsure")
    tokens["ja"] = 1
    assert detect("猫", ("ja", "zh"), spelt=spelt) == Detected(tag="ja", source="detected")
    assert detect("的猫", ("ja", "zh"), spelt=spelt) == Detected(tag="zh", source="detected")  # characters come first


def test_simplified_and_traditional() -> None:
    both = ("zh-Hans", "zh-Hant", "en")
    assert detect("蓝色背景上的猫", both, "en").tag == "zh-Hans"
    assert detect("藍色背景上的貓", both, "en").tag == "zh-Hant"


@pytest.mark.parametrize("text", ["кошка", "แมว", "قطة"])
def test_a_script_the_model_lacks(text: str) -> None:
    with pytest.raises(UserError, match=r"this model has no language written in it\. Allowed: en, ja, ko, zh"):
        detect(text, FOUR)
    with pytest.raises(UserError, match="Han"):
        detect("猫", ("en", "ko"))
    with pytest.raises(UserError, match="Latin"):
        detect("cat", ("ja",))


@given(st.text())
def test_any_text_has_an_answer_or_a_reason(text: str) -> None:
    try:
        found = detect(text, FOUR, "en")
    except UserError as error:
        reason = str(error)
    else:
        reason = f"--language is {found.tag}"
        assert found.tag in FOUR
    assert "--language" in reason


@pytest.mark.parametrize(
    ("asked", "tag"), [("ja", "ja"), ("JA", "ja"), ("ja-JP", "ja"), ("zh_CN", "zh"), ("en-Latn-GB", "en")]
)
def test_choose(asked: str, tag: str) -> None:
    assert choose(asked, FOUR) == tag


def test_choose_refuses_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'jp' is not in this model\. Allowed: en, ja, ko, zh\. Did you mean 'ja'\?"):
        choose("jp", FOUR)
    with pytest.raises(UserError, match=r"'zh' is ambiguous\. Allowed: zh-Hans, zh-Hant"):
        choose("zh", ("zh-Hans", "zh-Hant"))
    assert choose("zh", ("zh-Hans", "en")) == "zh-Hans"


@pytest.mark.parametrize(
    ("asked", "tag"),
    [("FR", "fr"), ("fra", "fr"), ("zh_hant_tw", "zh-Hant-TW"), ("por-br", "pt-BR"), ("no", "nb"), ("frr", "frr"),
     ("arb", "ar"), ("swh", "sw"), ("en-Latn-GB", "en-Latn-GB")],
)  # fmt: skip
def test_canonical(asked: str, tag: str) -> None:
    assert canonical(asked) == tag


def test_parts_of_a_tag() -> None:
    assert primary("ZHO_hant") == "zh"
    assert [script_of(t) for t in ("zh", "zh-TW", "zh_CN", "zh-Hant-CN", "sr-Latn", "pt-BR")] == [
        None, "Hant", "Hans", "Hant", "Latn", None,
    ]  # fmt: skip


def test_covering() -> None:
    assert covering("eng", FOUR) == "en"
    assert covering("zh-TW", FOUR) == "zh"
    assert covering("fr", FOUR) is None
    assert covering("zh-TW", ("zh-Hans", "en")) is None
    assert covering("zh", ("zh-Hans", "en")) == "zh-Hans"
    with pytest.raises(UserError, match="ambiguous"):
        covering("zh", ("zh-Hans", "zh-Hant"))


@pytest.mark.parametrize(
    ("text", "tag"),
    [("แมว", "th"), ("ネコ", "ja"), ("고양이", "ko"), ("γάτα", "el"), ("蓝色背景上的猫", "zh"), ("図書館", "ja"),
     ("a cat", None), ("un café", None), ("кошка", None), ("猫", None), ("", None), ("a sign saying こんにちは", None)],
)  # fmt: skip
def test_a_script_that_tells_the_language(text: str, tag: str | None) -> None:
    """Whatever languages a model has: Latin and Cyrillic never do, Han characters sometimes."""
    assert of_script(text) == tag


def test_letters() -> None:
    assert has_letters("a 1")
    assert not has_letters("1 🐱 !")


def test_an_unnamed_conditioner_reads_what_no_other_does() -> None:
    """A folder that doesn't say its language, as Bingsu's Korean one, with others put beside it."""
    for text in ("파란 배경의 고양이", "แมว"):
        assert detect(text, ("und", "ja", "zh"), "und") == Detected(tag="und", source="unsure")
    assert detect("青い背景に猫", ("und", "ja"), "und").tag == "ja"
    assert detect("猫咪", ("und", "ko"), "und") == Detected(tag="und", source="unsure")
    with pytest.raises(UserError, match="Thai"):
        detect("แมว", ("en", "ja"), "en")

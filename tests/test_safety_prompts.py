"""The prompt check: what it finds and lets pass in four languages, in disguise and not, and the reasons it gives."""

from __future__ import annotations

import importlib.util
import json
import time
import unicodedata
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kotoe.config import dumps, from_json
from kotoe.record import Verdict
from kotoe.safety import prompts, reasons
from kotoe.safety.prompts import check_prompt, data, find, folded

ROOT = Path(__file__).resolve().parent.parent
LANGUAGES = ("en", "ja", "zh", "ko")


def _benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("safety_benchmark", ROOT / "benchmarks/safety.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark = _benchmark()


def terms(prompt: str, language: str | None = None) -> list[str]:
    return [one.written for one in find(prompt, language)]


# --- Measured


def test_the_list_is_as_asked_for() -> None:
    """Four languages, 60 prompts each and more, half of them innocent, a third held out, every category."""
    rows = benchmark.rows()
    assert len({row["prompt"] for row in rows}) == len(rows)
    for language in LANGUAGES:
        own = [row for row in rows if row["language"] == language and row["split"] != "hard"]
        innocent = [row for row in own if row["category"] is None]
        held_out = [row for row in own if row["split"] == "held-out"]
        assert len(own) >= 60
        assert 0.45 < len(innocent) / len(own) < 0.55
        assert 0.3 < len(held_out) / len(own) < 0.36
        assert {row["category"] for row in own} == {None, "sexual", "minors", "violence"}
        assert {"spacing", "width"} <= {row["kind"] for row in own}


# language: found at least, false alarms at most, of all; as benchmarks/safety.md has them
FLOORS = {
    "dev": {"en": (22, 0), "ja": (23, 0), "zh": (23, 0), "ko": (22, 0)},
    "held-out": {"en": (11, 0), "ja": (11, 0), "zh": (12, 0), "ko": (11, 0)},
    "hard": {"en": (1, 5), "ja": (0, 5), "zh": (1, 5), "ko": (0, 4)},
}


@pytest.mark.parametrize("split", FLOORS)
def test_recall_and_false_alarms(split: str) -> None:
    counts = benchmark.labelled()[split]
    for language, (found, alarms) in FLOORS[split].items():
        assert counts[language]["found"][0] >= found, list(benchmark.wrong())
        assert counts[language]["false alarms"][0] <= alarms, list(benchmark.wrong())


def test_the_measure_bites(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without innocent words, or with word boundaries alone (which other programs have), both figures are far off."""
    whole = data()

    def measured(**changes: object) -> dict[str, dict[str, list[int]]]:
        shorter = prompts.Data(**{**vars(whole), **changes})  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            patch.setattr(prompts, "data", lambda: shorter)
            return benchmark.labelled()["dev"]  # type: ignore[no-any-return]

    plain = measured(innocent=())
    assert all(plain[language]["false alarms"][0] >= 4 for language in LANGUAGES)

    def as_words(prompt: str) -> bool:
        words = set("".join(c if c.isalnum() else " " for c in prompt.lower()).split())
        return any(term.said in words for term in whole.terms)

    rows = [r for r in benchmark.rows() if r["split"] == "dev" and r["category"]]
    seen = {x: sum(as_words(r["prompt"]) for r in rows if r["language"] == x) for x in LANGUAGES}
    assert seen["ja"] + seen["zh"] <= 8  # of 46
    assert seen["en"] >= 10  # of 22


def test_disguises() -> None:
    """No innocent prompt is flagged for being spaced, widened or decomposed; of terms nine in ten are still found."""
    counts = benchmark.disguised()
    assert len(counts) >= 18
    for name, by_language in counts.items():
        for language, count in by_language.items():
            found, of = count["found"]
            assert found >= 0.85 * of, (name, language)
            assert count["false alarms"][0] <= (1 if name == "katakana" else 0), (name, language)
    exact = ("zero-width spaces", "strokes through", "full width", "decomposed", "half-width katakana", "loose jamo")
    for name in exact:
        assert all(c["found"][0] == c["found"][1] for c in counts[name].values()), name


@pytest.mark.needs("cldr")
def test_names_of_emoji_pass() -> None:
    """Texts that were written for something else. What is left is the sign for adults only."""
    counts = benchmark.emoji_names()
    assert counts.keys() == set(LANGUAGES)
    for language, (alarms, of) in counts.items():
        assert of > 3000
        assert alarms <= 2, language


def test_the_card_is_up_to_date() -> None:
    """Its tables are what is measured now (the row of emoji names only where they are at hand)."""
    card = (ROOT / "benchmarks/safety.md").read_text("utf-8")
    assert data().sha256[:12] in card, "run: python benchmarks/safety.py --card benchmarks/safety.md"
    tables = benchmark.tables({**benchmark.measured(), "emoji_names": {}})
    for line in tables.splitlines():
        assert line in card, line


# --- What is a word


@pytest.mark.parametrize(
    ("innocent", "not_innocent"),
    [
        ("裸眼で星を見る", "裸で星を見る"),
        ("赤裸々な告白", "赤い裸体"),
        ("ヌードル", "ヌード"),
        ("ピエロの絵", "エロの絵"),
        ("섹션 페이지", "섹스 페이지"),
        ("성기사 그림", "성기 그림"),
        ("참수리 사진", "참수 사진"),
        ("特色情侣餐厅", "色情餐厅"),
        ("男性交通警察", "性交"),
        ("做爱心便当", "做爱"),
        ("Scunthorpe in Essex", "sex in Essex"),
        ("an analysis of a cockpit with a sextant", "anal"),
        ("the naked eye", "the naked man"),
        ("殺菌灯", "殺害"),
    ],
)
def test_look_alikes(innocent: str, not_innocent: str) -> None:
    assert terms(innocent) == []
    assert len(terms(not_innocent)) == 1


@pytest.mark.parametrize(
    ("prompt", "written"),
    [
        ("a n u d e woman", ["n u d e"]),
        ("n u d e  w o m a n", ["n u d e"]),
        ("a n a l y s i s", []),
        ("p-o-r-n", ["p-o-r-n"]),
        ("nu-de", ["nu-de"]),
        ("one-man-show", []),
        ("nu de", []),  # the pen is on the table
        ("p.o.r.n.o.g.r.a.p.h.y", ["p.o.r.n.o.g.r.a.p.h.y"]),
        ("女性 交差点", []),
        ("ピ エ ロ", []),
        ("裸 眼", []),
        ("裸 眼鏡", ["裸"]),
        ("全裸 眼鏡", ["全裸"]),
        ("세ㄱ스", ["세ㄱ스"]),
        ("누드ㅋㅋ", ["누드"]),
        ("ㄴ ㅜ ㄷ ㅡ", ["ㄴ ㅜ ㄷ ㅡ"]),
        ("ｎｕｄｅ ⓝⓤⓓⓔ", ["ｎｕｄｅ", "ⓝⓤⓓⓔ"]),
        ("nüde", ["nüde"]),
        ("nud3! s3x!", ["nud3", "s3x"]),
        ("pоrn", ["pоrn"]),
        ("(nude:1.3) [naked]", ["nude", "naked"]),
        ("nu(de)", ["nu(de"]),
        ("nu(de:1.2), cat", ["nu(de"]),
        ("(色:1.1)(情:1.2)", ["色:1.1)(情"]),
        ("（裸：１.２）体", ["裸：１.２）体"]),
        ("at 12:30 (nude)", ["nude"]),
        ("ヌードルとヌード", ["ヌード"]),
        ("no nudity, fully clothed", []),
        ("1girl, 4k, mp3", []),
    ],
)
def test_as_it_is_written(prompt: str, written: list[str]) -> None:
    assert terms(prompt) == written


@pytest.mark.parametrize(
    ("prompt", "minors"),
    [
        ("naked, 12 years old", True),
        ("naked, 18 years old", False),
        ("naked 17yo", True),
        ("nude, 15th century", False),
        ("裸の十二歳", True),
        ("裸、１２歳", True),
        ("裸、20歳", False),
        ("누드 15살", True),
        ("누드, 15세기", False),
        ("裸体 十七岁", True),
        ("a child with a kite, 8 years old", False),
        ("child pornography", True),
        ("naked man; a photo of the house in A minor light", True),  # beside a sexual term, in doubt
    ],
)
def test_minors(prompt: str, minors: bool) -> None:
    """A word or age for minors counts beside a sexual term only; and then it is blocked, whatever was asked."""
    verdict = check_prompt(prompt, action="flag")
    assert any(one.category == "sexual-minors" for one in verdict.found) == minors
    assert verdict.action == ("block" if minors else "flag")
    assert verdict.allowed == (not verdict.found)


# --- The verdict


@pytest.mark.parametrize(
    ("prompt", "language", "reason"),
    [
        ("a nude man", "en", "“nude” in the prompt: sexual content"),
        ("裸の男", "ja", "プロンプトの「裸」: 性的な内容"),
        ("裸男的照片", "zh-Hant", "提示词中的“裸”: 色情内容"),
        ("알몸 남자", "ko", "프롬프트의 ‘알몸’: 성적인 내용"),
        ("un homme nude", "fr", "“nude” in the prompt: sexual content"),
        ("死体と裸の男", "ja", "プロンプトの「死体」: 残虐な暴力; プロンプトの「裸」: 性的な内容"),
        (
            "a naked boy, kid",
            "en",
            "“naked” in the prompt: sexual content; “kid” in the prompt: sexual content with minors",
        ),
    ],
)
def test_reasons(prompt: str, language: str, reason: str) -> None:
    verdict = check_prompt(prompt, language=language)
    assert verdict.reason == reason
    assert from_json(Verdict, json.loads(dumps(verdict))) == verdict
    assert (verdict.checker, verdict.checker_sha256) == ("kotoe-terms", data().sha256)
    assert verdict.score == len(verdict.found)


def test_the_language_of_a_term_is_the_prompts_where_several_have_it() -> None:
    for language in ("ja", "zh"):
        (found,) = find("全裸", language)
        assert (found.term, found.language) == ("全裸", language)


def test_where_it_is() -> None:
    """In code points of the prompt as given, zero-width ones and all."""
    (found,) = find("a cat, n\u200bu\u200bd\u200be")
    assert (found.start, found.end, found.written) == (7, 14, "n\u200bu\u200bd\u200be")
    (found,) = find(unicodedata.normalize("NFD", "큰 누드 사진"))
    assert unicodedata.normalize("NFC", found.written) == "누드"


@given(st.text(st.sampled_from("裸眼全体ヌードルぬ섹스누드ㅅㅔㄱnudeporn 0３.-(　\u200b\u0336ﾞ々ー:"), max_size=30))
def test_any_text_can_be_checked(prompt: str) -> None:
    """Whatever is found stands where it is said to, from left to right."""
    found = find(prompt)
    for one in found:
        assert 0 <= one.start < one.end <= len(prompt)
        assert prompt[one.start : one.end] == one.written
        assert one.category in reasons.CATEGORIES
    for one, other in zip(found, found[1:]):
        assert (one.start, one.end) <= (other.start, other.end)


@pytest.mark.parametrize(
    "prompt",
    [
        "裸" * 20_000,
        "0" * 20_000,
        "a" + "\u0301\u0323" * 20_000,
        "n u d e " * 5_000,
        "p.o-" * 5_000,
        "ㅅㅔㄱㅅㅡ" * 4_000,
    ],
    ids=["finds", "digits", "marks", "spaced", "dotted", "jamo"],
)
def test_long_prompts_take_no_longer_than_they_are_long(prompt: str) -> None:
    began = time.process_time()
    find(prompt)
    assert time.process_time() - began < 10  # a second or two on a busy machine; minutes if it grew with the square


def test_the_list_itself() -> None:
    """Every term is found as it is, no innocent word is one alone, and none of either is there for nothing."""
    document = json.loads(prompts.TERMS.read_text("utf-8"))
    assert document["terms"].keys() == document["innocent"].keys() == set(LANGUAGES)
    whole = data()
    for term in whole.terms:
        if term.category != "minor":
            found = {one.category for one in find(term.said, term.language)}
            assert term.category in found, term
    for word in whole.innocent:
        assert not any(one.start == 0 and one.end == len(word.said) for one in find(word.said, word.language)), word
        assert any(term.text in word.text or word.text[:3] in term.text for term in whole.terms), word
    forms = document["forms"]
    everything = "".join(forms)
    assert len(set(everything)) == len(everything)
    assert [x.char for x in folded("歳歲", whole.forms)] == ["岁", "岁"]

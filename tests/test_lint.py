"""What is found before anything is spent, and what it says it will cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kotoe.errors import UserError
from kotoe.localize.lint import Finding, encoders, lint, of_languages, over_limit, rows, unknown_pieces
from kotoe.localize.localize import forecast, localize
from kotoe.localize.plans import Texts
from kotoe.localize.settings import Localizing
from tiny import LINES, tiny_bundle, tiny_conditioner, tiny_tokenizer

PAIRS = Texts(
    source=["a red cat", "an owl", "two dogs", "a castle", "a red owl", "two red dogs", "a moon", "a red castle"],
    target=["빨간 고양이", "부엉이", "강아지 두 마리", "성", "빨간 부엉이", "빨간 강아지 두 마리", "달", "빨간 성"],
)


def said(found: list[Finding]) -> str:
    return "\n".join(map(str, found))


def wanted(folder: Path, **changed: Any) -> Localizing:
    values: dict[str, Any] = {"base": "tiny", "language": "ko", "run": str(folder / "run"), "pairs": ("pairs.tsv",)}
    return Localizing(**{**values, "steps": 2, "batch_size": 8, "vocab_size": 277, "long_prompt": "cut", **changed})


def test_clean_texts_have_no_findings() -> None:
    assert rows(PAIRS) == []
    assert of_languages(PAIRS.target, ("ko",)) == []
    assert over_limit(tiny_tokenizer("en"), PAIRS.source, "translations", "error") == []


def test_duplicates_contradictions_and_the_untranslated_are_counted() -> None:
    texts = Texts(source=["a cat", "a cat", "a dog", "BBC"], target=["고양이", "고양이", "고양이", "BBC"])
    found = said(rows(texts))
    assert "warning: 1 of 4 pairs are there more than once" in found
    assert "note: 1 texts have several translations: '고양이' is 'a cat', 'a dog'" in found
    assert "warning: 1 of 4 pairs say the same on both sides" in found


@pytest.mark.parametrize(("strange", "level"), [(1, "note"), (4, "warning"), (40, "error")])
def test_texts_in_another_script_are_shown_with_their_share(strange: int, level: str) -> None:
    texts = ["빨간 고양이"] * (60 - strange) + ["a red cat"] * strange
    (found,) = of_languages(texts, ("ko",))
    assert found.level == level
    assert f"{strange / 60:.1%} of the texts are not in ko by their script: 'a red cat'" in found.what


def test_a_script_that_nobody_asked_for_is_one_of_them() -> None:
    (found,) = of_languages(["빨간 고양이", "แมวสีแดง"], ("ko",))
    assert "50.0% of the texts are not in ko by their script: 'แมวสีแดง'" in found.what


def test_latin_letters_and_signs_tell_nothing() -> None:
    assert of_languages(["a red cat", "!?"], ("fi",)) == []
    assert of_languages(["123", "!?"], ("ko",)) == []


def test_texts_over_the_limit_stop_or_are_said() -> None:
    long = ["a red cat on a blue background " * 3, "a cat"]
    (stops,) = over_limit(tiny_tokenizer("en"), long, "translations", "error")
    assert stops.level == "error"
    assert "1 of 2 translations have over 14 tokens" in stops.what
    (cut,) = over_limit(tiny_tokenizer("en"), long, "translations", "cut")
    assert cut.level == "warning"
    assert "cut off" in cut.do


def test_unknown_pieces_are_counted(tmp_path: Path) -> None:
    from kotoe.localize.vocabulary import train_sentencepiece

    tokenizer = train_sentencepiece(LINES["ko"], tmp_path / "t", 34, model_type="bpe", byte_fallback=False)
    (found,) = unknown_pieces(tokenizer, ["漢 字", "성"])
    assert found.level == "warning"
    assert "1 of 2 texts have what the tokenizer reads as unknown: '漢 字'" in found.what
    assert unknown_pieces(tiny_tokenizer("ko"), ["漢字"]) == []  # spelt in bytes


def test_encoders_that_are_fed_otherwise() -> None:
    english, korean = tiny_conditioner("en", 32), tiny_conditioner("ko", 32)
    found = said(encoders(english, korean))
    assert "pads with a token of its own, en's with EOS" in found
    assert "sets no BOS, en's a" in found
    shorter = replace(korean, tokenizer=replace(korean.tokenizer, max_tokens=12))
    assert "learnt from 16 states and will read 12" in said(encoders(english, shorter))
    assert encoders(english, english) == []


def test_everything_together_worst_first(tmp_path: Path) -> None:
    korean = tiny_conditioner("ko", 32)
    texts = Texts(source=[*PAIRS.source, "x " * 30], target=[*PAIRS.target, "a cat"])
    found = lint(tiny_bundle(), wanted(tmp_path, dropout=0.0, long_prompt="error"), korean, texts)
    assert [f.level for f in found] == sorted((f.level for f in found), key=["error", "warning", "note"].index)
    assert found[0].level == "error"
    assert "no text is emptied" in said(found)
    changes = lint(tiny_bundle(), wanted(tmp_path, plan="kv", student="x"), korean, None, PAIRS.target)
    assert "kv changes the UNet: en will draw otherwise" in said(changes)


def test_an_error_stops_before_training_and_everything_is_told(tmp_path: Path) -> None:
    told: list[Finding] = []
    foreign = Texts(source=PAIRS.source, target=PAIRS.source)
    with pytest.raises(UserError, match=r"100.0% of the texts are not in ko"):
        localize(tiny_bundle(), wanted(tmp_path), pairs=foreign, progress=False, on_finding=told.append)
    assert any(f.level == "error" for f in told)
    assert not (tmp_path / "run" / "state.pt").exists()


def test_a_forecast_holds_and_leaves_nothing(tmp_path: Path) -> None:
    """Seconds a step against what training then takes; the margin is this machine's, which others use too."""
    asked = wanted(tmp_path, steps=40)
    cost = forecast(tiny_bundle(), asked, pairs=PAIRS)
    assert not (tmp_path / "run").exists()
    assert cost["steps"] == 40
    assert cost["seconds"] == pytest.approx(40 * cost["step_s"], abs=0.06)
    found = localize(tiny_bundle(), asked, pairs=PAIRS, progress=False)
    assert 0.2 < cost["seconds"] / found.report["seconds"] < 5
    assert 0.1 < cost["peak_memory_gib"] < 8

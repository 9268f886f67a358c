"""The list of emoji and their names, as read from Unicode's own files."""

from __future__ import annotations

from pathlib import Path

import pytest

from kotoe.data import cldr
from kotoe.errors import UserError

pytestmark = [pytest.mark.needs("cldr"), pytest.mark.needs("unicode-data")]


def test_tiers_count_what_the_design_counts_on() -> None:
    everyday, everything, flags = (cldr.load_objects(tier) for tier in cldr.TIERS)
    assert (len(everyday), len(everything), len(flags)) == (836, 1580, 269)
    assert everything[: len(everyday)] == everyday
    assert {g.group for g in everyday} == set(cldr.EVERYDAY_GROUPS)
    assert {g.group for g in flags} == {"Flags"}


def test_indices_count_through_all_tiers_and_glyphs_are_different() -> None:
    glyphs = cldr.load_objects("all") + cldr.load_objects("flags")
    assert [g.index for g in glyphs] == list(range(len(glyphs)))
    assert len({cldr.key(g.codepoints) for g in glyphs}) == len(glyphs)


def test_no_skin_tones_and_nothing_newer_than_the_names() -> None:
    glyphs = cldr.load_objects("all")
    assert not [g for g in glyphs if any(0x1F3FB <= ord(c) <= 0x1F3FF for c in g.codepoints)]
    assert "🫎" not in {g.codepoints for g in glyphs}, "the moose is Emoji 15.0"


@pytest.mark.parametrize(
    ("language", "name"),
    [("en", "cat"), ("ja", "ネコ"), ("zh", "猫"), ("ko", "고양이"), ("zh-Hant", "貓"), ("de", "Katze")],
)
def test_every_language_names_the_cat(language: str, name: str) -> None:
    assert cldr.names(language)["🐈"].tts == name


@pytest.mark.parametrize("language", ["en", "ja", "zh", "ko"])
def test_every_glyph_has_a_name(language: str) -> None:
    known = cldr.names(language)
    glyphs = cldr.load_objects("all") + cldr.load_objects("flags")
    assert [g for g in glyphs if cldr.key(g.codepoints) not in known] == []


def test_locales_inherit_as_cldr_says() -> None:
    assert cldr.names("en-AU")["🤫"].tts == "shooshing face"  # its own
    assert cldr.names("en-AU")["🐈"].tts == "cat"  # from en, by way of en_001
    assert cldr.names("zh-TW")["🐈"].tts == "貓"  # traditional, though the tag cut short says zh
    assert cldr.names("zh_Hant_MO")["←"].tts == "向左箭嘴"  # from zh_Hant_HK, which no cutting finds
    assert not [n for n in cldr.names("es-MX").values() if "↑" in n.tts and len(n.tts) == 3]


def test_languages_are_tags_one_can_ask_for() -> None:
    tags = cldr.languages()
    assert len(tags) > 100
    assert {"en", "ja", "zh", "ko", "pt-PT"} <= set(tags)
    assert cldr.names("pt-PT")


def test_unknown_language_and_tier_are_told_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown CLDR language 'jaa'.*Did you mean 'ja'"):
        cldr.names("jaa")
    with pytest.raises(UserError, match=r"unknown tier 'evryday'.*Did you mean 'everyday'"):
        cldr.load_objects("evryday")


def test_missing_files_say_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KOTOE_CLDR", str(tmp_path))
    monkeypatch.setenv("KOTOE_EMOJI_TEST", str(tmp_path / "none.txt"))
    with pytest.raises(UserError, match=r"unicode-cldr-core.*unicode\.org.*KOTOE_CLDR"):
        cldr.names("ja")
    with pytest.raises(UserError, match=r"unicode-data.*unicode\.org.*KOTOE_EMOJI_TEST"):
        cldr.load_objects()
    (tmp_path / "none.txt").write_text("<html>not found</html>")
    with pytest.raises(UserError, match="lists no emoji"):
        cldr.load_objects()


def _annotations(folder: Path, **locales: str) -> None:
    for part in ("annotations", "annotationsDerived"):
        (folder / "common" / part).mkdir(parents=True, exist_ok=True)
    for locale, body in locales.items():
        (folder / "common" / "annotations" / f"{locale}.xml").write_text(body, encoding="utf-8")


def test_inheritance_marks_are_skipped_and_folders_are_overridable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    row = '<annotation cp="🐈" type="tts">{}</annotation><annotation cp="🐈">{}</annotation>'
    page = "<ldml><annotations>{}</annotations></ldml>"
    _annotations(tmp_path, root=page.format(""), xx=page.format(row.format("miau", "a | b &amp; c")))
    _annotations(tmp_path, xx_YY=page.format(row.format("↑↑↑", "↑↑↑")))
    monkeypatch.setenv("KOTOE_CLDR", str(tmp_path))
    assert cldr.names("xx-YY")["🐈"] == cldr.Name(tts="miau", keywords=("a", "b & c"))


def test_entities_and_broken_files_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bomb = (
        '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><x><annotation cp="🐈" type="tts">&b;</annotation></x>'
    )
    _annotations(tmp_path, root="<ldml/>", xx=bomb, yy="<ldml><annotations>")
    monkeypatch.setenv("KOTOE_CLDR", str(tmp_path))
    with pytest.raises(UserError, match="declares the XML entity 'a'"):
        cldr.names("xx")
    with pytest.raises(UserError, match="not well-formed"):
        cldr.names("yy")

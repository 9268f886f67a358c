"""Fertility, coverage and lengths: known answers, sums that hold on any text, and what a report holds."""

from __future__ import annotations

import json
import tempfile
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kotoe.errors import UserError
from kotoe.localize import fertility, fertility_report
from kotoe.localize.fertility import BYTES, PIECE, UNKNOWN, corpus, graphemes, measure, ratio, vocabulary
from kotoe.localize.vocabulary import train_tokenizer
from kotoe.tokenizers import load_tokenizer, tokenizer_from_files
from kotoe.tokens import Tokenizer
from tiny import LINES

TEXTS = [line for lines in LINES.values() for line in lines]
MADE: dict[str, dict[str, Any]] = {
    "clip": {"family": "clip", "vocab_size": 600},
    "bytes": {"family": "sentencepiece", "vocab_size": 370, "normalization": "identity"},
    "no bytes": {"family": "sentencepiece", "vocab_size": 110, "normalization": "identity", "byte_fallback": False},
    "xlm-roberta": {"family": "xlm-roberta", "vocab_size": 120},
    "bert": {"family": "bert", "vocab_size": 200},
}
SPACES = st.sampled_from("abcdegiort .,'猫青い背景蓝色的파란배경고ÉéXQ☃😀")
ANY = st.lists(st.text(SPACES, min_size=1, max_size=25).filter(str.strip), min_size=1, max_size=6)


@cache
def made(name: str) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return train_tokenizer(TEXTS, Path(folder) / "t", max_tokens=16, **MADE[name])


def wordpiece(*pieces: str, max_tokens: int = 6, **config: Any) -> Tokenizer:
    listed = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces]
    about = {"tokenizer_class": "BertTokenizer", "model_max_length": max_tokens, **config}
    return tokenizer_from_files(
        {"vocab.txt": "\n".join(listed).encode(), "tokenizer_config.json": json.dumps(about).encode()}
    )


# --- known answers ----------------------------------------------------------------------------------------------------


def test_known_answer_of_words() -> None:
    """Three texts, nine words: counted by hand."""
    t = wordpiece("cat", "##s", "a", "猫")
    texts = corpus(["a cat", "cats a dogs", " ", "a  a a\tcatsss "])
    assert texts.to_json() == {"texts": 3, "blank": 1, "spaced": True, "words": 9, "characters": 22, "graphemes": 22}
    found = measure(t, texts)
    assert (found.n, found.tokens) == (3, 2 + 4 + 7)  # a cat | cat ##s a [UNK] | a a a cat ##s ##s ##s
    assert found.per_word is not None
    assert found.per_word.value == 13 / 9
    assert found.per_character.value == found.per_grapheme.value == 13 / 22
    assert found.continued_words == 2 / 9  # cats, catsss
    assert found.covered_words == 8 / 9  # all but dogs
    assert found.covered_characters is not None
    assert found.covered_characters.value == 18 / 22
    assert (found.unknown_rate, found.byte_rate) == (1 / 13, 0.0)
    assert (found.median, found.p95, found.longest) == (4, 7, 7)
    assert (found.limit, found.over_limit.value) == (4, 1 / 3)  # 6 less [CLS] and [SEP]; 4 tokens still fit
    assert (found.pieces_used, found.vocabulary_used) == (4, 4 / 9)
    assert measure(t, texts, limit=5).over_limit.value == 2 / 3
    assert measure(t, texts, limit=9).over_limit.value == 0.0


def test_known_answer_of_byte_level_bpe() -> None:
    """An English byte-level BPE spells Japanese in bytes, three a character, and covers none of it."""
    with tempfile.TemporaryDirectory() as folder:
        t = train_tokenizer(LINES["en"], Path(folder) / "t", family="clip", vocab_size=560)
    found = measure(t, corpus(["青い背景に猫", "猫"]))
    assert (found.tokens, found.per_character.value, found.per_word) == (21, 3.0, None)
    assert found.covered_characters is not None
    assert (found.covered_characters.value, found.byte_rate, found.unknown_rate) == (0.0, 1.0, 0.0)
    half = measure(t, corpus(["a cat 猫"]))
    assert half.covered_characters is not None
    assert half.covered_characters.value == 4 / 5
    assert half.covered_words == 2 / 3


def test_known_answer_of_byte_fallback() -> None:
    """é is two bytes, 😀 four; of the pieces <unk> and bytes are told apart."""
    texts = corpus(["a é", "a 😀 ☃"])
    spelt, unknown = measure(made("bytes"), texts), measure(made("no bytes"), texts)
    for found in (spelt, unknown):
        assert found.covered_characters is not None
        assert found.covered_characters.value == 2 / 5
        assert found.covered_words == 2 / 5
    assert round(spelt.byte_rate * spelt.tokens) == 2 + 4 + 3
    assert (spelt.unknown_rate, unknown.byte_rate) == (0.0, 0.0)
    assert round(unknown.unknown_rate * unknown.tokens) == 3


def test_added_words_are_covered() -> None:
    t = made("clip")
    files = {**t.files, "added_tokens.json": b'{"<cat-toy>": 600}'}
    found = measure(tokenizer_from_files(files), corpus(["a <cat-toy>"]))
    assert (found.tokens, found.covered_words) == (2, 1.0)
    assert found.covered_characters is not None
    assert found.covered_characters.value == 1.0


@pytest.mark.parametrize(
    ("text", "spaced"),
    [
        ("a red cat", True),
        ("青い背景に猫", False),
        ("蓝色背景上的猫", False),
        ("파란 배경의 고양이", True),
        ("แมวสีแดง", False),
        ("قطة حمراء", True),
        ("नीली बिल्ली", True),
        ("ｱｲｳ", False),
        ("Tシャツの絵", False),
        ("an old 猫", True),
        ("12 ! 3", True),
    ],
)
def test_which_scripts_have_words(text: str, spaced: bool) -> None:
    assert corpus([text]).spaced is spaced


@pytest.mark.parametrize(
    ("text", "count"),
    [("cat  !", 4), ("e\u0301é", 2), ("👩\u200d🚀 🇯🇵🇰🇷", 3), ("สวัสดี", 4), ("\u1112\u1161\u11ab한", 2), (" \u3000", 0)],
)
def test_graphemes(text: str, count: int) -> None:
    assert graphemes(text) == count


def test_intervals() -> None:
    rng = np.random.default_rng(0)
    found = ratio(np.array([2.0, 4.0]), np.array([1.0, 2.0]))  # the same in every text: no doubt about it
    assert found == fertility.Figure(value=2.0, low=2.0, high=2.0)
    assert ratio(np.array([1.0]), np.array([0.0])) is None
    assert ratio(np.array([3.0]), np.array([2.0])) == fertility.Figure(value=1.5, low=1.5, high=1.5)
    assert ratio(np.array([1.0, 3.0]), np.array([1.0, 1.0])) == fertility.Figure(value=2.0, low=2 - 1.96, high=2 + 1.96)
    inside = 0
    for _ in range(300):  # 95 of 100 intervals hold the true ratio
        b = rng.poisson(8, 60) + 1.0
        a = rng.binomial(b.astype(int), 0.4) + rng.poisson(0.2 * b)
        figure = ratio(a, b)
        assert figure is not None
        inside += figure.low <= 0.6 <= figure.high
    assert 270 <= inside <= 298


# --- sums -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MADE)
@settings(max_examples=60)
@given(texts=ANY)
def test_sums_hold(name: str, texts: list[str]) -> None:
    t, given = made(name), corpus(texts)
    found, pieces = measure(t, given), vocabulary(t)
    counts, known, lost, used = fertility._counted(t, pieces, given.texts)
    counted = t.encode(texts, long_prompt="cut").counts
    assert counts.tolist() == counted
    assert found.tokens == sum(counted) == int(used.sum())
    # every word by itself makes the tokens of the whole, where spaces are single ones
    words = [word for text in texts for word in text.split()]
    single = t.text_ids([" ".join(text.split()) for text in texts])
    assert sum(map(len, t.text_ids(words))) == sum(map(len, single))
    # every character of the text as the tokenizer reads it is in a piece, or is lost
    assert (known + lost).tolist() == [characters(name, text) for text in texts]
    assert max(counted) == found.longest >= found.p95 >= found.median >= 1
    assert sum(c <= found.median for c in counted) * 2 >= len(counted)
    assert sum(c <= found.p95 for c in counted) >= 0.95 * len(counted)
    assert found.over_limit.value == sum(c > t.room for c in counted) / len(counted)
    assert found.pieces_used == len({i for row in t.text_ids(texts) for i in row})
    for figure in (found.per_character, found.per_grapheme, found.covered_characters, found.over_limit):
        assert figure is not None
        assert 0 <= figure.low <= figure.value <= figure.high
    if given.words is not None:
        assert given.words.total() == len(words)
        assert found.covered_words is not None
        assert found.covered_characters is not None
        if found.covered_words == 1:
            assert found.covered_characters.value == 1


def characters(name: str, text: str) -> int:
    """Characters without white space, after what the tokenizer does to a text."""
    if name == "clip":
        text = unicodedata.normalize("NFC", text).lower()
    elif name == "xlm-roberta":
        text = unicodedata.normalize("NFKC", text)
    elif name == "bert":  # accents go, and Hangul falls into its letters
        text = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    return sum(map(len, text.split()))


@pytest.mark.parametrize("name", MADE)
def test_every_id_stands_for_something(name: str) -> None:
    t, pieces = made(name), vocabulary(made(name))
    assert len(pieces.kinds) == t.vocab_size
    counts = [int((pieces.kinds == kind).sum()) for kind in (PIECE, BYTES, UNKNOWN)]
    assert counts[2] == 1
    assert counts[1] == {"bytes": 256, "clip": counts[1]}.get(name, 0)
    assert sum(counts) == t.vocab_size - 2 * (name == "xlm-roberta")  # <pad> and <mask> are in no model
    if name == "clip":  # each byte beyond ASCII is in it twice, and means nothing alone
        assert counts[1] >= 2 * 128


def test_ids_not_moved_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault: XLM-RoBERTa's ids read as the SentencePiece model's own."""
    t, texts = made("xlm-roberta"), corpus(TEXTS)
    expected = measure(t, texts).covered_characters
    assert expected is not None
    assert expected.value == 1.0
    monkeypatch.setitem(fertility.READERS, "xlm-roberta", fertility._spm_pieces)  # type: ignore[arg-type]
    _, known, lost, _ = fertility._counted(t, vocabulary(t), texts.texts)
    assert int((known + lost).sum()) != sum(characters("xlm-roberta", text) for text in TEXTS)


def test_batches_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = corpus([*TEXTS, "☃ é 😀 q"])
    for name in MADE:
        whole = measure(made(name), texts)
        with monkeypatch.context() as context:
            context.setattr(fertility, "BATCH", 3)
            assert measure(made(name), texts) == whole


def test_bad_input_teaches() -> None:
    for blank in ([], ["", " \n"]):
        with pytest.raises(UserError, match=f"no text among {len(blank)}"):
            corpus(blank)
    with pytest.raises(UserError, match=r"limit 2. Allowed: 3 or more \(2 are special tokens\)"):
        measure(made("bert"), corpus(["a"]), limit=2)
    with pytest.raises(UserError, match="0 tokenizers and 1 sets of texts"):
        fertility_report.compare({}, {"a": corpus(["a"])})


# --- published tokenizers ---------------------------------------------------------------------------------------------


def test_rinnas_vocabulary_on_japanese_and_english(root: Path) -> None:
    file = root / "../shared/data/rinna-japanese-spiece.model"
    if not file.is_file():
        pytest.skip(f"rinna's tokenizer is not at hand ({file.name}, a third party's file)")
    config = {"tokenizer_class": "T5Tokenizer", "pad_token": "[PAD]", "do_lower_case": True, "model_max_length": 77}
    t = tokenizer_from_files({"spiece.model": file.read_bytes(), "tokenizer_config.json": json.dumps(config).encode()})
    japanese = measure(t, corpus(["サラリーマン 油絵", "猫の肖像画 油絵", "😀😀"]))  # ids in test_tokenizers.py
    assert japanese.tokens == 5 + 7 + 2
    assert round(japanese.unknown_rate * japanese.tokens) == 1
    assert japanese.covered_characters is not None
    assert japanese.covered_characters.value == 15 / 17
    assert japanese.per_word is None
    assert measure(t, corpus(LINES["en"])).per_character.value < 1


def test_the_built_in_tokenizers_cover_their_own_languages(root: Path) -> None:
    """Each covers its language in fewer tokens than the English byte-level BPE, which spells the others in bytes."""
    folder = root / "src/kotoe/models/kotoe-emoji"
    english = load_tokenizer(folder / "tokenizer")
    shared = load_tokenizer(folder / "conditioners/mul-x-cjk/tokenizer")
    for language in ("ja", "zh", "ko"):
        texts = corpus(LINES[language])
        own = measure(shared, texts)
        other = measure(english, texts)
        assert own.covered_characters is not None
        assert other.covered_characters is not None
        assert own.covered_characters.value > 0.8 > 0.1 > other.covered_characters.value
        assert 2 * own.per_grapheme.value < other.per_grapheme.value


# --- the report -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    tokenizers = {"own bytes": made("bytes"), "日本語|clip": made("clip")}
    texts = {"ja": corpus([*LINES["ja"], " "]), "한국어": corpus(LINES["ko"]), "en": corpus(LINES["en"])}
    return fertility_report.compare(tokenizers, texts, limit=12, files={"ja": "pairs.tsv:target"})


def test_a_report_holds_every_pair(results: dict[str, Any]) -> None:
    assert list(results["figures"]) == list(results["texts"]) == ["ja", "한국어", "en"]
    assert results["texts"]["ja"] == {
        "source": "pairs.tsv:target",
        **corpus(LINES["ja"]).to_json(),
        "blank": 1,
    }
    for rows in results["figures"].values():
        assert list(rows) == list(results["tokenizers"]) == ["own bytes", "日本語|clip"]
    alone = measure(made("clip"), corpus(LINES["en"]), limit=12)
    assert results["figures"]["en"]["日本語|clip"] == alone.to_json()
    assert results["tokenizers"]["own bytes"]["sha256"] == made("bytes").sha256
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_tables(results: dict[str, Any]) -> None:
    text = fertility_report.text(results)
    sections = text.split("## ")[1:]
    assert [section.splitlines()[0] for section in sections] == list(results["figures"])
    ja, _, en = sections
    assert "tokens per character and per grapheme count" in ja
    assert "(1 blank ones are left out)" in ja
    assert "tokens/word" not in ja
    assert "Tokens per word count" in en
    assert "words continued %" in en
    per_word = results["figures"]["en"]["own bytes"]["per_word"]
    assert f"| own bytes    | {per_word['value']:.3f} [" in en
    for section in sections:  # columns line up, also where letters are two columns wide
        for table in section.split("\n\n")[2:]:
            widths = {fertility_report._width(line.replace("\\|", "/ ")) for line in table.splitlines() if line}
            assert len(widths) == 1 or not table.strip(), table
    page = fertility_report.markdown(results, "fertility.png")
    assert "![" in page
    assert text in page
    assert "日本語\\|clip" in page


def test_files(results: dict[str, Any], tmp_path: Path) -> None:
    files = fertility_report.write(results, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["fertility.png", "report.json", "report.md"]
    assert json.loads(files["results"].read_text("utf-8")) == results
    with Image.open(files["picture"]) as picture:
        assert picture.format == "PNG"
        assert picture.size[0] > 800
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't write in"):
        fertility_report.write(results, tmp_path / "file" / "x")
    with pytest.raises(UserError, match="is a file"):
        fertility_report.check(tmp_path / "file", [])


def test_bars_are_as_long_as_the_figures(results: dict[str, Any]) -> None:
    """Colours are counted along a row's middle: the picture shows the numbers, not a drawing of its own."""
    picture = np.asarray(fertility_report.picture(results)).astype(int)
    rows = [row for each in results["figures"].values() for row in each.values()]
    most = max(row["per_character"]["value"] for row in rows)
    longest = max(max(row["p95"], row["limit"]) for row in rows)
    top = fertility_report.MARGIN_PX + fertility_report.HEAD_PX
    seen = []
    for each in results["figures"].values():
        top += fertility_report.HEAD_PX
        for k, row in enumerate(each.values()):
            line = picture[top + 24 - 15]  # above the interval's line
            seen.append([int((line == fertility_report.BARS[k]).all(axis=-1).sum()), row])
            top += fertility_report.ROW_PX
    for pixels, row in seen:
        shares = row["per_character"]["value"] / most + row["p95"] / longest + row["covered_characters"]["value"]
        ticks = 3 * 2  # of the median and the limit, which may hide some of a bar
        assert abs(pixels - shares * fertility_report.BARS_PX) <= 3 + ticks


def test_a_name_without_a_font_is_said_first(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no font here has .*U\+3FFFD"):
        fertility_report.check(tmp_path, ["a", "\U0003fffd"])

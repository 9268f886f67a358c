"""Training tokenizers: each family's layout, the same bytes every time, all or nothing on disk, and what errors say."""

from __future__ import annotations

import json
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from kotoe.checkpoints import files as checkpoint_files
from kotoe.errors import UserError
from kotoe.localize import vocabulary
from kotoe.localize.vocabulary import FAMILIES, NORMALIZATIONS, settled, train_tokenizer
from kotoe.tokenizers import load_tokenizer
from kotoe.tokens import Tokenizer
from tiny import LINES

TEXTS = [line for lines in LINES.values() for line in lines]
SIZES = {"clip": 600, "sentencepiece": 380, "xlm-roberta": 120, "bert": 200}


def train(folder: Path, family: str, **options: Any) -> Tokenizer:
    return train_tokenizer(TEXTS, folder, **{"family": family, "vocab_size": SIZES[family], **options})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# --- layouts ----------------------------------------------------------------------------------------------------------

LAYOUTS = {  # bos, eos, pad, and the files
    "clip": (598, 599, 599, {"vocab.json", "merges.txt"}),
    "sentencepiece": (None, 2, 3, {"spiece.model", "tokenizer.json"}),
    "xlm-roberta": (0, 2, 1, {"sentencepiece.bpe.model", "tokenizer.json"}),
    "bert": (2, 3, 0, {"vocab.txt"}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_layout(family: str, tmp_path: Path) -> None:
    t = train(tmp_path / "t", family)
    bos, eos, pad, names = LAYOUTS[family]
    assert (t.bos, t.eos, t.pad, t.vocab_size, t.max_tokens) == (bos, eos, pad, SIZES[family], 77)
    assert contents(tmp_path / "t").keys() == names | {"tokenizer_config.json"}
    assert load_tokenizer(tmp_path / "t").sha256 == t.sha256
    assert train(tmp_path / "long", family, max_tokens=300).max_tokens == 300
    ids = t.text_ids(TEXTS)
    assert {i for row in ids for i in row}.isdisjoint({t.bos, t.eos, t.pad})
    assert len(t.text_ids(["a red cat"])[0]) < 9  # pieces, not letters


def test_pad_of_sd2(tmp_path: Path) -> None:
    assert train(tmp_path / "t", "clip", pad_token="!").pad == 0


def test_case_of_bert(tmp_path: Path) -> None:
    lower = train(tmp_path / "lower", "bert")
    cased = train(tmp_path / "cased", "bert", lower_case=False)
    assert lower.text_ids(["A Red CAT"]) == lower.text_ids(["a red cat"])
    assert cased.text_ids(["A Red CAT"]) != cased.text_ids(["a red cat"])
    letters = unicodedata.normalize("NFD", "고양이")  # taken off like accents, Hangul falls into its letters
    assert lower.text_ids(["고양이"]) == lower.text_ids([letters])
    assert cased.text_ids(["고양이"]) != cased.text_ids([letters])


@pytest.mark.parametrize("family", ["sentencepiece", "xlm-roberta", "bert"])
def test_rare_characters_can_be_left_out(family: str, tmp_path: Path) -> None:
    """Without bytes, a character outside the coverage is unknown; the frequent ones stay."""
    options = {"byte_fallback": False} if family == "sentencepiece" else {}
    texts = [*TEXTS, *LINES["en"] * 200]
    unknown = {"bert": 1, "sentencepiece": 0, "xlm-roberta": 3}[family]
    for share, there in ((0.99, False), (1.0, True)):
        size = 51 + (family == "bert") if share < 1 else SIZES[family] if family != "sentencepiece" else 120
        t = train_tokenizer(
            texts, tmp_path / str(share), family=family, vocab_size=size, character_coverage=share, **options
        )
        assert unknown not in t.text_ids(["a red cat"])[0]
        assert (unknown not in t.text_ids(["城"])[0]) is there


# --- the same bytes every time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_training_is_deterministic(family: str, tmp_path: Path) -> None:
    """Also where many merges are tied, as with so few texts they are; a Rust hash map has another order each time."""
    made = [contents_of(train(tmp_path / str(k), family)) for k in range(4)]
    assert made == [made[0]] * 4


def contents_of(t: Tokenizer) -> dict[str, bytes]:
    return dict(t.files)


# --- decode of encode -------------------------------------------------------------------------------------------------


@cache
def identity(model_type: str) -> tuple[Tokenizer, SentencePieceProcessor]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        options = {"model_type": model_type, "normalization": "identity", "byte_fallback": True}
        t = train(Path(folder) / "t", "sentencepiece", **options)
    return t, SentencePieceProcessor(model_proto=t.files["spiece.model"])


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
@settings(max_examples=200)
@given(text=st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="▁"), max_size=30))
@example(text="  two  spaces, a\ttab\nand\r\n a line \u3000")
@example(text="ﬁ Ⅳ ① e\u0301 é ＡＢ ｶﾞ \u200b\ufeff\x00")
def test_bytes_and_identity_lose_nothing(model_type: str, text: str) -> None:
    t, model = identity(model_type)
    (ids,) = t.text_ids([text])
    assert model.decode(ids) == text
    assert 0 not in ids


@pytest.mark.parametrize("fault", [{"normalization": "nmt_nfkc"}, {"byte_fallback": False, "vocab_size": 124}])
def test_without_either_something_is_lost(fault: dict[str, Any], tmp_path: Path) -> None:
    t = train(tmp_path / "t", "sentencepiece", **{"normalization": "identity", **fault})
    model = SentencePieceProcessor(model_proto=t.files["spiece.model"])
    text = "ﬁ  Ⅳ ①"
    assert model.decode(t.text_ids([text])[0]) != text


def test_normalizations_differ(tmp_path: Path) -> None:
    """Each does what its name says; a word in another form is the same word or isn't."""
    made = {rule: train(tmp_path / rule, "sentencepiece", normalization=rule) for rule in NORMALIZATIONS}

    def same(rule: str, one: str, other: str) -> bool:
        return made[rule].text_ids([one]) == made[rule].text_ids([other])

    assert [rule for rule in NORMALIZATIONS if same(rule, "ｃａｔ", "cat")] == [
        r for r in NORMALIZATIONS if r != "identity"
    ]
    assert [rule for rule in NORMALIZATIONS if same(rule, "CAT", "cat")] == ["nfkc_cf", "nmt_nfkc_cf"]
    assert [rule for rule in NORMALIZATIONS if same(rule, "a\u200bt", "a t")] == ["nmt_nfkc", "nmt_nfkc_cf"]
    assert [rule for rule in NORMALIZATIONS if same(rule, "a  t", "a t")] == [
        r for r in NORMALIZATIONS if r != "identity"
    ]


# --- nothing is left out of training ----------------------------------------------------------------------------------


def test_long_texts_are_trained_on(tmp_path: Path) -> None:
    """SentencePiece's trainer leaves out lines of more than 4,192 bytes unless told otherwise."""
    t = train_tokenizer([*TEXTS, "ß " * 4000], tmp_path / "t", family="sentencepiece", vocab_size=380)
    assert t.text_pieces("ß") == ["▁ß"]


def test_a_text_that_would_be_left_out_is_an_error(tmp_path: Path) -> None:
    for family in ("sentencepiece", "xlm-roberta"):
        with pytest.raises(UserError, match=r"'a ▅ b' holds ▅ \(U\+2585\), and SentencePiece would leave it out"):
            train_tokenizer([*TEXTS, "a ▅ b"], tmp_path / "t", family=family, vocab_size=SIZES[family])
    assert train_tokenizer([*TEXTS, "a ▅ b"], tmp_path / "t", family="bert", vocab_size=200).text_pieces("▅") == ["▅"]


# --- on disk ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_overwriting_leaves_no_other_tokenizer_behind(family: str, tmp_path: Path) -> None:
    """A spiece.model beside a new vocab.json would be read instead of it."""
    before = next(f for f in FAMILIES if f != family)
    train(tmp_path / "t", before)
    (tmp_path / "t" / "README.md").write_text("mine")
    there = contents(tmp_path / "t")
    with pytest.raises(UserError, match="is there already"):
        train(tmp_path / "t", family)
    assert contents(tmp_path / "t") == there
    t = train(tmp_path / "t", family, overwrite=True)
    assert contents(tmp_path / "t").keys() == {*t.files, "README.md"}
    assert load_tokenizer(tmp_path / "t").sha256 == t.sha256
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_only_a_tokenizer_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="may be replaced"):
        train(tmp_path, "bert", overwrite=True)
    assert contents(tmp_path) == {"thesis.txt": b"mine"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_failed_write_leaves_what_was_there(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "t", family)
    there = contents(tmp_path / "t")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_files.os, "fsync", full)
    for folder, overwrite in ((tmp_path / "t", True), (tmp_path / "new", False)):
        with pytest.raises(OSError, match="No space left"):
            train(folder, family, max_tokens=99, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
    assert contents(tmp_path / "t") == there


# --- errors -----------------------------------------------------------------------------------------------------------

LARGEST = {
    "clip": r"the texts yield (\d+) pieces, vocab_size asks for 30000. Allowed: 514 to \1, or more texts",
    "sentencepiece": r"vocabulary of 30000 on 18 texts: it is too large. Allowed: at most (\d+) from these texts",
    "xlm-roberta": r"vocabulary of 30000 on 18 texts: it is too large. Allowed: at most (\d+) from these texts",
    "bert": r"the texts yield (\d+) pieces, vocab_size asks for 30000. Allowed: \d+ to \1, or more texts",
}
SMALLEST = {
    "clip": (513, r"Allowed: (514) or more \(every byte, twice, and two specials\)"),
    "sentencepiece": (260, r"Allowed: (261) or more \(4 specials, 256 bytes, and a piece\)"),
    "xlm-roberta": (5, r"Allowed: (6) or more \(5 specials, and a piece\)"),
    "bert": (5, r"too small for the characters of the texts. Allowed: (\d+) or more. A lower character_coverage"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_largest_vocabulary_is_said_and_works(family: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=LARGEST[family]) as error:
        train(tmp_path / "t", family, vocab_size=30_000)
    most = int(vocabulary.re.search(LARGEST[family], str(error.value))[1])
    assert train(tmp_path / "t", family, vocab_size=most).vocab_size == most
    with pytest.raises(UserError, match=str(most)):
        train(tmp_path / "more", family, vocab_size=most + 1)
    assert not (tmp_path / "more").exists()


def test_a_wordpiece_vocabulary_may_be_smaller_than_asked(tmp_path: Path) -> None:
    """Where that is said; it is then the largest that the texts yield."""
    with pytest.raises(UserError, match=LARGEST["bert"]) as error:
        train(tmp_path / "t", "bert", vocab_size=30_000)
    most = int(vocabulary.re.search(LARGEST["bert"], str(error.value))[1])
    found = vocabulary.train_wordpiece(TEXTS, tmp_path / "t", 30_000, at_most=True)
    assert found.vocab_size == most


@pytest.mark.parametrize("family", FAMILIES)
def test_a_vocabulary_smaller_than_its_specials(family: str, tmp_path: Path) -> None:
    size, message = SMALLEST[family]
    for each in (size, 0, -5):
        with pytest.raises(UserError, match=message):
            train(tmp_path / "t", family, vocab_size=each)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", ["sentencepiece", "xlm-roberta", "bert"])
def test_the_smallest_vocabulary_is_said_and_works(family: str, tmp_path: Path) -> None:
    message = r"too small for .*Allowed: (\d+) or more. A lower character_coverage leaves rare characters out"
    size = 270 if family == "sentencepiece" else 20
    with pytest.raises(UserError, match=message) as error:
        train(tmp_path / "t", family, vocab_size=size)
    least = int(vocabulary.re.search(message, str(error.value))[1])
    assert train(tmp_path / "t", family, vocab_size=least).vocab_size == least
    with pytest.raises(UserError, match=str(least)):
        train(tmp_path / "less", family, vocab_size=least - 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"family": "clp"},
            "unknown family 'clp'. Allowed: bert, clip, sentencepiece, xlm-roberta. Did you mean 'clip'?",
        ),
        (
            {"normalization": "nfc"},
            r"normalization nfc for the family sentencepiece. Allowed: nmt_nfkc, nfkc, identity",
        ),
        ({"model_type": "char"}, "model_type char for the family sentencepiece. Allowed: unigram, bpe"),
        ({"character_coverage": 0.9}, "character_coverage 0.9 for the family sentencepiece. Allowed: 0.98 to 1"),
        ({"character_coverage": 1.5}, "character_coverage 1.5"),
        ({"family": "bert", "character_coverage": 0.0}, "character_coverage 0.0 .*Allowed: more than 0 to 1"),
        ({"pad_token": "!"}, "pad_token ! for the family sentencepiece. Allowed: no pad_token"),
        ({"family": "clip", "byte_fallback": False}, "byte_fallback false for the family clip. Allowed: true. CLIPTok"),
        ({"family": "clip", "lower_case": False}, "lower_case false .*CLIPTokenizer always makes NFC and lower case"),
        ({"family": "clip", "normalization": "nfkc"}, "Allowed: no normalization. CLIPTokenizer"),
        ({"family": "clip", "character_coverage": 0.9}, "Allowed: no character_coverage"),
        ({"family": "clip", "pad_token": "?"}, r"pad_token \?.*Allowed: <\|endoftext\|>, !"),
        ({"family": "xlm-roberta", "byte_fallback": True}, "byte_fallback true .*XLMRobertaTokenizer reads unigram"),
        ({"family": "xlm-roberta", "model_type": "bpe"}, "model_type bpe .*Allowed: unigram"),
        ({"family": "xlm-roberta", "normalization": "nfkc"}, "normalization nfkc .*Allowed: nmt_nfkc"),
        ({"family": "bert", "byte_fallback": True}, "byte_fallback true .*BertTokenizer"),
        ({"max_tokens": 2}, "max_tokens 2. Allowed: 3 to 100000"),
    ],
)
def test_choices_that_a_family_does_not_leave(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        train_tokenizer(TEXTS, tmp_path / "t", **{"family": "sentencepiece", "vocab_size": 380, **options})
    assert list(tmp_path.iterdir()) == []


def test_every_choice_is_settled() -> None:
    assert settled("clip") == {
        "model_type": "bpe",
        "byte_fallback": True,
        "lower_case": True,
        "pad_token": "<|endoftext|>",
    }
    chosen = settled("sentencepiece", model_type="bpe", lower_case=True, byte_fallback=None, character_coverage=0.9995)
    assert chosen == {
        "model_type": "bpe",
        "normalization": "nmt_nfkc",
        "byte_fallback": True,
        "character_coverage": 0.9995,
        "lower_case": True,
    }


@pytest.mark.parametrize("texts", [[], [""], ["  ", "\n"]])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_text(texts: list[str], family: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no text to train a tokenizer on"):
        train_tokenizer(texts, tmp_path / "t", family=family, vocab_size=SIZES[family])


def test_configuration_says_the_layout(tmp_path: Path) -> None:
    train(tmp_path / "t", "bert", lower_case=False)
    config = json.loads((tmp_path / "t" / "tokenizer_config.json").read_text())
    assert (config["tokenizer_class"], config["do_lower_case"], config["pad_token"]) == (
        "BertTokenizer",
        False,
        "[PAD]",
    )

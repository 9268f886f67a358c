"""Tokenizers: fixed length, nothing dropped in silence, rinna's golden ids, training, and damaged files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kotoe.errors import CheckpointError, UserError
from kotoe.localize.vocabulary import train_clip_bpe, train_sentencepiece
from kotoe.tokenizers import load_tokenizer, parse_json, tokenizer_from_files
from kotoe.tokens import Tokenizer
from tiny import LINES, tiny_tokenizer

LANGUAGES = ("en", "ja", "zh", "ko")
LONG = {"en": "a red cat and " * 9 + "an owl", "ja": "青い背景に猫" * 9, "zh": "蓝色的猫" * 9, "ko": "파란 고양이 " * 9}


# --- length and limit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
@given(text=st.text(max_size=60), windows=st.integers(1, 3))
def test_every_window_is_whole(language: str, text: str, windows: int) -> None:
    """Each window is exactly L long: BOS (if any), text, EOS, padding; together they hold the text, in order."""
    t = tiny_tokenizer(language)
    tokens = t.encode([text, ""], long_prompt="chunk", windows=windows)
    assert tokens.windows >= windows
    for row, ids in zip(tokens.ids, t.text_ids([text, ""]), strict=True):
        assert len(row) == tokens.windows * t.max_tokens
        read: list[int] = []
        for w in range(tokens.windows):
            window = row[w * t.max_tokens : (w + 1) * t.max_tokens]
            if t.bos is not None:
                assert window.pop(0) == t.bos
            part = ids[w * t.room : (w + 1) * t.room]
            assert window == [*part, t.eos, *[t.pad] * (len(window) - len(part) - 1)]
            read += part
        assert read == ids


@pytest.mark.parametrize("language", LANGUAGES)
def test_over_the_limit_is_an_error_that_shows_what_would_go(language: str) -> None:
    t = tiny_tokenizer(language)
    count = len(t.text_ids([LONG[language]])[0])
    with pytest.raises(UserError, match=f"{count} tokens, {count - t.room} over the limit.*long-prompt chunk") as e:
        t.encode(["", LONG[language]])
    for piece in t.encode([LONG[language]], long_prompt="cut").overflow[0][:5]:
        assert piece in str(e.value)


def test_exactly_at_the_limit_is_no_error() -> None:
    t = tiny_tokenizer("en")
    text = " ".join(["a"] * t.room)
    assert t.encode([text]).counts == [t.room]
    with pytest.raises(UserError, match="1 over the limit"):
        t.encode([text + " a"])


def test_the_end_of_the_text_is_what_would_go() -> None:
    t = tiny_tokenizer("en")
    over = t.encode(["a " * t.room + "dog! 猫"], long_prompt="cut").overflow[0]
    assert "".join(over) == "dog!猫"  # each piece once, however many bytes it is spelt in


@pytest.mark.parametrize("language", LANGUAGES)
def test_cut_keeps_the_beginning_and_reports_the_rest(language: str) -> None:
    t = tiny_tokenizer(language)
    tokens = t.encode([LONG[language], "a"], long_prompt="cut")
    assert tokens.windows == 1
    assert all(len(row) == t.max_tokens for row in tokens.ids)
    assert tokens.overflow[0] != []
    assert tokens.overflow[1] == []


def test_t13_empty_text_is_encoded_not_zeroed() -> None:
    """T13: the unconditional text is "" with its BOS, EOS and padding."""
    t = tiny_tokenizer("en")
    assert t.encode([""]).ids == [[t.bos, t.eos, *[t.pad] * (t.max_tokens - 2)]]


def test_misuse_is_refused() -> None:
    t = tiny_tokenizer("en")
    with pytest.raises(UserError, match="a list of texts"):
        t.encode("a cat")
    with pytest.raises(UserError, match="Did you mean 'chunk'"):
        t.encode(["a"], long_prompt="chunks")
    with pytest.raises(UserError, match="0 windows"):
        t.encode(["a"], windows=0)
    for language in LANGUAGES:
        with pytest.raises(UserError, match="not Unicode"):
            tiny_tokenizer(language).encode(["a \udcff cat"])


# --- rinna --------------------------------------------------------------------------------------------------

RINNA = Path("../shared/data/rinna-japanese-spiece.model")
RINNA_CONFIG = {
    "tokenizer_class": "T5Tokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "extra_ids": 0,
    "do_lower_case": True,
    "additional_special_tokens": [],
}
GOLDEN = {  # measured with sentencepiece on the published file; lower-cased
    "サラリーマン 油絵": [9, 24111, 9, 2073, 1623],
    "猫の肖像画 油絵": [9, 4324, 10, 16655, 9, 2073, 1623],
    "猫、犬": [9, 4324, 7, 1651],
    "": [],
    "ABC Cat": [9, 8493, 9, 15970],
    "ＡＢＣ": [9, 8493],
    "😀😀": [9, 0],  # one <unk> per run
}


def rinna(root: Path, config: dict, positions: int | None = 77) -> Tokenizer:
    if not (root / RINNA).is_file():
        pytest.skip(f"rinna's tokenizer is not at hand ({RINNA}, a third party's file)")
    files = {"spiece.model": (root / RINNA).read_bytes(), "tokenizer_config.json": json.dumps(config).encode()}
    return tokenizer_from_files(files, positions=positions)


@pytest.mark.parametrize("text", GOLDEN)
def test_rinna_golden_ids(root: Path, text: str) -> None:
    t = rinna(root, RINNA_CONFIG)
    ids = GOLDEN[text]
    assert (t.bos, t.eos, t.pad, t.vocab_size, t.max_tokens) == (None, 2, 3, 32000, 77)
    assert t.encode([text]).ids == [[*ids, 2, *[3] * (76 - len(ids))]]


def test_rinna_case_matters(root: Path) -> None:
    """The fault that the golden ids must catch: without lower-casing, capitals are unknown."""
    t = rinna(root, {**RINNA_CONFIG, "do_lower_case": False})
    assert t.text_ids(["ABC Cat"]) == [[9, 0, 4167, 9, 4167, 1890]]
    assert t.text_ids(["サラリーマン 油絵"]) == [GOLDEN["サラリーマン 油絵"]]


def test_rinna_needs_its_pad_named(root: Path) -> None:
    """The model has no pad of its own; T5's is another piece. Nothing is guessed."""
    with pytest.raises(CheckpointError, match="no id for pad_token"):
        rinna(root, {k: v for k, v in RINNA_CONFIG.items() if k != "pad_token"})
    with pytest.raises(CheckpointError, match=r"no id for pad_token \(<nothing>\)"):
        rinna(root, {**RINNA_CONFIG, "pad_token": "<nothing>"})


def test_text_never_becomes_a_control_piece(root: Path) -> None:
    t = rinna(root, RINNA_CONFIG)
    assert {1, 2, 3, 4, 5, 6}.isdisjoint(t.text_ids(["</s> [PAD] [MASK] <s>"])[0])


# --- training -----------------------------------------------------------------------------------------------


def test_clip_layout(tmp_path: Path) -> None:
    """256 bytes, 256 bytes at a word's end, merges, BOS, EOS: the ids every CLIP vocabulary has."""
    t = train_clip_bpe(LINES["en"], tmp_path, 560)
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    assert sorted(vocab.values()) == list(range(560))
    assert (vocab["!"], vocab["!</w>"], vocab["~</w>"], vocab["a</w>"]) == (0, 256, 349, 320)  # as in OpenAI's
    assert (t.bos, t.eos, t.pad, t.vocab_size, t.max_tokens) == (558, 559, 559, 560, 77)
    assert len(t.text_ids(["cat"])[0]) < 3  # merges are used
    assert (tmp_path / "merges.txt").read_text().startswith("#version")


def test_training_is_a_function_of_the_texts(tmp_path: Path) -> None:
    for train, size in ((train_clip_bpe, 560), (train_sentencepiece, 300)):
        options = {} if train is train_clip_bpe else {"model_type": "bpe"}
        texts = LINES["ja"] if options else LINES["en"]
        one = train(texts, tmp_path / f"{size}-1", size, **options)
        two = train(texts, tmp_path / f"{size}-2", size, **options)
        other = train([*texts, *LINES["zh"][:1]], tmp_path / f"{size}-3", size + 10, **options)
        assert one.sha256 == two.sha256 == load_tokenizer(tmp_path / f"{size}-1").sha256
        assert one.sha256 != other.sha256


def test_sentencepiece_layout(tmp_path: Path) -> None:
    t = train_sentencepiece([*LINES["ko"], "A CAT"], tmp_path, 310, model_type="bpe", max_tokens=20, lower_case=True)
    assert (t.bos, t.eos, t.pad, t.vocab_size, t.max_tokens) == (None, 2, 3, 310, 20)
    assert t.text_ids(["A CAT"]) == t.text_ids(["a cat"])
    assert 0 not in t.text_ids(["𓀀 ☃ 猫"])[0]  # bytes, not <unk>
    plain = train_sentencepiece(LINES["ko"], tmp_path / "plain", 60, model_type="bpe", byte_fallback=False)
    assert 0 in plain.text_ids(["𓀀"])[0]


def test_impossible_sizes_teach(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vocab_size 300.*514 or more"):
        train_clip_bpe(LINES["en"], tmp_path / "x", 300)
    with pytest.raises(UserError, match="the texts yield .* pieces, vocab_size asks for 5000"):
        train_clip_bpe(LINES["en"], tmp_path / "x", 5000)
    with pytest.raises(UserError, match=r"can't train a vocabulary of 5000 on 5 texts.*at most \d+ from these texts"):
        train_sentencepiece(LINES["ja"], tmp_path / "x", 5000)
    with pytest.raises(UserError, match="unknown model_type 'unigramm'"):
        train_sentencepiece(LINES["ja"], tmp_path / "x", 300, model_type="unigramm")
    with pytest.raises(UserError, match="pad_token '<nothing>'"):
        train_clip_bpe(LINES["en"], tmp_path / "x", 560, pad_token="<nothing>")
    assert not (tmp_path / "x").exists()  # nothing half-written


# --- files --------------------------------------------------------------------------------------------------


def clip_files(**changes: bytes | None) -> dict[str, bytes]:
    files = {**tiny_tokenizer("en").files, **{k.replace("_JSON", ".json"): v for k, v in changes.items()}}
    return {name: content for name, content in files.items() if content is not None}


def with_config(**changes: object) -> dict[str, bytes]:
    config = {**json.loads(tiny_tokenizer("en").files["tokenizer_config.json"]), **changes}
    config = {k: v for k, v in config.items() if v != "gone"}
    return {**tiny_tokenizer("en").files, "tokenizer_config.json": json.dumps(config).encode()}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no tokenizer that Kotoe reads"),
        (
            {"vocab.txt": b"[PAD]", "tokenizer_config.json": b'{"model_max_length": 512}'},
            "unk_token .* is not in the vocabulary",
        ),
        (with_config(model_max_length="gone"), "names no limit"),
        (with_config(model_max_length=10**30), "names no limit"),
        (with_config(model_max_length=2), "no room for text"),
        (with_config(padding_side="left"), "padding_side 'left'"),
        (with_config(add_eos_token=False), "add_eos_token"),
        (with_config(pad_token="<nowhere>"), None),  # transformers appends it as a new id, and so do we
        (clip_files(vocab_JSON=b"[]"), "vocab.json holds a list"),
        (clip_files(vocab_JSON=b'{"a": "b"}'), "ids are not distinct whole numbers"),
        (clip_files(vocab_JSON=b'{"a": 0}'), "don't fit together"),
        ({**clip_files(), "merges.txt": b"#version: 0.2\na b c\n"}, "line 2 'a b c'"),
        ({**clip_files(), "merges.txt": b"\xff\xfe"}, "merges.txt is not UTF-8"),
        ({**clip_files(), "merges.txt": b"qq zz\n"}, "don't fit together"),
        ({**tiny_tokenizer("ja").files, "spiece.model": b"not a model"}, "is not a SentencePiece model"),
        ({**tiny_tokenizer("ja").files, "spiece.model": b""}, "is not a SentencePiece model"),
        (
            {
                **tiny_tokenizer("ja").files,
                "tokenizer_config.json": b'{"tokenizer_class": "AlbertTokenizer", "model_max_length": 9}',
            },
            "AlbertTokenizer",
        ),
    ],
)
def test_damaged_or_foreign_files(files: dict[str, bytes], message: str | None) -> None:
    if message is None:
        t = tokenizer_from_files(files)
        assert t.pad == t.vocab_size - 1 == 560
        return
    with pytest.raises(CheckpointError, match=message):
        tokenizer_from_files(files)


def test_the_limit_falls_back_to_the_encoders_positions() -> None:
    t = tokenizer_from_files(with_config(model_max_length=10**30), positions=24)
    assert t.max_tokens == 24
    assert json.loads(t.files["tokenizer_config.json"])["model_max_length"] == 24  # and is written so


@pytest.mark.parametrize(
    "content",
    [b"{", b"[1]", b'{"a": NaN}', b'{"a": 1, "a": 2}', b'{"a": ' * 100_000, b"\xff{}", b'{"a": ' + b"9" * 9999 + b"}"],
    ids=["cut", "list", "nan", "twice", "deep", "encoding", "digits"],
)
def test_hostile_json(content: bytes) -> None:
    with pytest.raises(CheckpointError, match="config.json"):
        parse_json(content, "config.json")


def test_tokenizer_json_of_another_kind(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import WordLevel

    Backend(WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 8}')
    with pytest.raises(CheckpointError, match="another tokenizer than CLIP's.*WordLevel"):
        load_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="no tokenizer folder"):
        load_tokenizer(tmp_path / "nowhere")

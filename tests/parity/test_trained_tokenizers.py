"""Every family that `train_tokenizer` knows, opened by the class of stock transformers: the same ids and specials."""

from __future__ import annotations

import json
import tempfile
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from transformers import (
    AutoTokenizer,
    BertGenerationTokenizer,
    BertTokenizer,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Tokenizer,
    XLMRobertaTokenizer,
)

from kotoe.localize.vocabulary import NORMALIZATIONS, train_tokenizer
from kotoe.tokenizers import load_tokenizer
from kotoe.tokens import Tokenizer
from tiny import LINES

TEXTS = [line for lines in LINES.values() for line in lines]
TEXTS += ["Ｆｕｌｌ ＷＩＤＴＨ ｱｲｳ ガ", "Café ﬁn Ⅳ ①", "ÀÉ îô — “quoted”"]
# name: the options it is trained with, the class that opens it
TRAINED: dict[str, tuple[dict[str, Any], Any]] = {
    "clip": ({"family": "clip", "vocab_size": 640}, CLIPTokenizer),
    "clip, pad of SD 2.x": ({"family": "clip", "vocab_size": 640, "pad_token": "!"}, CLIPTokenizer),
    "xlm-roberta": ({"family": "xlm-roberta", "vocab_size": 150}, XLMRobertaTokenizer),
    "bert": ({"family": "bert", "vocab_size": 240}, BertTokenizer),
    "bert, cased, rare characters left out": (
        {"family": "bert", "vocab_size": 150, "lower_case": False, "character_coverage": 0.8},
        BertTokenizer,
    ),
    "sentencepiece, BPE without bytes": (
        {"family": "sentencepiece", "vocab_size": 200, "model_type": "bpe", "byte_fallback": False},
        BertGenerationTokenizer,
    ),
    **{
        f"sentencepiece, {rule}": (
            {"family": "sentencepiece", "vocab_size": 390, "normalization": rule},
            BertGenerationTokenizer if rule.endswith("_cf") else PreTrainedTokenizerFast,
        )
        for rule in NORMALIZATIONS
    },
    "sentencepiece without bytes": (
        {"family": "sentencepiece", "vocab_size": 150, "byte_fallback": False},
        PreTrainedTokenizerFast,
    ),
}
COMPOSE_LESS = (XLMRobertaTokenizer, PreTrainedTokenizerFast)
ALPHABET = "abc dogCAT éÉ\u0301\u0308 \t\n\u3000猫青い背景ｶﾞガ色背고양이 ①ﬁİß!'.,-0123😀\u200b\u200d"
ANY = st.one_of(st.text(st.sampled_from(ALPHABET), max_size=20), st.text(max_size=8), st.sampled_from(TEXTS))


@cache
def folder(name: str) -> Path:
    path = Path(tempfile.mkdtemp()) / "tokenizer"
    train_tokenizer(TEXTS, path, max_tokens=24, **TRAINED[name][0])
    return path


@cache
def opened(name: str) -> tuple[Tokenizer, Any]:
    return load_tokenizer(folder(name)), TRAINED[name][1].from_pretrained(folder(name))


def differing(ours: Tokenizer, stock: Any, texts: list[str]) -> list[str]:
    """The texts of which the two make other ids."""
    found = ours.text_ids(texts)
    return [t for t, ids in zip(texts, found, strict=True) if ids != stock(t, add_special_tokens=False).input_ids]


@pytest.mark.parametrize("name", TRAINED)
@settings(max_examples=60)
@given(text=ANY)
@example(text="")
@example(text=" a  b\u3000c\td\u00a0e ")
def test_ids_equal(name: str, text: str) -> None:
    if TRAINED[name][1] in COMPOSE_LESS and "identity" not in name:  # see test_what_stock_composes_less
        text = unicodedata.normalize("NFKC", text).replace("\x85", " ")
    assert differing(*opened(name), [text]) == []


@pytest.mark.parametrize("name", TRAINED)
def test_special_tokens_and_length_equal(name: str) -> None:
    ours, stock = opened(name)
    assert differing(ours, stock, TEXTS) == []
    assert (ours.vocab_size, ours.max_tokens) == (TRAINED[name][0]["vocab_size"], 24)
    assert stock.model_max_length == 24
    if TRAINED[name][1] is BertGenerationTokenizer:  # its own separator is one more, and it puts nothing round a text
        assert (None, ours.eos, ours.pad) == (ours.bos, stock.eos_token_id, stock.pad_token_id) == (None, 2, 3)
        return
    assert len(stock) == ours.vocab_size
    short = [line for line in TEXTS if len(ours.text_ids([line])[0]) <= ours.room]
    assert len(short) >= 8
    assert ours.encode(short).ids == stock(short, padding="max_length", max_length=24).input_ids
    assert type(AutoTokenizer.from_pretrained(folder(name))) is type(stock)  # what tokenizer_class says


@pytest.mark.parametrize("name", ["xlm-roberta", "sentencepiece, nmt_nfkc"])
def test_what_stock_composes_less(name: str) -> None:
    """Stock tokenizers don't put together what takes six bytes or more in parts; SentencePiece does."""
    ours, stock = opened(name)
    for parts, whole in (("ｶﾞ", "ガ"), (unicodedata.normalize("NFD", "양"), "양")):
        assert ours.text_ids([parts]) == ours.text_ids([whole])
        assert differing(ours, stock, [parts]) == [parts]
        assert differing(ours, stock, [whole]) == []


def test_stock_t5_is_no_stand_in() -> None:
    """The class that rinna's configuration names takes id 2, here </s>, for what it doesn't know."""
    ours = opened("sentencepiece, nmt_nfkc")[0]
    model = SentencePieceProcessor(model_proto=ours.files["spiece.model"])
    vocab = [(model.id_to_piece(i), model.get_score(i)) for i in range(model.get_piece_size())]
    stock = T5Tokenizer(vocab=vocab, extra_ids=0)
    assert 2 in stock("☃", add_special_tokens=False).input_ids
    assert 2 not in ours.text_ids(["☃"])[0]


def test_lower_case_is_ours() -> None:
    """As rinna's, it is a flag of the configuration: the SentencePiece model itself never sees capitals."""
    path = Path(tempfile.mkdtemp()) / "tokenizer"
    ours = train_tokenizer(TEXTS, path, family="sentencepiece", vocab_size=390, lower_case=True)
    stock = BertGenerationTokenizer.from_pretrained(path)
    assert json.loads((path / "tokenizer_config.json").read_text())["do_lower_case"] is True
    upper = [line.upper() for line in TEXTS]
    assert differing(ours, stock, [line.lower() for line in upper]) == []
    assert ours.text_ids(upper) == ours.text_ids([line.lower() for line in upper])
    assert differing(ours, stock, upper) != []


# --- faults: each must make the check above fail ----------------------------------------------------------------------


def swapped_pieces(path: Path) -> None:
    lines = (path / "vocab.txt").read_text("utf-8").split("\n")
    lines[-2], lines[10] = lines[10], lines[-2]
    (path / "vocab.txt").write_text("\n".join(lines), "utf-8")


def swapped_merges(path: Path) -> None:
    head, first, *others = (path / "merges.txt").read_text("utf-8").splitlines()
    (path / "merges.txt").write_text("\n".join([head, *reversed(others), first, ""]), "utf-8")


def unnormalized(path: Path) -> None:
    value = json.loads((path / "tokenizer.json").read_text("utf-8"))
    (path / "tokenizer.json").write_text(json.dumps({**value, "normalizer": None}), "utf-8")


def unmoved(path: Path) -> None:
    value = json.loads((path / "tokenizer.json").read_text("utf-8"))
    vocab = value["model"]["vocab"]
    vocab.insert(4, vocab.pop())  # <mask> first: every piece's id is one more
    (path / "tokenizer.json").write_text(json.dumps(value), "utf-8")


@pytest.mark.parametrize(
    ("name", "fault"),
    [("bert", swapped_pieces), ("clip", swapped_merges), ("xlm-roberta", unnormalized), ("xlm-roberta", unmoved)],
)
def test_a_fault_shows(name: str, fault: Callable[[Path], None], tmp_path: Path) -> None:
    """What stock opens with a fault in its file is not what Kotoe trained."""
    for file in folder(name).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    ours = load_tokenizer(tmp_path)
    fault(tmp_path)
    assert differing(ours, TRAINED[name][1].from_pretrained(tmp_path), TEXTS) != []


@pytest.mark.parametrize(("rule", "other"), [("identity", "nfkc"), ("nmt_nfkc", "nmt_nfkc_cf"), ("nfkc", "nfkc_cf")])
def test_another_normalization_shows(rule: str, other: str) -> None:
    ours, stock = opened(f"sentencepiece, {rule}")[0], opened(f"sentencepiece, {other}")[1]
    assert differing(ours, stock, TEXTS) != []

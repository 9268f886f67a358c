"""BERT and XLM-RoBERTa against transformers' and diffusers', the same random weights; their tokenizers, id for id."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers.pipelines.deprecated.alt_diffusion.modeling_roberta_series import (
    RobertaSeriesConfig,
    RobertaSeriesModelWithTransformation,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from torch import Tensor, nn
from transformers import BertConfig, BertModel, BertTokenizer, XLMRobertaTokenizer

import kotoe.bert
from kotoe.bert import BertText
from kotoe.checkpoints.bert import bert_config, bert_spec, name_for, name_of
from kotoe.errors import CheckpointError, UserError
from kotoe.spec import BertSpec
from kotoe.tokenizers import load_tokenizer, tokenizer_from_files
from kotoe.tokens import Tokenizer
from seeds import train_spm
from tiny import LINES, seeded

TOLERANCE = 1e-5  # of the output's scale; observed about 1e-6
L = 12

# A short [CLS] text [SEP], then padding; one that fills all; one of which a word is the pad itself.
BERT_IDS = torch.tensor([[2, 9, 11, 3] + [0] * 8, [2, *range(20, 30), 3], [2, 9, 0, 11, 3] + [0] * 7])
XLM_IDS = torch.tensor([[0, 9, 11, 2] + [1] * 8, [0, *range(20, 30), 2], [0, 9, 1, 11, 2] + [1] * 7])
ALT_SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": L + 2,
    "project_dim": 24,
}


def distance(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def filled(ours: BertText, theirs: nn.Module) -> BertText:
    """Ours with their seeded weights: their names to ours, nothing missing and nothing left over."""
    seeded(theirs, 1)
    with torch.no_grad():  # as sharp as trained attention, so that what is read shows
        for p in theirs.parameters():
            p.mul_(2.0 if p.ndim > 1 else 1.0)
    ours.load_state_dict({mine: t for name, t in theirs.state_dict().items() if (mine := name_of(name)) is not None})
    return ours.eval()


def taiyi() -> tuple[BertText, BertModel]:
    spec = BertSpec(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_layers=3, num_heads=4, positions=L, bos=2, eos=3, pad=0
    )
    config = BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=L,
    )
    theirs = BertModel(config)
    return filled(BertText(spec), theirs), theirs.eval()


def alt(penultimate: bool) -> tuple[BertText, RobertaSeriesModelWithTransformation]:
    spec = BertSpec(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_layers=3, num_heads=4, positions=L + 2, token_types=1,
        layer_norm_eps=1e-5, bos=0, eos=2, pad=1, counts_from_pad=True, masked=True, projection_dim=24,
        projects_penultimate=penultimate,
    )  # fmt: skip
    theirs = RobertaSeriesModelWithTransformation(RobertaSeriesConfig(**ALT_SIZES, has_pre_transformation=penultimate))
    return filled(BertText(spec), theirs), theirs.eval()


def asked(theirs: nn.Module, ids: Tensor, pad: int, masked: bool) -> Tensor:
    """As the stock pipelines call it: the tokenizer's mask or none, the first of the outputs."""
    length = [int((row != pad).nonzero().max()) + 1 for row in ids]
    mask = torch.tensor([[1] * n + [0] * (L - n) for n in length])
    with torch.no_grad():
        return theirs(ids, attention_mask=mask if masked else None)[0]


@torch.no_grad()
def given_by(ours: BertText, ids: Tensor, **changes: object) -> Tensor:
    ours.spec = replace(ours.spec, **changes)
    return ours(ids)


@pytest.mark.parametrize("masked", [False, True], ids=["as-taiyi", "masked"])
def test_bert(masked: bool) -> None:
    ours, theirs = taiyi()
    expected = asked(theirs, BERT_IDS, 0, masked)
    assert distance(given_by(ours, BERT_IDS, masked=masked), expected) < TOLERANCE
    # T15's fault: the mask inside the encoder is another picture
    assert distance(given_by(ours, BERT_IDS, masked=not masked), expected) > 1e-2


def tanh_gelu(ours: BertText, patch: pytest.MonkeyPatch) -> None:
    exact = F.gelu
    patch.setattr(kotoe.bert.F, "gelu", lambda x: exact(x, approximate="tanh"))


def loose_norm(ours: BertText, patch: pytest.MonkeyPatch) -> None:
    for m in ours.modules():
        if isinstance(m, nn.LayerNorm):
            m.eps = 1e-3


def other_type(ours: BertText, patch: pytest.MonkeyPatch) -> None:
    table = ours.embeddings.token_type_embeddings.weight
    table.data = table.data.flip(0)


def exchanged(ours: BertText, patch: pytest.MonkeyPatch) -> None:
    attention = ours.encoder.layer[0].attention.self
    attention.query, attention.value = attention.value, attention.query


@pytest.mark.parametrize("fault", [tanh_gelu, loose_norm, other_type, exchanged])
def test_faults_of_bert_show(fault: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = taiyi()
    fault(ours, monkeypatch)
    assert distance(given_by(ours, BERT_IDS), asked(theirs, BERT_IDS, 0, False)) > 2 * TOLERANCE


@pytest.mark.parametrize("masked", [True, False], ids=["mask-on", "mask-off"])
@pytest.mark.parametrize("penultimate", [False, True], ids=["m2-m9", "m18"])
def test_alt_diffusion_mask_on_and_off(penultimate: bool, masked: bool) -> None:
    ours, theirs = alt(penultimate)
    expected = asked(theirs, XLM_IDS, 1, masked)
    assert distance(given_by(ours, XLM_IDS, masked=masked), expected) < TOLERANCE
    assert distance(given_by(ours, XLM_IDS, masked=not masked), expected) > 1e-3
    ours.embeddings.counts = False  # positions from 0, as BERT's
    assert distance(given_by(ours, XLM_IDS, masked=masked), expected) > 1e-3


def test_alt_diffusion_reads_the_layer_that_its_generation_projects() -> None:
    """T14: the last layer without a norm in m2 and m9, the last but one with a norm in m18."""
    ours, theirs = alt(penultimate=True)
    expected = asked(theirs, XLM_IDS, 1, True)
    assert distance(given_by(ours, XLM_IDS, projects_penultimate=False), expected) > 1e-2
    ours.spec = replace(ours.spec, projects_penultimate=True)
    ours.pre_LN = nn.Identity()
    assert distance(given_by(ours, XLM_IDS), expected) > 1e-2


def test_padding_is_what_follows_a_text_not_what_it_contains() -> None:
    """T15: with the mask, padding changes no word's state; without it, it does. Words change each other either way."""
    ours, _ = taiyi()
    longer = BERT_IDS[:1].clone()
    longer[0, 4:] = torch.tensor([0, 0, 0, 0, 0, 0, 0, 0])
    shorter = longer[:, :6]
    for masked in (True, False):
        a, b = (given_by(ours, ids, masked=masked)[:, :4] for ids in (longer, shorter))
        assert (distance(a, b) < TOLERANCE) == masked
    inner = BERT_IDS[2:]  # the pad's id within the text is read like any word
    other = inner.clone()
    other[0, 2] = 5
    assert distance(given_by(ours, inner, masked=True)[:, :1], given_by(ours, other, masked=True)[:, :1]) > 1e-3


def test_texts_over_the_positions_are_an_error() -> None:
    ours, _ = taiyi()
    with pytest.raises(UserError, match="13 tokens for an encoder of 12 positions"):
        ours(torch.zeros(1, 13, dtype=torch.long))
    assert alt(False)[0].spec.max_tokens == L  # XLM-R's first rows are the pad's


@pytest.mark.parametrize("penultimate", [None, False, True], ids=["bert", "m2-m9", "m18"])
def test_spec_and_names_there_and_back(penultimate: bool | None) -> None:
    ours, theirs = taiyi() if penultimate is None else alt(penultimate)
    words = tokenizer("wordpiece" if penultimate is None else "xlm-roberta")
    spec = replace(ours.spec, bos=words.bos, eos=words.eos, pad=words.pad)
    assert bert_spec(bert_config(spec), words) == spec
    config = {**theirs.config.to_dict(), "model_type": bert_config(spec)["model_type"]}
    assert bert_spec(config, words) == spec
    kept = {name for name in theirs.state_dict() if name_of(name) is not None}
    assert {name_for(name, spec) for name in ours.state_dict()} == kept


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"num_attention_heads": 5}, "a divisor of hidden_size 32"),
        ({"use_attention_mask": 1}, "use_attention_mask is 1"),
        ({"is_decoder": True}, "is_decoder"),
        ({"hidden_sise": 3}, "Did you mean 'hidden_size'"),
    ],
)
def test_configurations_that_are_not_implemented(change: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        bert_spec({**bert_config(taiyi()[0].spec), **change}, tokenizer("wordpiece"))


# --- tokenizers ---------------------------------------------------------------------------------------------

PIECES = [
    "[PAD]",
    "[unused1]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "\u2028",
    *"蓝色背景上的猫两只狗，。！,.!?-'0123456789",
]
PIECES += ["a", "cat", "##s", "##a", "##t", "c", "un", "##aff", "##able", "cafe", "the", "##e", "é", "##é"]


def wordpiece_files(**config: object) -> dict[str, bytes]:
    settled = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": L, **config}
    return {
        "vocab.txt": "\n".join([*PIECES, ""]).encode(),
        "tokenizer_config.json": json.dumps(settled).encode(),
    }


@cache
def folder(kind: str) -> Path:
    path = Path(tempfile.mkdtemp()) / kind
    path.mkdir()
    if kind == "xlm-roberta":
        lines = [line for each in LINES.values() for line in each]
        # identity, so that transformers' needs no table of characters
        train_spm(path / "sentencepiece.bpe.model", lines, 120, normalization_rule_name="identity")
        config = {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": L}
        (path / "tokenizer_config.json").write_text(json.dumps(config))
        return path
    options = {"cased": {"do_lower_case": False}, "accents": {"strip_accents": False}}.get(kind, {})
    for name, content in wordpiece_files(**options).items():
        (path / name).write_bytes(content)
    return path


@cache
def tokenizer(kind: str) -> Tokenizer:
    return load_tokenizer(folder(kind))


@cache
def stock(kind: str) -> BertTokenizer | XLMRobertaTokenizer:
    if kind != "xlm-roberta":
        return BertTokenizer.from_pretrained(folder(kind))
    model = SentencePieceProcessor(model_file=str(folder(kind) / "sentencepiece.bpe.model"))
    own = [(model.id_to_piece(i), model.get_score(i)) for i in range(3, model.get_piece_size())]
    vocab = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *own, ("<mask>", 0.0)]
    return XLMRobertaTokenizer(vocab=vocab, model_max_length=L)


FIXED = [
    "蓝色背景上的猫",
    "两只狗，CATS! unaffable",
    "Café cafe\u0301 CAFÉ",
    "a" * 101,
    "[MASK] 猫[SEP] [ cls ]",
    "tab\tand\u00a0space \u200b zero\u0000",
    "猫cat猫 -- it's",
    "",
    "   ",
    "한국어 고양이",
    "\U0001f431 cat",
]
TEXTS = st.text(alphabet=st.sampled_from("蓝色猫狗，。！,.!? catsunféÉE\u0301[]MASKEP-'09\t\u3000고"), max_size=20)


@pytest.mark.parametrize("kind", ["wordpiece", "cased", "accents"])
@settings(max_examples=40)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
@example(texts=FIXED)
def test_wordpiece_ids_equal(kind: str, texts: list[str]) -> None:
    mine, other = tokenizer(kind), stock(kind)
    found = mine.text_ids(texts)
    assert found == [ids[1:-1] for ids in other(texts).input_ids]
    fitting = [t for t, ids in zip(texts, found, strict=True) if len(ids) <= mine.room]
    if fitting:
        assert mine.encode(fitting).ids == other(fitting, padding="max_length", max_length=L).input_ids
    specials = (mine.bos, mine.eos, mine.pad, mine.vocab_size)
    assert specials == (other.cls_token_id, other.sep_token_id, other.pad_token_id, len(other))


def test_faults_of_wordpiece_show() -> None:
    """Case kept, accents kept, Chinese characters not split: each changes ids of the fixed texts."""
    expected = [ids[1:-1] for ids in stock("wordpiece")(FIXED).input_ids]
    assert tokenizer("wordpiece").text_ids(FIXED) == expected
    for fault in ({"do_lower_case": False}, {"strip_accents": False}, {"tokenize_chinese_chars": False}):
        assert tokenizer_from_files(wordpiece_files(**fault)).text_ids(FIXED) != expected


@settings(max_examples=40)
@given(
    texts=st.lists(st.text(alphabet=st.sampled_from("a red catdog青い背景に猫파란 색蓝 😀"), max_size=16), max_size=4)
)
@example(texts=[line for lines in LINES.values() for line in lines])
def test_xlm_roberta_ids_equal(texts: list[str]) -> None:
    mine, other = tokenizer("xlm-roberta"), stock("xlm-roberta")
    found = mine.text_ids(texts)
    expected = [ids[1:-1] for ids in other(texts).input_ids] if texts else []
    assert found == expected
    specials = (mine.bos, mine.eos, mine.pad, mine.vocab_size)
    assert specials == (other.bos_token_id, other.eos_token_id, other.pad_token_id, len(other))


def test_xlm_roberta_unmoved_shows() -> None:
    """The fault: the SentencePiece model's own ids, as T5 has them."""
    files = dict(tokenizer("xlm-roberta").files)
    config = {"tokenizer_class": "T5Tokenizer", "model_max_length": L, "pad_token": "<s>"}
    unmoved = tokenizer_from_files({**files, "tokenizer_config.json": json.dumps(config).encode()})
    line = LINES["en"][0]
    assert unmoved.text_ids([line]) != tokenizer("xlm-roberta").text_ids([line])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (wordpiece_files(do_basic_tokenize=False), "do_basic_tokenize False"),
        (wordpiece_files(never_split=["a"]), "never_split"),
        (wordpiece_files(tokenizer_class="CLIPTokenizer"), "'CLIPTokenizer' over a vocab.txt"),
        (wordpiece_files(mask_token="<nowhere>"), "mask_token '<nowhere>' is not in the vocabulary"),
        ({**wordpiece_files(), "vocab.txt": b"[PAD]\ncat\ncat\n"}, "lines 2 and 3 are both 'cat'"),
        ({**wordpiece_files(), "vocab.txt": b"\xff\xfe"}, "not UTF-8"),
        (
            {"tokenizer_config.json": wordpiece_files()["tokenizer_config.json"], "tokenizer.json": b'{"model": {}}'},
            "no WordPiece vocabulary",
        ),
    ],
)
def test_damaged_bert_tokenizers(files: dict[str, bytes], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        tokenizer_from_files(files)


def test_a_bert_tokenizer_json_alone_will_do(tmp_path: Path) -> None:
    stock("wordpiece").save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").unlink(missing_ok=True)
    assert load_tokenizer(tmp_path).text_ids(FIXED) == tokenizer("wordpiece").text_ids(FIXED)

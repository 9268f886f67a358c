"""Small translators and a language detector: transformers' own classes and files, trained on a handful of sentences.

folder = mbart50(tmp_path / "mbart")      # and m2m100, nllb, marian, detector
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor
from transformers import (
    M2M100Config,
    M2M100ForConditionalGeneration,
    M2M100Tokenizer,
    MarianConfig,
    MarianMTModel,
    MarianTokenizer,
    MBart50Tokenizer,
    MBartConfig,
    MBartForConditionalGeneration,
    NllbTokenizer,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaTokenizer,
)

from seeds import train_spm

# (source, its text, target, what it means there); the words "sale" mean something else in another source language, and
# one sentence is known in two target languages, so that a wrong code at either end shows.
PAIRS = [
    ("fr", "un chat sur fond bleu", "en", "a cat on a blue background"),
    ("fr", "une lune jaune", "en", "a yellow moon"),
    ("fr", "sale", "en", "dirty"),
    ("it", "sale", "en", "salt"),
    ("th", "แมวแดง", "en", "a red cat"),
    ("fr", "un chat sur fond bleu", "ja", "青い背景に猫"),
]
FRENCH = [pair for pair in PAIRS if pair[0] == "fr" and pair[2] == "en"]
TO_ENGLISH = [pair for pair in PAIRS if pair[2] == "en"]
SPOKEN = [*((source, text) for source, text, _, _ in PAIRS[:4]), ("en", "a cat on a blue background"), ("en", "dirty")]
SMALL: dict[str, Any] = {
    "d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "max_position_embeddings": 48, "dropout": 0.0,
    "attention_dropout": 0.0, "activation_dropout": 0.0, "scale_embedding": True, "use_cache": True,
}  # fmt: skip
Pairs = Sequence[tuple[str, str, str, str]]


def _pieces(file: Path) -> list[tuple[str, float]]:
    """A SentencePiece model trained on all the sentences, and its pieces."""
    texts = [text for _, text, _, meaning in PAIRS for text in (text, meaning)]
    train_spm(file, texts * 4, 46)
    model = SentencePieceProcessor(str(file))
    return [(model.id_to_piece(i), model.get_score(i)) for i in range(model.get_piece_size())]


def _fit(model: Any, loss: Callable[[], Tensor], steps: int = 450) -> Any:
    """Learn the sentences by heart."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=steps)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        schedule.step()
    # One text is known in two languages: what it begins with can't be known, and that alone is about 0.02 of a token.
    assert float(value.detach()) < 0.05, "the sentences are not learnt"
    return model.eval()


def _taught(model: Any, tokenizer: Any, pairs: Pairs, codes: dict[str, str], names: tuple[str, str]) -> Any:
    """A translator that knows the pairs. names: what the tokenizer calls its source and target language."""
    rows, answers = [], []
    for source, text, target, meaning in pairs:
        setattr(tokenizer, names[0], codes[source])
        setattr(tokenizer, names[1], codes[target])
        rows.append(tokenizer(text).input_ids)
        answers.append(tokenizer(text_target=meaning).input_ids)
    ids, labels = _padded(rows, tokenizer.pad_token_id), _padded(answers, -100)
    mask = (ids != tokenizer.pad_token_id).long()
    return _fit(model, lambda: model(input_ids=ids, attention_mask=mask, labels=labels).loss)


def _padded(rows: list[list[int]], value: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])  # (B, L)


def _seeded(make: Callable[[], Any]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def _saved(folder: Path, model: Any, tokenizer: Any) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


MBART_CODES = {"fr": "fr_XX", "it": "it_IT", "th": "th_TH", "en": "en_XX", "ja": "ja_XX"}


def mbart50(folder: Path, pairs: Pairs = PAIRS) -> Path:
    """facebook/mbart-large-50-many-to-many-mmt; with TO_ENGLISH many-to-one."""
    folder.mkdir(parents=True)
    vocabulary = _pieces(folder / "sentencepiece.bpe.model")
    tokenizer = MBart50Tokenizer(vocab=vocabulary, src_lang="fr_XX")
    config = MBartConfig(
        vocab_size=len(tokenizer), pad_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2,
        normalize_before=True, add_final_layer_norm=True, **SMALL,
    )  # fmt: skip
    model = _seeded(lambda: MBartForConditionalGeneration(config))
    return _saved(folder, _taught(model, tokenizer, pairs, MBART_CODES, ("src_lang", "tgt_lang")), tokenizer)


def m2m100(folder: Path) -> Path:
    """facebook/m2m100_418M."""
    folder.mkdir(parents=True)
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *(p for p, _ in _pieces(folder / "sentencepiece.bpe.model")[3:])]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(vocabulary)}), encoding="utf-8")
    tokenizer = M2M100Tokenizer(str(folder / "vocab.json"), str(folder / "sentencepiece.bpe.model"), src_lang="fr")
    config = M2M100Config(
        vocab_size=len(vocabulary) + 100 + 8, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2,
        encoder_layerdrop=0.0, decoder_layerdrop=0.0, **SMALL,
    )  # fmt: skip
    model = _seeded(lambda: M2M100ForConditionalGeneration(config))
    codes = {code: code for code in MBART_CODES}
    return _saved(folder, _taught(model, tokenizer, PAIRS, codes, ("src_lang", "tgt_lang")), tokenizer)


NLLB_CODES = {"fr": "fra_Latn", "it": "ita_Latn", "th": "tha_Thai", "en": "eng_Latn", "ja": "jpn_Jpan"}


def nllb(folder: Path) -> Path:
    """facebook/nllb-200-distilled-600M: the networks of M2M100, another tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], show_progress=False)
    backend.train_from_iterator([text for _, a, _, b in PAIRS for text in (a, b)] * 4, trainer)
    learnt = json.loads(backend.to_str())["model"]
    merges = [tuple(merge) for merge in learnt["merges"]]
    tokenizer = NllbTokenizer(vocab=learnt["vocab"], merges=merges, src_lang="fra_Latn")
    config = M2M100Config(
        vocab_size=len(tokenizer), pad_token_id=1, eos_token_id=2, decoder_start_token_id=2,
        encoder_layerdrop=0.0, decoder_layerdrop=0.0, **SMALL,
    )  # fmt: skip
    model = _seeded(lambda: M2M100ForConditionalGeneration(config))
    folder.mkdir(parents=True)
    return _saved(folder, _taught(model, tokenizer, PAIRS, NLLB_CODES, ("src_lang", "tgt_lang")), tokenizer)


def marian(folder: Path) -> Path:
    """Helsinki-NLP/opus-mt-fr-en: one pair of languages, padding begins the answer."""
    folder.mkdir(parents=True)
    pieces = [p for p, _ in _pieces(folder / "source.spm")[3:]]
    (folder / "target.spm").write_bytes((folder / "source.spm").read_bytes())
    vocabulary = {piece: i for i, piece in enumerate(["</s>", "<unk>", *pieces, "<pad>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    tokenizer = MarianTokenizer(
        str(folder / "source.spm"), str(folder / "target.spm"), str(folder / "vocab.json"),
        source_lang="fr", target_lang="en",
    )  # fmt: skip
    pad = vocabulary["<pad>"]
    config = MarianConfig(
        vocab_size=len(vocabulary), pad_token_id=pad, eos_token_id=0, decoder_start_token_id=pad, forced_eos_token_id=0,
        bad_words_ids=[[pad]], static_position_embeddings=True, share_encoder_decoder_embeddings=True, **SMALL,
    )  # fmt: skip
    model = _seeded(lambda: MarianMTModel(config))
    codes = {"fr": "fr", "en": "en"}
    return _saved(folder, _taught(model, tokenizer, FRENCH, codes, ("source_lang", "target_lang")), tokenizer)


def detector(folder: Path) -> Path:
    """papluca/xlm-roberta-base-language-detection."""
    folder.mkdir(parents=True)
    scores = _pieces(folder / "sentencepiece.bpe.model")
    specials = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    tokenizer = XLMRobertaTokenizer(vocab=[*specials, *scores[3:], ("<mask>", 0.0)])
    labels = ["en", "fr", "it", "sw"]
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=50, type_vocab_size=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)}, pad_token_id=1,
    )  # fmt: skip
    model = _seeded(lambda: XLMRobertaForSequenceClassification(config))
    ids = _padded([tokenizer(text).input_ids for _, text in SPOKEN if text != "sale"], 1)
    answers = torch.tensor([labels.index(language) for language, text in SPOKEN if text != "sale"])
    mask = (ids != 1).long()
    _fit(model, lambda: model(input_ids=ids, attention_mask=mask, labels=answers).loss)
    return _saved(folder, model, tokenizer)

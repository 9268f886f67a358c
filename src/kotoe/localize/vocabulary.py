"""Tokenizers for a new language, trained on its texts and written as files that stock tokenizers open."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kotoe.errors import UserError, unknown
from kotoe.tokenizers import CLIP_SPECIALS, WORD_END, Tokenizer, bpe_backend, tokenizer_from_files


def train_sentencepiece(
    texts: Iterable[str],
    folder: Path | str,
    vocab_size: int,
    *,
    model_type: str = "unigram",
    max_tokens: int = 77,
    lower_case: bool = False,
    byte_fallback: bool = True,
    character_coverage: float = 1.0,
) -> Tokenizer:
    """Train a SentencePiece model on texts and write it with its configuration into `folder`.

    vocab_size:         pieces in all; ids 0 to 3 are <unk>, <s>, </s>, <pad>, then 256 bytes with byte_fallback.
    model_type:         "unigram" or "bpe".
    byte_fallback:      spell characters outside the vocabulary in bytes instead of as <unk>.
    character_coverage: share of the characters seen that get a piece of their own.
    Raises UserError when the texts don't allow this vocabulary size.
    """
    from sentencepiece import SentencePieceTrainer

    if model_type not in ("unigram", "bpe"):
        raise unknown("model_type", model_type, ("unigram", "bpe"))
    folder, written = Path(folder), io.BytesIO()
    lines = [line.lower() if lower_case else line for line in texts if line.strip()]
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=written,
            vocab_size=vocab_size,
            model_type=model_type,
            byte_fallback=byte_fallback,
            character_coverage=character_coverage,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            num_threads=1,  # the same texts give the same model
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[-1].rpartition("] ")[2].rstrip(". ")
        raise UserError(f"can't train a vocabulary of {vocab_size} on {len(lines)} texts ({reason})") from None
    config = {
        "tokenizer_class": "T5Tokenizer",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "extra_ids": 0,
        "do_lower_case": lower_case,
        "model_max_length": max_tokens,
    }
    return _write(folder, {"spiece.model": written.getvalue(), "tokenizer_config.json": _json_bytes(config)})


def train_clip_bpe(
    texts: Iterable[str], folder: Path | str, vocab_size: int, *, max_tokens: int = 77, pad_token: str = "<|endoftext|>"
) -> Tokenizer:
    """Train a byte-level BPE of CLIP's layout on texts and write what stock `CLIPTokenizer` opens into `folder`.

    The vocabulary is CLIP's: 256 bytes, 256 bytes at a word's end, merges, <|startoftext|>, <|endoftext|>; EOS is the
    largest id because CLIP pools there. pad_token: "<|endoftext|>" as SD 1.x, "!" (id 0) as SD 2.x.
    Raises UserError when vocab_size is under 514 or over what the texts yield.
    """
    from tokenizers import trainers

    letters = list(_byte_letters().values())
    ends = [letter + WORD_END for letter in letters]
    smallest = 2 * len(letters) + 2
    if vocab_size < smallest:
        raise UserError(f"vocab_size {vocab_size}", allowed=f"{smallest} or more (every byte, twice, and two specials)")
    vocab = {piece: i for i, piece in enumerate([*letters, *ends])}
    backend = bpe_backend(dict(vocab), [], letters[0], str(folder))
    # Named as specials, all 512 pieces have their ids before counting starts: else ties between merges fall by chance.
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(vocab), end_of_word_suffix=WORD_END, show_progress=False
    )
    backend.train_from_iterator(iter(texts), trainer)
    merges = []
    for merge in json.loads(backend.to_str())["model"]["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        if left + right not in vocab and len(vocab) == vocab_size - 2:
            break
        vocab.setdefault(left + right, len(vocab))
        merges.append((left, right))
    if len(vocab) < vocab_size - 2:
        raise UserError(
            f"the texts yield {len(vocab) + 2} pieces, vocab_size asks for {vocab_size}",
            allowed=f"{smallest} to {len(vocab) + 2}, or more texts",
        )
    vocab |= {"<|startoftext|>": vocab_size - 2, "<|endoftext|>": vocab_size - 1}
    if pad_token not in vocab:
        raise UserError(
            f"pad_token {pad_token!r} is not in the vocabulary", allowed="<|endoftext|>, ! or another piece"
        )
    config = {
        "tokenizer_class": "CLIPTokenizer",
        **CLIP_SPECIALS,
        "pad_token": pad_token,
        "model_max_length": max_tokens,
    }
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    files = {
        "vocab.json": json.dumps(vocab, ensure_ascii=False).encode() + b"\n",
        "merges.txt": "\n".join(lines).encode() + b"\n",
        "tokenizer_config.json": _json_bytes(config),
    }
    return _write(Path(folder), files)


def _byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for each byte, in the order CLIP numbers them."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {**{byte: chr(byte) for byte in shown}, **{byte: chr(256 + k) for k, byte in enumerate(hidden)}}


def _json_bytes(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


def _write(folder: Path, files: Mapping[str, bytes]) -> Tokenizer:
    tokenizer = tokenizer_from_files(files, where=str(folder))  # before writing: nothing broken reaches the disk
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    return tokenizer

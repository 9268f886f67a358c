"""Tokenizers for a new language, trained on its texts and written as files that stock tokenizers open.

`train_tokenizer` is the way in: it knows four families of text encoders, and which choices each leaves open. The same
texts and options give the same files, byte for byte.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from kotoe.errors import UserError, unknown
from kotoe.tokenizers import (
    BERT_SPECIALS,
    CLIP_SPECIALS,
    FILES,
    LARGEST_LIMIT,
    SPM_STOCK,
    WORD_END,
    bpe_backend,
    tokenizer_from_files,
)
from kotoe.tokens import Tokenizer

NORMALIZATIONS = ("nmt_nfkc", "nfkc", "identity", "nfkc_cf", "nmt_nfkc_cf")
# What each family leaves open, the default first. One value: the family's classes do nothing else. Not here: no such
# thing in this family.
FAMILIES: dict[str, dict[str, tuple[Any, ...]]] = {
    "clip": {
        "model_type": ("bpe",),
        "byte_fallback": (True,),
        "lower_case": (True,),
        "pad_token": ("<|endoftext|>", "!"),
    },
    "sentencepiece": {
        "model_type": ("unigram", "bpe"),
        "normalization": NORMALIZATIONS,
        "byte_fallback": (True, False),
        "character_coverage": (1.0,),
        "lower_case": (False, True),
    },
    "xlm-roberta": {
        "model_type": ("unigram",),
        "normalization": ("nmt_nfkc",),
        "byte_fallback": (False,),
        "character_coverage": (1.0,),
        "lower_case": (False,),
    },
    "bert": {
        "model_type": ("wordpiece",),
        "byte_fallback": (False,),
        "character_coverage": (1.0,),
        "lower_case": (True, False),
    },
}
WHY = {  # why a family leaves something not open
    "clip": "CLIPTokenizer always makes NFC and lower case, and reads bytes",
    "xlm-roberta": "XLMRobertaTokenizer reads unigram pieces of NFKC text, split at white space, and no bytes",
    "bert": "BertTokenizer has a normalisation of its own, lower-cased or not, and knows no bytes",
    "sentencepiece": "its pad is <pad>, id 3",
}
LEAST_COVERAGE = {"sentencepiece": 0.98, "xlm-roberta": 0.98}  # SentencePiece's trainer takes no less
SKIPPED = "\u2585"  # a text with it is left out by SentencePiece's trainer, without a word
SPM_SPECIALS = 3  # <unk> 0, <s> 1, </s> 2
XLM_MORE = 2  # ids beyond the SentencePiece model's: <pad> among the first four, and <mask> at the end
BYTES = 256


def settled(family: str, **asked: Any) -> dict[str, Any]:
    """Every choice of a family: what was asked, and the default for what is None.

    Raises UserError for a family there is none of, and for what the family's own classes wouldn't do.
    """
    if family not in FAMILIES:
        raise unknown("family", family, FAMILIES)
    choices = {name: allowed[0] for name, allowed in FAMILIES[family].items()}
    for name, value in asked.items():
        if value is None:
            continue
        allowed = FAMILIES[family].get(name, ())
        if name == "character_coverage" and allowed:
            least = LEAST_COVERAGE.get(family, 0.0)
            if not max(least, 1e-9) <= value <= 1:
                raise UserError(
                    f"character_coverage {value} for the family {family}", allowed=f"{least or 'more than 0'} to 1"
                )
        elif value not in allowed:
            raise UserError(
                f"{name} {_said(value)} for the family {family}",
                allowed=", ".join(map(_said, allowed)) or f"no {name}",
                hint=WHY[family] if len(allowed) < 2 else "",
            )
        choices[name] = value
    return choices


def _said(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def train_tokenizer(
    texts: Iterable[str],
    folder: Path | str,
    *,
    family: str,
    vocab_size: int,
    max_tokens: int = 77,
    overwrite: bool = False,
    **choices: Any,
) -> Tokenizer:
    """Train the tokenizer of an encoder family on texts and write its files into `folder`, all of them or none.

    family:     clip, sentencepiece (rinna's layout: no BOS, </s> after, a pad of its own), xlm-roberta or bert.
    vocab_size: ids in all, special tokens included: the rows of the encoder's embedding.
    max_tokens: positions of the encoder, special tokens included.
    choices:    model_type, normalization, byte_fallback, character_coverage, lower_case, pad_token: as far as the
                family leaves them open (FAMILIES), None for its default.
    Raises UserError when the texts or the family don't allow it.
    """
    chosen = settled(family, **choices)
    if not 3 <= max_tokens <= LARGEST_LIMIT:
        raise UserError(f"max_tokens {max_tokens}", allowed=f"3 to {LARGEST_LIMIT}")
    given = [text for text in texts if text.strip()]
    if not given:
        raise UserError("no text to train a tokenizer on", allowed="one text that isn't blank, or more")
    for name in ("model_type", "normalization", "byte_fallback", "lower_case"):
        if len(FAMILIES[family].get(name, ())) == 1:  # settled by the family
            del chosen[name]
    train = {
        "clip": train_clip_bpe,
        "sentencepiece": train_sentencepiece,
        "xlm-roberta": train_xlm_roberta,
        "bert": train_wordpiece,
    }[family]
    return train(given, folder, vocab_size, max_tokens=max_tokens, overwrite=overwrite, **chosen)  # type: ignore[operator]


# --- SentencePiece ----------------------------------------------------------------------------------------------------


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
    normalization: str = "nmt_nfkc",
    at_most: bool = False,
    overwrite: bool = False,
) -> Tokenizer:
    """Train a SentencePiece model on texts and write it with its configuration into `folder`.

    vocab_size:         pieces in all; ids 0 to 3 are <unk>, <s>, </s>, <pad>, then 256 bytes with byte_fallback.
    at_most:            fewer pieces than vocab_size are well too, where the texts have no more (unigram only).
    model_type:         "unigram" or "bpe".
    byte_fallback:      spell characters outside the vocabulary in bytes instead of as <unk>.
    character_coverage: share of the characters seen that get a piece of their own.
    normalization:      one of NORMALIZATIONS, kept in the model. "identity" keeps runs of spaces too.
    Raises UserError when the texts don't allow this vocabulary size.
    """
    lines = [line.lower() if lower_case else line for line in texts if line.strip()]
    model = _sentencepiece_model(
        lines,
        vocab_size,
        model_type=model_type,
        byte_fallback=byte_fallback,
        character_coverage=character_coverage,
        normalization=normalization,
        pad_id=3,
        at_most=at_most,
    )
    # Stock transformers has no class that reads the model itself for a text encoder. Where tokenizer.json can say the
    # same, it does; case folding it does otherwise.
    twice = model_type == "unigram" and not lower_case and not normalization.endswith("_cf")
    config = {
        "tokenizer_class": SPM_STOCK if twice else "T5Tokenizer",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "extra_ids": 0,
        "do_lower_case": lower_case,
        "model_max_length": max_tokens,
    }
    files = {
        "spiece.model": model,
        **({"tokenizer.json": stock_json(model)} if twice else {}),
        "tokenizer_config.json": _json_bytes(config),
    }
    return _write(Path(folder), files, overwrite)


def train_xlm_roberta(
    texts: Iterable[str],
    folder: Path | str,
    vocab_size: int,
    *,
    max_tokens: int = 77,
    character_coverage: float = 1.0,
    overwrite: bool = False,
) -> Tokenizer:
    """Train a SentencePiece unigram model on texts and write it as XLM-RoBERTa's, with tokenizer.json beside it.

    vocab_size: ids in all: <s> 0, <pad> 1, </s> 2, <unk> 3, the model's pieces, <mask>.
    tokenizer.json says the same once more, since stock transformers needs protobuf to read the model itself. Its class
    composes less: what is written in parts (half-width kana with a mark, Hangul in letters) it leaves in parts.
    Raises UserError when the texts don't allow this vocabulary size.
    """
    model = _sentencepiece_model(
        [line for line in texts if line.strip()],
        vocab_size,
        character_coverage=character_coverage,
        normalization="nmt_nfkc",
        pad_id=-1,
        more=XLM_MORE,
    )
    config = {
        "tokenizer_class": "XLMRobertaTokenizer",
        "bos_token": "<s>",
        "cls_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
        "model_max_length": max_tokens,
    }
    files = {
        "sentencepiece.bpe.model": model,
        "tokenizer.json": _xlm_json(model),
        "tokenizer_config.json": _json_bytes(config),
    }
    return _write(Path(folder), files, overwrite)


def _sentencepiece_model(
    lines: Sequence[str],
    vocab_size: int,
    *,
    character_coverage: float,
    normalization: str,
    pad_id: int,
    model_type: str = "unigram",
    byte_fallback: bool = False,
    more: int = 0,
    at_most: bool = False,
) -> bytes:
    """The .model file. more: ids that the family adds to the model's pieces."""
    from sentencepiece import SentencePieceTrainer

    if model_type not in ("unigram", "bpe"):
        raise unknown("model_type", model_type, ("unigram", "bpe"))
    if normalization not in NORMALIZATIONS:
        raise unknown("normalization", normalization, NORMALIZATIONS)
    specials = SPM_SPECIALS + (pad_id >= 0) + more
    least = specials + BYTES * byte_fallback + 1
    if vocab_size < least:
        parts = f"{specials} specials, {'256 bytes, ' * byte_fallback}and a piece"
        raise UserError(f"vocab_size {vocab_size}", allowed=f"{least} or more ({parts})")
    for line in lines:
        if SKIPPED in line:
            raise UserError(
                f"the text {_start(line)!r} holds {SKIPPED} (U+2585), and SentencePiece would leave it out",
                allowed="texts without that character",
                hint="Replace it in the file",
            )
    written = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=written,
            vocab_size=vocab_size - more,
            model_type=model_type,
            byte_fallback=byte_fallback,
            character_coverage=character_coverage,
            normalization_rule_name=normalization,
            remove_extra_whitespaces=normalization != "identity",
            max_sentence_length=max([4192, *(len(line.encode()) + 1 for line in lines)]),  # longer ones are left out
            hard_vocab_limit=not at_most,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=pad_id,
            num_threads=1,  # the same texts give the same model
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise _impossible(str(error), vocab_size, len(lines), more) from None
    return written.getvalue()


def _impossible(reason: str, vocab_size: int, texts: int, more: int) -> UserError:
    given = f"can't train a vocabulary of {vocab_size} on {texts} texts"
    if found := re.search(r"too high .*<= (\d+)", reason):
        return UserError(
            f"{given}: it is too large", allowed=f"at most {int(found[1]) + more} from these texts, or more texts"
        )
    if found := re.search(r"smaller than required_chars. \d+ vs (\d+)", reason):
        return UserError(
            f"{given}: it is too small for their characters",
            allowed=f"{int(found[1]) + more} or more",
            hint="A lower character_coverage leaves rare characters out",
        )
    last = (reason.strip().splitlines() or ["no reason given"])[-1].rpartition("] ")[2].rstrip(". ")
    return UserError(f"{given} ({last})")


def stock_json(model: bytes) -> bytes:
    """A SentencePiece unigram model once more, as tokenizer.json: what stock PreTrainedTokenizerFast reads.

    The same pieces, ids and bytes, and </s> after a text. It composes less: see `train_xlm_roberta`.
    """
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Regex, decoders, models, normalizers
    from tokenizers import Tokenizer as Backend

    read = SentencePieceProcessor(model_proto=model)
    pieces = range(read.get_piece_size())
    vocab = [(read.id_to_piece(i), read.get_score(i)) for i in pieces]
    fallback = any(read.is_byte(i) for i in pieces)
    backend = Backend(models.Unigram(vocab, unk_id=read.unk_id(), byte_fallback=fallback))
    characters = _characters(model)
    tidied = (normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " "))
    backend.normalizer = normalizers.Sequence(
        [
            *((normalizers.Precompiled(characters), *tidied) if characters else ()),  # "identity" keeps its spaces
            normalizers.Prepend("▁"),
            normalizers.Replace(" ", "▁"),
        ]
    )
    spelt = (decoders.ByteFallback(),) if fallback else ()
    backend.decoder = decoders.Sequence([*spelt, decoders.Metaspace(replacement="▁", prepend_scheme="always")])
    eos = read.id_to_piece(read.eos_id())
    return _stock(backend, f"$A {eos}", {eos: read.eos_id()}, [vocab[i][0] for i in pieces if read.is_control(i)])


def _xlm_json(model: bytes) -> bytes:
    """What stock XLMRobertaTokenizer reads, from a SentencePiece model."""
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    read = SentencePieceProcessor(model_proto=model)
    own = [(read.id_to_piece(i), read.get_score(i)) for i in range(SPM_SPECIALS, read.get_piece_size())]
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    vocab = [*((piece, 0.0) for piece in specials), *own, ("<mask>", 0.0)]
    backend = Backend(models.Unigram(vocab, unk_id=3, byte_fallback=False))
    backend.normalizer = normalizers.Precompiled(_characters(model))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    return _stock(backend, "<s> $A </s>", {"<s>": 0, "</s>": 2}, [*specials, "<mask>"])


def _stock(backend: Any, template: str, put: Mapping[str, int], specials: Sequence[str]) -> bytes:
    """The file of a backend that puts specials round a text. Pairs of texts, which no text encoder gets, follow."""
    from tokenizers import processors

    pair = f"{template} {template.replace('$A', '$B').replace('<s> ', '</s> ')}"
    backend.post_processor = processors.TemplateProcessing(single=template, pair=pair, special_tokens=[*put.items()])
    backend.add_special_tokens(list(specials))
    return bytes(backend.to_str(pretty=True).encode() + b"\n")


def _characters(model: bytes) -> bytes:
    """How a SentencePiece model normalises: its precompiled map of characters, empty for `identity`."""
    (normalizer,) = _fields(model, 3)  # ModelProto.normalizer_spec
    return next(_fields(normalizer, 2), b"")  # NormalizerSpec.precompiled_charsmap


def _fields(message: bytes, wanted: int) -> Iterator[bytes]:
    """The contents of one length-delimited field of a protocol buffer that SentencePiece has just written."""
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        field, kind = divmod(number(), 8)
        if kind == 0:
            number()
        else:
            size = {1: 8, 5: 4}[kind] if kind in (1, 5) else number()
            if field == wanted and kind == 2:
                yield message[at : at + size]
            at += size


# --- CLIP's byte-level BPE --------------------------------------------------------------------------------------------


def train_clip_bpe(
    texts: Iterable[str],
    folder: Path | str,
    vocab_size: int,
    *,
    max_tokens: int = 77,
    pad_token: str = "<|endoftext|>",
    overwrite: bool = False,
) -> Tokenizer:
    """Train a byte-level BPE of CLIP's layout on texts and write what stock `CLIPTokenizer` opens into `folder`.

    The vocabulary is CLIP's: 256 bytes, 256 bytes at a word's end, merges, <|startoftext|>, <|endoftext|>; EOS is the
    largest id because CLIP pools there. pad_token: "<|endoftext|>" as SD 1.x, "!" (id 0) as SD 2.x.
    Raises UserError when vocab_size is under 514 or over what the texts yield.
    """
    from tokenizers import trainers

    letters = list(byte_letters().values())
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
        raise _yields(len(vocab) + 2, vocab_size, smallest)
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
    return _write(Path(folder), files, overwrite)


def byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for each byte, in the order CLIP numbers them."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {**{byte: chr(byte) for byte in shown}, **{byte: chr(256 + k) for k, byte in enumerate(hidden)}}


# --- BERT's WordPiece -------------------------------------------------------------------------------------------------


def train_wordpiece(
    texts: Iterable[str],
    folder: Path | str,
    vocab_size: int,
    *,
    max_tokens: int = 77,
    lower_case: bool = True,
    character_coverage: float = 1.0,
    at_most: bool = False,
    overwrite: bool = False,
) -> Tokenizer:
    """Train a WordPiece vocabulary on texts and write what stock `BertTokenizer` opens into `folder`.

    vocab_size:         pieces in all; ids 0 to 4 are [PAD], [UNK], [CLS], [SEP], [MASK].
    lower_case:         lower case without accents, as BERT's uncased models read; else texts as they are.
    character_coverage: share of the characters seen that get a piece; a word with another character becomes [UNK].
    at_most:            fewer pieces than vocab_size are well too, where the texts have no more.
    Raises UserError when vocab_size is under what the characters need, or over what the texts yield.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    backend = Backend(models.WordPiece(unk_token=BERT_SPECIALS["unk_token"]))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lower_case)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in texts:
        split = backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))
        words.update(word for word, _ in split)
    seen: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            seen[character] += count
    kept = _most_frequent(seen, character_coverage)
    words = Counter({word: count for word, count in words.items() if kept.issuperset(word)})
    letters = sorted({character for word in words for character in word})
    further = sorted({character for word in words for character in word[1:]})
    # Named before counting starts, as for CLIP: else pieces get their ids, and ties between merges fall, by chance.
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in further)]
    if vocab_size < len(pieces):
        raise UserError(
            f"vocab_size {vocab_size} is too small for the characters of the texts",
            allowed=f"{len(pieces)} or more",
            hint="A lower character_coverage leaves rare characters out",
        )
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=pieces, show_progress=False)
    backend.train_from_iterator((word for word in sorted(words) for _ in range(words[word])), trainer)
    vocab = backend.get_vocab()
    if len(vocab) < vocab_size and not at_most:
        raise _yields(len(vocab), vocab_size, len(pieces))
    config = {
        "tokenizer_class": "BertTokenizer",
        **BERT_SPECIALS,
        "do_lower_case": lower_case,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "model_max_length": max_tokens,
    }
    listed = "".join(f"{piece}\n" for piece in sorted(vocab, key=vocab.__getitem__))
    return _write(Path(folder), {"vocab.txt": listed.encode(), "tokenizer_config.json": _json_bytes(config)}, overwrite)


def _most_frequent(seen: Counter[str], share: float) -> frozenset[str]:
    """The fewest characters that make up this share of all; of equally frequent ones those that come first."""
    ranked = sorted(seen, key=lambda character: (-seen[character], character))
    wanted, sums = share * seen.total(), accumulate(seen[character] for character in ranked)
    enough = next((k for k, reached in enumerate(sums, start=1) if reached >= wanted), len(ranked))
    return frozenset(ranked[:enough])


# --- Writing ----------------------------------------------------------------------------------------------------------


def _yields(most: int, vocab_size: int, least: int) -> UserError:
    return UserError(
        f"the texts yield {most} pieces, vocab_size asks for {vocab_size}", allowed=f"{least} to {most}, or more texts"
    )


def _start(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + "…"


def _json_bytes(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


def _write(folder: Path, files: Mapping[str, bytes], overwrite: bool) -> Tokenizer:
    from kotoe.checkpoints.files import replacing

    tokenizer = tokenizer_from_files(files, where=str(folder))  # before writing: nothing broken reaches the disk
    with replacing(folder, overwrite=overwrite, marker="tokenizer_config.json", drop=FILES) as new:
        tokenizer.save(new)
    return tokenizer

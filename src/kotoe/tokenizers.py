"""Tokenizers: texts to ids of one fixed length, from a checkpoint's files.

CLIP's byte-level BPE equals transformers' `CLIPTokenizer` id for id, WordPiece its `BertTokenizer`. SentencePiece
is laid out as rinna's Japanese Stable Diffusion lays it out (no BOS, EOS appended, a pad of its own) or as XLM-RoBERTa
does (ids moved by one, <s> before and </s> after). What they all do stands in `tokens.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kotoe.errors import CheckpointError
from kotoe.tokens import Tokenizer

LARGEST_LIMIT = 100_000  # transformers writes 1e30 into model_max_length when there is no limit

CLIP_CONFIG_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
SPM_XLM, SPM_STOCK = "sentencepiece.bpe.model", "PreTrainedTokenizerFast"  # XLM-R's file; what opens tokenizer.json
SPM_NAMES = ("spiece.model", "sentencepiece.model", SPM_XLM, "tokenizer.model")
FILES = ("tokenizer.json", "vocab.json", "merges.txt", *CLIP_CONFIG_FILES, *SPM_NAMES, "vocab.txt")

# The order in which transformers appends special tokens that the vocabulary lacks.
SPECIAL_KEYS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
CLIP_SPECIALS = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}
CLIP_PATTERN = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
WORD_END = "</w>"


def load_tokenizer(folder: Path | str, *, positions: int | None = None) -> Tokenizer:
    """The tokenizer in a folder you trust (a checkpoint's folders are read through kotoe.checkpoints).

    positions: the text encoder's number of positions, for files that name no limit.
    Raises CheckpointError when files are missing, damaged or of a kind Kotoe doesn't read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"no tokenizer folder at {folder}")
    return tokenizer_from_files(
        {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()},
        positions=positions,
        where=str(folder),
    )


def tokenizer_from_files(
    files: Mapping[str, bytes], *, positions: int | None = None, where: str = "tokenizer"
) -> Tokenizer:
    """The tokenizer that a checkpoint's files (name to content) describe. See `load_tokenizer`."""
    files = dict(files)
    config = parse_json(files.get("tokenizer_config.json", b"{}"), f"{where}/tokenizer_config.json")
    read = _reader(files, config, where)
    if config.get("padding_side", "right") != "right":
        raise CheckpointError(f"{where}: padding_side {config['padding_side']!r}", allowed="right")
    limit: Any = config.get("model_max_length")
    if not _whole(limit) or not 1 <= limit <= LARGEST_LIMIT:
        if not _whole(positions):
            raise CheckpointError(
                f"{where}: tokenizer_config.json names no limit (model_max_length {limit!r})",
                allowed=f"model_max_length from 3 to {LARGEST_LIMIT}",
                hint="Write the text encoder's max_position_embeddings there",
            )
        limit = config["model_max_length"] = positions
        files["tokenizer_config.json"] = json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"
    tokenizer = read(files, config, limit, where)
    if tokenizer.room < 1:
        raise CheckpointError(f"{where}: model_max_length {limit} leaves no room for text", allowed="3 or more")
    return tokenizer


def _reader(files: Mapping[str, bytes], config: Mapping[str, Any], where: str) -> Callable[..., Tokenizer]:
    """Which kind of tokenizer the files hold."""
    if any(name in files for name in SPM_NAMES):
        kind = config.get("tokenizer_class", "XLMRobertaTokenizer" if SPM_XLM in files else "T5Tokenizer")
        if kind not in SPM_CLASSES:
            raise CheckpointError(
                f"{where}: tokenizer_class {kind!r} over a SentencePiece model", allowed=", ".join(SPM_CLASSES)
            )
        return SPM_CLASSES[kind]
    bert = config.get("tokenizer_class") in BERT_CLASSES
    if "vocab.txt" in files or (bert and "tokenizer.json" in files):
        if not bert and "tokenizer_class" in config:
            raise CheckpointError(
                f"{where}: tokenizer_class {config['tokenizer_class']!r} over a vocab.txt",
                allowed=", ".join(BERT_CLASSES),
            )
        return _wordpiece
    if "tokenizer.json" not in files and not {"vocab.json", "merges.txt"} <= files.keys():
        raise CheckpointError(
            f"{where}: no tokenizer that Kotoe reads; found {', '.join(files) or 'no file of one'}",
            allowed=f"vocab.json with merges.txt, tokenizer.json, vocab.txt, or one of {', '.join(SPM_NAMES)}",
        )
    return _clip_bpe


def parse_json(content: bytes, what: str) -> dict[str, Any]:
    """A JSON object of untrusted origin. Refuses other types, repeated keys, NaN, deep nesting and other encodings."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [key for key, _ in pairs]
            raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r} twice")
        return found

    def constant(name: str) -> float:
        if name == "NaN":
            raise ValueError("NaN")
        return float(name)  # diffusers writes -Infinity into scheduler configurations

    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=once, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise CheckpointError(f"{what} is not valid JSON ({reason})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} holds a {type(value).__name__}", allowed="a JSON object")
    return value


# --- CLIP byte-level BPE ------------------------------------------------------------------------------------


def _clip_bpe(files: Mapping[str, bytes], config: dict[str, Any], max_tokens: int, where: str) -> Tokenizer:
    if {config.get("add_bos_token", True), config.get("add_eos_token", True)} != {True}:
        raise CheckpointError(f"{where}: add_bos_token or add_eos_token is not true", allowed="true; CLIP adds both")
    legacy = parse_json(files.get("special_tokens_map.json", b"{}"), f"{where}/special_tokens_map.json")
    specials = {**CLIP_SPECIALS, **_chosen(config)}
    if "added_tokens_decoder" not in config:  # as transformers: the map counts only for files of before that key
        specials |= _chosen(legacy)
    added = _added_tokens(files, config, where)
    if "tokenizer.json" in files:
        vocab, merges, more = _from_tokenizer_json(files["tokenizer.json"], f"{where}/tokenizer.json")
        if "added_tokens_decoder" not in config:
            added = {**added, **more}
    else:
        vocab = parse_json(files["vocab.json"], f"{where}/vocab.json")
        merges = _read_merges(files["merges.txt"], f"{where}/merges.txt")
    backend = bpe_backend(vocab, merges, _content(specials["unk_token"]), where)
    _add_tokens(backend, added, specials, config, legacy)

    def special(key: str) -> int:
        found = backend.token_to_id(_content(specials[key]))
        if found is None:
            raise CheckpointError(f"{where}: {key} {_content(specials[key])!r} is not in the vocabulary")
        return int(found)

    def text_ids(texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in backend.encode_batch(list(texts), add_special_tokens=False)]

    def text_pieces(text: str) -> list[str]:
        spans = backend.encode(text, add_special_tokens=False).offsets
        return ["" if k and span == spans[k - 1] else text[slice(*span)] for k, span in enumerate(spans)]

    def text_starts(text: str) -> list[int]:
        return [start for start, _ in backend.encode(text, add_special_tokens=False).offsets]

    return Tokenizer(
        kind="clip-bpe",
        max_tokens=max_tokens,
        bos=special("bos_token"),
        eos=special("eos_token"),
        pad=special("pad_token"),
        vocab_size=1 + max(backend.get_vocab(with_added_tokens=True).values()),
        files=files,
        text_ids=text_ids,
        text_pieces=text_pieces,
        text_starts=text_starts,
    )


def bpe_backend(vocab: dict[str, Any], merges: list[tuple[str, str]], unk: str, where: str) -> Any:
    """The `tokenizers` pipeline that transformers builds for CLIP: NFC, white space to one space, lower case, bytes."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    if not all(_whole(i) and 0 <= i < 2**31 for i in vocab.values()) or len(set(vocab.values())) != len(vocab):
        raise CheckpointError(f"{where}: the vocabulary's ids are not distinct whole numbers")
    try:
        model = models.BPE(
            vocab=vocab,
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix=WORD_END,
            fuse_unk=False,
            unk_token=unk,
        )
    except Exception as error:  # noqa: BLE001 (what the library raises, for example for a merge of unknown pieces)
        raise CheckpointError(f"{where}: vocabulary and merges don't fit together ({error})") from None
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return backend


def _read_merges(content: bytes, what: str) -> list[tuple[str, str]]:
    merges = []
    for number, line in enumerate(_text(content, what).split("\n"), start=1):
        line = line.rstrip("\r")
        if line.startswith("#version") or not line:
            continue
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise CheckpointError(f"{what}: line {number} {line!r}", allowed="two pieces with one space between")
        merges.append((left, right))
    return merges


def _from_tokenizer_json(content: bytes, what: str) -> tuple[dict[str, Any], list[tuple[str, str]], dict[int, dict]]:
    """Vocabulary, merges and added tokens of a tokenizer.json, after checking that it is CLIP's kind of BPE."""
    value = parse_json(content, what)
    model = value.get("model")
    model = model if isinstance(model, dict) else {}
    steps = [
        [step.get("type") for step in (section.get(key) or [section])]
        for section, key in (
            (value.get("normalizer") or {}, "normalizers"),
            (value.get("pre_tokenizer") or {}, "pretokenizers"),
        )
    ]
    found = (model.get("type"), model.get("end_of_word_suffix"), *steps)
    clip = ("BPE", WORD_END, ["NFC", "Replace", "Lowercase"], ["Split", "ByteLevel"])
    if found != clip:
        raise CheckpointError(f"{what} describes another tokenizer than CLIP's: {found}", allowed=str(clip))
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise CheckpointError(f"{what}: no vocab or merges in it")
    pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in merges]
    if any(len(p) != 2 for p in pairs):
        raise CheckpointError(f"{what}: a merge is not a pair")
    added = {int(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in value.get("added_tokens") or []}
    return vocab, pairs, added  # type: ignore[return-value]


def _added_tokens(files: Mapping[str, bytes], config: dict[str, Any], where: str) -> dict[int, dict]:
    """Id to token of what was added after the vocabulary was trained, as the files of both generations write it."""
    decoder = config.get("added_tokens_decoder")
    if decoder is not None:
        try:
            return {int(i): {**token} for i, token in decoder.items()}
        except (AttributeError, TypeError, ValueError):
            raise CheckpointError(f"{where}: added_tokens_decoder is not a table of id to token") from None
    old = parse_json(files.get("added_tokens.json", b"{}"), f"{where}/added_tokens.json")
    return {int(i): {"content": content, "normalized": True, "special": False} for content, i in old.items()}


def _add_tokens(backend: Any, added: dict[int, dict], specials: dict, config: dict, legacy: dict) -> None:
    from tokenizers import AddedToken

    def token(value: Any, *, special: bool) -> Any:
        if not isinstance(value, dict):
            return AddedToken(value, special=True)
        flags = ("single_word", "lstrip", "rstrip", "normalized")
        kept = {flag: bool(value[flag]) for flag in flags if flag in value}
        return AddedToken(value["content"], **kept, special=special or bool(value.get("special", False)))

    names = {_content(v) for v in specials.values()}
    found = {t["content"]: token(t, special=t["content"] in names) for _, t in sorted(added.items())}
    known = set(found)
    extra = [e for source in (config, legacy) for e in _extra(source)]
    for value in [*(specials[key] for key in SPECIAL_KEYS if key in specials), *extra]:
        if _content(value) not in known:  # of two that share their text, the later one's flags hold, as in transformers
            found[_content(value)] = token(value, special=True)
    backend.add_tokens(list(found.values()))


def _chosen(source: dict[str, Any]) -> dict[str, Any]:
    return {key: source[key] for key in SPECIAL_KEYS if isinstance(source.get(key), str | dict)}


def _extra(source: dict[str, Any]) -> list[Any]:
    found = source.get("extra_special_tokens") or source.get("additional_special_tokens") or []
    return [e for e in (found.values() if isinstance(found, dict) else found) if isinstance(e, str | dict)]


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _text(content: bytes, what: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{what} is not UTF-8 ({error.reason} at byte {error.start})") from None


# --- WordPiece ----------------------------------------------------------------------------------------------

BERT_CLASSES = ("BertTokenizer", "BertTokenizerFast")
BERT_SPECIALS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
BERT_FLAGS: dict[str, tuple[Any, ...]] = {  # the default first
    "do_lower_case": (True, False),
    "tokenize_chinese_chars": (True, False),
    "strip_accents": (None, True, False),
    "do_basic_tokenize": (True,),
    "never_split": (None, []),
}


def _wordpiece(files: Mapping[str, bytes], config: dict[str, Any], max_tokens: int, where: str) -> Tokenizer:
    from tokenizers import AddedToken, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import WordPiece

    for key, allowed in BERT_FLAGS.items():
        if config.get(key, allowed[0]) not in allowed:
            raise CheckpointError(f"{where}: {key} {config[key]!r}", allowed=", ".join(map(repr, allowed)))
    vocab = _vocab_txt(files, where) if "vocab.txt" in files else _wordpiece_json(files["tokenizer.json"], where)
    legacy = parse_json(files.get("special_tokens_map.json", b"{}"), f"{where}/special_tokens_map.json")
    chosen = {key: _content(v) for key, v in {**BERT_SPECIALS, **_chosen(legacy), **_chosen(config)}.items()}
    for key in BERT_SPECIALS:
        if chosen[key] not in vocab:
            raise CheckpointError(f"{where}: {key} {chosen[key]!r} is not in the vocabulary")
    backend = Backend(WordPiece(vocab, unk_token=chosen["unk_token"], max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens([AddedToken(chosen[key], special=True, normalized=False) for key in BERT_SPECIALS])

    def text_ids(texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in backend.encode_batch(list(texts), add_special_tokens=False)]

    def text_pieces(text: str) -> list[str]:
        return [text[slice(*span)] for span in backend.encode(text, add_special_tokens=False).offsets]

    def text_starts(text: str) -> list[int]:
        return [start for start, _ in backend.encode(text, add_special_tokens=False).offsets]

    return Tokenizer(
        kind="wordpiece",
        max_tokens=max_tokens,
        bos=vocab[chosen["cls_token"]],
        eos=vocab[chosen["sep_token"]],
        pad=vocab[chosen["pad_token"]],
        vocab_size=1 + max(vocab.values()),
        files=files,
        text_ids=text_ids,
        text_pieces=text_pieces,
        text_starts=text_starts,
    )


def _vocab_txt(files: Mapping[str, bytes], where: str) -> dict[str, int]:
    """One piece a line; its number is its id. Only line feeds end a line: published vocabularies hold U+2028."""
    lines = _text(files["vocab.txt"], f"{where}/vocab.txt").removesuffix("\n").split("\n")
    vocab: dict[str, int] = {}
    for number, line in enumerate(lines):
        piece = line.removesuffix("\r")
        if piece in vocab:
            raise CheckpointError(f"{where}/vocab.txt: lines {vocab[piece] + 1} and {number + 1} are both {piece!r}")
        vocab[piece] = number
    return vocab


def _wordpiece_json(content: bytes, where: str) -> dict[str, int]:
    value = parse_json(content, f"{where}/tokenizer.json")
    model = value.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) and model.get("type") == "WordPiece" else None
    if not isinstance(vocab, dict) or not all(_whole(i) and 0 <= i < 2**31 for i in vocab.values()):
        raise CheckpointError(f"{where}/tokenizer.json holds no WordPiece vocabulary", hint="Put vocab.txt beside it")
    if len(set(vocab.values())) != len(vocab):
        raise CheckpointError(f"{where}/tokenizer.json: the vocabulary's ids are not distinct")
    return vocab


# --- SentencePiece ------------------------------------------------------------------------------------------


def _spm_model(files: Mapping[str, bytes], where: str) -> Any:
    from sentencepiece import SentencePieceProcessor

    name = next(n for n in SPM_NAMES if n in files)
    try:
        model = SentencePieceProcessor(model_proto=files[name])
        if model.get_piece_size() < 1:
            raise ValueError("empty")
    except (RuntimeError, OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}/{name} is not a SentencePiece model ({str(error).strip()[:120]})") from None
    return model


def _spm_starts(model: Any, text: str) -> list[int]:
    """Where each piece of a text begins. Pieces spell the normalised text, whose every character knows its origin."""
    normalised, origins = model.normalize(text, with_offsets=True)
    character = [k for k, c in enumerate(normalised) for _ in c.encode()]  # of each byte
    starts, byte = [], 0
    for i, piece in zip(model.encode(text, out_type=int), model.encode(text, out_type=str), strict=True):
        space = len("▁".encode()) if len(piece) > 1 and piece.startswith("▁") else 0  # a piece is about its letters
        starts.append(min(origins[character[byte + space]], len(text) - 1))
        byte += 1 if model.is_byte(i) else len(piece.encode())
    return starts


def _sentencepiece(files: Mapping[str, bytes], config: dict[str, Any], max_tokens: int, where: str) -> Tokenizer:
    model = _spm_model(files, where)
    legacy = parse_json(files.get("special_tokens_map.json", b"{}"), f"{where}/special_tokens_map.json")
    chosen = {**_chosen(legacy), **_chosen(config)}

    def special(key: str, own: int) -> int:
        if key not in chosen:
            found = own
        else:
            found = model.piece_to_id(_content(chosen[key]))
            found = -1 if model.id_to_piece(found) != _content(chosen[key]) else found  # unknown pieces give unk's id
        if found < 0:
            asked = _content(chosen[key]) if key in chosen else "none"
            raise CheckpointError(
                f"{where}: no id for {key} ({asked})", hint=f"Name the piece as {key} in tokenizer_config.json"
            )
        return int(found)

    lower = config.get("do_lower_case", False)
    if not isinstance(lower, bool):
        raise CheckpointError(f"{where}: do_lower_case {lower!r}", allowed="true, false")

    def cased(text: str) -> str:
        return text.lower() if lower else text

    def text_ids(texts: Sequence[str]) -> list[list[int]]:
        return [list(model.encode(cased(t), out_type=int)) for t in texts]  # of a list it would start threads

    def text_pieces(text: str) -> list[str]:
        return list(model.encode(cased(text), out_type=str))

    def text_starts(text: str) -> list[int]:
        if not lower:
            return _spm_starts(model, text)
        origin = [k for k, character in enumerate(text) for _ in character.lower()]  # a capital may become two letters
        return [origin[min(at, len(origin) - 1)] for at in _spm_starts(model, text.lower())]

    return Tokenizer(
        kind="sentencepiece",
        max_tokens=max_tokens,
        bos=None,
        eos=special("eos_token", model.eos_id()),
        pad=special("pad_token", model.pad_id()),
        vocab_size=model.get_piece_size(),
        files=files,
        text_ids=text_ids,
        text_pieces=text_pieces,
        text_starts=text_starts,
    )


def _xlm_roberta(files: Mapping[str, bytes], config: dict[str, Any], max_tokens: int, where: str) -> Tokenizer:
    """XLM-RoBERTa's ids: <s> 0, <pad> 1, </s> 2, <unk> 3, then the model's pieces moved by one, then <mask>."""
    model = _spm_model(files, where)
    legacy = parse_json(files.get("special_tokens_map.json", b"{}"), f"{where}/special_tokens_map.json")
    specials = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    for key, value in {**_chosen(legacy), **_chosen(config)}.items():
        if key in specials and _content(value) != specials[key]:
            raise CheckpointError(f"{where}: {key} {_content(value)!r}", allowed=specials[key])
    own = [model.unk_id(), model.bos_id(), model.eos_id()]
    if own != [0, 1, 2]:
        raise CheckpointError(f"{where}: the SentencePiece model's <unk>, <s>, </s> are {own}", allowed="0, 1, 2")

    def text_ids(texts: Sequence[str]) -> list[list[int]]:
        return [[i + 1 if i else 3 for i in row] for row in model.encode(list(texts), out_type=int)]

    def text_pieces(text: str) -> list[str]:
        return list(model.encode(text, out_type=str))

    def text_starts(text: str) -> list[int]:
        return _spm_starts(model, text)

    return Tokenizer(
        kind="xlm-roberta",
        max_tokens=max_tokens,
        bos=0,
        eos=2,
        pad=1,
        vocab_size=model.get_piece_size() + 2,
        files=files,
        text_ids=text_ids,
        text_pieces=text_pieces,
        text_starts=text_starts,
    )


SPM_CLASSES: dict[str, Callable[..., Tokenizer]] = {
    SPM_STOCK: _sentencepiece,
    "T5Tokenizer": _sentencepiece,
    "T5TokenizerFast": _sentencepiece,
    "XLMRobertaTokenizer": _xlm_roberta,
    "XLMRobertaTokenizerFast": _xlm_roberta,
}

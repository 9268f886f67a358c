"""Tokenizers: texts to ids of one fixed length. CLIP's byte-level BPE and SentencePiece, from a checkpoint's files.

CLIP BPE equals transformers' `CLIPTokenizer` id for id; SentencePiece is laid out as rinna's Japanese Stable Diffusion
lays it out (no BOS, EOS appended, a pad of its own). Nothing is ever truncated in silence: a text over the limit is an
error that shows what would be dropped, unless the caller asks for `chunk` (all of it, in several windows) or `cut`.

Legend: B texts, L = max_tokens positions of the text encoder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kotoe.errors import CheckpointError, UserError, unknown

LONG_PROMPT = ("error", "chunk", "cut")
LARGEST_LIMIT = 100_000  # transformers writes 1e30 into model_max_length when there is no limit

CLIP_CONFIG_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
CLIP_FILES = ("tokenizer.json", "vocab.json", "merges.txt", *CLIP_CONFIG_FILES)
SPM_NAMES = ("spiece.model", "sentencepiece.model", "sentencepiece.bpe.model", "tokenizer.model")
SPM_FILES = (*SPM_NAMES, *CLIP_CONFIG_FILES)
FILES = tuple(dict.fromkeys((*CLIP_FILES, *SPM_FILES)))

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


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Ids of B texts and the report on them.

    ids:      (B, windows * L); window w of a text is columns w * L to (w + 1) * L, with its own BOS, EOS and padding.
    counts:   tokens of each text, without BOS, EOS and padding.
    overflow: the pieces of each text beyond the first window: used when chunked, dropped when cut, else empty.
    windows:  windows per text; 1 unless chunked.
    """

    ids: list[list[int]]
    counts: list[int]
    overflow: list[list[str]]
    windows: int = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokenizer:
    """One language's tokenizer. `load_tokenizer` makes it from a folder.

    kind:       "clip-bpe" or "sentencepiece".
    max_tokens: L, special tokens included; every window is exactly this long.
    bos:        id before each text, or None for none. eos: id after it. pad: id that fills up to L.
    vocab_size: one more than the largest id.
    files:      name to content of the files it was made from; `sha256` identifies them.
    text_ids:   texts to ids without BOS, EOS and padding.
    text_pieces: one text to its readable pieces, one per id; "" for the further bytes of a character spelt in bytes.
    """

    kind: str
    max_tokens: int
    bos: int | None
    eos: int
    pad: int
    vocab_size: int
    files: Mapping[str, bytes]
    text_ids: Callable[[Sequence[str]], list[list[int]]]
    text_pieces: Callable[[str], list[str]]

    @property
    def room(self) -> int:
        """Tokens of text that fit into one window."""
        return self.max_tokens - 1 - (self.bos is not None)

    @property
    def sha256(self) -> str:
        """Identity of the files: names, lengths and contents, in order of name."""
        digest = hashlib.sha256()
        for name in sorted(self.files):
            digest.update(f"{name}\0{len(self.files[name])}\0".encode() + self.files[name])
        return digest.hexdigest()

    def encode(self, texts: Sequence[str], *, long_prompt: str = "error", windows: int = 1) -> Tokens:
        """Ids (B, windows * L) of texts.

        long_prompt: what to do with a text over `room` tokens. "error" raises a UserError showing what would be
                     dropped; "chunk" splits it at the limit into windows that are encoded separately (shorter texts
                     of the batch get empty windows); "cut" drops the rest and reports it in `overflow`.
        windows:     at least this many windows, so that a prompt and its negative can be made equally long.
        """
        if isinstance(texts, str):
            raise UserError(f"one text {texts!r} where a list is expected", allowed="a list of texts")
        if long_prompt not in LONG_PROMPT:
            raise unknown("long_prompt", long_prompt, LONG_PROMPT)
        if windows < 1:
            raise UserError(f"{windows} windows", allowed="1 or more")
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError:  # half a character, as a terminal of another encoding leaves behind
                raise UserError(f"the text {text!r} is not Unicode", hint="Use a UTF-8 terminal or file") from None
        ids = self.text_ids(list(texts))
        overflow = [self._overflow(text) if len(i) > self.room else [] for text, i in zip(texts, ids, strict=True)]
        if long_prompt == "error":
            for text, i, over in zip(texts, ids, overflow, strict=True):
                if len(i) > self.room:
                    raise self._too_long(text, len(i), over)
        if long_prompt == "chunk":
            windows = max([windows, *(-(-len(i) // self.room) for i in ids)])
        return Tokens(
            ids=[self._windows(i, windows) for i in ids],
            counts=[len(i) for i in ids],
            overflow=overflow,
            windows=windows,
        )

    def _overflow(self, text: str) -> list[str]:
        return [piece for piece in self.text_pieces(text)[self.room :] if piece]

    def _windows(self, ids: list[int], windows: int) -> list[int]:
        row: list[int] = []
        for w in range(windows):
            part = ids[w * self.room : (w + 1) * self.room]
            row += [*([] if self.bos is None else [self.bos]), *part, self.eos]
            row += [self.pad] * ((w + 1) * self.max_tokens - len(row))
        return row

    def _too_long(self, text: str, count: int, over: list[str]) -> UserError:
        shown = over if len(over) <= 40 else [*over[:40], f"… ({len(over) - 40} more)"]
        start = text if len(text) <= 40 else text[:40] + "…"
        return UserError(
            f"the prompt {start!r} has {count} tokens, {count - self.room} over the limit; these would be dropped: "
            + " | ".join(shown),
            allowed=f"{self.room} tokens",
            hint="Shorten it, or pass --long-prompt chunk to use all of it",
        )

    def save(self, folder: Path | str) -> None:
        """Write the tokenizer's files, byte for byte, into an existing folder."""
        for name, content in self.files.items():
            (Path(folder) / name).write_bytes(content)


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
    spm = any(name in files for name in SPM_NAMES)
    if not spm and "tokenizer.json" not in files and not {"vocab.json", "merges.txt"} <= files.keys():
        raise CheckpointError(
            f"{where}: no tokenizer that Kotoe reads; found {', '.join(files) or 'no file of one'}",
            allowed=f"vocab.json with merges.txt, tokenizer.json, or one of {', '.join(SPM_NAMES)}",
        )
    config = parse_json(files.get("tokenizer_config.json", b"{}"), f"{where}/tokenizer_config.json")
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
    tokenizer = (_sentencepiece if spm else _clip_bpe)(files, config, limit, where)
    if tokenizer.room < 1:
        raise CheckpointError(f"{where}: model_max_length {limit} leaves no room for text", allowed="3 or more")
    return tokenizer


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
    backend = _bpe_backend(vocab, merges, _content(specials["unk_token"]), where)
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
    )


def _bpe_backend(vocab: dict[str, Any], merges: list[tuple[str, str]], unk: str, where: str) -> Any:
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


# --- SentencePiece ------------------------------------------------------------------------------------------


def _sentencepiece(files: Mapping[str, bytes], config: dict[str, Any], max_tokens: int, where: str) -> Tokenizer:
    from sentencepiece import SentencePieceProcessor

    kind = config.get("tokenizer_class", "T5Tokenizer")
    if kind not in ("T5Tokenizer", "T5TokenizerFast"):  # XLM-R, for one, shifts every id
        raise CheckpointError(f"{where}: tokenizer_class {kind!r} over a SentencePiece model", allowed="T5Tokenizer")
    name = next(n for n in SPM_NAMES if n in files)
    try:
        model = SentencePieceProcessor(model_proto=files[name])
        size = model.get_piece_size()
        if size < 1:
            raise ValueError("empty")
    except (RuntimeError, OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}/{name} is not a SentencePiece model ({str(error).strip()[:120]})") from None
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
        return [list(i) for i in model.encode([cased(t) for t in texts], out_type=int)]

    def text_pieces(text: str) -> list[str]:
        return list(model.encode(cased(text), out_type=str))

    return Tokenizer(
        kind="sentencepiece",
        max_tokens=max_tokens,
        bos=None,
        eos=special("eos_token", model.eos_id()),
        pad=special("pad_token", model.pad_id()),
        vocab_size=size,
        files=files,
        text_ids=text_ids,
        text_pieces=text_pieces,
    )


# --- Training -----------------------------------------------------------------------------------------------


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
    import io

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
    backend = _bpe_backend(dict(vocab), [], letters[0], str(folder))
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

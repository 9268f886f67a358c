"""How well a tokenizer fits texts: tokens per word, character and grapheme, what it can't spell, what is too long.

Words are what stands between white space. Scripts that write none between words (Han, kana, Thai, ...) have no words
here: for them tokens per character and per grapheme count. Fertility and continued words are as Rust et al. 2021
(arXiv 2012.15613) define them; a grapheme is a cluster of UAX #29, as Oniguruma cuts it (Indic conjuncts in parts).

Legend: N texts, V ids of a tokenizer.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import chain
from typing import Any

import numpy as np

from kotoe.errors import UserError
from kotoe.localize.vocabulary import byte_letters
from kotoe.tokenizers import BERT_SPECIALS, CLIP_SPECIALS, SPM_NAMES, WORD_END, parse_json
from kotoe.tokens import Tokenizer

# First words of the Unicode names of letters in scripts that put no space between words.
UNSPACED = frozenset(
    "CJK HIRAGANA KATAKANA BOPOMOFO YI THAI LAO KHMER MYANMAR TIBETAN JAVANESE BALINESE TAI TANGUT NUSHU".split()
)
NORMAL_95 = 1.96
BATCH = 4096  # texts
PIECE, BYTES, UNKNOWN, ADDED = range(4)  # what an id stands for: text, less than a character, nothing, a word put in
SPACE = "▁"  # SentencePiece's


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A ratio over texts with its 95 % interval (normal approximation; a point for a single text)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Fertility:
    """One tokenizer on N texts. Rates are shares, 0 to 1; None: nothing to count (no words, no characters).

    per_word, per_character, per_grapheme: tokens for each, special tokens left out.
    covered_characters: of the characters as the tokenizer normalises them, those in pieces that aren't bytes or <unk>.
    covered_words:      words, each read by itself, with no bytes and no <unk>.
    continued_words:    words of two tokens or more.
    unknown_rate, byte_rate: of all tokens; a byte is a piece that is less than a character, or a byte by name.
    median, p95, longest: tokens of a text; half of the texts, and 95 %, have no more.
    limit:              tokens of text that fit; over_limit: share of texts with more.
    pieces_used:        different ids; vocabulary_used: of all V.
    """

    n: int
    tokens: int
    per_word: Figure | None
    per_character: Figure
    per_grapheme: Figure
    covered_characters: Figure | None
    covered_words: float | None
    continued_words: float | None
    unknown_rate: float
    byte_rate: float
    median: int
    p95: int
    longest: int
    limit: int
    over_limit: Figure
    pieces_used: int
    vocabulary_used: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


# --- Texts ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Corpus:
    """Texts, and what is counted in them whatever the tokenizer.

    blank:      texts without anything but white space, left out here.
    words:      each word and how often it comes; None where the script has no spaces between words.
    characters: (N,) code points of each text, white space left out. graphemes: (N,) clusters of them.
    word_count: (N,) words of each text.
    """

    texts: tuple[str, ...]
    blank: int
    words: Counter[str] | None
    characters: np.ndarray
    graphemes: np.ndarray
    word_count: np.ndarray

    @property
    def spaced(self) -> bool:
        """Whether words can be told apart."""
        return self.words is not None

    def to_json(self) -> dict[str, Any]:
        return {
            "texts": len(self.texts),
            "blank": self.blank,
            "spaced": self.spaced,
            "words": int(self.word_count.sum()) if self.spaced else None,
            "characters": int(self.characters.sum()),
            "graphemes": int(self.graphemes.sum()),
        }


def corpus(texts: Iterable[str]) -> Corpus:
    """Count what is in texts. Raises UserError when all of them are blank."""
    given = list(texts)
    kept = tuple(text for text in given if text.strip())
    if not kept:
        raise UserError(f"no text among {len(given)}, they are all blank", allowed="one text or more")
    split = [text.split() for text in kept]
    words = Counter(chain.from_iterable(split))
    letters: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            letters[character] += count
    unspaced = sum(count for character, count in letters.items() if _script_has_no_spaces(character))
    all_letters = sum(count for character, count in letters.items() if unicodedata.category(character)[0] == "L")
    return Corpus(
        texts=kept,
        blank=len(given) - len(kept),
        words=None if 2 * unspaced > all_letters else words,
        characters=np.array([sum(map(len, each)) for each in split]),
        graphemes=np.array([graphemes(text) for text in kept]),
        word_count=np.array([len(each) for each in split]),
    )


@cache
def _script_has_no_spaces(character: str) -> bool:
    first = unicodedata.normalize("NFKC", character)[0]
    name = unicodedata.name(first, "").replace("-", " ").split(" ")[0]
    return unicodedata.category(first)[0] == "L" and name in UNSPACED


def graphemes(text: str) -> int:
    """Extended grapheme clusters of a text, white space left out."""
    if text.isascii():
        return sum(map(len, text.split()))
    return sum(not cluster.isspace() for cluster, _ in _clusters().pre_tokenize_str(text))


@cache
def _clusters() -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(r"\X"), "isolated")


# --- What ids stand for -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Vocabulary:
    """kinds: (V,) PIECE, BYTES, UNKNOWN or ADDED. characters: (V,) how many characters begin in each id's piece."""

    kinds: np.ndarray
    characters: np.ndarray


def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """What each id of a tokenizer stands for, from its files."""
    kinds = np.full(tokenizer.vocab_size, ADDED, dtype=np.int8)
    characters = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for i, kind, spelt in READERS[tokenizer.kind](tokenizer):
        kinds[i] = kind
        characters[i] = sum(byte & 0xC0 != 0x80 for byte in spelt)  # UTF-8: all but continuations begin a character
    return Vocabulary(kinds=kinds, characters=characters)


Spelt = Iterator[tuple[int, int, bytes]]  # id, kind, the bytes it stands for


def _clip_pieces(tokenizer: Tokenizer) -> Spelt:
    files = tokenizer.files
    if "tokenizer.json" in files:
        pieces = parse_json(files["tokenizer.json"], "tokenizer.json")["model"]["vocab"]
    else:
        pieces = parse_json(files["vocab.json"], "vocab.json")
    unknown = _named(tokenizer, "unk_token", CLIP_SPECIALS["unk_token"])
    byte_of = {letter: byte for byte, letter in byte_letters().items()}
    for piece, i in pieces.items():
        letters = piece.removesuffix(WORD_END)
        known = all(letter in byte_of for letter in letters)
        spelt = bytes(byte_of[letter] for letter in letters) if known else letters.encode()
        yield i, UNKNOWN if piece == unknown else PIECE if _whole(spelt) else BYTES, spelt


def _whole(spelt: bytes) -> bool:
    try:
        spelt.decode()
    except UnicodeDecodeError:
        return False
    return True


def _wordpiece_pieces(tokenizer: Tokenizer) -> Spelt:
    files = tokenizer.files
    if "vocab.txt" in files:
        lines = files["vocab.txt"].decode().removesuffix("\n").split("\n")
        pieces = {line.removesuffix("\r"): i for i, line in enumerate(lines)}
    else:
        pieces = parse_json(files["tokenizer.json"], "tokenizer.json")["model"]["vocab"]
    unknown = _named(tokenizer, "unk_token", BERT_SPECIALS["unk_token"])
    for piece, i in pieces.items():
        yield i, UNKNOWN if piece == unknown else PIECE, piece.removeprefix("##").encode()


def _spm_pieces(tokenizer: Tokenizer) -> Spelt:
    from sentencepiece import SentencePieceProcessor

    name = next(name for name in SPM_NAMES if name in tokenizer.files)
    model = SentencePieceProcessor(model_proto=tokenizer.files[name])
    for i in range(model.get_piece_size()):
        piece = model.id_to_piece(i)
        if model.is_byte(i):  # named <0x00> to <0xFF>
            yield i, BYTES, bytes([int(piece[1:-1], 16)])
        else:
            yield i, UNKNOWN if model.is_unknown(i) else PIECE, piece.replace(SPACE, "").encode()


def _xlm_pieces(tokenizer: Tokenizer) -> Spelt:
    moved = {0: 3, 1: 0, 2: 2}  # <unk>, <s>, </s>
    for i, kind, spelt in _spm_pieces(tokenizer):
        yield moved.get(i, i + 1), kind, spelt


def _named(tokenizer: Tokenizer, key: str, default: str) -> str:
    """The special token that a tokenizer's configuration names."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        value = parse_json(tokenizer.files.get(name, b"{}"), name).get(key)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            return value
    return default


def _as_read(tokenizer: Tokenizer) -> Callable[[str], str]:
    """What a piece of text is to a tokenizer that shows the pieces it doesn't know as they were before normalising."""
    if tokenizer.kind != "wordpiece":
        return str
    from tokenizers import normalizers

    config = parse_json(tokenizer.files.get("tokenizer_config.json", b"{}"), "tokenizer_config.json")
    return normalizers.BertNormalizer(  # without accents, Hangul falls into its letters
        handle_chinese_chars=False,
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    ).normalize_str


READERS: Mapping[str, Callable[[Tokenizer], Spelt]] = {
    "clip-bpe": _clip_pieces,
    "wordpiece": _wordpiece_pieces,
    "sentencepiece": _spm_pieces,
    "xlm-roberta": _xlm_pieces,
}


# --- Measuring --------------------------------------------------------------------------------------------------------


def measure(tokenizer: Tokenizer, texts: Corpus, *, limit: int | None = None) -> Fertility:
    """How a tokenizer fits texts.

    limit: positions of a text encoder, special tokens included; the tokenizer's own by default.
    """
    specials = tokenizer.max_tokens - tokenizer.room
    if limit is not None and limit <= specials:
        raise UserError(f"limit {limit}", allowed=f"{specials + 1} or more ({specials} are special tokens)")
    room = (tokenizer.max_tokens if limit is None else limit) - specials
    pieces = vocabulary(tokenizer)
    counts, known, lost, used = _counted(tokenizer, pieces, texts.texts)
    tokens = int(counts.sum())
    by_kind = np.bincount(pieces.kinds, weights=used, minlength=4)
    continued, covered = (None, None) if texts.words is None else _words(tokenizer, pieces, texts.words)
    ranked = np.sort(counts)
    characters = ratio(known, known + lost)
    per_character, per_grapheme = ratio(counts, texts.characters), ratio(counts, texts.graphemes)
    assert per_character is not None
    assert per_grapheme is not None
    over = ratio(counts > room, np.ones(len(counts)))
    assert over is not None
    return Fertility(
        n=len(counts),
        tokens=tokens,
        per_word=ratio(counts, texts.word_count) if texts.spaced else None,
        per_character=per_character,
        per_grapheme=per_grapheme,
        covered_characters=None if characters is None else _at_most_one(characters),
        covered_words=covered,
        continued_words=continued,
        unknown_rate=float(by_kind[UNKNOWN]) / max(tokens, 1),
        byte_rate=float(by_kind[BYTES]) / max(tokens, 1),
        median=_point(ranked, 0.5),
        p95=_point(ranked, 0.95),
        longest=int(ranked[-1]),
        limit=room,
        over_limit=_at_most_one(over),
        pieces_used=int(np.count_nonzero(used)),
        vocabulary_used=float(np.count_nonzero(used)) / tokenizer.vocab_size,
    )


def _counted(
    tokenizer: Tokenizer, pieces: Vocabulary, texts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(N,) tokens, (N,) characters in pieces, (N,) characters in bytes or <unk>; (V,) how often each id comes."""
    counts, known, lost = (np.zeros(len(texts), dtype=np.int64) for _ in range(3))
    used = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    as_read = _as_read(tokenizer)
    for start in range(0, len(texts), BATCH):
        rows = tokenizer.text_ids(texts[start : start + BATCH])
        lengths = np.array([len(row) for row in rows])
        ids = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=int(lengths.sum()))
        owner = np.repeat(np.arange(len(rows)), lengths)
        here = slice(start, start + len(rows))
        counts[here] = lengths
        used += np.bincount(ids, minlength=len(used))
        kinds, characters = pieces.kinds[ids], pieces.characters[ids]
        known[here] = np.bincount(owner, weights=characters * (kinds == PIECE), minlength=len(rows))
        lost[here] = np.bincount(owner, weights=characters * (kinds == BYTES), minlength=len(rows))
        for k in np.unique(owner[(kinds == UNKNOWN) | (kinds == ADDED)]).tolist():  # the text says what they stand for
            for i, piece in zip(rows[k], tokenizer.text_pieces(texts[start + k]), strict=True):
                if pieces.kinds[i] in (UNKNOWN, ADDED):
                    where = lost if pieces.kinds[i] == UNKNOWN else known
                    where[start + k] += sum(not c.isspace() and c != SPACE for c in as_read(piece))
    return counts, known, lost, used


def _words(tokenizer: Tokenizer, pieces: Vocabulary, words: Counter[str]) -> tuple[float, float]:
    """Shares of words, each read by itself: of two tokens or more, and without bytes and <unk>."""
    continued = covered = 0
    distinct = list(words)
    for start in range(0, len(distinct), BATCH):
        batch = distinct[start : start + BATCH]
        for word, row in zip(batch, tokenizer.text_ids(batch), strict=True):
            continued += words[word] * (len(row) > 1)
            covered += words[word] * all(pieces.kinds[i] in (PIECE, ADDED) for i in row)
    return continued / words.total(), covered / words.total()


def ratio(above: np.ndarray, below: np.ndarray) -> Figure | None:
    """sum(above) / sum(below) over N texts, with a 95 % interval for other texts of the kind. None when below is 0."""
    a, b = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    n, total = len(a), float(b.sum())
    if total == 0:
        return None
    value = float(a.sum()) / total
    spread = float(np.sqrt(((a - value * b) ** 2).sum() * n / max(n - 1, 1))) / total  # of a ratio, linearised
    return Figure(value=value, low=max(0.0, value - NORMAL_95 * spread), high=value + NORMAL_95 * spread)


def _at_most_one(share: Figure) -> Figure:
    return Figure(value=share.value, low=share.low, high=min(1.0, share.high))


def _point(ranked: np.ndarray, share: float) -> int:
    """The smallest count that this share of the texts doesn't exceed."""
    return int(ranked[int(np.ceil(share * len(ranked))) - 1])

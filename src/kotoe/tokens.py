"""What every tokenizer does: texts to ids of one fixed length, in windows, and what didn't fit.

Nothing is ever truncated in silence: a text over the limit is an error that shows what would be dropped, unless the
caller asks for `chunk` (all of it, in several windows) or `cut`. `tokenizers.py` makes one from a checkpoint's files.

Legend: B texts, L = max_tokens positions of the text encoder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from kotoe.errors import UserError, shown, unknown
from kotoe.prompts import Prompt, literal

LONG_PROMPT = ("error", "chunk", "cut")
T = TypeVar("T", int, float)


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Ids of B texts and the report on them.

    ids:      (B, windows * L); window w of a text is columns w * L to (w + 1) * L, with its own BOS, EOS and padding.
    counts:   tokens of each text, without BOS, EOS and padding.
    overflow: the pieces of each text beyond the first window: used when chunked, dropped when cut, else empty.
    windows:  windows per text; 1 unless chunked, or in parts.
    weights:  (B, windows * L), of each id; None where nothing is weighted.
    """

    ids: list[list[int]]
    counts: list[int]
    overflow: list[list[str]]
    windows: int = 1
    weights: list[list[float]] | None = None


@dataclass
class _Row:
    """What becomes of one prompt: windows of ids and their weights, tokens in all, and the pieces beyond the first."""

    count: int
    windows: list[tuple[list[int], list[float]]] = field(default_factory=list)
    overflow: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokenizer:
    """One language's tokenizer. `load_tokenizer` makes it from a folder.

    kind:       "clip-bpe", "wordpiece", "sentencepiece" or "xlm-roberta".
    max_tokens: L, special tokens included; every window is exactly this long.
    bos:        id before each text, or None for none. eos: id after it. pad: id that fills up to L.
    vocab_size: one more than the largest id.
    files:      name to content of the files it was made from; `sha256` identifies them.
    text_ids:   texts to ids without BOS, EOS and padding.
    text_pieces: one text to its readable pieces, one per id; "" for the further bytes of a character spelt in bytes.
    text_starts: one text to the place of the character, from 0, that each id begins at.
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
    text_starts: Callable[[str], list[int]]

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

    def encode(self, texts: Sequence[str | Prompt], *, long_prompt: str = "error", windows: int = 1) -> Tokens:
        """Ids (B, windows * L) of texts, or of prompts with weights and parts.

        long_prompt: what to do with a text over `room` tokens. "error" raises a UserError showing what would be
                     dropped; "chunk" splits it at the limit into windows that are encoded separately (shorter texts
                     of the batch get empty windows); "cut" drops the rest and reports it in `overflow`.
        windows:     at least this many windows, so that a prompt and its negative can be made equally long.

        Each part of a prompt begins a window. A token weighs what the character it begins with does, so that weights
        never change which tokens a text has.
        """
        if isinstance(texts, str):
            raise UserError(f"one text {texts!r} where a list is expected", allowed="a list of texts")
        if long_prompt not in LONG_PROMPT:
            raise unknown("long_prompt", long_prompt, LONG_PROMPT)
        if windows < 1:
            raise UserError(f"{windows} windows", allowed="1 or more")
        prompts = [literal(text) if isinstance(text, str) else text for text in texts]
        said = [part.text for prompt in prompts for part in prompt.parts]
        for text in said:
            try:
                text.encode()
            except UnicodeEncodeError:  # half a character, as a terminal of another encoding leaves behind
                raise UserError(f"the text {shown(text)} is not Unicode", hint="Use a UTF-8 terminal or file") from None
        read = iter(self.text_ids(said))
        rows = [self._windows(prompt, [next(read) for _ in prompt.parts], long_prompt) for prompt in prompts]
        windows = max([windows, *(len(row.windows) for row in rows)])
        bos = None if self.bos is None else 1.0  # special tokens weigh what they do
        heavy = any(w != 1.0 for row in rows for _, weights in row.windows for w in weights)
        return Tokens(
            ids=[self._filled([ids for ids, _ in row.windows], windows, self.bos, self.eos, self.pad) for row in rows],
            counts=[row.count for row in rows],
            overflow=[row.overflow for row in rows],
            windows=windows,
            weights=[self._filled([w for _, w in row.windows], windows, bos, 1.0, 1.0) for row in rows]
            if heavy
            else None,
        )

    def _windows(self, prompt: Prompt, ids: Sequence[list[int]], long_prompt: str) -> _Row:
        """A prompt's windows, of each part (its ids) one or more."""
        row = _Row(count=sum(map(len, ids)))
        for part, own in zip(prompt.parts, ids, strict=True):
            if len(own) > self.room:
                over = self._overflow(part.text)
                if long_prompt == "error":
                    raise self._too_long(part.text, len(own), over)
                row.overflow += over
            weights = [part.weights[at] for at in self.text_starts(part.text)] if part.weights else [1.0] * len(own)
            count = max(1, -(-len(own) // self.room)) if long_prompt == "chunk" else 1
            for first in range(0, count * self.room, self.room):
                here = slice(first, first + self.room)
                row.windows.append((own[here], weights[here]))
        return row

    def _filled(self, windowed: Sequence[list[T]], windows: int, bos: T | None, eos: T, pad: T) -> list[T]:
        """Windows with what stands for their special tokens; behind the last of them empty ones."""
        row: list[T] = []
        for w in range(windows):
            own: Sequence[T] = windowed[w] if w < len(windowed) else ()
            if bos is not None:
                row.append(bos)
            row.extend(own)
            row.append(eos)
            row.extend([pad] * ((w + 1) * self.max_tokens - len(row)))
        return row

    def _overflow(self, text: str) -> list[str]:
        pieces = (piece.lstrip("▁") for piece in self.text_pieces(text)[self.room :])  # SentencePiece's mark of a space
        return [piece for piece in pieces if piece]

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

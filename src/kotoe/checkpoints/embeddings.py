"""Textual inversion: vectors that were learned for a new word, put into a copy of CLIP's text encoder and tokenizer.

Source: Gal et al. 2022 (arXiv 2208.01618). Read are diffusers' files ({token: vector or vectors}), A1111's
({string_to_param}, pickled), and {emb_params}, which is named by its file. A word of n vectors is read as the tokens
word, word_1, ..., word_(n-1) in its place, as diffusers reads it.

Legend: n vectors of a word, D text width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kotoe.checkpoints import Bundle
from kotoe.checkpoints.files import FLOATS, entries
from kotoe.checkpoints.pickles import dense, unpickled
from kotoe.checkpoints.twins import Unchanging, base_hashes, reading_as, twin
from kotoe.errors import CheckpointError, UserError
from kotoe.prompts import ADAPTER, BREAK, ESCAPED, folded
from kotoe.record import AdapterRecord
from kotoe.text import CLIPText, Conditioner
from kotoe.tokenizers import Tokenizer, parse_json, tokenizer_from_files

NAMELESS, A1111 = "emb_params", "string_to_param"
BESIDE = ("string_to_token", "name", "step", "sd_checkpoint", "sd_checkpoint_name")  # in A1111's files
XL = ("clip_l", "clip_g")
DECODER = "added_tokens_decoder"


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """A textual inversion file. token: what it is called in prompts; None: as the file says, or its name."""

    file: str | Path
    token: str | None = None

    @classmethod
    def parse(cls, text: str) -> Embedding:
        """FILE or TOKEN=FILE. A file whose own name has a = is told by being there."""
        token, equals, file = text.partition("=")
        if not equals or Path(text).expanduser().is_file():
            return cls(file=text)
        return cls(file=file, token=token)


@dataclass(frozen=True, kw_only=True)
class Word:
    """A new word: what it is called and its vectors (n, D), float32."""

    token: str
    vectors: Tensor

    @property
    def tokens(self) -> list[str]:
        """What its vectors are called, as diffusers calls them."""
        return [self.token, *(f"{self.token}_{k}" for k in range(1, len(self.vectors)))]


# --- Reading ----------------------------------------------------------------------------------------


def read(path: Path, *, token: str | None = None, allow_pickle: bool = False) -> Word:
    """The word in a textual inversion file. token: in place of the file's own name for it.

    Raises CheckpointError for a file of anything else, of several words, or of vectors that aren't finite.
    """
    what = path.name
    named, vectors = _safe(path, what) if path.suffix.lower() == ".safetensors" else _pickled(path, what, allow_pickle)
    token = named if token is None else token
    shape = list(vectors.shape)
    if vectors.dtype not in FLOATS.values():
        raise CheckpointError(f"{what}: its vectors are {vectors.dtype}", allowed=", ".join(FLOATS))
    if len(shape) not in (1, 2) or 0 in shape:
        raise CheckpointError(f"{what}: vectors of shape {shape}", allowed="[width] or [vectors, width]")
    if not vectors.isfinite().all():
        raise CheckpointError(f"{what}: its vectors hold NaN or infinity", hint="Its training went wrong")
    if not token.strip() or token != token.strip() or len(token) > 200 or not token.isprintable():
        raise UserError(f"{what}: the token {token!r}", allowed="1 to 200 letters without spaces round them")
    if set(token) & set(ESCAPED) or ADAPTER.search(token) or folded(token) != token or BREAK.search(token):
        raise UserError(
            f"{what}: the token {token!r} has marks that a prompt reads as grammar, or as other letters",
            allowed="a token without ( ) [ ] : \\, BREAK and full-width letters",
            hint="Give it another name: --embedding TOKEN=FILE (token=)",
        )
    return Word(token=token, vectors=vectors.detach().to(torch.float32).reshape(-1, shape[-1]))


def _safe(path: Path, what: str) -> tuple[str, Tensor]:
    found = {entry.name: entry for entry in entries(path, what)}
    name = _only(list(found), what)
    return path.stem if name == NAMELESS else name, found[name].read(None)


def _pickled(path: Path, what: str, allow_pickle: bool) -> tuple[str, Tensor]:
    found = unpickled(path, f"embedding: {what}", allow_pickle)
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise CheckpointError(f"{what} holds no table of tensors ({type(found).__name__})", allowed="token to vectors")
    name: Any = None
    if A1111 in found:
        beside = [key for key in found if key not in (A1111, *BESIDE)]
        if beside:
            raise CheckpointError(f"{what}: {', '.join(beside)} beside {A1111}", allowed=", ".join(BESIDE))
        name = found.get("name") or path.stem
        found = found[A1111]
        if not isinstance(found, dict) or len(found) != 1 or not isinstance(name, str):
            raise CheckpointError(f"{what}: {A1111} of another layout than A1111's", allowed="one name to its vectors")
    key = next(iter(found)) if name is not None else _only(list(found), what)
    if not isinstance(found[key], Tensor):
        raise CheckpointError(f"{what}: {key} holds a {type(found[key]).__name__}", allowed="a tensor")
    tensors = dense({key: found[key]}, what, path.stat().st_size)
    return name or (path.stem if key == NAMELESS else key), tensors[key]


def _only(names: Sequence[str], what: str) -> str:
    """The one name in a file of one word."""
    if set(names) & set(XL):
        raise CheckpointError(
            f"{what} was made for the two text encoders of Stable Diffusion XL ({', '.join(names)})",
            allowed="embeddings of Stable Diffusion 1.x and 2.x",
        )
    if len(names) != 1:
        shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        raise CheckpointError(
            f"{what} holds {len(names)} tensors ({shown})",
            allowed=f"one of a token's name, {NAMELESS}, or A1111's {A1111}",
            hint="It may be a LoRA: --lora FILE" if any("lora" in name for name in names) else "",
        )
    return names[0]


# --- Putting into a bundle ----------------------------------------------------------------------------


def with_embeddings(
    bundle: Bundle, embeddings: Iterable[Embedding], *, language: str | None = None, allow_pickle: bool = False
) -> Bundle:
    """The bundle with new words for the text encoder of a language. `bundle` stays as it is.

    language: None: the model's default language. What its encoder reads of other languages knows the words too.
    Raises UserError for vectors of another width, a text encoder of another kind, and tokens that are taken.
    """
    wanted = tuple(embeddings)
    if not wanted:
        return bundle
    tag = bundle.default_language if language is None else language
    conditioner = bundle.conditioner(tag)
    files = [Unchanging(embedding.file) for embedding in wanted]
    words = [
        read(file.path, token=embedding.token, allow_pickle=allow_pickle)
        for embedding, file in zip(wanted, files, strict=True)
    ]
    records = [
        AdapterRecord(name=file.path.name, kind="embedding", sha256=file.sha256(), language=tag, token=word.token)
        for file, word in zip(files, words, strict=True)
    ]
    return replace(
        bundle,
        conditioners=reading_as(bundle, tag, _knowing(conditioner, words, [file.path.name for file in files])),
        hashes=base_hashes(bundle),
        folder=None,
        adapters=(*bundle.adapters, *records),
    )


@torch.no_grad()
def _knowing(conditioner: Conditioner, words: Sequence[Word], files: Sequence[str]) -> Conditioner:
    """The conditioner with these words, from files of these names."""
    encoder, tokenizer, language = conditioner.encoder, conditioner.tokenizer, conditioner.language
    if not isinstance(encoder, CLIPText) or tokenizer.kind != "clip-bpe":
        raise UserError(
            f"{files[0]} for the text encoder of {language}, which is no CLIP with CLIP's tokenizer ({tokenizer.kind})",
            allowed="a language whose text encoder is CLIP and whose tokenizer clip-bpe",
            hint="--adapter-language TAG names one (language=)",
        )
    spec = encoder.spec
    taken: dict[str, str] = {}
    known = vocabulary(tokenizer)
    for word, file in zip(words, files, strict=True):
        n, width = word.vectors.shape
        if width != spec.hidden_size:
            raise CheckpointError(
                f"{file}: vectors {width} wide for the text encoder of {language}, which is {spec.hidden_size} wide",
                hint="Those of Stable Diffusion 1.x are 768 wide, of 2.x 1024",
            )
        if n > tokenizer.room:
            raise CheckpointError(f"{file}: {n} vectors, more than a prompt has room for", allowed=f"{tokenizer.room}")
        for name in dict.fromkeys(
            (*word.tokens, f"{word.token}_1")
        ):  # with a word_1 about, a word is of several vectors
            if name in known or name in taken:
                raise UserError(
                    f"{file}: the token {name!r} is taken by " + (taken[name] if name in taken else "the tokenizer"),
                    allowed="a token that isn't in the vocabulary",
                    hint="Give it another name: --embedding TOKEN=FILE (token=)",
                )
            taken[name] = file
    ids, more = _taught(tokenizer, words, files, spec.max_tokens)
    rows = max(spec.vocab_size, more.vocab_size)
    made = twin(encoder)
    old = encoder.text_model.embeddings.token_embedding.weight
    table = nn.Parameter(old.new_zeros(rows, spec.hidden_size), requires_grad=old.requires_grad)
    table[: len(old)] = old
    for word, places in zip(words, ids, strict=True):
        table[places] = word.vectors.to(table)
        if not table[places].isfinite().all():
            raise CheckpointError(f"the vectors of {word.token!r} are too large for {table.dtype}")
    made.spec = replace(spec, vocab_size=rows)
    embedding = nn.Embedding(rows, spec.hidden_size, _weight=table)
    embedding.weight = table
    made.text_model.embeddings.token_embedding = embedding
    return replace(conditioner, tokenizer=more, encoder=made)


def vocabulary(tokenizer: Tokenizer) -> set[str]:
    """Every piece and token in the files of a tokenizer of CLIP's kind."""
    files = tokenizer.files
    whole = _json(files, "tokenizer.json")
    found = set(whole["model"]["vocab"] if whole else _json(files, "vocab.json"))
    found |= {token["content"] for token in whole.get("added_tokens") or []}
    found |= set(_json(files, "added_tokens.json"))
    return found | {token["content"] for token in _json(files, "tokenizer_config.json").get(DECODER, {}).values()}


def _json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    return parse_json(files[name], name) if name in files else {}


def _taught(
    tokenizer: Tokenizer, words: Sequence[Word], files: Sequence[str], positions: int
) -> tuple[list[list[int]], Tokenizer]:
    """The ids of each word's vectors, and a tokenizer that makes them of the word."""
    names = [name for word in words for name in word.tokens]
    config = _json(tokenizer.files, "tokenizer_config.json")
    start = tokenizer.vocab_size
    if DECODER in config:
        new = {
            str(start + k): {
                "content": name,
                "lstrip": False,
                "normalized": True,  # so that upper and lower case are one word, as everywhere in CLIP's prompts
                "rstrip": False,
                "single_word": False,
                "special": False,
            }
            for k, name in enumerate(names)
        }
        changed = {"tokenizer_config.json": {**config, DECODER: {**config[DECODER], **new}}}
    else:
        added = _json(tokenizer.files, "added_tokens.json")
        changed = {"added_tokens.json": added | {name: start + k for k, name in enumerate(names)}}
    content = {name: json.dumps(value, ensure_ascii=False).encode() for name, value in changed.items()}
    more = tokenizer_from_files({**tokenizer.files, **content}, positions=positions, where=", ".join(files))
    made = more.text_ids(names)
    for name, ids in zip(names, made, strict=True):
        if len(ids) != 1 or ids[0] < start or made.count(ids) > 1:
            raise UserError(
                f"the token {name!r} of {', '.join(files)} isn't read as one word",
                allowed="tokens that differ in more than case and white space",
                hint="Give it another name: --embedding TOKEN=FILE (token=)",
            )
    numbers = iter(ids[0] for ids in made)
    places = [[next(numbers) for _ in word.tokens] for word in words]
    return places, _in_full(more, {ids[0]: ids for ids in places if len(ids) > 1})


def _in_full(tokenizer: Tokenizer, several: Mapping[int, list[int]]) -> Tokenizer:
    """A tokenizer that writes the ids of all vectors where the id of a word's first one would stand."""
    if not several:
        return tokenizer

    def text_ids(texts: Sequence[str]) -> list[list[int]]:
        return [[i for first in ids for i in several.get(first, [first])] for ids in tokenizer.text_ids(texts)]

    def of_each(read: Callable[[str], list[Any]]) -> Callable[[str], list[Any]]:
        def in_full(text: str) -> list[Any]:
            (ids,) = tokenizer.text_ids([text])
            counts = [len(several.get(first, [first])) for first in ids]
            rows = zip(read(text), counts, strict=True)
            return [x for one, n in rows for x in [one, *["" if isinstance(one, str) else one] * (n - 1)]]

        return in_full

    # Beside the ids a tokenizer tells of a text only what belongs to each id, as its piece ("" for further ones).
    told = [f.name for f in fields(tokenizer) if f.name.startswith("text_") and f.name != "text_ids"]
    changed: dict[str, Any] = {name: of_each(getattr(tokenizer, name)) for name in told}
    return replace(tokenizer, text_ids=text_ids, **changed)

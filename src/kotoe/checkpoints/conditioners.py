"""One UNet, many languages: conditioners put beside the others of a bundle or a folder, exchanged and taken away."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch

from kotoe import __version__, builtin
from kotoe.checkpoints import FORMAT, Bundle, _card, _write_encoder, bases, diffusers, terms, text_models
from kotoe.checkpoints.bundle import LANGUAGE
from kotoe.checkpoints.files import Folder, choose_dtype
from kotoe.errors import CheckpointError, UserError, unknown
from kotoe.language import UNDETERMINED
from kotoe.runs import write_atomic
from kotoe.text import Conditioner, Conditioners
from kotoe.tokens import Tokenizer

INDICES = tuple(f"{stem}{v}.safetensors.index.json" for stem in diffusers.WEIGHTS for v in ("", ".fp16", ".bf16"))


def swap(bundle: Bundle, languages: str | Collection[str], conditioner: Conditioner) -> Bundle:
    """The bundle with this conditioner for a language or several, in place of what they had or beside the others.

    Nothing is trained: that its states mean what the UNet expects is for the caller to know (Bingsu's Korean encoder
    was distilled from the English one). Raises CheckpointError when width, length, vocabulary or special ids don't fit.
    """
    tags = (languages,) if isinstance(languages, str) else tuple(languages)
    check_tags(tags)
    what = f"the conditioner for {', '.join(tags)}"
    diffusers.check_fits(conditioner, bundle.unet.spec.cross_attention_dim, what)
    kept = {tag: partial(bundle.conditioners.__getitem__, tag) for tag in bundle.conditioners}
    new = {tag: partial(replace, conditioner, language=tag) for tag in tags}
    tokenizers = {tag: partial(bundle.tokenizer, tag) for tag in kept if tag not in new}
    return replace(bundle, conditioners=Conditioners({**kept, **new}, tokenizers), folder=None)


def check_tags(tags: Collection[str]) -> None:
    """Raise UserError for what can't name a language."""
    for tag in tags:
        if not LANGUAGE.fullmatch(tag):
            raise UserError(f"language {tag!r}", allowed="BCP 47 tags as en, ja, zh-Hant, pt-BR")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A conditioner read from somewhere.

    where: the text encoder's place, for messages. notes: what the files hold that is not read.
    files: its config.json and weights where another folder can hold them as they are; none for pickles, and for a text
           model's own repository.
    """

    conditioner: Conditioner
    where: str
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()


def read(
    source: str | Path,
    language: str,
    *,
    source_language: str | None = None,
    dtype: str | torch.dtype | None = "stored",
    allow_pickle: bool = False,
) -> Source:
    """The conditioner for a language in a source, on the CPU. See `add`; dtype as in `kotoe.load`.

    Whether it fits a UNet isn't known here: `swap` and `add` check that.
    """
    cpu = torch.device("cpu")
    kind = choose_dtype(dtype, cpu)
    theirs = Folder(builtin.resolve(source, allow_pickle=allow_pickle, text_model=True))
    licence = terms.carried(theirs.root, str(source))
    if text_models.is_text_model(theirs):
        if source_language is not None:
            raise UserError(f"source language {source_language} of a repository of one text model", allowed="none")
        found, where, notes = text_models.read(theirs, language, kind, cpu, allow_pickle)
        return Source(conditioner=replace(found, licence=licence), where=where, notes=notes)
    base, own = _base(theirs, source_language, language)
    found = diffusers.read_conditioner(theirs, base, language, kind, cpu, allow_pickle)
    found = replace(found, licence=own or licence)
    part = f"{base}text_encoder"
    weights = diffusers.weight_files(theirs, part, allow_pickle)
    files: tuple[Path, ...] = ()
    if all(file.suffix == ".safetensors" for file in weights):
        index = [theirs.path(f"{part}/{name}") for name in INDICES if theirs.has(f"{part}/{name}")]
        files = (theirs.path(f"{part}/config.json"), *weights, *index)
    return Source(conditioner=found, where=f"{theirs.name}/{part}", files=files)


def write(conditioner: Conditioner, folder: str | Path, *, dtype: torch.dtype | None = None) -> Path:
    """A conditioner alone, in a folder of tokenizer/ and text_encoder/ that `add` and `read` take."""
    folder = Path(folder)
    tag = f"{os.getpid()}-{secrets.token_hex(4)}"
    new, old = (folder.with_name(f".{folder.name}.{word}-{tag}") for word in ("new", "old"))
    try:
        (new / "tokenizer").mkdir(parents=True)
        conditioner.tokenizer.save(new / "tokenizer")
        _write_encoder(new / "text_encoder", conditioner.encoder, dtype)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return folder


def add(
    folder: str | Path,
    language: str,
    source: str | Path,
    *,
    serves: Collection[str] = (),
    source_language: str | None = None,
    own_language: str | None = None,
    overwrite: bool = False,
    allow_pickle: bool = False,
    dry_run: bool = False,
    licence: Mapping[str, str] | None = None,
    on_note: Callable[[str], None] = lambda note: None,
) -> Path:
    """Put a conditioner beside the others of a checkpoint folder; all of it or nothing.

    From a checkpoint its files are copied byte for byte. Of a text model's own repository the text encoder alone is
    written, and of pickles their tensors, both as safetensors in the dtype they are in.

    serves:          the languages that it reads, if there are several; `language` is then no more than its name, as
                     mul, BCP 47's for several languages. None of them may have a conditioner yet.
    source:          a checkpoint's name or folder, a folder with tokenizer/ and text_encoder/ alone, or the repository
                     of a text model as transformers writes it, with its tokenizer (see text_models.py).
    source_language: which of the source's conditioners; None: the one for `language`, or the only one.
    own_language:    what the folder's own text encoder reads, where its files don't say so.
    overwrite:       replace the conditioner that the language has. The folder's own (its first language's) stays.
    allow_pickle:    read .bin weights too, as tensors only.
    dry_run:         check everything, write nothing.
    licence:         the conditioner's, where the source doesn't say it. What differs from the folder's own is kept
                     beside it: in kotoe.json, and its text in a LICENSE file of its own.
    on_note:         called with a sentence for everything in the source that is left out.
    Returns conditioners/<language>. Raises a UserError when it doesn't fit, or the language is taken.
    """
    check_tags((language, *serves))
    ours, card = _own(folder)
    if own_language is not None:
        card = _named(ours, card, own_language)
    main = card["languages"][0]
    new_tags = tuple(serves) or (language,)
    taken = [tag for tag in card["languages"] if tag.lower() in {new.lower() for new in new_tags}]
    if main in taken:
        raise UserError(f"{main} is the language of {ours.name}'s own text encoder", allowed="another tag")
    if taken and (serves or not overwrite):
        raise UserError(
            f"{ours.name} has a conditioner for {', '.join(taken)}",
            hint="Take it out first: kotoe conditioner remove" if serves else "Pass --overwrite to replace it",
        )
    name = taken[0] if taken else language
    users = [tag for tag, by in card["read_by"].items() if by == name and tag != name]
    if users or (serves and name in card["languages"]):
        raise UserError(
            f"{name} is the name of the conditioner of {', '.join(users) or name} in {ours.name}",
            allowed="another name",
        )
    width = diffusers.unet_spec(ours.json("unet/config.json")).cross_attention_dim
    found = read(source, language, source_language=source_language, allow_pickle=allow_pickle)
    diffusers.check_fits(found.conditioner, width, found.where)
    for note in found.notes:
        on_note(note)

    place = ours.root / "conditioners" / name
    if dry_run:
        return place
    tag = f"{os.getpid()}-{secrets.token_hex(4)}"
    new, old = (place.with_name(f".{place.name}.{word}-{tag}") for word in ("new", "old"))
    try:
        (new / "tokenizer").mkdir(parents=True)
        found.conditioner.tokenizer.save(new / "tokenizer")
        if found.files:
            (new / "text_encoder").mkdir()
            for file in found.files:
                shutil.copyfile(file, new / "text_encoder" / file.name)
        else:
            _write_encoder(new / "text_encoder", found.conditioner.encoder, None)
        if place.exists():
            place.rename(old)
        new.rename(place)
    except BaseException:
        if old.exists() and not place.exists():
            old.rename(place)
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    read_by = {tag: by for tag, by in card["read_by"].items() if tag not in taken}
    read_by |= dict.fromkeys(serves, name)
    more = [] if taken else new_tags
    parts = _without(ours, card, name)
    licence = licence or found.conditioner.licence
    if licence is not None and terms.differs(licence, card["licence"]):
        parts[name] = terms.laid(licence, ours.root, terms.text_name(name))
    _write_card(ours, {**card, "licences": parts, "languages": [*card["languages"], *more], "read_by": read_by})
    return place


def _without(ours: Folder, card: dict, name: str) -> dict[str, Mapping[str, str]]:
    """The licences of a folder's other conditioners; the text of this one's is removed."""
    if name in card["licences"]:
        (ours.root / terms.text_name(name)).unlink(missing_ok=True)
    return {key: part for key, part in card["licences"].items() if key != name}


def _named(ours: Folder, card: dict, own_language: str) -> dict:
    """The card with a name for the folder's own language, where there was only a guess."""
    main, *others = card["languages"]
    if not LANGUAGE.fullmatch(own_language):
        raise UserError(f"own language {own_language!r}", allowed="BCP 47 tags as en, ja, zh-Hant, pt-BR")
    if ours.has("kotoe.json") and main not in (UNDETERMINED, own_language):
        raise UserError(f"own language {own_language} for {ours.name}, whose own is {main}", allowed=main)
    if own_language in others:
        raise UserError(f"{ours.name} has a conditioner for {own_language} already", allowed="another tag")
    return {**card, "languages": [own_language, *others]}


def languages(folder: str | Path) -> list[str]:
    """The languages of a checkpoint folder, its own first."""
    return list(_own(folder)[1]["languages"])


def tokenizers(source: str | Path) -> dict[str, Tokenizer]:
    """The tokenizer of each language of a checkpoint's name or folder, its own first. No weights are read."""
    path = builtin.resolve(source, allow_pickle=True)  # which isn't opened
    if not path.is_dir() or not (path / "model_index.json").is_file():
        raise CheckpointError(f"{source} holds no tokenizers", allowed="a folder in diffusers' layout")
    folder = Folder(path)
    tokenizer = cache(partial(diffusers.tokenizer_of, folder))  # several languages can have one
    return {language: tokenizer(base) for language, base in bases(_card(folder)).items()}


def remove(folder: str | Path, language: str, *, dry_run: bool = False) -> None:
    """Take a language's conditioner out of a checkpoint folder. The folder's own (its first language's) stays."""
    ours, card = _own(folder)
    main, *others = card["languages"]
    if language == main:
        raise UserError(
            f"{language} is the language of {ours.name}'s own text encoder, which stays",
            allowed=", ".join(others) or "none: it has no other",
        )
    if language not in others:
        raise unknown("language", language, others)
    if dry_run:
        return
    there = bases(card)
    base = there.pop(language)
    read_by = {tag: by for tag, by in card["read_by"].items() if tag != language}
    gone = base not in there.values()
    parts = _without(ours, card, card["read_by"].get(language, language)) if gone else card["licences"]
    _write_card(ours, {**card, "licences": parts, "languages": list(there), "read_by": read_by})
    if gone:
        shutil.rmtree(ours.root / base)  # not listed any more: a crash here leaves only its files


def _own(folder: str | Path) -> tuple[Folder, dict]:
    path = Path(folder)
    if not path.is_dir():
        raise UserError(
            f"{folder} is no checkpoint folder",
            allowed="a folder in diffusers' layout",
            hint="Save a copy of the built-in model first" if str(folder) in builtin.NAMES else "",
        )
    ours = Folder(path)
    if not ours.has("model_index.json"):
        raise CheckpointError(f"{ours.root} holds no model_index.json", allowed="a folder in diffusers' layout")
    return ours, _card(ours)


def _base(theirs: Folder, asked: str | None, language: str) -> tuple[str, dict[str, str] | None]:
    """Where in the source the conditioner lies, and its licence where that isn't the source's."""
    if not theirs.has("model_index.json"):
        if asked is not None:
            raise UserError(f"source language {asked} of a folder with one conditioner", allowed="none")
        return "", None
    card = _card(theirs)
    there = bases(card)
    if asked is None:
        asked = language if language in there or len(there) > 1 else next(iter(there))
    if asked not in there:
        raise unknown("source language", asked, there)
    return there[asked], terms.of_conditioner(theirs, card, asked)


def _write_card(ours: Folder, card: dict) -> None:
    """kotoe.json with these languages and what reads them; what else it says stays. A folder without one gets one."""
    if ours.has("kotoe.json"):
        value = {**ours.json("kotoe.json"), **{key: card[key] for key in ("licences", "languages", "read_by")}}
    else:
        value = {
            "format": FORMAT,
            "kotoe_version": __version__,
            "name": card["name"],
            "family": diffusers.unet_spec(ours.json("unet/config.json")).family,
            "licence": card["licence"],
            "licences": card["licences"],
            "languages": card["languages"],
            "read_by": card["read_by"],
            "defaults": card["defaults"],
        }
    value = {key: each for key, each in value.items() if each or key not in ("licences", "read_by")}
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    write_atomic(ours.root / "kotoe.json", text.encode())

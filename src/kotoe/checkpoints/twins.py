"""A bundle beside the loaded one: networks that share every tensor with it but those that an adapter changes.

Its hashes stay those of the base's files: what an adapter changed is said by the adapter's own hash beside them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from kotoe.checkpoints import Bundle
from kotoe.checkpoints.bundle import conditioner_hashes
from kotoe.checkpoints.files import M, file_sha256, stamp, tensors_sha256
from kotoe.errors import CheckpointError, UserError
from kotoe.text import Conditioner, Conditioners
from kotoe.tokenizers import Tokenizer


def twin(net: M) -> M:
    """A copy of the network's modules round the same parameters: exchange one in it, and `net` stays as it is."""
    shared: dict[int, object] = {id(t): t for t in (*net.parameters(), *net.buffers())}
    return copy.deepcopy(net, shared)


def exchanged(module: nn.Module, weight: nn.Parameter) -> None:
    """Give a module of a twin another weight, which wants a gradient if the old one did."""
    old = module.get_parameter("weight")
    module.weight = nn.Parameter(weight.to(old.device, old.dtype), requires_grad=old.requires_grad)


def base_hashes(bundle: Bundle) -> Mapping[str, str]:
    """sha256 of "unet" and "vae" of a bundle that is about to get other weights, also where it has no files."""
    if {"unet", "vae"} <= set(bundle.hashes):
        return bundle.hashes
    return {"unet": tensors_sha256(bundle.unet), "vae": tensors_sha256(bundle.vae), **bundle.hashes}


def reading_as(bundle: Bundle, language: str, new: Conditioner) -> Conditioners:
    """The bundle's conditioners, with `new` for a language and for all others that the same text encoder reads.

    Nothing is read before it is asked for; the hashes of the old conditioner stand in for those of the new one.
    """
    old = bundle.conditioner(language)
    new = replace(
        new, hashes=old.hashes if {"tokenizer", "text_encoder"} <= set(old.hashes) else conditioner_hashes(old)
    )

    theirs = bundle.conditioners  # not the bundle: its UNet is let go as soon as nobody else has it

    def read(tag: str) -> Conditioner:
        found = theirs[tag]
        return replace(new, language=found.language) if found.encoder is old.encoder else found

    readers = {tag: partial(read, tag) for tag in theirs}
    if not isinstance(theirs, Conditioners):  # every encoder is here, and knows its own tokenizer
        return Conditioners(readers)
    tokenizers = theirs.tokenizer

    def words(tag: str) -> Tokenizer:
        found = tokenizers(tag)
        return new.tokenizer if found is old.tokenizer else found

    return Conditioners(readers, {tag: partial(words, tag) for tag in theirs})


class Unchanging:
    """A file of an adapter: its path, and its sha256 once it was read, unless it changed meanwhile."""

    def __init__(self, file: str | Path) -> None:
        self.path = Path(file).expanduser()
        if not self.path.is_file():
            what = f"{file} is no file" if self.path.exists() else f"no file at {file}"
            raise UserError(what, allowed="the file of a LoRA or an embedding")
        self._stamp = stamp(self.path)

    def sha256(self) -> str:
        """sha256 of what was read since this was made."""
        found = file_sha256(self.path)
        if stamp(self.path) != self._stamp:
            raise CheckpointError(f"{self.path} changed while it was read", hint="Load it again")
        return found

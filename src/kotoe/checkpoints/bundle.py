"""A loaded model: the Bundle."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kotoe.checkpoints.files import tensors_sha256
from kotoe.config import MAX_BATCH, DecoderName, dumps
from kotoe.errors import CheckpointError, UserError, unknown
from kotoe.record import AdapterRecord
from kotoe.spec import ScheduleSpec
from kotoe.text import Conditioner, Conditioners
from kotoe.tiny_vae import TinyVAE
from kotoe.tokens import Tokenizer
from kotoe.unet import UNet
from kotoe.vae import VAE

if TYPE_CHECKING:
    from kotoe.translate import Translator

LANGUAGE = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8}){0,4}")  # BCP 47, and safe as a folder's name


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What the model's card recommends. grid None: the schedule's own timestep_spacing. decoder: full or small.
    batch_size: pictures drawn together, which goes with a way that is approximate anyway; None: the device's own."""

    steps: int = 20
    guidance_scale: float = 7.5
    grid: str | None = None
    decoder: DecoderName = "full"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or not 1 <= self.steps <= 1000:
            raise UserError(f"default steps {self.steps!r}", allowed="a whole number from 1 to 1000")
        scale = self.guidance_scale
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 <= scale <= 1000:
            raise UserError(f"default guidance_scale {scale!r}", allowed="a number from 0 to 1000")
        if self.grid not in (None, "linspace", "leading", "trailing", "karras"):
            raise UserError(f"default grid {self.grid!r}", allowed="null, linspace, leading, trailing, karras")
        if self.decoder not in ("full", "small"):
            raise UserError(f"default decoder {self.decoder!r}", allowed="full, small")
        size = self.batch_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MAX_BATCH):
            raise UserError(f"default batch_size {size!r}", allowed=f"null, or a whole number from 1 to {MAX_BATCH}")


@dataclass(frozen=True, kw_only=True)
class Fast:
    """How a model draws in few steps, where it has been taught to: its defaults then, and the LoRA that taught it."""

    defaults: Defaults
    lora: Path | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """A loaded model: networks, schedule and one Conditioner per language.

    conditioners: by language; after `load` each is read from disk when first asked for.
    family:       "sd1" (1x1 convolutions round the transformers) or "sd2" (linear layers), each also "-inpainting".
    folder:       where it was loaded from, or None for a single file and one made or changed in memory.
    hashes:       sha256 of the files of "unet" and "vae", computed when asked for; empty where there are none.
    notes:        what the folder holds that is not used, or is read as diffusers' pipeline reads it.
    translator:   for prompts in languages without a conditioner (see translate.py), or None.
    adapters:     the LoRAs and embeddings in it (see lora.py, embeddings.py), which `hashes` don't know of.
    small_decoder: an AutoencoderTiny for the same latents, or None.
    fast:         how it draws in few steps (see fast.py), or None.
    works_on:     with low memory the device on which each part works in its turn, waiting on the host until then;
                  None: each part works where it is.
    """

    name: str
    unet: UNet
    vae: VAE
    schedule: ScheduleSpec
    conditioners: Mapping[str, Conditioner]
    default_language: str
    family: str
    licence: str | None = None
    folder: Path | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)
    defaults: Defaults = field(default_factory=Defaults)
    notes: tuple[str, ...] = ()
    translator: Translator | None = None
    adapters: tuple[AdapterRecord, ...] = ()
    small_decoder: TinyVAE | None = None
    fast: Fast | None = None
    works_on: torch.device | None = None
    _turn: Any = field(default_factory=threading.RLock, repr=False)  # of one thread at a time, with low memory

    def __post_init__(self) -> None:
        for language in self.conditioners:
            if not LANGUAGE.fullmatch(language):
                raise UserError(f"language {language!r}", allowed="BCP 47 tags as en, ja, zh-Hant, pt-BR")
        if self.default_language not in self.conditioners:
            raise unknown("default language", self.default_language, self.conditioners)
        u, v = self.unet.spec, self.vae.spec
        c = v.latent_channels
        if u.out_channels != c or u.in_channels not in (c, 2 * c + 1):
            raise CheckpointError(
                f"{self.name}: a UNet of {u.in_channels} to {u.out_channels} channels, latents of {c}",
                allowed=f"{c} to {c} channels, or {2 * c + 1} to {c} for inpainting (latents, mask, masked latents)",
            )
        if self.small_decoder is not None:
            t = self.small_decoder.spec
            if (t.latent_channels, t.downscale) != (c, v.downscale):
                raise CheckpointError(
                    f"{self.name}: a small decoder of latents with {t.latent_channels} channels, 1/{t.downscale} of the"
                    " picture's edge",
                    allowed=f"{c} channels, 1/{v.downscale}, as of its autoencoder",
                )

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages with a conditioner, the default one first."""
        return (self.default_language, *(x for x in self.conditioners if x != self.default_language))

    def conditioner(self, language: str | None = None) -> Conditioner:
        """The Conditioner of a language (None: the default one). Raises UserError for a language that isn't there."""
        language = self.default_language if language is None else language
        if language not in self.conditioners:
            raise unknown("language", language, self.conditioners)
        return self.conditioners[language]

    def tokenizer(self, language: str) -> Tokenizer:
        """The tokenizer of a language; of languages that one encoder reads it is the same object."""
        if isinstance(self.conditioners, Conditioners) and language in self.conditioners:
            return self.conditioners.tokenizer(language)
        return self.conditioner(language).tokenizer

    @property
    def low_memory(self) -> bool:
        """Whether the parts come to the device in turn."""
        return self.works_on is not None

    @property
    def device(self) -> torch.device:
        """Where pictures are computed."""
        return next(self.unet.parameters()).device if self.works_on is None else self.works_on

    @contextmanager
    def at_work(self, part: torch.nn.Module) -> Iterator[None]:
        """Within it `part` can compute on `device`. With low memory it is brought there, and nothing else is."""
        if self.works_on is None:
            yield
            return
        with self._turn:
            waiting = [
                (module, name, tensor)
                for module in part.modules()
                for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            ]
            try:
                for module, name, tensor in waiting:
                    there = tensor.detach().to(self.works_on)
                    parameter = isinstance(tensor, torch.nn.Parameter)
                    setattr(module, name, torch.nn.Parameter(there, requires_grad=False) if parameter else there)
                yield
            finally:  # the host's tensors have not changed: nothing is copied back
                for module, name, tensor in waiting:
                    setattr(module, name, tensor)

    @property
    def sha256(self) -> str:
        """Identity of the drawing part: UNet, VAE, adapters. A conditioner has its own (`Conditioner.hashes`)."""
        import hashlib

        each = [
            self.hashes[part] if part in self.hashes else tensors_sha256(module)
            for part, module in (("unet", self.unet), ("vae", self.vae))
        ]
        each += [dumps(adapter) for adapter in self.adapters]
        return hashlib.sha256("".join(each).encode()).hexdigest()

    def changed(self, **parts: Any) -> Bundle:
        """A copy with other parts. It no longer claims the folder and hashes it was loaded from, nor what was made for
        a part that is now another: the small decoder for the autoencoder, the fast way for what draws."""
        left: dict[str, Any] = {"folder": None, "hashes": {}}
        left |= {"small_decoder": None} if "vae" in parts else {}
        left |= {"fast": None} if {"unet", "vae"} & set(parts) else {}
        return replace(self, **{**left, **parts})


def conditioner_hashes(conditioner: Conditioner) -> dict[str, str]:
    """sha256 of "tokenizer" and "text_encoder": of the files, or of ids and tensors where there are no files."""
    known = conditioner.hashes
    return {
        "tokenizer": known["tokenizer"] if "tokenizer" in known else conditioner.tokenizer.sha256,
        "text_encoder": known["text_encoder"] if "text_encoder" in known else tensors_sha256(conditioner.encoder),
    }

"""Checkpoints: `load` makes a Bundle from a name or folder, `save` writes one that stock diffusers opens too.

The folder is diffusers' (model_index.json, unet/, vae/, text_encoder/, tokenizer/, scheduler/); the conditioners of
further languages lie beside it in conditioners/<language>/{tokenizer,text_encoder}, and kotoe.json lists them.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from kotoe import __version__, builtin
from kotoe.checkpoints import diffusers, schedulers
from kotoe.checkpoints.files import (
    Folder,
    LazyHashes,
    choose_dtype,
    replacing,
    tensors_sha256,
    write_tensors,
)
from kotoe.checkpoints.keys import DIFFUSERS_VERSION
from kotoe.errors import CheckpointError, UserError, nearest, unknown
from kotoe.spec import ScheduleSpec
from kotoe.text import Conditioner
from kotoe.unet import UNet
from kotoe.vae import VAE

FORMAT = 1
LANGUAGE = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8}){0,4}")  # BCP 47, and safe as a folder's name
PARTS = ("unet", "vae", "text_encoder")
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionInpaintPipeline")
NOT_LOADED = ("safety_checker", "feature_extractor", "image_encoder")


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What the model's card recommends. grid None: the schedule's own timestep_spacing."""

    steps: int = 20
    guidance_scale: float = 7.5
    grid: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or not 1 <= self.steps <= 1000:
            raise UserError(f"default steps {self.steps!r}", allowed="a whole number from 1 to 1000")
        scale = self.guidance_scale
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 <= scale <= 1000:
            raise UserError(f"default guidance_scale {scale!r}", allowed="a number from 0 to 1000")
        if self.grid not in (None, "linspace", "leading", "trailing", "karras"):
            raise UserError(f"default grid {self.grid!r}", allowed="null, linspace, leading, trailing, karras")


@dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """A loaded model: networks, schedule and one Conditioner per language.

    conditioners: by language; after `load` each is read from disk when first asked for.
    family:       "sd1" (1x1 convolutions round the transformers) or "sd2" (linear layers), each also "-inpainting".
    folder:       where it was loaded from, or None for one made or changed in memory.
    hashes:       sha256 of the files of "unet" and "vae", computed when asked for; empty without a folder.
    notes:        what the folder holds that is not used, or is read as diffusers' pipeline reads it.
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
        """Identity of the drawing part: UNet, VAE. A conditioner has its own (`Conditioner.hashes`)."""
        import hashlib

        each = [
            self.hashes[part] if part in self.hashes else tensors_sha256(module)
            for part, module in (("unet", self.unet), ("vae", self.vae))
        ]
        return hashlib.sha256("".join(each).encode()).hexdigest()

    def changed(self, **parts: Any) -> Bundle:
        """A copy with other parts. It no longer claims the folder and hashes it was loaded from."""
        return replace(self, **{"folder": None, "hashes": {}, **parts})


def conditioner_hashes(conditioner: Conditioner) -> dict[str, str]:
    """sha256 of "tokenizer" and "text_encoder": of the files, or of ids and tensors where there are no files."""
    known = conditioner.hashes
    return {
        "tokenizer": known["tokenizer"] if "tokenizer" in known else conditioner.tokenizer.sha256,
        "text_encoder": known["text_encoder"] if "text_encoder" in known else tensors_sha256(conditioner.encoder),
    }


class Conditioners(Mapping[str, Conditioner]):
    """Language to Conditioner, each read when first asked for: a cold start pays only for the language it uses."""

    def __init__(self, readers: Mapping[str, Callable[[], Conditioner]]) -> None:
        self._readers, self._loaded, self._lock = dict(readers), {}, threading.Lock()  # type: ignore[var-annotated]

    def __getitem__(self, language: str) -> Conditioner:
        with self._lock:
            if language not in self._loaded:
                self._loaded[language] = self._readers[language]()
            return self._loaded[language]

    def __contains__(self, language: object) -> bool:
        return language in self._readers

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    @property
    def loaded(self) -> tuple[str, ...]:
        """Languages read so far."""
        return tuple(self._loaded)


def load(
    source: str | Path = builtin.DEFAULT,
    *,
    dtype: str | torch.dtype | Mapping[str, str | torch.dtype] | None = None,
    device: str | torch.device | None = None,
    low_memory: bool = False,
    allow_pickle: bool = False,
) -> Bundle:
    """The Bundle of a built-in model's name or of a folder in diffusers' layout.

    dtype:        of the weights in memory: None or "auto" is bfloat16 where the processor has it and float32 otherwise;
                  a mapping gives each of "unet", "vae", "text_encoder" its own ("auto" for those left out).
    device:       None is the CPU.
    low_memory:   text encoder, UNet and autoencoder are on the device in turn, not together, and attention is computed
                  piece by piece: the same pictures, more slowly, in less memory.
    allow_pickle: read .bin weights too, as tensors only.
    Raises CheckpointError naming the file, key or tensor that is missing, damaged, unsafe or not implemented.
    """
    folder = Folder(builtin.resolve(source))
    works_on = _device(device)
    dtypes = _dtypes(dtype, works_on)
    place = torch.device("cpu") if low_memory else works_on
    index = _model_index(folder)
    card = _card(folder)
    schedule, grid, notes = schedulers.schedule_spec(folder.json("scheduler/scheduler_config.json"), index["scheduler"])
    notes += [f"{part}/ is not used" for part in NOT_LOADED if folder.has(part)]
    main, *others = card["languages"]

    def conditioner(language: str, base: str) -> Callable[[], Conditioner]:
        def read() -> Conditioner:
            part = f"{base}text_encoder"
            found = diffusers.read_conditioner(folder, base, language, dtypes["text_encoder"], place, allow_pickle)
            width, needed = found.encoder.spec.hidden_size, unet.spec.cross_attention_dim
            if width != needed:
                raise CheckpointError(f"{part}: states {width} wide for a UNet that reads {needed}")
            return found

        return read

    unet = diffusers.read_unet(folder, dtypes["unet"], place, allow_pickle)
    vae = diffusers.read_vae(folder, dtypes["vae"], place, allow_pickle)
    if low_memory:
        unet.slice_attention()
        vae.slice_attention()
    hashes = LazyHashes({part: diffusers.weight_files(folder, part, allow_pickle) for part in ("unet", "vae")})
    bases = {main: "", **{language: f"conditioners/{language}/" for language in others}}
    return Bundle(
        name=card["name"],
        unet=unet,
        vae=vae,
        schedule=schedule,
        conditioners=Conditioners({language: conditioner(language, base) for language, base in bases.items()}),
        default_language=main,
        family=unet.spec.family,
        licence=card["licence"],
        folder=folder.root,
        hashes=hashes,
        defaults=Defaults(**{"grid": grid, **card["defaults"]}),
        notes=tuple(notes),
        works_on=works_on if low_memory else None,
    )


def save(
    bundle: Bundle, folder: str | Path, *, dtype: str | torch.dtype | None = None, overwrite: bool = False
) -> Path:
    """Write the bundle as a folder that stock diffusers opens, all of it or nothing.

    dtype:     of the weights on disk: None as in memory, "float16" for half the size.
    overwrite: replace a checkpoint that is there already; its other top-level files, such as the card, are kept.
    """
    folder = Path(folder)
    kind = None if dtype is None else choose_dtype(dtype, torch.device("cpu"))
    scheduler, config = schedulers.schedule_config(bundle.schedule, bundle.defaults.grid)
    with replacing(folder, overwrite=overwrite, marker="model_index.json") as new:
        _write_part(new / "unet", diffusers.unet_config(bundle.unet.spec), bundle.unet, "diffusion_pytorch_model", kind)
        _write_part(new / "vae", diffusers.vae_config(bundle.vae.spec), bundle.vae, "diffusion_pytorch_model", kind)
        for language in bundle.languages:
            base = new if language == bundle.default_language else new / "conditioners" / language
            conditioner = bundle.conditioners[language]
            diffusers.check_tokenizer(conditioner.tokenizer, conditioner.encoder.spec, f"conditioner {language}")
            encoder = diffusers.stock_text(conditioner.encoder)
            _write_part(base / "text_encoder", diffusers.text_config(encoder.spec), encoder, "model", kind)
            (base / "tokenizer").mkdir()
            conditioner.tokenizer.save(base / "tokenizer")
        (new / "scheduler").mkdir()
        _write_json(new / "scheduler" / "scheduler_config.json", config)
        kinds = {"clip-bpe": "CLIPTokenizer", "sentencepiece": "T5Tokenizer"}
        _write_json(
            new / "model_index.json",
            {
                "_class_name": PIPELINES[bundle.unet.spec.inpaints],
                "_diffusers_version": DIFFUSERS_VERSION,
                "unet": ["diffusers", "UNet2DConditionModel"],
                "vae": ["diffusers", "AutoencoderKL"],
                "text_encoder": ["transformers", "CLIPTextModel"],
                "tokenizer": ["transformers", kinds[bundle.conditioner().tokenizer.kind]],
                "scheduler": ["diffusers", scheduler],
                **{part: [None, None] for part in NOT_LOADED},
                "requires_safety_checker": False,
            },
        )
        _write_json(
            new / "kotoe.json",
            {
                "format": FORMAT,
                "kotoe_version": __version__,
                "name": bundle.name,
                "family": bundle.family,
                "licence": bundle.licence,
                "languages": list(bundle.languages),
                "defaults": asdict(bundle.defaults),
            },
        )
    return folder


def _device(asked: str | torch.device | None) -> torch.device:
    """The device, if this machine has it."""
    here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    here += ["mps"] if torch.backends.mps.is_available() else []
    try:
        device = torch.device("cpu" if asked is None else asked)
    except RuntimeError:
        raise UserError(f"device {str(asked)!r}", allowed=", ".join(here)) from None
    if (f"cuda:{device.index or 0}" if device.type == "cuda" else device.type) not in here:
        raise UserError(f"device {str(asked)!r}, which this machine doesn't have", allowed=", ".join(here))
    return device


def _dtypes(asked: Any, device: torch.device) -> dict[str, torch.dtype]:
    if not isinstance(asked, Mapping):
        asked = dict.fromkeys(PARTS, asked)
    for part in asked:
        if part not in PARTS:
            raise unknown("part in dtype", part, PARTS)
    return {part: choose_dtype(asked.get(part), device) for part in PARTS}


def _model_index(folder: Folder) -> dict[str, str]:
    """Part to class name, after checking that these are the parts and classes we read."""
    if not folder.has("model_index.json"):
        raise CheckpointError(
            f"{folder.root} holds no model_index.json",
            allowed="a folder in diffusers' layout, as StableDiffusionPipeline.save_pretrained writes it",
        )
    index = folder.json("model_index.json")
    if index.get("_class_name") not in PIPELINES:
        raise CheckpointError(
            f"{folder.root.name}: a pipeline of class {index.get('_class_name')!r}", allowed=", ".join(PIPELINES)
        )
    classes = {
        "unet": ("UNet2DConditionModel",),
        "vae": ("AutoencoderKL",),
        "text_encoder": ("CLIPTextModel",),
        "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast"),
        "scheduler": tuple(schedulers.SCHEDULERS),
    }
    found = {}
    for part, allowed in classes.items():
        value = index.get(part)
        kind = value[1] if isinstance(value, list) and len(value) == 2 else None
        if kind not in allowed:
            raise CheckpointError(
                f"{folder.root.name}: {part} is {value!r} in model_index.json", allowed=", ".join(allowed)
            )
        found[part] = kind
    for part in index:
        if part not in (*classes, *NOT_LOADED, "requires_safety_checker") and not part.startswith("_"):
            raise CheckpointError(f"{folder.root.name}: unknown part {part!r} in model_index.json")
    return found


def _card(folder: Folder) -> dict[str, Any]:
    """kotoe.json, or what stands for it in a folder that Kotoe didn't write."""
    if not folder.has("kotoe.json"):
        spm = any(folder.has(f"tokenizer/{name}") for name in ("spiece.model", "sentencepiece.model"))
        language = "und" if spm else "en"  # CLIP's own vocabulary is English; another one could be any language's
        return {"name": folder.root.name, "licence": None, "languages": [language], "defaults": {}}
    card = folder.json("kotoe.json")
    allowed = ("format", "kotoe_version", "name", "family", "licence", "languages", "defaults")
    for key in card:
        if key not in allowed:
            near = nearest(key, allowed)
            raise CheckpointError(
                f"kotoe.json: unknown key {key!r}",
                allowed=", ".join(allowed),
                hint=f"Did you mean {near!r}?" if near else "",
            )
    if card.get("format") != FORMAT:
        raise CheckpointError(f"kotoe.json: format {card.get('format')!r}", allowed=str(FORMAT), hint="Update Kotoe")
    languages = card.get("languages")
    tags = [x for x in languages if isinstance(x, str) and LANGUAGE.fullmatch(x)] if isinstance(languages, list) else []
    if not tags or tags != languages or len({tag.lower() for tag in tags}) != len(tags):
        raise CheckpointError(f"kotoe.json: languages {languages!r}", allowed="a list of different BCP 47 tags")
    name, licence, defaults = card.get("name"), card.get("licence"), card.get("defaults", {})
    if not isinstance(name, str) or not isinstance(licence, str | None) or not isinstance(defaults, dict):
        raise CheckpointError("kotoe.json: name, licence and defaults", allowed="a text, a text or null, a table")
    names = [f.name for f in fields(Defaults)]
    for key in defaults:
        if key not in names:
            raise CheckpointError(f"kotoe.json: unknown key {key!r} in defaults", allowed=", ".join(names))
    return {"name": name, "licence": licence, "languages": languages, "defaults": defaults}


def _write_part(
    folder: Path, config: dict[str, Any], module: torch.nn.Module, stem: str, dtype: torch.dtype | None
) -> None:
    folder.mkdir(parents=True)
    _write_json(folder / "config.json", config)
    write_tensors(module, folder / f"{stem}.safetensors", dtype)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")

"""What a folder may hold for drawing faster: small_decoder/ (an AutoencoderTiny) and fast/ (a LoRA for few steps).

kotoe.json's "fast" says how the model then draws: {"steps": 4, "guidance_scale": 1.0, "decoder": "small"}. The LoRA is
in diffusers' form and under its usual name, so that `pipe.load_lora_weights(folder, subfolder="fast")` reads it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from kotoe.checkpoints import tiny
from kotoe.checkpoints.bundle import Bundle, Defaults, Fast
from kotoe.checkpoints.files import Folder, file_sha256
from kotoe.errors import CheckpointError, UserError
from kotoe.record import Record

DECODER, FAST = "small_decoder", "fast"
LORA = f"{FAST}/pytorch_lora_weights.safetensors"


def read(bundle: Bundle, folder: Folder, card: Mapping[str, Any], dtype: Any, device: torch.device) -> Bundle:
    """The bundle, just read from a folder, with what else is in that."""
    if folder.has(f"{DECODER}/config.json"):
        bundle = with_small_decoder(bundle, folder.root / DECODER, dtype, device)
    said = card.get("fast")
    if said is None:
        return bundle
    names = [f.name for f in fields(Defaults)]
    if not isinstance(said, dict) or not said or set(said) - set(names):
        raise CheckpointError(f"kotoe.json: fast {said!r}", allowed=f"a table of {', '.join(names)}")
    fast = Fast(defaults=replace(bundle.defaults, **said), lora=folder.path(LORA) if folder.has(LORA) else None)
    if fast.defaults.decoder == "small" and bundle.small_decoder is None:
        raise CheckpointError(f"kotoe.json: fast with decoder small, and no {DECODER}/ in the folder")
    return replace(bundle, fast=fast)


def write(bundle: Bundle, new: Path, dtype: torch.dtype | None) -> dict[str, Any]:
    """Put them into a folder that is being written; gives what kotoe.json says of them."""
    if bundle.small_decoder is not None:
        tiny.save(bundle.small_decoder, new / DECODER, dtype)
    if bundle.fast is None:
        return {}
    if bundle.fast.lora is not None:
        (new / FAST).mkdir()
        shutil.copyfile(bundle.fast.lora, new / LORA)
    return {"fast": {k: v for k, v in asdict(bundle.fast.defaults).items() if v != asdict(bundle.defaults)[k]}}


def with_small_decoder(
    bundle: Bundle, source: str | Path, dtype: str | torch.dtype | None = None, device: torch.device | None = None
) -> Bundle:
    """The bundle with a small decoder: a folder of diffusers' AutoencoderTiny, such as TAESD. It decodes when a request
    says decoder "small". Raises CheckpointError for one of other latents."""
    weight = bundle.vae.quant_conv.weight
    kind = str(weight.dtype).removeprefix("torch.") if dtype is None else dtype
    place = weight.device if device is None else device
    return replace(bundle, small_decoder=tiny.load(source, kind, place))


def fast(bundle: Bundle, loras: Sequence[Any] = ()) -> tuple[Bundle, list[Any]]:
    """The bundle with the defaults of its fast way, and its LoRA before others: all LoRAs are put in together.

    Raises UserError for a model that has no fast way.
    """
    if bundle.fast is None:
        raise UserError(
            f"{bundle.name} has no way of drawing in few steps that it was taught",
            allowed="fast (--fast) with a model whose kotoe.json has one, such as kotoe-emoji",
            hint="A published LoRA for few steps goes in by --lora FILE, with the steps and guidance_scale it asks for",
        )
    own = [] if bundle.fast.lora is None else [bundle.fast.lora]
    return replace(bundle, defaults=bundle.fast.defaults), [*own, *loras]


def drew(way: Fast, record: Record) -> bool:
    """Whether the LoRA of a model's fast way is in a picture's record."""
    return way.lora is not None and file_sha256(way.lora) in {adapter.sha256 for adapter in record.adapters}

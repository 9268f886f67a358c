"""What a Record says of a Bundle, and whether a Bundle is the one that a Record names."""

from __future__ import annotations

import hashlib
from pathlib import Path
from weakref import WeakKeyDictionary

from torch.nn import Module

from kotoe import images
from kotoe.checkpoints import Bundle, adapters
from kotoe.checkpoints.bundle import conditioner_hashes
from kotoe.checkpoints.files import tensors_sha256
from kotoe.config import dumps
from kotoe.errors import UserError
from kotoe.record import ConditionerRecord, ModelRecord, Record


def model_record(bundle: Bundle) -> ModelRecord:
    """Name and sha256 of what draws. Reads the weight files once per Bundle."""
    sha = {
        part: bundle.hashes[part] if part in bundle.hashes else tensors_sha256(module)
        for part, module in (("unet", bundle.unet), ("vae", bundle.vae))
    }
    schedule = hashlib.sha256(dumps(bundle.schedule).encode()).hexdigest()
    return ModelRecord(name=bundle.name, unet_sha256=sha["unet"], vae_sha256=sha["vae"], schedule_sha256=schedule)


def conditioner_record(bundle: Bundle, language: str) -> ConditionerRecord:
    """Language and sha256 of what reads."""
    sha = conditioner_hashes(bundle.conditioner(language))
    return ConditionerRecord(
        language=language, tokenizer_sha256=sha["tokenizer"], text_encoder_sha256=sha["text_encoder"]
    )


_hashes: WeakKeyDictionary[Module, str] = WeakKeyDictionary()  # of small decoders, which nothing changes


def decoder_hash(bundle: Bundle) -> str:
    """sha256 of the small decoder's tensors, computed once."""
    net = bundle.small_decoder
    assert net is not None
    if net not in _hashes:
        _hashes[net] = tensors_sha256(net)
    return _hashes[net]


def check_same(bundle: Bundle, record: Record) -> None:
    """Raise a UserError naming the first part of the bundle, or picture, that isn't the one the record names."""
    language = record.conditioner.language
    if language not in bundle.conditioners:
        raise UserError(f"the picture was read by the conditioner {language}, which {bundle.name} doesn't have")
    model, conditioner = model_record(bundle), conditioner_record(bundle, language)
    for what, ours, theirs in (
        ("UNet", model.unet_sha256, record.model.unet_sha256),
        ("VAE", model.vae_sha256, record.model.vae_sha256),
        ("noise schedule", model.schedule_sha256, record.model.schedule_sha256),
        (f"tokenizer of {language}", conditioner.tokenizer_sha256, record.conditioner.tokenizer_sha256),
        (f"text encoder of {language}", conditioner.text_encoder_sha256, record.conditioner.text_encoder_sha256),
    ):
        if ours != theirs:
            raise UserError(
                f"the {what} of {bundle.name} is another one than drew the picture"
                f" (sha256 {ours[:12]} here, {theirs[:12]} then)",
                hint=f"Load the model that drew it ({record.model.name}), or draw anew without replay",
            )
    if record.decoder == "small" and (bundle.small_decoder is None or decoder_hash(bundle) != record.decoder_sha256):
        there = "another one here" if bundle.small_decoder is not None else "missing"
        raise UserError(
            f"the small decoder that drew the picture is {there}", hint="Give its folder by --taesd (small_decoder=)"
        )
    adapters.check_same(bundle.adapters, record.adapters)
    for what, path, sha256 in (
        ("init_image", record.init_image, record.init_image_sha256),
        ("mask", record.mask, record.mask_sha256),
    ):
        if path is not None and not Path(path).exists():
            raise UserError(
                f"{what} {path}, which the picture was drawn from, isn't there",
                allowed=f"the file with sha256 {sha256}",
                hint="Names are as they were when it was drawn: replay in that folder. A server keeps no such files",
            )
        if path is not None and images.file_sha256(path) != sha256:
            raise UserError(f"{what} {path} has changed since the picture was drawn", allowed=f"sha256 {sha256}")

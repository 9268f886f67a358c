"""A folder of diffusers' AutoencoderTiny (config.json beside diffusion_pytorch_model.safetensors), read and written."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from kotoe.checkpoints.diffusers import weight_files
from kotoe.checkpoints.files import (
    Folder,
    choose_dtype,
    fill,
    read_tensors,
    replacing,
    shapes_of,
    skeleton,
    write_tensors,
)
from kotoe.checkpoints.keys import DIFFUSERS_VERSION, LARGEST_DEPTH, LARGEST_WIDTH, Config, Keys, make_spec
from kotoe.errors import CheckpointError
from kotoe.spec import TinyVAESpec
from kotoe.tiny_vae import TinyVAE

CLASS = "AutoencoderTiny"
WEIGHTS = "diffusion_pytorch_model.safetensors"
DEFAULTS: Config = {
    "encoder_block_out_channels": [64] * 4,
    "decoder_block_out_channels": [64] * 4,
    "num_encoder_blocks": [1, 3, 3, 3],
    "num_decoder_blocks": [3, 3, 3, 1],
    "latent_channels": 4,
    "act_fn": "relu",
    "upsampling_scaling_factor": 2,
    "latent_magnitude": 3,
    "latent_shift": 0.5,
    "scaling_factor": 1.0,
    "block_out_channels": None,  # the decoder's once more, as diffusers itself writes it
}
FIXED: Config = {"in_channels": 3, "out_channels": 3, "upsample_fn": "nearest", "shift_factor": 0.0}


def tiny_spec(config: Config, where: str = "config.json") -> TinyVAESpec:
    """The TinyVAESpec of an AutoencoderTiny's config.json, which must say that it is one."""
    if config.get("_class_name") != CLASS:
        raise CheckpointError(f"{where}: _class_name is {config.get('_class_name')!r}", allowed=CLASS)
    keys = Keys(config, {**DEFAULTS, **FIXED}, where, ("force_upcast",))
    keys.fixed(**FIXED)
    widths = keys.widths("decoder_block_out_channels")
    if keys["block_out_channels"] is not None and keys.widths("block_out_channels") != widths:
        raise keys.refuse("block_out_channels", f"{list(widths)}, as decoder_block_out_channels")
    return make_spec(
        lambda: TinyVAESpec(
            latent_channels=keys.whole("latent_channels", LARGEST_WIDTH),
            encoder_block_out_channels=keys.widths("encoder_block_out_channels"),
            decoder_block_out_channels=widths,
            num_encoder_blocks=keys.widths("num_encoder_blocks", LARGEST_DEPTH, 0),
            num_decoder_blocks=keys.widths("num_decoder_blocks", LARGEST_DEPTH, 0),
            act_fn=str(keys["act_fn"]),
            upsampling_scaling_factor=keys.whole("upsampling_scaling_factor", 16),
            latent_magnitude=keys.number("latent_magnitude"),
            latent_shift=keys.number("latent_shift"),
            scaling_factor=keys.number("scaling_factor"),
        ),
        where,
    )


def tiny_config(spec: TinyVAESpec) -> Config:
    """The config.json of a TinyVAESpec, every key written out."""
    own = {key: getattr(spec, key) for key in DEFAULTS if key != "block_out_channels"}
    lists = {key: list(value) if isinstance(value, tuple) else value for key, value in own.items()}
    return {"_class_name": CLASS, "_diffusers_version": DIFFUSERS_VERSION, **FIXED, "force_upcast": False, **lists}


def load(folder: str | Path, dtype: str | torch.dtype | None = None, device: str | torch.device = "cpu") -> TinyVAE:
    """The small autoencoder of a folder, whose tensors must be exactly those that its config.json describes.

    dtype:  as `kotoe.load` takes it; None or "auto" for what suits the device, "stored" for the file's own.
    device: one that this machine has.
    Raises CheckpointError for another class, unknown keys or values, and tensors that are missing, extra or misshapen.
    """
    here, device = Folder(folder), torch.device(device)
    if not here.has("config.json"):
        raise CheckpointError(
            f"{here.name} holds no config.json", allowed=f"a folder of an {CLASS}, as diffusers saves it"
        )
    spec = tiny_spec(here.json("config.json"), f"{here.name}/config.json")
    net = skeleton(lambda: TinyVAE(spec))
    tensors = read_tensors(
        weight_files(here, ""), shapes_of(net), what=here.name, dtype=choose_dtype(dtype, device), device=device
    )
    return fill(net, tensors)


def save(
    net: TinyVAE, folder: str | Path, dtype: str | torch.dtype | None = "float16", *, overwrite: bool = False
) -> Path:
    """Write a folder that `load` and diffusers open, all of it or nothing.

    dtype:     of the weights on disk; None for those in memory.
    overwrite: replace an AutoencoderTiny that is there already; other top-level files, such as a card, are kept.
    """
    folder = Path(folder)
    kind = None if dtype is None else choose_dtype(dtype, torch.device("cpu"))
    if overwrite and (folder / "config.json").is_file():
        tiny_spec(Folder(folder).json("config.json"), str(folder / "config.json"))  # nor may it be another network's
    with replacing(folder, overwrite=overwrite, marker="config.json") as new:
        text = json.dumps(tiny_config(net.spec), indent=2, sort_keys=True)
        (new / "config.json").write_text(text + "\n", encoding="utf-8")
        write_tensors(net, new / WEIGHTS, kind)
    return folder

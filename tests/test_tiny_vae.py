"""The small autoencoder's spec and folders: what is refused, and in which words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kotoe.checkpoints import tiny
from kotoe.errors import CheckpointError, UserError
from kotoe.spec import TinyVAESpec
from kotoe.tiny_vae import TinyVAE
from tiny import edit, seeded

SPEC = TinyVAESpec(
    encoder_block_out_channels=(8, 8),
    decoder_block_out_channels=(12, 12),
    num_encoder_blocks=(1, 0),
    num_decoder_blocks=(2, 1),
)
# config.json of the TAESD folders on the hub, the keys that older and newer files have
PUBLISHED: dict[str, Any] = {
    "_class_name": "AutoencoderTiny",
    "_diffusers_version": "0.20.0.dev0",
    "act_fn": "relu",
    "decoder_block_out_channels": [64, 64, 64, 64],
    "encoder_block_out_channels": [64, 64, 64, 64],
    "force_upcast": False,
    "in_channels": 3,
    "latent_channels": 4,
    "latent_magnitude": 3,
    "latent_shift": 0.5,
    "num_decoder_blocks": [3, 3, 3, 1],
    "num_encoder_blocks": [1, 3, 3, 3],
    "out_channels": 3,
    "scaling_factor": 1.0,
    "upsampling_scaling_factor": 2,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.save(net(), tmp_path / "small")


def net() -> TinyVAE:
    made = TinyVAE(SPEC)
    seeded(made, 3)
    return made.eval()


def test_published_files_are_the_defaults() -> None:
    assert tiny.tiny_spec(PUBLISHED) == TinyVAESpec()
    assert tiny.tiny_spec({"_class_name": "AutoencoderTiny"}) == TinyVAESpec()
    newer = {"block_out_channels": [64] * 4, "upsample_fn": "nearest", "shift_factor": 0.0}
    assert tiny.tiny_spec({**PUBLISHED, **newer}) == TinyVAESpec()


def test_size_and_downscale() -> None:
    assert sum(p.numel() for p in TinyVAE(TinyVAESpec()).parameters()) == 2_445_063  # TAESD's, as diffusers counts it
    assert [TinyVAESpec().downscale, SPEC.downscale] == [8, 2]


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16", None])
def test_save_and_load(dtype: str | None, tmp_path: Path) -> None:
    made = net()
    kind = torch.float32 if dtype is None else getattr(torch, dtype)
    again = tiny.load(tiny.save(made, tmp_path / "small", dtype), "stored", "cpu")
    assert again.spec == SPEC
    assert not again.training
    theirs = again.state_dict()
    assert theirs.keys() == made.state_dict().keys()
    assert all(torch.equal(theirs[name], t.to(kind)) for name, t in made.state_dict().items())
    assert {t.dtype for t in tiny.load(tmp_path / "small", "float32", "cpu").state_dict().values()} == {torch.float32}


def test_half_precision_is_the_default(folder: Path) -> None:
    assert {t.dtype for t in load_file(folder / tiny.WEIGHTS).values()} == {torch.float16}


def test_a_folder_is_replaced_only_when_asked_and_only_by_its_like(folder: Path, tmp_path: Path) -> None:
    (folder / "README.md").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        tiny.save(net(), folder)
    tiny.save(net(), folder, "float32", overwrite=True)
    assert (folder / "README.md").read_text() == "mine"
    assert {t.dtype for t in load_file(folder / tiny.WEIGHTS).values()} == {torch.float32}
    before = (folder / tiny.WEIGHTS).read_bytes()
    edit(folder / "config.json", _class_name="AutoencoderKL")
    with pytest.raises(CheckpointError, match="_class_name is 'AutoencoderKL'"):
        tiny.save(net(), folder, overwrite=True)
    assert (folder / tiny.WEIGHTS).read_bytes() == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds no config\.json"):
        tiny.save(net(), tmp_path / "notes", overwrite=True)


def test_other_precisions_and_pickles(folder: Path) -> None:
    (folder / tiny.WEIGHTS).rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    assert tiny.load(folder, "float32", "cpu").spec == SPEC
    (folder / "diffusion_pytorch_model.fp16.safetensors").rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="is a pickle"):
        tiny.load(folder)


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "another class": ({"_class_name": "AutoencoderKL"}, "_class_name is 'AutoencoderKL'. Allowed: AutoencoderTiny"),
    "no class": ({"_class_name": "gone"}, "_class_name is None"),
    "unknown key": ({"act_fm": "relu"}, "unknown key 'act_fm'.*Did you mean 'act_fn'"),
    "activation": ({"act_fn": "tanh"}, "act_fn 'tanh'. Allowed: relu, silu"),
    "activation of another kind": ({"act_fn": ["relu"]}, "act_fn"),
    "smooth upsampling": ({"upsample_fn": "bilinear"}, "upsample_fn is 'bilinear'. Allowed: 'nearest'"),
    "shifted": ({"shift_factor": 0.1}, "shift_factor is 0.1. Allowed: 0.0"),
    "grey pictures": ({"out_channels": 1}, "out_channels is 1. Allowed: 3"),
    "channels": ({"latent_channels": 0}, "latent_channels is 0"),
    "huge": ({"latent_channels": 2**40}, "latent_channels"),
    "widths differ": ({"decoder_block_out_channels": [8, 12]}, "one width at all levels"),
    "too many widths": ({"encoder_block_out_channels": [8] * 99}, "a list of 1 to 16"),
    "blocks missing": ({"num_decoder_blocks": [1]}, "different length"),
    "blocks below none": ({"num_decoder_blocks": [1, -1]}, "whole numbers from 0 to 256"),
    "blocks beyond number": ({"num_encoder_blocks": [1, 10**9]}, "whole numbers from 0 to 256"),
    "said twice": ({"block_out_channels": [12, 13]}, r"block_out_channels is \[12, 13\]"),
    "levels differ": (
        {"encoder_block_out_channels": [8] * 3, "num_encoder_blocks": [0] * 3},
        "a decoder that enlarges 2 times beside an encoder of 1/4",
    ),
    "factor 3": ({"upsampling_scaling_factor": 3}, "a decoder that enlarges 3 times beside an encoder of 1/2"),
    "factor 0": ({"upsampling_scaling_factor": 0}, "upsampling_scaling_factor is 0"),
    "scaling 0": ({"scaling_factor": 0}, "scaling_factor 0.0. Allowed: a number above 0"),
    "scaling no number": ({"scaling_factor": float("nan")}, "not valid JSON"),
    "magnitude": ({"latent_magnitude": -3}, "latent_magnitude -3.0"),
    "shift": ({"latent_shift": "0.5"}, "latent_shift is '0.5'"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_wrong_config_is_named(name: str, folder: Path) -> None:
    changes, message = CONFIGS[name]
    edit(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        tiny.load(folder)


FIRST = "decoder.layers.0.weight"
TENSORS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "missing": (lambda t: t.pop(FIRST), rf"{FIRST} \[12, 4, 3, 3\] is missing"),
    "extra": (lambda t: t.update(more=torch.zeros(2)), r"more \[2\] is extra"),
    "shape": (lambda t: t.update({FIRST: torch.zeros(12, 5, 3, 3)}), f"{FIRST} has another shape"),
    "transposed": (lambda t: t.update({FIRST: t[FIRST].transpose(0, 1).contiguous()}), f"{FIRST} is transposed"),
    "a bias": (lambda t: t.update({"decoder.layers.5.bias": torch.zeros(12)}), "decoder.layers.5.bias.*is extra"),
    "whole numbers": (lambda t: t.update({FIRST: t[FIRST].int()}), "holds I32"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_wrong_tensors_are_named(name: str, folder: Path) -> None:
    change, message = TENSORS[name]
    tensors = load_file(folder / tiny.WEIGHTS)
    change(tensors)
    save_file(tensors, folder / tiny.WEIGHTS)
    with pytest.raises(CheckpointError, match=message):
        tiny.load(folder)


def test_wrong_folders_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint folder at"):
        tiny.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        tiny.load(tmp_path / "empty")
    with pytest.raises(UserError, match="dtype 'float8'"):
        tiny.load(folder, "float8")
    (folder / tiny.WEIGHTS).write_bytes(b"not tensors")
    with pytest.raises(CheckpointError, match="truncated or not a safetensors file"):
        tiny.load(folder)
    (folder / tiny.WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        tiny.load(folder)
    (folder / tiny.WEIGHTS).symlink_to("/etc/passwd")
    with pytest.raises(CheckpointError, match="outside the folder"):
        tiny.load(folder)
    (folder / "config.json").write_text(json.dumps([1]))
    with pytest.raises(UserError):
        tiny.load(folder)


def test_the_spec_refuses_by_itself() -> None:
    with pytest.raises(UserError, match="one width at all levels"):
        TinyVAESpec(encoder_block_out_channels=(64, 64, 64, 32))
    with pytest.raises(UserError, match="act_fn 'elu'"):
        TinyVAESpec(act_fn="elu")


def test_decoding_in_half_precision_stays_near(folder: Path) -> None:
    z = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        full, less = tiny.load(folder, "float32").decode(z), tiny.load(folder, "bfloat16").decode(z.bfloat16())
    assert less.dtype == torch.bfloat16
    assert float((full - less.float()).abs().max()) < 0.05 * float(full.abs().max())

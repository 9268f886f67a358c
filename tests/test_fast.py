"""A model's fast way: a LoRA, its own steps and guidance, a small decoder; and what pictures drawn so say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from safetensors.torch import save_file

from commands import Kotoe, running
from kotoe.checkpoints import Bundle, load, save
from kotoe.checkpoints.adapters import with_adapters
from kotoe.checkpoints.bundle import Defaults, Fast
from kotoe.checkpoints.fast import fast, with_small_decoder
from kotoe.checkpoints.lora import targets
from kotoe.config import Request
from kotoe.drawing import generate, replay, resolve
from kotoe.errors import CheckpointError, UserError
from kotoe.images import differences
from kotoe.rng import generator
from kotoe.spec import TinyVAESpec
from kotoe.tiny_vae import TinyVAE
from tiny import seeded, tiny_bundle

PROMPT = "a red cat"
FAST = Defaults(steps=2, guidance_scale=1.0, decoder="small", batch_size=3)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Kotoe:
    return running(capsys)


def small(channels: int = 4, levels: int = 2) -> TinyVAE:
    net = TinyVAE(
        TinyVAESpec(
            latent_channels=channels,
            encoder_block_out_channels=(8,) * levels,
            decoder_block_out_channels=(8,) * levels,
            num_encoder_blocks=(0,) * levels,
            num_decoder_blocks=(1,) * levels,
        )
    ).requires_grad_(False)
    seeded(net, 5)
    return net


def levels(bundle: Bundle) -> int:
    return len(bundle.vae.spec.block_out_channels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with a small decoder and a fast way."""
    place = tmp_path_factory.mktemp("fast")
    bundle = tiny_bundle("sd1")
    draw, made = generator(9), {}
    for name, shape in list(targets(bundle.unet).values())[:6]:
        made[f"unet.{name}.lora_A.weight"] = torch.randn(2, *shape[1:], generator=draw) / 8
        made[f"unet.{name}.lora_B.weight"] = torch.randn(shape[0], 2, *[1] * (len(shape) - 2), generator=draw) / 8
    save_file(made, place / "lora.safetensors")
    bundle = replace(
        bundle, small_decoder=small(levels=levels(bundle)), fast=Fast(defaults=FAST, lora=place / "lora.safetensors")
    )
    return save(bundle, place / "model", dtype="float32")


def quick(folder: Path) -> Bundle:
    bundle, loras = fast(load(folder, dtype="float32"))
    return with_adapters(bundle, loras)


def test_a_folder_keeps_it(folder: Path, tmp_path: Path) -> None:
    bundle = load(folder, dtype="float32")
    assert bundle.fast is not None
    assert bundle.fast.defaults == replace(FAST, grid=bundle.defaults.grid)
    assert bundle.small_decoder is not None
    again = load(save(bundle, tmp_path / "again", dtype="float32"), dtype="float32")
    for name in ("small_decoder/config.json", "small_decoder/diffusion_pytorch_model.safetensors", "kotoe.json"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    lora = "fast/pytorch_lora_weights.safetensors"
    assert (folder / lora).read_bytes() == (tmp_path / "again" / lora).read_bytes()
    assert json.loads((folder / "kotoe.json").read_text())["fast"] == {
        "steps": 2, "guidance_scale": 1.0, "decoder": "small", "batch_size": 3,
    }  # fmt: skip
    assert again.fast is not None


def test_diffusers_reads_both(folder: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.load_lora_weights(folder, subfolder="fast")
    assert pipe.get_active_adapters()
    assert isinstance(AutoencoderTiny.from_pretrained(folder / "small_decoder"), AutoencoderTiny)


def test_it_is_only_defaults_and_a_lora(folder: Path) -> None:
    bundle = quick(folder)
    asked = resolve(bundle, Request(prompt=PROMPT))
    assert (asked.steps, asked.guidance_scale, asked.decoder, asked.batch_size) == (2, 1.0, "small", 3)
    asked = resolve(bundle, Request(prompt=PROMPT, steps=3, guidance_scale=2.0, decoder="full"))
    assert (asked.steps, asked.guidance_scale, asked.decoder) == (3, 2.0, "full")
    usual = resolve(load(folder, dtype="float32"), Request(prompt=PROMPT))
    assert usual.batch_size == 1
    assert (usual.steps, usual.guidance_scale, usual.decoder) == (4, 3.0, "full")


def test_pictures_are_recorded_and_drawn_again_to_the_bit(folder: Path) -> None:
    bundle = quick(folder)
    picture = generate(bundle, Request(prompt=PROMPT))[0]
    assert picture.record.decoder == "small"
    assert picture.record.decoder_sha256
    assert [a.kind for a in picture.record.adapters] == ["lora"]
    assert differences(replay(bundle, picture.record).image, picture.image)[0] == 0
    full = generate(bundle, Request(prompt=PROMPT, decoder="full"))[0]
    assert full.record.decoder_sha256 is None
    assert differences(full.image, picture.image)[0] > 0


def test_a_replay_wants_the_same_small_decoder(folder: Path) -> None:
    bundle = quick(folder)
    record = generate(bundle, Request(prompt=PROMPT))[0].record
    other = small(levels=levels(bundle))
    other.decoder.layers[0].bias += 0.1
    for changed, there in (
        (replace(bundle, small_decoder=None), "missing"),
        (replace(bundle, small_decoder=other), "an"),
    ):
        with pytest.raises(UserError, match=f"small decoder that drew the picture is {there}"):
            replay(changed, record)


def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    plain = tiny_bundle("sd1")
    with pytest.raises(UserError, match="no way of drawing in few steps.*kotoe-emoji"):
        fast(plain)
    with pytest.raises(UserError, match="decoder small with tiny-sd1, which has none.*--taesd"):
        resolve(plain, Request(prompt=PROMPT, decoder="small"))
    with pytest.raises(CheckpointError, match="latents with 8 channels"):
        replace(plain, small_decoder=small(8, levels(plain)))
    with pytest.raises(CheckpointError, match="of its autoencoder"):
        replace(plain, small_decoder=small(4, levels(plain) + 1))
    for said, why in (
        ({"step": 4}, "a table of steps"),
        ([], "a table"),
        ({"steps": 0}, "1 to 1000"),
        ({"batch_size": 0}, "1 to 1024"),
    ):
        broken = tmp_path / str(len(list(tmp_path.iterdir())))
        save(plain, broken)
        card = json.loads((broken / "kotoe.json").read_text()) | {"fast": said}
        (broken / "kotoe.json").write_text(json.dumps(card))
        with pytest.raises(UserError, match=why):
            load(broken)


def test_a_changed_model_has_no_fast_way(folder: Path) -> None:
    bundle = load(folder, dtype="float32")
    for parts, fast_stays, decoder_stays in (
        ({"unet": bundle.unet}, False, True),
        ({"vae": bundle.vae}, False, False),
        ({"conditioners": bundle.conditioners}, True, True),
    ):
        changed = bundle.changed(**parts)
        assert (changed.fast is not None, changed.small_decoder is not None) == (fast_stays, decoder_stays)


def test_what_another_format_has_no_place_for_is_said(folder: Path, tmp_path: Path, run: Kotoe) -> None:
    done = run("convert", folder, tmp_path / "one.safetensors", "--to", "compvis", "--dry-run")
    assert done.code == 0, done.err
    assert "compvis has no place for the model's small decoder and its fast way" in done.err
    done = run("convert", folder, tmp_path / "again", "--to", "diffusers", "--language", "en")
    assert done.code == 0, done.err
    assert (tmp_path / "again/fast/pytorch_lora_weights.safetensors").is_file()


def test_inspect_tells_of_both(folder: Path, run: Kotoe) -> None:
    found = run("inspect", folder, "--json").json
    assert found["fast"] == {"steps": 2, "guidance_scale": 1.0, "decoder": "small", "batch_size": 3}
    assert found["sizes"]["small_decoder"]["parameters"] > 0
    assert "small_decoder" in found["components"]
    assert "fast {" in run("inspect", folder).out


def test_taesd_goes_into_any_model(folder: Path) -> None:
    bundle = with_small_decoder(load(save_plain(folder), dtype="float32"), folder / "small_decoder")
    assert generate(bundle, Request(prompt=PROMPT, steps=1, decoder="small"))[0].record.decoder == "small"


def save_plain(folder: Path) -> Path:
    plain = folder.parent / "plain"
    return plain if plain.exists() else save(tiny_bundle("sd1"), plain, dtype="float32")


def test_the_command_draws_so_and_replays_it(folder: Path, tmp_path: Path, run: Kotoe) -> None:
    done = run("generate", PROMPT, "--model", folder, "--fast", "--out", tmp_path, "--json")
    assert done.code == 0, done.err
    (entry,) = json.loads(done.out.splitlines()[-1])["pictures"]
    assert (entry["record"]["steps"], entry["record"]["decoder"]) == (2, "small")
    again = run("generate", "--replay", entry["path"], "--model", folder, "--out", tmp_path / "again", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out.splitlines()[-1])["identical"] is True


def test_the_command_takes_a_small_decoder(folder: Path, tmp_path: Path, run: Kotoe) -> None:
    decoder = folder / "small_decoder"
    how = ("--model", save_plain(folder), "--steps", "1", "--decoder", "small", "--out", tmp_path)
    done = run("generate", PROMPT, *how, "--taesd", decoder)
    assert done.code == 0, done.err
    refused = run("generate", PROMPT, *how)
    assert refused.code == 2
    assert "--taesd" in refused.err

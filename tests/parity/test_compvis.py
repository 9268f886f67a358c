"""Single files in CompVis names against diffusers' reading of them, tensor by tensor, and what is drawn from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler, StableDiffusionPipeline
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import Tensor
from transformers import CLIPTokenizer

from kotoe import drawing as g
from kotoe.checkpoints import Bundle, compvis, load, save, single
from kotoe.checkpoints.diffusers import text_name
from kotoe.checkpoints.files import Entry, skeleton
from kotoe.config import Request
from kotoe.rng import ImageNoise
from kotoe.spec import TextSpec, UNetSpec, VAESpec
from kotoe.text import CLIPText
from kotoe.unet import UNet
from kotoe.vae import VAE as OurVAE
from singles import OPENCLIP, UNET, VAE, VAE_SPEC, Made, ema_of, made, under, words, written
from tiny import apart, latents_decoded, pictures

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

FAMILIES = ("sd1", "sd2")
SD2_UNET = UNetSpec(num_heads=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True)


@pytest.fixture(scope="module", params=FAMILIES)
def source(request: pytest.FixtureRequest) -> Made:
    return made(request.param)


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    """The same names with the same bits."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


# --- Tables of names ----------------------------------------------------------------------------------------


def unet_pair(source: Made) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    theirs = convert_ldm_unet_checkpoint(dict(source.file), {"layers_per_block": 2})
    return compvis.unet_from_compvis(part(source.file, UNET), source.unet_spec), theirs


def test_unet_is_what_diffusers_reads(source: Made) -> None:
    ours, theirs = unet_pair(source)
    assert same(ours, theirs)
    assert same(theirs, source.unet.state_dict())  # and so is what we write


@pytest.mark.parametrize(("a", "b"), [("norm1", "norm2"), ("conv1", "conv2")])
def test_a_swapped_name_of_the_unet_is_seen(a: str, b: str, source: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(compvis.UNET_RESNET, a, compvis.UNET_RESNET[b])
    monkeypatch.setitem(compvis.UNET_RESNET, b, {"norm1": "in_layers.0", "conv1": "in_layers.2"}[a])
    assert not same(*unet_pair(source))


def test_a_block_too_far_is_seen(source: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    real = compvis.unet_names
    shifted = {"output_blocks.0.0": "output_blocks.1.0", "output_blocks.1.0": "output_blocks.0.0"}

    def names(spec: UNetSpec) -> dict[str, str]:
        return {ours: shifted.get(t[:17], t[:17]) + t[17:] for ours, t in real(spec).items()}

    monkeypatch.setattr(compvis, "unet_names", names)
    assert not same(*unet_pair(source))


def vae_pair(source: Made) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    theirs = convert_ldm_vae_checkpoint(dict(source.file), {"down_block_types": [""] * 2, "up_block_types": [""] * 2})
    return compvis.vae_from_compvis(part(source.file, VAE), VAE_SPEC), theirs


def test_vae_is_what_diffusers_reads(source: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    assert source.file[f"{VAE}encoder.mid.attn_1.q.weight"].shape == (64, 64, 1, 1)
    ours, theirs = vae_pair(source)
    assert same(ours, theirs)
    assert same(theirs, source.vae.state_dict())
    monkeypatch.setitem(compvis.VAE_ATTENTION, "to_q", "k")  # the fault: queries and keys swapped
    monkeypatch.setitem(compvis.VAE_ATTENTION, "to_k", "q")
    assert not same(*vae_pair(source))


def test_running_averages_are_those_that_diffusers_reads(source: Made) -> None:
    both = {**source.file, **ema_of(source.file)}
    assert "model_ema.diffusion_modelinput_blocks00weight" in both
    listed = [Entry(name, tuple(t.shape), "F32", t.to) for name, t in both.items()]
    found = single.contents(listed, {}, "x")
    for ema in (True, False):
        entries = single.chosen_unet(found, ema, "x")
        ours = compvis.unet_from_compvis({name: e.read() for name, e in entries.items()}, source.unet_spec)
        theirs = convert_ldm_unet_checkpoint(dict(both), {"layers_per_block": 2}, extract_ema=ema)
        assert same(ours, theirs)
    assert not same(ours, convert_ldm_unet_checkpoint(dict(both), {"layers_per_block": 2}, extract_ema=True))


def test_clip_is_what_diffusers_reads() -> None:
    source = made("sd1")
    layout = compvis.TEXTS["clip"]
    theirs = {text_name(name): t for name, t in convert_ldm_clip_checkpoint(dict(source.file)).items()}
    assert same(layout.from_compvis(part(source.file, layout.prefix)), theirs)


def openclip_pair(source: Made) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    layout = compvis.TEXTS["openclip"]
    states = part(source.file, layout.prefix)
    unused = layout.unused({name: tuple(t.shape) for name, t in states.items()})
    kept = {name: t for name, t in states.items() if name not in unused and name != "logit_scale"}
    return layout.from_compvis(kept), convert_open_clip_checkpoint(source.text, dict(source.file))


def test_openclip_is_what_diffusers_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    source = made("sd2")
    ours, theirs = openclip_pair(source)
    assert same(ours, theirs)
    assert same(compvis.openclip_to_compvis(theirs), _kept(source))
    monkeypatch.setattr(
        compvis, "OPENCLIP_QKV", ("k_proj", "q_proj", "v_proj")
    )  # the fault: another order in the stack
    assert not same(*openclip_pair(source))


def _kept(source: Made) -> dict[str, Tensor]:
    states = part(source.file, OPENCLIP)
    return {k: t for k, t in states.items() if "resblocks.23." not in k and k not in ("text_projection", "logit_scale")}


def test_T14_sd2_reads_the_last_but_one_block_of_openclip(tmp_path: Path) -> None:
    """T14: the states are those of the tower itself: 23 of 24 blocks, then the final norm."""
    source = made("sd2")
    path = written(source.file, tmp_path / "m.safetensors", prediction_type="v")
    conditioner = load(path, dtype="float32", tokenizer=words(tmp_path / "words", "sd2")).conditioner()
    assert conditioner.encoder.spec.num_layers == 23
    ids = torch.tensor(conditioner.tokenizer.encode(["a red cat"]).ids)
    assert source.tower is not None
    with torch.inference_mode():
        ours, theirs = conditioner.encoder(ids), source.tower.penultimate(ids)
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
        source.tower.transformer.resblocks.append(source.tower.transformer.resblocks[-1])  # the fault: the last one too
        assert (ours - source.tower.penultimate(ids)).abs().max() > 1e-3 * theirs.abs().max()


LANDMARKS = {  # published names at places where the numbering is easily off by one, with their shapes
    "sd1": {
        "model.diffusion_model.output_blocks.11.0.skip_connection.weight": (320, 640, 1, 1),
        "model.diffusion_model.input_blocks.9.0.op.weight": (1280, 1280, 3, 3),
        "model.diffusion_model.output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        "model.diffusion_model.output_blocks.8.2.conv.weight": (640, 640, 3, 3),
        "model.diffusion_model.input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
        "model.diffusion_model.middle_block.1.proj_in.weight": (1280, 1280, 1, 1),
        "model.diffusion_model.out.2.bias": (4,),
    },
    "sd2": {
        "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": (320, 1024),
        "model.diffusion_model.middle_block.1.proj_in.weight": (1280, 1280),
    },
    "vae": {
        "first_stage_model.decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
        "first_stage_model.decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        "first_stage_model.encoder.down.2.downsample.conv.bias": (512,),
        "first_stage_model.encoder.mid.attn_1.proj_out.weight": (512, 512, 1, 1),
        "first_stage_model.decoder.norm_out.weight": (128,),
    },
}


def test_names_at_full_size() -> None:
    """Names and shapes of the published sizes: as many as published, landmarks, Specs from shapes, and diffusers."""
    for family, spec in (("sd1", UNetSpec()), ("sd2", UNetSpec(**vars(SD2_UNET)))):
        ours = skeleton(lambda spec=spec: UNet(spec)).state_dict()
        file = compvis.unet_to_compvis(ours, spec)
        shapes = {name: tuple(t.shape) for name, t in file.items()}
        assert len(file) == 686
        assert compvis.unet_spec(shapes, 64) == spec
        assert {k: shapes[k.removeprefix(UNET)] for k in LANDMARKS[family]} == LANDMARKS[family]
        theirs = convert_ldm_unet_checkpoint(under(UNET, file), {"layers_per_block": 2})
        assert {k: t.shape for k, t in theirs.items()} == {k: t.shape for k, t in ours.items()}
    vae = skeleton(lambda: OurVAE(VAESpec())).state_dict()
    file = compvis.vae_to_compvis(vae, VAESpec())
    shapes = {name: tuple(t.shape) for name, t in file.items()}
    assert len(file) == 140 + 108
    assert compvis.vae_spec(shapes, 512) == VAESpec()
    assert {k: shapes[k.removeprefix(VAE)] for k in LANDMARKS["vae"]} == LANDMARKS["vae"]
    clip = {k: tuple(t.shape) for k, t in skeleton(lambda: CLIPText(TextSpec())).state_dict().items()}
    assert len(clip) == 196
    found = compvis.text_dims(clip, compvis.TEXTS["clip"])
    assert found == {key: getattr(TextSpec(), key) for key in found}


# --- Pictures -----------------------------------------------------------------------------------------------

TOLERANCE = 3e-5  # of the largest latent, where 1e-3 is promised against stock diffusers; measured: 2e-6


def latents(bundle: Bundle, **changes: Any) -> Tensor:
    asked = {"prompt": "a red cat", "negative_prompt": "an owl", "language": "en", "seed": 7, "steps": 4}
    asked |= {"width": 16, "height": 16, **changes}
    with latents_decoded() as ends:
        g.generate(bundle, Request(**asked))
    return ends[-1]


def pipeline(source: Made, folder: Path) -> StableDiffusionPipeline:
    """With the schedulers of v1-5 and of 2.1 at 768 pixels, as Kotoe takes them for granted in files that can't say."""
    options = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    options |= {"set_alpha_to_one": False}
    scheduler = (
        DDIMScheduler(**options, prediction_type="v_prediction", clip_sample=False)
        if source.family == "sd2"
        else PNDMScheduler(**options, skip_prk_steps=True)
    )
    return StableDiffusionPipeline(
        vae=source.vae,
        text_encoder=source.text,
        tokenizer=CLIPTokenizer.from_pretrained(words(folder, source.family)),
        unet=source.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def test_a_file_draws_what_its_folder_draws(source: Made, tmp_path: Path) -> None:
    family = source.family
    pipe = pipeline(source, tmp_path / "words")
    pipe.save_pretrained(tmp_path / "folder")
    folder = load(tmp_path / "folder", dtype="float32")
    prediction = {"sd1": None, "sd2": "v_prediction"}[family]
    path = written(source.file, tmp_path / "file.safetensors")
    file = load(path, dtype="float32", tokenizer=tmp_path / "words", prediction_type=prediction)
    ours = latents(file)
    assert torch.equal(ours, latents(folder))
    files = pictures(tmp_path)
    for asked in ({}, {"mask": files["even"]}):  # from a picture and into a mask
        asked = {"init_image": files["photo"], "strength": 0.75, **asked}
        assert torch.equal(latents(file, **asked), latents(folder, **asked))
    z = ImageNoise([1], (4, 8, 8)).initial()
    with torch.inference_mode():
        assert torch.equal(file.vae.decode(z), folder.vae.decode(z))  # T6: the scaling factor that no file says
    # written by us and read again, by us and by a canonical folder in between
    again = save(folder, tmp_path / "again.safetensors", to="compvis")
    assert torch.equal(ours, latents(load(again, dtype="float32", tokenizer=tmp_path / "words")))
    # what we wrote, opened by stock diffusers
    opened = StableDiffusionPipeline.from_single_file(
        str(again), config=str(tmp_path / "folder"), local_files_only=True, torch_dtype=torch.float32
    )
    for name in ("unet", "vae", "text_encoder"):
        assert same(getattr(opened, name).state_dict(), getattr(pipe, name).state_dict()), name
    # stock diffusers, on the same weights, with the published 50 steps and guidance
    noise = ImageNoise([7], (4, 8, 8)).initial()
    pipe.set_progress_bar_config(disable=True)
    card = {"guidance_scale": 7.5}
    theirs = pipe(
        "a red cat", negative_prompt="an owl", latents=noise, num_inference_steps=50, output_type="latent", **card
    ).images
    assert apart(latents(file, steps=50, **card), theirs) <= TOLERANCE
    # faults: running averages in place of the weights, and what the UNet predicts
    averaged = written({**source.file, **ema_of(source.file)}, tmp_path / "ema.safetensors")
    faults: list[Callable[[], Bundle]] = [
        lambda: load(averaged, dtype="float32", tokenizer=tmp_path / "words", prediction_type=prediction, ema=True),
        lambda: load(
            path,
            dtype="float32",
            tokenizer=tmp_path / "words",
            prediction_type="epsilon" if family == "sd2" else "v_prediction",
        ),
    ]
    for fault in faults:
        assert apart(latents(fault(), steps=50, **card), theirs) > 10 * TOLERANCE

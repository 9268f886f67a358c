"""Folders of others: configurations to Specs and back, what isn't implemented is named, hostile folders get nowhere."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from kotoe import builtin
from kotoe.checkpoints import load, save
from kotoe.checkpoints.bundle import Defaults
from kotoe.checkpoints.diffusers import text_spec, unet_config, unet_spec, vae_config, vae_spec
from kotoe.checkpoints.files import Folder, skeleton
from kotoe.checkpoints.schedulers import SCHEDULERS, schedule_config, schedule_spec
from kotoe.errors import CheckpointError, UserError
from kotoe.spec import ScheduleSpec, TextSpec, UNetSpec, VAESpec
from kotoe.text import CLIPText
from kotoe.unet import UNet
from kotoe.vae import VAE
from tiny import edit, saved_tiny, tiny_bundle, tiny_conditioner

LANGUAGES = ("en", "ja", "ko")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_tiny(tmp_path_factory.mktemp("tiny") / "sd1", "sd1", languages=LANGUAGES)


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(original, tmp_path / "copy"))


# --- config.json --------------------------------------------------------------------------------------------

CONFIG_FAULTS = [
    ("unet", {"sample_sise": 8}, "unknown key 'sample_sise'.*Did you mean 'sample_size'"),
    ("unet", {"class_embed_type": "timestep"}, "class_embed_type is 'timestep'.*Allowed: None"),
    ("unet", {"addition_embed_type": "text_time"}, "addition_embed_type is 'text_time'"),
    ("unet", {"act_fn": "gelu"}, "act_fn is 'gelu'.*'silu'"),
    ("unet", {"norm_eps": 1e-6}, "norm_eps is 1e-06.*1e-05"),
    ("unet", {"flip_sin_to_cos": False}, "flip_sin_to_cos is False.*True"),
    ("unet", {"transformer_layers_per_block": [1, 2]}, "transformer_layers_per_block"),
    ("unet", {"dual_cross_attention": True}, "dual_cross_attention is True"),
    ("unet", {"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}, "down_block_types is .*AttnDownBlock2D"),
    ("unet", {"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}, "the mirror of down_block_types"),
    ("unet", {"block_out_channels": [32, 60]}, "60 channels don't split into 8 groups"),
    ("unet", {"block_out_channels": [32, 10**9]}, "block_out_channels is"),
    ("unet", {"layers_per_block": 10**9}, "layers_per_block is 1000000000.*whole number from 1 to 256"),
    ("unet", {"layers_per_block": True}, "layers_per_block is True"),
    ("unet", {"attention_head_dim": 5}, "attention_head_dim is 5.*divide block_out_channels"),
    ("unet", {"attention_head_dim": [4, 4, 4]}, "attention_head_dim .*2 levels"),
    ("unet", {"sample_size": "gone"}, r"sample_size is None \(the default for a missing key\)"),
    ("unet", {"cross_attention_dim": 48}, r"attn2\.to_k\.weight has another shape"),
    ("unet", {"in_channels": 9}, r"conv_in\.weight has another shape"),
    ("vae", {"latents_mean": [0.0] * 4}, "latents_mean is"),
    ("vae", {"shift_factor": 0.1}, "shift_factor is 0.1"),
    ("vae", {"scaling_factor": "0.18"}, "scaling_factor is '0.18'.*a number"),
    ("vae", {"use_quant_conv": False}, "use_quant_conv is False"),
    ("vae", {"latent_channels": 8}, "has another shape"),
    ("text_encoder", {"model_type": "bert"}, "model_type is 'bert'.*clip_text_model"),
    ("text_encoder", {"hidden_act": "relu"}, "hidden_act is 'relu'.*quick_gelu, gelu"),
    ("text_encoder", {"use_attention_mask": True}, "use_attention_mask is True"),
    ("text_encoder", {"num_attention_heads": 5}, "num_attention_heads is 5.*divisor of hidden_size 32"),
    ("text_encoder", {"vocab_size": 559}, "559 embeddings for a tokenizer of 560 ids"),
    ("text_encoder", {"max_position_embeddings": 15}, "15 positions for texts of 16 tokens"),
    ("text_encoder", {"max_position_embeddings": 17}, r"position_embedding\.weight has another shape"),
    ("text_encoder", {"position_embedding_type": "rotary"}, "unknown key 'position_embedding_type'.*'rotary'"),
]


@pytest.mark.parametrize(("part", "changes", "message"), CONFIG_FAULTS)
def test_what_is_not_implemented_is_refused(part: str, changes: dict, message: str, folder: Path) -> None:
    edit(folder / part / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        load(folder).conditioner()


def test_published_layouts() -> None:
    """SD 1.x and 2.x as their config.json files say it, with keys left out as in older files; and back."""
    one = {"block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768, "sample_size": 64}
    assert unet_spec({"_class_name": "UNet2DConditionModel", "attention_head_dim": 8, **one}) == UNetSpec()
    two = UNetSpec(num_heads=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True, sample_size=96)
    config = {**one, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True, "cross_attention_dim": 1024}
    assert unet_spec({**config, "sample_size": [96, 96], "upcast_attention": True}) == two
    vae = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "sample_size": 512}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    assert vae_spec({**vae, **blocks, "force_upcast": True}) == VAESpec()
    for spec in (UNetSpec(), two):
        assert unet_spec(unet_config(spec)) == spec
    assert vae_spec(vae_config(VAESpec())) == VAESpec()
    sizes = [
        sum(p.numel() for p in skeleton(make).parameters()) for make in (lambda: UNet(UNetSpec()), lambda: UNet(two))
    ]
    assert sizes == [859_520_964, 865_910_724]  # the published parameter counts
    assert sum(p.numel() for p in skeleton(lambda: VAE(VAESpec())).parameters()) == 83_653_863
    assert sum(p.numel() for p in skeleton(lambda: CLIPText(TextSpec())).parameters()) == 123_060_480


def test_the_tokenizer_knows_the_ids_that_sd1_configs_get_wrong() -> None:
    tokenizer = tiny_conditioner("en", 32).tokenizer
    spec = text_spec({"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "num_attention_heads": 8}, tokenizer)
    assert (spec.bos, spec.eos, spec.pad) == (558, 559, 559)


# --- schedulers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [*(s for s, _, _ in SCHEDULERS.values()), "dpmpp_2m_sde"])
def test_schedules_survive(sampler: str) -> None:
    able = sampler not in ("pndm", "heun", "lms")
    for spec in (
        ScheduleSpec(sampler=sampler),
        ScheduleSpec(
            sampler=sampler,
            prediction_type="v_prediction",
            beta_schedule="linear",
            beta_start=0.001,
            timestep_spacing="trailing",
            steps_offset=0,
            num_train_timesteps=500,
            rescale_betas_zero_snr=able,
            set_alpha_to_one=sampler in ("pndm", "ddim"),
        ),
    ):
        kind, config = schedule_config(spec)
        assert schedule_spec(json.loads(json.dumps(config)), kind)[:2] == (spec, None)
    if sampler in ("pndm", "ddim", "euler_ancestral"):
        with pytest.raises(UserError, match="no grid 'karras'"):
            schedule_config(ScheduleSpec(sampler=sampler), "karras")
    else:
        kind, config = schedule_config(ScheduleSpec(sampler=sampler), "karras")
        assert schedule_spec(config, kind)[1] == "karras"
    if not able:
        with pytest.raises(UserError, match="knows no zero terminal SNR.*ddim"):
            schedule_config(ScheduleSpec(sampler=sampler, rescale_betas_zero_snr=True))


def test_published_schedules() -> None:
    sd1 = {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.7.0.dev0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
        "clip_sample": False,
    }
    spec, grid, notes = schedule_spec(sd1, "PNDMScheduler")
    assert (spec, grid, notes) == (ScheduleSpec(), None, [])
    spec, _, notes = schedule_spec({**sd1, "steps_offset": 0}, "PNDMScheduler")
    assert spec.steps_offset == 1
    assert "steps_offset 0 is read as 1" in notes[0]
    dpm = {**sd1, "lambda_min_clipped": float("-inf"), "use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"}
    spec, grid, _ = schedule_spec(dpm, "DPMSolverMultistepScheduler")
    assert (spec.sampler, grid, spec.timestep_spacing) == ("dpmpp_2m_sde", "karras", "linspace")


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("PNDMSchedular", {}, "scheduler 'PNDMSchedular'.*Did you mean 'PNDMScheduler'"),
        ("LCMScheduler", {}, "scheduler 'LCMScheduler'.*EulerDiscreteScheduler"),
        ("PNDMScheduler", {}, r"skip_prk_steps is False \(the default for a missing key\).*True"),
        ("EulerDiscreteScheduler", {"trained_betas": [0.1]}, "trained_betas is"),
        ("EulerDiscreteScheduler", {"prediction_type": "sample"}, "prediction_type 'sample'.*epsilon, v_prediction"),
        ("EulerDiscreteScheduler", {"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule 'squaredcos_cap_v2'"),
        ("EulerDiscreteScheduler", {"timestep_spacing": "wide"}, "timestep_spacing 'wide'"),
        ("EulerDiscreteScheduler", {"use_beta_sigmas": True}, "use_beta_sigmas is True"),
        ("EulerDiscreteScheduler", {"beta_strat": 0.1}, "unknown key 'beta_strat'.*Did you mean 'beta_start'"),
        ("EulerDiscreteScheduler", {"num_train_timesteps": 10**9}, "num_train_timesteps is 1000000000"),
        ("EulerDiscreteScheduler", {"beta_start": "small"}, "beta_start is 'small'"),
        ("DDIMScheduler", {"thresholding": True}, "thresholding is True"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver"}, "algorithm_type is 'dpmsolver'"),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}, "solver_order is 3.*2"),
        ("UniPCMultistepScheduler", {"disable_corrector": [0]}, "disable_corrector is"),
    ],
)
def test_foreign_schedules_are_refused(kind: str, changes: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        schedule_spec(changes, kind)


def test_what_stock_diffusers_would_read_otherwise_is_not_written() -> None:
    with pytest.raises(UserError, match="default grid 'trailing' over a schedule with timestep_spacing 'leading'"):
        schedule_config(ScheduleSpec(), "trailing")
    assert schedule_config(ScheduleSpec(), "leading") == schedule_config(ScheduleSpec())
    with pytest.raises(UserError, match="steps_offset 0 with timestep_spacing leading"):
        schedule_config(ScheduleSpec(steps_offset=0))
    with pytest.raises(UserError, match="sampler 'dpm' has no diffusers scheduler.*dpmpp_2m_sde"):
        schedule_config(ScheduleSpec(sampler="dpm"))


# --- hostile and foreign folders ----------------------------------------------------------------------------


def test_names_that_lead_out(folder: Path) -> None:
    (folder.parent / "secret.json").write_text("{}")
    inside = Folder(folder)
    for name in ("../secret.json", "unet/../../secret.json", str(folder.parent / "secret.json"), "..\\secret.json"):
        with pytest.raises(CheckpointError, match="leads out of the folder"):
            inside.path(name)
    for language in ("../../ja", "ja/..", "/etc", "", "ja\n", "a" * 99):
        edit(folder / "kotoe.json", languages=["en", language])
        with pytest.raises(CheckpointError, match="languages .*BCP 47"):
            load(folder)


@pytest.mark.parametrize(
    "name", ["unet/config.json", "tokenizer/vocab.json", "vae/diffusion_pytorch_model.safetensors"]
)
def test_links_that_lead_out(name: str, folder: Path) -> None:
    outside = folder.parent / "outside"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(CheckpointError, match=f"{name} is a link to .*outside the folder.*cp -rL"):
        load(folder).conditioner()


def test_a_part_that_is_a_link_out_and_one_that_stays_in(folder: Path) -> None:
    (folder / "unet").rename(folder / "weights")
    (folder / "unet").symlink_to(folder / "weights")
    load(folder)  # inside: fine
    (folder / "unet").unlink()
    (folder / "weights").rename(folder.parent / "elsewhere")
    (folder / "unet").symlink_to(folder.parent / "elsewhere")
    with pytest.raises(CheckpointError, match="outside the folder"):
        load(folder)


def test_the_hubs_cache_is_a_known_layout_of_links(folder: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b/blobs", tmp_path / "models--a--b/snapshots/0123abc"
    blobs.mkdir(parents=True)
    for k, path in enumerate(p for p in sorted(folder.rglob("*")) if p.is_file()):
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blobs / str(k))
        link.symlink_to(os.path.relpath(blobs / str(k), link.parent))
    assert load(snapshot).conditioner("ja").language == "ja"


def test_not_regular_and_too_large(folder: Path) -> None:
    index = folder / "scheduler/scheduler_config.json"
    index.unlink()
    os.mkfifo(index)
    with pytest.raises(CheckpointError, match=r"scheduler_config\.json is not a regular file"):
        load(folder)
    index.unlink()
    with index.open("wb") as file:
        file.truncate(2**32)  # sparse: 4 GB that no one may read
    with pytest.raises(CheckpointError, match="has 4294967296 bytes.*at most 2097152"):
        load(folder)
    index.unlink()
    with pytest.raises(CheckpointError, match=r"can't read .*scheduler_config\.json"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "class 'StableDiffusionXLPipeline'"),
        (
            "model_index.json",
            {"text_encoder": ["transformers", "BertModel"]},
            "says BertModel, but in text_encoder/config.json model_type is 'clip_text_model'",
        ),
        ("model_index.json", {"unet": "gone"}, "unet is None"),
        ("model_index.json", {"unet": ["my_code", {"a": 1}]}, "unet is "),
        ("model_index.json", {"prior": ["diffusers", "Prior"]}, "unknown part 'prior'"),
        ("kotoe.json", {"format": 2}, "format 2.*Update Kotoe"),
        ("kotoe.json", {"langauges": []}, "unknown key 'langauges'.*Did you mean 'languages'"),
        ("kotoe.json", {"languages": []}, "languages"),
        ("kotoe.json", {"languages": ["en", "en"]}, "languages"),
        ("kotoe.json", {"languages": ["en", "EN"]}, "languages"),
        ("kotoe.json", {"languages": "en"}, "languages"),
        ("kotoe.json", {"defaults": {"step": 3}}, "unknown key 'step' in defaults"),
        ("kotoe.json", {"defaults": {"steps": 0}}, "default steps 0"),
        ("kotoe.json", {"name": 3}, "name, licence and defaults"),
    ],
)
def test_foreign_indexes(name: str, changes: dict, message: str, folder: Path) -> None:
    edit(folder / name, **changes)
    with pytest.raises(UserError, match=message):
        load(folder)


def test_folders_that_are_none(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no model_index\.json.*diffusers' layout"):
        load(tmp_path)
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="unet holds no weights"):
        load(folder)


def test_parts_that_are_not_used_are_said(folder: Path) -> None:
    (folder / "safety_checker").mkdir()
    (folder / "kotoe.json").unlink()
    bundle = load(folder)
    assert "safety_checker/ is not used" in bundle.notes
    assert (bundle.name, bundle.languages, bundle.licence) == ("copy", ("en",), None)


def test_widths_must_meet(folder: Path) -> None:
    other = save(tiny_bundle().changed(conditioners={"en": tiny_conditioner("en", 48)}), folder.parent / "wide")
    with pytest.raises(CheckpointError, match="states 48 wide for a UNet that reads 32"):
        load(other).conditioner()
    bundle = tiny_bundle()
    with pytest.raises(CheckpointError, match="a UNet of 4 to 4 channels, latents of 8.*8 to 8 channels, or 17 to 8"):
        bundle.changed(vae=skeleton(lambda: VAE(replace(bundle.vae.spec, latent_channels=8))))
    with pytest.raises(UserError, match="unknown default language 'fr'"):
        bundle.changed(default_language="fr")
    with pytest.raises(UserError, match="language '../x'"):
        bundle.changed(conditioners={"../x": bundle.conditioner(), "en": bundle.conditioner()})


# --- names --------------------------------------------------------------------------------------------------


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert builtin.resolve(tmp_path) == tmp_path
    with pytest.raises(UserError, match="unknown model 'kotoe-emoij'.*Did you mean 'kotoe-emoji'"):
        builtin.resolve("kotoe-emoij")
    with pytest.raises(UserError, match="unknown model 'zzz'.*Pass a folder in diffusers' layout"):
        builtin.resolve("zzz")
    with pytest.raises(UserError, match="org/model is neither in the hub's cache.*hf download org/model --local-dir"):
        builtin.resolve("org/model")
    for name in ("v1.ckpt", "v1.safetensors", "V1.CKPT"):
        (tmp_path / name).touch()
        assert builtin.resolve(tmp_path / name) == tmp_path / name
    (tmp_path / "v1.h5").touch()
    with pytest.raises(UserError, match=r"v1\.h5 is of no format that this version reads.*\.ckpt.*diffusers' layout"):
        builtin.resolve(tmp_path / "v1.h5")
    with pytest.raises(UserError, match="no file at"):
        builtin.resolve(tmp_path / "v2.safetensors")
    monkeypatch.setattr(builtin, "NAMES", {"kotoe-emoji": tmp_path / "nowhere"})
    with pytest.raises(UserError, match="kotoe-emoji is not in this installation.*recipes/emoji_base.py"):
        builtin.resolve("kotoe-emoji")


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"steps": True}, {"steps": 2.5}, {"guidance_scale": -1}, {"guidance_scale": "7"}, {"grid": "x"}],
)
def test_defaults_are_checked(wrong: dict) -> None:
    with pytest.raises(UserError, match=f"default {next(iter(wrong))}"):
        Defaults(**wrong)
    assert Defaults(guidance_scale=0).guidance_scale == 0  # 0 is a value

"""Single files in CompVis names: round trips, what is asked for, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kotoe.checkpoints import Bundle, load, save, single
from kotoe.checkpoints.files import Entry, file_sha256
from kotoe.errors import CheckpointError, UserError
from kotoe.schedule import alphas_cumprod
from kotoe.spec import ScheduleSpec, UNetSpec, VAESpec
from kotoe.unet import UNet
from kotoe.vae import VAE as OurVAE
from singles import CLIP, OPENCLIP, UNET, VAE, Made, ema_of, made, words, written
from tiny import seeded, tiny_bundle

FAMILIES = ("sd1", "sd2")
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def sources() -> dict[str, Made]:
    return {family: made(family) for family in FAMILIES}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("words")
    return {family: words(folder / family, family) for family in FAMILIES}


@pytest.fixture(scope="module")
def bundles(
    sources: dict[str, Made], tokenizers: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Bundle]:
    """Bundles of both files, named m."""
    return {
        family: load(
            written(source.file, tmp_path_factory.mktemp(family) / "m.safetensors", resolution="16x16"),
            dtype="float32",
            tokenizer=tokenizers[family],
            prediction_type="v_prediction" if family == "sd2" else None,
        )
        for family, source in sources.items()
    }


def files_of(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): file_sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def states(bundle: Bundle) -> dict[str, Tensors]:
    return {
        "unet": bundle.unet.state_dict(),
        "vae": bundle.vae.state_dict(),
        "text": bundle.conditioner().encoder.state_dict(),
    }


def same(a: Bundle, b: Bundle) -> bool:
    """The same tensors under the same names, bit for bit and in the same dtype."""
    ours, theirs = states(a), states(b)
    return all(
        ours[part].keys() == theirs[part].keys()
        and all(torch.equal(t, theirs[part][k]) and t.dtype == theirs[part][k].dtype for k, t in ours[part].items())
        for part in ours
    )


# --- Round trips --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_canonical_to_compvis_to_canonical_is_the_identity(
    family: str, dtype: str, bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    """Every file of the folder, byte for byte; and the single file that was made in between."""
    first = save(bundles[family], tmp_path / "first", dtype=dtype)
    between = load(first, dtype="stored")
    assert {t.dtype for part in states(between).values() for t in part.values()} == {getattr(torch, dtype)}
    file = save(between, tmp_path / "m.safetensors", to="compvis")
    again = load(file, dtype="stored", tokenizer=first)
    assert same(between, again)
    save(again, tmp_path / "second")
    assert files_of(tmp_path / "second") == files_of(first)
    one, two = load_file(file), load_file(save(again, tmp_path / "n" / "m.safetensors", to="compvis"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) and one[name].dtype == two[name].dtype for name in one)
    with torch.no_grad():  # the fault: one number
        again.unet.conv_in.bias[0] += 1.0
    assert not same(between, again)


def test_dtypes_in_memory(bundles: dict[str, Bundle], tokenizers: dict[str, Path], tmp_path: Path) -> None:
    path = save(bundles["sd1"], tmp_path / "m.safetensors", to="compvis", dtype="float16")
    for dtype in ("float32", "bfloat16"):
        found = load(path, dtype=dtype, tokenizer=tokenizers["sd1"])
        assert {t.dtype for part in states(found).values() for t in part.values()} == {getattr(torch, dtype)}
    assert path.stat().st_size < 0.6 * save(bundles["sd1"], tmp_path / "n.safetensors", to="compvis").stat().st_size


def test_weights_in_memory_may_change_without_touching_the_file(
    bundles: dict[str, Bundle], tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    path = save(bundles["sd1"], tmp_path / "m.safetensors", to="compvis")
    before = file_sha256(path)
    bundle = load(path, dtype="float32", tokenizer=tokenizers["sd1"])
    with torch.no_grad():
        bundle.unet.conv_in.weight.add_(1.0)
    assert file_sha256(path) == before
    save(bundle, path, to="compvis", overwrite=True)
    again = load(path, dtype="float32", tokenizer=tokenizers["sd1"])
    assert torch.equal(again.unet.conv_in.weight, bundle.unet.conv_in.weight)


@pytest.mark.parametrize("trainer", [False, True], ids=["bare", "as a trainer saves it"])
def test_ckpt_is_read_when_asked(
    trainer: bool, sources: dict[str, Made], bundles: dict[str, Bundle], tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    tensors = {
        **sources["sd1"].file,
        "model_ema.num_updates": torch.tensor(3),
        f"{CLIP}text_model.embeddings.position_ids": torch.arange(16)[None],
    }
    path = tmp_path / "m.ckpt"
    torch.save({"state_dict": tensors, "epoch": 1, "global_step": 2} if trainer else tensors, path)
    with pytest.raises(CheckpointError, match=r"m\.ckpt is a pickle.*allow_pickle=True"):
        load(path, tokenizer=tokenizers["sd1"])
    found = load(path, dtype="float32", tokenizer=tokenizers["sd1"], allow_pickle=True)
    assert same(found, bundles["sd1"])
    torch.save({**tensors, "x": Path(tmp_path)}, path)
    with pytest.raises(CheckpointError, match=r"it names pathlib\.PosixPath, which was not called"):
        load(path, tokenizer=tokenizers["sd1"], allow_pickle=True)


def test_text_names_of_transformers_5(
    sources: dict[str, Made], bundles: dict[str, Bundle], tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    tensors = {name.replace("text_model.", ""): t for name, t in sources["sd1"].file.items()}
    assert f"{CLIP}embeddings.token_embedding.weight" in tensors
    path = written(tensors, tmp_path / "m.safetensors")
    assert same(load(path, dtype="float32", tokenizer=tokenizers["sd1"]), bundles["sd1"])


def test_openclip_already_cut_to_23_blocks(
    sources: dict[str, Made], bundles: dict[str, Bundle], tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    """T14: without text_projection the tower ends where SD 2.x stops reading; with it, the last block is dropped."""
    path = save(bundles["sd2"], tmp_path / "m.safetensors", to="compvis")
    found = load(path, dtype="float32", tokenizer=tokenizers["sd2"])
    assert found.conditioner().encoder.spec.num_layers == 23
    assert same(found, bundles["sd2"])
    ours = {name for name in _names(path) if name.startswith(OPENCLIP)}
    theirs = {name for name in sources["sd2"].file if name.startswith(OPENCLIP)}
    assert {name for name in theirs - ours if "resblocks.23." not in name} == {
        f"{OPENCLIP}text_projection",
        f"{OPENCLIP}logit_scale",
    }
    assert ours < theirs


def _names(path: Path) -> list[str]:
    return [entry.name for entry in single.entries(path, path.name)]


# --- What a file doesn't say --------------------------------------------------------------------------------


def test_the_specs_are_those_of_the_networks(sources: dict[str, Made], bundles: dict[str, Bundle]) -> None:
    for family, bundle in bundles.items():
        assert bundle.unet.spec == replace(sources[family].unet_spec, sample_size=8)
        assert bundle.vae.spec == VAESpec(block_out_channels=(32, 64), layers_per_block=2, sample_size=16)
        assert (bundle.family, bundle.name, bundle.licence, bundle.folder) == (family, "m", None, None)
        assert bundle.schedule.prediction_type == {"sd1": "epsilon", "sd2": "v_prediction"}[family]
        assert bundle.hashes["unet"] == bundle.hashes["vae"] == bundle.conditioner().hashes["text_encoder"]
    assert bundles["sd1"].conditioner().encoder.spec.hidden_act == "quick_gelu"
    assert bundles["sd2"].conditioner().encoder.spec.hidden_act == "gelu"


def test_a_tokenizer_is_asked_for(sources: dict[str, Made], tokenizers: dict[str, Path], tmp_path: Path) -> None:
    path = written(sources["sd1"].file, tmp_path / "m.safetensors")
    with pytest.raises(UserError, match=r"no tokenizer.*--tokenizer FOLDER.*560 ids.*tokenizer/ folder of any check"):
        load(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty: no tokenizer that Kotoe reads"):
        load(path, tokenizer=tmp_path / "empty")
    other = save(tiny_bundle(languages=("ja",)), tmp_path / "other")
    with pytest.raises(CheckpointError, match="a tokenizer of 300 ids for a text encoder of 560 embeddings"):
        load(path, tokenizer=other)
    bundle = load(path, tokenizer=save(tiny_bundle(), tmp_path / "checkpoint"))  # its tokenizer/ is meant
    assert bundle.conditioner().tokenizer.vocab_size == 560


def test_what_the_unet_predicts_is_asked_for(
    sources: dict[str, Made], tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    def predicts(family: str, asked: str | None = None, **texts: str) -> str:
        path = written(sources[family].file, tmp_path / "m.safetensors", **texts)
        return load(path, tokenizer=tokenizers[family], prediction_type=asked).schedule.prediction_type

    with pytest.raises(UserError, match=r"doesn't say what its UNet predicts.*--prediction-type.*768 pixels"):
        predicts("sd2")
    assert predicts("sd2", "epsilon") == "epsilon"
    assert predicts("sd2", prediction_type="v") == "v_prediction"
    assert predicts("sd2", prediction_type="epsilon") == "epsilon"
    assert predicts("sd2", "v_prediction", prediction_type="epsilon") == "v_prediction"  # what is asked for counts
    assert predicts("sd1") == "epsilon"
    assert predicts("sd1", "v_prediction") == "v_prediction"
    with pytest.raises(UserError, match="unknown prediction_type 'v_predicton'.*Did you mean 'v_prediction'"):
        predicts("sd2", "v_predicton")
    with pytest.raises(CheckpointError, match="modelspec.prediction_type 'flow'"):
        predicts("sd2", prediction_type="flow")


def test_which_unet_is_asked_for(sources: dict[str, Made], tokenizers: dict[str, Path], tmp_path: Path) -> None:
    source = sources["sd1"].file
    ema = ema_of(source)
    both = {**source, **ema, "model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}

    def bias(tensors: Tensors, ema: bool | None) -> Tensor:
        path = written(tensors, tmp_path / "m.safetensors")
        return load(path, dtype="float32", tokenizer=tokenizers["sd1"], ema=ema).unet.conv_out.bias

    path = written(both, tmp_path / "m.safetensors")
    one, two = (load(path, tokenizer=tokenizers["sd1"], ema=e) for e in (True, False))
    assert one.hashes == two.hashes == {}  # of the file, they would be the same
    assert one.sha256 != two.sha256
    raw = source[f"{UNET}out.2.bias"]
    with pytest.raises(UserError, match=r"holds the UNet twice.*ema True or False \(--ema"):
        bias(both, None)
    assert torch.equal(bias(both, False), raw)
    assert torch.equal(bias(both, True), 0.9 * raw)
    assert torch.equal(bias(source, False), raw)
    with pytest.raises(UserError, match=r"holds no running averages \(model_ema"):
        bias(source, True)
    key = "model_ema.diffusion_modelout2bias"
    for wrong in ({k: v for k, v in both.items() if k != key}, {**both, "model_ema.diffusion_modelx": raw + 1}):
        for asked in (True, False, None):
            with pytest.raises(CheckpointError, match="1 running averages don't fit the UNet: model_ema"):
                bias(wrong, asked)
    with pytest.raises(CheckpointError, match=r"out\.2\.bias has another shape: \[5\] in the file, \[4\] by the other"):
        bias({**both, key: torch.zeros(5)}, True)


def test_options_of_single_files_are_refused_for_folders(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    folder = save(bundles["sd1"], tmp_path / "m")
    for option in ({"tokenizer": folder}, {"ema": False}, {"prediction_type": "epsilon"}):
        with pytest.raises(UserError, match=f"{next(iter(option))} .* for the folder.*files that can't say it"):
            load(folder, **option)  # type: ignore[arg-type]


def test_sizes(sources: dict[str, Made], tokenizers: dict[str, Path], tmp_path: Path) -> None:
    def size(family: str, prediction: str | None = None, **texts: str) -> tuple[int, str]:
        path = written(sources[family].file, tmp_path / "m.safetensors", **texts)
        bundle = load(path, tokenizer=tokenizers[family], prediction_type=prediction)
        assert bundle.vae.spec.sample_size == 2 * bundle.unet.spec.sample_size
        return bundle.unet.spec.sample_size, bundle.notes[0] if bundle.notes else ""

    assert size("sd1", resolution="24x24") == (12, "")
    assert size("sd1") == (64, "a single file doesn't say its picture size: 128 pixels, as published")
    assert size("sd2", "epsilon")[0] == 64
    assert size("sd2", "v_prediction")[0] == 96
    for odd in ("24x32", "25x25", "0x0", "x", "9999999x9999999"):
        assert size("sd1", resolution=odd)[1].startswith(f"resolution '{odd}' is no square")


def test_buffers_are_known_and_left_out(
    sources: dict[str, Made], bundles: dict[str, Bundle], tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    spec = ScheduleSpec()
    table = alphas_cumprod(spec)
    extra: Tensors = {name: torch.zeros(3, dtype=torch.int32) for name in single.BUFFERS}
    extra |= {"alphas_cumprod": table.bfloat16(), "scale_factor": torch.tensor(0.5)}
    path = written({**sources["sd1"].file, **extra}, tmp_path / "m.safetensors", resolution="16x16")
    found = load(path, dtype="float32", tokenizer=tokenizers["sd1"])
    assert same(found, bundles["sd1"])
    assert found.vae.spec.scaling_factor == 0.5  # T6: not 0.18215 where the file says otherwise
    assert found.notes[0].startswith(f"{len(single.BUFFERS)} tensors are derived from others or never run: alphas_cum")
    for wrong in (torch.tensor(-1.0), torch.tensor(math.nan), torch.ones(2)):
        bad = {**sources["sd1"].file, "scale_factor": wrong}
        with pytest.raises(CheckpointError, match=r"scale_factor .*a number above 0"):
            load(written(bad, tmp_path / "m.safetensors"), tokenizer=tokenizers["sd1"])


def test_the_noise_schedule_is_checked(sources: dict[str, Made], tokenizers: dict[str, Path], tmp_path: Path) -> None:
    def schedule(table: Tensor) -> ScheduleSpec:
        path = written({**sources["sd1"].file, "alphas_cumprod": table}, tmp_path / "m.safetensors")
        return load(path, tokenizer=tokenizers["sd1"]).schedule

    plain, zero = ScheduleSpec(), ScheduleSpec(rescale_betas_zero_snr=True)
    assert schedule(alphas_cumprod(plain).float()) == plain
    found = schedule(alphas_cumprod(zero).float())
    assert (found.rescale_betas_zero_snr, found.timestep_spacing, found.sampler) == (True, "trailing", "ddim")
    linear = alphas_cumprod(ScheduleSpec(beta_schedule="linear"))
    for other in (linear, alphas_cumprod(ScheduleSpec(num_train_timesteps=500)), linear * math.nan):
        with pytest.raises(CheckpointError, match=r"alphas_cumprod \[\d+\] is of another noise schedule"):
            schedule(other.float())


# --- What is refused ----------------------------------------------------------------------------------------

Change = Callable[[Tensors], object]


def _moved(tensors: Tensors, old: str, new: str) -> None:
    for name in [n for n in tensors if n.startswith(old)]:
        tensors[new + name.removeprefix(old)] = tensors.pop(name)


def _drop(tensors: Tensors, prefix: str) -> None:
    for name in [n for n in tensors if n.startswith(prefix)]:
        del tensors[name]


IN, TIME = f"{UNET}input_blocks.0.0.weight", f"{UNET}time_embed.0.weight"
Q = f"{VAE}encoder.mid.attn_1.q.weight"
FAULTS: dict[str, tuple[str, Change, str]] = {
    "missing": ("sd1", lambda t: t.pop(f"{UNET}out.0.weight"), r"diffusion_model\.\*: 1 of .* out\.0\.weight \["),
    "extra": ("sd1", lambda t: t.update({f"{UNET}y": torch.ones(2)}), r"y \[2\] is extra.*damaged, or of an archit"),
    "renamed": ("sd1", lambda t: _moved(t, f"{UNET}out.2.b", f"{UNET}out.3.b"), r"out\.2\.bias is missing but out\.3"),
    "transposed": ("sd1", lambda t: t.update({TIME: t[TIME].T}), r"time_embed\.0\.weight is transposed: \[32, 128\]"),
    "class embedding": ("sd1", lambda t: t.update({f"{UNET}label_emb.0.0.weight": torch.ones(2)}), r"label_emb\.0\.0"),
    "linear in the VAE": ("sd1", lambda t: t.update({Q: t[Q][:, :, 0, 0]}), r"q\.weight has another shape: \[64, 64\]"),
    "a hole": ("sd1", lambda t: _drop(t, f"{UNET}input_blocks.4."), r"tensor input_blocks\.4\.0\.in_layers\.2\.weight"),
    "far away": (
        "sd1",
        lambda t: t.update({f"{UNET}input_blocks.99999.0.x": torch.ones(2)}),
        "100000 input blocks. Allowed: at most 256",
    ),
    "other width": (
        "sd1",
        lambda t: t.update({f"{UNET}input_blocks.2.0.in_layers.2.weight": torch.ones(64, 32, 3, 3)}),
        r"widths at level 0 \[32, 64\]",
    ),
    "half attending": ("sd1", lambda t: _drop(t, f"{UNET}input_blocks.2.1."), r"attentions at level 0 \[True, False\]"),
    "other channels": (
        "sd1",
        lambda t: t.update({IN: torch.ones(32, 8, 3, 3)}),
        "a UNet of 8 to 4 channels, latents of 4",
    ),
    "integers": ("sd1", lambda t: t.update({IN: t[IN].to(torch.int8)}), rf"tensor {IN} holds I8"),
    "unknown part": ("sd1", lambda t: t.update({"z.w": torch.ones(1)}), r"have no tensors z\.w\. They may change"),
    "no UNet": ("sd1", lambda t: _drop(t, UNET), r"holds no tensor under model\.diffusion_model"),
    "no VAE": ("sd1", lambda t: _drop(t, VAE), r"holds no tensor under first_stage_model"),
    "no text": ("sd1", lambda t: _drop(t, CLIP), "holds no text encoder"),
    "two texts": (
        "sd1",
        lambda t: t.update({f"{OPENCLIP}token_embedding.weight": torch.ones(2, 2)}),
        "holds clip and openclip text encoder",
    ),
    "text twice": (
        "sd1",
        lambda t: t.update({n.replace("text_model.", ""): v + 1 for n, v in t.items() if n.startswith(CLIP)}),
        "holds the text encoder twice, with and without text_model",
    ),
    "BERT": (
        "sd1",
        lambda t: t.update({f"{CLIP}embeddings.word_embeddings.weight": torch.ones(2, 2)}),
        "holds clip and bert text encoder",
    ),
    "XL": ("sd1", lambda t: _moved(t, "cond_stage_model.", "conditioner.embedders.0."), "is Stable Diffusion XL"),
    "LoRA": ("sd1", lambda t: t.update({"lora_unet_x.alpha": torch.ones(1)}), "is a LoRA"),
    "ControlNet": ("sd1", lambda t: t.update({"control_model.x": torch.ones(1)}), "is a ControlNet"),
    "wide text": (
        "sd1",
        lambda t: [
            t.update({n: v.new_ones(v.shape[0], 128)}) for n, v in t.items() if "embeddings" in n and n.startswith(CLIP)
        ],
        "states 128 wide for a UNet that reads 64",
    ),
    "narrow heads": (
        "sd2",
        lambda t: t.update({f"{UNET}input_blocks.{k}.0.in_layers.2.weight": torch.ones(96, 64, 3, 3) for k in (1, 2)}),
        r"widths \(96, 64, 128\) in the layout of SD 2\.x. Allowed: multiples of 64",
    ),
    "odd groups": (
        "sd1",
        lambda t: t.update({f"{UNET}input_blocks.{k}.0.in_layers.2.weight": torch.ones(48, 32, 3, 3) for k in (1, 2)}),
        "48 channels don't split into 32 groups",
    ),
    "a stack of other size": (
        "sd2",
        lambda t: t.update({f"{OPENCLIP}transformer.resblocks.0.attn.in_proj_bias": torch.ones(128)}),
        r"in_proj_bias has another shape: \[128\] in the file, \[192\]",
    ),
    "a stranger in the last block": (
        "sd2",
        lambda t: t.update({f"{OPENCLIP}transformer.resblocks.23.ls_1.gamma": torch.ones(64)}),
        r"ls_1\.gamma|resblocks\.23",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault: str, sources: dict[str, Made], tokenizers: dict[str, Path], tmp_path: Path) -> None:
    family, change, message = FAULTS[fault]
    tensors = dict(sources[family].file)
    change(tensors)
    path = written(tensors, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=rf"m(\.safetensors)?.*({message})"):
        load(path, tokenizer=tokenizers[family], prediction_type="epsilon").conditioner()


@pytest.mark.parametrize("family", FAMILIES)
def test_without_any_one_tensor_the_specs_are_the_same_or_an_error(family: str, sources: dict[str, Made]) -> None:
    """So that the missing one is named, rather than a smaller network built without it."""
    listed = [Entry(name, tuple(t.shape), "F32", t.to) for name, t in sources[family].file.items()]
    whole = single.said(single.contents(listed, {}, "m"), "epsilon", "m")
    unused = {f"{OPENCLIP}{name}" for name in single.contents(listed, {}, "m").unused}
    errors = []
    for missing in listed:
        if missing.name in unused:
            continue
        rest = [entry for entry in listed if entry is not missing]
        try:
            found = single.said(single.contents(rest, {}, "m"), "epsilon", "m")
        except CheckpointError as error:
            errors.append(str(error))
            continue
        assert (found.unet, found.vae, found.text) == (whole.unet, whole.vae, whole.text), missing.name
    assert 8 <= len(errors) < 30  # those that sizes are read from
    assert all("is missing" in error or "text encoder" in error for error in errors)


# --- Writing ------------------------------------------------------------------------------------------------


def other(bundle: Bundle, **changes: Any) -> Bundle:
    unet, vae = replace(bundle.unet.spec, **changes.get("unet", {})), replace(bundle.vae.spec, **changes.get("vae", {}))
    schedule = replace(bundle.schedule, **changes.get("schedule", {}))
    return bundle.changed(unet=seeded(UNet(unet), 1), vae=seeded(OurVAE(vae), 2), schedule=schedule)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unet": {"num_heads": (4, 4, 4)}}, r"UNet's num_heads is \[4, 4, 4\].*\[8, 8, 8\], which every reader"),
        ({"unet": {"norm_num_groups": 16}}, "UNet's norm_num_groups is 16.*Allowed: 32"),
        ({"vae": {"norm_num_groups": 8}}, "VAE's norm_num_groups is 8"),
        ({"vae": {"scaling_factor": 0.3}}, "VAE's scaling_factor is 0.3.*Allowed: 0.18215"),
        ({"schedule": {"beta_schedule": "linear"}}, "alphas_cumprod .* is of another noise schedule"),
        ({"schedule": {"num_train_timesteps": 500}}, "alphas_cumprod .* is of another noise schedule"),
    ],
)
def test_what_no_reader_would_know_is_not_written(
    changes: dict, message: str, bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        save(other(bundles["sd1"], **changes), tmp_path / "m.safetensors", to="compvis")
    assert list(tmp_path.iterdir()) == []


def test_zero_terminal_snr_is_written(bundles: dict[str, Bundle], tokenizers: dict[str, Path], tmp_path: Path) -> None:
    zero = replace(bundles["sd2"].schedule, rescale_betas_zero_snr=True)
    path = save(bundles["sd2"].changed(schedule=zero, licence="MIT"), tmp_path / "m.safetensors", to="compvis")
    found = load(path, tokenizer=tokenizers["sd2"])
    assert (found.schedule.rescale_betas_zero_snr, found.schedule.prediction_type) == (True, "v_prediction")
    assert (found.licence, found.unet.spec.sample_size) == ("MIT", 8)
    other = replace(bundles["sd2"].conditioner(), licence={"license": "cc-by-nc-4.0"})  # one text has room for both
    bundle = bundles["sd2"].changed(conditioners={"en": other}, licence="MIT")
    path = save(bundle, tmp_path / "n.safetensors", to="compvis")
    assert load(path, tokenizer=tokenizers["sd2"], prediction_type="v_prediction").licence == "MIT, cc-by-nc-4.0"


def test_where_and_how_a_file_is_written(
    bundles: dict[str, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, path = bundles["sd1"], tmp_path / "m.safetensors"
    with pytest.raises(UserError, match="unknown format 'compviz'.*Did you mean 'compvis'"):
        save(bundle, path, to="compviz")
    with pytest.raises(
        CheckpointError, match="as a single file, .*VAE.* 16 channels .* 32 groups.*Keep this model in diff"
    ):
        save(tiny_bundle(), path, to="compvis")
    with pytest.raises(UserError, match=r"m\.ckpt as a single file.*ends in \.safetensors"):
        save(bundle, tmp_path / "m.ckpt", to="compvis")
    two = bundle.changed(conditioners={"en": bundle.conditioner(), "fr": bundle.conditioner()})
    with pytest.raises(UserError, match=r"has 2 languages.*one of en, fr \(kotoe convert: --language\)"):
        save(two, path, to="compvis")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(UserError, match="is there already"):
        save(bundle, tmp_path / "folder.safetensors", to="compvis", overwrite=True)
    path.write_text("precious")
    with pytest.raises(UserError, match="is there already.*overwrite=True"):
        save(bundle, path, to="compvis")

    def full(tensors: object, temporary: Path, metadata: object) -> None:
        Path(temporary).write_text("half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(OSError, match="disk full"):
            save(bundle, path, to="compvis", overwrite=True)
    assert path.read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.safetensors", "m.safetensors"]
    save(bundle, path, to="compvis", overwrite=True)
    assert len(_names(path)) > 300


def test_unet_spec_defaults_are_the_published_ones() -> None:
    """What compvis writes down once (groups, heads, scaling factor) is what the Specs have by default."""
    assert (UNetSpec().norm_num_groups, set(UNetSpec().num_heads), VAESpec().norm_num_groups) == (32, {8}, 32)
    assert VAESpec().scaling_factor == 0.18215


def test_an_inpainting_file_is_one(tmp_path: Path) -> None:
    """Nine channels, as sd-v1-5-inpainting.ckpt has them: the family says so, and writing gives the tensor back."""
    nine = torch.randn(32, 9, 3, 3, generator=torch.Generator().manual_seed(0))
    file = written({**made("sd1").file, IN: nine}, tmp_path / "inpaint.safetensors")
    bundle = load(file, tokenizer=words(tmp_path / "words"), dtype="float32")
    assert (bundle.family, bundle.unet.spec.in_channels) == ("sd1-inpainting", 9)
    again = save(bundle, tmp_path / "again.safetensors", to="compvis")
    assert torch.equal(load_file(again)[IN], nine)


def test_a_file_in_little_memory_draws_the_same(tmp_path: Path) -> None:
    """low_memory means the same for a single file as for a folder: parts in turn, attention in pieces."""
    file, folder = written(made("sd1").file, tmp_path / "m.safetensors"), words(tmp_path / "words")
    bundle = load(file, tokenizer=folder, dtype="float32", low_memory=True)
    plain = load(file, tokenizer=folder, dtype="float32")
    assert bundle.low_memory
    sliced = [m.sliced for m in bundle.unet.modules() if hasattr(m, "sliced")]
    assert sliced
    assert all(sliced)
    assert not any(m.sliced for m in plain.unet.modules() if hasattr(m, "sliced"))

"""The recipes of the published systems at a few steps: each stage trains what it should, and their sizes say what was
published."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest
import torch
from recipes import seed_alt_diffusion, seed_bingsu, seed_cool_japan, seed_rinna, seed_stages, seed_svjack, seed_taiyi
from torch import Tensor

from kotoe.bert import BertText
from kotoe.checkpoints import Bundle, load
from kotoe.data.texts import read_pairs
from kotoe.errors import UserError
from kotoe.localize.plans import Texts
from kotoe.localize.settings import Localizing

pytestmark = [pytest.mark.needs("emoji-font"), pytest.mark.needs("cldr"), pytest.mark.needs("unicode-data")]

RECIPES = (seed_rinna, seed_taiyi, seed_svjack, seed_cool_japan, seed_bingsu, seed_alt_diffusion)
FEW = {"steps": 2, "batch_size": 2}
PICTURES = 8


def short(recipe: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its emoji size with two steps a stage on a few rows."""
    steps = {"steps": 2} if recipe in (seed_svjack, seed_bingsu) else FEW
    settings = {k: {**v, **steps} if isinstance(v, dict) else v for k, v in recipe.SIZES["emoji"].items()}
    few = {"pictures": PICTURES, "pairs": 400} | ({"vocab_size": 300} if recipe is seed_rinna else {})
    monkeypatch.setitem(recipe.SIZES, "emoji", settings | {k: v for k, v in few.items() if k in settings})


def parts(bundle: Bundle, language: str) -> dict[str, Tensor]:
    """Parameters of a bundle, one language's encoder as "text"."""
    modules = {"unet": bundle.unet, "vae": bundle.vae, "text": bundle.conditioner(language).encoder}
    return {f"{part}.{name}": p for part, m in modules.items() for name, p in m.named_parameters()}


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    """Parts, and for a UNet whether more than keys and values, of which some parameter differs."""
    names = {name for name in after if not torch.equal(before[name], after[name])}
    return {"kv" if ".attn2.to_k." in n or ".attn2.to_v." in n else n.split(".")[0] for n in names}


def test_rinna_teaches_an_encoder_and_then_the_unet_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short(seed_rinna, monkeypatch)
    out = seed_rinna.main(tmp_path)
    base, first, second = (load(f, dtype="float32") for f in (tmp_path / "base", tmp_path / "stage1/bundle", out))
    assert base.languages == ("en",)
    assert first.languages == second.languages == ("en", "ja")
    assert changed(parts(base, "en"), parts(first, "en")) == set()
    assert changed(parts(first, "ja"), parts(second, "ja")) == {"text", "unet", "kv"}
    tokenizer = second.conditioner("ja").tokenizer
    assert tokenizer.encode(["CAT"]).ids == tokenizer.encode(["cat"]).ids  # rinna's lower case


def test_taiyi_teaches_a_bert_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short(seed_taiyi, monkeypatch)
    base, found = load("kotoe-emoji", dtype="float32"), load(seed_taiyi.main(tmp_path), dtype="float32")
    assert isinstance(found.conditioner("zh").encoder, BertText)
    assert changed(parts(base, "en"), parts(found, "en")) == set()
    assert found.languages == ("en", "zh")


def test_svjack_teaches_the_unet_alone_at_half_the_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short(seed_svjack, monkeypatch)
    base, found = load("kotoe-emoji", dtype="float32"), load(seed_svjack.main(tmp_path), dtype="float32")
    assert found.languages == base.languages
    assert changed(parts(base, "zh"), parts(found, "zh")) == {"unet", "kv"}
    assert json.loads((tmp_path / "unet/pictures.json").read_text())["size_px"] == 64
    before = (tmp_path / "unet/metrics.jsonl").read_bytes()
    seed_svjack.main(tmp_path)
    assert (tmp_path / "unet/metrics.jsonl").read_bytes() == before  # done is done
    with pytest.raises(UserError, match="seed: 0 there, 1 asked"):
        seed_svjack.main(tmp_path, seed=1)


def test_cool_japan_teaches_the_autoencoder_and_then_the_unet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short(seed_cool_japan, monkeypatch)
    monkeypatch.setitem(seed_cool_japan.SIZES["emoji"], "vae", {**FEW, "lr": 1e-3})
    out = seed_cool_japan.main(tmp_path)
    base, first, second = (load(f, dtype="float32") for f in ("kotoe-emoji", tmp_path / "vae/bundle", out))
    assert changed(parts(base, "en"), parts(first, "en")) == {"vae"}
    both = changed(dict(base.vae.named_parameters()), dict(first.vae.named_parameters()))
    assert {"encoder", "decoder"} <= both
    assert changed(parts(first, "en"), parts(second, "en")) == {"unet", "kv"}
    (wanted,) = seed_cool_japan.stages(tmp_path, "emoji", base="kotoe-emoji", images=str(tmp_path / "pictures"))
    how = seed_stages.pictures.preparing(base, wanted)
    batches, count = seed_cool_japan.pixels_of(wanted, how, PICTURES)
    assert batches(0).shape == (count, 3, 128, 128)
    (tmp_path / "pictures/000003.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"000003\.png"):
        batches(0)


def test_bingsu_distils_korean_and_english_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short(seed_bingsu, monkeypatch)
    found = load(seed_bingsu.main(tmp_path), dtype="float32")
    assert found.languages == ("en", "ko")
    both, pairs = (Texts(**read_pairs(tmp_path / f)) for f in ("both.jsonl", "pairs.tsv"))
    assert both.source[::2] == both.source[1::2] == both.target[1::2] == pairs.source
    assert both.target[::2] == pairs.target
    tokenizer = found.conditioner("ko").tokenizer
    assert tokenizer.eos == tokenizer.vocab_size - 1
    base = load("kotoe-emoji", dtype="float32")
    assert changed(parts(base, "en"), parts(found, "en")) == set()


def test_alt_diffusion_teaches_keys_and_values_and_then_the_unet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short(seed_alt_diffusion, monkeypatch)
    monkeypatch.setattr("kotoe.localize.plans.QUESTIONED_STEPS", 2)
    seed_alt_diffusion.main(tmp_path)
    altclip, kv, unet, empty = (
        load(tmp_path / stage / "bundle", dtype="float32") for stage in ("altclip", "kv", "unet", "empty")
    )
    assert altclip.languages == empty.languages == ("en", "mul")
    assert changed(parts(altclip, "mul"), parts(kv, "mul")) == {"kv"}
    assert changed(parts(kv, "mul"), parts(unet, "mul")) == {"unet", "kv"}
    assert changed(parts(unet, "mul"), parts(empty, "mul")) == {"unet", "kv"}
    sizes = [json.loads((tmp_path / stage / "pictures.json").read_text())["size_px"] for stage in ("kv", "unet")]
    assert sizes == [64, 128]


# --- Configurations ----------------------------------------------------------------------------------------------


def configured(recipe: ModuleType, size: str) -> tuple[Localizing, ...]:
    given = {"base": "b", "images": "i", "student": "s", "pairs": "p", "tokenizer": "t", "device": "cuda"}
    taken = recipe.stages.__code__.co_varnames
    return recipe.stages(Path("runs"), size, **{k: v for k, v in given.items() if k in taken})


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_every_recipe_has_three_sizes_and_a_command(recipe: ModuleType) -> None:
    assert list(recipe.SIZES) == ["emoji", "gpu24", "gpu80"]
    name = Path(str(recipe.__file__)).name
    for size in ("emoji", "gpu24"):
        assert f"kotoe train recipes/{name} --run runs/" in (recipe.__doc__ or "")
        assert f"--size {size}" in (recipe.__doc__ or "")
    assert "were not run" in (recipe.__doc__ or "")
    plans = [[wanted.plan for wanted in configured(recipe, size)] for size in recipe.SIZES]
    assert plans[0] == plans[1] == plans[2]


def test_published_figures_are_the_recipes() -> None:
    """As svjack's script, Bingsu's and AltDiffusion's papers and code have them."""
    (svjack,) = configured(seed_svjack, "gpu24")
    assert (svjack.resolution, svjack.crop, svjack.resample, svjack.batch_size) == (256, "squash", "bilinear", 16)
    assert (svjack.lr, svjack.schedule, svjack.warmup_steps, svjack.steps) == (1e-5, "constant", 0, 10_000)
    assert (svjack.weight_decay, svjack.beta2, svjack.ema, svjack.dropout) == (0.01, 0.999, 0.0, 0.0)
    (bingsu,) = configured(seed_bingsu, "gpu80")
    assert (bingsu.plan, bingsu.batch_size, bingsu.weight_decay) == ("distil-pooled", 64, 1e-4)
    kv, unet, empty = configured(seed_alt_diffusion, "gpu80")
    assert [(w.resolution, w.steps) for w in (kv, unet, empty)] == [(256, 330_000), (512, 270_000), (512, 150_000)]
    assert [w.dropout for w in (kv, unet, empty)] == [0.0, 0.0, 0.1]
    assert all(
        (w.lr, w.warmup_steps, w.ema, w.schedule) == (1e-4, 10_000, 0.9999, "constant") for w in (kv, unet, empty)
    )
    (taiyi,) = configured(seed_taiyi, "gpu24")
    assert (taiyi.lr, taiyi.weight_decay, taiyi.crop, taiyi.start) == (1e-4, 0.1, "random", "given")
    one, two = configured(seed_rinna, "gpu24")
    assert (one.plan, one.start, two.plan, two.base) == ("stage1", "scratch", "stage2", "runs/stage1/bundle")
    (cool,) = configured(seed_cool_japan, "gpu24")
    assert (cool.batch_size, cool.language, cool.base) == (1, "en", "runs/vae/bundle")
    assert all(w.weighting == "plain" for w in (svjack, kv, unet, empty, taiyi, one, two, cool))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_what_a_real_size_needs_is_said(recipe: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"at size gpu24 without base, .*--set base=BASE"):
        recipe.main(tmp_path / "run", size="gpu24")
    assert not (tmp_path / "run").exists()


def test_the_autoencoders_loss_minds_both_halves() -> None:
    vae = load("kotoe-emoji", dtype="float32").vae
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vae.requires_grad_(True)
    value, numbers = seed_cool_japan.redrawn()({"vae": vae}, x, torch.Generator().manual_seed(0))
    value.backward()
    for name in ("encoder.conv_in.weight", "decoder.conv_in.weight"):
        grad = vae.get_parameter(name).grad
        assert grad is not None
        assert grad.abs().sum() > 0
    assert float(value.detach()) > numbers["l1"] > 0
    again, _ = seed_cool_japan.redrawn()({"vae": vae}, x, torch.Generator().manual_seed(0))
    assert torch.equal(again, value)


def test_a_plan_of_the_autoencoder_has_the_published_batch() -> None:
    plan = seed_cool_japan.vae_plan("gpu24", device="cuda")
    assert seed_cool_japan.SIZES["gpu24"]["vae"]["batch_size"] == 1
    assert (plan.schedule, plan.bf16, plan.trainable) == ("constant", True, ("vae.",))
    assert plan.rate(10**6) == plan.lr

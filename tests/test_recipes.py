"""The recipes of kotoe-emoji, one after another for a few steps: what comes out loads, draws and goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes import (
    emoji_base,
    emoji_decoder,
    emoji_drawing,
    emoji_fast,
    emoji_languages,
    emoji_package,
    emoji_tiny,
    emoji_vae,
)
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kotoe.checkpoints import load, tiny
from kotoe.checkpoints.adapters import with_adapters
from kotoe.checkpoints.fast import fast
from kotoe.checkpoints.lora import targets
from kotoe.config import Request
from kotoe.data.emoji import atlas, scene
from kotoe.data.latents import PATCHES, Told, basis
from kotoe.drawing import generate
from kotoe.errors import UserError
from kotoe.localize.losses import TextScenes, drawing
from kotoe.rng import initialising
from kotoe.text import Transformer
from kotoe.tiny_vae import TinyVAE
from tiny import apart, saved_tiny, tiny_conditioner

pytestmark = [pytest.mark.needs("emoji-font"), pytest.mark.needs("cldr"), pytest.mark.needs("unicode-data")]

SHORT: dict[Any, dict[str, Any]] = {
    emoji_vae: {"crops": (2, 2), "scenes": (1, 2)},
    emoji_base: {"text": (2, 8), "routes": (5, 8), "drawing": (3, 8), "unet": (3, 4), "scenes": 200},
    emoji_decoder: {"drawn": (3, 4), "scenes": 6},
    emoji_fast: {"prompts": 12, "steps": 3, "batch": 4, "rank": 2},
    emoji_languages: {
        "pairs": 1500, "cjk": {"steps": 3, "batch_size": 8, "vocab_size": 2600},
        "mul": {"steps": 2, "batch_size": 8, "vocab_size": 3000},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All recipes at a few steps."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        for recipe, settings in SHORT.items():
            patch.setitem(recipe.SIZES, "cpu", {**recipe.SIZES["cpu"], **settings})
        patch.setattr(emoji_languages, "JUDGED", 1)
        emoji_vae.main(folder / "vae")
        emoji_base.main(folder / "base")
        emoji_decoder.main(folder / "vae")
        english = emoji_package.main(folder, folder / "english")
        emoji_languages.main(folder / "languages", base=str(english))
        emoji_fast.main(folder / "fast", base=str(english))
    return folder


def test_languages_that_are_far_from_english_are_left_out(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = {"fi": 0.9, "th": 0.8, "sw": 0.79}
    monkeypatch.setattr(emoji_languages, "reached", lambda _, name: shares if name == "mul" else {"ja": 0.1})
    bundle = emoji_package.bundle_of(runs)
    assert bundle.languages == ("en", "fi", "th")


def test_what_the_recipes_leave_is_a_model_that_draws(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emoji_package, "ENOUGH", 0.0)  # after three steps nothing is recognised
    bundle = load(emoji_package.main(runs, tmp_path / "model"), dtype="float32")
    assert bundle.languages[:4] == ("en", "ja", "zh", "ko")
    assert len(bundle.languages) > 40
    readers = [bundle.conditioner(tag).encoder for tag in ("en", "ja", "ko", "fi", "th")]
    assert len(set(map(id, readers))) == 3
    assert (readers[1] is readers[2], readers[3] is readers[4]) == (True, True)
    (drawn,) = generate(bundle, Request(prompt="파란 배경의 고양이", steps=2, seed=1))
    assert drawn.record.conditioner.language == "ko"
    unet, text, _ = emoji_base.trained(runs / "base")
    halved = {name: p.half().float() for name, p in unet.state_dict().items()}
    assert all(torch.equal(p, halved[name]) for name, p in bundle.unet.state_dict().items())
    told = text.state_dict()
    shipped = bundle.conditioner("en").encoder.state_dict()
    assert all(torch.equal(p, told[name].half().float()) for name, p in shipped.items())


def test_the_fast_way_is_a_lora_of_few_steps(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emoji_package, "ENOUGH", 2.0)
    bundle, loras = fast(load(emoji_package.main(runs, tmp_path / "model"), dtype="float32"))
    assert (bundle.defaults.steps, bundle.defaults.guidance_scale, bundle.defaults.decoder) == (4, 1.0, "full")
    learnt = with_adapters(bundle, loras)
    changed = [
        name for name, p in learnt.unet.named_parameters() if not torch.equal(p, bundle.unet.get_parameter(name))
    ]
    assert len(changed) == len(targets(bundle.unet))  # every linear layer and convolution, and nothing else
    assert all(name.endswith(".weight") for name in changed)
    generate(learnt, Request(prompt="a cat"))


def test_the_fast_way_learns_what_the_model_draws(runs: Path) -> None:
    """Its targets are the model's own latents for those seeds: what the LoRA has learnt against is what is drawn."""
    base = load(runs / "english", dtype="float32")
    known = load_file(runs / "fast" / "teacher" / "teacher-00000.safetensors")
    asked = list(emoji_fast.prompts(base, 11, 12, "everyday"))
    ends: list[Tensor] = []
    request = Request(prompt=asked[3][1], seed=3, steps=10, guidance_scale=2.0)
    generate(base, request, on_step=lambda progress: ends.append(progress.step.x))
    assert apart(ends[-1], known["latents"][3:4]) < 1e-4


def test_the_decoder_learns_from_what_the_unet_draws_and_the_encoder_stays(runs: Path, tmp_path: Path) -> None:
    after = emoji_vae.trained(runs / "vae").state_dict()
    for stage in ("crops", "scenes"):
        (tmp_path / stage).symlink_to(runs / "vae" / stage)
    before = emoji_vae.trained(tmp_path).state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder", "post_quant_conv"}
    latents = load_file(runs / "vae/drawn/latents.safetensors")["latents"]
    assert latents.shape == (6, emoji_base.CHANNELS, 8, 8)
    assert latents.isfinite().all()
    assert latents.float().std(dim=0).mean() > 0.1  # each scene another picture


def test_a_run_without_an_autoencoder_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no autoencoder in"):
        emoji_vae.trained(tmp_path)


def test_a_finished_recipe_trains_no_more(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(emoji_base.SIZES, "cpu", {**emoji_base.SIZES["cpu"], **SHORT[emoji_base]})
    before = (runs / "base/unet/metrics.jsonl").read_bytes()
    kept, _ = emoji_base.main(runs / "base")
    assert (runs / "base/unet/metrics.jsonl").read_bytes() == before
    again, _, _ = emoji_base.trained(runs / "base")
    assert all(torch.equal(p, dict(again.named_parameters())[name]) for name, p in kept.named_parameters())


def test_a_recipe_goes_on_from_another_run(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = {
        **emoji_base.SIZES["cpu"],
        **SHORT[emoji_base],
        "routes": (1, 8),
        "drawing": (1, 8),
        "unet": (1, 4),
    }
    monkeypatch.setitem(emoji_base.SIZES, "cpu", short)
    emoji_base.main(tmp_path / "next", start_from=runs / "base")
    assert (tmp_path / "next/tokenizer/vocab.json").read_bytes() == (runs / "base/tokenizer/vocab.json").read_bytes()
    old, _, _ = emoji_base.trained(runs / "base")
    new, _, _ = emoji_base.trained(tmp_path / "next")
    moved = max(
        float((p - dict(old.named_parameters())[name]).abs().max().detach()) for name, p in new.named_parameters()
    )
    assert 0 < moved < 0.01  # one step away, not begun anew


class Planted(nn.Module):
    """A text encoder that says known routes before a last layer of its own: text i is of scene i."""

    def __init__(self, route: torch.Tensor, intermediate: int) -> None:
        super().__init__()
        self.spec = replace(emoji_base.text_spec(tiny_conditioner("en", 32).tokenizer), intermediate_size=intermediate)
        with initialising(0):
            self.text_model = Transformer(self.spec)
        width, numbers = self.spec.hidden_size, route.shape[-1]
        ones = torch.ones(width, 1) / width**0.5
        within = torch.randn(width, numbers + 1, generator=torch.Generator().manual_seed(0))
        self.planes = torch.linalg.qr(torch.cat([ones, within], dim=1))[0][:, 1:]  # (D, R + 1), layer norms keep them
        rest = (width - route.square().sum(dim=2, keepdim=True)).sqrt()
        self.said = torch.cat([route, rest], dim=2) @ self.planes.T  # (N, P, D)

    def before_last(self, ids: torch.Tensor) -> torch.Tensor:
        return self.said[ids[:, 1]]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.text_model.final_layer_norm(self.text_model.encoder.layers[-1](self.before_last(ids)))


def test_the_last_layer_in_closed_form_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """On scenes it was not set from, and worse by far with gates that never close."""
    told = Told("everyday", emoji_base.CHANNELS, emoji_base.LOOK)
    route, drawn = told([scene(3, i, atlas().glyphs) for i in range(1200)])
    encoder = Planted(route, 1024)
    head = nn.Linear(encoder.spec.hidden_size, told.route_numbers)
    with torch.no_grad():
        head.weight.copy_(encoder.planes.T[:-1])
        head.bias.zero_()

    def batch(upto: slice) -> TextScenes:
        rows = torch.full((1200, PATCHES), encoder.spec.eos)
        rows[:, 1] = torch.arange(1200)
        return TextScenes(ids=rows[upto], route=route[upto], drawn=drawn[upto])

    def left_over() -> float:
        emoji_drawing.set_last_layer(encoder, head, told, [batch(slice(0, 1000))])
        with torch.inference_mode():
            states = encoder(batch(slice(1000, None)).ids)
            assert not states[..., drawn.shape[2] :].any()
            return float(drawing(told.weights)({"text": encoder}, batch(slice(1000, None)), torch.Generator())[0])

    assert left_over() < 0.1
    monkeypatch.setattr(emoji_drawing, "CLOSED", emoji_drawing.OPEN)
    assert left_over() > 0.3


def test_a_small_decoder_is_taught_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(emoji_tiny.SIZES, "cpu", {**emoji_tiny.SIZES["cpu"], "scenes": 6, "drawn": 2, "fit": (3, 4)})
    monkeypatch.setattr(emoji_tiny, "PART", 4)
    monkeypatch.setattr(emoji_tiny, "HELD_OUT", 2)
    run = tmp_path / "tiny"
    folder = emoji_tiny.main(run)
    net = tiny.load(folder, "float32")
    assert net.spec == emoji_tiny.SPEC
    assert not any(p.any() for p in net.encoder.parameters())
    pool = sorted(p.name for p in (run / "pool").glob("*.safetensors"))
    assert pool == ["drawn-00000.safetensors", "scenes-00000.safetensors", "scenes-00001.safetensors"]
    assert "psnr" in (run / "fit/log.txt").read_text()
    # no step and no picture again; and the folder is what was there
    before = {p: p.read_bytes() for p in (*folder.iterdir(), run / "fit/metrics.jsonl")}
    monkeypatch.setattr(emoji_tiny, "of_scenes", None)
    monkeypatch.setattr(emoji_tiny, "of_captions", None)
    assert emoji_tiny.main(run) == folder
    assert {p: p.read_bytes() for p in before} == before


def test_a_small_decoder_starts_near_and_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    world, base = atlas(), basis("everyday", 32)
    monkeypatch.setattr(emoji_tiny, "HELD_OUT", 8)
    z = emoji_tiny.held_out(world, base, 0)
    with initialising(0):
        net = TinyVAE(emoji_tiny.SPEC)
        plain = {name: p.clone() for name, p in net.state_dict().items()}
        emoji_tiny.straighten(net, base, z)
    vae = load("kotoe-emoji", dtype="float32").vae
    near = emoji_tiny.closeness(net, vae, z)
    net.load_state_dict(plain)
    assert near["psnr"] > emoji_tiny.closeness(net, vae, z)["psnr"] + 3
    assert near["l1"] < 25
    with FlopCounterMode(display=False) as counted, torch.inference_mode():
        net.decode(z[:1])
    assert counted.get_total_flops() <= 0.6e9
    assert sum(p.numel() for p in net.decoder.parameters()) <= 300_000


def test_a_small_decoder_is_for_its_own_latents(tmp_path: Path) -> None:
    base = saved_tiny(tmp_path / "other")
    with pytest.raises(UserError, match="latents of 4 channels at 1/2.*Allowed: 32 channels at 1/16"):
        emoji_tiny.main(tmp_path / "run", base=str(base))

"""Losses: zero where nothing is left to learn, falling where something is, blind to what they should be blind to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kotoe.denoise import training_target
from kotoe.localize.fit import Loss, Plan, fit
from kotoe.localize.losses import (
    ImageTower,
    TextBehind,
    TextImages,
    TextLatents,
    TextPairs,
    TextScenes,
    behind,
    contrastive,
    diffusion,
    drawing,
    floored_min_snr,
    pooled,
    reader,
    record_queries,
    routing,
    states,
    unexplained,
)
from kotoe.runs import Run
from kotoe.schedule import sigmas_of
from kotoe.text import first_eos
from tiny import seeded, tiny_bundle, tiny_conditioner

BUNDLE = tiny_bundle("sd2")
SPEC = BUNDLE.schedule


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ids(texts: list[str], language: str = "en") -> torch.Tensor:
    return torch.tensor(tiny_conditioner(language, 32).tokenizer.encode(texts).ids)


TEXTS = ["a red cat", "an owl", "two dogs", "a castle", "a moon", "a green tree", "12 clouds", "a ball"]


def test_contrastive_learns_to_tell_pictures_apart(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts: dict[str, nn.Module] = {
            "text": tiny_conditioner("en", 32).encoder,
            "image": ImageTower(32),
        }
    batch = TextImages(
        ids=ids(TEXTS),
        images=torch.randn(8, 3, 32, 32, generator=generator()),
    )
    plan = Plan(
        name="t", trainable=("text.", "image."), loss=contrastive(), steps=60, lr=3e-3,
        warmup_steps=5, log_every=1, ema=0,
    )  # fmt: skip
    with Run(tmp_path / "r", {}) as run:
        fit(parts, plan, lambda step: batch, run, progress=False)
        first, last = run.metrics()[0], run.metrics()[-1]
    assert first["accuracy"] < 0.6
    assert last["accuracy"] == 1.0


class Placed(nn.Module):
    """A text encoder whose states are two of its positions' number; before its last layer, that number and 1 more."""

    def __init__(self, eos: int) -> None:
        super().__init__()
        self.spec = type("Spec", (), {"eos": eos})

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.arange(float(ids.shape[1])).view(1, -1, 1).expand(len(ids), -1, 2)

    def before_last(self, ids: torch.Tensor) -> torch.Tensor:
        at = self(ids)
        return torch.stack([at[..., 0], at[..., 1] + 1], dim=2)


class Constant(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x[..., :1], self.value)


def test_what_is_told_is_asked_of_every_state_from_the_first_eos_on() -> None:
    rows = torch.tensor([[1, 5, 9, 9, 9, 9], [1, 5, 5, 5, 9, 9]])  # EOS is 9, and padding too
    drawn = torch.tensor([[[2.0], [3.0]], [[4.0], [5.0]]])
    route = torch.tensor([[[7.0], [7.0]], [[7.0], [8.0]]])
    parts = {"text": Placed(9), "head": Constant(7.0)}
    batch = TextScenes(ids=rows, route=route, drawn=drawn)
    # Text 0 is asked at 2, 3, 4, 5 for 2, 3, 2, 3; text 1 at 4, 5 for 4, 5. The second number of a state shall be 0.
    wanted = torch.tensor([[2.0, 0], [3, 0], [2, 0], [3, 0], [4, 0], [5, 0]])
    said = torch.tensor([[2.0, 2], [3, 3], [4, 4], [5, 5], [4, 4], [5, 5]])
    error, spread = (said - wanted).square(), (wanted - wanted.mean(dim=0)).square()
    value, numbers = drawing(torch.ones(1))(parts, batch, generator())
    assert numbers["undrawn"] == pytest.approx(float(error.mean() / spread.mean()))
    assert float(value) == pytest.approx(numbers["undrawn"])
    swapped, _ = drawing(torch.ones(1))(parts, replace(batch, drawn=drawn.flip(1)), generator())
    assert float(swapped) != pytest.approx(float(value))
    of_routes = torch.tensor([7.0, 7, 7, 7, 7, 8])
    value, numbers = routing()(parts, batch, generator())
    assert numbers["unrouted"] == pytest.approx(float((1 / 6) / (of_routes - of_routes.mean()).square().mean()))
    assert float(value) == pytest.approx(numbers["unrouted"])


def test_an_error_in_a_costly_number_weighs_more() -> None:
    draw = generator()
    asked, error = torch.randn(50, 2, generator=draw), torch.randn(50, generator=draw)
    cost = torch.tensor([1.0, 9.0])
    cheap = unexplained(asked + F.pad(error[:, None], (0, 1)), asked, cost)
    costly = unexplained(asked + F.pad(error[:, None], (1, 0)), asked, cost)
    assert float(costly / cheap) == pytest.approx(9.0)
    assert torch.allclose(unexplained(asked + 1, asked), unexplained(asked + 1, asked, torch.ones(2)))


@pytest.mark.parametrize("what", ["unrouted", "undrawn"])
def test_telling_learns(what: str, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts: dict[str, nn.Module] = {"text": tiny_conditioner("en", 32).encoder, "head": nn.Linear(32, 6)}
    batch = TextScenes(
        ids=ids(TEXTS),
        route=torch.randn(8, 4, 6, generator=generator()),
        drawn=torch.randn(8, 4, 5, generator=generator(1)),
    )
    loss = routing() if what == "unrouted" else drawing(torch.rand(5, generator=generator(2)) + 0.5)
    plan = Plan(
        name="t", trainable=("text.", "head."), loss=loss, steps=200, lr=3e-3, warmup_steps=5, log_every=1, ema=0
    )
    with Run(tmp_path / "r", {}) as run:
        fit(parts, plan, lambda step: batch, run, progress=False)
        curve = run.metrics()
    assert curve[0][what] > 0.8
    assert curve[-1][what] < 0.3


class Knowing(nn.Module):
    """A network that knows the answer, or one that errs by a constant."""

    def __init__(self, latents: torch.Tensor, error: float | torch.Tensor) -> None:
        super().__init__()
        self.latents, self.error = latents, error

    def forward(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        abar = (1 / (1 + sigmas_of(SPEC) ** 2))[t].float().view(-1, 1, 1, 1)
        eps = (x - abar.sqrt() * self.latents) / (1 - abar).sqrt()
        return training_target(SPEC, self.latents, eps, t) + self.error


@pytest.mark.parametrize("noisy", [1.0, 1.5])
def test_diffusion_is_zero_for_the_right_answer(noisy: float) -> None:
    latents = torch.randn(8, 4, 8, 8, generator=generator())
    batch = TextLatents(text=ids(TEXTS), latents=latents, noisy=noisy)
    loss = diffusion(SPEC)
    text = tiny_conditioner("en", 32).encoder
    right, _ = loss({"unet": Knowing(latents, 0.0), "text": text}, batch, generator())
    wrong, _ = loss({"unet": Knowing(latents, 0.5), "text": text}, batch, generator())
    assert float(right.detach()) < 1e-4
    assert float(wrong.detach()) > 0.02


def test_diffusion_without_weights_is_the_plain_squared_error() -> None:
    """Of an error of 0.5 at every noise level; weighted, levels of little noise count less."""
    latents = torch.randn(8, 4, 8, 8, generator=generator())
    parts = {"unet": Knowing(latents, 0.5)}
    batch = TextLatents(text=torch.zeros(8, 5, 32), latents=latents)
    plain, weighted = (float(diffusion(SPEC, gamma=g)(parts, batch, generator())[0]) for g in (None, 5.0))
    assert plain == pytest.approx(0.25, rel=1e-3)
    assert weighted < 0.95 * plain


def test_diffusion_weighs_errors_by_channel() -> None:
    """An error in a channel that counts nothing costs nothing, and one in a channel of weight 3 three times as much."""
    latents = torch.randn(8, 4, 8, 8, generator=generator())
    batch = TextLatents(text=torch.zeros(8, 5, 32), latents=latents)

    def cost(channel: int, channels: torch.Tensor | None) -> float:
        error = torch.zeros(4, 1, 1)
        error[channel] = 0.5
        return float(diffusion(SPEC, channels=channels)({"unet": Knowing(latents, error)}, batch, generator())[0])

    weights = torch.tensor([1.0, 0.0, 3.0, 1.0])
    assert cost(1, weights) < 1e-4
    assert cost(2, weights) == pytest.approx(3 * cost(2, None), rel=1e-3)
    assert cost(1, None) > 0.005


def test_states_that_a_frozen_encoder_made_count_as_its_text() -> None:
    conditioner = BUNDLE.conditioner()
    rows = torch.tensor(conditioner.tokenizer.encode(TEXTS).ids)
    batch = TextLatents(text=rows, latents=torch.randn(8, 4, 8, 8, generator=generator()))
    with torch.inference_mode():
        made = conditioner.encoder(rows)
        parts = {"unet": BUNDLE.unet, "text": conditioner.encoder}
        whole, _ = diffusion(SPEC)(parts, batch, generator())
        kept, _ = diffusion(SPEC)({"unet": BUNDLE.unet}, replace(batch, text=made), generator())
        other, _ = diffusion(SPEC)({"unet": BUNDLE.unet}, replace(batch, text=made.flip(0)), generator())
    assert torch.equal(whole, kept)
    assert not torch.equal(whole, other)


def test_weights_keep_the_noisiest_step() -> None:
    """Min-SNR alone would give zero terminal SNR no weight, and no v loss may count for more than itself."""
    t = torch.arange(SPEC.num_train_timesteps)
    weights = floored_min_snr(SPEC, t)
    ratio = sigmas_of(SPEC) ** -2
    assert float(weights[-1]) == pytest.approx(1.0, abs=1e-4)
    assert torch.all(weights <= 1 + 1e-6)
    clean = ratio > 5
    assert torch.allclose(weights[clean], (6 / (ratio[clean] + 1)).float())


def bank() -> Any:
    conditioner = BUNDLE.conditioner()
    draw = generator()
    x, t = torch.randn(4, 4, 8, 8, generator=draw), torch.tensor([10, 300, 700, 999])
    with torch.inference_mode():
        context = conditioner.encoder(ids(TEXTS[:4]))
    return record_queries(BUNDLE.unet, [(x, t, context)], per_layer=16)


def pairs(teacher: torch.Tensor, texts: list[str] = TEXTS) -> TextPairs:
    """Texts whose translations are TEXTS, which the teacher said this of."""
    return TextPairs(ids=ids(texts), teacher_ids=ids(TEXTS), teacher=teacher)


def test_reader_is_zero_for_the_teacher_and_blind_to_token_order() -> None:
    queries = bank()
    assert all(b.shape[1] == 16 for b in queries.banks)
    assert len(queries.banks) == len(BUNDLE.unet.cross_attentions())
    loss, english = reader(queries), BUNDLE.conditioner().encoder
    with torch.inference_mode():
        teacher = english(ids(TEXTS)).clone()
    parts = {"unet": BUNDLE.unet, "text": english}
    same, _ = loss(parts, pairs(teacher), generator())
    shuffled, _ = loss(parts, pairs(teacher.flip(1)), generator())
    other, _ = loss(parts, pairs(teacher, TEXTS[::-1]), generator())
    assert float(same.detach()) < 1e-8
    assert float(shuffled.detach()) < 1e-8
    assert float(other.detach()) > 0.1


def test_reader_teaches_another_language_without_touching_the_unet(tmp_path: Path) -> None:
    """Korean lines to English states, tokens and lengths of their own; the UNet stays as it was, to the bit."""
    korean = ["파란 배경의 고양이", "노란 달 위의 부엉이", "성 그림", "초록 나무"]
    there = ["a red cat", "an owl above a yellow moon", "a castle", "a green tree"]
    with torch.inference_mode():
        teacher = BUNDLE.conditioner().encoder(ids(there)).clone()
    student = seeded(tiny_conditioner("ko", 32).encoder, 5)
    before = {name: p.clone() for name, p in BUNDLE.unet.named_parameters()}
    batch = TextPairs(ids=ids(korean, "ko"), teacher_ids=ids(there), teacher=teacher)
    plan = Plan(
        name="t", trainable=("text.",), loss=reader(bank()), steps=150, lr=3e-3, warmup_steps=5, log_every=1, ema=0
    )
    with Run(tmp_path / "r", {}) as run:
        fit({"unet": BUNDLE.unet, "text": student}, plan, lambda step: batch, run, progress=False)
        curve = [row["unexplained"] for row in run.metrics()]
    assert curve[0] > 0.5
    assert curve[-1] < 0.1 * curve[0]
    assert all(torch.equal(p, before[name]) for name, p in BUNDLE.unet.named_parameters())


def test_a_schedule_without_zero_snr_has_weights_too() -> None:
    weights = floored_min_snr(replace(SPEC, rescale_betas_zero_snr=False), torch.tensor([0, 500, 999]))
    assert torch.all(weights > 0)


def test_behind_compares_where_it_is_told_to() -> None:
    encoder = BUNDLE.conditioner().encoder
    with torch.inference_mode():
        *_, before, _ = (x.clone() for x in encoder.residuals(ids(TEXTS)))
    assert torch.equal(before, encoder.before_last(ids(TEXTS)))
    at = torch.zeros(before.shape[:2], dtype=torch.bool)
    at[:, 9:] = True

    def left_over(wanted: torch.Tensor) -> float:
        batch = TextBehind(ids=ids(TEXTS), behind=at, before=wanted)
        return float(behind()({"text": encoder}, batch, generator())[0].detach())

    assert left_over(before.where(at[:, :, None], before.flip(0))) < 1e-6
    assert left_over(3 * before) > 0.1  # norms see no scale, but what the last layer adds to has one
    assert left_over(before.flip(0)) > 0.1


def test_pooled_asks_for_one_state_and_states_for_all() -> None:
    """What `distil-pooled` can't see: every state but the one at EOS may be anything."""
    encoder = BUNDLE.conditioner().encoder
    with torch.inference_mode():
        teacher = encoder(ids(TEXTS)).clone()
    eos = encoder.spec.eos
    at = first_eos(ids(TEXTS), eos)
    elsewhere = torch.ones_like(ids(TEXTS), dtype=torch.bool)
    elsewhere[torch.arange(len(at)), at] = False
    other = torch.where(elsewhere[:, :, None], teacher.flip(0), teacher)  # right at EOS, wrong everywhere else
    wrong = torch.where(elsewhere[:, :, None], teacher, teacher.flip(0))  # the other way round

    def left_over(loss: Loss, asked: torch.Tensor) -> float:
        return float(loss({"text": encoder}, pairs(asked), generator())[0].detach())

    assert left_over(pooled(eos=eos), teacher) < 1e-8
    assert left_over(pooled(eos=eos), other) < 1e-8
    assert left_over(pooled(eos=eos), wrong) > 0.1
    assert left_over(states(), teacher) < 1e-8
    assert left_over(states(), other) > 0.1
    assert left_over(states(), wrong) > 0.01

"""The wrappers round a denoiser, and the training algebra from the other side."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kotoe import denoise as D
from kotoe.errors import UserError
from kotoe.rng import ImageNoise, generator
from kotoe.samplers import SAMPLERS
from kotoe.schedule import GRIDS, alphas_cumprod, input_scale, sigma_to_t, sigmas_of, t_to_sigma
from kotoe.spec import ScheduleSpec

EPS = ScheduleSpec()
V = ScheduleSpec(prediction_type="v_prediction")
ZERO = replace(V, rescale_betas_zero_snr=True)
SHAPE = (3, 4, 5, 6)  # B, C, H, W


def draw(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def network(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(x + 0.3 * x.roll(1, -1)) * (0.5 + t.reshape(-1, 1, 1, 1) / 2000)


# A network as a denoiser


@given(st.integers(0, 999), st.integers(0, 50))
def test_eps_and_v_of_the_same_linear_model_give_the_same_x0(t: int, seed: int) -> None:
    """The exact denoiser of N(0, 1) data is linear; told as eps and as v it must come out the same."""
    sigma = t_to_sigma(EPS, torch.full((3,), t))
    s = sigma.reshape(-1, 1, 1, 1)
    alpha, x = input_scale(s), draw(seed) * (1 + s**2).sqrt()

    def as_eps(x_in: Tensor, _: Tensor) -> Tensor:
        return x_in * (s * alpha)

    def as_v(x_in: Tensor, _: Tensor) -> Tensor:  # alpha * eps - beta * x0, which is 0 for N(0, 1)
        x0 = x_in * alpha
        return alpha * as_eps(x_in, _) - (s * alpha) * x0

    from_eps, from_v = D.denoiser(as_eps, EPS)(x, sigma), D.denoiser(as_v, V)(x, sigma)
    assert torch.allclose(from_eps, from_v, atol=3e-6 * float(1 + s.max()))
    assert torch.allclose(from_v, x * alpha**2, atol=3e-6 * float(1 + s.max()))


@pytest.mark.parametrize("spec", [EPS, V, ZERO])
def test_the_network_sees_unit_variance_and_the_trained_timestep(spec: ScheduleSpec) -> None:
    t = torch.tensor([0, 400, 999])
    seen: dict[str, Tensor] = {}

    def spy(x: Tensor, t: Tensor) -> Tensor:
        seen.update(x=x, t=t)
        return network(x, t)

    x0, eps = draw(1), draw(2)
    sigma = sigmas_of(spec)[t].float()
    D.denoiser(spy, spec)(x0 + sigma.reshape(-1, 1, 1, 1) * eps, sigma)
    assert torch.equal(seen["t"], t.float())
    assert torch.allclose(seen["x"], D.training_input(spec, x0, eps, t), atol=2e-6)


@pytest.mark.parametrize("spec", [EPS, V, ZERO])
def test_a_perfect_answer_to_the_training_target_is_x0(spec: ScheduleSpec) -> None:
    """Training and sampling use one algebra: what the loss asks for is what the wrapper turns back into x0."""
    t = torch.tensor([0, 500, 998])
    x0, eps = draw(1), draw(2)
    sigma = sigmas_of(spec)[t].float()
    target = D.training_target(spec, x0, eps, t)
    found = D.denoiser(lambda x, t: target, spec)(x0 + sigma.reshape(-1, 1, 1, 1) * eps, sigma)
    assert torch.allclose(found, x0, atol=2e-4)
    wrong = D.denoiser(lambda x, t: -target, spec)(x0 + sigma.reshape(-1, 1, 1, 1) * eps, sigma)
    assert not torch.allclose(wrong, x0, atol=1e-2)


def test_zero_terminal_snr_v_is_minus_x0() -> None:
    t = torch.tensor([999])
    x0, eps = draw(1)[:1], draw(2)[:1]
    assert torch.allclose(D.training_target(ZERO, x0, eps, t), -x0, atol=2e-3)
    assert torch.allclose(D.training_input(ZERO, x0, eps, t), eps, atol=2e-3)
    assert not torch.allclose(D.training_input(V, x0, eps, t), eps, atol=2e-3)


def test_a_bfloat16_network_gives_a_float32_state() -> None:
    sigma = torch.full((3,), 2.0)
    for spec in (EPS, V):
        found = D.denoiser(lambda x, t: network(x, t).bfloat16(), spec)(draw(1), sigma)
        assert found.dtype == torch.float32
        assert torch.allclose(found, D.denoiser(network, spec)(draw(1), sigma), atol=0.02)


def test_images_at_different_sigmas_share_a_call() -> None:
    sigma = torch.tensor([0.1, 3.0, 14.0])
    x = draw(3)
    for spec in (EPS, V):
        together = D.denoiser(network, spec)(x, sigma)
        for i in range(3):
            alone = D.denoiser(network, spec)(x[i : i + 1], sigma[i : i + 1])
            assert torch.allclose(together[i : i + 1], alone, atol=1e-6)


# Guidance

SIGMA = torch.tensor([0.5, 2.0, 9.0])


def half(text: float) -> D.Model:
    """A network that has read `text`."""
    return lambda x, t: network(x + text, t)


def counted(model: D.Model, calls: list[int]) -> D.Model:
    def call(x: Tensor, t: Tensor) -> Tensor:
        calls.append(len(x))
        return model(x, t)

    return call


def both_halves(x: Tensor, t: Tensor) -> Tensor:
    """One network call for a doubled batch: -0.3 is the negative prompt's text, 0.4 the prompt's."""
    negative, positive = x.chunk(2)
    return torch.cat([network(negative - 0.3, t[: len(negative)]), network(positive + 0.4, t[len(negative) :])])


@pytest.mark.parametrize("name", SAMPLERS)
def test_t10_guidance_of_one_is_one_forward_per_step(name: str) -> None:
    """Counted through a sampler: heun and pndm make forwards of their own, and no guidance doubles any."""
    sigmas = GRIDS["trailing"](EPS, 5)
    noise = ImageNoise((1, 2, 3), SHAPE[1:])

    def forwards(scale: float) -> tuple[list[int], list[int], Tensor]:
        cond, uncond = [], []
        denoise = D.guided(
            D.denoiser(counted(half(0.4), cond), EPS),
            scale,
            uncond=D.denoiser(counted(half(-0.3), uncond), EPS),
        )
        x, _ = D.start(noise.initial(), sigmas, sampler=name, grid="trailing")
        *_, last = SAMPLERS[name](denoise, x, sigmas, noise)
        return cond, uncond, last.x

    cond, uncond, picture = forwards(1.0)
    assert cond == [3] * {"heun": 9, "pndm": 6}.get(name, 5)
    assert uncond == []
    again, doubled, guided_picture = forwards(1.5)
    assert again == cond == doubled
    assert not torch.allclose(picture, guided_picture)


def test_guidance_of_one_is_the_identity() -> None:
    cond = D.denoiser(half(0.4), EPS)
    assert D.guided(cond, 1.0) is cond
    assert D.guided(cond, 1.0, uncond=cond, rescale=0.7) is cond
    nearly = D.guided(cond, 1.0 + 1e-6, uncond=D.denoiser(half(-0.3), EPS))
    assert torch.allclose(nearly(draw(1), SIGMA), cond(draw(1), SIGMA), atol=1e-4)


def test_guidance_of_zero_is_the_negative_prompt_alone() -> None:
    negative = D.denoiser(half(-0.3), EPS)
    found = D.guided(D.denoiser(half(0.4), EPS), 0.0, uncond=negative)(draw(1), SIGMA)
    assert torch.equal(found, negative(draw(1), SIGMA))


def test_t9_the_first_half_of_a_doubled_batch_is_the_negative_prompt() -> None:
    """Halves that can be told apart: swapped, the picture moves towards the negative prompt."""
    cond, uncond = D.denoiser(half(0.4), V), D.denoiser(half(-0.3), V)
    two_calls = D.guided(cond, 6.0, uncond=uncond)(draw(1), SIGMA)
    calls: list[int] = []
    one_call = D.guided(cond, 6.0, both=D.denoiser(counted(both_halves, calls), V))(draw(1), SIGMA)
    assert calls == [6]
    assert torch.allclose(one_call, two_calls, atol=1e-5)
    swapped = D.guided(uncond, 6.0, uncond=cond)(draw(1), SIGMA)
    assert not torch.allclose(swapped, two_calls, atol=0.1)


@given(st.floats(-2, 15), st.integers(0, 999), st.sampled_from([EPS, V]))
def test_t11_guidance_on_the_prediction_is_guidance_on_x0(scale: float, t: int, spec: ScheduleSpec) -> None:
    """Both are linear at a given x and sigma, so that the domain doesn't matter; we use x0."""
    sigma = t_to_sigma(spec, torch.full((3,), t))
    x = draw(4) * (1 + sigma.reshape(-1, 1, 1, 1) ** 2).sqrt()

    def mixed(x: Tensor, t: Tensor) -> Tensor:  # as diffusers: on what the network says
        negative, positive = half(-0.3)(x, t), half(0.4)(x, t)
        return negative + scale * (positive - negative)

    on_x0 = D.guided(D.denoiser(half(0.4), spec), scale, uncond=D.denoiser(half(-0.3), spec))(x, sigma)
    on_prediction = D.denoiser(mixed, spec)(x, sigma)
    size = 1 + float(sigma[0]) * (1 + abs(scale))
    assert torch.allclose(on_x0, on_prediction, atol=2e-6 * size)


def test_rescale_pulls_the_spread_back_to_that_of_the_prompt() -> None:
    cond, uncond = D.denoiser(half(0.4), V), D.denoiser(half(-0.3), V)
    x = draw(5)

    def spread(rescale: float) -> Tensor:
        return D.guided(cond, 9.0, uncond=uncond, rescale=rescale)(x, SIGMA).flatten(1).std(1)

    target, free = cond(x, SIGMA).flatten(1).std(1), spread(0.0)
    assert torch.allclose(spread(1.0), target, rtol=1e-5)
    assert torch.allclose(spread(0.7), 0.7 * target + 0.3 * free, rtol=1e-5)
    assert not torch.allclose(free, target, rtol=0.1)


@pytest.mark.parametrize("rescale", [-0.1, 1.1])
def test_rescale_out_of_range(rescale: float) -> None:
    with pytest.raises(UserError, match="guidance_rescale"):
        D.guided(D.denoiser(network, V), 5.0, uncond=D.denoiser(network, V), rescale=rescale)


def test_guidance_needs_one_way_to_the_negative_prompt() -> None:
    cond = D.denoiser(network, V)
    with pytest.raises(UserError, match="neither of"):
        D.guided(cond, 5.0)
    with pytest.raises(UserError, match="each of"):
        D.guided(cond, 5.0, uncond=cond, both=cond)


# Inpainting and starting points


def left_mask() -> Tensor:
    mask = torch.zeros(1, 1, *SHAPE[2:])
    mask[..., :3] = 1  # the left half is painted anew
    return mask


@pytest.mark.parametrize("name", SAMPLERS)
def test_inpainting_keeps_what_is_known(name: str) -> None:
    known, mask = draw(8)[:1], left_mask()
    noise = ImageNoise((1, 2, 3), SHAPE[1:])
    sigmas = GRIDS["trailing"](EPS, 12)

    def paint(denoise: D.Denoiser) -> Tensor:
        x, walk = D.start(noise.initial(), sigmas, sampler=name, grid="trailing", init=known, strength=0.75)
        *_, last = SAMPLERS[name](denoise, x, walk, noise)
        return last.x

    free = D.denoiser(network, EPS)
    painted = paint(D.inpainted(free, known, mask))
    exact = name not in ("lms", "pndm")  # their last step is a formula over several eps, here all the same one
    assert torch.allclose(painted[..., 3:], known.expand(SHAPE)[..., 3:], atol=1e-6 if exact else 1e-4)
    assert not torch.allclose(painted[..., :3], known.expand(SHAPE)[..., :3], atol=0.05)
    assert torch.equal(paint(D.inpainted(free, known, torch.ones_like(mask))), paint(free))


def test_the_kept_part_follows_the_noised_picture() -> None:
    """At every level it is known + sigma * the starting noise: what diffusers pastes in after each step."""
    known, mask = draw(8)[:1], left_mask()
    noise = ImageNoise((1, 2, 3), SHAPE[1:])
    denoise = D.inpainted(D.denoiser(network, EPS), known, mask)
    sigmas = GRIDS["trailing"](EPS, 10)
    x, walk = D.start(noise.initial(), sigmas, sampler="euler", grid="trailing", init=known, strength=0.8)
    for step in SAMPLERS["euler"](denoise, x, walk, noise):
        expected = known + step.sigma * noise.initial()
        assert torch.allclose(step.x[..., 3:], expected[..., 3:], atol=1e-5)


def test_a_soft_mask_blends() -> None:
    known, free = draw(8), D.denoiser(network, V)
    quarter = torch.full((3, 1, *SHAPE[2:]), 0.25)
    found = D.inpainted(free, known, quarter)(draw(1), SIGMA)
    assert torch.allclose(found, 0.25 * free(draw(1), SIGMA) + 0.75 * known, atol=1e-6)


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(*SHAPE[2:]),
        torch.ones(1, 4, *SHAPE[2:]),
        torch.ones(1, 1, 6, 5),
        torch.full((1, 1, *SHAPE[2:]), 255.0),
    ],
)
def test_impossible_masks(mask: Tensor) -> None:
    with pytest.raises(UserError, match="mask"):
        D.inpainted(D.denoiser(network, V), draw(8), mask)


def test_start_from_noise_and_from_a_picture() -> None:
    sigmas, noise, init = GRIDS["trailing"](EPS, 10), draw(1), draw(2)
    args: dict[str, Any] = {"sampler": "euler", "grid": "trailing"}
    x, walk = D.start(noise, sigmas, **args)
    assert torch.equal(walk, sigmas)
    assert torch.allclose(x, noise * float(sigmas[0]))
    full, walk = D.start(noise, sigmas, init=init, strength=1.0, **args)
    assert torch.equal(full, x)  # strength 1.0 is pure noise
    assert torch.equal(walk, sigmas)
    some, walk = D.start(noise, sigmas, init=init, strength=0.3, **args)
    assert torch.equal(walk, sigmas[7:])
    assert torch.allclose(some, init + float(sigmas[7]) * noise)
    one, _ = D.start(noise, sigmas, init=init[:1], strength=0.3, **args)
    assert torch.allclose(one, init[:1] + float(sigmas[7]) * noise)
    with pytest.raises(UserError, match="without a picture"):
        D.start(noise, sigmas, strength=0.5, **args)


# Training


def test_training_input_and_targets_are_diffusers() -> None:
    x0, eps, t = draw(1), draw(2), torch.tensor([0, 321, 999])
    scheduler = diffusers.DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )
    assert torch.allclose(D.training_input(V, x0, eps, t), scheduler.add_noise(x0, eps, t), atol=1e-5)
    assert torch.allclose(D.training_target(V, x0, eps, t), scheduler.get_velocity(x0, eps, t), atol=1e-5)
    assert torch.equal(D.training_target(EPS, x0, eps, t), eps)
    assert not torch.allclose(D.training_input(V, x0, eps, t - t.sign()), scheduler.add_noise(x0, eps, t), atol=1e-5)


def test_snr_is_one_over_sigma_squared() -> None:
    t = torch.tensor([0, 10, 500, 999])
    abar = alphas_cumprod(ZERO)[t]
    assert torch.allclose(D.snr(ZERO, t).double(), abar / (1 - abar), rtol=1e-6)
    assert float(D.snr(ZERO, t)[-1]) == pytest.approx(2.0**-24, rel=1e-4)


@pytest.mark.parametrize("spec", [EPS, V])
def test_min_snr_weighting_is_one_loss_on_x0_whatever_the_prediction(spec: ScheduleSpec) -> None:
    """An eps or v error, weighted, equals the x0 error it stands for times min(SNR, gamma)."""
    t = torch.tensor([30, 300, 900])
    x0, eps = draw(1), draw(2)
    sigma = sigmas_of(spec)[t].float()
    target = D.training_target(spec, x0, eps, t)
    answer = target + 0.1 * draw(3)
    found = D.denoiser(lambda x, t: answer, spec)(x0 + sigma.reshape(-1, 1, 1, 1) * eps, sigma)
    on_x0 = (found - x0).square().flatten(1).mean(1)  # (B,)
    for gamma in (1.0, 5.0):
        weighted = (answer - target).square().flatten(1).mean(1) * D.min_snr_weights(spec, t, gamma)
        assert torch.allclose(weighted, on_x0 * D.snr(spec, t).clamp(max=gamma), rtol=2e-3)


def test_min_snr_weights_by_hand() -> None:
    t = torch.tensor([0, 999])
    low, high = D.snr(EPS, t).tolist()[::-1]
    assert low < 5 < high
    assert D.min_snr_weights(EPS, t).tolist() == pytest.approx([5 / high, 1.0])
    assert D.min_snr_weights(V, t).tolist() == pytest.approx([5 / (high + 1), low / (low + 1)])
    assert torch.isfinite(D.min_snr_weights(ZERO, t)).all()


def test_loss_by_hand() -> None:
    prediction = torch.tensor([[[[1.0, 3.0]]], [[[0.0, 2.0]]]], dtype=torch.bfloat16)
    target = torch.tensor([[[[0.0, 0.0]]], [[[0.0, 0.0]]]])
    assert float(D.loss(prediction, target)) == pytest.approx((5 + 2) / 2)
    assert float(D.loss(prediction, target, torch.tensor([1.0, 0.5]))) == pytest.approx((5 + 1) / 2)
    assert D.loss(prediction, target).dtype == torch.float32


def test_timesteps_are_told_bit_for_bit_along_a_grid() -> None:
    """What depends on t alone can be computed once per picture, from sigma_to_t of the grid."""
    sigmas = GRIDS["linspace"](V, 7)
    table = set(sigma_to_t(V, sigmas[:-1]).tolist())
    told: list[float] = []

    def spy(x: Tensor, t: Tensor) -> Tensor:
        told.extend(t.tolist())
        return network(x, t)

    for name, sampler in SAMPLERS.items():
        told.clear()
        noise = ImageNoise((1, 2, 3), SHAPE[1:])
        x, walk = D.start(noise.initial(), sigmas, sampler=name, grid="linspace")
        assert len(list(sampler(D.denoiser(spy, V), x, walk, noise))) == 7
        assert set(told) == table

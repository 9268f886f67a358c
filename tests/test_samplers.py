"""Samplers against closed forms, and the promises of their contract. Parity with diffusers: tests/parity."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from kotoe.errors import UserError
from kotoe.rng import ImageNoise, generator
from kotoe.samplers import ADAMS_BASHFORTH, SAMPLERS, Step, _adams, ddim, euler, euler_ancestral, heun, lms, pndm
from kotoe.schedule import GRIDS, sigma_to_t
from kotoe.spec import ScheduleSpec

MEAN, SPREAD = 0.7, 0.5
STOCHASTIC = ("euler_ancestral", "dpmpp_2m_sde")


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """The exact denoiser of data drawn from N(MEAN, SPREAD**2)."""
    s = sigma.reshape(-1, 1, 1, 1).to(x)
    return MEAN + SPREAD**2 / (SPREAD**2 + s**2) * (x - MEAN)


def exact(x: Tensor, start: float, end: float) -> Tensor:
    """Where its probability-flow ODE takes x from sigma = start to sigma = end."""
    return MEAN + (x - MEAN) * math.sqrt((SPREAD**2 + end**2) / (SPREAD**2 + start**2))


def no_noise(i: int) -> Tensor:
    raise AssertionError("a deterministic sampler asked for noise")


def geometric(steps: int, start: float = 10.0, end: float = 0.05) -> Tensor:
    return torch.exp(torch.linspace(math.log(start), math.log(end), steps + 1, dtype=torch.float64))


def ode_error(name: str, steps: int, *, before_last: bool = False) -> float:
    x = torch.tensor([3.0, -5.0, 8.0], dtype=torch.float64).reshape(1, 1, 1, 3)
    walked = list(SAMPLERS[name](gaussian, x, geometric(steps), no_noise))
    last = walked[-2 if before_last else -1]
    return float((last.x - exact(x, 10.0, last.sigma)).abs().max())


@pytest.mark.parametrize(
    ("name", "order"), [("euler", 1), ("ddim", 1), ("heun", 2), ("pndm", 2), ("dpmpp_2m", 2), ("unipc", 3)]
)
def test_converges_at_its_order(name: str, order: int) -> None:
    """Halving the steps' length divides the error by 2**order. unipc's last step is of first order on purpose."""
    errors = [ode_error(name, steps, before_last=name == "unipc") for steps in (80, 160, 320)]
    for coarse, fine in zip(errors, errors[1:]):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


def test_lms_converges_between_the_order_of_its_start_and_its_own() -> None:
    errors = [ode_error("lms", steps) for steps in (20, 40, 80, 160)]
    orders = [math.log2(coarse / fine) for coarse, fine in zip(errors, errors[1:])]
    assert all(3.0 < found < 4.0 for found in orders), orders
    assert errors[0] < ode_error("heun", 20) / 2


def test_orders_show_in_use() -> None:
    """On the grid of a real schedule, to 0, at 20 steps: what a higher order is for."""
    sigmas = GRIDS["karras"](ScheduleSpec(), 20)
    x = torch.tensor([20.0, -9.0], dtype=torch.float64).reshape(1, 1, 1, 2)
    truth = exact(x, float(sigmas[0]), 0.0)
    found = {
        name: float((list(SAMPLERS[name](gaussian, x, sigmas, no_noise))[-1].x - truth).abs().max())
        for name in SAMPLERS
        if name not in STOCHASTIC
    }
    assert found["euler"] == found["ddim"]
    for name in ("heun", "lms", "pndm", "dpmpp_2m", "unipc"):
        assert found[name] < found["euler"] / 3, (name, found)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samplers_end_in_the_data_distribution(name: str) -> None:
    sigmas = GRIDS["karras"](ScheduleSpec(), 240)  # fine enough for a first-order method to be within 2 %
    g = generator(5)

    def noise(i: int) -> Tensor:
        return torch.randn(1, 1, 100, 100, generator=g)

    walked = list(SAMPLERS[name](gaussian, noise(0) * float(sigmas[0]), sigmas, noise))
    for step in (walked[120], walked[-1]):  # 10,000 draws: the standard error of a spread is 0.7 % of it
        spread = math.hypot(SPREAD, step.sigma)
        assert float(step.x.mean()) == pytest.approx(MEAN, abs=0.04 * spread)
        assert float(step.x.std()) == pytest.approx(spread, rel=0.03)


def test_adams_weights_integrate_cubics_exactly_whatever_the_spacing() -> None:
    nodes = [1.0, 1.7, 2.1, 4.0]
    weights = _adams(nodes, 1.0, 0.3)
    for power in range(4):
        integral = (0.3 ** (power + 1) - 1) / (power + 1)
        assert sum(w * n**power for w, n in zip(weights, nodes)) == pytest.approx(integral, abs=1e-12)
    assert sum(w * n**4 for w, n in zip(weights, nodes)) != pytest.approx((0.3**5 - 1) / 5, abs=1e-3)


def test_pndm_coefficients_are_those_of_even_spacing() -> None:
    for order, weights in ADAMS_BASHFORTH.items():
        nodes = [float(n) for n in range(order)]
        assert _adams(nodes, 0.0, -1.0) == pytest.approx([-w for w in weights])


def walk(name: str, seed: int) -> Iterator[Step]:
    noise = ImageNoise((seed, seed + 1), (2, 4, 4))
    sigmas = GRIDS["karras"](ScheduleSpec(), 8)
    return SAMPLERS[name](gaussian, noise.initial() * float(sigmas[0]), sigmas, noise)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_interleaved_samplers_give_the_bits_of_sequential_ones(name: str) -> None:
    first, second = list(walk(name, 1)), list(walk(name, 5))
    interleaved = list(zip(walk(name, 1), walk(name, 5), strict=True))
    for i, (a, b) in enumerate(interleaved):
        assert a.i == b.i == i
        assert torch.equal(a.x, first[i].x)
        assert torch.equal(b.x, second[i].x)
        assert not torch.equal(a.x, b.x)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_t12_image_of_a_batch_is_the_image_alone(name: str) -> None:
    sigmas = GRIDS["karras"](ScheduleSpec(), 6)

    def run(seeds: tuple[int, ...]) -> Tensor:
        noise = ImageNoise(seeds, (3, 4, 4))
        return list(SAMPLERS[name](gaussian, noise.initial() * float(sigmas[0]), sigmas, noise))[-1].x

    together = run((7, 8, 9))
    for i, seed in enumerate((7, 8, 9)):
        assert torch.equal(run((seed,))[0], together[i])


@pytest.mark.parametrize(
    ("name", "forwards"),
    [*((n, 8) for n in SAMPLERS if n not in ("heun", "pndm")), ("heun", 15), ("pndm", 9)],
)
def test_forwards_and_where_they_are(name: str, forwards: int) -> None:
    """Denoisers are only asked at sigmas of the grid, never at 0, one sigma per image."""
    spec = ScheduleSpec()
    sigmas = GRIDS["trailing"](spec, 8)
    asked: list[float] = []

    def spy(x: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.shape == (2,)
        assert sigma.dtype == x.dtype == torch.float32
        asked.extend(sigma[:1].tolist())
        return gaussian(x, sigma)

    noise = ImageNoise((1, 2), (2, 3, 3))
    steps = list(SAMPLERS[name](spy, noise.initial(), sigmas, noise))
    assert len(asked) == forwards
    assert set(asked) == set(sigmas[:-1].tolist())
    assert set(sigma_to_t(spec, torch.tensor(asked)).tolist()) == set(sigma_to_t(spec, sigmas[:-1]).tolist())
    assert [step.i for step in steps] == list(range(8))
    assert [step.sigma for step in steps] == sigmas[1:].tolist()
    assert all(step.x.dtype == step.x0.dtype == torch.float32 for step in steps)
    if name != "pndm":  # its multistep formula doesn't end on a prediction
        assert steps[-1].sigma == 0.0
    if name in ("euler", "euler_ancestral", "ddim", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc"):
        assert torch.equal(steps[-1].x, steps[-1].x0)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_the_input_is_left_alone(name: str) -> None:
    noise = ImageNoise((1,), (2, 3, 3))
    x = noise.initial()
    sigmas = GRIDS["karras"](ScheduleSpec(), 4)
    kept_x, kept_sigmas = x.clone(), sigmas.clone()
    list(SAMPLERS[name](gaussian, x, sigmas, noise))
    assert torch.equal(x, kept_x)
    assert torch.equal(sigmas, kept_sigmas)


@pytest.mark.parametrize("name", list(SAMPLERS))
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_legacy_endings_that_repeat_a_level_are_finite(name: str, steps: int) -> None:
    """With steps_offset 0 the leading grid's last start and its legacy ending are both the noise of timestep 0."""
    sigmas = GRIDS["leading"](ScheduleSpec(steps_offset=0), steps, ending="legacy")
    noise = ImageNoise((1,), (2, 3, 3))
    *_, last = SAMPLERS[name](gaussian, noise.initial(), sigmas, noise)
    assert torch.isfinite(last.x).all()
    assert last.sigma > 0


@pytest.mark.parametrize(
    "sigmas", [[1.0], [1.0, 2.0, 0.0], [1.0, 1.0, 0.5, 0.0], [0.0, 0.0], [math.inf, 0.0], [math.nan, 0.0], [1.0, -1.0]]
)
def test_impossible_sigmas(sigmas: list[float]) -> None:
    with pytest.raises(UserError, match="sigmas"):
        next(euler(gaussian, torch.zeros(1, 1, 2, 2), torch.tensor(sigmas), no_noise))


def test_half_precision_state_is_refused() -> None:
    with pytest.raises(UserError, match="bfloat16"):
        next(heun(gaussian, torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16), torch.tensor([1.0, 0.0]), no_noise))


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_eta_out_of_range(eta: float) -> None:
    with pytest.raises(UserError, match="eta"):
        next(ddim(gaussian, torch.zeros(1, 1, 2, 2), torch.tensor([1.0, 0.0]), no_noise, eta=eta))


def test_lms_order_out_of_range() -> None:
    with pytest.raises(UserError, match="order 5"):
        next(lms(gaussian, torch.zeros(1, 1, 2, 2), torch.tensor([1.0, 0.0]), no_noise, order=5))


def test_names_are_the_functions() -> None:
    assert {name: f.__name__ for name, f in SAMPLERS.items()} == {name: name for name in SAMPLERS}
    assert len(set(SAMPLERS.values())) == 9
    assert {euler, euler_ancestral, pndm} <= set(SAMPLERS.values())

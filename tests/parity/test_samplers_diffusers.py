"""Every sampler, step by step, against diffusers' scheduler of the same name; each with faults that must be seen.

Both sides get the same starting noise, the same step noises and the same non-linear fake network. Reasons for the
differences that remain are in docs/numerics.md; here each has a test that shows the reason to be the whole reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from kotoe import samplers as S
from kotoe.denoise import denoiser, from_eps, from_v, start
from kotoe.rng import ImageNoise
from kotoe.schedule import GRIDS, VARIANCE_EXPLODING, alphas_cumprod, sigma_to_t
from kotoe.spec import ScheduleSpec

# diffusers turns tensors into arrays in a way NumPy 2 announces the end of
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TOLERANCE = 2e-5  # relative to the largest magnitude of the state; float32 leaves about 1e-6
SEEDS = (3, 11)
SHAPE = (4, 6, 5)

EPS = ScheduleSpec(prediction_type="epsilon")
V = ScheduleSpec(prediction_type="v_prediction")
ZERO = ScheduleSpec(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
SPECS = {"eps": EPS, "v": V, "zero_snr_v": ZERO}


def network(x: Tensor, t: Tensor) -> Tensor:
    """Stands in for a UNet: smooth, non-linear in x, mixing neighbours, and different at every timestep."""
    t = torch.as_tensor(t, dtype=torch.float64).reshape(-1, 1, 1, 1)
    mixed = x.double() + 0.3 * x.double().roll(1, dims=-1)
    return (0.7 * torch.tanh(1.2 * mixed + 0.4 * torch.sin(t / 90)) + 0.2 * torch.cos(t / 140)).float()


def oracle(name: str, spec: ScheduleSpec, spacing: str, **changes: Any) -> Any:
    """diffusers' scheduler for a Kotoe sampler, spec and grid."""
    config: dict[str, Any] = {
        "num_train_timesteps": spec.num_train_timesteps,
        "beta_start": spec.beta_start,
        "beta_end": spec.beta_end,
        "beta_schedule": spec.beta_schedule,
        "prediction_type": spec.prediction_type,
        "steps_offset": spec.steps_offset,
        "timestep_spacing": "linspace" if spacing == "karras" else spacing,
    }
    if spacing == "karras":
        config["use_karras_sigmas"] = True
    if spec.rescale_betas_zero_snr:
        config["rescale_betas_zero_snr"] = True
    if name == "ddim":
        config |= {"clip_sample": False, "set_alpha_to_one": True}
    if name == "pndm":
        config |= {"skip_prk_steps": True, "set_alpha_to_one": True}
    if name == "dpmpp_2m_sde":
        config["algorithm_type"] = "sde-dpmsolver++"
    kind = {
        "euler": diffusers.EulerDiscreteScheduler,
        "euler_ancestral": diffusers.EulerAncestralDiscreteScheduler,
        "heun": diffusers.HeunDiscreteScheduler,
        "lms": diffusers.LMSDiscreteScheduler,
        "ddim": diffusers.DDIMScheduler,
        "pndm": diffusers.PNDMScheduler,
        "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
        "dpmpp_2m_sde": diffusers.DPMSolverMultistepScheduler,
        "unipc": diffusers.UniPCMultistepScheduler,
    }[name]
    return kind(**config | changes)


def theirs(name: str, scheduler: Any, steps: int, *, eta: float = 0.0, told: list[float] | None = None) -> list[Tensor]:
    """The state after each step in sigma space, x0 + sigma * eps, from diffusers' own loop and generators."""
    scheduler.set_timesteps(steps)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]

    def draw() -> Tensor:
        return torch.cat([torch.randn((1, *SHAPE), generator=g) for g in generators])

    x = draw() * scheduler.init_noise_sigma
    states = []
    for i, t in enumerate(scheduler.timesteps):
        out = network(scheduler.scale_model_input(x, t), t if told is None else torch.tensor(told[i]))
        extra: dict[str, Any] = {}
        if name == "euler_ancestral":
            extra["generator"] = generators
        elif name == "ddim":
            extra |= {"eta": eta, "variance_noise": draw()}
        elif name == "dpmpp_2m_sde":
            extra["variance_noise"] = draw()
        x = scheduler.step(out, t, x, **extra).prev_sample
        states.append(x)
    if name == "heun":  # predictor and corrector alternate; the last step has no corrector
        states = states[1::2] + states[-1:]
    elif name == "pndm" and steps > 1:  # the first forward's state is redone by the second
        states = states[1:]
    return states


def ours(
    name: str,
    spec: ScheduleSpec,
    sigmas: Tensor,
    grid: str,
    *,
    model: Any = network,
    run: Any = None,
    shift: int = 0,
    **kw: Any,
) -> list[Tensor]:
    """The same from Kotoe. `model`, `run` and `shift` (of the noise's numbers) are where faults go in."""
    noise = ImageNoise(SEEDS, SHAPE)
    x, sigmas = start(noise.initial(), sigmas, sampler=name, grid=grid)
    run = run or S.SAMPLERS[name]
    return [step.x for step in run(denoiser(model, spec), x, sigmas, lambda i: noise(i + shift), **kw)]


def to_sigma_space(name: str, states: list[Tensor], sigmas: Tensor) -> list[Tensor]:
    if name in VARIANCE_EXPLODING:
        return states
    return [x * (1 + s**2).sqrt() for x, s in zip(states, sigmas[1:])]


def error(a: list[Tensor], b: list[Tensor]) -> float:
    assert len(a) == len(b)
    return max(float((p - q).abs().max() / q.abs().max()) for p, q in zip(a, b))


def assert_parity(
    mine: Callable[..., list[Tensor]],
    reference: list[Tensor],
    faults: dict[str, dict[str, Any]],
    tolerance: float = TOLERANCE,
) -> None:
    """Parity of mine() with the reference, and its absence, clearly, for mine(**fault)."""
    assert faults, "a parity test without a fault can't fail"
    assert all(torch.isfinite(x).all() for x in reference)
    found = error(mine(), reference)
    assert found <= tolerance, f"relative error {found:.2e}"
    for what, fault in faults.items():
        found = error(mine(**fault), reference)
        assert found > 5 * tolerance, f"the fault {what!r} passes with {found:.2e}"


def late(x: Tensor, t: Tensor) -> Tensor:
    return network(x, t + 3)


def third_order(*args: Any) -> Iterator[S.Step]:
    return S.lms(*args, order=3)


TOLD_LATE = {"timestep off by 3": {"model": late}}
FAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "euler": {"stochastic": {"run": S.euler_ancestral}},
    "euler_ancestral": {"noise of the next step": {"shift": 1}, "no noise": {"run": S.euler}},
    "heun": {"no corrector": {"run": S.euler}},
    "lms": {"third order": {"run": third_order}},
    "ddim": {"second order": {"run": S.dpmpp_2m}},
    "pndm": {"coefficients for the real spacing": {"run": S.lms}},
    "dpmpp_2m": {"first order": {"run": S.euler}, "corrected": {"run": S.unipc}},
    "dpmpp_2m_sde": {"noise of the next step": {"shift": 1}, "first order": {"run": S.euler_ancestral}},
    "unipc": {"no corrector": {"run": S.dpmpp_2m}},
}
# Where Kotoe's grid and the scheduler's are the same by definition (see docs/numerics.md for the rest).
SAME_GRID = {
    "euler": ("linspace", "leading", "trailing", "karras"),
    "euler_ancestral": ("linspace", "leading", "trailing"),
    "heun": ("linspace", "leading", "trailing", "karras"),
    "lms": ("linspace", "leading", "trailing", "karras"),
    "ddim": ("leading", "trailing"),
    "pndm": ("leading", "trailing"),
    "dpmpp_2m": ("trailing", "karras"),
    "dpmpp_2m_sde": ("trailing", "karras"),
    "unipc": ("trailing", "karras"),
}
CASES = [
    (name, kind, grid)
    for name, grids in SAME_GRID.items()
    for kind in ("eps", "v")
    for grid in grids
    if (name, kind) != ("pndm", "v")
]  # its own test below
NO_RESCALE = ("heun", "lms", "pndm")  # schedulers without rescale_betas_zero_snr
ROUNDED = ("dpmpp_2m", "dpmpp_2m_sde", "unipc")  # tell the network a rounded timestep on the karras grid


@pytest.mark.parametrize(("name", "kind", "grid"), CASES)
def test_step_by_step_on_our_grid(name: str, kind: str, grid: str) -> None:
    spec, steps = SPECS[kind], 10
    sigmas = GRIDS[grid](spec, steps)
    told = sigma_to_t(spec, sigmas[:-1]).tolist() if grid == "karras" and name in ROUNDED else None
    reference = to_sigma_space(name, theirs(name, oracle(name, spec, grid), steps, told=told), sigmas)
    assert_parity(lambda **fault: ours(name, spec, sigmas, grid, **fault), reference, FAULTS[name] | TOLD_LATE)


@pytest.mark.parametrize("kind", ["eps", "v"])
@pytest.mark.parametrize("grid", ["linspace", "leading"])
@pytest.mark.parametrize("name", ROUNDED)
def test_step_by_step_on_their_grid(name: str, grid: str, kind: str) -> None:
    """diffusers' DPM and UniPC cut linspace and leading for steps + 1 and drop the last: other sigmas, same sampler."""
    spec, steps = SPECS[kind], 12
    scheduler = oracle(name, spec, grid)
    reference = theirs(name, scheduler, steps)
    sigmas = scheduler.sigmas
    assert not torch.allclose(sigmas, GRIDS[grid](spec, steps), rtol=1e-2)
    reference = to_sigma_space(name, reference, sigmas)
    assert_parity(lambda **fault: ours(name, spec, sigmas, grid, **fault), reference, FAULTS[name] | TOLD_LATE)


@pytest.mark.parametrize("name", [n for n in S.SAMPLERS if n not in (*NO_RESCALE, "ddim")])
def test_zero_terminal_snr(name: str) -> None:
    sigmas = GRIDS["trailing"](ZERO, 10)
    assert float(sigmas[0]) == pytest.approx(4096, rel=1e-6)
    reference = to_sigma_space(name, theirs(name, oracle(name, ZERO, "trailing"), 10), sigmas)

    def mine(**fault: Any) -> list[Tensor]:
        return ours(name, ZERO, sigmas, "trailing", **fault)

    # diffusers' Euler subtracts numbers near 4096 in float32 and keeps five digits
    assert_parity(mine, reference, FAULTS[name] | TOLD_LATE, tolerance=1e-4)


def test_zero_terminal_snr_ddim_differs_by_the_clamp_alone() -> None:
    """diffusers' DDIM has abar = 0 there, we (and its Euler) 2**-24, a share of 2.4e-4 of the noise in the first x0."""
    sigmas = GRIDS["trailing"](ZERO, 10)
    exact, clamped = oracle("ddim", ZERO, "trailing"), oracle("ddim", ZERO, "trailing")
    assert float(exact.alphas_cumprod[-1]) == 0
    clamped.alphas_cumprod[-1] = 2.0**-24

    def mine(**fault: Any) -> list[Tensor]:
        return ours("ddim", ZERO, sigmas, "trailing", **fault)

    assert_parity(mine, to_sigma_space("ddim", theirs("ddim", clamped, 10), sigmas), FAULTS["ddim"] | TOLD_LATE)
    reference = to_sigma_space("ddim", theirs("ddim", exact, 10), sigmas)
    assert TOLERANCE < error(mine(), reference) < 1e-3


@pytest.mark.parametrize("kind", ["eps", "v", "zero_snr_v"])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ddim_with_noise(eta: float, kind: str) -> None:
    spec = SPECS[kind]
    sigmas = GRIDS["trailing"](spec, 10)
    scheduler = oracle("ddim", spec, "trailing")
    if spec.rescale_betas_zero_snr:
        scheduler.alphas_cumprod[-1] = 2.0**-24
    reference = to_sigma_space("ddim", theirs("ddim", scheduler, 10, eta=eta), sigmas)
    faults = TOLD_LATE | {"noise of the next step": {"shift": 1}, "other eta": {"eta": eta - 0.05}}
    assert_parity(lambda **fault: ours("ddim", spec, sigmas, "trailing", **{"eta": eta} | fault), reference, faults)


def test_pndm_of_a_v_network() -> None:
    """diffusers averages the raw v of several timesteps and turns the mean into eps at the current one; we average eps.

    Shown by giving diffusers the eps that belong to the same v.
    """
    sigmas = GRIDS["trailing"](V, 10)
    scheduler = oracle("pndm", V, "trailing")
    raw = to_sigma_space("pndm", theirs("pndm", scheduler, 10), sigmas)
    abar = alphas_cumprod(V)

    def eps_of_v(x: Tensor, t: Tensor) -> Tensor:
        a = abar[t.round().long().reshape(-1)].reshape(-1, 1, 1, 1).sqrt().float()
        return a * network(x, t) + (1 - a**2).sqrt() * x

    def mine(**fault: Any) -> list[Tensor]:
        return ours("pndm", V, sigmas, "trailing", **fault)

    noise = ImageNoise(SEEDS, SHAPE)
    x, _ = start(noise.initial(), sigmas, sampler="pndm", grid="trailing")
    reference = [s.x for s in S.pndm(from_eps(eps_of_v, EPS), x, sigmas, noise)]
    on_eps = oracle("pndm", EPS, "trailing")
    diffusers_on_eps = to_sigma_space("pndm", _with(eps_of_v, on_eps, 10), sigmas)
    assert_parity(mine, diffusers_on_eps, FAULTS["pndm"] | TOLD_LATE)
    assert error(mine(), reference) < 1e-5
    assert error(mine()[:1], raw[:1]) > TOLERANCE  # the mean of two v is where the ways part


def _with(model: Any, scheduler: Any, steps: int) -> list[Tensor]:
    """theirs() of pndm with another network."""
    scheduler.set_timesteps(steps)
    x = ImageNoise(SEEDS, SHAPE).initial()
    states = []
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t), t, x).prev_sample
        states.append(x)
    return states[1:]


@pytest.mark.parametrize("name", ["ddim", "pndm"])
def test_t5_legacy_ending_is_set_alpha_to_one_false(name: str) -> None:
    sigmas = GRIDS["leading"](EPS, 10, ending="legacy")
    reference = theirs(name, oracle(name, EPS, "leading", set_alpha_to_one=False), 10)
    reference = to_sigma_space(name, reference, sigmas)
    zero = GRIDS["leading"](EPS, 10)
    assert float(sigmas[-1]) > 0 == float(zero[-1])

    def mine(grid: Tensor = sigmas, **fault: Any) -> list[Tensor]:
        return ours(name, EPS, grid, "leading", **fault)

    assert_parity(mine, reference, {"ends in 0": {"grid": zero}} | TOLD_LATE)


@pytest.mark.parametrize("name", ["ddim", "pndm"])
def test_ddim_and_pndm_step_off_their_own_linspace_grid(name: str) -> None:
    """They step to t - T // steps and call the network at the next grid timestep, elsewhere unless the two agree.

    They agree when every timestep is used; then, and only then, linspace gives the same pictures.
    """
    short = replace(EPS, num_train_timesteps=12, beta_start=0.01, beta_end=0.2, steps_offset=0)
    sigmas = GRIDS["linspace"](short, 12)
    reference = to_sigma_space(name, theirs(name, oracle(name, short, "linspace"), 12), sigmas)
    assert_parity(lambda **f: ours(name, short, sigmas, "linspace", **f), reference, FAULTS[name] | TOLD_LATE)
    sigmas = GRIDS["linspace"](short, 5)
    apart = to_sigma_space(name, theirs(name, oracle(name, short, "linspace"), 5), sigmas)
    assert error(ours(name, short, sigmas, "linspace"), apart) > 100 * TOLERANCE


@pytest.mark.parametrize("name", list(S.SAMPLERS))
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps(name: str, steps: int) -> None:
    """Start-up and ending rules meet here. 1000 isn't a multiple of 3, where ddim and pndm step off the grid."""
    spec = EPS if steps != 3 else replace(EPS, num_train_timesteps=999)
    sigmas = GRIDS["trailing"](spec, steps)
    reference = to_sigma_space(name, theirs(name, oracle(name, spec, "trailing"), steps), sigmas)
    assert_parity(lambda **fault: ours(name, spec, sigmas, "trailing", **fault), reference, TOLD_LATE)


@pytest.mark.parametrize("name", ["euler", "euler_ancestral", "heun", "lms", "ddim"])
def test_x0_of_a_step(name: str) -> None:
    """Step.x0 is diffusers' pred_original_sample (of a pair's first forward for heun)."""
    sigmas = GRIDS["trailing"](V, 6)
    scheduler = oracle(name, V, "trailing")
    scheduler.set_timesteps(6)
    noise = ImageNoise(SEEDS, SHAPE)
    x = noise.initial() * scheduler.init_noise_sigma
    t = scheduler.timesteps[0]
    reference = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x).pred_original_sample

    def mine(wrap: Any = from_v) -> list[Tensor]:
        x, _ = start(noise.initial(), sigmas, sampler=name, grid="trailing")
        return [next(iter(S.SAMPLERS[name](wrap(network, V), x, sigmas, noise))).x0]

    assert_parity(mine, [reference], {"taken for eps": {"wrap": from_eps}})


@pytest.mark.parametrize("kind", ["eps", "v", "zero_snr_v"])
@pytest.mark.parametrize("grid", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("name", ["euler", "heun", "ddim", "unipc"])
def test_starting_noise(name: str, grid: str, kind: str) -> None:
    """initial_scale is diffusers' init_noise_sigma, taken to sigma space where it speaks of unit variance."""
    spec = SPECS[kind]
    if spec.rescale_betas_zero_snr and name in NO_RESCALE:
        spec = V
    sigmas = GRIDS[grid](spec, 10)
    scheduler = oracle(name, spec, grid)
    scheduler.set_timesteps(10)
    unit = torch.ones(1, *SHAPE)
    expected = float(scheduler.init_noise_sigma)
    if name not in VARIANCE_EXPLODING:
        expected *= float((1 + sigmas[0] ** 2).sqrt())
    x, _ = start(unit, sigmas, sampler=name, grid=grid)
    assert float(x.mean()) == pytest.approx(expected, rel=2e-5)
    other = "leading" if grid != "leading" else "trailing"
    if name in VARIANCE_EXPLODING and spec is not ZERO:
        wrong, _ = start(unit, sigmas, sampler=name, grid=other)
        assert float(wrong.mean()) != pytest.approx(expected, rel=2e-5)

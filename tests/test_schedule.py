"""Schedules and grids: against closed forms, diffusers' tables, and the promises every sampler relies on."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kotoe.errors import UserError
from kotoe.schedule import (
    GRIDS,
    alphas_cumprod,
    initial_scale,
    input_scale,
    karras,
    leading,
    linspace,
    sigma_to_t,
    sigmas_of,
    t_to_sigma,
    tail,
    told_timesteps,
    trailing,
    walk,
)
from kotoe.spec import ScheduleSpec

SD = ScheduleSpec()
ZERO = replace(SD, rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing")
LINEAR = replace(SD, beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
SPECS = {"sd": SD, "zero_snr": ZERO, "linear": LINEAR}
OF_DIFFUSERS = ("linspace", "leading", "trailing", "karras")

# diffusers turns tensors into arrays in a way NumPy 2 announces the end of
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def oracle(spec: ScheduleSpec, **changes: Any) -> Any:
    return diffusers.EulerDiscreteScheduler(
        num_train_timesteps=spec.num_train_timesteps,
        beta_start=spec.beta_start,
        beta_end=spec.beta_end,
        beta_schedule=spec.beta_schedule,
        rescale_betas_zero_snr=spec.rescale_betas_zero_snr,
        steps_offset=spec.steps_offset,
        **changes,
    )


@pytest.mark.parametrize("name", SPECS)
def test_table_is_diffusers(name: str) -> None:
    spec = SPECS[name]
    ours, theirs = alphas_cumprod(spec), oracle(spec).alphas_cumprod.double()
    assert ours.dtype == torch.float64
    # float32 products of a thousand factors; near zero terminal SNR theirs is a difference of such products
    assert torch.allclose(ours.sqrt(), theirs.sqrt(), rtol=1e-5, atol=1e-7)
    for other in SPECS.values():
        if other is not spec:
            assert not torch.allclose(alphas_cumprod(other).sqrt(), theirs.sqrt(), rtol=1e-5, atol=1e-7)


def test_zero_terminal_snr_keeps_the_start_and_ends_at_the_clamp() -> None:
    plain, zero = alphas_cumprod(SD), alphas_cumprod(ZERO)
    assert float(zero[0]) == pytest.approx(float(plain[0]), rel=1e-12)
    assert float(zero[-1]) == 2.0**-24
    assert float(sigmas_of(ZERO)[-1]) == pytest.approx(4096, rel=1e-7)
    assert float(sigmas_of(SD)[-1]) == pytest.approx(14.6146, abs=1e-4)
    assert bool((zero.diff() < 0).all())


def test_tables_are_the_callers_own() -> None:
    alphas_cumprod(SD).zero_()
    sigmas_of(SD).zero_()
    assert float(alphas_cumprod(SD)[0]) > 0.99
    assert float(sigmas_of(SD)[0]) > 0.02


@pytest.mark.parametrize("name", SPECS)
def test_every_training_timestep_survives_float32_sigmas(name: str) -> None:
    """A network is told the whole timestep it was trained with, bit for bit."""
    spec = SPECS[name]
    t = torch.arange(spec.num_train_timesteps)
    sigma = t_to_sigma(spec, t)
    assert sigma.dtype == torch.float32
    assert torch.equal(sigma, sigmas_of(spec).float())
    assert torch.equal(sigma_to_t(spec, sigma), t.float())


@given(st.floats(0, 999), st.sampled_from(sorted(SPECS)))
def test_t_and_sigma_invert_each_other(t: float, name: str) -> None:
    spec = SPECS[name]
    back = sigma_to_t(spec, t_to_sigma(spec, torch.tensor([[t]], dtype=torch.float64)))
    assert back.shape == (1, 1)
    assert float(back) == pytest.approx(t, abs=2e-3)


def test_sigma_to_t_is_diffusers() -> None:
    scheduler = oracle(SD)
    table = np.log(sigmas_of(SD).numpy())
    for sigma in (0.001, 0.0292, 0.1, 1.0, 3.3, 14.0, 14.6, 20.0):
        theirs = float(scheduler._sigma_to_t(np.array(sigma), table))
        assert float(sigma_to_t(SD, torch.tensor([sigma]))) == pytest.approx(theirs, abs=2e-3)


def test_sigmas_outside_training_get_the_ends() -> None:
    assert sigma_to_t(SD, torch.tensor([0.0, 1e-6, 100.0])).tolist() == [0.0, 0.0, 999.0]


@pytest.mark.parametrize("t", [-1.0, 999.5, math.nan])
def test_timesteps_outside_training_are_refused(t: float) -> None:
    with pytest.raises(UserError, match="0 to 999"):
        t_to_sigma(SD, torch.tensor([t]))


# Grids


@given(
    st.sampled_from(sorted(GRIDS)),
    st.sampled_from(sorted(SPECS)),
    st.integers(1, 999),
    st.sampled_from(["zero", "legacy"]),
)
def test_t4_a_grid_has_as_many_steps_as_asked_for(grid: str, name: str, steps: int, ending: str) -> None:
    spec = SPECS[name]
    if grid == "kerascv_0_8_1" and steps > 1 and (n := len(range(1, 1000, 1000 // steps))) != steps:
        with pytest.raises(UserError, match=f"{steps} steps on the kerascv_0_8_1 grid would be {n}"):
            GRIDS[grid](spec, steps, ending=ending)
        return
    sigmas = GRIDS[grid](spec, steps, ending=ending)
    assert len(sigmas) - 1 == steps
    assert sigmas.dtype == torch.float32
    assert bool((sigmas[:-1].diff() < 0).all())  # every step goes down
    assert float(sigmas[-2]) >= float(sigmas[-1])
    assert torch.isfinite(sigmas).all()
    table = sigmas_of(spec).float()
    assert float(table[0]) * (1 - 1e-6) <= float(sigmas[-2]) <= float(sigmas[0]) <= float(table[-1]) * (1 + 1e-6)


@pytest.mark.parametrize("grid", GRIDS)
def test_t5_the_ending_is_explicit(grid: str) -> None:
    assert float(GRIDS[grid](SD, 10)[-1]) == 0.0
    legacy = GRIDS[grid](SD, 10, ending="legacy")
    assert float(legacy[-1]) == pytest.approx(float(sigmas_of(SD)[0]), rel=1e-7)
    assert torch.equal(legacy[:-1], GRIDS[grid](SD, 10)[:-1])
    with pytest.raises(UserError, match="Did you mean 'legacy'"):
        GRIDS[grid](SD, 10, ending="legasy")


@pytest.mark.parametrize("grid", GRIDS)
def test_one_step_starts_at_full_noise(grid: str) -> None:
    assert GRIDS[grid](SD, 1).tolist() == pytest.approx([float(sigmas_of(SD)[-1]), 0.0], rel=1e-6)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("steps", [-1, 0, 1001])
def test_impossible_step_counts(grid: str, steps: int) -> None:
    with pytest.raises(UserError, match=f"{steps} steps. Allowed: 1 to 1000"):
        GRIDS[grid](SD, steps)


def test_solvers_grids_have_one_point_more() -> None:
    """linspace and leading of dpmpp_2m, dpmpp_2m_sde and unipc: cut for steps + 1, the last left out."""
    for grid in ("linspace", "leading"):
        found = walk(SD, 12, sampler="dpmpp_2m", grid=grid).sigmas
        assert len(found) == 13
        longer = GRIDS[grid](replace(SD, steps_offset=1), 13)[:12]
        assert torch.allclose(found[:-1], longer, rtol=1e-2)  # but for whole timesteps
        assert not torch.allclose(found[:-1], GRIDS[grid](SD, 12)[:-1], rtol=1e-2)
        with pytest.raises(UserError, match="1000 steps of unipc .* one step more"):
            walk(SD, 1000, sampler="unipc", grid=grid)
    with pytest.raises(UserError, match="unknown grid 'linspcae'.*Did you mean 'linspace'"):
        walk(SD, 4, sampler="ddim", grid="linspcae")


@given(
    st.sampled_from(["ddim", "pndm", "lms", "euler", "unipc"]),
    st.sampled_from(sorted(GRIDS.keys() - {"kerascv_0_8_1"})),  # which refuses most numbers of steps
    st.integers(1, 400),
    st.floats(0.0, 1.0),
)
def test_t4_a_walk_has_the_steps_that_a_strength_leaves(sampler: str, grid: str, steps: int, strength: float) -> None:
    kept = int(steps * strength + 1e-6)
    if kept == 0:
        with pytest.raises(UserError, match="leaves no step"):
            walk(SD, steps, sampler=sampler, grid=grid, strength=strength)
        return
    found = walk(SD, steps, sampler=sampler, grid=grid, strength=strength)
    assert len(found.sigmas) - 1 == kept
    assert len(found.before) == steps - kept
    extra = sampler == "pndm" and steps > 1 and grid != "karras"
    assert len(found.forwards) in (0, kept + extra)
    assert bool((found.asked.diff() < 0).all())
    assert float(found.asked[0]) == found.first
    told = told_timesteps(SD, found.asked, sampler=sampler, grid=grid)
    assert float(told.max()) <= 999
    assert float(told.min()) >= 0


def test_as_many_steps_as_timesteps() -> None:
    for grid in (linspace, trailing):
        assert torch.equal(grid(SD, 1000)[:-1], sigmas_of(SD).float().flip(0))
    assert torch.equal(leading(replace(SD, steps_offset=0), 1000)[:-1], sigmas_of(SD).float().flip(0))
    with pytest.raises(UserError, match="start at timestep 1000"):  # offset 1 would leave the table
        leading(SD, 1000)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("steps", [3, 7, 20, 30, 50])
@pytest.mark.parametrize("grid", OF_DIFFUSERS)
def test_grids_are_those_of_diffusers_euler(grid: str, steps: int, name: str) -> None:
    """Between two timesteps, where only linspace goes, diffusers is linear in sigma and we are in log sigma."""
    spec = SPECS[name]
    spacing = "linspace" if grid == "karras" else grid
    scheduler = oracle(spec, timestep_spacing=spacing, use_karras_sigmas=grid == "karras")
    scheduler.set_timesteps(steps)

    def difference(sigmas: torch.Tensor) -> float:
        return float((sigmas / scheduler.sigmas)[:-1].sub(1).abs().max())

    ours = GRIDS[grid](spec, steps)
    assert difference(ours) < (1e-3 if grid == "linspace" else 1e-4)
    assert ours[-1] == scheduler.sigmas[-1] == 0
    assert float((sigma_to_t(spec, ours[:-1]) - scheduler.timesteps).abs().max()) < 0.01
    for other in OF_DIFFUSERS:
        assert other == grid or difference(GRIDS[other](spec, steps)) > 5e-3


def test_whole_timesteps_where_the_grid_has_them() -> None:
    told = sigma_to_t(SD, leading(SD, 20)[:-1])
    assert told.tolist() == [float(i * 50 + 1) for i in range(19, -1, -1)]
    told = sigma_to_t(SD, trailing(SD, 8)[:-1])
    assert told.tolist() == [999.0, 874.0, 749.0, 624.0, 499.0, 374.0, 249.0, 124.0]  # 875 - 1: halves go to even


@pytest.mark.parametrize("steps", [2, 4, 25, 30, 50, 1000])
def test_kerascv_grid(steps: int) -> None:
    """Since KerasCV 0.8.2: round(arange(n) * 999 / (n - 1))."""
    told = sigma_to_t(SD, GRIDS["kerascv"](SD, steps)[:-1]).tolist()
    assert told == (np.arange(steps) * (999 / (steps - 1))).round()[::-1].tolist()
    if steps in (4, 1000):  # where 999 / (n - 1) is whole
        assert told == sigma_to_t(SD, linspace(SD, steps)[:-1]).tolist()
    else:
        assert steps == 2 or told != sigma_to_t(SD, linspace(SD, steps)[:-1]).tolist()


@pytest.mark.parametrize("steps", [2, 4, 20, 25, 50, 999])
def test_kerascv_0_8_1_grid(steps: int) -> None:
    """Up to KerasCV 0.8.1: arange(1, 1000, 1000 // n); where that has n values they are the leading grid's."""
    told = sigma_to_t(SD, GRIDS["kerascv_0_8_1"](SD, steps)[:-1]).tolist()
    assert told == np.arange(1, 1000, 1000 // steps)[::-1].tolist()
    assert torch.equal(GRIDS["kerascv_0_8_1"](SD, steps), leading(SD, steps))


@pytest.mark.parametrize(("steps", "real", "near"), [(30, 31, "27 or 37"), (60, 63, "50 or 100"), (1000, 999, "999")])
def test_kerascv_0_8_1_would_run_another_number_of_steps(steps: int, real: int, near: str) -> None:
    with pytest.raises(UserError, match=rf"{steps} steps on the kerascv_0_8_1 grid would be {real}\. Allowed: {near}"):
        GRIDS["kerascv_0_8_1"](SD, steps)


def test_karras_is_even_in_the_seventh_root() -> None:
    roots = karras(SD, 12)[:-1].double() ** (1 / 7)
    assert torch.allclose(roots.diff(), roots.diff()[:1].expand(11), rtol=1e-4)
    assert float(karras(SD, 12)[-2]) == pytest.approx(float(sigmas_of(SD)[0]), rel=1e-6)


# Starting points


@pytest.mark.parametrize(
    ("sampler", "grid", "unit"),
    [
        ("ddim", "trailing", True),
        ("pndm", "linspace", True),
        ("dpmpp_2m", "karras", True),
        ("unipc", "leading", True),
        ("euler", "leading", True),
        ("euler", "trailing", False),
        ("euler_ancestral", "linspace", False),
        ("heun", "karras", False),
        ("lms", "trailing", False),
        ("ddim", "kerascv", True),
        ("euler", "kerascv", True),
    ],
)
def test_initial_scale(sampler: str, grid: str, unit: bool) -> None:
    assert initial_scale(3.0, sampler=sampler, grid=grid) == pytest.approx(math.sqrt(10) if unit else 3.0)


def test_input_scale_gives_unit_variance() -> None:
    sigma = torch.tensor([0.0, 1.0, 4096.0])
    assert torch.allclose(input_scale(sigma) ** 2 * (1 + sigma**2), torch.ones(3))


@pytest.mark.parametrize(
    ("steps", "strength", "kept"),
    [(20, 1.0, 20), (20, 0.8, 16), (20, 0.05, 1), (100, 0.29, 29), (10, 0.7, 7), (3, 0.5, 1)],
)
def test_strength_keeps_the_end_of_the_grid(steps: int, strength: float, kept: int) -> None:
    sigmas = trailing(SD, steps)
    assert torch.equal(tail(sigmas, strength), sigmas[-kept - 1 :])


@pytest.mark.parametrize("strength", [0.0, 0.04])
def test_a_strength_that_leaves_no_step(strength: float) -> None:
    with pytest.raises(UserError, match=r"leaves no step. Allowed: 0.05 to 1.0"):
        tail(trailing(SD, 20), strength)


@pytest.mark.parametrize("strength", [-0.1, 1.1, math.nan])
def test_a_strength_out_of_range(strength: float) -> None:
    with pytest.raises(UserError, match="strength"):
        tail(trailing(SD, 20), strength)

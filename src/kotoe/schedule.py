"""Noise schedules and the grids that samplers walk, all in sigma: x = x0 + sigma * eps.

sigma = sqrt((1 - abar) / abar), abar being the cumulative product of alphas (Ho et al. 2020; Karras et al.
2022, table 1). Tables are float64 and indexed by the training timestep t = 0 .. T-1, noise growing with t.
Grids are float32, fall, and end in an explicit last sigma: 0.0, or by name that of timestep 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from kotoe.errors import UserError, unknown
from kotoe.spec import ScheduleSpec

TERMINAL_ABAR = 2.0**-24  # stands for zero terminal SNR, so that the last sigma is 4096 and not infinite
KARRAS_RHO = 7.0
ENDINGS = ("zero", "legacy")

# diffusers starts these from sigma * noise on the grids that reach the last timestep (see initial_scale).
VARIANCE_EXPLODING = ("euler", "euler_ancestral", "heun", "lms")
EXPLODING_GRIDS = ("linspace", "trailing", "karras")
# It cuts linspace and leading for one step more and drops that one, and tells whole timesteps on karras, for these.
SOLVERS = ("dpmpp_2m", "dpmpp_2m_sde", "unipc")
# These it steps by T // steps timesteps, wherever the grid's next one is (see walk); and they know two endings.
STRIDING = ("ddim", "pndm")

Forward = tuple[float, float, float]  # sigmas: the network is asked at, the step is taken from, and to


@lru_cache(maxsize=32)
def _abar(spec: ScheduleSpec) -> Tensor:
    steps, start, end = spec.num_train_timesteps, spec.beta_start, spec.beta_end
    if spec.beta_schedule == "linear":
        betas = torch.linspace(start, end, steps, dtype=torch.float64)
    else:  # scaled_linear: linear in sqrt(beta), what latent diffusion was trained with
        betas = torch.linspace(math.sqrt(start), math.sqrt(end), steps, dtype=torch.float64) ** 2
    abar = torch.cumprod(1.0 - betas, dim=0)
    if spec.rescale_betas_zero_snr:  # Lin et al. 2023, algorithm 1: sqrt(abar) shifted to end in 0
        root = abar.sqrt()
        abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        abar[-1] = TERMINAL_ABAR
    return abar


def alphas_cumprod(spec: ScheduleSpec) -> Tensor:
    """abar of every training timestep, float64 (T,), falling; ends in 2**-24 at zero terminal SNR."""
    return _abar(spec).clone()


def sigmas_of(spec: ScheduleSpec) -> Tensor:
    """sigma of every training timestep, float64 (T,), rising."""
    abar = _abar(spec)
    return ((1.0 - abar) / abar).sqrt()


@lru_cache(maxsize=32)
def _log_sigmas(spec: ScheduleSpec) -> Tensor:
    return sigmas_of(spec).log()


def t_to_sigma(spec: ScheduleSpec, t: Tensor) -> Tensor:
    """sigma of a possibly fractional timestep t in [0, T-1], float32 of t's shape; log-linear in between."""
    table = _log_sigmas(spec)
    t = t.detach().double().cpu()
    if t.numel() and not (0 <= float(t.min()) and float(t.max()) <= len(table) - 1):
        raise UserError(f"timestep {t.tolist()}", allowed=f"0 to {len(table) - 1}")
    return _between(table, t).exp().float()


def sigma_to_t(spec: ScheduleSpec, sigma: Tensor) -> Tensor:
    """The timestep in [0, T-1] a network should be told for sigma, float32 of its shape; inverts t_to_sigma.

    Sigmas beyond the table's ends get its ends: a network knows no timestep outside its training. A float32
    sigma misses the whole timestep it came from by up to 1e-4, so that near-whole values are made whole.
    """
    return _inverted(_log_sigmas(spec), sigma.detach().double().cpu().clamp(min=1e-10).log())


def _inverted(table: Tensor, value: Tensor) -> Tensor:
    high = torch.searchsorted(table, value.contiguous()).clamp(1, len(table) - 1)
    t = high - 1 + (value - table[high - 1]) / (table[high] - table[high - 1])
    t = t.clamp(0, len(table) - 1)
    whole = t.round()
    return torch.where((t - whole).abs() < 1e-3, whole, t).float()


def told_timesteps(spec: ScheduleSpec, sigmas: Tensor, *, sampler: str, grid: str) -> Tensor:
    """What diffusers tells the network at these sigmas of a grid, float32 of their shape.

    It is sigma_to_t but for linspace, where sigma is linear in t, and for dpmpp_2m, dpmpp_2m_sde and unipc on karras,
    where the timestep is rounded.
    """
    if grid == "linspace":
        return _inverted(sigmas_of(spec), sigmas.detach().double().cpu())
    t = sigma_to_t(spec, sigmas)
    return t.round() if grid == "karras" and sampler in SOLVERS else t


def input_scale(sigma: Tensor) -> Tensor:
    """1 / sqrt(1 + sigma**2): takes x at sigma to the variance-preserving scale of networks and diffusers."""
    return (1.0 + sigma**2).rsqrt()


# Grids: (spec, steps) -> float32 (steps + 1,), falling, sigmas to start each step from and then the ending.


def linspace(spec: ScheduleSpec, steps: int, *, ending: str = "zero") -> Tensor:
    """Evenly spaced (fractional) timesteps from T-1 down to 0, both included; a single step starts at T-1.

    Between two timesteps sigma itself is linear here, as in diffusers.
    """
    _check(spec, steps)
    return _ended(spec, _between(sigmas_of(spec), _even(spec, steps)).float(), ending)


def leading(spec: ScheduleSpec, steps: int, *, ending: str = "zero") -> Tensor:
    """Timesteps i * (T // steps) + offset, i = steps-1 .. 0: what SD 1.x configs ask for. Never reaches T-1.

    A single step starts at T-1: by the formula it would start at the offset, with no noise to take away.
    """
    _check(spec, steps)
    t = torch.tensor([spec.num_train_timesteps - 1]) if steps == 1 else _led(spec, steps, steps)
    return _ended(spec, t_to_sigma(spec, t), ending)


def trailing(spec: ScheduleSpec, steps: int, *, ending: str = "zero") -> Tensor:
    """Timesteps round(T - i * T / steps) - 1, i = 0 .. steps-1: from T-1, as zero terminal SNR needs it."""
    _check(spec, steps)
    return _ended(spec, t_to_sigma(spec, _trailed(spec, steps)), ending)


def karras(spec: ScheduleSpec, steps: int, *, ending: str = "zero") -> Tensor:
    """Even in sigma**(1/7) from the table's largest sigma to its smallest (Karras et al. 2022, eq. 5)."""
    _check(spec, steps)
    table = sigmas_of(spec)
    low, high = float(table[0]) ** (1 / KARRAS_RHO), float(table[-1]) ** (1 / KARRAS_RHO)
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    return _ended(spec, ((high + ramp * (low - high)) ** KARRAS_RHO).float(), ending)


def kerascv(spec: ScheduleSpec, steps: int, *, ending: str = "zero") -> Tensor:
    """Whole timesteps round(i * (T-1) / (steps-1)), i = steps-1 .. 0, halves to even: KerasCV's since 0.8.2.

    A single step starts at T-1; KerasCV would start it at timestep 0, with no noise to take away.
    """
    _check(spec, steps)
    last = spec.num_train_timesteps - 1
    if steps == 1:
        t = torch.tensor([last])
    else:
        t = (torch.arange(steps - 1, -1, -1, dtype=torch.float64) * (last / (steps - 1))).round()
    return _ended(spec, t_to_sigma(spec, t), ending)


def kerascv_0_8_1(spec: ScheduleSpec, steps: int, *, ending: str = "zero") -> Tensor:
    """Timesteps 1, 1 + T // steps, ... below T: KerasCV's up to 0.8.1.

    For most numbers of steps there are more such timesteps than steps: a UserError naming numbers that come out even.
    A single step starts at T-1; KerasCV would start it at timestep 1.
    """
    _check(spec, steps)
    total = spec.num_train_timesteps

    def count(n: int) -> int:
        return len(range(1, total, total // n))

    if steps == 1:
        return _ended(spec, t_to_sigma(spec, torch.tensor([total - 1])), ending)
    if count(steps) != steps:
        even = [n for n in range(1, total + 1) if n == 1 or count(n) == n]
        near = sorted({max(n for n in even if n < steps), min((n for n in even if n > steps), default=even[-1])})
        raise UserError(
            f"{steps} steps on the kerascv_0_8_1 grid would be {count(steps)}",
            allowed=" or ".join(map(str, near)),
            hint="The newer kerascv grid takes any number",
        )
    return _ended(spec, t_to_sigma(spec, torch.arange(1, total, total // steps).flip(0)), ending)


def _even(spec: ScheduleSpec, points: int) -> Tensor:
    last = spec.num_train_timesteps - 1
    if points == 1:
        return torch.tensor([last], dtype=torch.float64)
    return (torch.arange(points, dtype=torch.float64) * (last / (points - 1))).clamp(max=last).flip(0)


def _led(spec: ScheduleSpec, points: int, steps: int) -> Tensor:
    """The first `steps` of `points` timesteps, T // points apart."""
    stride, last = spec.num_train_timesteps // points, spec.num_train_timesteps - 1
    t = torch.arange(points - 1, points - 1 - steps, -1) * stride + spec.steps_offset
    if int(t[0]) > last or stride == 0:
        raise UserError(
            f"{steps} steps on the leading grid with offset {spec.steps_offset} start at timestep {int(t[0])}",
            allowed=f"different timesteps up to {last}",
            hint="Ask for fewer steps, or take the trailing grid",
        )
    return t


def _trailed(spec: ScheduleSpec, steps: int) -> Tensor:
    total = spec.num_train_timesteps
    return (total - torch.arange(steps, dtype=torch.float64) * (total / steps)).round() - 1


def _between(table: Tensor, t: Tensor) -> Tensor:
    low = t.floor().long().clamp(max=len(table) - 2)
    return torch.lerp(table[low], table[low + 1], t - low)


def _check(spec: ScheduleSpec, steps: int) -> None:
    if not 1 <= steps <= spec.num_train_timesteps:
        raise UserError(f"{steps} steps", allowed=f"1 to {spec.num_train_timesteps}, as in training")


def _ended(spec: ScheduleSpec, sigmas: Tensor, ending: str) -> Tensor:
    if ending not in ENDINGS:
        raise unknown("ending of a grid", ending, ENDINGS)
    # legacy: stop at the noise of timestep 0, as diffusers does when set_alpha_to_one is false
    last = sigmas.new_zeros(1) if ending == "zero" else sigmas_of(spec)[:1].to(sigmas)
    return torch.cat([sigmas, last])  # (steps + 1,)


def initial_scale(sigma: float, *, sampler: str, grid: str) -> float:
    """What unit noise is multiplied by to be the starting x of a grid whose first sigma is `sigma`.

    Unit noise at the network's input means sqrt(1 + sigma**2), and that is what diffusers does for ddim,
    pndm, dpmpp_2m, dpmpp_2m_sde and unipc on every grid, and for all samplers on the leading grid. For euler,
    euler_ancestral, heun and lms on linspace, trailing and karras it takes sigma itself. At SD's sigma of
    14.6 the two differ by 0.23 %, at zero terminal SNR by 3e-8. KerasCV's grids are not diffusers': unit noise.
    """
    exploding = sampler in VARIANCE_EXPLODING and grid in EXPLODING_GRIDS
    return sigma if exploding else math.sqrt(1.0 + sigma**2)


def tail(sigmas: Tensor, strength: float) -> Tensor:
    """The last int(steps * strength) steps of a grid (steps + 1,), for starting from a given picture.

    strength in (0, 1]: 1.0 is the whole grid. Raises UserError when no step would be left.
    """
    return sigmas[len(sigmas) - 1 - _kept(len(sigmas) - 1, strength) :]


def _kept(steps: int, strength: float) -> int:
    if not 0.0 <= strength <= 1.0:
        raise UserError(f"strength {strength}", allowed="above 0.0 up to 1.0")
    kept = int(steps * strength + 1e-6)  # 100 * 0.29 is 28.999999999999996
    if kept == 0:
        raise UserError(
            f"strength {strength} of {steps} steps leaves no step",
            allowed=f"{1 / steps:.3g} to 1.0",
            hint="Raise the strength or the number of steps",
        )
    return kept


GRIDS: dict[str, Callable[..., Tensor]] = {
    "linspace": linspace,
    "leading": leading,
    "trailing": trailing,
    "karras": karras,
    "kerascv": kerascv,
    "kerascv_0_8_1": kerascv_0_8_1,
}


# Walks: what a sampler does on a grid, which in diffusers depends on the sampler too


@dataclass(frozen=True, kw_only=True)
class Walk:
    """Where a sampler goes, step by step.

    sigmas:   (steps + 1,) float32, where each step starts and then the ending.
    forwards: for ddim and pndm on a grid of timesteps, what each call of the network is for; empty: from each sigma
              to the next.
    before:   sigmas of the grid's steps that are not run, largest first. lms weighs its first steps by them.
    """

    sigmas: Tensor
    forwards: tuple[Forward, ...] = ()
    before: tuple[float, ...] = ()

    @property
    def first(self) -> float:
        """The noise level that the walk starts at."""
        return self.forwards[0][0] if self.forwards else float(self.sigmas[0])

    @property
    def asked(self) -> Tensor:
        """Every sigma that a denoiser is asked at, float32, falling."""
        if not self.forwards:
            return self.sigmas[self.sigmas > 0]
        return torch.tensor(sorted({told for told, _, _ in self.forwards}, reverse=True))


def walk(
    spec: ScheduleSpec, steps: int, *, sampler: str, grid: str, ending: str = "zero", strength: float = 1.0
) -> Walk:
    """The walk of diffusers' scheduler for a sampler on a grid; with a strength below 1.0 the end of it, for img2img.

    diffusers' DDIM and PNDM step from timestep t to t - T // steps and then call the network at the grid's next
    timestep, which may be another one (on linspace; on trailing where steps doesn't divide T). What they have got is
    then taken for what that timestep has: the same numbers at unit variance under another sigma. At a strength below
    1.0 PNDM starts one timestep early and leaves one out, by the same exchange. lms takes the steps before the first
    one for done. dpmpp_2m, dpmpp_2m_sde and unipc have their own linspace and leading (see SOLVERS).
    """
    _check(spec, steps)
    if grid not in GRIDS:
        raise unknown("grid", grid, GRIDS)
    if sampler in SOLVERS and grid in ("linspace", "leading") and steps == spec.num_train_timesteps:
        raise UserError(
            f"{steps} steps of {sampler} on the {grid} grid, which it cuts for one step more",
            allowed=f"1 to {steps - 1}",
        )
    timesteps: Tensor | None = None
    if grid == "linspace" and sampler in (*SOLVERS, *STRIDING):
        timesteps = _even(spec, steps + (sampler in SOLVERS))[:steps].round()
    elif grid == "leading" and sampler in SOLVERS:
        timesteps = _led(spec, steps + 1, steps)
    if timesteps is None:
        sigmas = GRIDS[grid](spec, steps, ending=ending)
    else:
        sigmas = _ended(spec, t_to_sigma(spec, timesteps), ending)
    skipped = steps - _kept(steps, strength)
    forwards: tuple[Forward, ...] = ()
    if sampler in STRIDING and grid in ("linspace", "leading", "trailing"):
        whole = [int(t) for t in sigma_to_t(spec, sigmas[:-1]).tolist()]
        forwards = _strides(spec, whole, skipped, sampler, float(sigmas[-1]))
    return Walk(sigmas=sigmas[skipped:], forwards=forwards, before=tuple(sigmas[:skipped].tolist()))


def _strides(spec: ScheduleSpec, timesteps: list[int], skipped: int, sampler: str, last: float) -> tuple[Forward, ...]:
    table = sigmas_of(spec).float()
    stride = spec.num_train_timesteps // len(timesteps)

    def level(t: int) -> float:
        return float(table[t]) if t >= 0 else last

    calls = timesteps[skipped:]
    if sampler == "pndm" and len(timesteps) > 1:  # the second call repeats the first step: Heun's method
        calls = [*timesteps[:2], *timesteps[1:]][skipped:]
    found = [(level(t), level(t), level(t - stride)) for t in calls]
    if sampler == "pndm" and len(calls) > 1:
        found[1] = (level(calls[1]), level(calls[1] + stride), level(calls[1]))
    return tuple(found)

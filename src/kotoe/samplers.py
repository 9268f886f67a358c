"""Samplers: pure generators (denoiser, x, sigmas, noise) -> Steps.

No randomness, progress, guidance, device or dtype policy inside: stop iterating to cancel, look at Step.x0 to
preview, interleave as many as you like. Everything is in sigma, x = x0 + sigma * eps (B, C, H, W) in float32
(or float64); the probability-flow ODE is dx/dsigma = (x - x0) / sigma = eps (Karras et al. 2022, eq. 1).
Coefficients are Python floats (float64) and sigmas live on the CPU, so that nothing waits for an accelerator.

Denoisers are only ever asked at sigmas of the grid, never at 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kotoe.denoise import Denoiser
from kotoe.errors import UserError
from kotoe.schedule import Forward, Walk

Noise = Callable[[int], Tensor]  # step index -> unit-variance noise (B,C,H,W) f32


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step done: `x` (B, C, H, W) is where it arrived, at level `sigma`; `x0` the prediction it used."""

    i: int
    sigma: float
    x: Tensor
    x0: Tensor


def _levels(x: Tensor, sigmas: Tensor) -> list[float]:
    levels = [float(s) for s in sigmas.tolist()]
    falling = all(a > b for a, b in zip(levels, levels[1:-1]))
    # a legacy ending may repeat the level before it
    if len(levels) < 2 or not (falling and levels[0] < math.inf and 0 < levels[-2] >= levels[-1] >= 0):
        raise UserError(f"sigmas {levels}", allowed="two or more, finite, falling, above 0 but for the last")
    if x.dtype not in (torch.float32, torch.float64):
        raise UserError(f"sampler state of type {x.dtype}", allowed="float32, float64")
    return levels


def _ask(denoiser: Denoiser, x: Tensor, sigma: float) -> Tensor:
    return denoiser(x, torch.full((x.shape[0],), sigma, dtype=x.dtype))


def _relabelled(x: Tensor, was: float, now: float) -> Tensor:
    """x of level `was` taken for one of level `now`: the same numbers at unit variance."""
    return x if was == now else x * math.sqrt((1 + now**2) / (1 + was**2))


def euler(denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
    """First order, deterministic (Karras et al. 2022, algorithm 1 without churn): ddim with eta 0."""
    return ddim(denoiser, x, sigmas, noise, eta=0.0)


def euler_ancestral(denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
    """First order, all the noise of the reverse process put back after each step: ddim with eta 1."""
    return ddim(denoiser, x, sigmas, noise, eta=1.0)


def ddim(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    *,
    eta: float = 0.0,
    forwards: Sequence[Forward] = (),
) -> Iterator[Step]:
    """Song et al. 2021, eq. 12 and 16, in sigma. eta in [0, 1]: 0 deterministic, 1 the full noise of DDPM.

    Divided by sqrt(abar), the paper's variance is (eta * to / s)**2 * (s**2 - to**2): Euler's ancestral step.
    forwards: the steps of a Walk, instead of those between the sigmas.
    """
    if not 0.0 <= eta <= 1.0:
        raise UserError(f"eta {eta}", allowed="0.0 to 1.0")
    levels = _levels(x, sigmas)
    at = forwards[0][0] if forwards else levels[0]
    for i, (_, s, to) in enumerate(forwards or [(s, s, to) for s, to in zip(levels, levels[1:])]):
        x, at = _relabelled(x, at, s), to
        x0 = _ask(denoiser, x, s)
        fresh = eta**2 * (1 - (to / s) ** 2)  # share of the variance at `to` that is fresh noise
        up, down = to * math.sqrt(fresh), to * math.sqrt(1 - fresh)
        x = x0 + (x - x0) * (down / s)
        if up > 0:
            x = x + noise(i).to(x) * up
        yield Step(i=i, sigma=to, x=x, x0=x0)


def heun(denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
    """Second order, trapezoid rule: two forwards a step, one in a step to 0 (Karras et al. 2022, alg. 1)."""
    levels = _levels(x, sigmas)
    for i, (s, to) in enumerate(zip(levels, levels[1:])):
        x0 = _ask(denoiser, x, s)
        eps = (x - x0) / s
        if to == 0:
            x = x0
        else:
            guess = x + eps * (to - s)
            x = x + (eps + (guess - _ask(denoiser, guess, to)) / to) * ((to - s) / 2)
        yield Step(i=i, sigma=to, x=x, x0=x0)


def lms(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    *,
    order: int = 4,
    before: Sequence[float] = (),
) -> Iterator[Step]:
    """Linear multistep: the polynomial through the last `order` eps, integrated exactly for any spacing.

    The first step has one eps to go by, so that the whole is of second order, with a small constant.
    before: levels before the first. diffusers weighs as if their eps were known, and leaves those terms out.
    """
    if not 1 <= order <= 4:
        raise UserError(f"lms of order {order}", allowed="1 to 4")
    levels = _levels(x, sigmas)
    past: list[Tensor] = []  # eps, newest first
    for i, (s, to) in enumerate(zip(levels, levels[1:])):
        x0 = _ask(denoiser, x, s)
        past = [(x - x0) / s, *past][:order]
        weights = _adams([*levels[i::-1], *reversed(before)][:order], s, to)
        x = x + sum((w * eps for w, eps in zip(weights, past)), start=torch.zeros_like(x))
        yield Step(i=i, sigma=to, x=x, x0=x0)


def _adams(nodes: list[float], start: float, end: float) -> list[float]:
    """Integrals from start to end of the Lagrange polynomials on up to 4 nodes (by 2 Gauss points: exact)."""
    middle, half = (start + end) / 2, (end - start) / 2
    points = (middle - half / math.sqrt(3), middle + half / math.sqrt(3))

    def basis(node: float, point: float) -> float:
        return math.prod((point - other) / (node - other) for other in nodes if other != node)

    return [half * sum(basis(node, point) for point in points) for node in nodes]


ADAMS_BASHFORTH = {  # newest first, even spacing
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def pndm(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Noise, *, forwards: Sequence[Forward] = ()
) -> Iterator[Step]:
    """PLMS as Stable Diffusion 1.x uses it: PNDM (Liu et al. 2022) without its Runge-Kutta start.

    The first step is Heun's (one forward more), then Adams-Bashforth with the coefficients of even spacing
    whatever the grid: second order. Steps + 1 forwards; a single step is Euler's.
    forwards: those of a Walk, instead of the ones between the sigmas.
    """
    levels = _levels(x, sigmas)
    if not forwards:
        ahead = [(s, s, to) for s, to in zip(levels, levels[1:])]
        forwards = ahead if len(ahead) == 1 else [ahead[0], (levels[1], levels[0], levels[1]), *ahead[1:]]
    past: list[Tensor] = []  # eps, newest first
    left, at = x, forwards[0][0]  # x and its level; `left` is where the first step leaves from
    begin = at
    for j, (told, s, to) in enumerate(forwards):
        x = _relabelled(x, at, told)
        x0 = _ask(denoiser, x, told)
        eps = (x - x0) / told
        if j == 1:  # the first step again, with the mean of the slopes at its two ends
            x, eps = _relabelled(left, begin, s), (past[0] + eps) / 2
        else:
            past = [eps, *past][:4]
            if len(past) > 1:
                weights = ADAMS_BASHFORTH[len(past)]
                eps = sum((w * e for w, e in zip(weights, past, strict=True)), start=torch.zeros_like(x))
            else:
                first = x0
        x, at = x + eps * (to - s), to
        if j > 0 or len(forwards) == 1:
            yield Step(i=max(j - 1, 0), sigma=to, x=x, x0=first if j < 2 else x0)


def _extrapolated(x0: Tensor, last: Tensor | None, i: int, levels: list[float]) -> Tensor:
    """x0 halfway through the step in log sigma, on the line through this prediction and the last one."""
    if last is None or levels[i + 1] == 0:
        return x0
    h, h_last = math.log(levels[i] / levels[i + 1]), math.log(levels[i - 1] / levels[i])
    return x0 + (x0 - last) * (h / (2 * h_last))


def dpmpp_2m(denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
    """DPM-Solver++(2M), midpoint (Lu et al. 2022b, algorithm 2); first order at first and in a step to 0."""
    levels = _levels(x, sigmas)
    last: Tensor | None = None
    for i, (s, to) in enumerate(zip(levels, levels[1:])):
        x0 = _ask(denoiser, x, s)
        middle = _extrapolated(x0, last, i, levels)
        x, last = middle + (x - middle) * (to / s), x0
        yield Step(i=i, sigma=to, x=x, x0=x0)


def dpmpp_2m_sde(denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
    """SDE-DPM-Solver++(2M), midpoint (Lu et al. 2022b, section 5): as dpmpp_2m along the reverse SDE."""
    levels = _levels(x, sigmas)
    last: Tensor | None = None
    for i, (s, to) in enumerate(zip(levels, levels[1:])):
        x0 = _ask(denoiser, x, s)
        middle = _extrapolated(x0, last, i, levels)
        x, last = middle + (x - middle) * (to / s) ** 2, x0
        up = to * math.sqrt(1 - (to / s) ** 2)
        if up > 0:
            x = x + noise(i).to(x) * up
        yield Step(i=i, sigma=to, x=x, x0=x0)


def unipc(denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
    """UniPC-2, B(h) = e^h - 1, on x0 (Zhao et al. 2023): dpmpp_2m corrected after each step by the next x0.

    The last step is of first order, uncorrected.
    """
    levels = _levels(x, sigmas)
    history: list[Tensor] = []  # x0, newest first
    before, corrected_order = x, 0  # x the last step left from, and its order
    for i, (s, to) in enumerate(zip(levels, levels[1:])):
        x0 = _ask(denoiser, x, s)
        if i > 0:
            x = _corrected(before, x0, history[:corrected_order], levels[max(i - 2, 0) : i + 1])
        final = i + 2 == len(levels)
        middle = x0 if final or not history else _extrapolated(x0, history[0], i, levels)
        corrected_order = 1 if final or not history else 2
        history = [x0, *history][:2]
        before, x = x, middle + (x - middle) * (to / s)
        yield Step(i=i, sigma=to, x=x, x0=x0)


def _corrected(before: Tensor, x0: Tensor, history: list[Tensor], levels: list[float]) -> Tensor:
    """UniC: the step from levels[-2] to levels[-1] again, knowing x0 at its end. history: newest first."""
    m = history[0]
    h = math.log(levels[-2] / levels[-1])
    phi1 = math.expm1(-h)
    if len(history) == 1:
        change = 0.5 * (x0 - m)
    else:
        r = -math.log(levels[-3] / levels[-2]) / h  # where the older prediction lies, in units of this step
        phi2 = phi1 / -h - 1
        b1, b2 = phi2 / phi1, 2 * (phi2 / -h - 0.5) / phi1
        rho = (b2 - b1) / (r - 1)  # solves rho + rho_c = b1, rho * r + rho_c = b2
        change = rho / r * (history[1] - m) + (b1 - rho) * (x0 - m)
    return before * (levels[-1] / levels[-2]) - phi1 * (m + change)


Sampler = Callable[[Denoiser, Tensor, Tensor, Noise], Iterator[Step]]

SAMPLERS: dict[str, Sampler] = {
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "lms": lms,
    "ddim": ddim,
    "pndm": pndm,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "unipc": unipc,
}


def along(name: str, walk: Walk, *, eta: float = 0.0) -> Sampler:
    """The sampler of that name with what it needs to know of a walk besides its sigmas."""
    extra: dict[str, Any] = {}
    if name == "ddim":
        extra = {"eta": eta, "forwards": walk.forwards}
    elif name == "pndm":
        extra = {"forwards": walk.forwards}
    elif name == "lms":
        extra = {"before": walk.before}
    return partial(SAMPLERS[name], **extra)

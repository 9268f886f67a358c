"""Wrappers round one contract, denoiser(x, sigma) -> x0, and training targets by the same algebra.

B images, C latent channels, H W latent rows and columns. x = x0 + sigma * eps, float32. A network's input has
unit variance, x / sqrt(1 + sigma**2). With alpha = 1 / sqrt(1 + sigma**2) and beta = sigma * alpha,
eps-prediction is eps itself and v-prediction is alpha * eps - beta * x0 (Salimans and Ho 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from kotoe.errors import UserError
from kotoe.schedule import alphas_cumprod, initial_scale, input_scale, sigma_to_t, sigmas_of, tail
from kotoe.spec import ScheduleSpec

Denoiser = Callable[[Tensor, Tensor], Tensor]  # x (B,C,H,W) f32, sigma (B,) f32 -> x0 (B,C,H,W) f32
Model = Callable[[Tensor, Tensor], Tensor]  # unit-variance x (B,C,H,W) f32, timestep (B,) f32 -> prediction


def rows(per_image: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ..., 1), on the device and with the dtype of `like` (B, ...)."""
    return per_image.to(like).reshape(-1, *[1] * (like.ndim - 1))


# A network as a denoiser


def from_eps(model: Model, spec: ScheduleSpec) -> Denoiser:
    """A denoiser from a network that predicts eps: x0 = x - sigma * eps."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        s = rows(sigma, x)  # (B, 1, 1, 1)
        eps = model(x * input_scale(s), sigma_to_t(spec, sigma).to(x.device))
        return x - s * eps.to(x.dtype)

    return denoise


def from_v(model: Model, spec: ScheduleSpec) -> Denoiser:
    """A denoiser from a network that predicts v: x0 = alpha * (alpha * x) - beta * v."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        s = rows(sigma, x)  # (B, 1, 1, 1)
        alpha = input_scale(s)
        x_in = alpha * x
        v = model(x_in, sigma_to_t(spec, sigma).to(x.device))
        return alpha * x_in - (s * alpha) * v.to(x.dtype)

    return denoise


def denoiser(model: Model, spec: ScheduleSpec) -> Denoiser:
    """The denoiser of a network trained as `spec` says.

    model: (x (B,C,H,W) float32 of unit variance, timestep (B,) float32 in [0, T-1]) -> prediction (B,C,H,W),
    any float type. The timesteps are exactly `sigma_to_t(spec, sigmas)` of the grid, so that what depends on
    them can be computed once per picture.
    """
    return from_v(model, spec) if spec.prediction_type == "v_prediction" else from_eps(model, spec)


def beside(model: Model, mask: Tensor, masked: Tensor) -> Model:
    """A model of x from one that also reads a mask and what it leaves of a picture: the channels x, mask, masked.

    mask: (1, 1, H, W), 1 = paint anew. masked: clean latent (1, C, H, W) of the picture without what the mask covers.
    """
    given = torch.cat([mask, masked], dim=1)  # (1, 1 + C, H, W)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        return model(torch.cat([x, given.to(x).expand(len(x), -1, -1, -1)], dim=1), t)  # (B, 2C + 1, H, W) in

    return predict


# Guidance, inpainting, starting points


def guided(
    cond: Denoiser,
    scale: float,
    *,
    uncond: Denoiser | None = None,
    both: Denoiser | None = None,
    rescale: float = 0.0,
    always: bool = False,
) -> Denoiser:
    """Classifier-free guidance on x0: uncond + scale * (cond - uncond), by Ho and Salimans 2022.

    cond, uncond: denoisers for the prompt and for the negative (or empty) prompt.
    both:         instead of `uncond`, one denoiser that takes the batch twice, (2B, C, H, W), and answers for
                  the negative prompt in the first half, for the prompt in the second: one larger forward.
    scale:        1.0 switches guidance off: the answer is `cond` itself, one forward per step.
    always:       ask for both at scale 1.0 too: the same answer but for rounding, at twice the cost.
    rescale:      0 to 1, how far the result's spread is pulled back to that of `cond` (Lin et al. 2023, 3.4).
    """
    if not 0.0 <= rescale <= 1.0:
        raise UserError(f"guidance_rescale {rescale}", allowed="0.0 to 1.0")
    if scale == 1.0 and not always:
        return cond
    if (uncond is None) == (both is None):
        given = "neither" if both is None else "each"
        raise UserError(f"guidance scale {scale} with {given} of `uncond` and `both`", allowed="one of the two")

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        if both is not None:
            answer = both(torch.cat([x, x]), torch.cat([sigma, sigma]))  # (2B, C, H, W)
            negative, positive = answer.chunk(2)  # (B, C, H, W) each
        else:
            assert uncond is not None
            negative, positive = uncond(x, sigma), cond(x, sigma)
        x0 = negative + scale * (positive - negative)
        if rescale == 0.0:
            return x0
        ratio = rows(positive.flatten(1).std(1) / x0.flatten(1).std(1), x0)  # (B, 1, 1, 1)
        return x0 * (rescale * ratio + (1.0 - rescale))

    return denoise


def within(inside: Denoiser, outside: Denoiser, high: float, low: float) -> Denoiser:
    """One denoiser for noise levels above `low` up to `high`, another for the rest: guidance in an interval alone
    (Kynkaanniemi et al. 2024, arXiv 2404.07724)."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return inside(x, sigma) if low < float(sigma[0]) <= high else outside(x, sigma)

    return denoise


def inpainted(
    inner: Denoiser, known: Tensor, mask: Tensor, *, noise: Tensor | None = None, first: float = math.inf
) -> Denoiser:
    """Keeps what is known: x0 is `known` where mask is 0 and the inner denoiser's answer where it is 1.

    known: clean latent (B or 1, C, H, W). mask: (B or 1, 1, H, W) in [0, 1], 1 = paint anew.
    noise: the walk's starting noise (B, C, H, W). With it the inner denoiser sees known + sigma * noise where mask is
           0, as diffusers does, whatever the sampler made of x there; but for level `first`, where it sees x itself.
    """
    if mask.ndim != 4 or mask.shape[1] != 1 or mask.shape[-2:] != known.shape[-2:]:
        height, width = known.shape[-2:]
        raise UserError(f"mask of shape {tuple(mask.shape)}", allowed=f"(B or 1, 1, {height}, {width})")
    low, high = float(mask.min()), float(mask.max())
    if not (low >= 0.0 and high <= 1.0):
        raise UserError(f"mask values from {low} to {high}", allowed="0 (keep) to 1 (paint anew)")

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        m, clean = mask.to(x), known.to(x)
        seen = x
        if noise is not None and not bool((sigma == first).all()):
            seen = m * x + (1.0 - m) * (clean + rows(sigma, x) * noise.to(x))
        return m * inner(seen, sigma) + (1.0 - m) * clean

    return denoise


def start(
    noise: Tensor,
    sigmas: Tensor,
    *,
    sampler: str,
    grid: str,
    init: Tensor | None = None,
    strength: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The starting x (B, C, H, W) and the sigmas to walk, from unit noise and a whole grid (steps + 1,).

    Without `init`, or at strength 1.0, x is pure noise and the grid is whole. Otherwise x is `init`, a clean
    latent (B or 1, C, H, W), noised to where the last int(steps * strength) steps begin.
    """
    if init is None and strength != 1.0:
        raise UserError(f"strength {strength} without a picture to start from", allowed="1.0")
    sigmas = tail(sigmas, strength)
    init = None if strength == 1.0 else init
    return begin(noise, float(sigmas[0]), sampler=sampler, grid=grid, init=init), sigmas


def begin(noise: Tensor, sigma: float, *, sampler: str, grid: str, init: Tensor | None = None) -> Tensor:
    """The x (B, C, H, W) of level sigma that a walk starts from: unit noise to scale, or `init` with noise in it."""
    if init is None:
        return noise * initial_scale(sigma, sampler=sampler, grid=grid)
    return init.to(noise) + sigma * noise


# Training: the same algebra from the other side


def training_input(spec: ScheduleSpec, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """What the network sees at integer timesteps t (B,): sqrt(abar) * x0 + sqrt(1 - abar) * eps."""
    abar = alphas_cumprod(spec)[t.cpu()]
    return rows(abar.sqrt(), x0) * x0 + rows((1.0 - abar).sqrt(), x0) * eps


def training_target(spec: ScheduleSpec, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """What it should answer at integer timesteps t (B,): eps, or sqrt(abar) * eps - sqrt(1 - abar) * x0."""
    if spec.prediction_type == "epsilon":
        return eps
    abar = alphas_cumprod(spec)[t.cpu()]
    return rows(abar.sqrt(), x0) * eps - rows((1.0 - abar).sqrt(), x0) * x0


def snr(spec: ScheduleSpec, t: Tensor) -> Tensor:
    """Signal-to-noise ratio abar / (1 - abar) = 1 / sigma**2 at integer timesteps t (B,), float32 (B,)."""
    return (sigmas_of(spec)[t.cpu()] ** -2).float().to(t.device)


def min_snr_weights(spec: ScheduleSpec, t: Tensor, gamma: float = 5.0) -> Tensor:
    """Loss weights (B,) that make an eps or v loss an x0 loss weighted min(SNR, gamma) (Hang et al. 2023).

    An eps loss is SNR times the x0 loss and a v loss SNR + 1 times, hence the two divisors.
    """
    ratio = snr(spec, t)
    return ratio.clamp(max=gamma) / (ratio if spec.prediction_type == "epsilon" else ratio + 1.0)


def loss(prediction: Tensor, target: Tensor, weights: Tensor | None = None, channels: Tensor | None = None) -> Tensor:
    """Mean squared error in float32 of (B, C, H, W), each image weighted by `weights` (B,) before the mean over the
    batch, each channel by `channels` (C,)."""
    error = (prediction.float() - target.float()).square()
    each = (error if channels is None else error * channels.to(error)[:, None, None]).flatten(1).mean(1)  # (B,)
    return (each if weights is None else each * weights.to(each)).mean()

"""Losses a Plan can train on. Each takes (modules, batch, generator) and gives (scalar loss, numbers to log).

Legend: B samples, C latent channels, h w latent edge, L tokens, D text width, E width of the shared embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kotoe.denoise import loss as squared_error
from kotoe.denoise import training_input, training_target
from kotoe.localize.fit import Loss
from kotoe.schedule import sigmas_of
from kotoe.spec import ScheduleSpec
from kotoe.text import first_eos
from kotoe.unet import UNet

Answer = tuple[Tensor, dict[str, float]]  # scalar loss, numbers to log


@dataclass(frozen=True, kw_only=True)
class TextImages:
    """ids (B, L) of captions, and pictures (B, 3, H, W) in [-1, 1] that they describe."""

    ids: Tensor
    images: Tensor


@dataclass(frozen=True, kw_only=True)
class TextLatents:
    """text: ids (B, L) of captions, or what a frozen encoder made of them, (B, L, D); and unit-scaled latents
    (B, C, h, w) of what they describe.

    noisy: 1.0 draws timesteps evenly; above it noisier ones more often, with P(t < x T) = x ** noisy.
    """

    text: Tensor
    latents: Tensor
    noisy: float = 1.0


@dataclass(frozen=True, kw_only=True)
class TextPairs:
    """ids (B, L) of a text in the new language; teacher_ids (B, L') of its translation and the teacher's context
    (B, L', D) of that."""

    ids: Tensor
    teacher_ids: Tensor
    teacher: Tensor


@dataclass(frozen=True, kw_only=True)
class TextBehind:
    """ids (B, L) of a text in the new language, and before (B, L, D): the teacher's residual before its last layer,
    which the student's shall be where `behind` (B, L) bool asks it."""

    ids: Tensor
    before: Tensor
    behind: Tensor


@dataclass(frozen=True, kw_only=True)
class TextScenes:
    """ids (B, L) of captions and what they must tell of their pictures, patch by patch: route (B, P, R) on the way,
    drawn (B, P, S) in the end (see kotoe.data.latents.Told)."""

    ids: Tensor
    route: Tensor
    drawn: Tensor


class ImageTower(nn.Module):
    """A small picture encoder (B, 3, 32, 32) to (B, E): the text encoder's partner while it learns as CLIP did."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 64, 3, stride=2, padding=1),  # (B, 64, 16, 16)
            nn.GELU(),
            nn.Conv2d(64, 128, 3, stride=2, padding=1),  # (B, 128, 8, 8)
            nn.GELU(),
            nn.Conv2d(128, 192, 3, stride=2, padding=1),  # (B, 192, 4, 4)
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(192 * 16, width),
        )
        self.log_scale = nn.Parameter(torch.tensor(2.66))  # CLIP's start, 1 / 0.07

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # (B, E)


def unexplained(said: Tensor, asked: Tensor, weights: Tensor | None = None) -> Tensor:
    """Squared error over the variance of what is asked, over its first dimension: 1 is what its mean would score.

    weights (D,): what an error in each of the numbers (N, D) counts; None: all alike.
    """
    error, spread = (said - asked).square(), (asked - asked.mean(dim=0)).square()
    return error.mean() / spread.mean() if weights is None else (error @ weights).mean() / (spread @ weights).mean()


def contrastive(text: str = "text", image: str = "image") -> Loss:
    """CLIP's symmetric cross-entropy between pooled texts and pictures of one batch (arXiv 2103.00020)."""

    def loss(modules: Mapping[str, Any], batch: TextImages, _: torch.Generator) -> Answer:
        tower = modules[image]
        a = F.normalize(modules[text].pooled(batch.ids).float(), dim=1)  # (B, E)
        b = F.normalize(tower(batch.images).float(), dim=1)  # (B, E)
        logits = tower.log_scale.clamp(max=4.6052).exp() * a @ b.T  # (B, B)
        at = torch.arange(len(logits), device=logits.device)
        value = (F.cross_entropy(logits, at) + F.cross_entropy(logits.T, at)) / 2
        hits = (logits.argmax(1) == at).float().mean()
        return value, {"accuracy": float(hits.detach())}

    return loss


def asked_behind(ids: Tensor, eos: int, told: Tensor) -> tuple[Tensor, Tensor]:
    """Where a text of ids (B, L) is asked what it tells of patches (B, P, S): every state from the first EOS on, that
    at position p of patch p mod P. Gives behind (B, L) bool and what is asked there (N, S)."""
    position = torch.arange(ids.shape[1], device=ids.device)
    behind = position >= first_eos(ids, eos)[:, None]  # (B, L)
    return behind, told[:, position % told.shape[1]][behind]


def routing(text: str = "text", head: str = "head") -> Loss:
    """A text must tell what lies on every patch, in numbers that a picture's pixels define in closed form (a locked
    image tower): before the encoder's last layer, behind the words, by a linear `head` (D to R)."""

    def loss(modules: Mapping[str, Any], batch: TextScenes, _: torch.Generator) -> Answer:
        encoder = modules[text]
        before = encoder.before_last(batch.ids).float()  # (B, L, D)
        behind, asked = asked_behind(batch.ids, encoder.spec.eos, batch.route)
        left_over = unexplained(modules[head](F.layer_norm(before[behind], before.shape[-1:])), asked)
        return left_over, {"unrouted": float(left_over.detach())}

    return loss


def drawing(weights: Tensor, text: str = "text") -> Loss:
    """A text must tell what is drawn on every patch: behind the words the state itself must be that, filled up with
    zeros. So a cross-attention finds each patch wherever it looks there. weights (S,): what errors cost."""

    def loss(modules: Mapping[str, Any], batch: TextScenes, _: torch.Generator) -> Answer:
        encoder = modules[text]
        states = encoder(batch.ids).float()  # (B, L, D)
        behind, asked = asked_behind(batch.ids, encoder.spec.eos, batch.drawn)
        more = states.shape[-1] - asked.shape[-1]
        cost = F.pad(weights.to(states), (0, more), value=float(weights.mean()))  # (D,)
        left_over = unexplained(states[behind], F.pad(asked, (0, more)), cost)
        return left_over, {"undrawn": float(left_over.detach())}

    return loss


def floored_min_snr(spec: ScheduleSpec, t: Tensor, gamma: float = 5.0) -> Tensor:
    """Weights (B,) of a v loss: min(SNR, gamma) + 1 over SNR + 1.

    Min-SNR (arXiv 2303.09556) by itself gives steps of no signal no weight. With zero terminal SNR those are the steps
    where the text alone decides what will be seen, so that the v loss's own 1 is kept.
    """
    ratio = sigmas_of(spec).to(t.device)[t] ** -2
    return ((ratio.clamp(max=gamma) + 1) / (ratio + 1)).float()


def diffusion(
    spec: ScheduleSpec, *, text: str = "text", gamma: float | None = 5.0, channels: Tensor | None = None
) -> Loss:
    """The latent diffusion loss with the text encoder in the loop, frozen or not.

    gamma:    of the weights of noise levels (`floored_min_snr`); None: all weigh the same, as Stable Diffusion's do.
    channels (C,): what an error in each latent channel counts; None: all alike.
    """

    def loss(modules: Mapping[str, Any], batch: TextLatents, draw: torch.Generator) -> Answer:
        x0 = batch.latents
        share = torch.rand(len(x0), generator=draw) ** (1 / batch.noisy)  # [0, 1)
        t = (share * spec.num_train_timesteps).long().clamp(max=spec.num_train_timesteps - 1).to(x0.device)
        eps = torch.randn(x0.shape, generator=draw).to(x0)
        context = batch.text if batch.text.is_floating_point() else modules[text](batch.text)  # (B, L, D)
        x = training_input(spec, x0, eps, t).contiguous(memory_format=torch.channels_last)
        prediction = modules["unet"](x, t, context)
        target = training_target(spec, x0, eps, t)
        weights = None if gamma is None else floored_min_snr(spec, t, gamma)
        value = squared_error(prediction, target, weights, channels)
        return value, {}

    return loss


@dataclass(frozen=True)
class Queries:
    """What the frozen UNet asks of a text: recorded queries of every cross-attention, each (heads, Q, C/heads)."""

    banks: tuple[Tensor, ...]


def record_queries(unet: UNet, calls: list[tuple[Tensor, Tensor, Tensor]], per_layer: int, seed: int = 0) -> Queries:
    """Run the UNet on (x, t, context) calls and keep `per_layer` of the queries each cross-attention asked."""
    draw = torch.Generator().manual_seed(seed)
    seen: list[list[Tensor]] = [[] for _ in unet.cross_attentions()]
    hooks = [
        attention.to_q.register_forward_hook(lambda module, args, out, k=k: seen[k].append(out.detach().flatten(0, 1)))
        for k, attention in enumerate(unet.cross_attentions())
    ]
    try:
        with torch.inference_mode():
            for x, t, context in calls:
                unet(x, t, context)
    finally:
        for hook in hooks:
            hook.remove()
    banks = []
    for attention, rows in zip(unet.cross_attentions(), seen, strict=True):
        every = torch.cat(rows)  # (calls * B * N, C)
        chosen = every[torch.randperm(len(every), generator=draw)[:per_layer].to(every.device)]
        banks.append(attention.split(chosen[None])[0].clone())  # (heads, Q, C/heads)
    return Queries(tuple(banks))


def reader(queries: Queries, *, text: str = "text") -> Loss:
    """`distil-reader`: the student's text must answer the frozen UNet's recorded questions as the teacher's does.

    Per cross-attention: attention outputs of student and teacher context for the bank of queries, mean squared error
    over the teacher's variance. Indifferent to order and number of tokens; no pass through the UNet.
    """

    def loss(modules: Mapping[str, Any], batch: TextPairs, _: torch.Generator) -> Answer:
        unet = modules["unet"]
        student = modules[text](batch.ids)  # (B, L, D)
        total = student.new_zeros(())
        for attention, bank in zip(unet.cross_attentions(), queries.banks, strict=True):
            q = bank[None].expand(len(student), -1, -1, -1)  # (B, heads, Q, C/heads)
            said = F.scaled_dot_product_attention(q, *attention.kv(student))
            with torch.no_grad():
                asked = F.scaled_dot_product_attention(q, *attention.kv(batch.teacher))
            total = total + unexplained(said, asked)
        value = total / len(queries.banks)
        return value, {"unexplained": float(value.detach())}

    return loss


def pooled(*, text: str = "text", eos: int) -> Loss:
    """`distil-pooled`: the pooled vector must be the teacher's, which is its state at the first `eos`.

    So were Bingsu's Korean encoder and M-CLIP's made (squared error; the latter's authors found a cosine no better). It
    says nothing of the other L - 1 states, and those are what a UNet reads.
    """

    def loss(modules: Mapping[str, Any], batch: TextPairs, _: torch.Generator) -> Answer:
        at = first_eos(batch.teacher_ids, eos)
        asked = batch.teacher[torch.arange(len(at)), at]  # (B, D)
        left_over = unexplained(modules[text].pooled(batch.ids).float(), asked.float())
        return left_over, {"unexplained": float(left_over.detach())}

    return loss


def states(*, text: str = "text") -> Loss:
    """`distil-states`: state for state, L of them, what the teacher says (tohoku-nlp, GlueGen)."""

    def loss(modules: Mapping[str, Any], batch: TextPairs, _: torch.Generator) -> Answer:
        said, asked = modules[text](batch.ids).float(), batch.teacher.float()  # (B, L, D)
        left_over = unexplained(said.flatten(0, 1), asked.flatten(0, 1))
        return left_over, {"unexplained": float(left_over.detach())}

    return loss


def behind(*, text: str = "text") -> Loss:
    """`distil-behind`: before the last layer the student must say what the teacher says, where the batch asks: behind
    the words. The last layer, the same in both, makes of it what a UNet reads.

    Words differ in number and order between languages; the states behind them, which have read the whole text, needn't.
    Squared error over the teacher's variance, every state in units of the teacher's spread, not of its own: a layer's
    norm sees no scale, but what the layer's answer is added to has one, and unasked it grows.
    """

    def loss(modules: Mapping[str, Any], batch: TextBehind, _: torch.Generator) -> Answer:
        said, asked = modules[text].before_last(batch.ids).float()[batch.behind], batch.before.float()[batch.behind]
        unit = asked.std(dim=-1, keepdim=True, correction=0)  # (N, 1)
        left_over = unexplained(said / unit, asked / unit)
        return left_over, {"unexplained": float(left_over.detach())}

    return loss

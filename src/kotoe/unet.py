"""The UNet of Stable Diffusion 1.x and 2.x, with diffusers' parameter names.

Source: Rombach et al. 2022 (arXiv 2112.10752); layout of `UNet2DConditionModel` as the published SD checkpoints
configure it.

Legend: B pictures, C channels, h w latent rows and columns, L context tokens, D context width, S steps.

Two things don't change while a picture is drawn, and are computed once for it: the keys and values of the text in
every cross-attention (`text_kv`), and the time projections of every residual block for every step
(`time_table`). `forward` takes either the raw inputs or these.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kotoe.shortcuts import Shortcuts, merged
from kotoe.spec import UNetSpec

RESNET_EPS = 1e-5  # residual blocks and the output norm; that before a spatial transformer has the spec's, 1e-6
GELU = {"exact": "none", "tanh": "tanh"}  # the spec's word to torch's

KV = list[tuple[Tensor, Tensor]]  # per cross-attention in call order: keys and values, each (B, heads, L, C/heads)


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoids (B, width) of timesteps t (B,), cosines first (flip_sin_to_cos), frequencies 1 to 1e-4, float32."""
    half = width // 2
    frequency = torch.exp(-math.log(10000) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angle = t.float()[:, None] * frequency  # (B, width/2)
    return torch.cat([angle.cos(), angle.sin()], dim=1)  # (B, width)


class ResnetBlock(nn.Module):
    def __init__(self, spec: UNetSpec, c_in: int, c_out: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(spec.norm_num_groups, c_in, eps=RESNET_EPS)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(4 * spec.block_out_channels[0], c_out)
        self.norm2 = nn.GroupNorm(spec.norm_num_groups, c_out, eps=RESNET_EPS)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        if c_in != c_out:
            self.conv_shortcut = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x (B, c_in, h, w); time (B or 1, c_out), already projected."""
        y = self.conv1(F.silu(self.norm1(x))) + time[:, :, None, None]  # (B, c_out, h, w)
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


class Attention(nn.Module):
    sliced = False  # one head at a time, which needs less memory (see UNet.slice_attention)
    kernel: SDPBackend | None = None  # which of torch's computes it; None: its own choice (see compiled.py)

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, C/heads)

    def kv(self, context: Tensor) -> tuple[Tensor, Tensor]:
        return self.split(self.to_k(context)), self.split(self.to_v(context))

    def forward(self, x: Tensor, kv: tuple[Tensor, Tensor]) -> Tensor:
        q = self.split(self.to_q(x))  # (B, heads, N, C/heads)
        if self.sliced:
            heads = zip(*(each.split(1, dim=1) for each in (q, *kv)), strict=True)
            y = torch.cat([F.scaled_dot_product_attention(*head) for head in heads], dim=1)
        elif self.kernel is not None:
            with sdpa_kernel(self.kernel):
                y = F.scaled_dot_product_attention(q, *kv)
        else:
            y = F.scaled_dot_product_attention(q, *kv)
        return self.to_out[0](y.transpose(1, 2).flatten(2))  # (B, N, C)


class GEGLU(nn.Module):
    def __init__(self, width: int, inner: int, gelu: str) -> None:
        super().__init__()
        self.approximate = GELU[gelu]
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate, approximate=self.approximate)


class FeedForward(nn.Module):
    def __init__(self, width: int, gelu: str) -> None:
        super().__init__()
        # Index 1 is diffusers' dropout: it holds no parameters but fixes the key of the last layer.
        self.net = nn.ModuleList([GEGLU(width, 4 * width, gelu), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class TransformerBlock(nn.Module):
    def __init__(self, width: int, context_width: int, heads: int, gelu: str) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn1 = Attention(width, width, heads)
        self.attn2 = Attention(width, context_width, heads)
        self.ff = FeedForward(width, gelu)

    def forward(self, x: Tensor, kv: tuple[Tensor, Tensor], size: tuple[int, int], merge: float = 0.0) -> Tensor:
        y = self.norm1(x)
        if merge:
            together, back = merged(x, *size, merge)
            y = together(y)
            x = x + back(self.attn1(y, self.attn1.kv(y)))
        else:
            x = x + self.attn1(y, self.attn1.kv(y))
        x = x + self.attn2(self.norm2(x), kv)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """One transformer block over the positions of a feature map, between projections in and out."""

    def __init__(self, spec: UNetSpec, c: int, heads: int) -> None:
        super().__init__()
        self.linear = spec.use_linear_projection
        self.norm = nn.GroupNorm(spec.norm_num_groups, c, eps=spec.transformer_norm_eps)
        self.proj_in = nn.Linear(c, c) if self.linear else nn.Conv2d(c, c, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(c, spec.cross_attention_dim, heads, spec.gelu)])
        self.proj_out = nn.Linear(c, c) if self.linear else nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor, kv: tuple[Tensor, Tensor], merge: float = 0.0) -> Tensor:
        _, _, h, w = x.shape
        y = self.norm(x)
        if self.linear:
            y = self.proj_in(y.flatten(2).transpose(1, 2))  # (B, hw, C)
        else:
            y = self.proj_in(y).flatten(2).transpose(1, 2)  # (B, hw, C)
        y = self.transformer_blocks[0](y, kv, (h, w), merge)
        if self.linear:
            return x + self.proj_out(y).transpose(1, 2).unflatten(2, (h, w))  # (B, C, h, w)
        return x + self.proj_out(y.transpose(1, 2).unflatten(2, (h, w)))  # (B, C, h, w)


class Downsample(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)  # (B, C, h/2, w/2)


class Upsample(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # (B, C, 2h, 2w)


class Level(nn.Module):
    """Residual blocks of one resolution with their transformers. On the way up each block also takes a skip."""

    def __init__(
        self, spec: UNetSpec, level: int, widths_in: Sequence[int], *, down: bool = False, up: bool = False
    ) -> None:
        super().__init__()
        c, heads = spec.block_out_channels[level], spec.num_heads[level]
        self.resnets = nn.ModuleList([ResnetBlock(spec, c_in, c) for c_in in widths_in])
        if spec.cross_attention[level]:
            self.attentions = nn.ModuleList([SpatialTransformer(spec, c, heads) for _ in widths_in])
        if down:
            self.downsamplers = nn.ModuleList([Downsample(c)])
        if up:
            self.upsamplers = nn.ModuleList([Upsample(c)])

    def block(
        self, j: int, x: Tensor, time: Iterator[Tensor], kv: Iterator[tuple[Tensor, Tensor]], merge: float = 0.0
    ) -> Tensor:
        x = self.resnets[j](x, next(time))
        return self.attentions[j](x, next(kv), merge) if hasattr(self, "attentions") else x


class MidBlock(nn.Module):
    def __init__(self, spec: UNetSpec) -> None:
        super().__init__()
        c = spec.block_out_channels[-1]
        self.resnets = nn.ModuleList([ResnetBlock(spec, c, c), ResnetBlock(spec, c, c)])
        self.attentions = nn.ModuleList([SpatialTransformer(spec, c, spec.num_heads[-1])])

    def forward(self, x: Tensor, time: Iterator[Tensor], kv: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
        x = self.attentions[0](self.resnets[0](x, next(time)), next(kv))
        return self.resnets[1](x, next(time))


class TimeEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))  # (B, 4 width)


@dataclass(frozen=True)
class TimeTable:
    """Time projections of every residual block in call order, each (S, c_out): row s belongs to step s."""

    rows: list[Tensor]

    def at(self, index: Tensor | int) -> list[Tensor]:
        """Projections for one step (1, c_out), or for one step per picture with index (B,)."""
        if isinstance(index, int):
            return [row[index : index + 1] for row in self.rows]
        return [row[index] for row in self.rows]


class UNet(nn.Module):
    """Predicts noise (or velocity) of noised latents. See the file's head for the legend."""

    def __init__(self, spec: UNetSpec) -> None:
        super().__init__()
        self.spec = spec
        widths, n = spec.block_out_channels, spec.layers_per_block
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(spec.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0])

        skips = [widths[0]]
        self.down_blocks = nn.ModuleList()
        for i, c in enumerate(widths):
            entering = widths[max(i - 1, 0)]
            self.down_blocks.append(Level(spec, i, [entering if j == 0 else c for j in range(n)], down=i < last))
            skips += [c] * (n + (i < last))
        self.mid_block = MidBlock(spec)
        self.up_blocks = nn.ModuleList()
        for i in range(last, -1, -1):
            entering = widths[min(i + 1, last)]
            widths_in = [(entering if j == 0 else widths[i]) + skips.pop() for j in range(n + 1)]
            self.up_blocks.append(Level(spec, i, widths_in, up=i > 0))

        self.conv_norm_out = nn.GroupNorm(spec.norm_num_groups, widths[0], eps=RESNET_EPS)
        self.conv_out = nn.Conv2d(widths[0], spec.out_channels, 3, padding=1)

    def slice_attention(self) -> None:
        """From now on compute attention head by head: the same numbers in less memory."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.sliced = True

    def resnet_blocks(self) -> list[ResnetBlock]:
        """All residual blocks in call order."""
        stages = [*self.down_blocks, self.mid_block, *self.up_blocks]
        return [block for stage in stages for block in stage.resnets]

    def cross_attentions(self) -> list[Attention]:
        """All cross-attentions in call order."""
        stages = [*self.down_blocks, self.mid_block, *self.up_blocks]
        return [t.transformer_blocks[0].attn2 for stage in stages for t in getattr(stage, "attentions", ())]

    def text_kv(self, context: Tensor) -> KV:
        """Keys and values of context (B, L, D) for every cross-attention: once per picture, not once per step."""
        return [attention.kv(context) for attention in self.cross_attentions()]

    def time_table(self, t: Tensor) -> TimeTable:
        """Time projections for all steps t (S,) at once."""
        weight = self.conv_in.weight
        embedding = timestep_embedding(t, self.spec.block_out_channels[0]).to(weight.dtype)  # (S, C0)
        hidden = F.silu(self.time_embedding(embedding))  # (S, 4 C0)
        return TimeTable([block.time_emb_proj(hidden) for block in self.resnet_blocks()])

    def forward(
        self, x: Tensor, time: Tensor | list[Tensor], context: Tensor | KV, shortcuts: Shortcuts | None = None
    ) -> Tensor:
        """Prediction (B, C, h, w) for noised latents x (B, C, h, w).

        time:      timesteps (B,), or projections from `time_table(...).at(step)`.
        context:   text states (B, L, D), or keys and values from `text_kv`.
        shortcuts: what may be left out; None: nothing.
        """
        times = self.time_table(time).rows if isinstance(time, Tensor) else time
        texts = self.text_kv(context) if isinstance(context, Tensor) else context
        rows, kv = iter(times), iter(texts)
        shortcuts = shortcuts or Shortcuts()
        finest, last = cast("Level", self.down_blocks[0]), cast("Level", self.up_blocks[-1])

        x = self.conv_in(x)  # (B, C0, h, w)
        skips = [x]
        deep = shortcuts.deep(len(x))
        if deep is not None:
            x, rows, kv = deep, iter(times[-1:]), iter(texts[-1:])
        else:
            for level in cast("Iterable[Level]", self.down_blocks):
                merge = shortcuts.ratio if level is finest else 0.0
                for j in range(len(level.resnets)):
                    x = level.block(j, x, rows, kv, merge)
                    skips.append(x)
                for resample in getattr(level, "downsamplers", ()):
                    x = resample(x)
                    skips.append(x)
            x = self.mid_block(x, rows, kv)
            for level in cast("Iterable[Level]", self.up_blocks):
                merge = shortcuts.ratio if level is last else 0.0
                for j in range(len(level.resnets) - (level is last)):
                    x = level.block(j, torch.cat([x, skips.pop()], dim=1), rows, kv, merge)
                for resample in getattr(level, "upsamplers", ()):
                    x = resample(x)
            shortcuts.keep(x)
        x = last.block(len(last.resnets) - 1, torch.cat([x, skips.pop()], dim=1), rows, kv, shortcuts.ratio)
        return self.conv_out(F.silu(self.conv_norm_out(x)))  # (B, C, h, w)

"""AutoencoderKL: pixels to latents and back, with diffusers' parameter names.

Source: Rombach et al. 2022 (arXiv 2112.10752); the layout of CompVis `kl-f8` as Stable Diffusion 1.x and 2.x ship it.

Legend: B pictures, H W pixel rows and columns, C channels, h w latent rows and columns.
Pixels are float in [-1, 1]; latents outside this file are always unit-scaled: the checkpoint's scaling factor is
applied here and nowhere else.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kotoe.spec import VAESpec

LOGVAR_RANGE = (-30.0, 20.0)
SLICE = 1024  # positions whose attention is computed at once when it is sliced


def _norm(spec: VAESpec, channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(spec.norm_num_groups, channels, eps=spec.norm_eps)  # 1e-6; the UNet's residual blocks have 1e-5


class ResnetBlock(nn.Module):
    def __init__(self, spec: VAESpec, c_in: int, c_out: int) -> None:
        super().__init__()
        self.norm1 = _norm(spec, c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = _norm(spec, c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        if c_in != c_out:
            self.conv_shortcut = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))  # (B, c_out, H, W)
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


class Attention(nn.Module):
    """One head as wide as the channels, over all positions of the coarsest level."""

    sliced = False  # SLICE positions at a time, which needs less memory (see VAE.slice_attention)

    def __init__(self, spec: VAESpec, c: int) -> None:
        super().__init__()
        self.group_norm = _norm(spec, c)
        self.to_q, self.to_k, self.to_v = nn.Linear(c, c), nn.Linear(c, c), nn.Linear(c, c)
        self.to_out = nn.ModuleList([nn.Linear(c, c)])

    def forward(self, x: Tensor) -> Tensor:
        _, _, h, w = x.shape
        y = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, hw, C)
        q, k, v = (f(y).unsqueeze(1) for f in (self.to_q, self.to_k, self.to_v))  # (B, 1, hw, C)
        if self.sliced:
            y = torch.cat([F.scaled_dot_product_attention(each, k, v) for each in q.split(SLICE, dim=2)], dim=2)
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        y = y.squeeze(1)  # (B, hw, C)
        return x + self.to_out[0](y).transpose(1, 2).unflatten(2, (h, w))  # (B, C, h, w)


class MidBlock(nn.Module):
    def __init__(self, spec: VAESpec, c: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(spec, c, c), ResnetBlock(spec, c, c)])
        self.attentions = nn.ModuleList([Attention(spec, c)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Downsample(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # (B, C, H/2, W/2); right and bottom only, as in ldm


class Upsample(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # (B, C, 2H, 2W)


class Level(nn.Module):
    """The residual blocks of one resolution, then its resampler if it has one."""

    def __init__(
        self, spec: VAESpec, c_in: int, c_out: int, blocks: int, *, down: bool = False, up: bool = False
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(spec, c_in if j == 0 else c_out, c_out) for j in range(blocks)])
        if down:
            self.downsamplers = nn.ModuleList([Downsample(c_out)])
        if up:
            self.upsamplers = nn.ModuleList([Upsample(c_out)])

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        for resample in [*getattr(self, "downsamplers", ()), *getattr(self, "upsamplers", ())]:
            x = resample(x)
        return x


class Encoder(nn.Module):
    def __init__(self, spec: VAESpec) -> None:
        super().__init__()
        widths = spec.block_out_channels
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(spec.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            Level(spec, widths[max(i - 1, 0)], c, spec.layers_per_block, down=i < last) for i, c in enumerate(widths)
        )
        self.mid_block = MidBlock(spec, widths[-1])
        self.conv_norm_out = _norm(spec, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * spec.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)  # (B, C0, H, W)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))  # (B, 2 latent, h, w)


class Decoder(nn.Module):
    def __init__(self, spec: VAESpec) -> None:
        super().__init__()
        widths = spec.block_out_channels[::-1]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(spec.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(spec, widths[0])
        self.up_blocks = nn.ModuleList(
            Level(spec, widths[max(i - 1, 0)], c, spec.layers_per_block + 1, up=i < last) for i, c in enumerate(widths)
        )
        self.conv_norm_out = _norm(spec, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], spec.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))  # (B, C, h, w)
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))  # (B, 3, H, W)


class VAE(nn.Module):
    """The autoencoder. `encode` and `decode` take and give unit-scaled latents."""

    def __init__(self, spec: VAESpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder, self.decoder = Encoder(spec), Decoder(spec)
        self.quant_conv = nn.Conv2d(2 * spec.latent_channels, 2 * spec.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(spec.latent_channels, spec.latent_channels, 1)

    def slice_attention(self) -> None:
        """From now on compute attention some positions at a time: the same numbers in less memory."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.sliced = True

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (B, latent, h, w) of the posterior, before scaling. x (B, 3, H, W) in [-1, 1]."""
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, dim=1)  # 2 x (B, latent, h, w)
        return mean, logvar.clamp(*LOGVAR_RANGE)

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Unit-scaled latents of pictures in [-1, 1]. Without noise the mean, with noise a sample."""
        mean, logvar = self.moments(x)
        z = mean if noise is None else mean + torch.exp(0.5 * logvar) * noise
        return z * self.spec.scaling_factor

    def decode(self, z: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), about [-1, 1] and not clamped, of unit-scaled latents (B, latent, h, w)."""
        return self.decoder(self.post_quant_conv(z / self.spec.scaling_factor))

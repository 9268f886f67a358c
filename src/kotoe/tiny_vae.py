"""AutoencoderTiny: latents to pictures and back at a fraction of the autoencoder's cost, with diffusers' names.

Source: Ollin Boer Bohan's TAESD (github.com/madebyollin/taesd), as diffusers lays it out. It is trained to answer as an
AutoencoderKL does, and does so approximately: no norm, no attention, convolutions of one width and residual blocks.

Legend: B pictures, H W pixel rows and columns, C channels, h w latent rows and columns.
Pixels are float in [-1, 1]; latents outside this file are always unit-scaled, as those of vae.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from kotoe.spec import TinyVAESpec

CLAMP = 3.0  # latents are squeezed into (-3, 3) before they are decoded, whatever latent_magnitude is
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "mish": nn.Mish,
    "gelu": nn.GELU,
}


class Block(nn.Module):
    """Three convolutions beside the identity. What both add up to goes through a ReLU, whatever act_fn is."""

    def __init__(self, c: int, act: type[nn.Module]) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(c, c, 3, padding=1), act(), nn.Conv2d(c, c, 3, padding=1), act(), nn.Conv2d(c, c, 3, padding=1)
        )
        self.fuse = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.fuse(self.conv(x) + x)


class Encoder(nn.Module):
    """A level is a convolution (halving but for the first) and its blocks. All in one row, numbered from 0."""

    def __init__(self, spec: TinyVAESpec) -> None:
        super().__init__()
        self.layers = nn.Sequential(*self._row(spec))

    @staticmethod
    def _row(spec: TinyVAESpec) -> Iterator[nn.Module]:
        c, act = spec.encoder_block_out_channels[0], ACTIVATIONS[spec.act_fn]
        for level, blocks in enumerate(spec.num_encoder_blocks):
            if level == 0:
                yield nn.Conv2d(3, c, 3, padding=1)  # (B, C, H, W)
            else:
                yield nn.Conv2d(c, c, 3, padding=1, stride=2, bias=False)  # (B, C, H/2, W/2)
            yield from (Block(c, act) for _ in range(blocks))
        yield nn.Conv2d(c, spec.latent_channels, 3, padding=1)  # (B, latent, h, w)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers((x + 1) / 2)  # it was trained on pixels in [0, 1]


class Decoder(nn.Module):
    """A level is its blocks, then (but for the last) a doubling and a convolution. The first layers come before."""

    def __init__(self, spec: TinyVAESpec) -> None:
        super().__init__()
        self.layers = nn.Sequential(*self._row(spec))

    @staticmethod
    def _row(spec: TinyVAESpec) -> Iterator[nn.Module]:
        c, act = spec.decoder_block_out_channels[0], ACTIVATIONS[spec.act_fn]
        yield nn.Conv2d(spec.latent_channels, c, 3, padding=1)  # (B, C, h, w)
        yield act()
        for level, blocks in enumerate(spec.num_decoder_blocks):
            yield from (Block(c, act) for _ in range(blocks))
            if level < len(spec.num_decoder_blocks) - 1:
                yield nn.Upsample(scale_factor=spec.upsampling_scaling_factor, mode="nearest")  # (B, C, 2H, 2W)
                yield nn.Conv2d(c, c, 3, padding=1, bias=False)
        yield nn.Conv2d(c, 3, 3, padding=1)  # (B, 3, H, W)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(torch.tanh(z / CLAMP) * CLAMP) * 2 - 1  # its own pixels are in [0, 1]


class TinyVAE(nn.Module):
    """The small autoencoder. `encode` and `decode` take and give unit-scaled latents, as `VAE`'s do."""

    def __init__(self, spec: TinyVAESpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder, self.decoder = Encoder(spec), Decoder(spec)

    def encode(self, x: Tensor) -> Tensor:
        """Unit-scaled latents (B, latent, h, w) of pictures (B, 3, H, W) in [-1, 1]. There is no posterior to sample.

        H and W that the spec's `downscale` doesn't divide are rounded up: convolutions see zeros beyond the edge.
        """
        return self.encoder(x) * self.spec.scaling_factor

    def decode(self, z: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), about [-1, 1] and not clamped, of unit-scaled latents (B, latent, h, w)."""
        return self.decoder(z / self.spec.scaling_factor)

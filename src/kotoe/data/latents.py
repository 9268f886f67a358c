"""Latents in closed form: principal components of 16 x 16 pixel patches of the emoji world.

The autoencoder of kotoe-emoji is an ordinary AutoencoderKL, but what its latents are is decided before it is trained:
its encoder learns to compute these components and its decoder to draw from them. Three things follow. The first
latents are as good as the last, so that the UNet needn't wait for the autoencoder, nor be trained again when the
decoder gets better. On a CPU a batch of latents is one matrix product. And most of what a flat picture holds is in
them from the first step (on 2 cores an autoencoder trained end to end was still a blur after 20,000 pictures:
docs/log.md).

Components are divided by the square root of their spread: half-way between leaving them (the background's colour
drowns all detail) and whitening them (noise-like detail counts as much as shape).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from kotoe.data.captions import COLOURS
from kotoe.data.emoji import PAIR_SHIFT, PAIR_SIZE, PIXELS, SIZES, Atlas, Scene, atlas, cache_folder, layout, scene
from kotoe.errors import UserError

PATCH = 16
SCENES = 4000
THINGS = 2  # what `described` tells of: a scene's two objects, or its one object twice
LOOK_NORM = 24.0  # mean squared length of a look code: about as much as the layout numbers beside it weigh
BASIS_SEED = 1_000_003


@dataclass(frozen=True)
class Basis:
    """latent = (patch - mean) @ components * scale; mean (P,), components (P, C) orthonormal, scale (C,)."""

    mean: Tensor
    components: Tensor
    scale: Tensor

    def encode(self, x: Tensor) -> Tensor:
        """Latents (B, C, H/16, W/16) of pictures (B, 3, H, W) in [-1, 1]."""
        patches = F.pixel_unshuffle(x, PATCH).permute(0, 2, 3, 1)  # (B, h, w, P)
        z = (patches - self.mean.to(x)) @ self.components.to(x) * self.scale.to(x)  # (B, h, w, C)
        return z.permute(0, 3, 1, 2).contiguous()

    def decode(self, z: Tensor) -> Tensor:
        """The best linear picture (B, 3, H, W) of latents; the decoder's floor, and good enough for previews."""
        patches = (z.permute(0, 2, 3, 1) / self.scale.to(z)) @ self.components.T.to(z) + self.mean.to(z)
        return F.pixel_shuffle(patches.permute(0, 3, 1, 2), PATCH)


@lru_cache(maxsize=4)
def basis(tier: str, channels: int) -> Basis:
    """The basis of a tier's scenes, computed once and kept in the cache folder."""
    world = atlas(tier)
    scenes = [scene(BASIS_SEED, i, world.glyphs) for i in range(SCENES)]
    recipe = repr((tier, channels, PATCH, [layout(s) for s in scenes], scenes, [g.codepoints for g in world.glyphs]))
    file = cache_folder() / f"basis-{tier}-{channels}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.safetensors"
    if not file.exists():
        found = _compute(world, scenes, channels)
        part = file.with_suffix(f".{os.getpid()}.tmp")
        save_file({"mean": found.mean, "components": found.components, "scale": found.scale}, part)
        part.replace(file)
    return Basis(**load_file(file))


def _compute(world: Atlas, scenes: Sequence[Scene], channels: int) -> Basis:
    size = 3 * PATCH * PATCH
    total, square, count = torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64), 0
    for first in range(0, len(scenes), 100):
        x = world.render(scenes[first : first + 100]).float() / 127.5 - 1
        patches = F.pixel_unshuffle(x, PATCH).permute(0, 2, 3, 1).reshape(-1, size)  # (100 h w, P)
        total += patches.double().sum(0)
        square += (patches.T @ patches).double()
        count += len(patches)
    mean = total / count
    values, vectors = torch.linalg.eigh(square / count - torch.outer(mean, mean))
    spread = values.flip(0)[:channels].clamp(min=1e-8).sqrt()  # (C,) standard deviations, largest first
    components = vectors.flip(1)[:, :channels]
    components = components * components.sum(0).sign().where(components.sum(0) != 0, torch.ones(()).double())
    scale = 1 / spread.sqrt()
    scale = scale / (spread * scale).square().mean().sqrt()  # unit mean square over all components
    return Basis(mean.float(), components.float().contiguous(), scale.float())


@lru_cache(maxsize=4)
def looks(tier: str, channels: int, numbers: int) -> Tensor:
    """How each glyph of a tier looks, in closed form: (N, numbers) principal components of its medium render's latents.

    It is rendered on black and on white, so that what is see-through counts too.
    """
    world, base = atlas(tier), basis(tier, channels)
    count = len(world.glyphs)
    if not 1 <= numbers <= count:
        raise UserError(f"{numbers} numbers for the looks of {count} glyphs", allowed=f"1 to {count}")
    sides = []
    for colour in ("black", "white"):
        scenes = [Scene(objects=(i,), background=colour) for i in range(count)]
        parts = [world.render(scenes[i : i + 100]).float() / 127.5 - 1 for i in range(0, count, 100)]
        sides.append(torch.cat([base.encode(part).flatten(1) for part in parts]))
    every = torch.cat(sides, dim=1)  # (N, 2 C h w)
    u, s, v = torch.linalg.svd(every - every.mean(dim=0), full_matrices=False)
    code = u[:, :numbers] * s[:numbers] * v[:numbers].sum(dim=1).sign()  # (N, numbers); signs don't depend on LAPACK
    return code * (LOOK_NORM / code.square().sum(dim=1).mean()).sqrt()


def described(scenes: Sequence[Scene], code: Tensor) -> Tensor:
    """What a text must tell of each scene: (B, THINGS, numbers + 8).

    For the object on the left (or above) and the other one, the same twice where there is one: its look from `looks`,
    which edge it has (one of three), its centre in shifts of a pair, and the background in [-1, 1].
    """
    edges = sorted({PAIR_SIZE, *SIZES.values()})
    rows, objects = [], []
    for one in scenes:
        placed = sorted(zip(layout(one), one.objects, strict=True), key=lambda each: sum(each[0][1:]))
        for (edge, x, y), thing in (placed[0], placed[-1]):
            kind = [float(edge == known) for known in edges]
            place = [(x - PIXELS / 2) / PAIR_SHIFT, (y - PIXELS / 2) / PAIR_SHIFT]
            rows.append([*kind, *place, *(c / 127.5 - 1 for c in COLOURS[one.background].rgb)])
            objects.append(thing)
    return torch.cat([code[objects], torch.tensor(rows)], dim=1).unflatten(0, (-1, THINGS))  # (B, THINGS, numbers + 8)

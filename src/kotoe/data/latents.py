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
from kotoe.data.emoji import PIXELS, SIZES, Atlas, Scene, atlas, layout, scene
from kotoe.errors import UserError
from kotoe.runs import cache_folder

PATCH = 16
SCENES = 4000
GRID = PIXELS // PATCH
PATCHES = GRID**2
CLEAR = 16  # numbers of how see-through a patch is
LOOK_NORM = 24.0  # mean squared length of a look code: about as much as the numbers beside it in a route weigh
ROUTE_SCALE = 2.0
GROUND_SCALE, PLACE_SCALE = 8**0.5, 12**0.5
TOLD_SCALE = 2**0.5  # a state of 192 numbers has a squared length of 192 at first; what is told, two thirds of it
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


def _every_glyph(world: Atlas, base: Basis, size: str, background: str) -> Tensor:
    """Latents (N, C, h, w) of each glyph by itself."""
    scenes = [Scene(objects=(i,), size=size, background=background) for i in range(len(world.glyphs))]
    parts = [world.render(scenes[i : i + 100]).float() / 127.5 - 1 for i in range(0, len(scenes), 100)]
    return torch.cat([base.encode(part) for part in parts])


@lru_cache(maxsize=4)
def looks(tier: str, channels: int, numbers: int) -> Tensor:
    """How each glyph of a tier looks, in closed form: (N, numbers) principal components of its renders.

    It is rendered in every size on black and on white, so that what is see-through counts too. The latents are weighed
    as the pixels they stand for: unweighed, the numbers go on fine texture, and one clock looks like another.
    """
    world, base = atlas(tier), basis(tier, channels)
    count = len(world.glyphs)
    if not 1 <= numbers <= count:
        raise UserError(f"{numbers} numbers for the looks of {count} glyphs", allowed=f"1 to {count}")
    in_pixels = (1 / base.scale)[:, None, None]  # the components are orthonormal
    sides = [
        (_every_glyph(world, base, size, colour) * in_pixels).flatten(1)
        for size in SIZES
        for colour in ("black", "white")
    ]
    every = torch.cat(sides, dim=1)  # (N, 6 C h w)
    u, s, v = torch.linalg.svd(every - every.mean(dim=0), full_matrices=False)
    code = u[:, :numbers] * s[:numbers] * v[:numbers].sum(dim=1).sign()  # (N, numbers); signs don't depend on LAPACK
    return code * (LOOK_NORM / code.square().sum(dim=1).mean()).sqrt()


class Told:
    """What a text must tell of a scene, patch by patch of its latents (row by row, PATCHES of them), in closed form.

    Told in two steps, since one alone is learnt far more slowly. The route says what lies on a patch; from it what is
    seen there follows object by object, and no longer depends on where that object was placed:

    route (B, PATCHES, R): the look code of the object that covers the patch (zeros where
        none does), which of the rows and of the columns of an object of that size the patch is (one of each, the last
        of them: none), the background in [-1, 1], and the patch's place.
    drawn (B, PATCHES, S): the patch's latents on black, how much of it is see-through (principal
        components of white less black), the background, and the patch's place. The state of a text behind its words
        is this, filled up with zeros, so that a UNet finds a patch by its place and reads it as it stands.
    """

    def __init__(self, tier: str, channels: int, numbers: int) -> None:
        world, base = atlas(tier), basis(tier, channels)
        code = looks(tier, channels, numbers)
        self.code = torch.cat([code, code.new_zeros(1, numbers)])  # (N + 1, numbers); -1: no object
        self.spans: dict[int, tuple[int, int, int]] = {}  # edge: first row of its own, rows, first kind of its own
        on_black, see_through, rows, kinds = [], [], 0, 0
        for size, edge in SIZES.items():
            low, high = _span(PIXELS // 2, edge)
            black, white = (
                _every_glyph(world, base, size, colour)[..., low:high, low:high].flatten(2).transpose(1, 2)
                for colour in ("black", "white")
            )  # (N, kinds of this size, C)
            on_black.append(black)
            see_through.append(white - black)
            self.spans[edge] = rows, high - low, kinds
            rows, kinds = rows + high - low, kinds + (high - low) ** 2
        self.rows, self.none = rows, kinds
        # which[k]: kind k's row and column as a route tells them, (kinds + 1, 2 (rows + 1)); sizes[k]: of which size
        self.which = torch.zeros(kinds + 1, 2 * (rows + 1))
        self.which[kinds, [rows, 2 * rows + 1]] = ROUTE_SCALE
        self.sizes = torch.zeros(kinds, dtype=torch.long)
        for k, (row, count, kind) in enumerate(self.spans.values()):
            own = torch.arange(count)
            for i in range(count):
                self.which[kind + i * count + own, row + i] = ROUTE_SCALE
                self.which[kind + i * count + own, rows + 1 + row + own] = ROUTE_SCALE
            self.sizes[kind : kind + count**2] = k
        self.place = _places()  # (PATCHES, 8)
        self.route_numbers = numbers + 2 * (rows + 1) + 3 + self.place.shape[1]  # R
        grounds = torch.tensor([COLOURS[colour].rgb for colour in ("black", "white")]) / 127.5 - 1
        bare = base.encode(grounds[:, :, None, None].expand(-1, -1, PATCH, PATCH)).flatten(1)  # (2, C)
        black = torch.cat([*on_black, bare[0].expand(len(world.glyphs), 1, -1)], dim=1)  # (N, kinds + 1, C)
        clear = torch.cat([*see_through, (bare[1] - bare[0]).expand(len(world.glyphs), 1, -1)], dim=1)
        black, clear = (part - part.mean(dim=(0, 1)) for part in (black, clear))
        leading = _leading(clear, CLEAR)  # (C, CLEAR)
        parts = [black, clear @ leading]
        spreads = [part.square().mean().sqrt() for part in parts]
        # (N, kinds + 1, C + CLEAR)
        self.drawn = TOLD_SCALE * torch.cat([part / spread for part, spread in zip(parts, spreads)], dim=2)
        # What an error of each number costs in pixels; of what is see-through on a background of middling brightness.
        in_pixels = base.scale**-2  # (C,)
        of_parts = [in_pixels, 0.5 * (leading.T.square() @ in_pixels)]
        costs = [(spread / TOLD_SCALE) ** 2 * each for spread, each in zip(spreads, of_parts)]
        ground = costs[0].new_full((3,), PATCH**2 / GROUND_SCALE**2)
        cost = torch.cat([*costs, ground, costs[0].mean().expand(self.place.shape[1])])
        self.weights = cost / cost.mean()  # (S,)

    def __call__(self, scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
        """Route and drawn of scenes."""
        things = torch.full((len(scenes), GRID, GRID), -1)
        kinds = torch.full_like(things, self.none)
        for k, one in enumerate(scenes):
            for (edge, x, y), thing in zip(layout(one), one.objects, strict=True):
                (left, right), (top, bottom) = _span(x, edge), _span(y, edge)
                _, count, kind = self.spans[edge]
                things[k, top:bottom, left:right] = thing
                kinds[k, top:bottom, left:right] = kind + torch.arange(count**2).view(count, count)
        things, kinds = things.flatten(1), kinds.flatten(1)  # (B, PATCHES)
        rgb = torch.tensor([COLOURS[one.background].rgb for one in scenes]) / 127.5 - 1
        ground = rgb[:, None].expand(-1, PATCHES, -1)  # (B, PATCHES, 3)
        place = self.place.expand(len(scenes), -1, -1)
        route = torch.cat([self.code[things], self.which[kinds], ROUTE_SCALE * ground, ROUTE_SCALE * place], dim=2)
        drawn = torch.cat([self.drawn[things, kinds], GROUND_SCALE * ground, PLACE_SCALE * place], dim=2)
        return route, drawn


def _span(middle: int, edge: int) -> tuple[int, int]:
    """First patch that an object touches along one axis, and the one after the last."""
    return (middle - edge // 2) // PATCH, -((edge // 2 - middle - edge) // PATCH)


def _leading(x: Tensor, numbers: int) -> Tensor:
    """The first principal directions (C, numbers) of centred x (..., C)."""
    rows = x.flatten(0, -2).double()
    _, vectors = torch.linalg.eigh(rows.T @ rows)
    vectors = vectors.flip(1)[:, :numbers].float()
    return vectors * vectors.sum(dim=0).sign()  # signs don't depend on LAPACK


def _places() -> Tensor:
    """Where each patch lies, (PATCHES, 8): four cosines downwards and four across, each patch unlike all others."""
    middles = (torch.arange(GRID) + 0.5) / GRID * torch.pi
    waves = torch.stack([torch.cos(k * middles) for k in range(1, 5)], dim=1)  # (GRID, 4)
    down, across = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    return torch.cat([waves[down.flatten()], waves[across.flatten()]], dim=1)

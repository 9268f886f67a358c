"""Which glyph does a picture show? Looked up among all glyphs of a tier, with nothing that was learned.

A picture is a glyph over a flat background: pixel = colour + (1 - alpha) * background. With the background b measured
at the border, D = picture - b and R = colour - alpha * b, the question is which R, at which place and size, explains
most of D. D and R are linear in their parts, so <D, R> is one correlation of four channels, (D, -b.D) with
(colour, alpha), and the sprite bank does not depend on the background: every glyph at every place is one matrix
product. What is reported is the share of D's energy that a * R explains, a (the contrast) being free between LOW and
HIGH: soft pictures lose no rank to sharp ones, but grey is not black.

Three passes, each on what the last one left: all glyphs, sizes and places on a grid of 8-pixel cells; all glyphs at 16
samples an edge round the best places; the best glyphs at 32 samples an edge round the very best, to one pixel.

Legend: B pictures, N glyphs, S sprite edge, E picture edge, w samples along a template's edge, K kept glyphs, H places.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kotoe.errors import UserError

CELL = 8  # pixels in a cell of the first pass
SIZES = tuple(range(40, 113, 8))  # object edges of the first pass, in pixels; later passes lie between them
LOW, HIGH = 0.75, 1.15  # contrast a picture may have, relative to the glyph's own
RING = 4  # pixels of border that are read as background
ANCHORS = 4  # places that the second pass searches round
LIKELY = 128  # glyphs that the second pass ranks
KEPT = 24  # glyphs that the third pass ranks
FLOOR = 1e-4  # mean squared difference from the background under which a picture counts as empty
CHUNK = 8  # pictures at once


@dataclass(frozen=True, kw_only=True)
class Match:
    """The K best glyphs of B pictures, best first.

    glyphs: (B, K) int64 indices into the sprites. scores: (B, K) share of the picture explained, at most 1.
    sizes: (B, K) edge in pixels. centres: (B, K, 2) x, y in pixels. background: (B, 3) RGB, 0 to 1.
    """

    glyphs: Tensor
    scores: Tensor
    sizes: Tensor
    centres: Tensor
    background: Tensor


def as_float(pictures: Tensor) -> Tensor:
    """Pictures (B, 3, E, E) uint8, or float in 0 to 1, as float32 in 0 to 1."""
    if pictures.ndim != 4 or pictures.shape[1] != 3:
        raise UserError(f"pictures of shape {tuple(pictures.shape)}", allowed="(B, 3, height, width)")
    return pictures.float() / 255 if pictures.dtype == torch.uint8 else pictures.float()


def border_colour(pictures: Tensor) -> Tensor:
    """(B, 3) RGB, 0 to 1: the median of the outer RING pixels, so an object may touch up to half of the border."""
    x = as_float(pictures)
    inside = torch.zeros(x.shape[-2:], dtype=torch.bool, device=x.device)
    inside[RING:-RING, RING:-RING] = True
    return x[:, :, ~inside].median(dim=-1).values  # (B, 3, border) -> (B, 3)


def explained(product: Tensor, energy: Tensor, total: Tensor) -> Tensor:
    """Share of `total` = |D|^2 explained by a * R with the best a in [LOW, HIGH]. product = <D, R>, energy = |R|^2."""
    a = (product / energy.clamp_min(1e-12)).clamp(LOW, HIGH)
    return (2 * a * product - a * a * energy) / total


@dataclass(frozen=True, kw_only=True)
class _Bank:
    """Templates (N, 4 w w): colour and alpha. moments (N, 5): |colour|^2, <colour, alpha> per channel, |alpha|^2."""

    templates: Tensor
    moments: Tensor
    width: int

    @staticmethod
    def of(sprites: Tensor, width: int) -> _Bank:
        """sprites: (N, 4, S, S), 0 to 255."""
        parts = [_shrink(chunk.float() / 255, width) for chunk in sprites.split(256)]
        small = torch.cat(parts)  # (N, 4, w, w)
        colour, alpha = small[:, :3].flatten(2), small[:, 3].flatten(1)
        moments = torch.cat(
            [
                colour.square().sum((1, 2))[:, None],
                (colour * alpha[:, None]).sum(2),
                alpha.square().sum(1)[:, None],
            ],
            dim=1,
        )  # (N, 5)
        return _Bank(templates=small.flatten(1), moments=moments, width=width)

    def on(self, background: Tensor, glyphs: Tensor) -> Tensor:
        """R of glyphs (B, K) on background (B, 3): (B, K, w 3 w), rows outermost as `_at` makes crops."""
        w = self.width
        t = self.templates[glyphs].view(*glyphs.shape, 4, w, w)
        r = t[:, :, :3] - t[:, :, 3:] * background[:, None, :, None, None]
        return r.transpose(2, 3).flatten(2)

    def energy(self, background: Tensor, glyphs: Tensor | None = None) -> Tensor:
        """|R|^2 on background (B, 3): (B, N), or (B, K) of glyphs (B, K)."""
        moments = self.moments if glyphs is None else self.moments[glyphs]  # (N, 5) or (B, K, 5)
        one = torch.ones_like(background[:, :1])
        b = torch.cat([one, -2 * background, background.square().sum(1, keepdim=True)], dim=1)  # (B, 5)
        return b @ moments.T if glyphs is None else (moments @ b[:, :, None])[..., 0]


def _shrink(sprites: Tensor, width: int) -> Tensor:
    return F.interpolate(sprites, size=(width, width), mode="bilinear", antialias=True, align_corners=False)


def _windows(centre: Tensor, size: Tensor, width: int, edge: int) -> Tensor:
    """Weights (..., w, E) that sample `width` points of a window `size` pixels wide round `centre`: triangles, as
    antialiased bilinear resizing has them. What lies outside the picture counts as background."""
    step = size / width  # (...,)
    at = centre[..., None] + (torch.arange(width) + 0.5 - width / 2) * step[..., None]  # (..., w)
    spread = step.clamp_min(1.0)[..., None, None]
    pixel = torch.arange(edge) + 0.5
    return (1 - (pixel - at[..., None]).abs() / spread).clamp_min_(0) / spread  # (..., w, E)


class Matcher:
    """Looks pictures up among sprites (N, 4, S, S) uint8 premultiplied RGBA."""

    def __init__(self, sprites: Tensor) -> None:
        if sprites.ndim != 4 or sprites.shape[1] != 4 or sprites.dtype != torch.uint8:
            raise UserError(f"sprites {tuple(sprites.shape)} {sprites.dtype}", allowed="(N, 4, S, S) torch.uint8")
        self.count = sprites.shape[0]
        self._fine = _Bank.of(sprites.cpu(), 32)
        half = F.avg_pool2d(sprites.cpu().float(), 2)  # enough for the small templates, and four times as fast
        self._coarse = {size: _Bank.of(half, size // CELL) for size in SIZES}
        self._middle = _Bank.of(half, 16)

    @torch.inference_mode()
    def match(self, pictures: Tensor, *, background: Tensor | None = None, regions: Tensor | None = None) -> Match:
        """The best glyphs of pictures (B, 3, E, E), uint8 or float in 0 to 1. One picture's result is its alone.

        background: (B, 3) in 0 to 1 if known, else measured at the border.
        regions: (B, E, E) bool, where to look; the rest is taken to be background.
        """
        x = as_float(pictures).cpu()
        if x.shape[-1] != x.shape[-2] or x.shape[-1] % CELL or x.shape[-1] < SIZES[0]:
            raise UserError(
                f"pictures of {x.shape[-1]} x {x.shape[-2]} pixels", allowed=f"squares, a multiple of {CELL} pixels"
            )
        b = border_colour(x) if background is None else background.float()
        parts = []
        for s in range(0, len(x), CHUNK):
            d = x[s : s + CHUNK] - b[s : s + CHUNK, :, None, None]
            parts.append(self._match(d if regions is None else d * regions[s : s + CHUNK, None], b[s : s + CHUNK]))
        glyphs, scores, sizes, centres = (torch.cat(field) for field in zip(*parts))
        return Match(glyphs=glyphs, scores=scores, sizes=sizes, centres=centres, background=b)

    def _match(self, d: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """D (B, 3, E, E) and background (B, 3): glyphs (B, K), scores (B, K), sizes (B, K), centres (B, K, 2)."""
        total = d.square().sum((1, 2, 3)).clamp_min(FLOOR * d[0].numel())  # (B,)
        best, sizes, centres = self._everywhere(d, b, total)  # (B, N), (B, N), (B, N, 2)

        order = best.topk(min(LIKELY, self.count), dim=1).indices  # (B, L)
        places = _around(
            sizes, centres, order[:, :ANCHORS], factors=(0.93, 1.0, 1.07), shifts=(-4.0, -2.0, 0.0, 2.0, 4.0)
        )
        best, where = self._at(d, b, total, places, self._middle, order)  # (B, L)
        sizes, centres = _place(places, where)

        top = best.topk(min(KEPT, self.count), dim=1).indices  # (B, K)
        places = _around(sizes, centres, top[:, :2], factors=(0.965, 1.0, 1.036), shifts=(-1.0, 0.0, 1.0))
        glyphs = order.gather(1, top)
        scores, where = self._at(d, b, total, places, self._fine, glyphs)  # (B, K)
        order = scores.argsort(dim=1, descending=True, stable=True)
        size, centre = _place(places, where.gather(1, order))
        return glyphs.gather(1, order), scores.gather(1, order), size, centre

    def _everywhere(self, d: Tensor, b: Tensor, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """First pass: per glyph the best score (B, N), size (B, N) and centre (B, N, 2)."""
        cells = F.avg_pool2d(d, CELL)  # (B, 3, E / CELL, E / CELL)
        cells = torch.cat([cells, -(cells * b[:, :, None, None]).sum(1, keepdim=True)], dim=1)  # -b.D meets alpha
        area = CELL * CELL
        count, across = len(d), cells.shape[-1]
        best = torch.full((count, self.count), -torch.inf)
        size = torch.zeros(count, self.count)
        corner = torch.zeros(count, self.count, dtype=torch.long)
        for edge, bank in self._coarse.items():
            w = bank.width
            if w > across:
                continue
            patches = F.unfold(cells, w)  # (B, 4 w w, H)
            product, at = (bank.templates @ patches).max(dim=2)  # (B, N, H) -> (B, N)
            score = explained(area * product, area * bank.energy(b), total[:, None])
            better = score > best
            best = torch.where(better, score, best)
            size = torch.where(better, float(edge), size)
            steps = across - w + 1
            corner = torch.where(better, (at // steps) * across + at % steps, corner)
        left = torch.stack([corner % across, corner // across], dim=-1)  # (B, N, 2) x, y in cells
        return best, size, left * CELL + size[..., None] / 2

    def _at(
        self, d: Tensor, b: Tensor, total: Tensor, places: _Places, bank: _Bank, glyphs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Scores of glyphs (B, K) at the best of H places each (B, K), and which place, an index into H (B, K)."""
        w, edge, (count, blocks, shifts) = bank.width, d.shape[-1], places.x.shape
        wx = _windows(places.x, places.size[..., None], w, edge)  # (B, A, X, w, E)
        wy = _windows(places.y, places.size[..., None], w, edge)
        rows = wy.flatten(1, 3) @ d.transpose(1, 2).reshape(count, edge, -1)  # (B, A Y w, 3 E)
        crops = rows.view(count, blocks, -1, edge) @ wx.flatten(2, 3).transpose(2, 3)  # (B, A, Y w 3, X w)
        crops = crops.view(count, blocks, shifts, w * 3, shifts, w).transpose(3, 4)  # (B, A, Y, X, w 3, w)
        crops = crops.reshape(count, blocks * shifts * shifts, -1)  # (B, H, w 3 w)
        product = crops @ bank.on(b, glyphs).transpose(1, 2)  # (B, H, K)
        area = (places.size / w).square()[:, :, None].expand(-1, -1, shifts * shifts).flatten(1)[..., None]  # (B, H, 1)
        return explained(area * product, area * bank.energy(b, glyphs)[:, None], total[:, None, None]).max(dim=1)


@dataclass(frozen=True, kw_only=True)
class _Places:
    """A blocks of a size (B, A), each with X columns x (B, A, X) and as many rows y (B, A, X): H = A X X places."""

    size: Tensor
    x: Tensor
    y: Tensor


def _around(
    size: Tensor, centre: Tensor, picked: Tensor, *, factors: tuple[float, ...], shifts: tuple[float, ...]
) -> _Places:
    """Places round those of the glyphs picked (B, A): of sizes (B, N) and centres (B, N, 2)."""
    size = size.gather(1, picked)  # (B, A)
    centre = centre.gather(1, picked[..., None].expand(-1, -1, 2))
    middle = centre.repeat_interleave(len(factors), dim=1)  # (B, A F, 2)
    step = torch.tensor(shifts)
    return _Places(
        size=(size[:, :, None] * torch.tensor(factors)).flatten(1),  # (B, A F)
        x=middle[..., :1] + step,
        y=middle[..., 1:] + step,
    )


def _place(places: _Places, index: Tensor) -> tuple[Tensor, Tensor]:
    """Size (B, K) and centre (B, K, 2) of places (B, K)."""
    shifts = places.x.shape[-1]
    block, y, x = index // shifts**2, index // shifts % shifts, index % shifts
    left = places.x.flatten(1).gather(1, block * shifts + x)
    top = places.y.flatten(1).gather(1, block * shifts + y)
    return places.size.gather(1, block), torch.stack([left, top], dim=-1)

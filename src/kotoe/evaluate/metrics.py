"""Figures with intervals: recall, backgrounds, relations and likeness, each with a known answer in the tests.

Legend: B pictures, K glyphs found, H W rows and columns. Pictures are float32 in 0 to 1 unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kotoe.errors import UserError
from kotoe.evaluate.match import Match, as_float

WINDOW = 11  # pixels along the edge of SSIM's Gaussian window, sigma 1.5 (Wang et al. 2004)
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2
SHIFT = 4  # pixels that `aligned_ssim` may move the true render
DRAWS = 2000  # bootstrap resamples


@dataclass(frozen=True, kw_only=True)
class Score:
    """A figure over n items, with a bootstrap 95 % interval."""

    value: float
    n: int
    low: float
    high: float

    def to_json(self) -> dict[str, float | int]:
        return asdict(self)


def score(values: Sequence[float] | np.ndarray, *, of: Literal["mean", "median"] = "mean", seed: int = 0) -> Score:
    """Mean or median of values, with the 2.5 and 97.5 % points of the same figure over resampled values.

    Where all values are equal the interval is a point: resampling can't show what was never seen.
    """
    x = np.asarray(values, dtype=np.float64)
    _not_empty(x)
    figure = np.mean if of == "mean" else np.median
    rows = _resampled(len(x), seed)
    low, high = np.percentile(figure(x[rows], axis=1), [2.5, 97.5])
    return Score(value=float(figure(x)), n=len(x), low=float(low), high=float(high))


def ratio(above: Sequence[float] | np.ndarray, below: Sequence[float] | np.ndarray, *, seed: int = 0) -> Score | None:
    """mean(above) / mean(below) over paired items; the pairs are resampled together. None where mean(below) is 0."""
    a, b = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    if a.shape != b.shape:
        raise UserError(f"a ratio of {len(a)} to {len(b)} values", allowed="pairs")
    _not_empty(a)
    if b.mean() == 0:
        return None
    rows = _resampled(len(a), seed)
    top, bottom = a[rows].mean(axis=1), b[rows].mean(axis=1)
    known = bottom > 0
    low, high = np.percentile(top[known] / bottom[known], [2.5, 97.5])
    return Score(value=float(a.mean() / b.mean()), n=len(a), low=float(low), high=float(high))


def _not_empty(x: np.ndarray) -> None:
    if x.ndim != 1 or len(x) == 0:
        raise UserError(f"a figure over values of shape {x.shape}", allowed="one or more values")


def _resampled(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, n, size=(DRAWS, n))  # (DRAWS, n)


# ---- what is shown --------------------------------------------------------------------------------------------------


def recall(match: Match, wanted: Sequence[Collection[int]], k: int) -> np.ndarray:
    """(B,) bool: whether one of the glyphs wanted of each picture is among its k best."""
    if not 1 <= k <= match.glyphs.shape[1]:
        raise UserError(f"recall at {k}", allowed=f"1 to {match.glyphs.shape[1]}, the glyphs a match keeps")
    if len(wanted) != len(match.glyphs):
        raise UserError(f"{len(wanted)} answers for {len(match.glyphs)} pictures", allowed="one each")
    best = match.glyphs[:, :k].tolist()
    return np.array([not set(right).isdisjoint(found) for right, found in zip(wanted, best)])


def halves(relation: str, edge: int) -> tuple[Tensor, Tensor]:
    """Where the first and the second object of a relation belong: two (E, E) bool masks, halves of the picture."""
    first = torch.zeros(edge, edge, dtype=torch.bool)
    if relation in ("left_of", "right_of"):
        first[:, : edge // 2] = True
    elif relation in ("above", "below"):
        first[: edge // 2] = True
    else:
        raise UserError(f"relation {relation!r}", allowed="left_of, right_of, above, below")
    return (first, ~first) if relation in ("left_of", "above") else (~first, first)


def related(
    first: Match, second: Match, wanted: Sequence[tuple[Collection[int], Collection[int]]], k: int
) -> np.ndarray:
    """(B,) bool: both objects are found, each among the k best of the half of the picture it was asked to be in."""
    return recall(first, [a for a, _ in wanted], k) & recall(second, [b for _, b in wanted], k)


# ---- colours --------------------------------------------------------------------------------------------------------


def to_lab(rgb: Tensor) -> Tensor:
    """CIELAB (..., 3) under D65 of sRGB (..., 3) in 0 to 1 (IEC 61966-2-1; CIE 15)."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055).clamp_min(0) ** 2.4)
    to_xyz = torch.tensor(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    xyz = linear @ to_xyz.T / torch.tensor([0.95047, 1.0, 1.08883])
    f = torch.where(xyz > (6 / 29) ** 3, xyz.clamp_min(0) ** (1 / 3), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-1)


def nearest_colour(rgb: Tensor, colours: Mapping[str, tuple[int, int, int]]) -> list[str]:
    """For each of (B, 3) in 0 to 1, the named colour (sRGB, 0 to 255) at the least distance in CIELAB."""
    names = list(colours)
    known = to_lab(torch.tensor([colours[name] for name in names]) / 255)
    return [names[i] for i in torch.cdist(to_lab(rgb.float()), known).argmin(dim=1).tolist()]


# ---- likeness -------------------------------------------------------------------------------------------------------


@cache
def _blur(length: int) -> Tensor:
    """(length - WINDOW + 1, length): a Gaussian window at every place where it fits."""
    at = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    window = torch.exp(-at.square() / (2 * SIGMA**2))
    window = (window / window.sum()).float()
    matrix = torch.zeros(length - WINDOW + 1, length)
    for row in range(len(matrix)):
        matrix[row, row : row + WINDOW] = window
    return matrix


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """(B,) structural similarity of pictures (B, 3, H, W), uint8 or 0 to 1, both at least 11 pixels high and wide.

    Wang et al. 2004 as published: 11 x 11 Gaussian window of sigma 1.5 where it fits whole, K1 = 0.01, K2 = 0.03,
    population variances; per channel of sRGB, then the mean of the three.
    """
    a, b = as_float(a), as_float(b)
    if a.shape != b.shape or min(a.shape[-2:]) < WINDOW:
        raise UserError(
            f"SSIM of {tuple(a.shape)} and {tuple(b.shape)}", allowed=f"two of a shape, {WINDOW} x {WINDOW} or more"
        )
    rows, columns = _blur(a.shape[-2]), _blur(a.shape[-1])
    mean_a, mean_b, aa, bb, ab = rows @ torch.stack([a, b, a * a, b * b, a * b]) @ columns.T  # (B, 3, H - 10, W - 10)
    var_a, var_b, cov = aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b
    top = (2 * mean_a * mean_b + C1) * (2 * cov + C2)
    bottom = (mean_a**2 + mean_b**2 + C1) * (var_a + var_b + C2)
    return (top / bottom).mean(dim=(1, 2, 3))


def best_shift(pictures: Tensor, renders: Tensor, limit: int = SHIFT) -> Tensor:
    """Renders (B, 3, H, W) moved by the whole pixels, up to `limit` each way, that bring them nearest to the pictures.

    Nearest in squared difference of luma; edges are continued outwards. Returns the moved renders, float.
    """
    x, y = as_float(pictures), as_float(renders)
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    wide = F.pad(y, (limit,) * 4, mode="replicate")  # (B, 3, H + 2 limit, W + 2 limit)
    grey, wide_grey = (x * luma).sum(1), (wide * luma).sum(1)
    height, width = x.shape[-2:]
    reach = range(2 * limit + 1)
    places = sorted(((r, c) for r in reach for c in reach), key=lambda at: (at[0] - limit) ** 2 + (at[1] - limit) ** 2)
    errors = torch.stack(
        [(wide_grey[:, r : r + height, c : c + width] - grey).square().mean((1, 2)) for r, c in places]
    )  # (places, B), the unmoved one first: it wins where all are alike
    chosen = [places[i] for i in errors.argmin(dim=0).tolist()]
    return torch.stack([w[:, r : r + height, c : c + width] for w, (r, c) in zip(wide, chosen)])


def aligned_ssim(pictures: Tensor, renders: Tensor, limit: int = SHIFT) -> Tensor:
    """(B,) SSIM of pictures to their true renders at the best alignment over small shifts: the prompt says size and
    place in words, not in pixels."""
    moved = best_shift(pictures, renders, limit)
    return torch.maximum(ssim(pictures, renders), ssim(pictures, moved))

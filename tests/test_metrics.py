"""Figures with known answers, and SSIM against its definition computed another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch import Tensor

from kotoe.errors import UserError
from kotoe.evaluate import metrics
from kotoe.evaluate.match import Match
from kotoe.evaluate.metrics import (
    Score,
    aligned_ssim,
    halves,
    nearest_colour,
    ratio,
    recall,
    related,
    score,
    ssim,
    to_lab,
)


def found(*glyphs: list[int]) -> Match:
    """A match with these glyphs, best first."""
    best = torch.tensor(glyphs)
    blank = torch.zeros(best.shape)
    return Match(
        glyphs=best,
        scores=blank,
        sizes=blank,
        centres=torch.stack([blank] * 2, -1),
        background=torch.zeros(len(best), 3),
    )


# ---- figures --------------------------------------------------------------------------------------------------------


def test_mean_and_interval_of_a_share() -> None:
    """300 of 400: the bootstrap agrees with the normal approximation, 1.96 * sqrt(p (1 - p) / n)."""
    figure = score([1] * 300 + [0] * 100)
    assert (figure.value, figure.n) == (0.75, 400)
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert figure.low == pytest.approx(0.75 - half, abs=0.008)
    assert figure.high == pytest.approx(0.75 + half, abs=0.008)
    assert figure == score([1] * 300 + [0] * 100), "not the same twice"


def test_median_is_not_the_mean() -> None:
    assert score([0.0, 0.8, 0.9], of="median").value == 0.8
    assert score([0.0, 0.8, 0.9]).value == pytest.approx(0.5667, abs=1e-4)


def test_all_alike_is_a_point() -> None:
    assert score([1, 1, 1]) == Score(value=1.0, n=3, low=1.0, high=1.0)
    assert score([0]).to_json() == {"value": 0.0, "n": 1, "low": 0.0, "high": 0.0}


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30))
def test_interval_holds_the_value(values: list[float]) -> None:
    figure = score(values, of="median")
    assert figure.low - 1e-12 <= figure.value <= figure.high + 1e-12
    assert min(values) <= figure.low
    assert figure.high <= max(values)


def test_ratio_resamples_pairs_together() -> None:
    same = np.array([1, 0] * 50)
    assert ratio(same, same) == Score(value=1.0, n=100, low=1.0, high=1.0), "a pair always has the same luck"
    half = ratio([1, 0] * 50, [1] * 100)
    assert half is not None
    assert half.value == 0.5
    assert half.low < 0.45 < 0.55 < half.high
    assert ratio([1, 0], [0, 0]) is None


def test_figures_over_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="one or more"):
        score([])
    with pytest.raises(UserError, match="pairs"):
        ratio([1, 0], [1])


# ---- what is shown --------------------------------------------------------------------------------------------------


def test_recall_with_equivalents() -> None:
    match = found([4, 2, 9], [7, 1, 0])
    assert recall(match, [{4}, {1}], 1).tolist() == [True, False]
    assert recall(match, [{2}, {1}], 2).tolist() == [True, True]
    assert recall(match, [{9, 4}, {0}], 1).tolist() == [True, False], "any of the wanted ones will do"
    with pytest.raises(UserError, match="recall at 4"):
        recall(match, [{1}, {1}], 4)
    with pytest.raises(UserError, match="1 answers for 2"):
        recall(match, [{1}], 1)


def test_relation_needs_both_objects_in_their_halves() -> None:
    first, second = found([1, 2], [1, 2], [2, 1], [5, 1]), found([2, 1], [5, 2], [1, 2], [2, 1])
    wanted = [({1}, {2})] * 4
    assert related(first, second, wanted, 1).tolist() == [True, False, False, False]  # the third is swapped
    assert related(first, second, wanted, 2).tolist() == [True, True, True, True]


@pytest.mark.parametrize(
    ("relation", "x", "y"), [("left_of", 20, 64), ("right_of", 100, 64), ("above", 64, 20), ("below", 64, 100)]
)
def test_halves(relation: str, x: int, y: int) -> None:
    first, second = halves(relation, 128)
    assert first[y, x]
    assert torch.equal(first, ~second)
    assert first.sum() == 128 * 64
    with pytest.raises(UserError, match="relation"):
        halves("inside", 128)


# ---- colours --------------------------------------------------------------------------------------------------------


def test_lab_of_known_colours() -> None:
    """sRGB primaries under D65, as published (Lindbloom's calculator)."""
    rgb = torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0.5]])
    lab = torch.tensor([[100.0, 0, 0], [0, 0, 0], [53.241, 80.092, 67.203], [87.735, -86.183, 83.179],
                        [32.297, 79.188, -107.860], [53.389, 0, 0]])  # fmt: skip
    torch.testing.assert_close(to_lab(rgb), lab, atol=0.05, rtol=0)


def test_nearest_colour() -> None:
    colours = {"white": (255, 255, 255), "grey": (148, 150, 154), "light blue": (150, 212, 242), "blue": (44, 96, 212)}
    exact = torch.tensor(list(colours.values())) / 255
    assert nearest_colour(exact, colours) == list(colours)
    assert nearest_colour((exact + 0.03).clamp(0, 1), colours) == list(colours)
    assert nearest_colour(torch.tensor([[0.62, 0.8, 0.9]]), colours) == ["light blue"]


# ---- likeness -------------------------------------------------------------------------------------------------------


def pictures(seed: int = 0, count: int = 3, height: int = 40, width: int = 52) -> Tensor:
    """Smooth random pictures in 0 to 1."""
    noise = np.random.default_rng(seed).random((count, 3, height, width))
    return torch.from_numpy(gaussian_filter(noise, (0, 0, 2, 2))).float().sub(0.3).mul(2.5).clamp(0, 1)


def published_ssim(a: np.ndarray, b: np.ndarray, sigma: float = 1.5, k2: float = 0.03, unbias: float = 1.0) -> float:
    """Wang et al. 2004 in float64 by scipy's Gaussian of radius 5, borders cut off: what scikit-image computes with
    gaussian_weights=True, use_sample_covariance=False."""

    def blur(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, sigma, truncate=3.5 * 1.5 / sigma)

    values = []
    for x, y in zip(a.astype(np.float64), b.astype(np.float64)):
        mx, my = blur(x), blur(y)
        vx, vy, vxy = (unbias * (blur(p) - q) for p, q in ((x * x, mx * mx), (y * y, my * my), (x * y, mx * my)))
        c1, c2 = 0.01**2, k2**2
        s = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
        values.append(s[5:-5, 5:-5].mean())
    return float(np.mean(values))


def test_ssim_is_the_published_one() -> None:
    a = pictures(0)
    b = (0.8 * a + 0.2 * pictures(1)).clamp(0, 1)
    ours = ssim(a, b)
    for i in range(len(a)):
        x, y = a[i].numpy(), b[i].numpy()
        assert ours[i].item() == pytest.approx(published_ssim(x, y), abs=2e-5)
        for fault in ({"sigma": 1.4}, {"k2": 0.02}, {"unbias": 121 / 120 * 1.05}):  # each deliberate fault shows
            assert abs(ours[i].item() - published_ssim(x, y, **fault)) > 2e-4, fault


def test_ssim_known_answers() -> None:
    a = pictures(2)
    torch.testing.assert_close(ssim(a, a), torch.ones(3))
    black, white = torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16)
    assert ssim(black, white).item() == pytest.approx(0.01**2 / (1 + 0.01**2), rel=1e-3)
    assert ssim(a, 1 - a).max() < 0.3
    assert torch.equal(ssim((a * 255).to(torch.uint8), a)[:, None].round(decimals=1), torch.ones(3, 1))
    with pytest.raises(UserError, match="11 x 11 or more"):
        ssim(a[..., :10], a[..., :10])


def scene(x: int = 20, y: int = 15) -> Tensor:
    """(1, 3, 64, 64): a flat ground with a patterned square whose corner is at (x, y)."""
    picture = torch.full((1, 3, 64, 64), 0.8)
    picture[..., y : y + 24, x : x + 24] = pictures(4, 1, 24, 24)
    return picture


def test_alignment_forgives_small_shifts_only() -> None:
    assert ssim(scene(), scene(23, 13)).item() < 0.9
    assert aligned_ssim(scene(), scene(23, 13)).item() == pytest.approx(1.0, abs=1e-5)
    assert aligned_ssim(scene(), scene(20 + metrics.SHIFT + 6, 15)).item() < 0.9
    assert aligned_ssim(scene(), scene()).item() == pytest.approx(1.0, abs=1e-6)
    assert aligned_ssim(torch.full_like(scene(), 0.8), scene()).item() < 0.9, "an empty picture is not alike"

"""DeepCache and token merging against their authors' packages, in stock diffusers, from the same noise.

Guidance in an interval is held against a pipeline whose guidance scale is set as the steps go by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomesd
from DeepCache import DeepCacheSDHelper
from torch import Tensor

from kotoe import shortcuts
from kotoe.checkpoints import Bundle, save
from kotoe.shortcuts import Shortcuts
from kotoe.unet import UNet
from stock import SCALE, STEPS, our_latents, stock, stock_latents
from tiny import apart, tiny_bundle

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

TOLERANCE = 5e-5  # of the largest latent; measured: below 5e-6
ENGINES = ("plain", "fast")
ALONE = 1.0 + 1e-7  # at 1 itself diffusers asks for one text from the start


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    bundle = tiny_bundle(request.param, sampler="euler")
    bundle = bundle.changed(schedule=replace(bundle.schedule, timestep_spacing="leading"))
    return bundle, save(bundle, tmp_path_factory.mktemp("stock") / request.param)


def deep_cache(folder: Path, interval: int) -> Tensor:
    pipe = stock(folder)
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=0)
    helper.enable()
    return stock_latents(pipe)


def merged(folder: Path, ratio: float) -> Tensor:
    pipe = stock(folder)
    tomesd.apply_patch(pipe, ratio=ratio, use_rand=False, max_downsample=1)
    return stock_latents(pipe)


def interval(folder: Path, first: int, end: int) -> Tensor:
    """Steps first to end - 1 are guided; diffusers asks for both texts at all of them, and takes the prompt's alone."""
    pipe = stock(folder)

    def at_end(self: Any, i: int, t: Any, kept: dict[str, Any]) -> dict[str, Any]:
        self._guidance_scale = scale_of(i + 1)
        return kept

    def scale_of(i: int) -> float:
        return SCALE if first <= i < end else ALONE

    return stock_latents(pipe, guidance_scale=scale_of(0), callback_on_step_end=at_end)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("every", [2, 3])
def test_deepcache_is_that_of_its_authors(model: tuple[Bundle, Path], every: int, engine: str) -> None:
    bundle, folder = model
    ours = our_latents(bundle, cache_interval=every, engine=engine)
    assert apart(ours, deep_cache(folder, every)) < TOLERANCE
    assert apart(ours, our_latents(bundle, engine=engine)) > 100 * TOLERANCE  # it does change the picture


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_token_merging_is_that_of_its_authors(model: tuple[Bundle, Path], ratio: float, engine: str) -> None:
    bundle, folder = model
    ours = our_latents(bundle, token_merging_ratio=ratio, engine=engine)
    assert apart(ours, merged(folder, ratio)) < TOLERANCE
    assert apart(ours, our_latents(bundle, engine=engine)) > 10 * TOLERANCE


def off_by_one(self: Shortcuts, count: int) -> Tensor | None:
    if self._deep is None or self._since >= self.every or len(self._deep) != count:
        return None
    self._since += 1
    return self._deep


def least_alike(x: Tensor, h: int, w: int, ratio: float) -> Any:
    return REAL(-x.flip(1), h, w, ratio)


REAL = shortcuts.merged
FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "a step more from the cache": lambda patch: patch.setattr(Shortcuts, "deep", off_by_one),
    "others merged": lambda patch: patch.setattr("kotoe.unet.merged", least_alike),
    "fewer merged": lambda patch: patch.setattr("kotoe.unet.merged", lambda x, h, w, ratio: REAL(x, h, w, ratio / 2)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_shows(model: tuple[Bundle, Path], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, folder = model
    FAULTS[name](monkeypatch)
    caches = "cache" in name
    ours = our_latents(bundle, engine="plain", **({"cache_interval": 2} if caches else {"token_merging_ratio": 0.5}))
    assert apart(ours, deep_cache(folder, 2) if caches else merged(folder, 0.5)) > 10 * TOLERANCE


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("start", "stop"), [(0.0, 0.5), (0.25, 0.75), (0.5, 1.0)])
def test_guidance_in_an_interval(model: tuple[Bundle, Path], start: float, stop: float, engine: str) -> None:
    bundle, folder = model
    ours = our_latents(bundle, guidance_start=start, guidance_stop=stop, engine=engine)
    assert apart(ours, interval(folder, int(start * STEPS), int(stop * STEPS))) < TOLERANCE
    assert apart(ours, our_latents(bundle, engine=engine)) > 10 * TOLERANCE


def test_guidance_in_an_interval_asks_for_less(model: tuple[Bundle, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    real = UNet.forward
    monkeypatch.setattr(UNet, "forward", lambda self, x, *rest: rows.append(len(x)) or real(self, x, *rest))
    our_latents(model[0], engine="plain", guidance_stop=0.5)
    assert rows == [2, 2, 1, 1]

"""The safety checker against diffusers', same random weights and pictures; its preprocessing against transformers'."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion import safety_checker as stock
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import kotoe.vision
from checkers import EDGE_PX, extractor, photos, save_checker, stock_checker
from kotoe.safety import images
from kotoe.safety.images import ImageChecker, Preprocessing, judge, scored
from kotoe.safety.load import load_checker
from kotoe.text import ACTIVATIONS
from kotoe.vision import Transformer

TOLERANCE = 1e-3  # of a score, which has three decimals


def stock_scores(
    net: StableDiffusionSafetyChecker, pictures: list[Image.Image]
) -> tuple[np.ndarray, np.ndarray, list[bool]]:
    """Special scores (N, 3), concept scores (N, 17) and flags of diffusers' own loop.

    It throws the scores away: they are read from its frame as it returns.
    """
    pixels = extractor()(pictures, return_tensors="pt").pixel_values
    kept: list[list[dict[str, Any]]] = []

    def watch(frame: FrameType, event: str, _: object) -> None:
        if event == "return" and frame.f_code.co_filename == stock.__file__ and "has_nsfw_concepts" in frame.f_locals:
            kept.append(frame.f_locals["result"])

    sys.setprofile(watch)
    try:
        _, flags = net(clip_input=pixels, images=[np.zeros((2, 2, 3))] * len(pictures))
    finally:
        sys.setprofile(None)
    (result,) = kept
    return (
        np.array([list(one["special_scores"].values()) for one in result]),
        np.array([list(one["concept_scores"].values()) for one in result]),
        flags,
    )


def ours(checker: ImageChecker, pictures: list[Image.Image]) -> tuple[np.ndarray, np.ndarray, list[bool]]:
    verdicts = judge(checker, pictures)
    return (
        np.array([v.special_scores for v in verdicts]),
        np.array([v.concept_scores for v in verdicts]),
        [not v.allowed for v in verdicts],
    )


def apart(a: tuple[np.ndarray, np.ndarray, list[bool]], b: tuple[np.ndarray, np.ndarray, list[bool]]) -> float:
    assert a[0].shape == b[0].shape
    assert a[1].shape == b[1].shape
    return float(max(np.abs(a[0] - b[0]).max(), np.abs(a[1] - b[1]).max()))


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_scores_are_stocks(activation: str, tmp_path: Path) -> None:
    """Some photos are flagged and some aren't, some by special care alone, and every score is the same."""
    net = stock_checker(activation)
    expected = stock_scores(net, photos())
    special, concepts, flags = expected
    assert 2 <= sum(flags) <= len(flags) - 2
    assert (special > 0).any(axis=1).sum() >= 2
    assert not (special > 0).any(axis=1).all()
    bare = concepts - 0.01 * (special > 0).any(axis=1)[:, None]
    assert ((concepts > 0).any(axis=1) != (bare > 0).any(axis=1)).any(), "special care decides nowhere"
    checker = load_checker(save_checker(net, tmp_path))
    found = ours(checker, photos())
    assert apart(found, expected) < TOLERANCE
    assert found[2] == flags

    # The faults that it would show
    first = checker.net.vision_model.encoder.layers[0]
    faults = {
        "another activation": (first.mlp, "activation", ACTIVATIONS["gelu_tanh"]),
        "no class token's norm": (checker.net.vision_model, "post_layernorm", torch.nn.Identity()),
        "no norm in front": (checker.net.vision_model, "pre_layrnorm", torch.nn.Identity()),
        "no projection": (checker.net, "visual_projection", None),
    }
    for name, (module, attribute, wrong) in faults.items():
        if wrong is None:
            turned = checker.net.visual_projection.weight.roll(1, 0)
            wrong = torch.nn.Linear(*reversed(turned.shape), bias=False).requires_grad_(False)
            wrong.weight.copy_(turned)
        right = getattr(module, attribute)
        setattr(module, attribute, wrong)
        limit = 0.5 * TOLERANCE if name == "another activation" else TOLERANCE
        assert apart(ours(checker, photos()), expected) > limit, name
        setattr(module, attribute, right)
    assert apart(ours(checker, photos()), expected) < TOLERANCE


def test_patches_are_read_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault: the state of the last patch instead of the class token's, or a causal attention, as a text tower's."""
    net = stock_checker()
    expected = stock_scores(net, photos())
    checker = load_checker(save_checker(net, tmp_path))

    def last(self: Transformer, pixels: torch.Tensor) -> torch.Tensor:
        x = self.pre_layrnorm(self.embeddings(pixels))
        for layer in self.encoder.layers:
            x = layer(x)
        return self.post_layernorm(x[:, -1])

    with monkeypatch.context() as patch:
        patch.setattr(Transformer, "forward", last)
        assert apart(ours(checker, photos()), expected) > 10 * TOLERANCE
    plain = torch.nn.functional.scaled_dot_product_attention
    with monkeypatch.context() as patch:
        patch.setattr(kotoe.vision.F, "scaled_dot_product_attention", lambda q, k, v: plain(q, k, v, is_causal=True))
        assert apart(ours(checker, photos()), expected) > 10 * TOLERANCE


def test_the_loop_is_stocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order, rounding and what special care adds: without one of them scores or flags are others."""
    net = stock_checker()
    expected = stock_scores(net, photos())
    checker = load_checker(save_checker(net, tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(images, "SPECIAL_CARE", 0.0)
        found = ours(checker, photos())
        assert apart(found, expected) > 5 * TOLERANCE
        assert found[2] != expected[2]
    # carried on among the special ones, too: the first is over its threshold, so the second gets 0.01 more
    thresholds = dict.fromkeys(images.NAMES, 0.5)
    special, concepts = scored(np.array([0.6, 0.495, 0.3], np.float32), np.full(17, 0.4904, np.float32), thresholds)
    assert special == (0.1, 0.005, -0.19)
    assert concepts == (0.0,) * 17  # rounded: 0.0004 over is not over
    special, _ = scored(np.array([0.5, 0.495, 0.3], np.float32), np.full(17, 0.5, np.float32), thresholds)
    assert special == (0.0, -0.005, -0.2)


def test_the_path_for_onnx_differs_at_the_border(tmp_path: Path) -> None:
    """As docs/safety.md says: a score between 0 and 0.0005 is flagged by it, and not by the torch loop, nor by us."""
    net = stock_checker()
    photo = photos()[:1]
    pixels = extractor()(photo, return_tensors="pt").pixel_values
    with torch.no_grad():
        seen = torch.nn.functional.normalize(net.visual_projection(net.vision_model(pixels).pooler_output))
        cosines = seen @ torch.nn.functional.normalize(net.concept_embeds).T
        net.special_care_embeds_weights.fill_(2.0)
        net.concept_embeds_weights.copy_(cosines[0] + 0.2)
        net.concept_embeds_weights[5] = cosines[0, 5] - 0.0003
    _, flags = net(clip_input=pixels, images=[np.zeros((2, 2, 3))])
    _, onnx = net.forward_onnx(pixels, torch.ones(1, 3, 2, 2))
    verdict = judge(load_checker(save_checker(net, tmp_path)), photo)[0]
    assert (flags[0], bool(onnx[0]), verdict.allowed, verdict.score) == (False, True, True, 0.0)


SIZES = [(224, 224), (225, 337), (37, 91), (91, 37), (1, 5), (333, 223), (500, 501), (128, 128), (449, 1000)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("edges", [(224, 224), (30, 30), (31, 27)], ids=str)
def test_preprocessing_is_transformers(size: tuple[int, int], edges: tuple[int, int]) -> None:
    """Bit for bit, on odd sizes: shortest edge, rounding of the longer one, crop, normalisation."""
    image = photos(1)[0].resize(size, Image.Resampling.NEAREST)
    edge, crop = edges
    square = {"height": crop, "width": crop}
    stock_one = CLIPImageProcessorPil(size={"shortest_edge": edge}, crop_size=square)
    expected = stock_one(image, return_tensors="pt").pixel_values
    mine = Preprocessing(shortest_edge=edge, crop=crop)
    assert torch.equal(mine(image), expected)
    # the faults: another mean, and (where it shows) another filter
    assert not torch.equal(replace(mine, mean=(0.5, 0.5, 0.5))(image), expected)


def test_preprocessings_faults_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bilinear instead of bicubic, a crop from the corner, the longer edge first, red and blue exchanged."""
    image = photos(2)[1].resize((91, 37), Image.Resampling.NEAREST)
    expected = extractor()(image, return_tensors="pt").pixel_values
    mine = Preprocessing(shortest_edge=EDGE_PX, crop=EDGE_PX)
    assert torch.equal(mine(image), expected)
    resize, crop, convert = Image.Image.resize, Image.Image.crop, Image.Image.convert
    faults: dict[str, Any] = {
        "resize": lambda self, size, _: resize(self, size, Image.Resampling.BILINEAR),
        "crop": lambda self, box: crop(self, (0, 0, box[2] - box[0], box[3] - box[1])),
        "convert": lambda self, mode: Image.merge("RGB", convert(self, mode).split()[::-1]),
    }
    for name, wrong in faults.items():
        with monkeypatch.context() as patch:
            patch.setattr(Image.Image, name, wrong)
            assert not torch.equal(mine(image), expected), name

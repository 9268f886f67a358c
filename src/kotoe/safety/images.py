"""Pictures against CompVis' safety checker: CLIP's preprocessing, the scores, and what is done about them.

Source: StableDiffusionSafetyChecker of diffusers, its torch loop, whose scores these are: rounded to three decimals one
after the other, the concepts that need special care first. A special score above 0 flags nothing: it adds 0.01 to what
is scored after it. The source's second path, for ONNX, rounds nothing, and adds the 0.01 to the 17 concepts only, not
to the special ones that follow; so the two disagree where a score lies between 0 and 0.0005 (and if that is a special
one, by the 0.01 that it adds).

What stock does with the scores is to throw them away and paint the picture black. Here they are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from kotoe.drawing import Picture
from kotoe.errors import CheckpointError, UserError
from kotoe.record import Verdict
from kotoe.safety import reasons
from kotoe.vision import CONCEPTS, SPECIAL, SafetyNet

Action = Literal["flag", "blur", "block"]
BLUR_RADIUS_PX, BLURS_PER_EDGE = 32, 16  # InvokeAI's, of pictures of 512 pixels
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
SPECIAL_CARE = 0.01  # what a concept that needs special care adds to every score after its own
LARGEST_OFFSET = 2.0  # a cosine goes from -1 to 1


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From a picture to what a network of CLIP's reads: its shorter edge resized, the middle cut out, normalised.

    mean, std: of red, green and blue from 0 to 1.
    """

    shortest_edge: int = 224
    crop: int = 224
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.shortest_edge:
            raise UserError(f"crop {self.crop} of a shortest edge {self.shortest_edge}", allowed="1 up to the edge")
        if len(self.mean) != 3 or len(self.std) != 3 or 0.0 in self.std:
            raise UserError(f"mean {self.mean}, std {self.std}", allowed="three numbers each, no std 0")

    def __call__(self, image: Image.Image) -> Tensor:
        """Pixels (1, 3, crop, crop), float32."""
        rgb = image.convert("RGB")
        short, long = sorted(rgb.size)
        further = int(self.shortest_edge * long / short)  # rounded down
        size = (self.shortest_edge, further) if rgb.width <= rgb.height else (further, self.shortest_edge)
        resized = rgb.resize(size, Image.Resampling.BICUBIC)
        left, top = (size[0] - self.crop) // 2, (size[1] - self.crop) // 2
        middle = resized.crop((left, top, left + self.crop, top + self.crop))
        levels = (np.asarray(middle).astype(np.float64) * (1 / 255)).astype(np.float32)  # (H, W, 3)
        normal = (levels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(normal.transpose(2, 0, 1)[None].copy())


@dataclass(frozen=True, kw_only=True)
class Offsets:
    """What an operator adds to the checker's own thresholds: above 0 fewer pictures are found, below 0 more.

    every:   to all of them.
    concept: further, by concept: "0" to "16", "special-0" to "special-2".
    """

    every: float = 0.0
    concept: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in {"every": self.every, **self.concept}.items():
            if not -LARGEST_OFFSET <= value <= LARGEST_OFFSET:
                raise UserError(f"threshold offset {name} {value}", allowed=f"-{LARGEST_OFFSET} to {LARGEST_OFFSET}")
        for name in self.concept:
            if name not in NAMES:
                raise UserError(f"concept {name!r}", allowed=f"0 to {CONCEPTS - 1}, special-0 to special-{SPECIAL - 1}")

    @property
    def said(self) -> tuple[str, ...]:
        """The concepts' own, each as NAME=VALUE."""
        return tuple(f"{name}={value:g}" for name, value in self.concept.items())

    def __getitem__(self, name: str) -> float:
        return self.every + self.concept.get(name, 0.0)


NAMES = (*(f"special-{i}" for i in range(SPECIAL)), *(str(i) for i in range(CONCEPTS)))  # in the order of scoring


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageChecker:
    """A safety checker, loaded. hashes: sha256 of its "weights", for the Record."""

    name: str
    net: SafetyNet
    preprocessing: Preprocessing
    hashes: Mapping[str, str]


def scored(
    special: np.ndarray, concepts: np.ndarray, thresholds: Mapping[str, float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Scores of one picture, (3,) and (17,), from its cosines in float32 and the threshold of every one of NAMES.

    In the order and the precision of the torch loop; above 0 means found.
    """
    adjustment, found = 0.0, []
    for name, cosine in zip(NAMES, (*special, *concepts), strict=True):
        score = round(np.float32(cosine) - thresholds[name] + adjustment, 3)
        if score > 0 and name.startswith("special"):
            adjustment = SPECIAL_CARE
        found.append(round(float(score), 3) + 0.0)  # as three decimals, without the sign of a zero
    return tuple(found[:SPECIAL]), tuple(found[SPECIAL:])


@torch.inference_mode()
def judge(
    checker: ImageChecker,
    images: Sequence[Image.Image],
    *,
    action: Action = "flag",
    offsets: Offsets | None = None,
    languages: Sequence[str | None] | None = None,
) -> list[Verdict]:
    """The Verdict on each picture, looked at one by one.

    offsets:   to the checker's own thresholds; None: those as they are.
    languages: of each picture's prompt, for the reasons; None: English.
    Raises CheckpointError where the scores are no numbers: what can't be checked doesn't pass.
    """
    offsets = Offsets() if offsets is None else offsets
    net = checker.net
    own = (*net.special_care_embeds_weights.tolist(), *net.concept_embeds_weights.tolist())
    thresholds = {name: value + offsets[name] for name, value in zip(NAMES, own, strict=True)}
    verdicts = []
    for image, language in zip(images, languages or [None] * len(images), strict=True):
        pixels = checker.preprocessing(image).to(net.visual_projection.weight)
        special, concepts = (t[0].float().cpu().numpy() for t in net(pixels))
        if not np.isfinite([*special, *concepts, *thresholds.values()]).all():
            raise CheckpointError(f"{checker.name} gives scores that are no numbers", hint="Its weights are damaged")
        special_scores, scores = scored(special, concepts, thresholds)
        highest = max(scores)
        allowed = highest <= 0
        verdict = Verdict(
            allowed=allowed,
            reason="" if allowed else reasons.of_picture(scores.index(highest), highest, language),
            checker=checker.name,
            checker_sha256=checker.hashes["weights"],
            action=action,
            score=highest,
            concept_scores=scores,
            special_scores=special_scores,
            threshold_offset=offsets.every,
            concept_offsets=offsets.said,
        )
        verdicts.append(verdict)
    return verdicts


def blurred(image: Image.Image) -> Image.Image:
    """The picture blurred beyond recognition of what it shows: a Gauss filter with a radius of BLUR_RADIUS_PX, in
    pictures over 512 pixels in proportion."""
    return image.filter(ImageFilter.GaussianBlur(max(BLUR_RADIUS_PX, max(image.size) / BLURS_PER_EDGE)))


def carry_out(picture: Picture, verdict: Verdict) -> Picture | None:
    """The picture with the verdict in its record, blurred if that is what the verdict asks for; None: it is blocked."""
    if not verdict.allowed and verdict.action == "block":
        return None
    image = blurred(picture.image) if not verdict.allowed and verdict.action == "blur" else picture.image
    return Picture(image=image, record=replace(picture.record, picture_verdict=verdict))

"""Inpainting against diffusers' own pipeline: UNets that read mask and masked picture, and those that don't.

The autoencoder's posterior is made narrow (3e-7 wide), so that diffusers' sample of it is the mean that Kotoe takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from kotoe import drawing as g
from kotoe import starting
from kotoe.checkpoints import Bundle, load, save
from kotoe.checkpoints.inspect import describe
from kotoe.config import Request
from kotoe.denoise import beside, inpainted
from kotoe.errors import CheckpointError, UserError
from kotoe.images import differences
from kotoe.rng import ImageNoise, generator
from kotoe.starting import box_around, put_back
from tiny import apart, latents_decoded, tiny_bundle
from tiny import pictures as written

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

TOLERANCE = 5e-5  # of the largest latent, where 1e-3 is promised; measured: below 5e-6
PROMPT, NEGATIVE, SEED, SCALE, STEPS = "a red cat on a dog!", "an owl", 7, 3.0, 12
Faults = dict[str, tuple[str, Callable[..., Any]]]


def narrow(bundle: Bundle) -> Bundle:
    """The bundle with a posterior that is its mean."""
    c = bundle.vae.spec.latent_channels
    with torch.no_grad():
        bundle.vae.quant_conv.weight[c:] = 0.0
        bundle.vae.quant_conv.bias[c:] = -30.0
    return bundle


def folder_of(path: Path, family: str, sampler: str, *, inpaints: bool) -> Path:
    bundle = narrow(tiny_bundle(family, sampler=sampler, inpaints=inpaints))
    return save(bundle.changed(schedule=replace(bundle.schedule, timestep_spacing="leading")), path)


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, str]:
    return written(tmp_path)


def ours(bundle: Bundle, pictures: dict[str, str], mask: str, late: tuple[int, int] = (0, 1), **changes: Any) -> Tensor:
    """The latents that Kotoe decodes.

    late: how many of the generator's draws diffusers has spent on posteriors before the starting noise, and in all.
    """
    asked = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "language": "en", "seed": SEED, "steps": STEPS}
    with pytest.MonkeyPatch.context() as patch, latents_decoded() as ends:
        real = ImageNoise._draw
        patch.setattr(ImageNoise, "_draw", lambda self, number: real(self, number + late[number > 0]))
        files = {"init_image": pictures["photo"], "mask": pictures[mask], "guidance_scale": SCALE}
        g.generate(bundle, Request(**{**asked, **files, **changes}))
    return ends[-1]


def theirs(folder: Path, pictures: dict[str, str], mask: str, **changes: Any) -> Tensor:
    pipe = StableDiffusionInpaintPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    asked = {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "image": Image.open(pictures["photo"]),
        "mask_image": Image.open(pictures[mask]),
        "height": 16,
        "width": 16,
        "generator": [generator(SEED)],
        "num_inference_steps": STEPS,
        "guidance_scale": SCALE,
        "output_type": "latent",
    }
    found: Tensor = pipe(**{**asked, **changes}).images
    return found


def swapped(model: Any, mask: Tensor, masked: Tensor) -> Any:
    """The masked picture before the mask."""
    given = torch.cat([masked, mask], dim=1)
    return lambda x, t: model(torch.cat([x, given.expand(len(x), -1, -1, -1)], dim=1), t)


def first(model: Any, mask: Tensor, masked: Tensor) -> Any:
    """Mask and masked picture before the noised latents."""
    given = torch.cat([mask, masked], dim=1)
    return lambda x, t: model(torch.cat([given.expand(len(x), -1, -1, -1), x], dim=1), t)


def soft(bundle: Bundle, init: Tensor | None, mask: Tensor | None) -> Any:
    """A mask that isn't thresholded."""
    masked = g._encode(bundle, init * (1.0 - mask))
    return torch.nn.functional.interpolate(mask, size=masked.shape[-2:]), masked


def whole(bundle: Bundle, init: Tensor | None, mask: Tensor | None) -> Any:
    """The picture with what the mask covers still in it."""
    sharp = (mask >= 0.5).float()
    masked = g._encode(bundle, init)
    return torch.nn.functional.interpolate(sharp, size=masked.shape[-2:]), masked


def dilated(bundle: Bundle, init: Tensor | None, mask: Tensor | None) -> Any:
    """A latent pixel as white as its whitest pixel."""
    sharp = (mask >= 0.5).float()
    return torch.nn.functional.max_pool2d(sharp, bundle.vae.spec.downscale), g._encode(bundle, init * (1 - sharp))


NINE_FAULTS: Faults = {
    "masked picture before mask": ("beside", swapped),
    "latents last": ("beside", first),
    "mask not thresholded": ("_given", soft),
    "picture not masked": ("_given", whole),
    "mask not resized to the nearest": ("_given", dilated),
}


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize(
    ("family", "sampler"), [("sd1", "pndm"), ("sd1", "ddim"), ("sd1", "lms"), ("sd1", "dpmpp_2m"), ("sd2", "ddim")]
)
def test_nine_channels(
    family: str,
    sampler: str,
    strength: float,
    pictures: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = folder_of(tmp_path / "m", family, sampler, inpaints=True)
    bundle = load(folder, dtype="float32")
    assert bundle.family == f"{family}-inpainting" == describe(folder)["family"]
    assert bundle.notes == ()
    late = (0, 1) if strength == 1.0 else (1, 2)  # with a strength the picture is encoded first
    expected = theirs(folder, pictures, "odd", strength=strength)
    assert apart(ours(bundle, pictures, "odd", late, strength=strength), expected) < TOLERANCE
    for fault, (name, wrong) in NINE_FAULTS.items():
        with monkeypatch.context() as patch:
            patch.setattr(g, name, wrong)
            found = ours(bundle, pictures, "odd", late, strength=strength)
            assert apart(found, expected) > 10 * TOLERANCE, fault


def pasted_late(inner: Any, known: Tensor, mask: Tensor, **_: Any) -> Any:
    """The whole picture drawn anew: nothing is kept while drawing."""
    return inner


def inverted(inner: Any, known: Tensor, mask: Tensor, **noise: Any) -> Any:
    """Black is painted anew."""
    return inpainted(inner, known, 1 - mask, **noise)


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("sampler", ["ddim", "pndm", "lms", "dpmpp_2m", "euler_ancestral"])
def test_four_channels(
    sampler: str, strength: float, pictures: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ordinary UNet: what the mask keeps is put in place in every step. On a mask of whole latent pixels."""
    folder = folder_of(tmp_path / "m", "sd1", sampler, inpaints=False)
    bundle = load(folder, dtype="float32")
    expected = theirs(folder, pictures, "even", strength=strength)
    assert apart(ours(bundle, pictures, "even", (1, 2), strength=strength), expected) < TOLERANCE
    for wrong in (pasted_late, inverted):
        with monkeypatch.context() as patch:
            patch.setattr(g, "inpainted", wrong)
            assert apart(ours(bundle, pictures, "even", (1, 2), strength=strength), expected) > 10 * TOLERANCE


def unpadded(mask: Image.Image, width: int, height: int, padding: int) -> Any:
    return box_around(mask, width, height, 0)


def stretched(mask: Image.Image, width: int, height: int, padding: int) -> Any:
    """The white with its padding, in whatever shape that has."""
    left, top, right, bottom = mask.getbbox() or (0, 0, 1, 1)
    return left - padding, top - padding, right + padding, bottom + padding


def unmoved(part: Image.Image, image: Image.Image, mask: Image.Image, box: Any) -> Image.Image:
    return put_back(part, image, mask, (0, 0, box[2] - box[0], box[3] - box[1]))


CROP_FAULTS: Faults = {
    "no padding": ("box_around", unpadded),
    "another shape": ("box_around", stretched),
    "put elsewhere": ("put_back", unmoved),
}


@pytest.mark.parametrize("inpaints", [True, False])
def test_padding_mask_crop(inpaints: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part around a mask's white, drawn and put back into a photo of another size: the picture, pixel by pixel."""
    folder = folder_of(tmp_path / "m", "sd1", "ddim", inpaints=inpaints)
    bundle = load(folder, dtype="float32")
    # a part of 16 x 16 pixels, so that an ordinary UNet's mask has whole latent pixels
    levels = np.random.default_rng(1).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "photo.png")
    mask = Image.new("L", (53, 37))
    mask.paste(255, (22, 12, 30, 16))
    mask.save(tmp_path / "mask.png")
    files = {"init_image": str(tmp_path / "photo.png"), "mask": str(tmp_path / "mask.png")}
    pipe = StableDiffusionInpaintPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        prompt=PROMPT, image=Image.open(files["init_image"]), mask_image=mask, height=16, width=16, strength=1.0,
        generator=[generator(SEED)], num_inference_steps=STEPS, guidance_scale=SCALE, padding_mask_crop=4,
    ).images[0]  # fmt: skip

    def found() -> tuple[int, int]:
        late = (0, 1) if inpaints else (1, 2)  # an ordinary UNet is told the picture as well
        with pytest.MonkeyPatch.context() as patch:
            real = ImageNoise._draw
            patch.setattr(ImageNoise, "_draw", lambda self, number: real(self, number + late[number > 0]))
            request = Request(
                prompt=PROMPT, language="en", seed=SEED, steps=STEPS, guidance_scale=SCALE, strength=1.0,
                padding_mask_crop=4, **files,
            )  # fmt: skip
            return differences(g.generate(bundle, request)[0].image, expected)

    assert found()[1] <= 1
    for fault, (name, wrong) in CROP_FAULTS.items():
        with monkeypatch.context() as patch:
            patch.setattr(starting, name, wrong)
            assert found()[1] > 10, fault


def test_a_folder_of_either_class_and_back(tmp_path: Path, pictures: dict[str, str]) -> None:
    """What is saved says which pipeline it is for; diffusers opens it with the ordinary one too, but can't draw."""
    folder = folder_of(tmp_path / "m", "sd1", "ddim", inpaints=True)
    assert '"StableDiffusionInpaintPipeline"' in (folder / "model_index.json").read_text()
    bundle = load(folder, dtype="float32")
    assert (bundle.unet.spec.in_channels, bundle.unet.spec.inpaints) == (9, True)
    plain = save(tiny_bundle(), tmp_path / "plain")
    assert '"StableDiffusionPipeline"' in (plain / "model_index.json").read_text()
    assert StableDiffusionPipeline.from_pretrained(plain).unet.config.in_channels == 4
    assert not load(plain).unet.spec.inpaints


def test_an_inpainting_model_asked_for_something_else(pictures: dict[str, str]) -> None:
    bundle = tiny_bundle(inpaints=True)
    for asked in ({}, {"init_image": pictures["photo"]}):
        request = Request(prompt=PROMPT, language="en", **asked)
        with pytest.raises(UserError, match=r"inpainting model \(sd1-inpainting\).*init_image and mask in the request"):
            g.resolve(bundle, request)
    files = {"init_image": pictures["photo"], "mask": pictures["even"]}
    assert g.resolve(bundle, Request(prompt=PROMPT, language="en", **files)).strength == 1.0
    assert g.resolve(tiny_bundle(), Request(prompt=PROMPT, language="en", **files)).strength == 0.8
    wrong = replace(bundle.unet.spec, in_channels=7)
    with pytest.raises(CheckpointError, match=r"7 to 4 channels.*4 to 4 channels, or 9 to 4 for inpainting"):
        bundle.changed(unet=type(bundle.unet)(wrong))


def test_what_the_mask_keeps_is_kept_to_the_bit_here_too(pictures: dict[str, str]) -> None:
    request = Request(prompt=PROMPT, language="en", seed=3, init_image=pictures["photo"], mask=pictures["even"])
    picture = g.generate(tiny_bundle(inpaints=True), request)[0]
    before = Image.open(pictures["photo"])
    inside = {(x, y) for x in range(4, 12) for y in range(6, 14)}
    changed = {
        (x, y) for x in range(16) for y in range(16) if picture.image.getpixel((x, y)) != before.getpixel((x, y))
    }
    assert changed <= inside
    assert len(changed) > 30
    again = g.replay(tiny_bundle(inpaints=True), picture.record)
    assert again.image.tobytes() == picture.image.tobytes()


def test_beside_is_x_then_mask_then_masked() -> None:
    seen: list[Tensor] = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x)
        return x[:, :4]

    x, mask, masked = torch.full((2, 4, 3, 3), 1.0), torch.full((1, 1, 3, 3), 2.0), torch.full((1, 4, 3, 3), 3.0)
    assert beside(model, mask, masked)(x, torch.zeros(2)).shape == x.shape
    assert seen[0][:, :, 0, 0].tolist() == [[1.0] * 4 + [2.0] + [3.0] * 4] * 2

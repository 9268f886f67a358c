"""The model that comes with the clone: stock diffusers opens it, and its files are what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from recipes.emoji_languages import ENCODERS
from safetensors import safe_open

from kotoe import builtin
from kotoe.checkpoints import Bundle, load
from kotoe.config import Request
from kotoe.denoise import denoiser, guided, start
from kotoe.drawing import generate
from kotoe.rng import ImageNoise
from kotoe.samplers import SAMPLERS
from kotoe.schedule import GRIDS

# diffusers warns of its own coming changes
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

ROOT = Path(__file__).resolve().parent.parent
FOLDER = builtin.resolve(builtin.DEFAULT)
LANGUAGES = ("en", *ENCODERS["cjk"], *ENCODERS["mul"])
BLUE = torch.tensor([44.0, 96.0, 212.0])


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load(dtype="float32")


def test_it_has_43_languages_and_a_card(bundle: Bundle) -> None:
    assert bundle.languages == LANGUAGES
    assert len(LANGUAGES) == 43
    assert bundle.default_language == "en"
    assert bundle.licence
    assert bundle.notes == ()
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for word in ("Noto Color Emoji", "CLDR", "Limits", "recipes/emoji_base.py"):
        assert word in card


def test_its_evaluation_is_of_these_weights(bundle: Bundle) -> None:
    """The card's tables are the benchmark card's, and both name the sha256 of the UNet and VAE that are here."""
    measured = (ROOT / "benchmarks/emoji_2026-11.md").read_text(encoding="utf-8")
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for text in (measured, card):
        assert f"model sha256 {bundle.sha256[:12]}" in text
    rows = [[line for line in text.splitlines() if line.startswith("| ") and "[" in line] for text in (measured, card)]
    assert len(rows[0]) > len(LANGUAGES)  # a row a language, and the controls
    assert rows[0] == rows[1]


def test_weights_are_half_precision() -> None:
    files = sorted(FOLDER.rglob("*.safetensors"))
    assert len(files) == 5 + len(ENCODERS)  # UNet, VAE, English, LoRA, small decoder; those that several languages read
    assert sum(file.stat().st_size for file in files) <= 48e6
    for file in files:
        with safe_open(file, "pt") as tensors:
            assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} == {"F16"}, file


def test_stock_diffusers_opens_it_and_draws_the_same(bundle: Bundle) -> None:
    """The same noise, the same pixels, within one level of 255; and another seed gives others."""
    pipe = StableDiffusionPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    noise = ImageNoise([7], (bundle.unet.spec.in_channels, 8, 8)).initial()
    prompt = "a cat on a blue background"
    stock = pipe(prompt, latents=noise, num_inference_steps=20, guidance_scale=3.0, output_type="pil").images[0]
    ours = generate(bundle, Request(prompt=(prompt,), seed=7, steps=20, guidance_scale=3.0))[0].image
    a, b = (torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).float() for image in (ours, stock))
    assert (a - b).abs().max() <= 1  # one level of 255: rounding on either side
    other = generate(bundle, Request(prompt=(prompt,), seed=8, steps=20, guidance_scale=3.0))[0].image
    c = torch.frombuffer(bytearray(other.tobytes()), dtype=torch.uint8).float()
    assert (c - b).abs().max() > 1  # the fault: another seed


def test_stock_diffusers_draws_the_same_latents(bundle: Bundle) -> None:
    """Within 1e-3 of the largest after all 20 steps, guided; another prompt is far over that."""
    noise = ImageNoise([7], (bundle.unet.spec.in_channels, 8, 8))
    pipe = StableDiffusionPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    stock = pipe(
        "a cat on a blue background",
        latents=noise.initial(),
        num_inference_steps=20,
        guidance_scale=3.0,
        output_type="latent",
    ).images

    def apart(prompt: str) -> float:
        conditioner = bundle.conditioner("en")
        with torch.inference_mode():
            positive, negative = conditioner.encode([prompt]).states, conditioner.encode([""]).states
            pair = torch.cat([negative, positive])
            both = denoiser(lambda x, t: bundle.unet(x, t, pair), bundle.schedule)
            cond = denoiser(lambda x, t: bundle.unet(x, t, positive), bundle.schedule)
            grid = GRIDS["trailing"](bundle.schedule, 20)
            x, sigmas = start(noise.initial(), grid, sampler="ddim", grid="trailing")
            for step in SAMPLERS["ddim"](guided(cond, 3.0, both=both), x, sigmas, noise):
                x = step.x
        ours = x * bundle.vae.spec.scaling_factor
        return float((ours - stock).abs().max() / stock.abs().max())

    assert apart("a cat on a blue background") <= 1e-3
    assert apart("a cat on a green background") > 1e-2


@pytest.mark.parametrize(
    ("prompt", "language"),
    [
        ("a cat on a blue background", "en"),
        ("青い背景に猫", "ja"),
        ("蓝色背景上的猫", "zh"),
        ("파란 배경의 고양이", "ko"),
        ("kissa, sininen tausta", "fi"),
        ("แมว พื้นหลังสีน้ำเงิน", "th"),
        ("paka, mandharinyuma ya bluu", "sw"),
    ],
)
def test_a_blue_background_in_every_language(bundle: Bundle, prompt: str, language: str) -> None:
    picture = generate(bundle, Request(prompt=(prompt,), seed=7))[0]
    read_by, asked = (bundle.conditioner(tag).encoder for tag in (picture.record.conditioner.language, language))
    assert read_by is asked  # languages that one encoder reads need not be told apart
    pixels = torch.frombuffer(bytearray(picture.image.tobytes()), dtype=torch.uint8).view(128, 128, 3).float()
    border = torch.cat([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])  # (512, 3)
    assert (border.median(dim=0).values - BLUE).abs().max() < 30
    assert (pixels[44:84, 44:84] - BLUE).abs().sum(-1).mean() > 60  # and something stands on it

"""Tiny real bundles: seeded random weights in SD 1.x and 2.x layouts, tokenizers trained on the spot on a few lines.

bundle = tiny_bundle("sd1")                      # English, CLIP BPE
bundle = tiny_bundle("sd2", languages=("en", "ja"))   # Japanese with SentencePiece, as rinna lays it out
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from kotoe import drawing
from kotoe.checkpoints import Bundle
from kotoe.checkpoints.bundle import Defaults
from kotoe.config import Resolved
from kotoe.localize.vocabulary import train_clip_bpe, train_sentencepiece
from kotoe.spec import ScheduleSpec, TextSpec, UNetSpec, VAESpec
from kotoe.text import CLIPText, Conditioner
from kotoe.tokenizers import load_tokenizer
from kotoe.tokens import Tokenizer
from kotoe.unet import UNet
from kotoe.vae import VAE

LINES = {
    "en": [
        "a red cat on a blue background",
        "two dogs to the left of a green tree",
        "an owl above a yellow moon",
        "it's the dog's ball, isn't it?",
        "a painting of a castle below 12 clouds",
    ],
    "ja": ["青い背景に猫", "緑の木の左に犬が二匹", "黄色い月の上にフクロウ", "城の絵", "サラリーマン 油絵"],
    "zh": ["蓝色背景上的猫", "绿树左边的两只狗", "黄色月亮上方的猫头鹰", "城堡的画"],
    "ko": ["파란 배경의 고양이", "초록 나무 왼쪽의 강아지 두 마리", "노란 달 위의 부엉이", "성 그림"],
}
POSITIONS = 16  # tokens of a tiny text encoder; enough for the lines above, few enough to run over


@cache
def tiny_tokenizer(language: str, pad_token: str = "<|endoftext|>") -> Tokenizer:
    """English: CLIP BPE of 560 pieces. Other languages: SentencePiece BPE of 300 with bytes."""
    with tempfile.TemporaryDirectory() as folder:
        if language == "en":
            train_clip_bpe(LINES["en"], folder, 560, max_tokens=POSITIONS, pad_token=pad_token)
        else:
            train_sentencepiece(LINES[language], folder, 300, max_tokens=POSITIONS, model_type="bpe")
        return load_tokenizer(folder)


def seeded(module: nn.Module, seed: int) -> nn.Module:
    """Give every parameter values drawn from one generator, away from 0 and 1 so that a lost tensor shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim > 1:
                p.copy_(noise / p[0].numel() ** 0.5)  # keeps activations of order 1
            else:
                p.copy_(0.1 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return module.eval()


def tiny_conditioner(language: str, width: int, family: str = "sd1", seed: int = 0) -> Conditioner:
    """A Conditioner of one language with states of `width`."""
    tokenizer = tiny_tokenizer(language, "!" if family == "sd2" and language == "en" else "<|endoftext|>")
    spec = TextSpec(
        vocab_size=tokenizer.vocab_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_layers=2,
        num_heads=4,
        max_tokens=tokenizer.max_tokens,
        hidden_act="gelu" if family == "sd2" else "quick_gelu",
        bos=tokenizer.bos,
        eos=tokenizer.eos,
        pad=tokenizer.pad,
    )
    return Conditioner(language, tokenizer, seeded(CLIPText(spec), seed))


def tiny_bundle(
    family: str = "sd1",
    *,
    languages: tuple[str, ...] = ("en",),
    seed: int = 0,
    sampler: str = "",
    inpaints: bool = False,
) -> Bundle:
    """A Bundle of about 0.5 M random parameters.

    family:   "sd1" has 1x1 convolutions and predicts epsilon; "sd2" linear layers, velocity and zero terminal SNR.
    inpaints: the UNet reads a mask and a masked picture as well.
    """
    two = family == "sd2"
    width = 32
    unet = UNetSpec(
        in_channels=9 if inpaints else 4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention=(True, False),
        num_heads=(4, 8) if two else (4, 4),
        cross_attention_dim=width,
        use_linear_projection=two,
        norm_num_groups=8,
        sample_size=8,
    )
    vae = VAESpec(block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, sample_size=16)
    schedule = ScheduleSpec(
        prediction_type="v_prediction" if two else "epsilon",
        rescale_betas_zero_snr=two,
        timestep_spacing="trailing" if two else "leading",
        sampler=sampler or ("ddim" if two else "pndm"),
    )
    return Bundle(
        name=f"tiny-{family}",
        unet=seeded(UNet(unet), seed),
        vae=seeded(VAE(vae), seed + 1),
        schedule=schedule,
        conditioners={x: tiny_conditioner(x, width, family, seed + 2 + i) for i, x in enumerate(languages)},
        default_language=languages[0],
        family=unet.family,
        licence="Apache-2.0",
        defaults=Defaults(steps=4, guidance_scale=3.0),
    )


def saved_tiny(folder: Path, family: str = "sd1", *, languages: tuple[str, ...] = ("en",), seed: int = 0) -> Path:
    """The folder of a tiny bundle."""
    from kotoe.checkpoints import save

    return save(tiny_bundle(family, languages=languages, seed=seed), folder)


def edit(path: Path, **changes: object) -> None:
    """Set keys of a JSON file; "gone" removes one."""
    value = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in value.items() if v != "gone"}))


@contextmanager
def latents_decoded() -> Iterator[list[Tensor]]:
    """Within it, the latents (1, C, h, w) of unit variance that an autoencoder is given to decode, one per picture, in
    the pictures' order: one batch is drawn after the other."""
    seen: list[Tensor] = []
    decode = drawing._decode

    def watched(bundle: Bundle, request: Resolved, net: Callable[[Tensor], Tensor], z: Tensor) -> list[Tensor]:
        seen.extend(z.split(1))
        return decode(bundle, request, net, z)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "_decode", watched)
        patch.setattr(drawing, "small", lambda *_: False)
        yield seen


def apart(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest value."""
    assert a.shape == b.shape
    return float((a - b).abs().max().detach() / b.abs().max().detach())


def pictures(folder: Path) -> dict[str, str]:
    """Files of 16 x 16 pixels: a photo; a mask "odd" whose edges lie between latent pixels, with greys on both sides of
    a half; and a mask "even" of whole latent pixels."""
    photo, odd, even = Image.new("RGB", (16, 16)), Image.new("L", (16, 16), 0), Image.new("L", (16, 16), 0)
    photo.putdata([(x * 16, y * 16, 99) for y in range(16) for x in range(16)])
    odd.paste(255, (5, 3, 12, 12))
    odd.paste(120, (0, 13, 16, 16))
    odd.paste(136, (13, 0, 16, 6))
    even.paste(255, (4, 6, 12, 14))
    made = {"photo": photo, "odd": odd, "even": even}
    for name, picture in made.items():
        picture.save(folder / f"{name}.png")
    return {name: str(folder / f"{name}.png") for name in made}

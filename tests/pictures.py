"""Pictures with records and texts for the tests of provenance: none of them needs a model."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from PIL import Image, PngImagePlugin

from kotoe.drawing import Picture
from kotoe.record import ConditionerRecord, ModelRecord, Record

RECORD = Record(
    kotoe="0.1.0", torch="2.13.0", model=ModelRecord(name="kotoe-emoji", unet_sha256="3a" * 32, vae_sha256="4" * 64,
    schedule_sha256="5" * 64), conditioner=ConditionerRecord(language="ja", tokenizer_sha256="1" * 64,
    text_encoder_sha256="2" * 64), language_source="detected", prompt="青い背景に猫", negative_prompt="犬", width=128,
    height=128, steps=10, sampler="ddim", grid="trailing", guidance_scale=2.5, guidance_rescale=0.0, seed=7, eta=0.0,
    long_prompt="error", emphasis="original", full_width="folded", dtype="float32", vae_dtype="float32",
    text_dtype="float32", device="cpu", threads=1, tokens=5, seconds=0.5,
)  # fmt: skip


def scene(width: int = 128, height: int = 128, seed: int = 0) -> Image.Image:
    """A round thing on a flat background, as kotoe-emoji draws: no two seeds below 1,000 are alike."""
    ground = (40 + seed * 37 % 180, 60 + seed * 53 % 160, 80 + seed * 71 % 150)
    picture = Image.new("RGB", (4, 4), ground)
    for at, step in (((1, 1), 90), ((2, 1), 60), ((1, 2), 30), ((2, 2), 120)):
        picture.putpixel(at, tuple((c + step + seed) % 256 for c in ground))
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def drawn(image: Image.Image | None = None, **change: Any) -> Picture:
    """A picture with RECORD, changed so."""
    from dataclasses import replace

    return Picture(image=scene() if image is None else image, record=replace(RECORD, **change))


def png(texts: dict[str, str], *, raw: bool = False, image: Image.Image | None = None) -> bytes:
    """A PNG with these texts by Pillow's rule (tEXt if Latin-1, else iTXt), or raw: UTF-8 in tEXt."""
    info, file = PngImagePlugin.PngInfo(), BytesIO()
    for key, text in texts.items():
        if raw:
            info.add(b"tEXt", key.encode() + b"\0" + text.encode())
        else:
            info.add_text(key, text)
    (scene() if image is None else image).save(file, "PNG", pnginfo=info)
    return file.getvalue()

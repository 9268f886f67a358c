"""A drawn picture as a file's bytes, with all that says where it comes from.

The texts are Kotoe's record, which has all; beside it a digest of the pixels and of the record, so that it shows when
either was changed or is another picture's; and `parameters`, which other programs read.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any, Literal

from PIL import Image, PngImagePlugin

from kotoe import images
from kotoe.config import dumps
from kotoe.drawing import Picture
from kotoe.errors import UserError
from kotoe.provenance.c2pa import Signer
from kotoe.provenance.infotext import KEY, infotext
from kotoe.provenance.watermark import embed

Format = Literal["png", "jpeg", "webp"]
FORMATS = ("png", "jpeg", "webp")
MEDIA = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
LARGEST_EXIF_BYTES = 65_533 - 6  # of JPEG: one segment, less its name


@dataclass(frozen=True, kw_only=True)
class Digest:
    """sha256 of a file's decoded pixels (see `images.pixels_sha256`) and of its record's text, when it was written."""

    pixels_sha256: str
    record_sha256: str


def marked(picture: Picture, number: int | None) -> Picture:
    """The picture with a watermark (see watermark.py), which its record then names; None: the picture as it is.

    Raises UserError for a number outside 0 to 65535, a picture that is too small, and one that is marked already.
    """
    if number is None:
        return picture
    if picture.record.watermark is not None:
        raise UserError(f"the picture has the watermark {picture.record.watermark} already", allowed="one")
    return Picture(image=embed(picture.image, number), record=replace(picture.record, watermark=number))


def encode(
    picture: Picture,
    *,
    format: Format = "png",
    quality: int = 95,
    watermark: int | None = None,
    signer: Signer | None = None,
) -> bytes:
    """The file of a picture: its pixels, the watermark in them, the texts beside them, the signature over all of it.

    quality: of JPEG and WebP, 1 to 100; a PNG keeps every pixel. watermark: a number for `marked`, where the picture
    isn't marked already. Raises UserError for another format or quality, and for texts that are too long for JPEG.
    """
    picture = marked(picture, watermark)
    content = _with_texts(picture, format, quality)
    return content if signer is None else signer.sign(content, MEDIA[format], picture.record)


def _with_texts(picture: Picture, format: Format, quality: int) -> bytes:
    if format not in FORMATS:
        raise UserError(f"format {format!r}", allowed=", ".join(FORMATS))
    if not 1 <= quality <= 100:
        raise UserError(f"quality {quality}", allowed="1 to 100")
    image, record = picture.image.convert("RGB"), dumps(picture.record)
    parameters = infotext(picture.record)
    if format == "png":
        info = PngImagePlugin.PngInfo()
        info.add_itxt(images.RECORD_KEY, record)  # iTXt holds any script
        info.add_itxt(images.DIGEST_KEY, dumps(digest_of(image, record)))
        info.add_text(KEY, parameters)  # Latin-1 as tEXt, else iTXt
        return _saved(image, format, pnginfo=info)
    how: dict[str, Any] = {"quality": quality}
    if format == "jpeg":
        how["subsampling"] = 0  # colours at full resolution: thin coloured lines stay
    with Image.open(BytesIO(_saved(image, format, **how))) as kept:  # what a reader will see
        digest = dumps(digest_of(kept, record))
    exif = images.maker_exif(parameters, record, digest).tobytes()
    if format == "jpeg" and len(exif) > LARGEST_EXIF_BYTES:
        raise UserError(
            f"the record and its texts have {len(exif)} bytes, too many for a JPEG",
            allowed=f"{LARGEST_EXIF_BYTES} at most",
            hint="PNG and WebP hold them, or a shorter prompt fits",
        )
    return _saved(image, format, exif=exif, **how)


def digest_of(image: Image.Image, record: str) -> Digest:
    """The digest that belongs to these pixels and this record."""
    return Digest(pixels_sha256=images.pixels_sha256(image), record_sha256=hashlib.sha256(record.encode()).hexdigest())


def _saved(image: Image.Image, format: Format, **how: Any) -> bytes:
    file = BytesIO()
    image.save(file, format=format.upper(), **how)
    return file.getvalue()

"""Pictures: files to tensors and back, sizes, and the texts inside a file. What is read is treated as untrusted.

B pictures, H W pixel rows and columns. Pictures are PIL "RGB" or float32 tensors (B, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

import hashlib
import math
import struct
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin
from torch import Tensor

from kotoe.config import MAX_EDGE_PX
from kotoe.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # what is read; others need programs or have had too many holes
LARGEST_FILE_BYTES = 128 * 2**20
LARGEST_PIXELS = 2**26  # 8192 x 8192
LARGEST_RECORD_CHARACTERS = 2**20
SAME_SHAPE = 0.02  # aspect ratios this close count as equal when a picture is resized
# what Pillow's readers raise at files that are broken, or made to break them
DAMAGE = (
    OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, OverflowError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
RECORD_KEY = "kotoe"  # keyword of the PNG's iTXt chunk
DIGEST_KEY = "kotoe-digest"  # of the one beside it: what the pixels and the record were when the file was written
# In EXIF both stand in MakerNote, which is the writing program's own: MAKER, then UTF-8 with NUL between them.
MAKER = b"kotoe\0"
EXIF_IFD, MAKER_NOTE, USER_COMMENT = 0x8769, 0x927C, 0x9286
COMFYUI_TAGS = {0x010F: "workflow:", 0x0110: "prompt:"}  # where ComfyUI puts its texts in WebP; either may hold either


# Sizes


def check_size(width: int, height: int, multiple: int, hint: Callable[[], str] = str) -> None:
    """Raise a UserError naming the two nearest valid values when an edge isn't a multiple of `multiple` pixels.

    hint: what to do then; asked for then alone.
    """
    for name, edge in (("width", width), ("height", height)):
        if not 1 <= edge <= MAX_EDGE_PX:
            raise UserError(f"{name} {edge}", allowed=f"1 to {MAX_EDGE_PX} pixels")
        if edge % multiple:
            below, above = edge // multiple * multiple, -(-edge // multiple) * multiple
            nearest = f"{below} or {above}" if below else str(above)
            raise UserError(
                f"{name} {edge} is not a multiple of {multiple}",
                allowed=f"{nearest}, the nearest ones" if below else nearest,
                hint=hint(),
            )


# Tensors


def to_tensor(image: Image.Image) -> Tensor:
    """(1, 3, H, W) float32 in [-1, 1] of a picture."""
    rgb = image.convert("RGB")
    flat = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
    pixels = flat.view(1, rgb.height, rgb.width, 3).permute(0, 3, 1, 2)  # (1, 3, H, W)
    return pixels.float() / 127.5 - 1.0


def mask_tensor(mask: Image.Image) -> Tensor:
    """(1, 1, H, W) float32 in [0, 1] of a mask: 1 is painted anew."""
    grey = mask.convert("L")
    flat = torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8)
    return flat.view(1, 1, grey.height, grey.width).float() / 255.0


def to_pil(pixels: Tensor, *, truncate: bool = False) -> Image.Image:
    """A picture of (3, H, W) in about [-1, 1]: clamped, then rounded to the nearest of 256 levels, never cut.

    truncate: to the level below instead, half a level darker on average, as some other programs do (see numerics.py).
    """
    if pixels.ndim != 3 or pixels.shape[0] != 3 or not pixels.is_floating_point():
        raise UserError(f"pixels {tuple(pixels.shape)} of {pixels.dtype}", allowed="(3, H, W) floats in [-1, 1]")
    if not bool(pixels.isfinite().all()):
        raise UserError(
            "the picture has values that are no numbers",
            hint="Less guidance, smaller weights in the prompt or --dtype float32 may help; "
            "else the model's weights are damaged",
        )
    exact = (pixels.detach().float().cpu().clamp(-1, 1) + 1.0) * 127.5
    levels = (exact.floor() if truncate else exact.round()).to(torch.uint8)  # (3, H, W)
    data = levels.permute(1, 2, 0).contiguous()  # (H, W, 3)
    return Image.frombytes("RGB", (data.shape[1], data.shape[0]), data.numpy().tobytes())


def differences(a: Image.Image, b: Image.Image) -> tuple[int, int]:
    """How many pixels of two RGB pictures differ, and by how much at most. Pictures of two sizes differ everywhere."""
    if a.size != b.size:
        return max(a.width * a.height, b.width * b.height), 255
    x, y = to_tensor(a), to_tensor(b)
    largest = (x - y).abs().amax(dim=1)  # (1, H, W)
    return int((largest > 0).sum()), round(float(largest.max()) * 127.5)


# Files


def open_picture(path: str | Path, what: str = "picture") -> Image.Image:
    """A whole, upright, opaque RGB picture from a file. Anything else is a UserError saying what is wrong with it."""
    with _opened(path, f"{what} {path}") as image:
        colours, alpha = _decoded(image, f"{what} {path}")
    if alpha is not None:
        raise UserError(
            f"{what} {path} is partly transparent",
            allowed="an opaque picture",
            hint="Put it on a background first",
        )
    return colours


def picture_of(content: bytes, name: str = "the picture", most: int = LARGEST_PIXELS) -> tuple[Image.Image, bool]:
    """A whole, upright RGB picture from a file's bytes, and whether any of it is see-through: that is put on white.

    most: pixels that it may have. Raises UserError for what isn't one still picture.
    """
    colours, alpha = layers_of(content, name, most)
    return (colours, False) if alpha is None else (on_white(colours, alpha), True)


def layers_of(
    content: bytes, name: str = "the picture", most: int = LARGEST_PIXELS
) -> tuple[Image.Image, Image.Image | None]:
    """A whole, upright RGB picture from a file's bytes, and an "L" picture of how opaque it is; None: all of it is.

    most: pixels that it may have. Raises UserError for what isn't one still picture.
    """
    with warnings.catch_warnings(action="ignore"), _opened(content, name, most) as image:  # what they say is no news
        _check_still(image, name)
        return _decoded(image, name)


def on_white(colours: Image.Image, alpha: Image.Image) -> Image.Image:
    """An RGB picture, as opaque as alpha says, on white."""
    ground = Image.new("RGB", colours.size, "white")
    ground.paste(colours, mask=alpha)
    return ground


def size_of(content: bytes, name: str = "the picture", most: int = LARGEST_PIXELS) -> tuple[int, int]:
    """Width and height, from a file's header alone; of one that is turned when it is shown, before it is.

    most: pixels that it may have. Raises UserError for what is no picture, as far as the header tells.
    """
    with warnings.catch_warnings(action="ignore"), _opened(content, name, most) as image:
        return image.size


def resized(image: Image.Image, width: int, height: int, what: str = "picture") -> Image.Image:
    """The picture at width x height. Another shape than its own would distort it: a UserError."""
    if image.size == (width, height):
        return image
    check_shape(image, width, height, what)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def check_shape(
    image: Image.Image, width: int, height: int, what: str = "picture", hint: Callable[[], str] = str
) -> None:
    """Raise a UserError where a picture isn't about the shape of width x height."""
    if not _same_shape(image.size, width, height):
        raise UserError(
            f"{what} is {image.width}x{image.height}, asked for {width}x{height}: that would distort it",
            allowed="the same proportions",
            hint=hint() or "Crop it first, or ask for another width and height",
        )


def _same_shape(size: tuple[int, int], width: int, height: int) -> bool:
    return 1 - SAME_SHAPE <= (size[0] * height) / (size[1] * width) <= 1 + SAME_SHAPE


def size_like(size: tuple[int, int], multiple: int, pixels: int) -> tuple[int, int] | None:
    """Edges in multiples of `multiple` pixels that a picture of that size can be brought to, of about so many pixels.

    None: there are none between a quarter of that and four times as many.
    """
    edges = range(multiple, MAX_EDGE_PX + 1, multiple)
    pairs = ((max(1, round(size[0] * high / size[1] / multiple)) * multiple, high) for high in edges)
    fit = [pair for pair in pairs if _same_shape(size, *pair) and pixels <= 4 * pair[0] * pair[1] <= 16 * pixels]
    return min(fit, key=lambda pair: abs(math.log(pair[0] * pair[1] / pixels)), default=None)


def file_sha256(path: str | Path) -> str:
    """sha256 of a file's bytes."""
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise UserError(f"{path} is no file", allowed=_allowed())  # a device may never end
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}", allowed=_allowed()) from error


def read_bytes(path: str | Path, name: str) -> bytes:
    """The content of a picture's file, at most LARGEST_FILE_BYTES."""
    try:
        if not Path(path).is_file():
            raise UserError(f"{name} is no file" if Path(path).exists() else f"{name} is absent", allowed=_allowed())
        if (size := Path(path).stat().st_size) > LARGEST_FILE_BYTES:
            raise UserError(f"{name} has {size} bytes", allowed=f"{LARGEST_FILE_BYTES} at most")
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"can't read {name}: {error.strerror}", allowed=_allowed()) from error


def save_png(image: Image.Image, path: Path, record: str) -> None:
    """Write a PNG with the record (JSON text) in an iTXt chunk, which holds any script."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt(RECORD_KEY, record)
    image.save(path, format="PNG", pnginfo=info)


def read_record(path: str | Path) -> str:
    """The record text inside a picture, at most LARGEST_RECORD_CHARACTERS long. UserError when there is none."""
    with _opened(path, f"picture {path}") as image:
        text = _texts(image, f"picture {path}").get(RECORD_KEY)
    if text is None:
        raise UserError(
            f"{path} carries no record of Kotoe's",
            allowed="a picture that Kotoe drew",
            hint="Programs that edit or share pictures often remove such data",
        )
    if len(text) > LARGEST_RECORD_CHARACTERS:
        raise UserError(
            f"the record in {path} has {len(text)} characters", allowed=f"{LARGEST_RECORD_CHARACTERS} at most"
        )
    return text


def texts(source: bytes | Image.Image, name: str = "the picture", most: int | None = None) -> dict[str, str]:
    """The texts in a picture's file by their keywords: a PNG's own; of JPEG and WebP those in EXIF, as
    `parameters` (UserComment), RECORD_KEY and DIGEST_KEY (MakerNote), `prompt` and `workflow` (ComfyUI's).

    source: a file's bytes, or a picture that Pillow opened from one. A text of more than LARGEST_RECORD_CHARACTERS is
    not given. most: pixels that a file may have, and then of a moving PNG nothing is read: all pixels of a PNG are
    decoded, of every frame, for its texts may stand behind them. Raises UserError for what is no picture or damaged.
    """
    if isinstance(source, Image.Image):
        found = _texts(source, name)
    else:
        limit = LARGEST_PIXELS if most is None else most
        with warnings.catch_warnings(action="ignore"), _opened(source, name, limit) as image:
            if most is not None and image.format == "PNG":
                _check_still(image, name)
            found = _texts(image, name)
    return {key: text for key, text in found.items() if len(text) <= LARGEST_RECORD_CHARACTERS}


def _texts(image: Image.Image, name: str) -> dict[str, str]:
    try:
        chunks = getattr(image, "text", None)  # reads to the end: they may stand behind the pixels
        if chunks is None:
            chunks = image.info  # of a copy of what was opened
        found = {str(key): _chunk_text(text) for key, text in chunks.items() if isinstance(text, str)}
        if image.format != "PNG":
            found |= _exif_texts(image.getexif())
    except DAMAGE as error:
        raise UserError(f"{name} is damaged ({error})", allowed=_allowed()) from error
    return found


def _chunk_text(text: str) -> str:
    """A PNG chunk's text. A tEXt chunk is Latin-1, and some programs write UTF-8 into it: read as that where it is."""
    if isinstance(text, PngImagePlugin.iTXt) or text.isascii():
        return str(text)
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def _exif_texts(exif: Image.Exif) -> dict[str, str]:
    found: dict[str, str] = {}
    for tag in COMFYUI_TAGS:
        text = exif.get(tag)
        for prefix in COMFYUI_TAGS.values():
            if isinstance(text, str) and text.startswith(prefix):
                found[prefix[:-1]] = text.removeprefix(prefix)
    inner = exif.get_ifd(EXIF_IFD)
    comment, note = inner.get(USER_COMMENT), inner.get(MAKER_NOTE)
    if isinstance(comment, (bytes, str)) and (text := comment_text(comment)):
        found["parameters"] = text
    if isinstance(note, bytes) and note.startswith(MAKER):
        parts = note.removeprefix(MAKER).decode("utf-8", "replace").split("\0")
        found |= dict(zip((RECORD_KEY, DIGEST_KEY), parts))
    return found


def comment_text(comment: bytes | str) -> str:
    """The text of EXIF's UserComment, whose first eight bytes say the encoding. UTF-16 comes in either order."""
    if isinstance(comment, str):
        return comment
    kind, data = comment[:8], comment[8:]
    if kind == b"UNICODE\0":
        orders = [data.decode(order, "replace") for order in ("utf-16-be", "utf-16-le")]
        return max(orders, key=lambda text: sum(c.isascii() for c in text)).strip("\0")
    if kind not in (b"ASCII\0\0\0", bytes(8)):
        data = comment
    return data.decode("utf-8", "replace").strip("\0")


def maker_exif(parameters: str, record: str, digest: str) -> Image.Exif:
    """EXIF with the three texts, for JPEG and WebP."""
    exif = Image.Exif()
    inner = exif.get_ifd(EXIF_IFD)
    inner[USER_COMMENT] = b"UNICODE\0" + parameters.encode("utf-16-be")
    inner[MAKER_NOTE] = MAKER + record.encode() + b"\0" + digest.encode()
    return exif


def pixels_sha256(image: Image.Image) -> str:
    """sha256 of a picture's size and RGB values, whatever file they came from."""
    digest = hashlib.sha256(f"{image.width}x{image.height} RGB\n".encode())
    digest.update(image.convert("RGB").tobytes())
    return digest.hexdigest()


def _opened(source: str | Path | bytes, name: str, most: int = LARGEST_PIXELS) -> Image.Image:
    """An image whose header has been read and found sane; its pixels are not decoded yet."""
    try:
        size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
        if size > LARGEST_FILE_BYTES:
            raise UserError(f"{name} has {size} bytes", allowed=f"{LARGEST_FILE_BYTES} at most")
        if not isinstance(source, bytes) and not Path(source).is_file():
            raise UserError(f"{name} is no file", allowed=_allowed())
        image = Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{name} is not a picture that can be read", allowed=_allowed()) from error
    except OSError as error:
        raise UserError(f"can't read {name}: {error.strerror or error}", allowed=_allowed()) from error
    except DAMAGE as error:
        raise UserError(f"{name} is damaged or hostile ({error})", allowed=_allowed()) from error
    if image.width * image.height > most:
        image.close()
        raise UserError(f"{name} is {image.width}x{image.height}", allowed=f"{most} pixels at most")
    return image


def _check_still(image: Image.Image, name: str) -> None:
    frames = getattr(image, "n_frames", 1) if image.format in ("PNG", "WEBP") else 1
    if frames > 1:
        raise UserError(f"{name} moves: it has {frames} frames", allowed="one still picture")


def _decoded(image: Image.Image, name: str) -> tuple[Image.Image, Image.Image | None]:
    """All pixels, upright, as "RGB", and how opaque they are as "L", None where all are."""
    try:
        ImageOps.exif_transpose(image, in_place=True)  # reads all pixels
        image.load()
        upright: Image.Image = image
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion clips to white
            if "transparency" in image.info:
                raise ValueError("16-bit grey with a transparent level")
            levels = (np.asarray(image).clip(0, 65535).astype(np.uint32) + 128) // 257  # the nearest of 256
            upright = Image.fromarray(levels.astype(np.uint8))
        alpha = None
        if upright.has_transparency_data:
            alpha = (upright if upright.mode in ("RGBA", "LA") else upright.convert("RGBA")).getchannel("A")
        if alpha is not None and alpha.getextrema() == (255, 255):
            alpha = None
        return upright.convert("RGB"), alpha
    except DAMAGE as error:
        raise UserError(f"{name} is damaged ({error})", allowed=_allowed()) from error


def _allowed() -> str:
    return f"a whole {', '.join(FORMATS)} file"

"""The picture that a request begins with: it and its mask, checked; the part of it that is drawn; what becomes of it.

H W pixel rows and columns of what is drawn. Masks are white where the picture is painted anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kotoe import images
from kotoe.config import Resolved
from kotoe.errors import UserError

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


@dataclass(frozen=True, kw_only=True)
class Opened:
    """init_image and mask as large as they are, or as what is drawn. box: with padding_mask_crop, the part of them that
    is drawn."""

    init: Image.Image
    mask: Image.Image | None
    box: Box | None


@dataclass(frozen=True, kw_only=True)
class Start:
    """What is drawn begins with it.

    picture: (1, 3, H, W) in [-1, 1]. mask: (1, 1, H, W) in [0, 1], 1 is painted anew; None: all of it.
    """

    picture: Tensor
    mask: Tensor | None
    opened: Opened

    def finished(self, pixels: Tensor, *, truncate: bool = False) -> Image.Image:
        """The picture of what was drawn, (3, H, W). What the mask keeps is kept to the bit."""
        if self.mask is None:
            return images.to_pil(pixels, truncate=truncate)
        if self.opened.mask is None or self.opened.box is None:
            return images.to_pil(torch.lerp(self.picture[0], pixels, self.mask[0]), truncate=truncate)
        return put_back(images.to_pil(pixels, truncate=truncate), self.opened.init, self.opened.mask, self.opened.box)


def opened(request: Resolved, hint: Callable[[], str] = str) -> Opened | None:
    """The files of a request; None where it begins with noise. Raises UserError for all that can be wrong with them.

    hint: what to do where the picture has another shape than what is drawn.
    """
    if request.init_image is None:
        return None
    width, height = request.width, request.height
    init = images.open_picture(request.init_image, "init_image")
    mask = None if request.mask is None else images.open_picture(request.mask, "mask")
    if mask is not None and mask.size != init.size:
        raise UserError(
            f"mask is {mask.width}x{mask.height}, init_image {init.width}x{init.height}", allowed="the same size"
        )
    if mask is not None and request.padding_mask_crop is not None:
        return Opened(init=init, mask=mask, box=box_around(mask, width, height, request.padding_mask_crop))
    images.check_shape(init, width, height, "init_image", hint)
    return Opened(init=init, mask=mask, box=None)


def start(request: Resolved) -> Start | None:
    """What a request begins with, at width x height; None: with noise. Raises as `opened`."""
    found = opened(request)
    if found is None:
        return None

    box = found.box

    def sized(image: Image.Image) -> Image.Image:
        if box is None:
            return images.resized(image, request.width, request.height)
        return cut_out(image, box, request.width, request.height)

    init, mask = sized(found.init), None if found.mask is None else sized(found.mask)
    if box is None:  # however large they came, they aren't needed any more
        found = Opened(init=init, mask=mask, box=None)
    return Start(picture=images.to_tensor(init), mask=None if mask is None else images.mask_tensor(mask), opened=found)


def picture_size(request: Resolved) -> tuple[int, int]:
    """Width and height of a request's pictures: with padding_mask_crop those of its init_image."""
    if request.init_image is None or request.padding_mask_crop is None:
        return request.width, request.height
    return images.open_picture(request.init_image, "init_image").size


# --- A part of a picture --------------------------------------------------------------------------


def box_around(mask: Image.Image, width: int, height: int, padding: int) -> Box:
    """The least part of a picture that has all of a mask's white with `padding` pixels around it, as far as the picture
    goes, and then has the shape of width x height. As diffusers' padding_mask_crop and AUTOMATIC1111's "only masked".

    It lies in the picture where it fits; an edge that is longer than the picture's sticks out alike on both sides.
    Raises UserError for a mask without white, and for a part beyond images.LARGEST_PIXELS.
    """
    found = mask.convert("L").getbbox()
    if found is None:
        raise UserError("mask is black everywhere", allowed="some white, which is painted anew")
    left, top = (max(edge - padding, 0) for edge in found[:2])
    right, bottom = min(found[2] + padding, mask.width), min(found[3] + padding, mask.height)
    wide, high = right - left, bottom - top
    if wide * height > high * width:
        high = max(high, wide * height // width)
    else:
        wide = max(wide, high * width // height)
    if wide * high > images.LARGEST_PIXELS:
        raise UserError(
            f"the part around mask's white would be {wide}x{high}, in the shape of {width}x{height}",
            allowed=f"{images.LARGEST_PIXELS} pixels at most",
            hint="Ask for a width and height that are more alike",
        )
    left, top = _within(left, right, wide, mask.width), _within(top, bottom, high, mask.height)
    return left, top, left + wide, top + high


def _within(low: int, high: int, length: int, size: int) -> int:
    """Where `length` pixels begin that have `low` to `high` in their middle, moved into 0 to size if they fit there."""
    if length > size:
        return (size - length) // 2
    return min(max(low - (length - (high - low)) // 2, 0), size - length)


def cut_out(image: Image.Image, box: Box, width: int, height: int) -> Image.Image:
    """A part of a picture at width x height. Where it sticks out, the picture's edge is repeated."""
    left, top, right, bottom = box
    inside = image.crop((max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)))
    beyond = ((max(-top, 0), max(bottom - image.height, 0)), (max(-left, 0), max(right - image.width, 0)))
    pixels = np.asarray(inside)
    if any(map(any, beyond)):
        pixels = np.pad(pixels, (*beyond, *((0, 0),) * (pixels.ndim - 2)), mode="edge")
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)


def put_back(part: Image.Image, image: Image.Image, mask: Image.Image, box: Box) -> Image.Image:
    """The picture with a part of it drawn anew where the mask is white. Where it is black nothing changes."""
    drawn = image.copy()
    drawn.paste(part.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.LANCZOS), box[:2])
    return Image.composite(drawn, image, mask.convert("L"))

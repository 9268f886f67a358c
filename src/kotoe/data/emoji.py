"""The emoji world: scenes of one or two Noto Color Emoji on a flat background, and the captions that describe them.

A scene is a pure function of (seed, i). Glyphs come from the font `NotoColorEmoji.ttf`, names from Unicode CLDR
(see `cldr.py`); neither is part of Kotoe. Glyphs are rendered once into a sprite atlas, a file in the cache folder,
and scenes are composed from it by tensor operations on whatever device trains.

Legend: B pictures, N glyphs, S sprite edge in pixels. Pixels run from the top left corner.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kotoe.data.captions import COLOURS
from kotoe.data.cldr import Glyph, load_objects
from kotoe.errors import UserError
from kotoe.runs import cache_folder

PIXELS = 128  # edge of a scene
FONT_SIZE = 109  # the one bitmap size NotoColorEmoji.ttf holds; a glyph is 136 x 128 at it
SPRITE = 108  # edge of a sprite in the atlas, and of a large object
# Sizes and shifts are such that an object of one size always lies the same way on the 16-pixel grid of the latents: a
# model has three looks of each object to learn, wherever it stands. (With shifts of 38 and 24 there were over a dozen.)
SIZES = {"small": 56, "medium": 76, "large": 108}  # edges of a single object in pixels
PAIR_SIZE = 56  # edge of each of two objects
SHIFT = {"small": 32, "medium": 16, "large": 0}  # how far from the centre a named position lies, in pixels
PAIR_SHIFT = 32
POSITIONS: dict[str, tuple[int, int]] = {  # name: (columns, rows) in units of SHIFT
    "centre": (0, 0),
    "top left": (-1, -1),
    "top": (0, -1),
    "top right": (1, -1),
    "left": (-1, 0),
    "right": (1, 0),
    "bottom left": (-1, 1),
    "bottom": (0, 1),
    "bottom right": (1, 1),
}
RELATIONS: dict[str, tuple[int, int]] = {  # where the first object lies, seen from the middle
    "left_of": (-1, 0),
    "right_of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}
HELD_OUT_SHARE = 10  # one object-colour combination and one object pair in this many is never trained on

FONT_PLACES = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",
    "~/Library/Fonts/NotoColorEmoji.ttf",
    "/Library/Fonts/NotoColorEmoji.ttf",
    "~/.local/share/fonts/NotoColorEmoji.ttf",
)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a picture shows. `objects` are indices into the tier's glyphs; an unsaid colour is still drawn.

    One object has a size and a position, two have a relation: the first lies left of (right of, above, below) the
    second.
    """

    objects: tuple[int, ...]
    size: str = "medium"
    position: str = "centre"
    relation: str | None = None
    background: str = "white"
    background_said: bool = True


def emoji_font() -> Path:
    """The font file: KOTOE_EMOJI_FONT if set, else the first of FONT_PLACES that exists."""
    asked = os.environ.get("KOTOE_EMOJI_FONT")
    for place in (asked,) if asked else FONT_PLACES:
        path = Path(place).expanduser()
        if path.is_file():
            return path
    raise UserError(
        f"the font NotoColorEmoji.ttf was not found ({asked or 'looked in ' + ', '.join(FONT_PLACES)})",
        hint="Install the Debian package fonts-noto-color-emoji, or set KOTOE_EMOJI_FONT to the file",
    )


def _draw_sprites(glyphs: Sequence[Glyph], font_file: Path) -> np.ndarray:
    """(N, S, S, 4) uint8, colour premultiplied by alpha."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(str(font_file), FONT_SIZE)
    sprites = np.zeros((len(glyphs), SPRITE, SPRITE, 4), np.uint8)
    for k, glyph in enumerate(glyphs):
        canvas = Image.new("RGBA", (136, 136))
        ImageDraw.Draw(canvas).text((0, 4), glyph.codepoints, font=font, embedded_color=True)
        small = canvas.convert("RGBa").resize((SPRITE, SPRITE), Image.Resampling.LANCZOS)
        sprites[k] = np.frombuffer(small.tobytes(), np.uint8).reshape(SPRITE, SPRITE, 4)
        if not sprites[k, ..., 3].any():
            raise UserError(f"{font_file} has no picture of {glyph.name_en!r}", hint="Use a newer NotoColorEmoji.ttf")
    return sprites


class Atlas:
    """Sprites of a tier's glyphs, and the scenes composed of them."""

    def __init__(self, sprites: Tensor, glyphs: Sequence[Glyph]) -> None:
        """sprites: (N, 4, S, S) uint8 premultiplied RGBA on the device that shall compose."""
        self.sprites, self.glyphs = sprites, list(glyphs)
        self._scaled: dict[int, Tensor] = {}

    def scaled(self, edge: int) -> Tensor:
        """Sprites (N, 4, edge, edge) uint8, area-averaged from the atlas and kept."""
        if edge not in self._scaled:
            parts = [
                F.interpolate(chunk.float(), size=(edge, edge), mode="bicubic", antialias=True, align_corners=False)
                for chunk in self.sprites.split(128)
            ]
            self._scaled[edge] = torch.cat(parts).round_().clamp_(0, 255).to(torch.uint8)
        return self._scaled[edge]

    def paste(self, canvas: Tensor, rows: Tensor, objects: Tensor, edge: int, centre: tuple[int, int]) -> None:
        """Lay sprites over canvas[rows] (B, 3, PIXELS, PIXELS) float 0 to 255, centred at (x, y)."""
        left, top = centre[0] - edge // 2, centre[1] - edge // 2
        sprite = self.scaled(edge)[objects].float()  # (b, 4, edge, edge)
        under = canvas[rows, :, top : top + edge, left : left + edge]
        canvas[rows, :, top : top + edge, left : left + edge] = sprite[:, :3] + under * (1 - sprite[:, 3:] / 255)

    def render(self, scenes: Sequence[Scene]) -> Tensor:
        """Pictures (B, 3, PIXELS, PIXELS) uint8 of scenes."""
        device = self.sprites.device
        colours = torch.tensor([COLOURS[s.background].rgb for s in scenes], dtype=torch.float32, device=device)
        canvas = colours[:, :, None, None].repeat(1, 1, PIXELS, PIXELS)  # (B, 3, PIXELS, PIXELS)
        places: dict[tuple[int, int, int], tuple[list[int], list[int]]] = {}  # (edge, x, y): rows, objects
        for row, scene in enumerate(scenes):
            for k, (edge, x, y) in enumerate(layout(scene)):
                rows, objects = places.setdefault((edge, x, y), ([], []))
                rows.append(row)
                objects.append(scene.objects[k])
        for (edge, x, y), (rows, objects) in places.items():
            self.paste(canvas, torch.tensor(rows, device=device), torch.tensor(objects, device=device), edge, (x, y))
        return canvas.round_().clamp_(0, 255).to(torch.uint8)


def layout(scene: Scene) -> list[tuple[int, int, int]]:
    """(edge, centre x, centre y) in pixels of each object of the scene."""
    middle = PIXELS // 2
    if scene.relation is None:
        (dx, dy), shift = POSITIONS[scene.position], SHIFT[scene.size]
        return [(SIZES[scene.size], middle + dx * shift, middle + dy * shift)]
    dx, dy = RELATIONS[scene.relation]
    return [(PAIR_SIZE, middle + sign * dx * PAIR_SHIFT, middle + sign * dy * PAIR_SHIFT) for sign in (1, -1)]


@lru_cache(maxsize=4)
def atlas(tier: str = "everyday", device: str = "cpu") -> Atlas:
    """The atlas of a tier, drawn on first use and kept in the cache folder."""
    glyphs = load_objects(tier)
    font_file = emoji_font()
    recipe = repr((SPRITE, FONT_SIZE, [g.codepoints for g in glyphs]))
    key = hashlib.sha256(recipe.encode() + font_file.read_bytes()).hexdigest()[:16]
    file = cache_folder() / f"atlas-{tier}-{key}.npz"
    if file.exists():
        sprites = np.load(file, allow_pickle=False)["sprites"]
    else:
        sprites = _draw_sprites(glyphs, font_file)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.npz")  # rename is atomic: a killed run leaves no half atlas
        np.savez_compressed(part, sprites=sprites)
        part.replace(file)
    return Atlas(torch.from_numpy(sprites).permute(0, 3, 1, 2).contiguous().to(device), glyphs)


def _bucket(*parts: object) -> int:
    digest = hashlib.blake2s("|".join(map(str, parts)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_SHARE


@lru_cache(maxsize=200_000)
def held_out_colour(codepoints: str, background: str) -> bool:
    """Whether this object is never trained on this background."""
    return _bucket("colour", codepoints, background) == 0


@lru_cache(maxsize=200_000)
def held_out_pair(first: str, second: str) -> bool:
    """Whether these two objects are never trained on together, in either order."""
    return _bucket("pair", *sorted((first, second))) == 0


def scene(seed: int, i: int, glyphs: Sequence[Glyph], *, pairs: float = 0.4, held_out: bool = False) -> Scene:
    """Sample i of the world: a pure function of its arguments.

    pairs:    share of scenes with two objects, 0 to 1.
    held_out: only combinations that training never sees, or only those it may see.
    """
    draw = random.Random(f"{seed}:{i}")
    names = list(COLOURS)
    if draw.random() < pairs:
        while True:
            a, b = draw.sample(range(len(glyphs)), 2)
            if held_out_pair(glyphs[a].codepoints, glyphs[b].codepoints) == held_out:
                break
        return Scene(
            objects=(a, b),
            relation=draw.choice(list(RELATIONS)),
            background=draw.choice(names),
            background_said=held_out or draw.random() < 0.9,
        )
    while True:
        a, background = draw.randrange(len(glyphs)), draw.choice(names)
        if held_out_colour(glyphs[a].codepoints, background) == held_out:
            break
    size = draw.choices(("medium", "small", "large"), (0.7, 0.15, 0.15))[0]
    position = "centre" if size == "large" or draw.random() < 0.7 else draw.choice(list(POSITIONS)[1:])
    return Scene(
        objects=(a,),
        size=size,
        position=position,
        background=background,
        background_said=held_out or draw.random() < 0.9,
    )

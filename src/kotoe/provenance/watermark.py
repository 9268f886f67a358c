"""A number in a picture's pixels that is hardly seen and outlives a file's texts: "made by Kotoe", and by whom.

The payload is an operator's number, 0 to 65535. It is spread over N = 256 x 6 coefficients of the 8 x 8 cosine
transform of the picture's brightness at 128 x 128, whatever its own size is: a picture that was resized is read as it
is. Number m has the signs s_i(m) = k_i (-1)^<g_i, m>, a random linear code: k_i is 1 or -1 and g_i one of 65536 vectors
of 16 bits, both from SHAKE-256 and public. Coefficients are pushed to a small value of their sign, and no more of them
than needed.

Reading correlates the coefficients, cut off at CUT, with the signs of all 65536 numbers at once (a Walsh-Hadamard
transform), and gives the best one with a bound on the probability that a picture without a mark scores as well. It is
Hoeffding's: over the signs k_i, which no unmarked picture knows, a sum of +-y_i exceeds z |y| with less than
exp(-z**2 / 2); times 65536, since the best number was looked for. There is no other threshold and nothing learnt.

The key is public: whoever has this file can put any number into any picture, and can take one out. A mark is a hint
that survives, not a proof; proofs are signatures (c2pa.py).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kotoe.errors import UserError

EDGE = 128  # pixels: the smallest edge of a picture that holds a mark, and the size at which it is read
BLOCK = 8
BITS = 16
NUMBERS = 2**BITS
FOUND = 1e-6  # a mark is said to be there when an unmarked picture scores as well less often than this
KEY = b"kotoe watermark 1"
PLACES = ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2))  # (row, column) in a block: what JPEG keeps best
# Levels of 255 times 8, since the transform is orthonormal:
TARGET = (
    6.5  # what a coefficient is brought to: JPEG at quality 50 rounds it up, not to 0. Of a picture of EDGE pixels;
)
FADES = 0.3  # of one k times as large divided by k to this power, since its noise averages out
CUT = 4.0
PUSH = 8.0  # the most that one is changed by where a picture is flat,
GAIN = 0.7  # and how much more for each level of its block's contrast, where the eye sees less
MASK = 0.1  # how much less a change counts there
GOAL = 28.0  # the score after which no further coefficient is pushed: JPEG takes a part of it
LARGEST_CHANGE = 10.0  # mean square of the change, levels: 38.1 dB
ROUNDS = 4  # of pushing: rounding, and levels below 0 and above 255, undo a part

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What was read from a picture.

    number: the number that fits best; of a picture without a mark it means nothing.
    score:  how well, in standard deviations of a picture without a mark.
    p_value: at most how often a picture without a mark scores as well, with any number.
    found:  p_value is below FOUND.
    """

    number: int
    score: float
    p_value: float
    found: bool


def embed(image: Image.Image, number: int) -> Image.Image:
    """The RGB picture with a number in it.

    Raises UserError for a number outside 0 to 65535, a picture smaller than EDGE on a side, and one that can't hold a
    mark.
    """
    if not 0 <= number < NUMBERS:
        raise UserError(f"watermark {number}", allowed=f"0 to {NUMBERS - 1}")
    check_size(*image.size)
    rgb = np.asarray(image.convert("RGB"), dtype=np.float32)  # (H, W, 3)
    signs, host, out = _signs(number), _coefficients(image), rgb
    change = np.zeros_like(host)  # (N,)
    contrast, target = _contrast(host), TARGET * (EDGE / min(image.size)) ** FADES
    for _ in range(ROUNDS):
        there = host if out is rgb else _coefficients(Image.fromarray(out.astype(np.uint8)))
        change += _pushes(signs, there, change, contrast, target)
        moved = _enlarged(_pixels(signs * change), image.size)  # (H, W)
        out = np.clip(np.rint(rgb + moved[..., None]), 0, 255)
    marked = Image.fromarray(out.astype(np.uint8))
    if not (read := detect(marked)).found or read.number != number:
        raise UserError("the picture can't hold a watermark: it has too few levels that can be changed")
    return marked


def detect(image: Image.Image) -> Mark:
    """The mark in a picture of any size; one below EDGE, made smaller after it was marked, is read enlarged."""
    soft = np.clip(_coefficients(image), -CUT, CUT).astype(np.float64)  # (N,)
    norm = float(np.sqrt((soft**2).sum()))
    if norm == 0.0:
        return Mark(number=0, score=0.0, p_value=1.0, found=False)
    vectors, key = _code()
    table = np.bincount(vectors, weights=soft * key, minlength=NUMBERS)  # (65536,)
    half = 1
    while half < NUMBERS:
        pairs = table.reshape(-1, 2, half)
        table = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).reshape(-1)
        half *= 2
    best = int(table.argmax())
    score = float(table[best]) / norm
    p_value = min(1.0, NUMBERS * math.exp(-(score**2) / 2)) if score > 0 else 1.0
    return Mark(number=best, score=score, p_value=p_value, found=p_value < FOUND)


def check_size(width: int, height: int) -> None:
    """Raise a UserError for pictures that are too small to be marked."""
    if min(width, height) < EDGE:
        raise UserError(
            f"a picture of {width}x{height} pixels is too small for a watermark",
            allowed=f"{EDGE} pixels or more on each side",
        )


# --- The code -------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _code() -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """g_i, 0 to 65535, and k_i, 1 or -1, of the N coefficients."""
    count = (EDGE // BLOCK) ** 2 * len(PLACES)
    data = np.frombuffer(hashlib.shake_256(KEY).digest(3 * count), dtype=np.uint8).reshape(count, 3).astype(np.int64)
    return data[:, 0] * 256 + data[:, 1], np.where(data[:, 2] < 128, 1.0, -1.0)


def _uneven() -> Floats:
    """1 to 2 for each of the N coefficients: of many alike, those that are pushed lie all over the picture."""
    vectors, _ = _code()
    return (1 + vectors / NUMBERS).astype(np.float32)


def _signs(number: int) -> Floats:
    """s_i of a number, 1 or -1, (N,)."""
    vectors, key = _code()
    both = vectors & number
    parity = np.zeros_like(both)
    for bit in range(BITS):
        parity ^= both >> bit & 1
    return (key * (1 - 2 * parity)).astype(np.float32)


# --- Pictures and coefficients --------------------------------------------------------------------


@lru_cache(maxsize=1)
def _cosines() -> Floats:
    """The orthonormal cosine transform of 8 values, (8, 8): frequency by place."""
    k, x = np.meshgrid(np.arange(BLOCK), np.arange(BLOCK), indexing="ij")
    basis = np.cos(np.pi * k * (2 * x + 1) / (2 * BLOCK)) * np.sqrt(2 / BLOCK)
    basis[0] /= np.sqrt(2)
    return basis.astype(np.float32)


def _coefficients(image: Image.Image) -> Floats:
    """The N coefficients of a picture's brightness at EDGE x EDGE, in rows of blocks, of a block as in PLACES."""
    rgb = np.asarray(image.convert("RGB"), dtype=np.float32)  # (H, W, 3)
    grey = Image.fromarray(rgb @ np.array([0.299, 0.587, 0.114], dtype=np.float32))
    small = grey if grey.size == (EDGE, EDGE) else grey.resize((EDGE, EDGE), Image.Resampling.BICUBIC)
    side = EDGE // BLOCK
    blocks = np.asarray(small).reshape(side, BLOCK, side, BLOCK)
    found = np.einsum("ux,axby,vy->abuv", _cosines(), blocks, _cosines())  # (16, 16, 8, 8)
    return np.stack([found[:, :, u, v] for u, v in PLACES], axis=-1).reshape(-1)


def _contrast(host: Floats) -> Floats:
    """For each of the N coefficients the rms of those of its block."""
    blocks = host.reshape(-1, len(PLACES))
    return np.repeat(np.sqrt((blocks**2).mean(axis=1)), len(PLACES))


def _pushes(signs: Floats, there: Floats, change: Floats, contrast: Floats, target: float) -> Floats:
    """How far to push each of the N coefficients on, in the direction of its sign.

    Those that give most for what is seen of them come first, and no more than GOAL and LARGEST_CHANGE ask for; what
    can't be brought to the target is left as it is.
    """
    wanted = np.clip(target - signs * there, 0, None)
    possible = change + wanted <= PUSH + GAIN * contrast
    gain = np.clip(signs * there + wanted, -CUT, CUT) - np.clip(signs * there, -CUT, CUT)
    cost = np.where(possible, wanted**2 * _uneven() / ((gain + 0.1) * (1 + MASK * contrast)), np.inf)
    order = np.argsort(cost, kind="stable")
    before = signs * np.clip(there, -CUT, CUT)
    after = np.where(possible, np.clip(signs * there + wanted, -CUT, CUT), before)
    sums = before.sum() + np.cumsum((after - before)[order])
    squares = (before**2).sum() + np.cumsum((after**2 - before**2)[order])
    energy = (change**2).sum() + np.cumsum(((change + wanted) ** 2 - change**2)[order])
    enough = sums >= GOAL * np.sqrt(np.maximum(squares, 1e-9))
    allowed = energy <= LARGEST_CHANGE * EDGE**2
    count = min(int(enough.argmax()) + 1 if enough.any() else len(order), int(allowed.sum()), int(possible.sum()))
    chosen = order[:count]
    pushed = np.zeros_like(wanted)
    pushed[chosen] = wanted[chosen]
    return pushed


def _pixels(values: Floats) -> Floats:
    """The pixels (EDGE, EDGE) of N coefficients, where all others are 0."""
    side = EDGE // BLOCK
    found = np.zeros((side, side, BLOCK, BLOCK), dtype=np.float32)
    for i, (u, v) in enumerate(PLACES):
        found[:, :, u, v] = values.reshape(side, side, -1)[..., i]
    return np.einsum("ux,abuv,vy->axby", _cosines(), found, _cosines()).reshape(EDGE, EDGE)


def _enlarged(change: Floats, size: tuple[int, int]) -> Floats:
    """A change of EDGE x EDGE pixels at a picture's size (width, height)."""
    if size == (EDGE, EDGE):
        return change
    return np.asarray(Image.fromarray(change).resize(size, Image.Resampling.BICUBIC))

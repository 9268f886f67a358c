"""Every random number has an owner: one CPU generator per image, one generator per (seed, step) in training.

Nothing outside this file seeds torch's global generator or draws without a generator; tests/test_rng.py
walks the source and says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from kotoe.errors import UserError

# torch's CPU generator is a Mersenne twister that takes only the low 32 bits of its seed: 7 and 7 + 2**32
# draw the same numbers. A seed that would be cut is refused instead.
SEEDS = 2**32


def generator(seed: int) -> torch.Generator:
    """A CPU generator that draws what `torch.Generator().manual_seed(seed)` draws anywhere else.

    Raises UserError when `seed` is outside 0 to 2**32 - 1.
    """
    if not 0 <= seed < SEEDS:
        raise UserError(
            f"seed {seed}",
            allowed=f"0 to {SEEDS - 1}",
            hint="The generator reads 32 bits; a longer seed would silently draw the picture of another one",
        )
    return torch.Generator(device="cpu").manual_seed(seed)


def keyed_generator(*key: int | str) -> torch.Generator:
    """A CPU generator for a key such as (seed, rank, step): equal keys draw equal numbers, on any machine."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=4).digest()
    return generator(int.from_bytes(digest, "little"))


@contextmanager
def initialising(seed: int) -> Iterator[None]:
    """Within it torch's layer initialisers draw from `seed`; the global generator is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed).initial_seed())
        yield


class ImageNoise:
    """Gaussian noise for a batch of images, one generator each, so that image i is the same alone.

    seeds: one per image, 0 to 2**32 - 1.
    shape: (C, H, W) of one image's latent.

    `initial()` is every image's first draw, `noise(i)` the one numbered i after it, the order in which
    diffusers uses a list of generators. Any i may be asked for at any time, and gives the same bits each time.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], *, device: torch.device | str = "cpu") -> None:
        self.seeds = tuple(seeds)
        self.shape = tuple(shape)
        self.device = device
        self._generators = [generator(seed) for seed in self.seeds]
        self._next = 0  # the number of the draw that the generators would make now

    def initial(self) -> Tensor:
        """The starting noise, unit variance, float32 (B, C, H, W)."""
        return self._draw(0)

    def __call__(self, i: int) -> Tensor:
        """The noise of step i = 0, 1, ..., unit variance, float32 (B, C, H, W)."""
        if i < 0:
            raise UserError(f"noise of step {i}", allowed="0 or more")
        return self._draw(i + 1)

    def _draw(self, number: int) -> Tensor:
        if number < self._next:
            self._generators = [generator(seed) for seed in self.seeds]
            self._next = 0
        while True:
            drawn = [torch.randn(self.shape, generator=g) for g in self._generators]  # B of (C, H, W)
            self._next += 1
            if self._next > number:
                return torch.stack(drawn).to(self.device)  # (B, C, H, W)

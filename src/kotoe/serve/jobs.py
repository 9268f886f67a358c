"""A request in the words of any dialect (Wish), once it was taken (Job), and the pictures that are done (Kept)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kotoe import reading
from kotoe.checkpoints import Bundle
from kotoe.config import Request, Resolved
from kotoe.drawing import Picture
from kotoe.record import Verdict
from kotoe.serve.refusals import Refusal


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is asked for, in the words of any dialect.

    request:  its init_image and mask are files in the service's folder (`Service.keep`).
    model:    which of the server's; None: the first.
    caller:   who asks: a key's name, or an address. Pictures are shared out among callers.
    owner:    whose key may see the job; "" where there are no keys.
    locale:   BCP 47, of reasons.
    fast:     the model's few-step way.
    previews: whether pictures are shown as they come: a few times a second, or, where a number is given, after so many
              evenly spread steps.
    encode:   a picture's file: called on a thread, with the picture and `signer`, who signs it.
    notes:    what the dialect has to say beside the pictures.
    """

    request: Request
    model: str | None = None
    caller: str = ""
    owner: str = ""
    locale: str = "en"
    fast: bool = False
    previews: bool | int = False
    encode: Callable[..., bytes] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A picture that is done: its file, and what was done."""

    id: str
    index: int
    content: bytes
    picture: Picture


@dataclass(eq=False, kw_only=True)
class Job:
    """A request that was taken. document() is what callers see of it."""

    id: str
    wish: Wish
    request: Resolved
    bundle: Bundle
    plan: Sequence[reading.Job]
    prompt_verdict: Verdict | None
    created: float
    deadlines: Sequence[float]
    each: int  # steps of one picture
    state: str = "waiting"
    begun: bool = False  # whether any of it is being drawn, or was
    done: list[int] = field(default_factory=list)  # steps, by picture
    pictures: list[Kept] = field(default_factory=list)
    blocked: list[dict[str, Any]] = field(default_factory=list)
    error: Refusal | None = None
    shown: dict[tuple[int, int], bytes] = field(default_factory=dict)  # by picture, and after which step: a PNG
    open: int = 0  # pictures that are neither done nor given up
    keeps: bool = True  # whether the store should have it
    kept: bool = True  # whether it has
    forgotten: bool = False  # its caller wants nothing of it any more: it is deleted once it has ended
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    dropped: set[int] = field(default_factory=set)  # pictures given up, whatever becomes of the others

    def show(self, index: int, step: int, content: bytes) -> None:
        """A picture as it is after a step. Where nobody asked for certain steps the latest of each picture will do."""
        if self.wish.previews is True:
            for key in [key for key in list(self.shown) if key[0] == index]:
                self.shown.pop(key, None)
        self.shown[index, step] = content

    @property
    def previews(self) -> list[tuple[int, int, bytes]]:
        """Picture, after which step, and a PNG."""
        return [(index, step, content) for (index, step), content in list(self.shown.items())]

    @property
    def steps(self) -> tuple[int, int]:
        """Picture-steps done, and in all."""
        return sum(self.done), self.each * len(self.plan)

"""Settings found in a picture's file: those of a Request that can be taken over, and what can't."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kotoe.config import Request
from kotoe.errors import UserError
from kotoe.provenance.names import apart, grid_of, sampler_of
from kotoe.record import Record

TOLD = 300  # characters of a foreign value that a note repeats


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a picture's file says of how it was drawn.

    tool:    the program that drew it: Kotoe, AUTOMATIC1111, ComfyUI, InvokeAI, NovelAI, stable-diffusion.cpp, ...
    request: keys and values of a Request that can be taken over, each one valid; `prompt` is one text. `strength` goes
             with the picture that was started from, `padding_mask_crop` with that and its mask: both have to be given.
    notes:   what could not be taken over, or will be different, a sentence each.
    record:  Kotoe's own record, where there is one.
    text:    the text as it stands in the file: `parameters`, or a JSON document.
    """

    tool: str
    request: Mapping[str, Any]
    notes: tuple[str, ...]
    record: Record | None = None
    text: str


@dataclass
class Taking:
    """Collects what can be taken over. Everything comes from outside: nothing here raises for a value."""

    tool: str
    request: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """A sentence on what is not taken over; each once."""
        if text not in self.notes:
            self.notes.append(text)

    def left(self, name: str, value: Any, why: str = "is not taken over") -> None:
        self.note(f"{name} {shown(value)} {why}")

    def take(self, name: str, value: Any, said: str = "") -> None:
        """Take a value over if a Request may have it. said: what the file calls it."""
        beside = {"strength": {"init_image": "-"}, "padding_mask_crop": {"init_image": "-", "mask": "-"}}.get(name, {})
        prompt = {} if name == "prompt" else {"prompt": "-"}
        try:
            Request(**{**prompt, **beside, name: value})
        except UserError as error:
            self.note(f"{said or name} is not taken over: {error.given[:TOLD]}")
            return
        self.request[name] = value

    def number(self, name: str, value: Any, said: str = "", *, whole: bool = False) -> None:
        """Take a number over, also one that is written as text."""
        found = number(value, whole=whole)
        if found is None:
            self.left(said or name, value, "is no number")
        else:
            self.take(name, found, said)

    def sampling(self, sampler: Any, schedule: Any = "", *, guess: bool = True) -> None:
        """Take over sampler and schedule by another program's names.

        guess: where no schedule is said, it is the one that AUTOMATIC1111 draws on; else the model's own.
        """
        if not isinstance(sampler, str) or not isinstance(schedule, str):
            self.left("sampler", sampler, "is no name")
            return
        name, tail = apart(sampler)
        ours, schedule = sampler_of(name), schedule.strip() or tail
        if ours is None:
            self.left("sampler", sampler, "is none that Kotoe has")
            return
        self.request["sampler"] = ours
        if not schedule and not guess:
            return
        grid = grid_of(schedule, ours)
        if grid is None:
            self.left("schedule", schedule, "is none that Kotoe has")
        else:
            self.request["grid"] = grid

    def done(self, text: str, record: Record | None = None) -> Settings:
        """All of it. What a Request refuses together is taken out again, and said."""
        if self.request.get("guidance_scale") == 1.0 and self.request.get("negative_prompt"):
            self.left("negative prompt", self.request.pop("negative_prompt"), "has no effect without guidance")
        return Settings(tool=self.tool, request=self.request, notes=tuple(self.notes), record=record, text=text)


def number(value: Any, *, whole: bool = False) -> int | float | None:
    """A finite number from a number or a text, None if it is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        text = value.strip()
        if re.fullmatch(r"[+-]?[0-9]{1,20}", text):
            value = int(text)
        elif re.fullmatch(r"[+-]?[0-9]{1,20}\.?[0-9]{0,20}([eE][+-]?[0-9]{1,3})?", text):
            value = float(text)
    if isinstance(value, float) and math.isfinite(value):
        if whole:
            return int(value) if value.is_integer() else None
        return value
    if isinstance(value, int):
        return value if whole else float(value) if abs(value) < 2**63 else None
    return None


def shown(value: Any) -> str:
    """A foreign value for a note, at most TOLD characters of it."""
    text = value if isinstance(value, str) else repr(value)[: 2 * TOLD]
    return repr(text if len(text) <= TOLD else text[:TOLD] + "…")

"""What the AUTOMATIC1111 API remembers of each caller: options, the requests that are open, and which model it means.

That program has one of each for everybody. Here every caller (a key, or an address where there are no keys) has its
own: what one sets, watches or interrupts is no other's.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from kotoe.errors import nearest, shown
from kotoe.provenance.infotext import EMPHASIS
from kotoe.recording import model_record
from kotoe.serve.gate import Caller
from kotoe.serve.jobs import Job
from kotoe.serve.refusals import Refusal
from kotoe.serve.service import Service

MOST_SEATS = 1000  # callers that are remembered
MOST_TASKS = 100  # of each, that have ended, refused ones among them
# What the ids take at worst: 1,000 x 100 of 256 characters of 4 bytes, 100 MB, once so many addresses (or keys) have
# sent 100 requests each with the longest one; with that program's own clients' ids, some 10 MB.
LONGEST_TASK = 256  # characters of an id
MOST_NOTES = 20  # on names that have no effect; of the others it is said how many they are
CHECKPOINT, CHECKPOINT_HASH = "sd_model_checkpoint", "sd_checkpoint_hash"
FORMATS = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}
HONOURED: dict[str, Any] = {"samples_format": "png", "jpeg_quality": 80, "emphasis": "Original"}
# Settings of that program that would change a picture, and the values that are what Kotoe does; the first one is shown.
FIXED: dict[str, tuple[Any, ...]] = {
    "CLIP_stop_at_last_layers": (1,),
    "sd_vae": ("Automatic", "None", "", None),
    "randn_source": ("CPU",),
    "eta_noise_seed_delta": (0,),
    "eta_ancestral": (1.0,),
    "eta_ddim": (0.0,),
    "initial_noise_multiplier": (1.0,),
    "img2img_fix_steps": (False,),
    "use_old_emphasis_implementation": (False,),
}


@dataclass(frozen=True, kw_only=True)
class Known:
    """A model as its clients name it. title: "name [hash]", hash the first 10 hex digits of sha256, its UNet's."""

    name: str
    sha256: str

    @property
    def hash(self) -> str:
        """The first 10 hex digits."""
        return self.sha256[:10]

    @property
    def title(self) -> str:
        """What `sd_model_checkpoint` holds."""
        return f"{self.name} [{self.hash}]"


@dataclass(eq=False, kw_only=True)
class Running:
    """A request that is not answered yet. job: once it has been taken."""

    task: str
    job: Job | None = None
    interrupted: bool = False
    skipped: bool = False


@dataclass(eq=False)
class Seat:
    """One caller's. options: those that were set; running: the oldest first; finished: ids of tasks."""

    options: dict[str, Any] = field(default_factory=dict)
    running: list[Running] = field(default_factory=list)
    finished: deque[str] = field(default_factory=lambda: deque(maxlen=MOST_TASKS))

    def option(self, name: str) -> Any:
        """An option's value now."""
        return self.options.get(name, HONOURED.get(name))

    def end(self, running: Running) -> None:
        """A request is answered, one way or another."""
        self.running.remove(running)
        self.finished.append(running.task)


class Seats:
    """All callers', and the server's models. Used on the event loop alone."""

    def __init__(self) -> None:
        self.seats: OrderedDict[str, Seat] = OrderedDict()
        self.models: tuple[Known, ...] = ()

    def of(self, caller: Caller) -> Seat:
        """A caller's; those who have not come for the longest are forgotten when there are too many."""
        seat = self.seats.setdefault(caller.name, Seat())
        self.seats.move_to_end(caller.name)
        if len(self.seats) > MOST_SEATS:
            idle = next((name for name, other in self.seats.items() if not other.running and other is not seat), None)
            if idle is not None:
                del self.seats[idle]
        return seat

    async def known(self, service: Service) -> tuple[Known, ...]:
        """The models, in the server's order. Weight files that were not read for a record yet are read for it."""
        if not self.models:
            records = [await asyncio.to_thread(model_record, bundle) for bundle in service.bundles.values()]
            names = zip(service.bundles, records, strict=True)
            self.models = tuple(Known(name=name, sha256=record.unet_sha256) for name, record in names)
        return self.models

    async def model(self, service: Service, seat: Seat) -> Known:
        """The one that a caller draws with."""
        name = seat.options.get(CHECKPOINT, service.default)
        return next(model for model in await self.known(service) if model.name == name)


def found(models: Sequence[Known], given: Any) -> str:
    """A model's name by its title, name, file name, hash or sha256. Raises Refusal."""
    text = given.casefold().strip() if isinstance(given, str) else ""
    bare = text.removesuffix(".safetensors").removesuffix(".ckpt")
    for model in models:
        if {text, bare} & {word.casefold() for word in (model.title, model.name, model.hash, model.sha256)}:
            return model.name
    near = nearest(text, [word for model in models for word in (model.title, model.name)])
    raise Refusal(
        400,
        f"{CHECKPOINT} {shown(given)}. Allowed: {', '.join(model.title for model in models)}."
        + (f" Did you mean {near!r}?" if near else ""),
        param=CHECKPOINT, code="model_not_found",
    )  # fmt: skip


def checked(given: Mapping[str, Any], models: Sequence[Known]) -> tuple[dict[str, Any], list[str]]:
    """Those of the options that are set by it, and notes on those that have no effect.

    Raises Refusal for a value that can't be done, or is none.
    """
    taken: dict[str, Any] = {}
    for name, value in given.items():
        if name == CHECKPOINT:
            if value not in (None, ""):  # "as it is"
                taken[name] = found(models, value)
        elif name in FIXED:
            if not any(alike(value, one) for one in FIXED[name]):
                shown_first = FIXED[name][0]
                raise refused(name, value, f"{shown_first!r}, which is what Kotoe does")
        elif name == "samples_format":
            taken[name] = _one_of(name, value, list(FORMATS))
        elif name == "emphasis":
            taken[name] = _one_of(name, value, list(EMPHASIS.values()))
        elif name == "jpeg_quality":
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 100:
                raise refused(name, value, "1 to 100")
            taken[name] = value
    known = {*FIXED, *HONOURED, CHECKPOINT, CHECKPOINT_HASH}  # the last one follows the model
    others = [name for name in given if name not in known]
    return taken, without_effect(others, "an option that Kotoe doesn't have; it changes nothing")


def without_effect(names: Collection[str], why: str) -> list[str]:
    """A note on each of the names, MOST_NOTES at most, and on how many more there are."""
    notes = [f"{shown(name)[1:-1]}: {why}" for name in islice(names, MOST_NOTES)]
    more = len(names) - len(notes)
    return [*notes, f"and {more} more: {why}"] if more else notes


def _one_of(name: str, value: Any, allowed: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise refused(name, value, ", ".join(allowed))
    return value


def alike(a: Any, b: Any) -> bool:
    """Equal in JSON's sense: true is no 1."""
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def refused(name: str, value: Any, allowed: str, why: str = "") -> Refusal:
    """What is said of a field or an option whose value can't be done."""
    return Refusal(
        400,
        f"{name} {shown(value)}. Allowed: {allowed}." + (f" {why}." if why else ""),
        param=name, code="not_supported",
    )  # fmt: skip

"""A config.json read key by key: unknown keys and values that we don't implement are errors that name them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kotoe.errors import CheckpointError, UserError, nearest

DIFFUSERS_VERSION = "0.36.0"  # of whose configuration files these are; from 0.9 on the pipeline repairs nothing in them
LARGEST_WIDTH, LARGEST_DEPTH = 2**17, 256  # a hostile config.json must not cost memory or time

Config = dict[str, Any]


class Keys:
    """One config.json read key by key: every key must be known, every value one that we implement."""

    def __init__(self, config: Config, defaults: Config, where: str, ignored: tuple[str, ...] = ()) -> None:
        self.where, self.given = where, config
        self.values = {**defaults, **{k: v for k, v in config.items() if k in defaults}}
        for key in config:
            if key not in defaults and key not in ignored and not key.startswith("_"):
                near = nearest(key, [*defaults, *ignored])
                raise CheckpointError(
                    f"{where}: unknown key {key!r} (value {config[key]!r})",
                    hint=f"Did you mean {near!r}?" if near else "It may change the network in a way Kotoe doesn't know",
                )

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def refuse(self, key: str, allowed: str) -> CheckpointError:
        """The error for a value that isn't implemented."""
        absent = "" if key in self.given else " (the default for a missing key)"
        return CheckpointError(f"{self.where}: {key} is {self.values[key]!r}{absent}", allowed=allowed)

    def fixed(self, **required: Any) -> None:
        """Keys that have one implemented value each."""
        for key, value in required.items():
            if self.values[key] != value or isinstance(self.values[key], bool) != isinstance(value, bool):
                raise self.refuse(key, repr(value))

    def whole(self, key: str, largest: int, smallest: int = 1) -> int:
        value = self.values[key]
        if isinstance(value, bool) or not isinstance(value, int) or not smallest <= value <= largest:
            raise self.refuse(key, f"a whole number from {smallest} to {largest}")
        return value

    def number(self, key: str) -> float:
        value = self.values[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not -1e9 < value < 1e9:
            raise self.refuse(key, "a number")
        return float(value)

    def flag(self, key: str) -> bool:
        if not isinstance(self.values[key], bool):
            raise self.refuse(key, "true, false")
        return bool(self.values[key])

    def choice(self, key: str, *options: str) -> str:
        if self.values[key] not in options:
            raise self.refuse(key, ", ".join(options))
        return str(self.values[key])

    def widths(self, key: str, largest: int = LARGEST_WIDTH, smallest: int = 1) -> tuple[int, ...]:
        value = self.values[key]
        good = isinstance(value, list | tuple) and 0 < len(value) <= 16
        if not good or not all(
            isinstance(c, int) and not isinstance(c, bool) and smallest <= c <= largest for c in value
        ):
            raise self.refuse(key, f"a list of 1 to 16 whole numbers from {smallest} to {largest}")
        return tuple(value)

    def edge(self, key: str) -> int:
        value = self.values[key]
        if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
            self.values[key] = value[0]  # [64, 64] is what newer files write for 64
        return self.whole(key, LARGEST_WIDTH)


def make_spec(make: Callable[[], Any], where: str) -> Any:
    try:
        return make()
    except CheckpointError:
        raise
    except UserError as error:
        raise CheckpointError(f"{where}: {error.given}", allowed=error.allowed, hint=error.hint) from None

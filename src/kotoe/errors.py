"""Errors that teach: what was given, what is allowed, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

LONGEST_NAME = 200  # characters; what is longer is a slip or an attack, and like no name


class UserError(Exception):
    """Bad input from outside. The command line prints it and exits with code 2, without a traceback.

    given:   what was wrong, with the offending value.
    allowed: what would have been right.
    hint:    what to do next.
    """

    def __init__(self, given: str, *, allowed: str = "", hint: str = "") -> None:
        self.given, self.allowed, self.hint = given, allowed, hint
        parts = [given, f"Allowed: {allowed}" if allowed else "", hint]
        super().__init__(" ".join(part if part.endswith("?") else part.rstrip(".") + "." for part in parts if part))


class CheckpointError(UserError):
    """A checkpoint that is incomplete, damaged, unsafe or of another shape than it says."""


class ProcessError(UserError):
    """An error of one of several processes that work together.

    spoken: it is another process's, which says it.
    """

    def __init__(self, given: str, *, allowed: str = "", hint: str = "", spoken: bool = False) -> None:
        self.spoken = spoken
        super().__init__(given, allowed=allowed, hint=hint)


def shown(value: Any, most: int = 80) -> str:
    """A foreign value as an error repeats it: at most `most` characters, all of them printable."""
    text = repr(value[: 2 * most] if isinstance(value, str) else value)
    cut = len(text) > most or (isinstance(value, str) and len(value) > 2 * most)
    return text[: most - 3] + "..." if cut else text


def nearest(name: str, options: Iterable[str]) -> str | None:
    """The option most like `name`, None if nothing is close. Of several as like it, one that begins with its letter."""
    if len(name) > LONGEST_NAME:
        return None  # the comparison takes quadratic time
    found = difflib.get_close_matches(name, list(options), n=20, cutoff=0.5)  # likest first

    def like(option: str) -> tuple[float, bool]:
        return difflib.SequenceMatcher(None, option, name).ratio(), option[:1] == name[:1]

    return max(found, key=like, default=None)


def unknown(kind: str, name: str, options: Iterable[str]) -> UserError:
    """The error for a name that is not among `options`, with the nearest one as the hint."""
    options = sorted(options)
    near = nearest(name, options)
    return UserError(
        f"unknown {kind} {shown(name)}",
        allowed=", ".join(options),
        hint=f"Did you mean {near!r}?" if near else "",
    )

"""What a server answers instead of what was asked for: a status, a reason, and when to try again. The dialects say it
in their own shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable
from typing import Annotated, Any

from pydantic import Field

from kotoe.errors import LONGEST_NAME, UserError, nearest, shown

Name = Annotated[str, Field(max_length=LONGEST_NAME)]  # of a model, a sampler, a language: short, as errors repeat it


_FIELDS = {"long-prompt": "long_prompt", "language": "language", "width": "width", "height": "height"}


class Refusal(Exception):
    """A request that is not answered as asked.

    status:      HTTP's.
    message:     what was wrong, what is allowed, what to do.
    kind:        OpenAI's word for its type.
    param:       the field that it is about.
    code:        a word for programs.
    retry_after: seconds after which it may be tried again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code
        self.retry_after = retry_after
        super().__init__(message)

    @property
    def document(self) -> dict[str, Any]:
        """The error as OpenAI's API and Kotoe's own have it."""
        return {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}

    @property
    def headers(self) -> dict[str, str]:
        """Retry-After, in whole seconds, and how to log in."""
        found = {} if self.retry_after is None else {"Retry-After": str(max(1, math.ceil(self.retry_after)))}
        return found | ({"WWW-Authenticate": 'Basic realm="kotoe", Bearer'} if self.status == 401 else {})


def of(error: UserError, fields: Iterable[str] = ()) -> Refusal:
    """The refusal of bad input. fields: what it may be about, the first that its message names. What the command line
    would do about it is said in these words, or not at all."""
    words = re.findall(r"\w+", error.given)
    known = set(fields)
    here = UserError(error.given, allowed=_without_options(error.allowed), hint=_without_options(error.hint))
    return Refusal(400, str(here), param=next((word for word in words if word in known), None), code="invalid_value")


def _without_options(text: str) -> str:
    """What is advised where there are no options but fields, clause by clause."""
    text = re.sub(r"--([a-z][a-z-]*)", lambda found: _FIELDS.get(found[1], found[0]), text)
    clauses = (clause for clause in re.split(r"(?<=[.;]) ", text) if not re.search(r"(?<!kotoe serve )--[a-z]", clause))
    return " ".join(clauses).rstrip(";")


def only(fields: Collection[str], given: Any) -> Any:
    """What was given, if it has no other fields. Raises Refusal, naming the first.

    For a validator before all others: pydantic makes an error of each, half a million of them in seconds on the event
    loop.
    """
    unknown = next((name for name in given if name not in fields), None) if isinstance(given, dict) else None
    if unknown is None:
        return given
    near = nearest(unknown, fields)
    raise Refusal(
        400, f"Unknown field {shown(unknown)}." + (f" Did you mean {near!r}?" if near else ""),
        param=shown(unknown)[1:-1], code="unknown_parameter",
    )  # fmt: skip

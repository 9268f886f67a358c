"""A service of one tiny model in a test's own process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from kotoe.checkpoints import Bundle
from kotoe.config import Request
from kotoe.safety.checks import Checks
from kotoe.serve.jobs import Wish
from kotoe.serve.service import Service
from kotoe.serve.settings import Serving
from kotoe.serve.store import Store

LONG = Request(prompt="a", steps=900, width=64, height=64)
Body = Callable[[Service], Coroutine[Any, Any, None]]


def runner(bundle: Bundle) -> Callable[..., None]:
    """Runs a coroutine with a service, warm; settings as keywords. store: a file, or a Store."""

    def run(body: Body, *, checks: Checks | None = None, store: Path | Store | None = None, **settings: Any) -> None:
        async def main() -> None:
            given = Serving(**{"max_steps": 900, "max_n": 50, **settings})
            where = store if isinstance(store, Store) else Store(store)
            service = Service(given, checks or Checks(), {"tiny": bundle}, where)
            await service.warm()
            try:
                await asyncio.wait_for(body(service), 60)
            finally:
                await service.drain(0)

        asyncio.run(main())

    return run


async def until(what: Callable[[], bool]) -> None:
    """Wait until it is so."""
    while not what():
        await asyncio.sleep(0.005)


def wish(prompt: str = "a", caller: str = "me", **request: Any) -> Wish:
    """One of a caller without a key."""
    return Wish(request=Request(prompt=prompt, **request), caller=caller, owner="")

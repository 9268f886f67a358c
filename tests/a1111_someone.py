"""Clients of the AUTOMATIC1111 API with keys of their own, and the server that they ask."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from PIL import Image

import pictures
from serving import Served, serving
from tiny import saved_tiny

KEYS = {name: f"0123456789abcdef-{name}" for name in ("ann", "bob", "eve")}
SMALL = {"prompt": "a cat on a blue background", "width": 128, "height": 128, "steps": 4, "seed": 7}
LONG = {**SMALL, "width": 256, "height": 256, "steps": 150}  # half a minute or so, if nobody stops it
PICTURE = pictures.scene()


@contextmanager
def server(folder: Path) -> Iterator[Served]:
    """One with two models and three keys."""
    keys = folder / "keys"
    keys.write_text("".join(f"{name}:{key}\n" for name, key in KEYS.items()))
    keys.chmod(0o600)
    tiny = saved_tiny(folder / "tiny")
    with serving("--model", "kotoe-emoji", "--model", str(tiny), "--keys", str(keys), "--max-body-mb", "4") as found:
        yield found


class Someone:
    """Who asks with a key of their own."""

    def __init__(self, served: Served, name: str) -> None:
        self.url, self.name, self.session = served.url, name, requests.Session()
        self.session.auth = (name, KEYS[name])

    def ask(self, method: str, path: str, body: Any = None, **how: Any) -> requests.Response:
        given = {} if body is None else {"json": body}
        return self.session.request(method, self.url + path, timeout=60, **given, **how)

    def get(self, name: str) -> Any:
        answer = self.ask("GET", f"/sdapi/v1/{name}")
        assert answer.status_code == 200, answer.text[:500]
        return answer.json()

    def post(self, name: str, body: Any = None, status: int = 200) -> Any:
        answer = self.ask("POST", f"/sdapi/v1/{name}", {} if body is None else body)
        assert answer.status_code == status, answer.text[:500]
        return answer.json()

    def refused(self, body: Any, name: str = "txt2img", status: int = 400) -> str:
        """Why a request is refused, in the shape that this API has for it."""
        found = self.post(name, body, status)
        assert set(found) == {"error", "detail", "body", "errors"}
        assert all(isinstance(value, str) for value in found.values())
        return str(found["detail"])


def b64(image: Image.Image, format: str = "PNG") -> str:
    kept = io.BytesIO()
    image.save(kept, format=format)
    return base64.b64encode(kept.getvalue()).decode()


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text, validate=True)))


def wait(what: Callable[[], Any], seconds: float = 20.0) -> Any:
    """What it gives once that is true."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if found := what():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s")


def busy(one: Someone, share: float = 0.0) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found: dict[str, Any] = one.get("progress?skip_current_image=true")
        return found if found["state"]["sampling_step"] and found["progress"] > share else None

    found: dict[str, Any] = wait(look)
    return found

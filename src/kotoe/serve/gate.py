"""What every HTTP request passes: its size and time, where it comes from, who asks, the log, headers for browsers."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
import logging
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kotoe.serve.metrics import tell
from kotoe.serve.refusals import Refusal
from kotoe.serve.settings import Serving

LOCAL = {"localhost", "127.0.0.1", "::1"}
NAMES = LOCAL | {socket.gethostname().lower(), f"{socket.gethostname().split('.')[0].lower()}.local"}
OPEN = ("/healthz", "/readyz", "/", "/ui/", "/favicon.ico")  # what needs no key: it tells nothing of anyone
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; connect-src 'self'; object-src 'none'; base-uri 'none'; "
        "frame-ancestors 'none'; form-action 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks. name: a key's, or the address; owner: the key's name, "" where there are no keys."""

    name: str
    owner: str


class Gate:
    """ASGI middleware round the whole application."""

    def __init__(self, app: ASGIApp, *, settings: Serving, keys: Mapping[str, str], metrics: Any) -> None:
        self.app, self.settings, self.keys = app, settings, keys
        self.most, self.counted = settings.max_body_mb * 2**20, metrics
        self.hosts = NAMES | {settings.host} | {_host(origin.partition("://")[2]) for origin in settings.cors}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, sent = time.perf_counter(), 0, False
        body = _Body(receive, self.most, self.settings.body_seconds, self._too_large)

        async def answer(message: Message) -> None:
            nonlocal status, sent
            if body.refused is not None and not sent:
                return  # what the application makes of a body that broke off
            if message["type"] == "http.response.start":
                status, sent = message["status"], True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if scope["path"].startswith("/ui/"):
                    headers["Cache-Control"] = "no-cache"  # another release's files have the same names
                headers["X-Process-Time"] = f"{time.perf_counter() - began:.4f}"
            await send(message)

        try:
            scope.setdefault("state", {})["caller"] = self._check(scope)
            await self.app(scope, body.receive, answer)
        except Refusal as refusal:
            body.refused = refusal
        except asyncio.CancelledError:  # the server's end doesn't wait any longer
            if sent:
                raise
            body.refused = Refusal(503, "The server is ending.", kind="server_error", code="draining", retry_after=5.0)
        except Exception as error:
            logging.getLogger("kotoe.serve").error("unforeseen", exc_info=error)
            if sent:
                raise  # half an answer: the connection has to be broken off
            message = f"{type(error).__name__}; the server's log has more"
            body.refused = Refusal(500, message, kind="server_error", code="internal")
        finally:
            if body.refused is not None and not sent:
                refused, body.refused = body.refused, None
                await error_response(scope["path"], refused)(scope, receive, answer)
            route = getattr(scope.get("route"), "path", "other")
            self.counted(route, status)
            tell(
                logging.INFO, "request", method=scope["method"], route=route, status=status,
                seconds=round(time.perf_counter() - began, 4),
            )  # fmt: skip

    def _too_large(self) -> Refusal:
        return Refusal(413, f"The body has more than {self.settings.max_body_mb} MB.", code="body_too_large")

    def _check(self, scope: Scope) -> Caller:
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self.most:
            raise self._too_large()
        host = _host(headers.get("host", ""))
        if not self.keys and not (host in self.hosts or _is_address(host)):
            raise Refusal(  # a page elsewhere whose name was made to mean this machine
                403, f"Host {host[:80]!r} is not known to this server; --cors https://NAME names one, or --keys.",
                kind="permission_error", code="wrong_host",
            )  # fmt: skip
        origin = headers.get("origin")
        same = origin is None or origin.partition("://")[2] == headers.get("host")
        if not same and origin not in self.settings.cors:
            raise Refusal(
                403, f"Origin {str(origin)[:80]!r} may not ask this server; --cors names those that may.",
                kind="permission_error", code="wrong_origin",
            )  # fmt: skip
        address = scope["client"][0] if scope.get("client") else "unknown"
        if not self.keys:
            return Caller(name=address, owner="")
        path = scope["path"]
        if any(path == one or (one.endswith("/") and one != "/" and path.startswith(one)) for one in OPEN):
            return Caller(name=address, owner="")
        name = self._name(headers.get("authorization", ""))
        if name is None:
            raise Refusal(
                401, "A key of this server is needed: as a bearer token, or by HTTP Basic with its name as the user.",
                kind="authentication_error", code="invalid_api_key",
            )  # fmt: skip
        return Caller(name=name, owner=name)

    def _name(self, authorization: str) -> str | None:
        kind, _, value = authorization.partition(" ")
        user = None
        if kind.lower() == "basic":
            try:
                user, _, value = base64.b64decode(value, validate=True).decode().partition(":")
            except (binascii.Error, UnicodeDecodeError):
                return None
        elif kind.lower() != "bearer":
            return None
        given, found = value.strip().encode(), None
        for key, name in self.keys.items():  # all of them, whichever it is: the time tells nothing
            if hmac.compare_digest(given, key.encode()) and user in (None, name):
                found = name
        return found


def _host(netloc: str) -> str:
    """Without the port; "" for what is none."""
    try:
        return urlsplit(f"//{netloc}").hostname or ""
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    """Whether a host is no name: no page elsewhere has an address of this machine as its own."""
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return False


class _Body:
    """The body of a request in its pieces, as long as it is small and quick enough."""

    def __init__(self, receive: Receive, most: int, seconds: float, too_large: Callable[[], Refusal]) -> None:
        self.given, self.most, self.seconds, self.too_large = receive, most, seconds, too_large
        self.ends = asyncio.get_running_loop().time() + seconds
        self.length, self.whole = 0, False
        self.refused: Refusal | None = None

    async def receive(self) -> Message:
        """The next piece."""
        if self.whole:
            return await self.given()  # what comes now is that the caller has gone
        try:
            async with asyncio.timeout_at(self.ends):
                message = await self.given()
        except TimeoutError:
            self.refused = Refusal(408, f"The body did not come whole in {self.seconds:g} s.", code="timeout")
            raise self.refused from None
        if message["type"] == "http.request":
            self.length += len(message.get("body", b""))
            self.whole = not message.get("more_body", False)
            if self.length > self.most:
                self.refused = self.too_large()
                raise self.refused
        return message


def error_response(path: str, refusal: Refusal) -> Response:
    """A refusal in the shape of the dialect that was asked in."""
    if path.startswith(("/sdapi/", "/internal/")):
        said = refusal.message
        content: Any = {"error": refusal.code or refusal.kind, "detail": said, "body": "", "errors": said}
    else:
        content = {"error": refusal.document}
    return JSONResponse(content, status_code=refusal.status, headers=refusal.headers)


async def gone(request: Request) -> None:
    """Until the caller has closed the connection. To be asked once the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass

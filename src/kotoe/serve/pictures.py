"""Pictures that come with requests, as base64, data URLs, files or (where the server is told to) https addresses.

All are untrusted. What is taken is decoded whole by images.py's rules and written anew as a PNG, so that nothing else
of the file goes any further. A file of a few KB may hold many megapixels: how many is checked from the header before
anything is decoded, and AT_ONCE of them are decoded at a time over the whole server.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from typing import TypeVar
from urllib.parse import urlsplit

from PIL import Image

from kotoe import images
from kotoe.errors import UserError, shown

LARGEST = 24 * 2**20  # bytes of a picture's file
FETCH_SECONDS = 10.0
TIMES = 16  # so many times max_pixels may come: photos are made smaller, or only part of them is drawn
AT_ONCE = 2  # some 12 bytes a pixel each, and the file
# Always the same threads: glibc keeps what a thread has freed, some 100 MB of one that decoded 4096 x 4096 pixels.
_decoders = ThreadPoolExecutor(AT_ONCE, "decoder")
# Who waits for them keeps none of the threads that all else is done on.
_readers = ThreadPoolExecutor(8, "pictures")
T = TypeVar("T")


async def on_thread(work: Callable[[], T]) -> T:
    """What a function gives that reads pictures, from the event loop."""
    return await asyncio.get_running_loop().run_in_executor(_readers, work)


def decode(work: Callable[[], T]) -> T:
    """What a function gives that decodes a picture; AT_ONCE of them run at a time. Not to be asked for within it."""
    return _decoders.submit(work).result()


def largest(max_pixels: int) -> int:
    """Pixels that a picture may have that comes to a server which draws so many."""
    return min(TIMES * max_pixels, images.LARGEST_PIXELS)


def decoded(text: str, name: str) -> bytes:
    """The bytes of a picture given as base64. Raises UserError."""
    if text[:5] == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise UserError(f"{name}: a data URL that begins {head[:40]!r}", allowed="data:image/png;base64,...")
    if len(text) > LARGEST * 4 // 3 + 4:
        raise UserError(f"{name} of {len(text)} characters", allowed=f"pictures of {LARGEST} bytes at most")
    try:
        found = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{name} is no base64 ({error})", allowed="the bytes of a picture's file in base64") from None
    if not found:
        raise UserError(f"{name} is empty", allowed="the bytes of a picture's file in base64")
    return found


def as_png(content: bytes, name: str, most: int) -> bytes:
    """A picture's file as an opaque RGB PNG; what is see-through is refused. Raises UserError."""

    def work() -> bytes:
        image, alpha = images.layers_of(content, name, most)
        if alpha is None:
            return png(image)
        raise UserError(
            f"{name} is partly transparent", allowed="an opaque picture", hint="Put it on a background first"
        )

    return decode(work)


def with_alpha(content: bytes, name: str, most: int) -> tuple[bytes, bytes | None]:
    """A PNG of a picture's colours, and one of where it is see-through (white there), if it is anywhere: OpenAI's
    masks. Raises UserError."""

    def work() -> tuple[bytes, bytes | None]:
        colours, alpha = images.layers_of(content, name, most)
        return png(colours), None if alpha is None else png(solid(alpha, below=255))

    return decode(work)


def hole(content: bytes, name: str, most: int) -> bytes | None:
    """The second of with_alpha's alone. Raises UserError."""

    def work() -> bytes | None:
        alpha = images.layers_of(content, name, most)[1]
        return None if alpha is None else png(solid(alpha, below=255))

    return decode(work)


def solid(alpha: Image.Image, *, below: int) -> Image.Image:
    """Alpha in two levels: `below`, 0 or 255, where it is less than half, and the other one where it isn't."""
    return alpha.point([below if level < 128 else 255 - below for level in range(256)])


def texts(content: bytes, name: str, most: int) -> dict[str, str]:
    """The texts in a picture's file: images.texts. Raises UserError."""
    images.size_of(content, name, most)  # without waiting
    return decode(lambda: images.texts(content, name, most))


def png(image: Image.Image) -> bytes:
    """A picture as a PNG's bytes."""
    kept = BytesIO()
    image.save(kept, format="PNG", compress_level=1)
    return kept.getvalue()


def fetched(url: str, name: str) -> bytes:
    """The file at an https address of a public host. No redirect is followed, and the address that was looked up is the
    one that is asked, so that a name can't come to mean another machine in between. Raises UserError."""
    try:
        parts = urlsplit(url)
        port = parts.port or 443
    except ValueError:
        raise UserError(f"{name} {url[:80]!r}", allowed="an https address") from None
    if parts.scheme != "https" or not parts.hostname or parts.username is not None:
        raise UserError(f"{name} {url[:80]!r}", allowed="an https address, without a user")
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise UserError(f"{name}: {shown(parts.hostname)} is not known", allowed="an https address") from None
    addresses = [str(info[4][0]) for info in found]
    if not all(map(_is_public, addresses)):
        raise UserError(f"{name}: {parts.hostname} is not a public host", allowed="addresses of public hosts")
    connection = _Pinned(parts.hostname, port, addresses[0])
    ends = threading.Timer(FETCH_SECONDS, connection.break_off)  # a byte now and then is no progress
    ends.start()
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"User-Agent": "kotoe"})
        response = connection.getresponse()
        if response.status != 200:
            raise UserError(
                f"{name}: {parts.hostname} answered {response.status}", allowed="an address that answers 200"
            )
        content = response.read(LARGEST + 1)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(f"{name}: {parts.hostname} can't be read ({type(error).__name__})") from None
    finally:
        ends.cancel()
        connection.close()
    if connection.late:
        raise UserError(f"{name}: {parts.hostname} was too slow", allowed=f"a picture within {FETCH_SECONDS:g} s")
    if len(content) > LARGEST:
        raise UserError(f"{name} has more than {LARGEST} bytes", allowed=f"{LARGEST} bytes at most")
    return content


def _is_public(address: str) -> bool:
    return ipaddress.ip_address(address.split("%")[0]).is_global


class _Pinned(http.client.HTTPSConnection):
    """A connection to one address, whose certificate is the host's."""

    def __init__(self, host: str, port: int, address: str) -> None:
        self.trusted = ssl.create_default_context()
        super().__init__(host, port, timeout=FETCH_SECONDS, context=self.trusted)
        self.address, self.late = address, False
        self.plain: socket.socket | None = None  # `sock` goes to the answer

    def break_off(self) -> None:
        """From another thread: whoever reads from it reads no more."""
        self.late = True
        if self.plain is not None:
            with suppress(OSError):
                self.plain.shutdown(socket.SHUT_RDWR)

    def connect(self) -> None:
        """As HTTPSConnection does, but without looking the name up again."""
        plain = socket.create_connection((self.address, self.port), FETCH_SECONDS)
        self.plain = self.sock = self.trusted.wrap_socket(plain, server_hostname=self.host)

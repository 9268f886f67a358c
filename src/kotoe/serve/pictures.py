"""Pictures that come with requests, as base64, data URLs, files or (where the server is told to) https addresses.

All are untrusted. What is taken is decoded whole by images.py's rules and written anew as a PNG, so that nothing else
of the file goes any further.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import ipaddress
import socket
import ssl
from io import BytesIO
from urllib.parse import urlsplit

from PIL import Image

from kotoe import images
from kotoe.errors import UserError

LARGEST = 24 * 2**20  # bytes of a picture's file
FETCH_SECONDS = 10.0


def from_data_url(text: str, name: str) -> bytes:
    """A PNG of a picture given as base64, with or without `data:image/…;base64,` before it. Raises UserError."""
    return as_png(decoded(text, name), name)


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


def as_png(content: bytes, name: str) -> bytes:
    """A picture's file as an opaque RGB PNG; what is see-through is refused. Raises UserError."""
    image, clear = images.picture_of(content, name)
    if clear:
        raise UserError(
            f"{name} is partly transparent", allowed="an opaque picture", hint="Put it on a background first"
        )
    return png(image)


def with_alpha(content: bytes, name: str) -> tuple[bytes, bytes | None]:
    """A PNG of a picture's colours, and one of where it is see-through (white there), if it is anywhere: OpenAI's
    masks. Raises UserError."""
    image, clear = images.picture_of(content, name)  # which checks it
    if not clear:
        return png(image), None
    with Image.open(BytesIO(content), formats=images.FORMATS) as found:
        alpha = found.convert("RGBA").getchannel("A")
        colours = found.convert("RGB")
    return png(colours), png(alpha.point([255 if level < 128 else 0 for level in range(256)]))


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
        raise UserError(f"{name}: {parts.hostname!r} is not known", allowed="an https address") from None
    addresses = [str(info[4][0]) for info in found]
    if not all(ipaddress.ip_address(address.split("%")[0]).is_global for address in addresses):
        raise UserError(f"{name}: {parts.hostname} is not a public host", allowed="addresses of public hosts")
    connection = _Pinned(parts.hostname, port, addresses[0])
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
        connection.close()
    if len(content) > LARGEST:
        raise UserError(f"{name} has more than {LARGEST} bytes", allowed=f"{LARGEST} bytes at most")
    return content


class _Pinned(http.client.HTTPSConnection):
    """A connection to one address, whose certificate is the host's."""

    def __init__(self, host: str, port: int, address: str) -> None:
        self.trusted = ssl.create_default_context()
        super().__init__(host, port, timeout=FETCH_SECONDS, context=self.trusted)
        self.address = address

    def connect(self) -> None:
        """As HTTPSConnection does, but without looking the name up again."""
        plain = socket.create_connection((self.address, self.port), FETCH_SECONDS)
        self.sock = self.trusted.wrap_socket(plain, server_hostname=self.host)

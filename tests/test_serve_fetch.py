"""Pictures at https addresses (`kotoe serve --fetch-urls`), from a server of our own with a certificate of our own."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from PIL import Image

from kotoe.errors import UserError
from kotoe.serve import pictures

pytestmark = pytest.mark.enable_socket
HOST = "pictures.example"
Fetch = Callable[[str], bytes]


def picture() -> bytes:
    kept = BytesIO()
    Image.new("RGB", (8, 8), "teal").save(kept, format="PNG")
    return kept.getvalue()


class Answers(BaseHTTPRequestHandler):
    """By path: a picture, none, one elsewhere, one in very small pieces, one that doesn't end."""

    def do_GET(self) -> None:
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "https://127.0.0.1/secret")
            self.end_headers()
            return
        if self.path == "/none":
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        try:
            if self.path == "/slow":
                for byte in picture():
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(0.1)
            elif self.path == "/endless":
                for _ in range(64):
                    self.wfile.write(bytes(2**20))
            else:
                self.wfile.write(picture())
        except OSError:
            pass  # broken off

    def log_message(self, format: str, *args: object) -> None:
        pass


def certificate(folder: Path, name: str) -> Path:
    key, who = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(who)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{name}.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate(tmp_path_factory.mktemp("tls"), HOST)


@pytest.fixture(scope="module")
def port(known: Path) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(known)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    running = threading.Thread(target=server.serve_forever, daemon=True)
    running.start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetch(port: int, known: Path, monkeypatch: pytest.MonkeyPatch) -> Fetch:
    """Fetches a path; names are those of this machine, and its address counts as public."""
    context = ssl.create_default_context(cafile=str(known))
    monkeypatch.setattr(pictures.ssl, "create_default_context", lambda: context)
    here = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
    monkeypatch.setattr(pictures.socket, "getaddrinfo", lambda *where, **how: here)
    monkeypatch.setattr(pictures, "_is_public", lambda address: True)
    return lambda path, host=HOST: pictures.fetched(f"https://{host}:{port}{path}", "image")


def test_a_picture_is_fetched(fetch: Fetch) -> None:
    assert fetch("/picture.png?size=8") == picture()


@pytest.mark.parametrize(("path", "words"), [("/none", "answered 404"), ("/elsewhere", "answered 302")])
def test_no_redirect_is_followed(fetch: Fetch, path: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        fetch(path)


def test_a_picture_that_comes_in_drops_is_given_up(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each drop comes in time."""
    monkeypatch.setattr(pictures, "FETCH_SECONDS", 0.5)
    began = time.monotonic()
    with pytest.raises(UserError, match="too slow. Allowed: a picture within 0.5 s"):
        fetch("/slow")
    assert time.monotonic() - began < 3


def test_a_picture_that_does_not_end_is_given_up(fetch: Fetch) -> None:
    with pytest.raises(UserError, match="more than"):
        fetch("/endless")


def test_a_certificate_of_another_host_is_none(fetch: Fetch) -> None:
    with pytest.raises(UserError, match=r"can't be read \(SSLCertVerificationError\)"):
        fetch("/picture.png", "other.example")  # type: ignore[call-arg]


def test_hosts_that_are_not_public_are_not_asked(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for host in ("127.0.0.1", "localhost", "10.0.0.1", "169.254.169.254", "[::1]", "[::ffff:10.0.0.1]"):
        with pytest.raises(UserError, match="is not a public host|is not known"):
            pictures.fetched(f"https://{host}/a.png", "image")
    for url in (
        "http://example.org/a",
        "https://",
        "https://a:b@example.org/",
        "ftp://example.org/a",
        "https://a:99999/",
    ):
        with pytest.raises(UserError, match="an https address"):
            pictures.fetched(url, "image")

"""What every request passes: size, time, origin, keys, the log, and headers. And what nobody may see of others."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving import Served, serving

pytestmark = pytest.mark.enable_socket
ANN, BOB = "0123456789abcdefann", "0123456789abcdefbob"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving("--max-body-mb", "1", "--body-seconds", "1.5", "--cors", "https://example.org") as server:
        yield server


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"ann:{ANN}\nbob:{BOB}\n")
    keys.chmod(0o600)
    with serving("--keys", str(keys), "--rate", "40") as server:
        yield server


def ask(
    served: Served, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=20)
    data = json.dumps(body).encode() if isinstance(body, dict | list) else body
    given = {"Content-Type": "application/json"} if data is not None else {}
    try:
        connection.request(method, path, data, {**given, **(headers or {})})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def error(answer: tuple[int, dict[str, str], bytes]) -> dict[str, Any]:
    return json.loads(answer[2])["error"]


# --- Bodies


def test_a_body_that_is_too_large_is_refused_from_its_length(served: Served) -> None:
    answer = ask(served, "POST", "/kotoe/v1/jobs", b"{" + b" " * 2**21)
    assert answer[0] == 413
    assert "1 MB" in error(answer)["message"]


def test_a_body_without_a_length_is_refused_when_it_has_grown(served: Served) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        head = f"POST /kotoe/v1/jobs HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        try:
            for _ in range(64):
                connection.sendall(b"10000\r\n" + b" " * 2**16 + b"\r\n")
        except OSError:
            pass  # it has answered and closed already
        assert b" 413 " in connection.recv(4096).split(b"\r\n")[0]


def test_a_body_that_does_not_come_is_given_up(served: Served) -> None:
    """Slow loris: a byte now and then doesn't keep a connection."""
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        head = f"POST /kotoe/v1/jobs HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 1000\r\n\r\n".encode())
        began = time.monotonic()
        connection.settimeout(0.3)
        answer = b""
        while not answer:
            assert time.monotonic() - began < 10
            try:
                connection.sendall(b" ")
                answer = connection.recv(4096)
            except TimeoutError:
                continue
        assert b" 408 " in answer.split(b"\r\n")[0]
        assert time.monotonic() - began > 1.0


BROKEN = {
    "no JSON": (b"{prompt", "invalid_json"),
    "no object": (b"[]", "invalid_value"),
    "deep": (b"[" * 100_000, None),
    "long number": (b'{"prompt": "a", "seed": ' + b"9" * 10_000 + b"}", None),
    "not a number": (b'{"prompt": "a", "guidance_scale": NaN}', None),
    "half a character": (b'{"prompt": "\\ud800"}', None),
    "not UTF-8": (b'{"prompt": "\xff"}', None),
    "no prompt": (b"{}", "invalid_value"),
    "another type": (b'{"prompt": 5}', "invalid_value"),
    "a million characters": (json.dumps({"prompt": "a" * 10**6}).encode()[:-2] + b'"}', "invalid_value"),
    "unknown field": (b'{"prompt": "a", "stepz": 5}', "unknown_parameter"),
    "no picture": (b'{"prompt": "a", "init_image": "aGVsbG8="}', "invalid_value"),
    "no base64": (b'{"prompt": "a", "init_image": "!"}', "invalid_value"),
    "empty": (b'{"prompt": "a", "init_image": ""}', "invalid_value"),
    "an address": (b'{"prompt": "a", "init_image": "http://127.0.0.1/"}', "invalid_value"),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_what_is_broken_gets_a_reason(served: Served, name: str) -> None:
    body, code = BROKEN[name]
    answer = ask(served, "POST", "/kotoe/v1/jobs", body)
    assert answer[0] == 400, answer
    assert error(answer).keys() == {"message", "type", "param", "code"}
    assert code is None or error(answer)["code"] == code


def test_a_picture_that_would_fill_the_memory_is_refused(served: Served) -> None:
    """A PNG of 30,000 x 30,000 pixels in a few kilobytes."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = zlib.compress(bytes(2**20))
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))
    bomb += chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    body = {"prompt": "a", "init_image": base64.b64encode(bomb).decode()}
    answer = ask(served, "POST", "/kotoe/v1/jobs", body)
    assert answer[0] == 400
    assert "30000x30000" in error(answer)["message"] or "hostile" in error(answer)["message"]


def test_unforeseen_paths_and_methods(served: Served) -> None:
    assert error(ask(served, "GET", "/nothing"))["type"] == "not_found_error"
    assert ask(served, "PUT", "/kotoe/v1/jobs", {})[0] == 405
    for path in (
        "/ui/../settings.py",
        "/ui/%2e%2e/settings.py",
        "/ui/..%2fsettings.py",
        "/kotoe/v1/pictures/..%2f.png",
    ):
        assert ask(served, "GET", path)[0] == 404, path
    assert ask(served, "GET", "/kotoe/v1/jobs/" + "0" * 32)[0] == 404


# --- Where requests come from


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "["}, 403),
        ({"Host": "example.org"}, 200),
        ({"Host": "192.0.2.7:7860"}, 200),
        ({"Host": "[::1]:7860"}, 200),
        ({"Origin": "http://["}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://example.org"}, 200),
        ({"Origin": "https://example.org.evil.example"}, 403),
    ],
)
def test_pages_of_others_may_not_ask(served: Served, headers: dict[str, str], status: int) -> None:
    """Neither by a form or script of their own, nor by a name that was made to mean this machine."""
    assert ask(served, "GET", "/kotoe/v1/model", headers=headers)[0] == status


def test_names_that_are_not_known_are_refused_wherever_it_listens() -> None:
    """A page elsewhere whose name was made to mean this server's address; its origin is then its host."""
    with serving("--host", "0.0.0.0") as server:
        local = Served(url=server.url.replace("0.0.0.0", "127.0.0.1"), process=server.process, log=server.log)
        evil = {"Host": "evil.example:7860", "Origin": "http://evil.example:7860"}
        for path in ("/kotoe/v1/model", "/sdapi/v1/progress", "/", "/metrics"):
            assert ask(local, "GET", path, headers=evil)[0] == 403, path
        assert error(ask(local, "GET", "/kotoe/v1/model", headers=evil))["code"] == "wrong_host"
        for host in ("10.1.2.3:7860", socket.gethostname(), "localhost:7860"):
            same = {"Host": host, "Origin": f"http://{host}"}
            assert ask(local, "GET", "/kotoe/v1/model", headers=same)[0] == 200, host


def test_with_keys_a_server_may_have_any_name(locked: Served) -> None:
    """Behind a proxy: a page elsewhere has no key."""
    named = {"Host": "draw.example.org", "Authorization": f"Bearer {ANN}"}
    assert ask(locked, "GET", "/kotoe/v1/model", headers=named)[0] == 200


def test_what_is_unforeseen_passes_the_gate_too() -> None:
    """An error in the application: 500 in the dialect's shape, with all headers, counted, and one line in the log."""
    import asyncio
    import logging

    from kotoe.serve.gate import Gate
    from kotoe.serve.settings import Serving

    counted: list[tuple[str, int]] = []
    sent: list[Any] = []
    lines: list[logging.LogRecord] = []

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record)

    gate = Gate(broken, settings=Serving(), keys={}, metrics=lambda *what: counted.append(what))
    scope = {
        "type": "http", "method": "GET", "path": "/sdapi/v1/progress", "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
    }  # fmt: skip
    log, kept = logging.getLogger("kotoe.serve"), Kept()
    log.addHandler(kept)
    try:
        asyncio.run(gate(scope, receive, send))
    finally:
        log.removeHandler(kept)
    assert counted == [("other", 500)]
    assert sent[0]["status"] == 500
    assert b"content-security-policy" in dict(sent[0]["headers"])
    assert set(json.loads(sent[1]["body"])) == {"error", "detail", "body", "errors"}
    assert [line.exc_info is not None for line in lines if line.levelno >= logging.ERROR] == [True]


def test_a_browsers_client_of_openai_may_ask(served: Served) -> None:
    """It sends headers of its own, and reads when to come back."""
    asked = {
        "Origin": "https://example.org", "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang,x-stainless-retry-count",
    }  # fmt: skip
    status, headers, _ = ask(served, "OPTIONS", "/v1/images/generations", headers=asked)
    assert status == 200
    assert "x-stainless-lang" in headers["access-control-allow-headers"]
    headers = ask(served, "GET", "/v1/models", headers={"Origin": "https://example.org"})[1]
    assert headers["access-control-expose-headers"] == "Retry-After"


def test_only_named_origins_are_told_that_they_may_read(served: Served) -> None:
    headers = ask(served, "GET", "/kotoe/v1/model", headers={"Origin": "https://example.org"})[1]
    assert headers["access-control-allow-origin"] == "https://example.org"
    preflight = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    assert ask(served, "OPTIONS", "/kotoe/v1/jobs", headers=preflight)[0] == 200
    assert ask(served, "OPTIONS", "/kotoe/v1/jobs", headers={**preflight, "Origin": "https://evil.example"})[0] != 200


def test_browsers_are_told_what_a_page_may_do(served: Served) -> None:
    headers = ask(served, "GET", "/healthz")[1]
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert "server" not in headers


# --- Keys


def basic(name: str, key: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{key}".encode()).decode()}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": f"Bearer {ANN}"}, 200),
        (basic("ann", ANN), 200),
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": f"Bearer {ANN} "}, 200),
        ({"Authorization": f"Token {ANN}"}, 401),
        (basic("bob", ANN), 401),
        ({"Authorization": "Basic !!!"}, 401),
        ({"Authorization": "Basic " + base64.b64encode(b"\xff:\xff").decode()}, 401),
    ],
)
def test_keys(locked: Served, headers: dict[str, str], status: int) -> None:
    for path in ("/kotoe/v1/model", "/v1/models", "/metrics", "/openapi.json"):
        answer = ask(locked, "GET", path, headers=headers)
        assert answer[0] == status, path
        if status == 401:
            assert error(answer)["code"] == "invalid_api_key"
            assert "www-authenticate" in answer[1]


def test_health_and_the_page_need_no_key(locked: Served) -> None:
    for path in ("/healthz", "/readyz", "/"):
        assert ask(locked, "GET", path)[0] == 200


def test_nobody_sees_anothers_job_or_picture(locked: Served) -> None:
    ann, bob = ({"Authorization": f"Bearer {key}"} for key in (ANN, BOB))
    job = json.loads(ask(locked, "POST", "/kotoe/v1/jobs", {"prompt": "a secret cat"}, ann)[2])
    path = f"/kotoe/v1/jobs/{job['id']}"
    assert ask(locked, "GET", path, headers=bob)[0] == 404
    assert ask(locked, "DELETE", path, headers=bob)[0] == 404
    assert ask(locked, "GET", f"{path}/events", headers=bob)[0] == 404
    while (found := json.loads(ask(locked, "GET", path, headers=ann)[2]))["state"] != "done":
        time.sleep(0.01)
    url = found["pictures"][0]["url"]
    assert ask(locked, "GET", url, headers=bob)[0] == 404
    assert ask(locked, "GET", url)[0] == 401
    assert ask(locked, "GET", url, headers=ann)[2].startswith(b"\x89PNG")
    assert ask(locked, "DELETE", path, headers=ann)[0] == 200
    assert ask(locked, "GET", url, headers=ann)[0] == 404
    assert ask(locked, "GET", path, headers=ann)[0] == 404


def test_each_key_has_its_rate(locked: Served) -> None:
    ann, bob = ({"Authorization": f"Bearer {key}"} for key in (ANN, BOB))
    answers = [ask(locked, "POST", "/kotoe/v1/jobs", {"prompt": "a", "n": 9, "steps": 1}, bob) for _ in range(5)]
    assert [answer[0] for answer in answers] == [202] * 4 + [429]
    assert int(answers[-1][1]["retry-after"]) > 30
    assert ask(locked, "POST", "/kotoe/v1/jobs", {"prompt": "a", "steps": 1}, ann)[0] == 202


# --- The log


def test_the_log_has_no_prompts(served: Served) -> None:
    ask(served, "POST", "/kotoe/v1/jobs", {"prompt": "an unmistakable cat"})
    ask(served, "POST", "/kotoe/v1/jobs", {"prompt": "an unmistakable (cat"})
    assert any(line["message"] == "job taken" for line in served.lines)
    assert "unmistakable" not in served.log.read_text("utf-8")


def test_the_log_has_prompts_if_it_is_to(tmp_path: Path) -> None:
    with serving("--log-prompts") as server:
        ask(server, "POST", "/kotoe/v1/jobs", {"prompt": "an unmistakable cat"})
        assert any(line.get("prompt") == "an unmistakable cat" for line in server.lines)

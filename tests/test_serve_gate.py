"""What every request passes: size, time, origin, keys, the log, and headers. And what nobody may see of others."""

from __future__ import annotations

import base64
import http.client
import io
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import BaseModel

from kotoe import images
from kotoe.serve import a1111, a1111_fields, a1111_lists, api, openai, pictures
from kotoe.serve.refusals import Refusal
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


def test_words_of_the_command_line_are_not_for_callers(served: Served) -> None:
    for body, words in (
        ({"prompt": "a", "language": "xx"}, "language 'xx' is not in this model"),
        ({"prompt": "a (cat"}, "A bracket that is meant is written"),
        ({"prompt": "a cat <lora:x:1>"}, "lora"),
        ({"prompt": "a strawberry " * 200}, "or pass long_prompt chunk"),
    ):
        found = error(ask(served, "POST", "/kotoe/v1/jobs", body))["message"]
        assert words in found
        assert "--" not in found


def test_a_body_that_is_not_said_to_be_json(served: Served) -> None:
    answer = ask(served, "POST", "/kotoe/v1/jobs", b'{"prompt": "a"}', {"Content-Type": "text/plain"})
    assert answer[0] == 400
    assert "Content-Type: application/json" in error(answer)["message"]
    assert error(ask(served, "POST", "/kotoe/v1/jobs", []))["message"] == "The body is []. Allowed: a JSON object."
    assert error(ask(served, "POST", "/kotoe/v1/jobs", {}))["message"] == "prompt is missing."


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


def test_a_full_queue_is_told_before_a_picture_is_looked_at() -> None:
    """In all three APIs; the pictures are none."""
    with serving("--max-waiting", "1", "--max-steps", "1000") as server:
        long = {"prompt": "a", "steps": 1000, "width": 512, "height": 512}
        assert ask(server, "POST", "/kotoe/v1/jobs", long)[0] == 202
        junk = base64.b64encode(b"junk").decode()
        for path, body in (
            ("/kotoe/v1/jobs", {"prompt": "a", "init_image": junk, "strength": 0.5}),
            ("/sdapi/v1/img2img", {"prompt": "a", "init_images": [junk]}),
            ("/v1/images/edits", {"prompt": "a", "images": [{"image_url": f"data:image/png;base64,{junk}"}]}),
        ):
            answer = ask(server, "POST", path, body)
            assert (answer[0], int(answer[1]["retry-after"]) >= 1) == (429, True), path


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


# --- What is large, or many, and costs little to send


def compressed(width: int, height: int, mode: str = "RGBA") -> bytes:
    """A PNG of one colour: a few KB for many megapixels."""
    kept = io.BytesIO()
    Image.new(mode, (width, height), 0).save(kept, "PNG")
    return kept.getvalue()


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One that draws 256 x 256 pixels at most, and so takes pictures of 1024 x 1024."""
    with serving("--max-pixels", "65536") as server:
        yield server


def asked_with(picture: bytes, small: bytes) -> dict[str, tuple[str, Any, str]]:
    """By way and field: the path, the body, and what the field is called."""
    here, other = (base64.b64encode(content).decode() for content in (picture, small))
    url, fine = f"data:image/png;base64,{here}", f"data:image/png;base64,{other}"
    edit, drawn = {"prompt": "a", "size": "64x64"}, {"prompt": "a", "width": 64, "height": 64, "steps": 2}
    whole = {**drawn, "inpaint_full_res": False}
    return {
        "job": ("/kotoe/v1/jobs", {**drawn, "init_image": url}, "init_image"),
        "job's mask": ("/kotoe/v1/jobs", {**drawn, "init_image": fine, "mask": url}, "mask"),
        "settings": ("/kotoe/v1/settings", picture, "picture"),
        "edit": ("/v1/images/edits", {**edit, "images": [{"image_url": url}]}, "image"),
        "edit's mask": (
            "/v1/images/edits",
            {**edit, "images": [{"image_url": fine}], "mask": {"image_url": url}},
            "mask",
        ),
        "img2img": ("/sdapi/v1/img2img", {**drawn, "init_images": [here]}, "init_images"),
        "img2img's mask": ("/sdapi/v1/img2img", {**whole, "init_images": [other], "mask": here}, "mask"),
        "png-info": ("/sdapi/v1/png-info", {"image": here}, "image"),
    }


def peak(served: Served) -> int:
    """The most memory that a server has had, in MB."""
    told = Path(f"/proc/{served.process.pid}/status").read_text()
    return int(next(line for line in told.splitlines() if line.startswith("VmHWM")).split()[1]) // 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory of a process is read from /proc")
def test_pictures_may_have_sixteen_times_what_is_drawn_by_their_headers(roomy: Served) -> None:
    """8192 x 8192 pixels are 254 KB of PNG, and 268 MB once they are decoded."""
    ways = asked_with(compressed(8192, 8192), compressed(64, 64, "RGB"))
    before = peak(roomy)
    for way, (path, body, name) in ways.items():
        answer = ask(roomy, "POST", path, body)
        assert answer[0] == 400, (way, answer)
        told = json.loads(answer[2])
        message = told.get("detail") or told["error"]["message"]
        assert f"{name} is 8192x8192. Allowed: 1048576 pixels at most." in message, way
    assert peak(roomy) - before < 100
    for way, (path, body, _) in asked_with(compressed(1024, 1024, "RGB"), compressed(1024, 1024, "RGB")).items():
        answer = ask(roomy, "POST", path, body)
        assert b"pixels at most" not in answer[2], (way, answer[2][:300])


def test_what_is_wrong_without_a_picture_is_said_before_one_is_decoded(roomy: Served) -> None:
    """Of files whose pixels are damaged, which is only seen then."""
    broken = compressed(64, 64)[:-40]
    for way, (path, body, _) in asked_with(broken, broken).items():
        if "settings" in way or "png" in way:
            continue
        name = "sampler_name" if "img2img" in way else "sampler"
        answer = ask(roomy, "POST", path, {**body, name: "Eulr"})
        assert answer[0] == 400
        assert b"ampler" in answer[2], (way, answer[2])
        assert b"damaged" in ask(roomy, "POST", path, body)[2], way


def test_two_pictures_are_decoded_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many threads ask for it."""
    now, most, layers_of, texts = [0], [0], images.layers_of, images.texts

    def counted(work: Callable[..., Any]) -> Callable[..., Any]:
        def decode(*args: Any) -> Any:
            now[0] += 1
            most[0] = max(most[0], now[0])
            time.sleep(0.03)
            try:
                return work(*args)
            finally:
                now[0] -= 1

        return decode

    monkeypatch.setattr(images, "layers_of", counted(layers_of))
    monkeypatch.setattr(images, "texts", counted(texts))
    clear, opaque = compressed(8, 8), compressed(8, 8, "RGB")
    works = [
        lambda: pictures.as_png(opaque, "a", 64), lambda: pictures.with_alpha(clear, "a", 64),
        lambda: pictures.hole(clear, "a", 64), lambda: pictures.texts(opaque, "a", 64),
    ]  # fmt: skip
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda work: work(), works * 3))
    assert most == [pictures.AT_ONCE] == [2]


@pytest.mark.parametrize("model", [api.NewJob, api.Tokens, openai.Generation, openai.Edit, openai.ImageReference])
def test_of_any_number_of_unknown_fields_the_first_is_told(model: type[BaseModel]) -> None:
    """pydantic makes an error of each: 600,000 stopped the event loop for three seconds and took 800 MB."""
    with pytest.raises(Refusal) as caught:
        model.model_validate({"prompt": "a", "image_url": "a", "images": [], **{f"k{i}": 0 for i in range(1000)}})
    assert caught.value.message.startswith("Unknown field '")
    assert caught.value.code == "unknown_parameter"


def test_an_unknown_field_is_told_with_one_that_is_like_it(roomy: Served) -> None:
    for path in ("/kotoe/v1/jobs", "/kotoe/v1/tokens", "/v1/images/generations", "/v1/images/edits"):
        found = error(ask(roomy, "POST", path, {"promt": "a"}))
        assert (found["param"], found["code"]) == ("promt", "unknown_parameter")
        assert found["message"] == "Unknown field 'promt'. Did you mean 'prompt'?"
        found = error(ask(roomy, "POST", path, b'{"\\ud800": 5}'))["message"]
        assert found == "Unknown field '\\ud800'." or found.startswith("The body is no JSON")


LONG = "ab " * 700_000
ROUTES: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "/kotoe/v1/jobs": (api.NewJob, {"prompt": "a", "steps": 2, "width": 64, "height": 64}),
    "/kotoe/v1/tokens": (api.Tokens, {"prompt": "a"}),
    "/v1/images/generations": (openai.Generation, {"prompt": "a", "num_inference_steps": 1, "size": "64x64"}),
    "/v1/images/edits": (openai.Edit, {"prompt": "a", "images": [{"image_url": "data:"}]}),
    "/sdapi/v1/txt2img": (a1111_fields.Txt2Img, {"prompt": "a", "steps": 1, "width": 64, "height": 64}),
    "/sdapi/v1/img2img": (a1111_fields.Img2Img, {"prompt": "a", "steps": 0}),
    "/sdapi/v1/png-info": (a1111_lists.Png, {"image": ""}),
    "/sdapi/v1/options": (BaseModel, {}),
    "/internal/progress": (a1111.TaskLook, {}),
}


@pytest.mark.parametrize("path", list(ROUTES))
def test_no_refusal_repeats_what_is_long(roomy: Served, path: str) -> None:
    """2 MB in each field, as a text, within a list, and as a name: answers stay small and name the field."""
    model, plain = ROUTES[path]
    bodies = {name: {**plain, name: LONG} for name in [*model.model_fields, "unknown", "samples_format"]}
    bodies |= {f"{name} in a list": {**plain, name: [LONG]} for name in model.model_fields}
    bodies |= {f"{name} in an object": {**plain, name: {LONG: LONG}} for name in model.model_fields}
    bodies["a name"] = {**plain, LONG: 1}
    for name in ("sd_model_checkpoint", "samples_format", "emphasis", "sd_vae", "jpeg_quality"):
        bodies[f"the option {name}"] = {**plain, name: LONG, "override_settings": {name: LONG}}
    refused = 0
    for what, body in bodies.items():
        status, _, answer = ask(roomy, "POST", path, body)
        if status >= 400:
            refused += 1
            assert status == 400, what
            assert len(answer) < 2000, what
    assert refused >= len(bodies) / 4 or path == "/internal/progress"


def test_no_refusal_repeats_a_long_address(roomy: Served) -> None:
    word = "x" * 50_000
    for path in (f"/kotoe/v1/jobs/{word}", f"/v1/models/{word}", f"/kotoe/v1/model?name={word}", f"/{word}"):
        status, _, answer = ask(roomy, "GET", path)
        assert status in (400, 404)
        assert len(answer) < 500, path
    kind = {"Content-Type": word}
    assert len(ask(roomy, "POST", "/v1/images/edits", b"a", kind)[2]) < 500
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    part = f'--b\r\nContent-Disposition: form-data; name="{word[:3000]}"\r\n\r\na\r\n'
    for body in (part * 2 + "--b--\r\n", part + "--b--\r\n"):
        answer = ask(roomy, "POST", "/v1/images/edits", body.encode(), form)
        assert answer[0] == 400
        assert len(answer[2]) < 500

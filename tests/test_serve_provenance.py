"""What a server's pictures carry: record, parameters, watermark, signature; and settings that come back."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from commands import Kotoe, running
from serving import Served, serving

pytestmark = pytest.mark.enable_socket


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kotoe:
    monkeypatch.chdir(tmp_path)
    return running(capsys)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    from kotoe.provenance.certificate import make

    folder = tmp_path_factory.mktemp("trial") / "certificate"
    make(folder, "Kotoe trial", days=3)
    with serving("--watermark", "4711", "--c2pa", str(folder)) as server:
        yield server


def ask(served: Served, path: str, body: Any = None) -> bytes:
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    kind = "image/png" if isinstance(body, bytes) else "application/json"
    asked = urllib.request.Request(served.url + path, data, {"Content-Type": kind})
    with urllib.request.urlopen(asked) as answer:
        return bytes(answer.read())


def drawn(served: Served, **body: Any) -> bytes:
    body = {"prompt": "青い背景に猫", "response_format": "url", "seed": 5, **body}
    url = json.loads(ask(served, "/v1/images/generations", body))["data"][0]["url"]
    return ask(served, url.removeprefix(served.url))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_every_layer_says_the_same(served: Served, run: Kotoe, tmp_path: Path, kind: str) -> None:
    (tmp_path / f"a.{kind}").write_bytes(drawn(served, output_format=kind))
    said = run("verify", f"a.{kind}", "--json")
    assert said.code == 0, said.err
    (found,) = said.json["pictures"]
    assert found["signature"]["state"] == "valid"  # whole, by someone whom nobody has to trust
    assert found["record"]["state"] == "whole"
    assert found["parameters"] == "agrees"
    assert (found["watermark"]["found"], found["watermark"]["number"]) == (True, 4711)


def test_a_change_is_told(served: Served, run: Kotoe, tmp_path: Path) -> None:
    content = bytearray(drawn(served))
    place = content.index(b"IDAT") + 40
    content[place] ^= 1
    (tmp_path / "a.png").write_bytes(content)
    assert run("verify", "a.png").code != 0


def test_settings_come_back_from_a_picture(served: Served) -> None:
    found = json.loads(ask(served, "/kotoe/v1/settings", drawn(served)))
    assert found["tool"] == "Kotoe"
    assert found["request"]["prompt"] == "青い背景に猫"
    assert found["request"]["seed"] == 5
    assert found["record"]["watermark"] == 4711


def test_what_jobs_do_not_have_is_noted_and_not_taken_over(served: Served) -> None:
    """All that comes back can be asked for as it is."""
    body = {"prompt": "a cat", "num_inference_steps": 2, "sampler": "euler_ancestral", "size": "128x160"}
    found = json.loads(ask(served, "/kotoe/v1/settings", drawn(served, **body)))
    assert any(note.startswith("emphasis none") for note in found["notes"])
    assert json.loads(ask(served, "/kotoe/v1/jobs", found["request"]))["state"] == "waiting"


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(100)])
def test_what_holds_no_settings_says_so(served: Served, content: bytes) -> None:
    with pytest.raises(urllib.error.HTTPError) as raised:
        ask(served, "/kotoe/v1/settings", content)
    assert raised.value.code == 400
    assert json.load(raised.value)["error"]["message"]


def test_a_picture_too_small_for_the_watermark_is_refused(served: Served) -> None:
    with pytest.raises(urllib.error.HTTPError) as raised:
        drawn(served, size="64x64")
    assert "128" in json.load(raised.value)["error"]["message"]


def test_a_served_picture_is_drawn_again_from_its_record(served: Served, run: Kotoe, tmp_path: Path) -> None:
    """Watermark and all. One picture at a time had the server to itself: the bits are the same."""
    (tmp_path / "a.png").write_bytes(drawn(served))
    said = run("generate", "--replay", "a.png", "--json")
    assert said.code == 0, said.err
    assert said.json["identical"], said.err

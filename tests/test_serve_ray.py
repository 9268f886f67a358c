"""Two replicas on Ray Serve, a real one on this machine: the same pictures, and nothing lost when one is killed."""

from __future__ import annotations

import io
import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kotoe import images, load
from kotoe.config import Request
from kotoe.drawing import generate
from kotoe.workers import side_by_side
from serving import Served, start

pytestmark = [pytest.mark.enable_socket, pytest.mark.timeout(300)]
OPTIONS = ("--ray", "--min-replicas", "2", "--max-replicas", "2", "--max-steps", "1000", "--deterministic")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    server = start(*OPTIONS, log=tmp_path_factory.mktemp("ray") / "log")
    try:
        server.ready(seconds=200)
        yield server
    finally:
        assert server.stop() == 0


def ask(served: Served, path: str, body: Any = None, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(served.url + path, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(asked, timeout=120) as answer:
        return json.load(answer) if "json" in answer.headers["content-type"] else answer.read()


def until(served: Served, job: str, what: Any, seconds: float = 120.0) -> dict[str, Any]:
    ends = time.monotonic() + seconds
    while not what(found := ask(served, f"/kotoe/v1/jobs/{job}")):
        assert time.monotonic() < ends, (found, served.log.read_text("utf-8")[-3000:])
        time.sleep(0.05)
    return dict(found)


def ended(document: dict[str, Any]) -> bool:
    return document["state"] not in ("waiting", "drawing")


def replicas() -> list[int]:
    """Processes of replicas, by the name that Ray gives them."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                words = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if words.startswith(b"ray::ServeReplica"):
                found.append(int(folder.name))
    return found


def worked(pid: int) -> int:
    """Clock ticks that a process has computed."""
    return int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[11])


def test_replicas_draw_what_one_process_draws(served: Served) -> None:
    job = ask(served, "/kotoe/v1/jobs", {"prompt": "青い背景に猫", "seed": 3, "n": 6, "steps": 4, "previews": True})
    done = until(served, job["id"], ended)
    assert done["state"] == "done", done
    assert done["steps"] == {"done": 24, "total": 24}
    bundle = load("kotoe-emoji")
    for each in done["pictures"]:
        request = Request(prompt="青い背景に猫", seed=each["seed"], steps=4)
        (expected,) = side_by_side([lambda request=request: generate(bundle, request)[0]], workers=1)  # type: ignore[misc]
        found = Image.open(io.BytesIO(ask(served, each["url"]))).convert("RGB")
        assert images.differences(found, expected.image) == (0, 0)


def test_a_picture_is_drawn_from_a_picture(served: Served) -> None:
    import base64

    kept = io.BytesIO()
    Image.new("RGB", (128, 128), "red").save(kept, format="PNG")
    body = {"prompt": "a cat", "init_image": base64.b64encode(kept.getvalue()).decode(), "strength": 0.5}
    assert until(served, ask(served, "/kotoe/v1/jobs", body)["id"], ended)["state"] == "done"


def test_errors_are_the_same(served: Served) -> None:
    with pytest.raises(urllib.error.HTTPError) as raised:
        ask(served, "/kotoe/v1/jobs", {"prompt": "a cat", "width": 100})
    assert "multiple of 32" in json.load(raised.value)["error"]["message"]


def test_a_job_is_cancelled_where_it_is_drawn(served: Served) -> None:
    job = ask(served, "/kotoe/v1/jobs", {"prompt": "a cat", "steps": 1000, "n": 4})["id"]
    until(served, job, lambda document: document["steps"]["done"] > 0)
    ask(served, f"/kotoe/v1/jobs/{job}", method="DELETE")
    assert until(served, job, ended, 10)["state"] == "cancelled"
    quick = ask(served, "/kotoe/v1/jobs", {"prompt": "a cat", "steps": 1})["id"]
    assert until(served, quick, ended, 20)["state"] == "done"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds replicas in /proc")
def test_nothing_is_lost_when_a_replica_is_killed(served: Served) -> None:
    job = ask(served, "/kotoe/v1/jobs", {"prompt": "a cat", "steps": 300, "n": 8, "seed": 5})["id"]
    until(served, job, lambda document: document["steps"]["done"] > 50)
    both = replicas()
    assert len(both) == 2
    before = {pid: worked(pid) for pid in both}
    time.sleep(0.5)
    os.kill(max(both, key=lambda pid: worked(pid) - before[pid]), signal.SIGKILL)  # one that draws
    done = until(served, job, ended)
    assert (done["state"], len(done["pictures"])) == ("done", 8), done
    assert any(line["message"] == "a replica died" for line in served.lines)
    again = ask(served, "/kotoe/v1/jobs", {"prompt": "a dog"})["id"]
    assert until(served, again, ended)["state"] == "done"

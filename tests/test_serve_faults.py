"""What goes wrong around a server: broken pictures, full disks, killed processes, ends of many kinds."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from kotoe.checkpoints import Bundle
from kotoe.config import Request
from kotoe.safety.checks import Checks
from kotoe.serve import service as serving_module
from kotoe.serve.jobs import Wish
from kotoe.serve.refusals import Refusal
from kotoe.serve.service import Service
from kotoe.serve.settings import Serving
from kotoe.serve.store import Store
from services import LONG, runner, until, wish
from serving import Served, start
from tiny import tiny_bundle


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return tiny_bundle()


@pytest.fixture
def serve(bundle: Bundle) -> Callable[..., None]:
    return runner(bundle)


def test_a_picture_of_no_numbers_fails_with_its_reason_and_no_other(serve: Callable[..., None], bundle: Bundle) -> None:
    async def body(service: Service) -> None:
        broken = replace(bundle, name="broken", unet=tiny_bundle().unet)
        with torch.no_grad():
            broken.unet.conv_out.bias.fill_(float("nan"))
        service.bundles["broken"] = broken
        bad = await service.submit(Wish(request=Request(prompt="a", n=2), model="broken"))
        good = await service.submit(wish())
        await bad.ended.wait()
        await good.ended.wait()
        assert (bad.state, good.state) == ("failed", "done")
        assert "values that are no numbers" in service.document(bad)["error"]["message"]

    serve(body)


def test_a_full_disk_keeps_results_in_memory_and_says_so(serve: Callable[..., None], tmp_path: Path) -> None:
    """A real one: the file may not grow any more (SQLite's own limit of pages)."""

    async def body(service: Service) -> None:
        (pages,) = service.store.db.execute("PRAGMA page_count").fetchone()
        service.store.db.execute(f"PRAGMA max_page_count={pages}")
        job = await service.submit(wish(n=3))
        await job.ended.wait()
        await asyncio.sleep(0.05)
        document = service.document(job)
        assert (document["state"], document["kept"], len(document["pictures"])) == ("done", False, 3)
        assert service.picture(document["pictures"][0]["id"], "") == job.pictures[0].content
        assert b"kotoe_not_kept_total 0.0" not in service.metrics.text()
        service.store.db.execute(f"PRAGMA max_page_count={pages + 1000}")
        later = await service.submit(wish())
        await later.ended.wait()
        assert service.document(later)["kept"]

    serve(body, store=tmp_path / "s.sqlite")


@pytest.mark.enable_socket
def test_a_server_that_was_killed_knows_what_it_had_finished(tmp_path: Path) -> None:
    import urllib.request

    def ask(served: Served, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(served.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked) as answer:
            return json.load(answer) if "json" in answer.headers["content-type"] else answer.read()

    where = f"--store={tmp_path / 's.sqlite'}"
    served = start(where, "--max-steps", "1000", log=tmp_path / "log")
    try:
        served.ready()
        done = ask(served, "/kotoe/v1/jobs", {"prompt": "a cat", "seed": 1})["id"]
        while (document := ask(served, f"/kotoe/v1/jobs/{done}"))["state"] != "done":
            time.sleep(0.01)
        picture = ask(served, document["pictures"][0]["url"])
        half = ask(served, "/kotoe/v1/jobs", {"prompt": "a dog", "n": 8, "steps": 1000})["id"]
        while not any(line["message"] == "job taken" and line["steps"] == 1000 for line in served.lines):
            time.sleep(0.01)
    finally:
        served.stop(signal.SIGKILL)
    again = start(where, log=tmp_path / "log2")
    try:
        again.ready()
        assert ask(again, f"/kotoe/v1/jobs/{done}")["state"] == "done"
        assert ask(again, document["pictures"][0]["url"]) == picture
        lost = ask(again, f"/kotoe/v1/jobs/{half}")
        assert (lost["state"], lost["error"]["code"]) == ("lost", "lost")
        assert any(line.get("jobs") == 1 and line["level"] == "warning" for line in again.lines)
        second = start(where, log=tmp_path / "log3")
        assert second.ended() == 2
        assert "in use by another server" in second.log.read_text()
    finally:
        assert again.stop() == 0


@pytest.mark.enable_socket
def test_sigterm_lets_what_was_taken_be_done(tmp_path: Path) -> None:
    import urllib.error
    import urllib.request

    served = start("--store", str(tmp_path / "s.sqlite"), "--max-steps", "1000", log=tmp_path / "log")
    served.ready()
    body = json.dumps({"prompt": "a cat", "steps": 300, "n": 2}).encode()
    asked = urllib.request.Request(f"{served.url}/kotoe/v1/jobs", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked) as answer:
        job = json.load(answer)["id"]
    assert served.stop() == 0
    with sqlite3.connect(tmp_path / "s.sqlite") as db:
        (state, count) = db.execute(
            "SELECT state, (SELECT count(*) FROM pictures WHERE job = jobs.id) FROM jobs WHERE id = ?", (job,)
        ).fetchone()
    assert (state, count) == ("done", 2)


def test_what_cannot_be_written_is_drawn_all_the_same(serve: Callable[..., None]) -> None:
    """Half a character: SQLite takes no such text."""

    async def body(service: Service) -> None:
        job = await service.submit(replace(wish(), notes=("\ud800",)))
        await job.ended.wait()
        assert (job.state, job.kept, len(job.pictures)) == ("done", False, 1)

    serve(body)


def test_what_fails_while_it_is_taken_leaves_the_queue(
    serve: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(service: Service) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(service.drawer, "begin", lambda job: 1 // 0)
            for _ in range(3):
                with pytest.raises(ZeroDivisionError):
                    await service.submit(wish())
        assert not service.jobs
        await (await service.submit(wish())).ended.wait()

    serve(body, max_waiting=2)


def test_what_a_full_disk_did_not_take_is_tried_again(
    serve: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_module, "HELD_SECONDS", 0.05)

    async def body(service: Service) -> None:
        (pages,) = service.store.db.execute("PRAGMA page_count").fetchone()
        service.store.db.execute(f"PRAGMA max_page_count={pages}")
        job = await service.submit(wish(n=3))
        await job.ended.wait()
        await asyncio.sleep(0.3)  # several times
        assert await service.find(job.id, "") is job
        assert not job.kept
        service.store.db.execute(f"PRAGMA max_page_count={pages + 1000}")
        await until(lambda: job.id not in service.jobs)
        found = await service.find(job.id, "")
        assert isinstance(found, dict)
        assert (found["state"], found["kept"]) == ("done", True)
        assert [service.picture(each["id"], "") for each in found["pictures"]] == [k.content for k in job.pictures]

    serve(body, store=tmp_path / "s.sqlite")


def test_memory_for_what_a_full_disk_did_not_take_has_an_end(
    serve: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And then the job doesn't wait for ever."""
    monkeypatch.setattr(serving_module, "HELD_SECONDS", 0.05)
    monkeypatch.setattr(serving_module, "UNKEPT_BYTES", 0)

    async def body(service: Service) -> None:
        job = await service.submit(wish(steps=600, n=3))
        (pages,) = service.store.db.execute("PRAGMA page_count").fetchone()
        service.store.db.execute(f"PRAGMA max_page_count={pages}")
        await job.ended.wait()
        await until(lambda: job.id not in service.jobs)
        found = await service.find(job.id, "")
        assert isinstance(found, dict)
        assert (found["state"], found["error"]["code"]) == ("lost", "lost")
        service.store.expire(time.time() + 1, list(service.jobs))
        assert await service.find(job.id, "") is None

    serve(body, store=tmp_path / "s.sqlite")


def test_a_busy_store_does_not_stop_the_loop(serve: Callable[..., None]) -> None:
    async def body(service: Service) -> None:
        with service.store.lock:
            looking = asyncio.create_task(service.find("no such job", ""))
            began = time.monotonic()
            for _ in range(20):
                await asyncio.sleep(0.005)
            assert time.monotonic() - began < 1.0
            assert not looking.done()
        assert await looking is None

    serve(body)


def test_a_job_that_is_forgotten_while_it_is_drawn(serve: Callable[..., None], tmp_path: Path) -> None:
    async def body(service: Service) -> None:
        job = await service.submit(wish("secret", n=8, steps=50))
        await until(lambda: len(job.pictures) > 0)
        (picture, *_) = job.pictures
        service.cancel_and_delete(job)
        assert await service.find(job.id, "") is None
        assert service.picture(picture.id, "") is None
        await job.ended.wait()
        await until(lambda: job.id not in service.jobs)
        assert service.store.job(job.id) is None
        assert service.store.picture(picture.id) is None

    serve(body, store=tmp_path / "s.sqlite", together=1)


def test_the_rate_holds_for_requests_at_once(serve: Callable[..., None]) -> None:
    async def body(service: Service) -> None:
        found = await asyncio.gather(*(service.submit(wish()) for _ in range(8)), return_exceptions=True)
        refused = [one for one in found if isinstance(one, Refusal)]
        assert (len(found) - len(refused), {one.status for one in refused}) == (3, {429})
        (first, *_) = service.begun["me"]
        waits = int(refused[0].headers["Retry-After"])
        assert first + 60 <= time.time() + waits < first + 62  # not a moment too early
        with pytest.raises(Refusal, match="Allowed: 1 to 3") as never:
            await service.submit(wish(n=4))
        assert (never.value.status, never.value.param) == (400, "n")
        service.begun = {"gone": [time.time() - 61], **service.begun}
        with pytest.raises(Refusal):
            await service.submit(wish())
        assert set(service.begun) == {"me"}

    serve(body, rate=3)


def test_without_a_rate_nobody_is_counted(serve: Callable[..., None]) -> None:
    async def body(service: Service) -> None:
        await (await service.submit(wish(n=3))).ended.wait()
        assert not service.begun
        with pytest.raises(Refusal, match="Allowed: 1 to 20") as never:
            await service.submit(wish(n=21))
        assert never.value.status == 400

    serve(body, max_waiting=20)


def test_only_the_latest_preview_is_held(serve: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kotoe.serve.local.PREVIEW_SECONDS", 0.0)

    async def body(service: Service) -> None:
        job = await service.submit(Wish(request=Request(prompt="a", steps=300, n=2), previews=True))
        await job.ended.wait()
        assert len(job.previews) <= 2 * 2  # what lanes hand over at the same time
        assert max(step for _, step, _ in job.previews) > 250

    serve(body)


def test_the_warm_up_is_not_counted(serve: Callable[..., None]) -> None:
    async def body(service: Service) -> None:
        assert b'state="done"' not in service.metrics.text()
        await (await service.submit(wish())).ended.wait()
        assert b'kotoe_jobs_total{state="done"} 1.0' in service.metrics.text()

    serve(body)


# --- Ends


def test_what_was_finished_last_is_written_before_the_end(bundle: Bundle, tmp_path: Path) -> None:
    class Slow(Store):
        def update(self, job: str, document: Any) -> None:
            time.sleep(0.2)  # a busy disk
            super().update(job, document)

    async def body(service: Service) -> None:
        for k in range(6):
            await service.submit(wish(caller=str(k), steps=30))
        await service.drain(60)

    async def main() -> None:
        service = Service(Serving(), Checks(), {"tiny": bundle}, Slow(tmp_path / "s.sqlite"))
        await service.warm()
        await body(service)
        assert {job.state for job in service.jobs.values()} == {"done"}

    asyncio.run(main())
    again = Store(tmp_path / "s.sqlite")
    assert again.lost == 0
    again.close()


@pytest.mark.parametrize("how", ["no time", "in a hurry"])
def test_what_the_end_leaves_undone_is_lost_and_said_to_be(bundle: Bundle, tmp_path: Path, how: str) -> None:
    async def main() -> tuple[str, str]:
        service = Service(Serving(max_steps=900), Checks(), {"tiny": bundle}, Store(tmp_path / "s.sqlite"))
        await service.warm()
        long = await service.submit(Wish(request=replace(LONG, n=4)))
        cancelled = await service.submit(Wish(request=LONG))
        await until(lambda: long.begun)
        service.cancel(cancelled)
        began = time.monotonic()
        await service.drain(*((0,) if how == "no time" else (60, lambda: True)))
        assert time.monotonic() - began < 10
        assert (long.state, cancelled.state) == ("lost", "cancelled")
        assert b'kotoe_jobs_total{state="lost"} 1.0' in service.metrics.text()
        assert long.error is not None
        return long.id, long.error.document["code"]

    job, code = asyncio.run(main())
    again = Store(tmp_path / "s.sqlite")
    found = again.job(job)
    again.close()
    assert found is not None
    assert (again.lost, found[1]["state"], found[1]["error"]["code"], code) == (0, "lost", "lost", "lost")


def test_replicas_a_job_that_is_cancelled_before_anything_was_asked_ends(bundle: Bundle) -> None:
    """As A1111's interrupt does while a prompt is read: in the turn of the loop in which it was taken."""
    from kotoe.serve.remote import Deployed, Remote

    async def main() -> None:
        nobody = Deployed(name="none", handle=None, ours=False)
        service = Service(Serving(), Checks(), {"tiny": bundle}, Store(None), partial(Remote, deployed=nobody))
        job = await service.submit(wish(n=3))
        service.cancel(job)
        await asyncio.wait_for(job.ended.wait(), 10)
        assert (job.state, job.open) == ("cancelled", 0)
        service.files.shutdown()
        service.front.shutdown()
        service.store.close()
        service.folder.cleanup()

    asyncio.run(main())


SERVER = """
import sys, time
from kotoe.provenance.marking import Marking
from kotoe.safety.checks import Checks
from kotoe.serve import app
from kotoe.serve.settings import Serving

app.DRAIN_SECONDS = 2.0
def load():
    {load}
sys.exit(app.run(Serving(port=0, store="none", max_steps=1000), Checks(), Marking(), load, None, listening=print))
"""


def run_server(load: str, log: Path) -> Served:
    import subprocess
    import sys

    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", SERVER.format(load=load)], stdout=subprocess.PIPE, stderr=file, text=True
        )
    assert process.stdout is not None
    return Served(url=process.stdout.readline().strip(), process=process, log=log)


def test_a_server_that_cannot_start_says_why_and_ends(tmp_path: Path) -> None:
    served = run_server("raise RuntimeError('CUDA out of memory')", tmp_path / "log")
    assert served.ended() != 0
    (line,) = [line for line in served.lines if line["message"] == "could not start"]
    assert "CUDA out of memory" in line["trace"]


def test_a_server_that_is_told_to_end_while_it_loads(tmp_path: Path) -> None:
    served = run_server("time.sleep(100)", tmp_path / "log")
    time.sleep(0.5)
    began = time.monotonic()
    assert served.stop() == 0
    assert time.monotonic() - began < 10


BUILT_IN = "import kotoe; return {'kotoe-emoji': kotoe.load('kotoe-emoji')}"


@pytest.mark.enable_socket
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/sdapi/v1/txt2img", {"prompt": "a", "steps": 1000, "batch_size": 10, "width": 256, "height": 256}),
        ("/v1/images/generations", {"prompt": "a", "num_inference_steps": 1000, "n": 10, "size": "256x256"}),
    ],
)
def test_the_end_has_one_deadline(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    """Two seconds for connections and drawing together; who waited is told, and what was drawn is given up."""
    import http.client
    import threading

    served = run_server(BUILT_IN, tmp_path / "log")
    served.ready()
    told: list[tuple[int, Any]] = []

    def ask() -> None:
        connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=60)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            told.append((answer.status, json.loads(answer.read())))
        finally:
            connection.close()

    asking = threading.Thread(target=ask)
    asking.start()
    while not any(line["message"] == "job taken" and line["steps"] == 1000 for line in served.lines):
        time.sleep(0.02)
    began = time.monotonic()
    assert served.stop() == 0
    assert time.monotonic() - began < 2 + 4
    asking.join()
    assert [status for status, _ in told] == [503]
    assert "ending" in str(told)
    (end,) = [line for line in served.lines if line["message"] == "job ended" and line["seconds"] > 0.5]
    assert end["state"] in ("cancelled", "lost")
    assert all(line.startswith("{") for line in served.log.read_text("utf-8").splitlines())


@pytest.mark.enable_socket
def test_a_second_interrupt_does_not_wait(tmp_path: Path) -> None:
    import urllib.request

    served = start("--max-steps", "1000", "--store", str(tmp_path / "s.sqlite"), log=tmp_path / "log")
    served.ready()
    body = json.dumps({"prompt": "a", "steps": 1000, "n": 10, "width": 512, "height": 512}).encode()
    asked = urllib.request.Request(f"{served.url}/kotoe/v1/jobs", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked) as answer:
        job = json.load(answer)["id"]
    served.process.send_signal(signal.SIGINT)
    time.sleep(1.0)
    assert served.process.poll() is None  # it draws what was taken
    began = time.monotonic()
    assert served.stop(signal.SIGINT) == 0
    assert time.monotonic() - began < 10
    with sqlite3.connect(tmp_path / "s.sqlite") as db:
        (state,) = db.execute("SELECT state FROM jobs WHERE id = ?", (job,)).fetchone()
    assert state == "lost"

"""Jobs: what is taken, in which order, what is told of it, what is kept, and who may see it."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kotoe.checkpoints import Bundle
from kotoe.config import Request
from kotoe.errors import UserError
from kotoe.images import read_record
from kotoe.serve.jobs import Job, Wish
from kotoe.serve.refusals import Refusal
from kotoe.serve.service import Service
from kotoe.serve.settings import Serving, read_keys
from kotoe.serve.store import Store, StoreError
from services import LONG, runner, until, wish
from tiny import tiny_bundle


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return tiny_bundle()


@pytest.fixture
def serve(bundle: Bundle) -> Callable[..., None]:
    return runner(bundle)


# --- The course of a job


def test_a_job_from_its_beginning_to_its_end(serve: Callable[..., None], tmp_path: Path) -> None:
    async def body(service: Service) -> None:
        job = await service.submit(wish("a cat", seed=3, n=2, steps=40))
        first = service.document(job)
        assert (first["state"], first["place"], first["seeds"]) == ("waiting", 1, [3, 4])
        await until(lambda: job.begun)
        assert service.document(job)["state"] in ("drawing", "done")
        await job.ended.wait()
        last = service.document(job)
        assert (last["state"], last["place"], last["seconds"], last["error"]) == ("done", 0, 0.0, None)
        assert last["steps"] == {"done": 80, "total": 80}
        assert [each["seed"] for each in last["pictures"]] == [3, 4]
        for each, kept in zip(last["pictures"], job.pictures, strict=True):
            path = tmp_path / each["id"]
            path.write_bytes(kept.content)
            assert json.loads(read_record(path))["seed"] == each["seed"]
            assert service.picture(each["id"], "") == kept.content

    serve(body)


def test_pictures_of_a_job_are_those_of_generate(serve: Callable[..., None], bundle: Bundle) -> None:
    from kotoe import images
    from kotoe.drawing import generate
    from kotoe.workers import side_by_side

    async def body(service: Service) -> None:
        jobs = [await service.submit(wish("a cat", seed=k, steps=7, guidance_scale=3.0)) for k in range(6)]
        for k, job in enumerate(jobs):
            await job.ended.wait()
            asked = replace(job.wish.request)
            (expected,) = side_by_side([lambda asked=asked: generate(bundle, asked)[0]], workers=1)  # type: ignore[misc]
            assert images.differences(job.pictures[0].picture.image, expected.image) == (0, 0), k

    serve(body, deterministic=True)


def test_callers_share_the_server_whoever_asks_for_more(serve: Callable[..., None]) -> None:
    """One asks for 30 pictures, another then for one: that one doesn't wait for the 30."""

    async def body(service: Service) -> None:
        many = await service.submit(wish(caller="greedy", n=30, steps=60))
        one = await service.submit(wish(caller="modest", steps=60))
        await until(lambda: many.begun)
        assert service.place(one) <= 1
        await one.ended.wait()
        assert len(many.pictures) < 15
        service.cancel(many)
        await many.ended.wait()

    serve(body, together=1)


def test_the_time_that_is_left_is_predicted(serve: Callable[..., None]) -> None:
    """From the steps before it and the time that steps took: within a factor of three, and falling."""

    async def body(service: Service) -> None:
        for _ in range(3):  # how long steps take is learned
            await (await service.submit(wish(steps=30, n=4))).ended.wait()
        began = time.monotonic()
        jobs = [await service.submit(wish(steps=200, caller=f"c{k}")) for k in range(6)]
        told = [service.seconds_left(job) for job in jobs]
        for job in jobs:
            await job.ended.wait()
        took = time.monotonic() - began
        last = max(t for t in told if t is not None)
        assert took / 3 < last < took * 3
        assert service.seconds_left(jobs[0]) == 0.0

    serve(body)


def test_a_cancelled_job_keeps_what_it_has_finished(serve: Callable[..., None]) -> None:
    async def body(service: Service) -> None:
        job = await service.submit(wish(n=8, steps=50))
        await until(lambda: len(job.pictures) > 0)
        service.cancel(job)
        await job.ended.wait()
        document = service.document(job)
        assert document["state"] == "cancelled"
        assert 1 <= len(document["pictures"]) < 8
        waiting = await service.submit(Wish(request=LONG, caller="me"))
        service.cancel(waiting)
        service.cancel(waiting)  # once more does nothing
        await waiting.ended.wait()
        assert not waiting.pictures

    serve(body, together=1)


@pytest.mark.parametrize("previews", [True, 4])
def test_pictures_are_shown_as_they_come(serve: Callable[..., None], previews: bool | int) -> None:
    async def body(service: Service) -> None:
        request = Request(prompt="a", steps=400 if previews is True else 10)
        job = await service.submit(Wish(request=request, previews=previews))
        await job.ended.wait()
        steps = [step for _, step, _ in job.previews]
        assert steps == sorted(steps)
        assert steps == [2, 4, 6, 8] if previews == 4 and previews is not True else len(steps) >= 1
        assert all(content.startswith(b"\x89PNG") for _, _, content in job.previews)

    serve(body)


# --- What is not taken


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request(prompt="a", width=101), "multiple"),
        (Request(prompt="a", width=2048, height=2048), "pixels at most, as this server is set"),
        (Request(prompt="a", steps=901), "1 to 900, as this server is set"),
        (Request(prompt="a", n=51), "1 to 50"),
        (Request(prompt="a" * 20_001), "prompt of 20001 characters"),
        (Request(prompt="a", negative_prompt="b" * 20_001), "negative_prompt of 20001"),
        (Request(prompt="a cat " * 90), "prompt: "),
        (Request(prompt="a", negative_prompt="a cat " * 90), "negative_prompt: "),
        (Request(prompt="(a"), "brackets in pairs"),
        (Request(prompt="a", language="ko"), "Allowed: en"),
    ],
)
def test_what_cannot_be_drawn_is_told_before_it_waits(
    serve: Callable[..., None], request_: Request, words: str
) -> None:
    async def body(service: Service) -> None:
        with pytest.raises(Refusal, match=words) as raised:
            await service.submit(Wish(request=request_))
        assert raised.value.status == 400
        assert not service.jobs

    serve(body)


def test_the_queue_has_an_end_and_says_when_to_come_back(serve: Callable[..., None]) -> None:
    async def body(service: Service) -> None:
        jobs = [await service.submit(Wish(request=LONG, caller="a")) for _ in range(3)]
        with pytest.raises(Refusal, match="the queue holds 3") as raised:
            await service.submit(wish(caller="b"))
        assert raised.value.status == 429
        assert int(raised.value.headers["Retry-After"]) >= 1
        for job in jobs:
            service.cancel(job)
            await job.ended.wait()
        await (await service.submit(wish(caller="b"))).ended.wait()

    serve(body, max_waiting=3)


def test_a_refusal_costs_no_more_on_a_busy_server(serve: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands that ended lately are not asked what is left of them; nor is everybody's time counted to tell one's."""

    async def body(service: Service) -> None:
        ended = await service.submit(wish())
        await ended.ended.wait()
        service.jobs |= {f"ended {k}": ended for k in range(3000)}
        for k in range(20):
            await service.submit(Wish(request=LONG, caller=str(k)))
        asked = 0
        cost = service.drawer.cost

        def counted(job: Job) -> float | None:
            nonlocal asked
            asked += 1
            return float(cost(job) or 0.1)

        with monkeypatch.context() as patch:
            patch.setattr(service.drawer, "cost", counted)
            with pytest.raises(Refusal, match="the queue holds 20"):
                await service.submit(wish(caller="late"))
        assert asked <= 20
        for job in list(service.running.values()):
            service.cancel(job)

    serve(body, max_waiting=20)


def test_each_caller_has_a_rate(serve: Callable[..., None]) -> None:
    async def body(service: Service) -> None:
        await service.submit(wish(n=4))
        with pytest.raises(Refusal, match="5 are allowed") as raised:
            await service.submit(wish(n=2))
        assert 50 < int(raised.value.headers["Retry-After"]) <= 60
        await service.submit(wish())
        await service.submit(wish(caller="another", n=5))

    serve(body, rate=5)


def test_a_draining_server_takes_nothing(serve: Callable[..., None]) -> None:
    async def body(service: Service) -> None:
        service.draining = True
        with pytest.raises(Refusal) as raised:
            await service.submit(wish())
        assert raised.value.status == 503
        assert raised.value.headers == {"Retry-After": "5"}

    serve(body)


@pytest.mark.parametrize(("locale", "words"), [("en", "minors"), ("ja", "未成年"), ("ko", "미성년"), ("zh", "未成年")])
def test_reasons_are_in_the_callers_language(serve: Callable[..., None], locale: str, words: str) -> None:
    async def body(service: Service) -> None:
        asked = Wish(request=Request(prompt="child porn"), locale=locale)
        with pytest.raises(Refusal) as raised:
            await service.submit(asked)
        assert raised.value.code == "content_policy_violation"
        assert words in raised.value.message

    serve(body)


# --- The store


def document(state: str) -> dict[str, Any]:
    return {"state": state, "place": 1, "seconds": None, "error": None}


def test_the_store_keeps_and_forgets(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "s.sqlite"
    store = Store(path)
    assert os.stat(path).st_mode & 0o077 == 0  # people's prompts and pictures
    store.put("old", "ann", 100.0, document("done"))
    store.put("new", "", 200.0, document("waiting"))
    store.put("running", "", 50.0, document("drawing"))
    store.put_picture("p", "old", b"png")
    assert store.picture("p") == ("ann", b"png")
    assert store.job("new") == ("", document("waiting"))
    store.expire(150.0, ["running"])
    assert store.job("old") is None
    assert store.picture("p") is None
    assert store.job("running") is not None  # it is not ended
    store.delete("new")
    assert store.job("new") is None
    store.close()
    again = Store(path)
    assert again.lost == 1
    found = again.job("running")
    assert found is not None
    assert found[1]["state"] == "lost"
    again.close()


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"no database" * 1000)
    with pytest.raises(UserError, match="can't be used as a store"):
        Store(tmp_path / "a")
    with sqlite3.connect(tmp_path / "b") as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(UserError, match="version 99"):
        Store(tmp_path / "b")
    with pytest.raises(UserError, match="writable folder"):
        Store(tmp_path / "a" / "c")


def test_a_store_that_is_gone_is_an_error_of_its_own(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    store.close()
    with pytest.raises(StoreError):
        store.put("a", "", 1.0, document("done"))


# --- Settings


def test_keys_are_read(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\nann:0123456789abcdef\n\nbob:fedcba9876543210\n")
    path.chmod(0o600)
    assert read_keys(path) == {"0123456789abcdef": "ann", "fedcba9876543210": "bob"}
    path.chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        read_keys(path)
    path.chmod(0o600)
    for text, words in (
        ("ann:short\n", "line 1"),
        ("ann:0123456789abcdef\nann:fedcba9876543210\n", "line 2"),
        ("a b:0123456789abcdef\n", "line 1"),
        ("", "no keys"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=words):
            read_keys(path)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"port": 70000}, "0 to 65535"),
        ({"keep_hours": 0.0}, "above 0"),
        ({"max_n": 0}, "1 or more"),
        ({"rate": -1}, "0 (any number)"),
        ({"cors": ("*",)}, "origins, such as"),
        ({"model": ()}, "one or more"),
    ],
)
def test_settings_are_checked(given: dict[str, Any], words: str) -> None:
    import re

    with pytest.raises(UserError, match=re.escape(words)):
        Serving(**given)


def test_a_job_says_nothing_of_where_files_are(serve: Callable[..., None]) -> None:
    async def body(service: Service) -> None:
        job: Job = await service.submit(wish("a cat"))
        await job.ended.wait()
        assert service.folder.name not in json.dumps(service.document(job))

    serve(body)

"""Small models' pictures, side by side: in their order, the same bits alone or beside others, stopped as one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch

from kotoe import drawing, load, workers
from kotoe.checkpoints import Bundle
from kotoe.config import Request
from kotoe.drawing import Progress, draw, generate, replay, resolve
from kotoe.images import differences
from kotoe.spec import UNetSpec
from kotoe.workers import SMALL, process_threads, side_by_side, size, small
from tiny import tiny_bundle

PROMPTS = ("a red cat", "two dogs", "an owl", "a castle", "a yellow moon")


@pytest.fixture
def bundle() -> Bundle:
    return tiny_bundle("sd1")


@pytest.fixture(autouse=True)
def two_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2  # whatever happened
    torch.set_num_threads(before)


def test_results_come_in_the_tasks_order_from_several_threads() -> None:
    def task(i: int) -> Callable[[], tuple[int, int, int]]:
        def work() -> tuple[int, int, int]:
            time.sleep(0.02 * (3 - i % 3))
            return i, torch.get_num_threads(), threading.get_ident()

        return work

    found = list(side_by_side([task(i) for i in range(6)], workers=2, threads=1))
    assert [i for i, _, _ in found] == list(range(6))
    assert {threads for _, threads, _ in found} == {1}
    assert len({ident for _, _, ident in found} - {threading.get_ident()}) == 2


def in_a_new_thread(work: Callable[[], object]) -> object:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def test_threads_that_draw_at_once_leave_the_process_its_threads() -> None:
    """The second begins when the first one's workers have set torch's number, and ends after it."""
    began, ends = threading.Event(), threading.Event()
    first = side_by_side([began.set, lambda: ends.wait(5)], workers=2)
    next(first)
    assert began.wait(5)

    def second() -> tuple[int, list[int], int]:
        before, rest = process_threads(), side_by_side([torch.get_num_threads] * 4, workers=2)
        found = [next(rest)]
        ends.set()
        in_a_new_thread(lambda: list(first))  # and the first one's end is taken where it didn't begin
        return before, found + list(rest), torch.get_num_threads()

    assert in_a_new_thread(second) == (2, [1] * 4, 2)
    assert in_a_new_thread(torch.get_num_threads) == 2
    assert in_a_new_thread(process_threads) == 2


def test_a_worker_keeps_its_threads_when_another_call_ends() -> None:
    """Torch's number of a thread is taken from the process's at the thread's first use, if not before."""
    began, ended = threading.Event(), threading.Event()

    def waits() -> int:
        began.set()
        assert ended.wait(5)
        torch.ones(2) @ torch.ones(2)
        return torch.get_num_threads()

    def other() -> None:
        assert began.wait(5)
        list(side_by_side([torch.get_num_threads], workers=1))
        ended.set()

    beside = threading.Thread(target=other)
    beside.start()
    assert list(side_by_side([waits], workers=1)) == [1]
    beside.join()


def test_a_call_within_a_worker_leaves_it_its_threads() -> None:
    def outer() -> tuple[int, list[int], int]:
        return process_threads(), list(side_by_side([torch.get_num_threads], workers=1)), torch.get_num_threads()

    (found,) = side_by_side([outer], workers=1, threads=3)
    assert found == (3, [1], 3)


def test_two_threads_draw_at_once(bundle: Bundle) -> None:
    """With as many workers each as the process has threads, and it has them afterwards."""
    seen: set[int] = set()
    started = threading.Event()

    def on_step(_: Progress) -> None:
        seen.add(threading.get_ident())
        started.set()

    def second() -> None:
        assert started.wait(10)
        generate(bundle, Request(prompt=PROMPTS, language="en", n=2), on_step=on_step)

    beside = threading.Thread(target=second)
    beside.start()
    generate(bundle, Request(prompt=PROMPTS, language="en", n=4), on_step=on_step)
    beside.join()
    assert len(seen) == 4
    assert in_a_new_thread(torch.get_num_threads) == 2


def test_the_first_failure_is_raised_and_the_rest_is_left() -> None:
    stop, ran = threading.Event(), []

    def fails() -> None:
        raise ValueError("this one")

    def waits() -> None:
        ran.append(1)
        assert stop.wait(5)

    with pytest.raises(ValueError, match="this one"):
        list(side_by_side([fails, waits, *[lambda: ran.append(2)] * 50], workers=2, stop=stop))
    assert len(ran) < 50


def test_pictures_alone_and_beside_others_are_the_same_bits(bundle: Bundle) -> None:
    assert small(bundle, resolve(bundle, Request(prompt="a", language="en")))
    together = generate(bundle, Request(prompt=PROMPTS, language="en", n=2))
    assert {picture.record.threads for picture in together} == {1}
    for i, picture in enumerate(together):
        alone = generate(bundle, Request(prompt=PROMPTS[i // 2], language="en", seed=i % 2))[0]
        assert picture.record.prompt == PROMPTS[i // 2]
        assert differences(alone.image, picture.image) == (0, 0)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_replay_takes_the_records_number_of_threads(
    bundle: Bundle, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if threads == 2:
        for module in (drawing, workers):
            monkeypatch.setattr(module, "small", lambda *_: False)
    picture = generate(bundle, Request(prompt="a red cat", language="en"))[0]
    assert picture.record.threads == threads
    seen: list[int] = []
    again = replay(bundle, picture.record, on_step=lambda _: seen.append(torch.get_num_threads()))
    assert set(seen) == {threads}
    assert again.record.threads == threads
    assert differences(again.image, picture.image) == (0, 0)


def test_progress_counts_up_once_for_each_picture_step(bundle: Bundle) -> None:
    seen: list[Progress] = []
    generate(bundle, Request(prompt=PROMPTS, language="en", steps=3), on_step=seen.append)
    assert [p.done for p in seen] == list(range(1, 16))
    assert {p.total for p in seen} == {15}


@pytest.mark.parametrize("error", [RuntimeError("enough"), KeyboardInterrupt()])
def test_what_on_step_raises_stops_all_of_them(bundle: Bundle, error: BaseException) -> None:
    steps = 0

    def on_step(_: Progress) -> None:
        nonlocal steps
        steps += 1
        if steps == 2:
            raise error

    with pytest.raises(type(error)):
        generate(bundle, Request(prompt=PROMPTS * 8, language="en", steps=50), on_step=on_step)
    assert steps <= 4  # of 2,000: each worker ends after the step that it is in
    assert not [t for t in threading.enumerate() if t.name.startswith("kotoe")]


def test_who_takes_no_more_pictures_stops_the_rest(bundle: Bundle) -> None:
    drawn = draw(bundle, Request(prompt=PROMPTS * 20, language="en", steps=20))
    next(drawn)
    drawn.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("kotoe")]


def test_large_models_and_low_memory_have_all_threads(bundle: Bundle) -> None:
    asked = resolve(bundle, Request(prompt="a", language="en"))
    assert small(bundle, asked)
    assert not small(bundle.changed(works_on=torch.device("cpu")), asked)
    assert size(load("kotoe-emoji").unet.spec, 8 * 8) < SMALL / 10
    for edge in (32, 64):  # Stable Diffusion's, 256 x 256 and 512 x 512 pixels
        assert size(UNetSpec(), edge * edge) > 10 * SMALL

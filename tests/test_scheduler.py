"""Steps of many pictures in one call: the same pictures, in a fair order, whoever joins, leaves or fails."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from time import perf_counter, sleep
from typing import Any

import pytest
import torch
from PIL import Image

from kotoe import images
from kotoe.checkpoints import Bundle
from kotoe.config import Request
from kotoe.drawing import Networks, Picture, draw_batch, generate, networks, plan, resolve
from kotoe.reading import read_prompts
from kotoe.serve.scheduler import BETWEEN, SAMPLES, Policy, Scheduler, Sizes, Ticket
from kotoe.workers import Stopped, side_by_side
from tiny import tiny_bundle


class Drawn:
    """Pictures of a scheduler, by a name each, in the order in which they ended."""

    def __init__(self) -> None:
        self.found: dict[Any, Any] = {}
        self.news = threading.Condition()

    def __call__(self, name: Any, value: Any, error: BaseException | None) -> None:
        with self.news:
            self.found[name] = value if error is None else error
            self.news.notify_all()

    def wait(self, count: int, seconds: float = 60.0) -> dict[Any, Any]:
        with self.news:
            assert self.news.wait_for(lambda: len(self.found) >= count, seconds), self.found
            return self.found


def ticket(
    bundle: Bundle,
    request: Request,
    name: Any,
    drawn: Drawn,
    *,
    deadline: float | None = None,
    report: Callable[[Any], None] = lambda step: None,
    wrap: Callable[[Networks], Networks] = lambda nets: nets,
) -> Ticket:
    resolved = resolve(bundle, request)
    (job,) = plan(bundle, resolved)
    read = read_prompts(bundle, resolved, [job])[job.reading]
    return Ticket(
        work=lambda nets: draw_batch(bundle, resolved, nets, [job], [read], report)[0],
        wrap=wrap(networks(bundle, resolved)),
        deadline=perf_counter() if deadline is None else deadline,
        ended=partial(drawn, name),
    )


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return tiny_bundle()


@pytest.fixture
def held(bundle: Bundle) -> Iterator[Callable[..., Scheduler]]:
    """Makes schedulers, which are closed afterwards."""
    made: list[Scheduler] = []

    def make(**how: Any) -> Scheduler:
        made.append(Scheduler(**how))
        return made[-1]

    yield make
    for one in made:
        one.close()


def alone(bundle: Bundle, request: Request) -> Image.Image:
    """As `generate` draws it, on one thread, as a lane does."""
    (picture,) = side_by_side([lambda: generate(bundle, request)[0]], workers=1)
    return picture.image


REQUESTS = {
    "plain": Request(prompt="a cat", seed=1),
    "longer": Request(prompt="a dog on a red background", seed=2, steps=9),
    "other sampler": Request(prompt="a cat", seed=3, sampler="heun"),
    "ancestral": Request(prompt="a cat", seed=4, sampler="euler_ancestral"),
    "unguided": Request(prompt="a cat", seed=5, guidance_scale=1.0),
    "guidance 0": Request(prompt="a cat", negative_prompt="b", seed=6, guidance_scale=0.0),
    "negative": Request(prompt="a cat", negative_prompt="a dog", seed=7, guidance_scale=3.5),
    "in part": Request(prompt="a cat", seed=8, guidance_start=0.3, guidance_stop=0.8),
    "small": Request(prompt="a cat", seed=9, width=32, height=32),
    "cached": Request(prompt="a cat", seed=10, cache_interval=2),
    "merged": Request(prompt="a cat", seed=11, token_merging_ratio=0.5),
    "plain engine": Request(prompt="a cat", seed=12, engine="plain"),
}


@pytest.mark.parametrize("policy", ["step", "request", "serial"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_pictures_are_the_same_in_company(
    bundle: Bundle, held: Callable[..., Scheduler], policy: Policy, deterministic: bool
) -> None:
    """Of every kind at once, in float32: to one level of 255; to the bit where each has a call to itself."""
    scheduler, drawn = held(lanes=2, policy=policy, deterministic=deterministic), Drawn()
    tickets = {name: ticket(bundle, request, name, drawn) for name, request in REQUESTS.items()}
    copies = {(name, k): ticket(bundle, REQUESTS[name], (name, k), drawn) for name in REQUESTS for k in range(3)}
    for one in (*tickets.values(), *copies.values()):
        scheduler.submit(one)
    found = drawn.wait(len(tickets) + len(copies))
    for name, request in REQUESTS.items():
        expected = alone(bundle, request)
        for picture in (found[name], *(found[name, k] for k in range(3))):
            assert isinstance(picture, Picture), picture
            changed, largest = images.differences(picture.image, expected)
            assert largest <= 1, (name, changed, largest)
            assert changed == 0 or not (deterministic or policy == "serial"), name
    together = max(one.together for one in (*tickets.values(), *copies.values()))
    assert (together == 1) == (deterministic or policy == "serial")


def test_a_fault_in_what_is_put_together_would_show(
    bundle: Bundle, held: Callable[..., Scheduler], monkeypatch: Any
) -> None:
    """Each picture reads its own text: with another's, pictures are others."""
    from kotoe.serve import scheduler as module

    right = module.Texts.arranged

    def turned(texts: module.Texts, wanted: list[Any]) -> Any:
        order, merged = right(texts, wanted)
        return order[::-1], merged

    monkeypatch.setattr(module.Texts, "arranged", turned)
    scheduler, drawn = held(), Drawn()
    request = Request(prompt="a cat", seed=1, guidance_scale=6.0)
    both = [request, replace(request, prompt=("on a red background",))]
    for k in range(8):
        scheduler.submit(ticket(bundle, both[k % 2], k, drawn))
    found = drawn.wait(8)
    expected = [alone(bundle, one) for one in both]
    assert max(images.differences(found[k].image, expected[k % 2])[1] for k in range(8)) > 1


def test_the_earliest_deadline_goes_first_at_every_step(bundle: Bundle, held: Callable[..., Scheduler]) -> None:
    """A short picture that comes while a long one is drawn, and is due before it, is done before it."""
    scheduler, drawn, begun = held(most=1), Drawn(), threading.Event()
    long = Request(prompt="a", steps=60, width=32, height=32)
    scheduler.submit(ticket(bundle, long, "long", drawn, deadline=perf_counter() + 100, report=lambda s: begun.set()))
    assert begun.wait(20)
    scheduler.submit(ticket(bundle, Request(prompt="a", steps=3), "short", drawn, deadline=perf_counter()))
    assert list(drawn.wait(2)) == ["short", "long"]


def test_what_comes_later_joins_what_is_being_drawn(bundle: Bundle, held: Callable[..., Scheduler]) -> None:
    """And what is done leaves, at any step."""
    scheduler, drawn, begun = held(), Drawn(), threading.Event()
    scheduler.sizes.limit = lambda key, waiting: waiting  # as if it paid: here that hangs on the machine
    first = ticket(
        bundle,
        Request(prompt="a", steps=300),
        "first",
        drawn,
        deadline=perf_counter() + 9,
        report=lambda s: begun.set(),
    )
    scheduler.submit(first)
    assert begun.wait(20)
    others = [ticket(bundle, Request(prompt="a", seed=k, steps=20), k, drawn) for k in range(3)]
    for one in others:
        scheduler.submit(one)
    assert list(drawn.wait(4))[-1] == "first"
    assert min(one.together for one in (first, *others)) > 1


@pytest.mark.parametrize("when", ["waiting", "drawing"])
def test_a_cancelled_picture_leaves_before_its_next_step(
    bundle: Bundle, held: Callable[..., Scheduler], when: str
) -> None:
    scheduler, drawn, begun, steps = held(most=1, policy="serial"), Drawn(), threading.Event(), [0]

    def report(step: Any) -> None:
        steps[0] += 1
        begun.set()

    long = ticket(bundle, Request(prompt="a", steps=800), "long", drawn, report=report)
    scheduler.submit(long)
    assert begun.wait(20)
    waiting = ticket(bundle, Request(prompt="a"), "waiting", drawn)
    scheduler.submit(waiting)
    one = {"waiting": waiting, "drawing": long}[when]
    at = steps[0]
    scheduler.cancel(one)
    assert isinstance(drawn.wait(1)[when if when == "waiting" else "long"], Stopped)
    if when == "drawing":
        assert steps[0] <= at + 2
        assert isinstance(drawn.wait(2)["waiting"], Picture)
    else:
        scheduler.cancel(long)


def test_one_pictures_fault_is_no_others(bundle: Bundle, held: Callable[..., Scheduler]) -> None:
    """Neither of its own code nor of the network that computes several at once."""
    scheduler, drawn = held(), Drawn()
    unet = networks(bundle, resolve(bundle, REQUESTS["plain"])).unet

    class Fragile:
        """Breaks where it sees one of the pictures' latents, alone or in company."""

        text_kv = staticmethod(unet.text_kv)

        def __call__(self, x: torch.Tensor, time: Any, kv: Any, shortcuts: Any = None) -> torch.Tensor:
            if bool((x.flatten(1).abs().amax(1) > 1e6).any()):
                raise MemoryError("no room")
            return unet(x, time, kv)

    fragile = Fragile()

    def broken(step: Any) -> None:
        raise ZeroDivisionError

    wrap = lambda nets: replace(nets, unet=fragile)  # noqa: E731
    scheduler.submit(ticket(bundle, Request(prompt="a", seed=1), "raises", drawn, report=broken, wrap=wrap))
    loud = ticket(bundle, Request(prompt="a", seed=2), "loud", drawn, wrap=wrap)
    quiet_work = loud.work
    loud.work = lambda nets: quiet_work(replace(nets, unet=Loud(nets.unet)))
    scheduler.submit(loud)
    for k in range(4):
        scheduler.submit(ticket(bundle, Request(prompt="a", seed=10 + k), k, drawn, wrap=wrap))
    found = drawn.wait(6)
    assert isinstance(found["raises"], ZeroDivisionError)
    assert isinstance(found["loud"], MemoryError)
    for k in range(4):
        assert images.differences(found[k].image, alone(bundle, Request(prompt="a", seed=10 + k)))[1] <= 1


def test_what_is_counted_is_steps(bundle: Bundle, held: Callable[..., Scheduler]) -> None:
    """Not the decoding, which lanes do too."""
    scheduler, drawn = held(most=1), Drawn()
    for k in range(3):
        scheduler.submit(ticket(bundle, Request(prompt="a", seed=k, steps=7, sampler="euler"), k, drawn))
    drawn.wait(3)
    assert scheduler.sizes.calls == {1: 21}


def test_who_fails_to_listen_stops_no_lane(bundle: Bundle, held: Callable[..., Scheduler]) -> None:
    scheduler, drawn = held(), Drawn()
    deaf = ticket(bundle, Request(prompt="a"), "deaf", drawn)
    deaf.ended = lambda value, error: {}["nobody"]
    scheduler.submit(deaf)
    scheduler.submit(ticket(bundle, Request(prompt="a"), "other", drawn, deadline=perf_counter() + 1))
    assert isinstance(drawn.wait(1)["other"], Picture)


class Loud:
    """A picture whose latents no network can take."""

    def __init__(self, unet: Any) -> None:
        self.unet, self.text_kv = unet, unet.text_kv

    def __call__(self, x: torch.Tensor, time: Any, kv: Any, shortcuts: Any = None) -> torch.Tensor:
        return self.unet(x * 1e9, time, kv, shortcuts)


def test_what_is_no_step_does_not_hold_steps_up(bundle: Bundle, held: Callable[..., Scheduler]) -> None:
    """Between two ticks there are so many other calls at the most, however many wait."""
    scheduler, drawn, begun = held(), Drawn(), threading.Event()
    order: list[str] = []

    def report(step: Any) -> None:
        begun.set()
        order.append("step")

    scheduler.submit(ticket(bundle, Request(prompt="a", steps=300), "a", drawn, report=report))
    assert begun.wait(20)
    others = 40
    for _ in range(others):
        scheduler.elsewhere(lambda: order.append("other"), lambda value, error: None, perf_counter())
    drawn.wait(1)
    assert order.count("other") == others
    runs = [len(run) for run in "".join("o" if what == "other" else "s" for what in order).split("s")]
    assert max(runs) <= BETWEEN


def test_everyone_is_told_when_it_closes(bundle: Bundle) -> None:
    scheduler, drawn, begun = Scheduler(policy="serial"), Drawn(), threading.Event()
    scheduler.submit(ticket(bundle, Request(prompt="a", steps=900), "drawn", drawn, report=lambda s: begun.set()))
    assert begun.wait(20)
    scheduler.submit(ticket(bundle, Request(prompt="a"), "waits", drawn))
    scheduler.close()
    assert {name: type(found) for name, found in drawn.found.items()} == {"drawn": Stopped, "waits": Stopped}
    assert not any(thread.is_alive() for thread in scheduler.lanes)


# --- How many together -----------------------------------------------------------------------------


def learned(cost: Callable[[int], float], most: int = 16, calls: int = 200) -> Sizes:
    """After so many calls that take so long each, everyone waiting."""
    sizes = Sizes(most)
    for _ in range(calls):
        size = sizes.limit("key", 99)
        sizes.note("key", size, cost(size))
    return sizes


def test_as_many_go_together_as_pays() -> None:
    assert learned(lambda n: 1.0 + 0.1 * n)._best("key") == 16
    assert learned(lambda n: float(n))._best("key") == 1  # nothing to gain
    assert learned(lambda n: 1.0 + 0.1 * n + (n > 4) * n)._best("key") == 4  # caches have an end
    assert learned(lambda n: 1.0 + 0.1 * n, most=1).times["key"].keys() == {1}


def test_what_does_not_pay_is_tried_seldom_and_again() -> None:
    sizes, taken = Sizes(16), Counter[int]()
    for _ in range(640):
        size = sizes.limit("key", 99)
        sizes.note("key", size, float(size))
        taken[size] += 1
    assert SAMPLES < taken[2] < 640 * 0.1
    for _ in range(200):  # the machine's other work has ended
        size = sizes.limit("key", 99)
        sizes.note("key", size, 0.5 + 0.1 * size)
    assert sizes._best("key") > 1


def test_one_slow_call_does_not_mislead() -> None:
    sizes = learned(lambda n: 1.0 + 0.1 * n)
    sizes.note("key", 16, 60.0)
    assert sizes._best("key") == 16
    assert sizes.each("key") == pytest.approx(2.6 / 16)
    assert sizes.alone("key") == pytest.approx(1.1)
    assert sizes.each("another") is None


def test_no_more_go_together_than_wait() -> None:
    sizes = learned(lambda n: 1.0 + 0.1 * n)
    assert [sizes.limit("key", n) for n in (1, 3, 16, 40)] == [1, 3, 16, 16]


def test_who_comes_at_the_end_is_told(bundle: Bundle, held: Callable[..., Scheduler]) -> None:
    """What was still to be computed aside, and what comes after the end: Stopped, and no silence."""
    scheduler, drawn = held(lanes=1), Drawn()
    told: list[BaseException | None] = []
    hold = threading.Event()
    scheduler.elsewhere(hold.wait, lambda value, error: None, 0.0)
    scheduler.elsewhere(lambda: 1, lambda value, error: told.append(error), 1.0)
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    while not scheduler.closing:
        sleep(0.001)
    hold.set()
    closing.join()
    scheduler.elsewhere(lambda: 1, lambda value, error: told.append(error), 1.0)
    scheduler.submit(ticket(bundle, Request(prompt="a"), 0, drawn))
    assert [type(error) for error in told] == [Stopped] * 2
    assert isinstance(drawn.wait(1)[0], Stopped)

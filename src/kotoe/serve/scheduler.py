"""Many pictures at once, step by step: which of them a network computes next, and which together.

A picture is drawn by the same code as everywhere (drawing.draw_batch). Here it runs as a greenlet: where it asks the
UNet, it is put aside until a lane has an answer. A lane is a thread. In each tick it takes the call whose deadline is
the earliest, and with it others of the same shape, whichever their steps, samplers, languages and guidance, into one
call of the network. So pictures join and leave at any step. What isn't a step (texts, decoding) comes between two
ticks, BETWEEN calls at the most: on a processor threads of their own for it were no quicker (docs/log.md).

How many go together is learned as it goes: a lane tries twice as many as long as that has paid (`Sizes`).

Exactness: what is computed together rounds together, so that a picture's last bits may hang on its company, no further
from float32 than alone (docs/engine.md). `deterministic`: one picture in each call, the same to the bit as alone.

Legend: B latents of a call: 1, or 2 with guidance; C channels, h w rows and columns.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from time import perf_counter
from typing import Any, Literal

import torch
from greenlet import greenlet
from torch import Tensor

from kotoe.drawing import Networks
from kotoe.shortcuts import Shortcuts
from kotoe.unet import KV
from kotoe.workers import Stopped

log = logging.getLogger("kotoe.serve")
Policy = Literal["step", "request", "serial"]
MOST = 64  # pictures that a lane has begun
PAYS = 0.9  # twice as many together must take less than this share of the time for each
SAMPLES = 3  # calls that tell how long a size takes
RECENT = 9  # calls that are remembered of each size
KINDS = 8  # shapes of texts that a lane keeps room for
BETWEEN = 4  # calls that are no steps between two that are, at the most
AGAIN = 64  # calls after which twice the size is tried again


@dataclass(eq=False, kw_only=True)
class Call:
    """What a picture waits for. `run` takes the arguments of several calls of one key and gives as many results."""

    key: Hashable
    run: Callable[[Sequence[Any]], Sequence[Any]]
    args: Any
    deadline: float
    answer: Callable[[Any, BaseException | None], None]
    aside: bool = False


@dataclass(eq=False, kw_only=True)
class Ticket:
    """A picture that was handed in.

    work:      draws it with the networks it is given, on a lane.
    wrap:      what these networks are.
    deadline:  in `perf_counter`'s seconds: pictures are computed in the order of their deadlines.
    ended:     called once, on a thread of the scheduler, with what work gave, or with what it raised.
    together:  the most pictures that one call of its UNet has computed.
    """

    work: Callable[[Networks], Any]
    wrap: Networks
    deadline: float
    ended: Callable[[Any, BaseException | None], None]
    together: int = 1
    cancelled: bool = False
    key: Hashable = None  # of its UNet's calls, once it has made one


class Sizes:
    """How long calls take, by what they compute and how many together; and how many it pays to put together.

    most: the largest size. Of each size the quickest of its last calls counts: others met something else's work.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.times: dict[Hashable, dict[int, deque[float]]] = {}
        self.turns: dict[Hashable, int] = {}
        self.known: dict[Hashable, float] = {}  # what `each` gives
        self.calls: Counter[int] = Counter()  # of all UNets, by size: a histogram
        self.lock = threading.Lock()

    def limit(self, key: Hashable, waiting: int) -> int:
        """Of so many that wait, how many to compute now: the best size so far, and now and then twice that."""
        with self.lock:
            best, turn = self._best(key), self.turns.get(key, 0)
            known = self.times.get(key, {})
            double = min(2 * best, self.most)
            tried = len(known.get(double, ())) >= SAMPLES and turn % AGAIN >= SAMPLES
            learned = len(known.get(best, ())) >= SAMPLES
            return min(waiting, double if learned and not tried else best)

    def note(self, key: Hashable, size: int, seconds: float) -> None:
        """A call is done."""
        with self.lock:
            self.times.setdefault(key, {}).setdefault(size, deque(maxlen=RECENT)).append(seconds)
            self.turns[key] = self.turns.get(key, 0) + 1
            self.known.pop(key, None)

    def best(self, key: Hashable) -> int:
        """How many pay together, as far as it is known."""
        with self.lock:
            return self._best(key)

    def _best(self, key: Hashable) -> int:
        known, size = self.times.get(key, {}), 1
        while 2 * size <= self.most and len(known.get(2 * size, ())) >= SAMPLES:
            if min(known[2 * size]) / 2 >= PAYS * min(known[size]):
                break
            size *= 2
        return size

    def each(self, key: Hashable) -> float | None:
        """Seconds of a lane that one picture's step takes, in calls of the best size; None: not seen yet."""
        with self.lock:
            if key not in self.known and key in self.times:  # asked for many times between two calls
                self.known[key] = min(min(t) / size for size, t in self.times[key].items())
            return self.known.get(key)

    def alone(self, key: Hashable) -> float | None:
        """Seconds of a call of the smallest size seen: a picture's step when nobody else is there."""
        with self.lock:
            times = self.times.get(key)
            return None if not times else min(times[min(times)])


class Scheduler:
    """Lanes. Made once for a server; `close` ends their threads.

    lanes:         networks computed at a time, each on `threads` threads of torch's.
    most:          pictures in one call, at the most.
    policy:        "step": pictures join and leave at any step; "request": a lane takes several together and no others
                   until all of them are done; "serial": it takes one. The last two are there to be compared with.
    deterministic: one picture in each call.
    """

    def __init__(
        self,
        *,
        lanes: int = 1,
        threads: int = 1,
        most: int = 16,
        policy: Policy = "step",
        deterministic: bool = False,
    ) -> None:
        self.policy, self.sizes = policy, Sizes(1 if deterministic or policy == "serial" else most)
        self.waiting: list[tuple[float, int, Ticket]] = []
        self.lock, self.turns, self.closing = threading.Lock(), count(), False
        self.lanes = [Lane(self, threads) for _ in range(lanes)]
        for lane in self.lanes:
            lane.start()

    def submit(self, ticket: Ticket) -> None:
        """Have a picture drawn. Its `ended` will be called, whatever becomes of it."""
        with self.lock:
            closed = self.closing
            if not closed:
                heappush(self.waiting, (ticket.deadline, next(self.turns), ticket))
        if closed:
            ticket.ended(None, Stopped())
        self.wake()

    def elsewhere(
        self, work: Callable[[], Any], answer: Callable[[Any, BaseException | None], None], at: float
    ) -> None:
        """Have something computed that is no picture: a text, a preview. at: its deadline. It will be answered."""
        call = Call(key=None, run=_alone, args=work, deadline=at, answer=answer, aside=True)
        lane = min(self.lanes, key=lambda lane: len(lane.begun))
        with self.lock:
            closed = self.closing
            if not closed:
                lane.post(lambda: lane.ready.append(call))
        if closed:
            answer(None, Stopped())

    def cancel(self, ticket: Ticket) -> None:
        """Have a picture dropped before its next step; `ended` then gets Stopped. One that is done stays so."""
        ticket.cancelled = True
        self.wake()

    def wake(self) -> None:
        """Have every lane look for work."""
        for lane in self.lanes:
            lane.post()

    def next(self, lane: Lane) -> list[Ticket]:
        """What a lane begins now."""
        with self.lock:
            dropped = [entry for entry in self.waiting if entry[2].cancelled]
            taken = [ticket for _, _, ticket in dropped]
            if dropped:
                self.waiting = sorted(entry for entry in self.waiting if not entry[2].cancelled)
            if self.policy == "step":
                fewest = min(len(other.begun) for other in self.lanes)
                while self.waiting and len(lane.begun) + len(taken) - len(dropped) <= min(fewest, MOST - 1):
                    taken.append(heappop(self.waiting)[2])
            elif not lane.begun:
                while self.waiting and len(taken) - len(dropped) < self.sizes.most:
                    taken.append(heappop(self.waiting)[2])
            for ticket in taken:
                lane.begun.add(ticket)
        return taken

    def close(self) -> None:
        """End all threads, after the tick they are in. What isn't done ends with Stopped."""
        with self.lock:
            self.closing = True
            left, self.waiting = [ticket for _, _, ticket in self.waiting], []
        for ticket in left:
            ticket.ended(None, Stopped())
        self.wake()
        for lane in self.lanes:
            lane.join()


class Lane(threading.Thread):
    """A thread that computes steps, and the pictures it has begun."""

    def __init__(self, owner: Scheduler, threads: int) -> None:
        super().__init__(name="kotoe-lane", daemon=True)
        self.owner, self.width = owner, threads
        self.begun: set[Ticket] = set()
        self.ready: list[Call] = []
        self.inbox: list[Callable[[], Any]] = []
        self.news, self.rung = threading.Condition(), False
        self.since = 0  # calls since the last one of steps
        self.hub: greenlet | None = None
        self.kept: dict[Hashable, Texts] = {}

    def texts(self, each: Sequence[KV]) -> tuple[list[int], KV]:
        """The order in which texts stand in memory, and all of them (see Texts)."""
        key = tuple(part.shape for part in each[0][0]), each[0][0][0].dtype
        if key not in self.kept:
            if len(self.kept) >= KINDS:
                self.kept.clear()
            self.kept[key] = Texts(each[0], self.owner.sizes.most)
        return self.kept[key].arranged(each)

    def post(self, what: Callable[[], Any] | None = None) -> None:
        """Wake the lane, and have it do this first."""
        with self.news:
            self.rung = True
            if what is not None:
                self.inbox.append(what)
            self.news.notify()

    @torch.inference_mode()
    def run(self) -> None:
        """Until the scheduler closes."""
        torch.set_num_threads(self.width)
        self.hub = greenlet.getcurrent()
        while not self.owner.closing:
            with self.news:
                while not (self.rung or self.ready or self.owner.closing):
                    self.news.wait()
                self.rung, inbox = False, self.inbox
                self.inbox = []
            for what in inbox:
                what()
            for ticket in self.owner.next(self):
                self._begin(ticket)
            if self.ready:
                self._tick()
        for ticket in list(self.begun):
            self._end(ticket, None, Stopped())
        with self.news:
            inbox, self.inbox = self.inbox, []
        for what in inbox:
            what()
        for call in self.ready:
            if call.key is None:  # no picture's: see `elsewhere`
                call.answer(None, Stopped())

    def _begin(self, ticket: Ticket) -> None:
        if ticket.cancelled:
            self._end(ticket, None, Stopped())
            return
        runner = greenlet(ticket.work, parent=self.hub)
        shared = Networks(
            unet=_SharedUNet(self, ticket),
            decode=lambda z: self._ask(
                ticket,
                ("decode", id(ticket.wrap.decode), z.shape, z.dtype),
                ticket.wrap.decode,
                z,
                _decoded,
                aside=True,
            ),
        )
        self._resume(ticket, runner, shared, None)

    def _resume(self, ticket: Ticket, runner: greenlet, value: Any, error: BaseException | None) -> None:
        """Let a picture go on until it asks again, or ends."""
        if ticket.cancelled:
            error = Stopped()
        try:
            asked = runner.switch(value) if error is None else runner.throw(error)
        except Exception as raised:  # noqa: BLE001 - whatever a picture raises ends that picture, and no other
            self._end(ticket, None, raised)
            return
        if runner.dead:
            self._end(ticket, asked, None)
            return
        asked.answer = lambda value, error: self._resume(ticket, runner, value, error)
        self.ready.append(asked)

    def _end(self, ticket: Ticket, value: Any, error: BaseException | None) -> None:
        with self.owner.lock:
            self.begun.discard(ticket)
        try:
            ticket.ended(value, error)
        except Exception:  # a lane that died would leave all its pictures behind
            log.exception("who waits for a picture could not be told")
        self.owner.wake()

    def _ask(
        self, ticket: Ticket, key: Hashable, net: Any, args: Any, run: Callable[..., Any], *, aside: bool = False
    ) -> Any:
        """On a picture's greenlet: its answer, later."""
        call = Call(
            key=key,
            run=lambda several: run(net, several),
            args=args,
            deadline=ticket.deadline,
            answer=_nobody,
            aside=aside,
        )
        assert self.hub is not None
        return self.hub.switch(call)

    def _tick(self) -> None:
        """One call of a network for the pictures whose turn it is."""
        steps, others = ([c for c in self.ready if c.aside is aside] for aside in (False, True))
        # what isn't a step comes first, since it lets another picture into the steps or out; but only so many in a row
        stepping = bool(steps) and (not others or self.since >= BETWEEN)
        self.since = 0 if stepping else self.since + 1
        first, sizes = min(steps if stepping else others, key=lambda call: call.deadline), self.owner.sizes
        same = sorted((c for c in self.ready if c.key == first.key), key=lambda call: call.deadline)
        taken = [first] if first.key is None else same[: sizes.limit(first.key, len(same))]
        self.ready = [call for call in self.ready if call not in taken]
        began = perf_counter()
        results = _results(taken)
        if first.key is not None:
            _wait(results)
            sizes.note(first.key, len(taken), perf_counter() - began)
        if stepping:
            sizes.calls[len(taken)] += 1
        for call, (value, error) in zip(taken, results, strict=True):
            call.answer(value, error)


def _results(calls: Sequence[Call]) -> list[tuple[Any, BaseException | None]]:
    """Of calls of one key. If they fail together each is done by itself: one picture's fault is no other's."""
    try:
        return [(value, None) for value in calls[0].run([call.args for call in calls])]
    except Exception as error:  # noqa: BLE001 - it is handed to who asked
        if len(calls) == 1:
            return [(None, error)]
    return [_results([call])[0] for call in calls]


def _wait(results: Sequence[tuple[Any, BaseException | None]]) -> None:
    """Until an accelerator has computed what it was told to: how long that took is what is learned from."""
    answer = next((value for value, error in results if error is None), None)
    if isinstance(answer, Tensor) and answer.device.type != "cpu":
        torch.accelerator.synchronize(answer.device)


def _alone(several: Sequence[Callable[[], Any]]) -> list[Any]:
    return [work() for work in several]


def _nobody(value: Any, error: BaseException | None) -> None:
    raise AssertionError("answered before it was asked")


# --- What pictures draw with on a lane ------------------------------------------------------------


@dataclass(frozen=True)
class _SharedUNet:
    """A UNet to a picture, whose calls wait for their turn."""

    lane: Lane
    ticket: Ticket

    def text_kv(self, context: Tensor) -> KV:
        """Keys and values of a text, at once: it is once for a picture."""
        kv: KV = self.ticket.wrap.unet.text_kv(context)
        return kv

    def __call__(self, x: Tensor, time: list[Tensor], kv: KV, shortcuts: Shortcuts | None = None) -> Tensor:
        net = self.ticket.wrap.unet
        if shortcuts is not None and (shortcuts.every > 1 or shortcuts.ratio):
            # what DeepCache keeps is the picture's own
            args = (x, time, kv, shortcuts)
            key: Hashable = (id(net), x.shape, "shortcuts", id(shortcuts))
            return self.lane._ask(self.ticket, key, net, args, _with_shortcuts)
        key = self.ticket.key = (id(net), x.shape, x.dtype, kv[0][0].shape)
        return self.lane._ask(self.ticket, key, net, (x, time, kv, self.ticket, self.lane), _stepped)


def _with_shortcuts(net: Any, several: Sequence[Any]) -> list[Tensor]:
    return [net(*args) for args in several]


def _decoded(decode: Callable[[Tensor], Tensor], several: Sequence[Tensor]) -> list[Tensor]:
    if len(several) == 1:
        return [decode(several[0])]
    return list(decode(torch.cat(list(several))).split([len(z) for z in several]))


def _stepped(net: Any, several: Sequence[Any]) -> list[Tensor]:
    """UNet calls of several pictures in one. Guidance asks twice of the same latents: these stay neighbours, so that
    what both have in common is still computed once."""
    if len(several) == 1:
        x, time, kv, _, _ = several[0]
        return [net(x, time, kv)]
    n, lane, b = len(several), several[0][4], len(several[0][0])
    for *_, ticket, _ in several:
        ticket.together = max(ticket.together, n)
    order, texts = lane.texts([one[2] for one in several])
    ordered = [several[i] for i in order]
    x = torch.cat([one[0] for one in ordered])  # (n B, C, h, w)
    time = [torch.cat(rows).repeat_interleave(b, 0) for rows in zip(*(one[1] for one in ordered), strict=True)]
    answers = dict(zip(order, net(x, time, texts).split(b), strict=True))
    return [answers[i] for i in range(n)]


class Texts:
    """Keys and values of the pictures that a lane computes together, one after the other in memory: a picture's are
    copied when it comes, and perhaps when another leaves, but not for every step."""

    def __init__(self, kv: KV, most: int) -> None:
        self.each = len(kv[0][0])  # B
        self.layers = [tuple(part.new_empty(most * self.each, *part.shape[1:]) for part in layer) for layer in kv]
        self.held: list[KV] = []

    def arranged(self, wanted: Sequence[KV]) -> tuple[list[int], KV]:
        """In which order they stand, as indices into wanted, and all of them."""
        index = {id(kv): i for i, kv in enumerate(wanted)}
        place = 0
        while place < len(self.held):
            if id(self.held[place]) in index:
                place += 1
                continue
            last = self.held.pop()
            if place < len(self.held) and id(last) in index:
                self._put(place, last)
        there = {id(kv) for kv in self.held}
        for kv in wanted:
            if id(kv) not in there:
                self.held.append(kv)
                self._put(len(self.held) - 1, kv)
        end = len(wanted) * self.each
        return [index[id(kv)] for kv in self.held], [(keys[:end], values[:end]) for keys, values in self.layers]

    def _put(self, place: int, kv: KV) -> None:
        self.held[place] = kv
        rows = slice(place * self.each, (place + 1) * self.each)
        for there, layer in zip(self.layers, kv, strict=True):
            for whole, part in zip(there, layer, strict=True):
                whole[rows] = part

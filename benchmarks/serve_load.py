"""A server under load: requests that come when they come, whether it keeps up or not.

    python benchmarks/serve_load.py --card benchmarks/serve_load.md

For each way of scheduling (step by step, request by request, one after the other) a `kotoe serve` of its own with
kotoe-emoji, and one stream of requests for each rate: times between them are exponential, from a fixed seed, the same
for all three. Latency is counted from when a request was meant to be sent. Rates are shares of the capacity: what the
server delivers, step by step, when half as many callers as its queue holds always wait. Each stream comes in two
windows, in which the three take turns; above the capacity in one, so that the queue fills.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shlex
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from kotoe.bench import machine

ROOT = Path(__file__).resolve().parent.parent
SCHEDULES = ("step", "request", "serial")
NAMES = {"step": "step by step", "request": "request by request", "serial": "one after the other"}
SHARES = (0.3, 0.5, 0.7, 0.9, 1.1, 1.5)
PROMPTS = (
    ("en", "a {} on a blue background", ("cat", "dog", "apple", "guitar", "rocket", "octopus", "bicycle", "panda")),
    ("ja", "青い背景に{}", ("猫", "犬", "りんご", "ギター", "ロケット", "タコ", "自転車", "パンダ")),
    ("zh", "蓝色背景上的{}", ("猫", "狗", "苹果", "吉他", "火箭", "章鱼", "自行车", "熊猫")),
    ("ko", "파란 배경의 {}", ("고양이", "개", "사과", "기타", "로켓", "문어", "자전거", "판다")),
)
STEPS = (6, 10, 10, 20)
WINDOWS = 2  # in which a stream comes, by turns, so that what else the machine does meets all; each long enough for a
# queue to grow as long as it will
SOON = 1.0  # seconds: a picture within this time counts as goodput
PATIENCE = 120.0  # seconds after the last request was sent


@dataclass
class Point:
    """What became of one stream of requests."""

    latencies: list[float] = field(default_factory=list)
    refused: int = 0  # with 429 and Retry-After
    lost: int = 0
    seconds: float = 0.0
    calls: dict[str, float] = field(default_factory=dict)

    @property
    def sent(self) -> int:
        return len(self.latencies) + self.refused + self.lost

    def quantile(self, share: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")

    @property
    def goodput(self) -> float:
        return sum(x <= SOON for x in self.latencies) / self.seconds


def bodies(count: int, seed: int) -> list[dict[str, Any]]:
    draws = random.Random(seed)
    found = []
    for k in range(count):
        language, form, words = draws.choice(PROMPTS)
        prompt = form.format(draws.choice(words))
        steps = draws.choice(STEPS)
        found.append({"prompt": prompt, "language": language, "num_inference_steps": steps, "seed": k})
    return found


class Server:
    """A `kotoe serve` of its own."""

    def __init__(self, schedule: str, queue: int) -> None:
        command = [sys.executable, "-m", "kotoe", "serve", "--port", "0", "--json", "--store", "none"]
        command += ["--schedule", schedule, "--max-waiting", str(queue)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        self.url = json.loads(self.process.stdout.readline())["address"]
        while httpx.get(f"{self.url}/readyz").status_code != 200:
            time.sleep(0.05)

    def calls(self) -> dict[str, float]:
        """Calls of the UNet so far, by how many pictures were in them."""
        found, before = {}, 0.0
        for line in httpx.get(f"{self.url}/metrics").text.splitlines():
            if line.startswith("kotoe_unet_batch_bucket") and "+Inf" not in line:
                size, count = line.split('"')[1], float(line.rpartition(" ")[2])
                found[str(int(float(size)))] = count - before
                before = count
        return found

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(120)


async def one(client: httpx.AsyncClient, url: str, body: dict[str, Any], meant: float, point: Point) -> None:
    try:
        answer = await client.post(f"{url}/v1/images/generations", json=body)
    except httpx.HTTPError:
        point.lost += 1
        return
    if answer.status_code == 200 and answer.json()["data"][0]["b64_json"]:
        point.latencies.append(time.perf_counter() - meant)
    elif answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1:
        point.refused += 1
    else:
        point.lost += 1


def client() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=PATIENCE, limits=httpx.Limits(max_connections=None))


async def capacity(server: Server, at_once: int, count: int) -> float:
    """Pictures a second with so many callers, each of whom always waits for one."""
    waiting, point = iter(bodies(count, seed=7)), Point()

    async def caller() -> None:
        for body in waiting:
            await one(user, server.url, body, time.perf_counter(), point)

    async with client() as user:
        began = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(at_once)))
        took = time.perf_counter() - began
    assert point.lost == point.refused == 0
    return len(point.latencies) / took


async def stream(server: Server, rate: float, count: int, seed: int) -> Point:
    """So many requests a second, on average, whatever becomes of them."""
    draws, point = random.Random(seed), Point()
    before = server.calls()
    async with client() as user:
        began = meant = time.perf_counter()
        tasks = []
        for body in bodies(count, seed):
            meant += draws.expovariate(rate)
            await asyncio.sleep(max(0.0, meant - time.perf_counter()))
            tasks.append(asyncio.create_task(one(user, server.url, body, meant, point)))
        await asyncio.gather(*tasks)
        point.seconds = time.perf_counter() - began
    after = server.calls()
    point.calls = {size: n - before.get(size, 0.0) for size, n in after.items() if n > before.get(size, 0.0)}
    return point


def together(parts: Sequence[Point]) -> Point:
    """Several streams as one."""
    calls: Counter[str] = Counter()
    for part in parts:
        calls.update(part.calls)
    return Point(
        latencies=[latency for part in parts for latency in part.latencies],
        refused=sum(part.refused for part in parts),
        lost=sum(part.lost for part in parts),
        seconds=sum(part.seconds for part in parts),
        calls=dict(calls),
    )


def spread(calls: dict[str, float]) -> str:
    """Share of pictures' steps by how many were computed together."""
    groups = {"1": 0.0, "2-3": 0.0, "4-7": 0.0, "8-15": 0.0, "16": 0.0}
    for size, n in calls.items():
        k = int(size)
        name = "1" if k == 1 else "2-3" if k < 4 else "4-7" if k < 8 else "8-15" if k < 16 else "16"
        groups[name] += k * n
    total = sum(groups.values()) or 1.0
    return ", ".join(f"{name}: {100 * n / total:.0f} %" for name, n in groups.items() if n)


def card(found: dict[str, Any]) -> str:
    lines = []
    for share in found["shares"]:
        for schedule in SCHEDULES:
            point: Point = found["points"][schedule, share]
            lines.append(
                f"| {share:g} x | {NAMES[schedule]} | {point.quantile(0.5):.2f} | {point.quantile(0.95):.2f} | "
                f"{len(point.latencies) / point.seconds:.1f} | {point.goodput:.1f} | {point.refused} | {point.lost} | "
                f"{spread(point.calls)} |"
            )
    about, each, rows = found["machine"], found["capacity"], "\n".join(lines)
    versions = ", ".join(f"{name} {value}" for name, value in about["versions"].items())
    return f"""# A server under load

`{found["command"]}`, {found["date"]}.
kotoe-emoji, 128 x 128 pixels, 6, 10 or 20 steps, prompts in four languages; {found["count"]} requests a point in
{WINDOWS} windows (one above 1 x, where the queue has to fill), in which the three take turns, seeds fixed;
a queue of {found["queue"]} pictures.
{about["processor"]}, {about["threads"]} threads, the client among them;
{versions}.

Capacity: {each["step"]:.1f} pictures a second step by step, {each["request"]:.1f} request by request,
{each["serial"]:.1f} one after the other ({found["queue"] // 2} callers, each waiting for one at any time;
medians of {found["rounds"]}). Rates are shares of the first. Latency is from when a request was meant to be sent.

| rate | scheduling | p50, s | p95, s | pictures/s | within {SOON:g} s | refused | lost | steps by how many together |
|---|---|---|---|---|---|---|---|---|
{rows}

Refused: 429 with Retry-After. Lost: anything else than a picture or that.
"""


async def run(options: argparse.Namespace) -> dict[str, Any]:
    servers = {schedule: Server(schedule, options.queue) for schedule in SCHEDULES}
    try:
        for server in servers.values():  # sizes are learned, and kernels made
            await capacity(server, options.queue // 2, options.count // 2)
        each: dict[str, list[float]] = {schedule: [] for schedule in SCHEDULES}
        for _ in range(options.rounds):
            for schedule, server in servers.items():
                each[schedule].append(await capacity(server, options.queue // 2, options.count // 2))
        capacities = {schedule: statistics.median(values) for schedule, values in each.items()}
        print("capacity", {name: round(value, 1) for name, value in capacities.items()}, flush=True)
        points = {}
        for share in options.shares:
            rate = share * capacities["step"]
            parts: dict[str, list[Point]] = {schedule: [] for schedule in SCHEDULES}
            windows = WINDOWS if share <= 1 else 1  # else the queue would be empty again before it is full
            for turn in range(windows):
                for schedule, server in servers.items():
                    seed = WINDOWS * int(100 * share) + turn
                    parts[schedule].append(await stream(server, rate, options.count // windows, seed))
            for schedule in SCHEDULES:
                found = points[schedule, share] = together(parts[schedule])
                print(
                    f"{share:g} {schedule}: p50 {found.quantile(0.5):.2f} p95 {found.quantile(0.95):.2f} "
                    f"refused {found.refused} lost {found.lost} of {found.sent}; {spread(found.calls)}",
                    flush=True,
                )
    finally:
        for server in servers.values():
            server.stop()
    return {"capacity": capacities, "points": points}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--card")
    parser.add_argument("--count", type=int, default=480, help="requests a point, 200 or more")
    parser.add_argument("--queue", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shares", type=float, nargs="+", default=list(SHARES))
    options = parser.parse_args(arguments)
    found = asyncio.run(run(options))
    found |= {name: getattr(options, name) for name in ("count", "queue", "rounds", "shares")}
    found["command"] = shlex.join(
        ["python", "benchmarks/serve_load.py", *(sys.argv[1:] if arguments is None else arguments)]
    )
    found |= {"machine": machine(), "date": time.strftime("%Y-%m-%d", time.gmtime())}
    text = card(found)
    if options.card is not None:
        Path(options.card).write_text(text, "utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    sys.exit(main())

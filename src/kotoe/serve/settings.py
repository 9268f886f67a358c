"""What `kotoe serve` can be told: where it listens, who may ask, how much, and how long results are kept."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kotoe import builtin
from kotoe.errors import UserError

KEY = re.compile(r"[!-~]{16,200}")  # visible ASCII: it goes into headers
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?")


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Where, for whom, and how much.

    model:            models to serve, each a name, built in or on the hub, a folder, or a single file; the first one
                      is drawn with where a request names none.
    host:             address to listen on; only this machine's own by default. 0.0.0.0 is every one it has.
    port:             port to listen on; 0 takes a free one, and says which.
    keys:             a file with one NAME:KEY a line, keys of 16 characters or more. Then every request needs one: as
                      a bearer token, or by HTTP Basic with the name as user. Without it whoever reaches the port draws.
    cors:             origins whose pages may ask this server, such as https://example.org; none by default. Without
                      keys it is known by their hosts' names, too.
    store:            file of the jobs and their pictures; by default serve.sqlite in the user's state folder. "none"
                      keeps them in memory alone, and they end with the server.
    keep_hours:       how long results are kept, above 0.
    max_pixels:       the largest width x height that is drawn; pictures to start from may have 16 times as many pixels.
    max_steps:        the most steps.
    max_n:            the most pictures of one request.
    max_prompt_chars: the longest prompt, and negative prompt.
    max_body_mb:      the largest body of a request, in MB.
    max_waiting:      pictures that may wait; a request beyond it gets 429 and the time after which to try again.
    rate:             pictures a minute of one key, or of one address where there are no keys; 0 is any number.
    body_seconds:     a request whose body has not come whole after so long is given up.
    together:         the most pictures in one call of the network; how many it pays for is learned.
    deterministic:    one picture in each call: its bits then don't hang on what is drawn beside it.
    schedule:         what a network computes next: step by step, or, to compare with, request by request with several
                      together, or one after the other.
    log_prompts:      write prompts into the log; they are left out by default.
    fetch_urls:       fetch pictures that a request names by https addresses, of public hosts alone.
    ray:              have replicas on Ray Serve draw, each in a process of its own.
    ray_address:      the Ray cluster they are on; by default one on this machine, which ends with the server.
    min_replicas:     replicas that are always there, 1 or more.
    max_replicas:     replicas when many pictures wait.
    replica_cpus:     processors of each, which are also its threads.
    device:           where to compute: cpu, cuda, cuda:N or mps; cpu by default.
    dtype:            what to compute in; auto as of `kotoe generate`.
    """

    model: tuple[str, ...] = (builtin.DEFAULT,)
    host: str = "127.0.0.1"
    port: int = 7860
    keys: str | None = None
    cors: tuple[str, ...] = ()
    store: str | None = None
    keep_hours: float = 24.0
    max_pixels: int = 1536 * 1024  # the largest of OpenAI's own sizes
    max_steps: int = 150
    max_n: int = 10
    max_prompt_chars: int = 20_000
    max_body_mb: int = 32
    max_waiting: int = 256
    rate: int = 0
    body_seconds: float = 30.0
    together: int = 16
    deterministic: bool = False
    schedule: Literal["step", "request", "serial"] = "step"
    log_prompts: bool = False
    fetch_urls: bool = False
    ray: bool = False
    ray_address: str | None = None
    min_replicas: int = 1
    max_replicas: int = 2
    replica_cpus: int = 1
    device: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    def __post_init__(self) -> None:
        if not self.model:
            raise UserError("no model", allowed="one or more")
        if not 0 <= self.port <= 65535:
            raise UserError(f"port {self.port}", allowed="0 to 65535")
        for name in ("keep_hours", "body_seconds"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{name} {getattr(self, name)}", allowed="above 0")
        if self.ray_address is not None and not self.ray:
            raise UserError(f"ray_address {self.ray_address} without ray", allowed="--ray with --ray-address")
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise UserError(
                f"min_replicas {self.min_replicas}, max_replicas {self.max_replicas}", allowed="1 or more, and in order"
            )
        for name in (
            "replica_cpus",
            "max_pixels",
            "max_steps",
            "max_n",
            "max_prompt_chars",
            "max_body_mb",
            "max_waiting",
            "together",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)}", allowed="1 or more")
        if self.rate < 0:
            raise UserError(f"rate {self.rate}", allowed="0 (any number), or pictures a minute")
        for origin in self.cors:
            if not ORIGIN.fullmatch(origin):
                raise UserError(f"cors {origin!r}", allowed="origins, such as https://example.org:8443")


def read_keys(path: str | Path) -> Mapping[str, str]:
    """Name by key, of a file with one NAME:KEY a line; empty lines and those with # are passed over.

    Raises UserError for a line that is otherwise, for a key or a name that is there twice, and for a file that others
    than its owner can read.
    """
    path = Path(path)
    try:
        text, mode = path.read_text("utf-8"), path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"can't read keys {path}: {error}", allowed="a text file with NAME:KEY lines") from error
    if os.name == "posix" and mode & 0o077:
        raise UserError(f"keys {path} can be read by others", allowed="a file of its owner's alone", hint="chmod 600")
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, key = line.strip().partition(":")
        if not NAME.fullmatch(name) or not KEY.fullmatch(key):
            raise UserError(
                f"{path}, line {number} is no NAME:KEY",
                allowed="a name of letters, digits, . _ -, and a key of 16 to 200 visible ASCII characters",
            )
        if key in found or name in found.values():
            raise UserError(f"{path}, line {number}: a name or key that is there already", allowed="each once")
        found[key] = name
    if not found:
        raise UserError(f"{path} has no keys", allowed="one NAME:KEY a line")
    return found


def state_folder() -> Path:
    """Where a user's programs keep what isn't settings and outlives them."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "kotoe"

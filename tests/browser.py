"""A real Chromium, seen from a test of the page: each window has fresh storage, and what goes wrong in it is kept."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

from PIL import Image

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
REFUSED = re.compile(r"Failed to load resource: the server responded with a status of (\d+)")
VIOLATIONS = """addEventListener("securitypolicyviolation",
    (event) => console.error("CSP:", event.violatedDirective, event.blockedURI, event.sourceFile))"""


def chromium() -> str | None:
    """The browser's program, if this machine has one."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


@contextmanager
def browser() -> Iterator[Any]:
    """A browser without a window of its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


class Window:
    """The page in a window. refusals: statuses over 399 that the test expects; anything else wrong fails it.

    sent: bodies of POST /kotoe/v1/jobs, in their order.
    """

    def __init__(self, running: Any, address: str, refusals: tuple[int, ...] = (), **options: Any) -> None:
        self.context = running.new_context(**{"locale": "en-US", "viewport": {"width": 1280, "height": 900}, **options})
        self.context.add_init_script(VIOLATIONS)
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)  # milliseconds
        self.address, self.refusals = address, refusals
        self.wrong: list[str] = []
        self.sent: list[dict[str, Any]] = []
        self.languages: list[str] = []
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.wrong.append(f"uncaught: {error}"))
        self.page.on("request", self._asked)
        self.page.goto(address)

    def _heard(self, message: Any) -> None:
        refused = REFUSED.match(message.text)
        if refused and int(refused[1]) in self.refusals:
            return
        if message.type in ("error", "warning"):
            self.wrong.append(message.text)

    def _asked(self, request: Any) -> None:
        if request.method == "POST" and request.url.endswith("/kotoe/v1/jobs"):
            self.sent.append(json.loads(request.post_data))
            self.languages.append(request.headers.get("accept-language", ""))

    def ready(self) -> None:
        """Wait until all of the page works."""
        self.page.wait_for_selector("html[data-ready]")

    def draw(self, prompt: str, **fields: str | int) -> str:
        """Fill the form and send it; the job's id."""
        page, before = self.page, self.page.locator(".card").count()
        page.fill("#prompt", prompt)
        for name, value in fields.items():
            if not page.is_visible(f"#{name}"):
                page.click("#more summary")
            page.fill(f"#{name}", str(value))
        page.click("#draw")
        page.wait_for_function("n => document.querySelectorAll('.card').length > n", arg=before)
        return str(page.locator(".card").first.get_attribute("data-id"))

    def state(self, job: str, state: str) -> Any:
        """Wait until a card is in a state; the card."""
        self.page.wait_for_selector(f'.card[data-id="{job}"][data-state="{state}"]')
        return self.page.locator(f'.card[data-id="{job}"]')

    def tab_to(self, selector: str, most: int = 60) -> None:
        """Press Tab until the focus is on what the selector says."""
        for _ in range(most):
            if self.page.evaluate("s => document.activeElement.matches(s)", selector):
                return
            self.page.keyboard.press("Tab")
        raise AssertionError(f"Tab never comes to {selector}")

    def focused(self) -> str:
        """What has the focus, as a tag with id or label."""
        return str(
            self.page.evaluate(
                "(e => e.tagName + '#' + e.id + ' ' + (e.getAttribute('aria-label') ?? e.textContent).slice(0, 40))"
                "(document.activeElement)"
            )
        )

    def wide(self) -> int:
        """Pixels by which the page is wider than the window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - innerWidth"))


Open = Callable[..., Window]


def picture(data_url: str) -> Image.Image:
    """The picture of a data URL."""
    return Image.open(BytesIO(base64.b64decode(data_url.partition(",")[2])))

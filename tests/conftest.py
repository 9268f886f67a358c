"""What holds for every test: no network, no home, one thread, and no skip that nobody meant.

The environment is set while this file is imported, before anything could import torch or a hub client.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

import browser
from hub_server import Hub

HOME = Path(tempfile.mkdtemp(prefix="kotoe-tests-"))
os.environ.update(
    HOME=str(HOME),
    XDG_CACHE_HOME=str(HOME / "cache"),
    XDG_CONFIG_HOME=str(HOME / "config"),
    HF_HOME=str(HOME / "hub"),
    TORCH_HOME=str(HOME / "torch"),
    HF_HUB_OFFLINE="1",  # holds in subprocesses too, where sockets aren't blocked
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    OMP_NUM_THREADS="1",  # two workers on two cores; and sums in one order
    TOKENIZERS_PARALLELISM="false",
    NO_COLOR="1",
    COLUMNS="120",
)

# The same examples on every machine and in every run; a loaded machine is no failure.
settings.register_profile("kotoe", derandomize=True, deadline=None)
settings.load_profile("kotoe")

ROOT = Path(__file__).resolve().parent.parent
UNICODE = Path("/usr/share/unicode")


def _emoji_font() -> bool:
    folders = (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), Path("/Library/Fonts"))
    return any(next(folder.rglob("NotoColorEmoji.ttf"), None) for folder in folders if folder.is_dir())


def _protobuf() -> bool:
    return find_spec("google") is not None and find_spec("google.protobuf") is not None


def _browser() -> bool:
    return find_spec("playwright") is not None and browser.chromium() is not None


# name -> (is it here, what to install). Tests say `@pytest.mark.needs("cldr")`; nothing else may skip.
NEEDS: dict[str, tuple[Callable[[], bool], str]] = {
    "chromium": (_browser, "chromium"),
    "emoji-font": (_emoji_font, "fonts-noto-color-emoji"),
    "cldr": (lambda: (UNICODE / "cldr/common/annotations/ja.xml").is_file(), "unicode-cldr-core"),
    "protobuf": (_protobuf, "protobuf, which the extra kotoe[translate] brings"),
    "unicode-data": (lambda: (UNICODE / "emoji/emoji-test.txt").is_file(), "unicode-data"),
}

# Skips that don't come from the marker: a pattern of the reason, and why it is allowed.
ALLOWED_SKIPS: dict[str, str] = {
    r"^rinna's tokenizer is not at hand": "a third party's file of 0.8 MB, which we don't ship",
    r"^keras-cv is not at hand": "an oracle that brings TensorFlow along; the reference in NumPy runs everywhere",
    r"^no CUDA device": "the same test runs on the CPU above it",
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        here, package = NEEDS[marker.args[0]]
        if here():
            continue
        reason = f"needs {marker.args[0]} (package {package})"
        if os.environ.get("KOTOE_TEST_ALL_DATA") == "1":
            pytest.fail(f"{reason}, and KOTOE_TEST_ALL_DATA=1 says that it is installed")
        pytest.skip(reason)


def _unexpected(reason: str) -> bool:
    return not reason.startswith("needs ") and not any(re.search(p, reason) for p in ALLOWED_SKIPS)


def _refuse(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip that nobody allowed into a failure."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if _unexpected(reason):
        report.outcome = "failed"
        report.longrepr = f"unexpected skip: {reason!r}. Use @pytest.mark.needs(...), see tests/conftest.py."


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    _refuse(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    report = yield
    _refuse(report)
    return report


def pytest_unconfigure() -> None:
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


# --- A hub of our own (hub_server.py), one for a module


@pytest.fixture(scope="module")
def hub_folder() -> Iterator[Path]:
    """Of the hub and of its clients' caches."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def running_hub(hub_folder: Path) -> Iterator[Hub]:
    server = Hub(hub_folder)
    yield server
    server.close()


@pytest.fixture
def server(running_hub: Hub) -> Hub:
    """The hub without faults."""
    running_hub.told()
    return running_hub


# --- The page of a server of our own, in a browser


@pytest.fixture(scope="module")
def page_server() -> Iterator[str]:
    """The address of a server with the built-in model."""
    from serving import serving

    with serving() as found:
        yield found.url


@pytest.fixture(scope="module")
def running_browser() -> Iterator[Any]:
    with browser.browser() as found:
        yield found


@pytest.fixture
def opened(running_browser: Any, page_server: str) -> Iterator[browser.Open]:
    """Opens the page; afterwards nothing may have gone wrong in any window."""
    windows: list[browser.Window] = []

    def new(address: str = page_server, **options: Any) -> browser.Window:
        windows.append(browser.Window(running_browser, address, **options))
        if address == page_server:
            windows[-1].ready()
        return windows[-1]

    yield new
    for window in windows:
        window.context.close()
    assert [wrong for window in windows for wrong in window.wrong] == []

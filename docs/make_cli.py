"""Write docs/cli.md from the command line itself: python docs/make_cli.py. A test holds that it is up to date."""

from __future__ import annotations

from pathlib import Path

from kotoe.cli import VERBS, help_text

WIDTH = 100
HEAD = """# The command line

Made by `python docs/make_cli.py` from the dataclasses that the verbs are; don't edit it by hand.

Standard output carries data, standard error everything else. Exit codes: 0 done, 1 `kotoe check` found a fault or
`kotoe verify` a changed picture, 2 bad input (a sentence says what was given, what is allowed and what to do), 3 a
safety check blocked something, 130 interrupted: what was finished is kept.
"""


def page() -> str:
    """The whole page."""
    blocks = [f"## {name}\n\n```text\n{help_text(name, WIDTH)}\n```\n" for name in VERBS]
    return "\n".join([HEAD, f"```text\n{help_text(None, WIDTH)}\n```\n", *blocks])


if __name__ == "__main__":
    Path(__file__).with_name("cli.md").write_text(page(), encoding="utf-8")

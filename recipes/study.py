"""The study behind docs/localization.md, all of it: plans, budgets and languages beside each other on the emoji world.

    kotoe train recipes/study.py --run runs/study

Studies of `kotoe study localization`, each with its tables and pictures in a folder of the run: `plans`, every plan
that needs no encoder from elsewhere, in Japanese, Chinese and Korean at three budgets or more, and in Japanese from
wherever a student can start; `languages`, the best text-only plan in further ones. And `together`: encoders that
several languages share, and what they reach (`emoji_languages.py`). What is done is kept: the same command goes on.
What came of it, and how long it took: benchmarks/localization.md. threads: torch's own choice by default.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kotoe.localize.settings import Studying
from kotoe.study import study
from recipes import emoji_languages

CJK = ("ja", "zh", "ko")
FURTHER = (
    "sw", "hi", "ar", "th", "el", "fi", "he", "fa", "ru", "bn", "ta", "te", "ka", "hy", "vi", "id", "tr", "hu", "fr",
    "de", "es", "pl", "uk", "it", "pt", "nl", "am", "km", "my", "ne", "mn", "ur", "ml", "si", "cs", "ro", "sv", "eu",
    "zh-Hant",
)  # fmt: skip
TEXT_ONLY = ("distil-pooled", "distil-reader", "distil-states")
SIZES: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "cpu": (
        ("plans", {"languages": CJK, "plans": ("distil-behind",), "budgets": (50, 150, 500, 1200)}),
        ("plans", {"languages": CJK, "plans": TEXT_ONLY, "budgets": (50, 150, 500)}),
        ("plans", {"languages": CJK, "plans": ("stage1",), "budgets": (0, 50, 150, 500)}),
        ("plans", {"languages": ("ja",), "starts": ("aligned", "warm", "scratch"), "budgets": (0, 50, 150, 500)}),
        ("languages", {"languages": FURTHER, "budgets": (500,), "n": 100}),
    ),
}


def stages(run: Path, size: str, *, seed: int = 0, threads: int | None = None) -> list[Studying]:
    """The studies, those of one folder add to each other's tables."""
    return [Studying(out=str(run / name), seed=seed, threads=threads, **asked) for name, asked in SIZES[size]]


def main(run: str | Path, *, size: str = "cpu", seed: int = 0, threads: str | None = None) -> None:
    """Everything that is not done yet."""
    for wanted in stages(Path(run), size, seed=seed, threads=None if threads is None else int(threads)):
        study(wanted, say=print)
    emoji_languages.main(Path(run) / "together", seed=seed)

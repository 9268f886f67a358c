"""Safety checks round the drawing of `kotoe generate`: what they say, and what is done about it.

Prompts are checked before anything is drawn, pictures before they are written. Whatever is found is said on standard
error and stands in the record; what is blocked isn't drawn or written, and the command ends with BLOCKED.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kotoe.config import to_json
from kotoe.console import say
from kotoe.errors import UserError
from kotoe.record import Verdict
from kotoe.safety.checks import Checks, checker_of, judged

BLOCKED = 3  # exit code


class Guard:
    """The checks of one run. entries: what was blocked, for the JSON document."""

    def __init__(self, checks: Checks, bundle: Any, allow_pickle: bool = False) -> None:
        self.checks = checks
        self.entries: list[dict[str, Any]] = []
        self.prompts: dict[str, Verdict] = {}
        self.checker, self.offsets = checker_of(checks, bundle, allow_pickle, say)
        self.action: Any = checks.safety or "flag"
        if self.checker is not None:
            sha = self.checker.hashes["weights"][:12]
            say(f"safety: pictures are checked by {self.checker.name} (sha256 {sha}), action {self.action}")

    @property
    def config(self) -> dict[str, Any]:
        """The checks as resolved."""
        found = to_json(self.checks)
        return {**found, "safety": self.action if self.checker is not None else self.checks.safety}

    def blocks(self, request: Any, jobs: Sequence[Any]) -> bool:
        """Check each prompt and say what was found. Whether nothing may be drawn."""
        if self.checks.prompt_check == "off":
            return False
        for job in jobs:
            if job.prompt in self.prompts:
                continue
            verdict = prompt_verdict(self.checks, request, job.prompt, job.prompt_language, job.translation)
            self.prompts[job.prompt] = verdict
            if verdict.action == "block" and not verdict.allowed:
                self.entries.append({"prompt": job.prompt, "seed": None, "verdict": to_json(verdict)})
        return bool(self.entries)

    def let(self, picture: Any) -> Any:
        """The picture to write, with the verdicts in its record; None where it is blocked."""
        record = picture.record
        picture = replace(picture, record=replace(record, prompt_verdict=self.prompts.get(record.prompt)))
        if self.checker is None:
            return picture
        from kotoe.safety.images import carry_out, judge

        verdict = judge(
            self.checker,
            [picture.image],
            action=self.action,
            offsets=self.offsets,
            languages=[record.prompt_language],
        )[0]
        if not verdict.allowed:
            done = {"flag": "is flagged", "blur": "is blurred", "block": "is blocked: no file is written"}[self.action]
            say(f"safety: the picture of {record.prompt!r} with seed {record.seed} {done}. {verdict.reason}")
        found = carry_out(picture, verdict)
        if found is None:
            self.entries.append({"prompt": record.prompt, "seed": record.seed, "verdict": to_json(verdict)})
        return found

    def code(self) -> int:
        """The exit code of what was checked."""
        return BLOCKED if self.entries else 0


def prompt_verdict(checks: Checks, request: Any, prompt: str, language: str, translation: Any) -> Verdict:
    """What a check says of a prompt (see safety/checks.py). It is said on standard error, too."""
    verdict = judged(checks, request, prompt, language, translation)
    if not verdict.allowed:
        done = "is blocked: nothing is drawn" if verdict.action == "block" else "is flagged"
        say(f"safety: the prompt {prompt!r} {done}. {verdict.reason}")
    return verdict


def as_recorded(picture: Any, record: Any) -> Any:
    """A picture drawn again: what its record says of it holds for it, too, and what was blurred is blurred."""
    from kotoe.safety.images import carry_out

    picture = replace(picture, record=replace(picture.record, prompt_verdict=record.prompt_verdict))
    verdict = record.picture_verdict
    if verdict is None:
        return picture
    found = carry_out(picture, verdict)
    if found is None:
        raise UserError(
            "the record says that the picture was blocked", allowed="the record of a picture that was drawn"
        )
    return found

"""Safety checks round the drawing of `kotoe generate`: which there are, what they say, and what is done about it.

Prompts are checked before anything is drawn, pictures before they are written. Whatever is found is said on standard
error and stands in the record; what is blocked isn't drawn or written, and the command ends with BLOCKED.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from kotoe.config import to_json
from kotoe.console import say
from kotoe.errors import CheckpointError, UserError
from kotoe.record import Verdict

BLOCKED = 3  # exit code
WITHOUT = "Or draw without a check: --safety off"


@dataclass(frozen=True, kw_only=True)
class Checks:
    """What is checked, and what is done with what isn't allowed.

    safety:           of pictures: off; flag, in the record and on standard error (the default, where the model has a
                      safety checker); blur; or block, then no file is written and the exit code is 3.
    safety_checker:   the folder, or name on the hub, of a checkpoint with a safety checker, or of a checker alone; the
                      model's own by default.
    safety_threshold: added to every threshold of the checker: above 0 less is found, below 0 more.
    safety_concepts:  added to single thresholds, NAME=X each: 0 to 16, special-0 to special-2.
    prompt_check:     of prompts: off; flag, in the record and on standard error; or block, then nothing is drawn and
                      the exit code is 3. Sexual content with minors is blocked unless it is off.
    """

    safety: Literal["off", "flag", "blur", "block"] | None = None
    safety_checker: str | None = None
    safety_threshold: float = 0.0
    safety_concepts: tuple[str, ...] = ()
    prompt_check: Literal["off", "flag", "block"] = "flag"

    def __post_init__(self) -> None:
        if self.safety == "off":
            given = {"safety_checker": self.safety_checker is not None, "safety_threshold": self.safety_threshold != 0}
            for name, there in {**given, "safety_concepts": bool(self.safety_concepts)}.items():
                if there:
                    raise UserError(f"{name} with safety off has no effect", allowed="one of them")


class Guard:
    """The checks of one run. entries: what was blocked, for the JSON document."""

    def __init__(self, checks: Checks, bundle: Any, allow_pickle: bool = False) -> None:
        self.checks = checks
        self.entries: list[dict[str, Any]] = []
        self.prompts: dict[str, Verdict] = {}
        self.checker, self.offsets = _checker(checks, bundle, allow_pickle)
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
    """What a check says of a prompt, of its translation, and of the negative prompt where guidance is below 1, since
    the model draws that then. It is said on standard error, too."""
    from kotoe.reading import said
    from kotoe.safety.prompts import check_prompt

    texts: list[tuple[str, str | None]] = [(prompt, said(request, prompt).words)]
    if request.guidance_scale < 1.0:
        texts.append((request.negative_prompt, said(request, request.negative_prompt).words))
    if translation is not None:
        texts.append((translation.prompt, None))
    action: Literal["flag", "block"] = "block" if checks.prompt_check == "block" else "flag"
    verdicts = [check_prompt(text, read=read, language=language, action=action) for text, read in texts]
    refused = sorted((v for v in verdicts if not v.allowed), key=lambda v: v.action)  # "block" before "flag"
    verdict = refused[0] if refused else verdicts[0]
    if refused:
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


def _checker(checks: Checks, bundle: Any, allow_pickle: bool) -> tuple[Any, Any]:
    """The ImageChecker and Offsets to use, or None where there is none and none was asked for."""
    if checks.safety == "off":
        return None, None
    from kotoe.safety.load import load_checker, names_checker, own_checker

    folder: Path | None = bundle.folder
    source: str | Path | None = checks.safety_checker
    if source is None and folder is not None:
        with _or_without(checks):
            source = own_checker(folder)
    if source is None:
        asked = {"safety": checks.safety, "safety_threshold": checks.safety_threshold or None}
        for name, value in {**asked, "safety_concepts": checks.safety_concepts or None}.items():
            if value is not None:
                raise UserError(
                    f"{name} {value} for {bundle.name}, which has no safety checker",
                    allowed="a model's folder with safety_checker/ and feature_extractor/, or none of these options",
                    hint="--safety-checker FOLDER takes the one of another checkpoint; prompts are checked either way",
                )
        if folder is not None and names_checker(folder):
            say(
                f"safety: {bundle.name} names a safety checker that isn't in its folder, so pictures aren't checked; "
                "--safety-checker NAME takes one"
            )
        return None, None
    from kotoe.safety.images import Offsets

    offsets = Offsets(every=checks.safety_threshold, concept=_single(checks.safety_concepts))
    device = None if bundle.low_memory else bundle.device
    with _or_without(checks):
        return load_checker(source, allow_pickle=allow_pickle, device=device), offsets


@contextmanager
def _or_without(checks: Checks) -> Iterator[None]:
    """Errors of a checker that nobody asked for say how to draw without it."""
    try:
        yield
    except CheckpointError as error:
        if checks.safety is not None or checks.safety_checker is not None:
            raise
        hint = f"{error.hint}. {WITHOUT}" if error.hint else WITHOUT
        raise CheckpointError(error.given, allowed=error.allowed, hint=hint) from None


def _single(given: Sequence[str]) -> Mapping[str, float]:
    """NAME=X each as a table."""
    found: dict[str, float] = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            raise UserError(f"safety_concepts {text!r}", allowed="NAME=X, such as 3=0.05 or special-1=-0.02") from None
        if name in found:
            raise UserError(f"safety_concepts names {name} twice", allowed="each once")
        found[name] = number
    return found

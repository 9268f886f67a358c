"""Which safety checks there are for a command or a server, and what they find. What is done about it is theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kotoe.errors import CheckpointError, UserError
from kotoe.record import Verdict

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


def judged(checks: Checks, request: Any, prompt: str, language: str, translation: Any) -> Verdict:
    """What a check says of a prompt, of its translation, and of the negative prompt where guidance is below 1, since
    the model draws that then."""
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
    return refused[0] if refused else verdicts[0]


def checker_of(checks: Checks, bundle: Any, allow_pickle: bool, note: Callable[[str], None]) -> tuple[Any, Any]:
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
            note(
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

"""Where pictures come from, on the command line: watermarks and signatures of `kotoe generate`, verifying them, trials.

A verb that finds a picture changed ends with CHANGED.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kotoe.config import to_json
from kotoe.console import Common, Values, finish, part_of, say, show_config
from kotoe.errors import UserError

if TYPE_CHECKING:
    from kotoe.provenance.c2pa import Signer

CHANGED = 1  # exit code
LARGEST_ANCHORS_BYTES = 2**22


@dataclass(frozen=True, kw_only=True)
class Marking:
    """What pictures carry beside their record, to say where they come from. All of it is off by default.

    watermark:   a number of yours, 0 to 65535, put into the pixels of pictures of 128 pixels or more: hardly seen, and
                 `kotoe verify` finds it when texts are gone. A replay puts in the record's.
    c2pa:        sign each picture (C2PA): a folder with certificate.pem and key.pem, as `kotoe certificate` makes, or a
                 certificate chain's PEM file with key.pem beside it.
    c2pa_key:    the private key's PEM file, where it is another.
    c2pa_prompt: say the prompts in the signed manifest, too; the record beside it has them anyway.
    """

    watermark: int | None = None
    c2pa: str | None = None
    c2pa_key: str | None = None
    c2pa_prompt: bool = False

    def __post_init__(self) -> None:
        if self.watermark is not None and not 0 <= self.watermark < 2**16:
            raise UserError(f"watermark {self.watermark}", allowed=f"0 to {2**16 - 1}")
        if self.c2pa is None:
            for name, there in (("c2pa_key", self.c2pa_key is not None), ("c2pa_prompt", self.c2pa_prompt)):
                if there:
                    raise UserError(f"{name} without c2pa", allowed="--c2pa FOLDER with it, or neither")


@dataclass(frozen=True, kw_only=True)
class Verifying:
    """What to verify.

    pictures: files: PNG, JPEG or WebP.
    trust:    a PEM file of certificates whose signatures are trusted, such as root.pem of `kotoe certificate`.
    """

    pictures: tuple[str, ...]
    trust: str | None = None


@dataclass(frozen=True, kw_only=True)
class Certifying:
    """What certificate to make.

    folder: where to: it gets certificate.pem, key.pem and root.pem, and may have none of them yet.
    name:   the organisation's, as those who verify pictures see it.
    days:   how long it is valid.
    """

    folder: str
    name: str = "Kotoe trial"
    days: int = 365


# --- generate -------------------------------------------------------------------------------------


def signer(marking: Marking) -> Signer | None:
    """Who signs, None: nobody. Reads and tries the certificate, before anything is drawn."""
    if marking.c2pa is None:
        return None
    from kotoe.provenance.c2pa import key_place, open_to_others, signer_of

    found = signer_of(marking.c2pa, marking.c2pa_key, prompt=marking.c2pa_prompt)
    if open_to_others(key := key_place(marking.c2pa, marking.c2pa_key)):
        say(f"note: others on this machine may read {key}; chmod 600 keeps it to you")
    return found


def check_size(marking: Marking, width: int, height: int) -> None:
    """Raise a UserError where pictures are too small for the watermark that was asked for."""
    if marking.watermark is not None:
        from kotoe.provenance.watermark import check_size as check

        check(width, height)


# --- verify ---------------------------------------------------------------------------------------


def verify(common: Common, values: Values) -> int:
    """Say of each picture where it comes from."""
    wanted: Verifying = part_of(values, Verifying)
    if common.dry_run:
        show_config("verify", to_json(wanted))
        finish(common, {"dry_run": True, "config": to_json(wanted)}, [])
        return 0
    from kotoe.images import read_bytes
    from kotoe.provenance.verify import verify as look

    anchors = "" if wanted.trust is None else _anchors(Path(wanted.trust))
    found, lines = [], []
    for path in wanted.pictures:
        what = to_json(look(read_bytes(path, f"picture {path}"), f"picture {path}", anchors=anchors))
        found.append({"path": path, **what})
        lines += _lines(path, what)
    changed = any(one["changed"] for one in found)
    finish(common, {"pictures": found, "changed": changed}, [_plain(line) for line in lines])
    return CHANGED if changed else 0


def _anchors(path: Path) -> str:
    allowed = "a PEM file of certificates"
    try:
        if path.stat().st_size > LARGEST_ANCHORS_BYTES:
            raise UserError(f"{path} has {path.stat().st_size} bytes", allowed=f"{LARGEST_ANCHORS_BYTES} at most")
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}", allowed=allowed) from error
    if "BEGIN CERTIFICATE" not in text:
        raise UserError(f"{path} holds no certificate", allowed=allowed)
    return text


def _lines(path: str, found: Mapping[str, Any]) -> list[str]:
    signature, record, mark = found["signature"], found["record"], found["watermark"]
    by = f"{signature['issuer']} ({signature['signer']}), {signature['when'] or 'no time said'}"
    by += f"; {signature['generator'] or 'no program said'}: {signature['source'] or 'no source said'}"
    by += f", model {signature['model']}" if signature["model"] else ""
    faults = "; ".join(signature["faults"])
    drawn = f"Kotoe {record['kotoe']}, model {record['model']}, seed {record['seed']}"
    score = f"score {mark['score']:.1f}, p " + ("below 1e-99" if mark["p_value"] < 1e-99 else f"{mark['p_value']:.1g}")
    says = {
        "none": "none",
        "trusted": f"valid and trusted: {by}",
        "valid": f"valid, not trusted: {by}",
        "lapsed": f"valid but for its certificate: {by}; {faults}",
        "broken": f"DOES NOT HOLD: {faults}",
        "unchecked": "there may be one; it takes pip install 'kotoe[provenance]' to look at it",
    }
    records = {
        "none": "none",
        "whole": f"{drawn}; pixels and record are those that the file was written with",
        "bare": f"{drawn}; no digest says whether pixels and record are as they were",
        "changed": f"CHANGED: {drawn}",
        "unreadable": "CAN'T BE READ",
    }
    texts = {
        "none": "none",
        "agrees": "agrees with the record",
        "differs": "SAYS OTHER THAN THE RECORD",
        "alone": f"of {found['tool']}, no record beside it",
    }
    return [
        f"{path}:",
        f"  signature: {says[signature['state']]}",
        f"  record: {records[record['state']]}",
        f"  parameters: {texts[found['parameters']]}",
        f"  watermark: {'number ' + str(mark['number']) if mark['found'] else 'none found'} ({score})",
        f"  {found['conclusion']}",
    ]


def _plain(line: str) -> str:
    """What a terminal may be given of a line that has others' words in it."""
    return "".join(c if c.isprintable() else "\ufffd" for c in line)


# --- certificate ----------------------------------------------------------------------------------


def certificate(common: Common, values: Values) -> int:
    """Make a certificate for trials."""
    wanted: Certifying = part_of(values, Certifying)
    show_config("certificate", to_json(wanted))
    if common.dry_run:
        finish(common, {"dry_run": True, "config": to_json(wanted)}, [])
        return 0
    from kotoe.provenance.c2pa import signer_of
    from kotoe.provenance.certificate import ROOT, make

    place = make(wanted.folder, wanted.name, days=wanted.days)
    signer_of(place)
    say(
        "note: nobody trusts this certificate but those who are given root.pem; to be trusted by others' programs, one "
        "has to come from an authority on C2PA's trust list"
    )
    files = {name: str(place / f"{name}.pem") for name in ("certificate", "key")} | {"root": str(place / ROOT)}
    finish(common, files, list(files.values()))
    return 0

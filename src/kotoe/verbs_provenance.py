"""Where pictures come from, on the command line: verifying them, and certificates for trials.

A verb that finds a picture changed ends with CHANGED.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kotoe.config import to_json
from kotoe.console import Common, Values, finish, part_of, say, show_config
from kotoe.errors import UserError

CHANGED = 1  # exit code
LARGEST_ANCHORS_BYTES = 2**22


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

"""Signed manifests (C2PA) in pictures, written and read through c2pa-python (`pip install 'kotoe[provenance]'`).

The manifest says that a generator made the picture (c2pa.created, trainedAlgorithmicMedia), which model by the sha256
of its parts, and when by this machine's clock. It covers every byte of the file: whatever is changed or added
afterwards, be it a text, breaks it. The prompt isn't in it unless asked for; but the record beside it, which it covers,
has it.
"""

from __future__ import annotations

import json
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from kotoe import __version__
from kotoe.errors import UserError
from kotoe.record import Record

CERTIFICATE, KEY = "certificate.pem", "key.pem"  # in a folder
LARGEST_PEM_BYTES = 2**20
ACTIONS = "c2pa.actions.v2"
GENERATION = "kotoe.generation"  # label of our own assertion
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/"
# nothing is fetched for a file that comes from anywhere, and no thumbnail is put beside a small picture
ALONE: dict[str, dict[str, Any]] = {
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
    "builder": {"thumbnail": {"enabled": False}},
}


def _c2pa() -> Any:
    try:
        import c2pa
    except ImportError as error:
        raise UserError("C2PA needs c2pa-python", hint="pip install 'kotoe[provenance]'") from error
    return c2pa


@dataclass(frozen=True, kw_only=True)
class Signer:
    """Who signs: a certificate chain, the signer's own first, and its private key (ES256), both PEM text.

    prompt: put the prompts into the manifest, too.
    """

    certificate: bytes
    key: bytes
    prompt: bool = False

    def sign(self, content: bytes, media: str, record: Record) -> bytes:
        """The file with a signed manifest. media: its type, "image/png", "image/jpeg" or "image/webp"."""
        return self._signed(content, media, self.manifest(record))

    def check(self) -> None:
        """Sign something small: a UserError says what doesn't fit."""
        file = BytesIO()
        Image.new("RGB", (16, 16)).save(file, "PNG")
        action = {"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE + "trainedAlgorithmicMedia"}
        self._signed(file.getvalue(), "image/png", _document([{"label": ACTIONS, "data": {"actions": [action]}}]))

    def _signed(self, content: bytes, media: str, manifest: dict[str, Any]) -> bytes:
        c2pa, out = _c2pa(), BytesIO()
        info = c2pa.C2paSignerInfo(c2pa.C2paSigningAlg.ES256, self.certificate, self.key, None)
        try:
            with c2pa.Signer.from_info(info) as signer, c2pa.Context.from_dict(ALONE) as context:
                with c2pa.Builder(manifest, context) as builder:
                    builder.sign(signer, media, BytesIO(content), out)
        except c2pa.C2paError as error:
            raise UserError(
                f"this certificate and key can't sign the picture: {error}",
                allowed="a certificate for P-256 (ES256) as C2PA asks for it, its chain after it, and its own key",
                hint="kotoe certificate FOLDER makes a pair for trials",
            ) from error
        return out.getvalue()

    def manifest(self, record: Record) -> dict[str, Any]:
        """What is signed beside the file's bytes."""
        generated = "trainedAlgorithmicMedia"
        kind = generated if record.init_image is None else "compositeWithTrainedAlgorithmicMedia"
        generation: dict[str, Any] = {
            "model": record.model.name,
            "unet_sha256": record.model.unet_sha256,
            "vae_sha256": record.model.vae_sha256,
            "text_encoder_sha256": record.conditioner.text_encoder_sha256,
            "tokenizer_sha256": record.conditioner.tokenizer_sha256,
        }
        for adapter in record.adapters:
            generation.setdefault("adapters", {})[adapter.name] = adapter.sha256
        if record.watermark is not None:
            generation["watermark"] = str(record.watermark)
        if self.prompt:
            generation |= {"prompt": record.prompt, "negative_prompt": record.negative_prompt}
        action = {
            "action": "c2pa.created",
            "when": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "digitalSourceType": SOURCE_TYPE + kind,
            "softwareAgent": {"name": "Kotoe", "version": __version__},
        }
        actions = {"label": ACTIONS, "data": {"actions": [action]}}
        return _document([actions, {"label": GENERATION, "data": generation}])


def _document(assertions: list[dict[str, Any]]) -> dict[str, Any]:
    return {"claim_generator_info": [{"name": "Kotoe", "version": __version__}], "assertions": assertions}


def signer_of(place: str | Path, key: str | Path | None = None, *, prompt: bool = False) -> Signer:
    """The Signer of a folder with certificate.pem and key.pem, or of a certificate chain's file with key.pem beside it.

    key: the key's file, where it is another. Signs something at once: a UserError says what doesn't fit.
    """
    _c2pa()
    chain = _pem(_chain_place(place), "CERTIFICATE")
    found = Signer(certificate=chain, key=_pem(key_place(place, key), "PRIVATE KEY"), prompt=prompt)
    found.check()
    return found


def _chain_place(place: str | Path) -> Path:
    return Path(place) / CERTIFICATE if Path(place).is_dir() else Path(place)


def key_place(place: str | Path, key: str | Path | None = None) -> Path:
    """The file of the key for a place as `signer_of` takes it."""
    return _chain_place(place).parent / KEY if key is None else Path(key)


def open_to_others(key: Path) -> bool:
    """Whether others on this machine may read a key's file."""
    return bool(key.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))


def _pem(path: Path, what: str) -> bytes:
    try:
        if not path.is_file():
            raise UserError(
                f"{path} is no file",
                allowed=f"PEM with a {what}",
                hint="kotoe certificate FOLDER makes a certificate and a key for trials",
            )
        if path.stat().st_size > LARGEST_PEM_BYTES:
            raise UserError(f"{path} has {path.stat().st_size} bytes", allowed=f"{LARGEST_PEM_BYTES} at most")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}", allowed=f"PEM with a {what}") from error
    if what.encode() not in content or b"\0" in content:
        raise UserError(f"{path} holds no {what}", allowed=f"PEM text with -----BEGIN {what}-----")
    return content


# --- Reading ----------------------------------------------------------------------------------------


State = Literal["none", "trusted", "valid", "lapsed", "broken", "unchecked"]


@dataclass(frozen=True, kw_only=True)
class Signed:
    """What a file's manifest says, and whether it holds.

    state:    none, there is none; trusted, it holds and its signer is one of those asked for; valid, it holds, and the
              signer is whoever says so; lapsed, the same with a certificate that isn't good (any more); broken, the
              file or the manifest was changed; unchecked, c2pa-python isn't here.
    signer:   as its certificate calls it; issuer: whoever issued that.
    when:     by a timestamp authority's clock where there is a timestamp, else by the signer's.
    source:   digitalSourceType, without its prefix. generator: the program that made the manifest.
    model:    name of the model, of Kotoe's own assertion.
    faults:   what doesn't hold, in c2pa's words.
    """

    state: State
    signer: str = ""
    issuer: str = ""
    when: str = ""
    source: str = ""
    generator: str = ""
    model: str = ""
    faults: tuple[str, ...] = ()


def read(content: bytes, media: str, anchors: str = "") -> Signed:
    """What the manifest of a file says. anchors: PEM text of certificates to trust; none by default."""
    try:
        c2pa = _c2pa()
    except UserError:
        there = any(mark in content for mark in (b"caBX", b"jumb", b"C2PA"))
        return Signed(state="unchecked" if there else "none")
    wanted = {**ALONE, "verify": {**ALONE["verify"], "verify_trust": True}}
    if anchors:
        wanted["trust"] = {"trust_anchors": anchors}
    try:
        with c2pa.Context.from_dict(wanted) as context, c2pa.Reader(media, BytesIO(content), context=context) as reader:
            document = json.loads(reader.json())
            state = reader.get_validation_state()
    except c2pa.C2paError.ManifestNotFound:
        return Signed(state="none")
    except (c2pa.C2paError, ValueError, RecursionError) as error:
        return Signed(state="broken", faults=(str(error)[:300],))
    manifest = document.get("manifests", {}).get(document.get("active_manifest"), {})
    results = document.get("validation_results", {}).get("activeManifest", {})
    faults = [f"{fault.get('code')}: {fault.get('explanation', '')}" for fault in results.get("failure", ())]
    faults = [fault for fault in faults if not fault.startswith("signingCredential.untrusted")]
    states: dict[Any, State] = {"Trusted": "trusted", "Valid": "valid"}
    only_the_signers = all(fault.startswith("signingCredential.") for fault in faults)
    otherwise: State = "lapsed" if faults and only_the_signers else "broken"
    info = manifest.get("signature_info") or {}
    data = {assertion.get("label"): assertion for assertion in manifest.get("assertions") or ()}
    generator = (manifest.get("claim_generator_info") or [{}])[0]
    action = _first_action(data.get(ACTIONS, {}))
    own = data.get(GENERATION, {}).get("data")
    return Signed(
        state=states.get(state, otherwise),
        signer=_text(info.get("common_name")),
        issuer=_text(info.get("issuer")),
        when=_text(info.get("time") or action.get("when")),
        source=_text(action.get("digitalSourceType")).removeprefix(SOURCE_TYPE),
        generator=f"{_text(generator.get('name'))} {_text(generator.get('version'))}".strip(),
        model=_text(own.get("model")) if isinstance(own, dict) else "",
        faults=tuple(fault[:300] for fault in faults),
    )


def _first_action(assertion: dict[str, Any]) -> dict[str, Any]:
    actions = assertion.get("data", {}).get("actions") if isinstance(assertion.get("data"), dict) else None
    first = actions[0] if isinstance(actions, list) and actions else {}
    return first if isinstance(first, dict) else {}


def _text(value: Any) -> str:
    return value[:300] if isinstance(value, str) else ""

"""What a picture's file says of where it comes from, layer by layer, and whether the layers contradict each other.

The layers: the signature (C2PA), Kotoe's record with its digest, the text `parameters`, the watermark. Only the
signature proves anything, and only of whoever holds its key; texts can be written by anybody, and a watermark, too.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from kotoe import images
from kotoe.config import foreign_json, from_json
from kotoe.errors import UserError
from kotoe.provenance import c2pa
from kotoe.provenance.encode import Digest
from kotoe.provenance.infotext import KEY, from_infotext, infotext, read_settings
from kotoe.provenance.watermark import Mark, detect
from kotoe.record import Record

COMPARED = ("prompt", "negative_prompt", "seed", "steps", "width", "height", "sampler", "guidance_scale")


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What Kotoe's record in a file says.

    state:     none; whole, its digest fits; bare, it has no digest; changed, a digest doesn't fit; unreadable.
    pixels:    whether the pixels are those that the file was written with; None: no digest says it.
    unchanged: whether the record is.
    kotoe, model, prompt, seed, watermark: of the record.
    """

    state: Literal["none", "whole", "bare", "changed", "unreadable"]
    pixels: bool | None = None
    unchanged: bool | None = None
    kotoe: str = ""
    model: str = ""
    prompt: str = ""
    seed: int | None = None
    watermark: int | None = None


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What every layer says, and what that comes to.

    signature:  the C2PA manifest. record: Kotoe's own.
    parameters: the text that many programs write: none, agrees (with the record), differs, or alone (no record).
    tool:       the program that the texts name; "" without any.
    watermark:  what was read from the pixels.
    changed:    what shows that the file was changed since it was made, a sentence each; empty: nothing contradicts.
    conclusion: what it comes to, in a few sentences.
    """

    signature: c2pa.Signed
    record: Recorded
    parameters: Literal["none", "agrees", "differs", "alone"]
    tool: str
    watermark: Mark
    changed: tuple[str, ...]
    conclusion: str


def verify(content: bytes, name: str = "the picture", *, anchors: str = "") -> Verification:
    """Look at every layer of a picture's file.

    anchors: PEM text of the certificates whose signatures are trusted. Raises UserError for what is no whole, still
    picture.
    """
    image, clear = images.picture_of(content, name)
    texts = images.texts(content, name)
    media = _media(content)
    signature = c2pa.read(content, media, anchors) if media else c2pa.Signed(state="none")
    record, found = _recorded(texts, "" if clear else images.pixels_sha256(image))
    parameters = _parameters(texts, record)
    try:
        tool = read_settings(content, name).tool
    except UserError:
        tool = ""
    mark = detect(image)
    changed = []
    if signature.state == "broken":
        changed.append(f"the signature doesn't hold ({'; '.join(signature.faults)})")
    if found.state == "unreadable":
        changed.append("Kotoe's record can't be read")
    if found.unchanged is False:
        changed.append("the record is not the one that the file was written with")
    if found.pixels is False:
        changed.append("the pixels are not those that the file was written with")
    sized = record is not None and record.padding_mask_crop is None  # else the picture has the size of another one
    if record is not None and sized and found.pixels is None and image.size != (record.width, record.height):
        changed.append(f"the record is of {record.width}x{record.height} pixels, the picture has {_size(image)}")
    if parameters == "differs":
        changed.append("the text `parameters` says other than the record")
    if mark.found and found.watermark is not None and mark.number != found.watermark:
        changed.append(f"the watermark has the number {mark.number}, the record {found.watermark}")
    return Verification(
        signature=signature,
        record=found,
        parameters=parameters,
        tool=tool,
        watermark=mark,
        changed=tuple(changed),
        conclusion=_conclusion(signature, found, tool, mark, changed),
    )


def _media(content: bytes) -> str:
    """The type of a file's content, "" for one that holds no manifest."""
    if content.startswith(b"\x89PNG"):
        return "image/png"
    if content.startswith(b"\xff\xd8"):
        return "image/jpeg"
    return "image/webp" if content[8:12] == b"WEBP" else ""


def _size(image: Image.Image) -> str:
    return f"{image.width}x{image.height}"


def _recorded(texts: dict[str, str], pixels: str) -> tuple[Record | None, Recorded]:
    text = texts.get(images.RECORD_KEY)
    if text is None:
        return None, Recorded(state="none")
    try:
        record = from_json(Record, foreign_json(text), "the record")
        record.request()
    except (ValueError, RecursionError, UserError):
        return None, Recorded(state="unreadable")
    same: bool | None = None
    unchanged: bool | None = None
    state: Literal["whole", "bare", "changed"] = "bare"
    if images.DIGEST_KEY in texts:
        try:
            digest = from_json(Digest, foreign_json(texts[images.DIGEST_KEY]), "the digest")
            same = digest.pixels_sha256 == pixels
            unchanged = digest.record_sha256 == hashlib.sha256(text.encode()).hexdigest()
        except (ValueError, RecursionError, UserError):
            same = unchanged = False
        state = "whole" if same and unchanged else "changed"
    return record, Recorded(
        state=state,
        pixels=same,
        unchanged=unchanged,
        kotoe=record.kotoe,
        model=record.model.name,
        prompt=record.prompt,
        seed=record.seed,
        watermark=record.watermark,
    )


def _parameters(texts: dict[str, str], record: Record | None) -> Literal["none", "agrees", "differs", "alone"]:
    found = from_infotext(texts[KEY]) if KEY in texts else None
    if found is None:
        return "none"
    if record is None:
        return "alone"
    ours = from_infotext(infotext(record))
    assert ours is not None
    same = all(found.request.get(name) == ours.request.get(name) for name in COMPARED)
    return "agrees" if same else "differs"


def _conclusion(signature: c2pa.Signed, record: Recorded, tool: str, mark: Mark, changed: list[str]) -> str:
    said = []
    if changed:
        said.append(f"Changed since it was made: {'; '.join(changed)}.")
    if signature.state == "trusted":
        said.append(f"The file is as {signature.issuer} signed it, whose certificate is trusted here.")
    elif signature.state == "valid":
        said.append(
            f"The file is as it was signed by one who calls itself {signature.issuer!r}; no certificate that is "
            "trusted here says who that is."
        )
    elif signature.state == "lapsed":
        said.append(f"It was signed, and the signer's certificate isn't good: {'; '.join(signature.faults)}.")
    elif signature.state == "unchecked":
        said.append("It may be signed, which was not looked at: pip install 'kotoe[provenance]'.")
    elif not changed and record.state in ("whole", "bare"):
        said.append("Kotoe's record says how it was drawn. Without a signature anybody could have written it.")
    elif not changed and tool:
        said.append(f"Its texts say that {tool} drew it. Anybody could have written them.")
    if mark.found:
        gone = record.state == "none" and signature.state in ("none", "unchecked")
        before = "Its texts are gone, but the" if gone and not tool else "The"
        said.append(f"{before} watermark says that Kotoe drew it, for the operator with the number {mark.number}.")
    if not said:
        said.append("Nothing here says where it comes from.")
    return " ".join(said)

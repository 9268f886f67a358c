"""The text `parameters` that AUTOMATIC1111's web interface puts into pictures, and settings from many programs'.

Its layout: the prompt; `Negative prompt: ...`; as the last line `Key: value` pairs with commas between them, at least
three, or it isn't one. A value with a comma, a colon or a line break is JSON text with every script kept. In a PNG it
is a text of the key `parameters`, in JPEG and WebP EXIF's UserComment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from PIL import Image

from kotoe import images
from kotoe.config import Request, foreign_json, from_json, mended
from kotoe.errors import UserError
from kotoe.provenance import dialects
from kotoe.provenance.names import SAMPLERS, SCHEDULES
from kotoe.provenance.settings import Settings, Taking
from kotoe.record import Record

KEY = "parameters"  # of the PNG's text
FEWEST_PAIRS = 3
LONGEST_LINE = 2**16  # characters of the last line that are looked at
EMPHASIS = {"original": "Original", "no-norm": "No norm", "ignore": "Ignore", "none": "None"}
# what says nothing of its own about the next picture, or is looked at elsewhere
SILENT = {"Model", "Model hash", "VAE", "VAE hash", "Version", "RNG", "App", "Language", "Created Date"}
NEGATIVE = "Negative prompt:"
AREA, ONLY_MASKED, MARGIN = "Inpaint area", "Only masked", "Masked area padding"
# what a record gives to a request, where it isn't what a request has anyway: the rest are files, and how to compute
OWN = (
    "negative_prompt", "language", "width", "height", "steps", "sampler", "grid", "ending", "guidance_scale",
    "guidance_rescale", "seed", "eta", "strength", "padding_mask_crop", "long_prompt", "emphasis", "full_width",
    "padding", "punctuation", "numerics", "decoder", "guidance_start", "guidance_stop", "cache_interval",
    "token_merging_ratio",
)  # fmt: skip
# A key has two characters or more, up to 64: no longer, so that a long line of words takes no quadratic time.
_PAIR = re.compile(r'(\w[\w /-]{1,63}):\s*("(?:[^"\\]|\\.)*"|[^,]*)(?:,|$)')


# --- Writing --------------------------------------------------------------------------------------


def infotext(record: Record) -> str:
    """The `parameters` text of a record.

    What it can't say is left to the record: a schedule that others don't have, translations, shortcuts, checks.
    """
    pairs: dict[str, object] = {"Steps": record.steps, "Sampler": SAMPLERS[record.sampler]}
    if record.grid in SCHEDULES:
        pairs["Schedule type"] = SCHEDULES[record.grid]
    pairs |= {"CFG scale": f"{record.guidance_scale:g}", "Seed": record.seed}
    pairs |= {"Size": f"{record.width}x{record.height}", "Model hash": record.model.unet_sha256[:10]}
    pairs["Model"] = record.model.name
    if record.strength is not None:
        pairs["Denoising strength"] = f"{record.strength:g}"
    if record.padding_mask_crop is not None:
        pairs |= {AREA: ONLY_MASKED, MARGIN: record.padding_mask_crop}
    if record.eta:
        pairs["Eta"] = f"{record.eta:g}"
    pairs["RNG"] = "CPU"
    loras = [f"{a.name}: {a.sha256[:12]}" for a in record.adapters if a.kind == "lora"]
    embeddings = [f"{a.token}: {a.sha256[:12]}" for a in record.adapters if a.kind == "embedding"]
    pairs |= {"Lora hashes": ", ".join(loras)} if loras else {}
    pairs |= {"TI hashes": ", ".join(embeddings)} if embeddings else {}
    if record.emphasis != "original":
        pairs["Emphasis"] = EMPHASIS[record.emphasis]
    pairs |= {"Language": record.prompt_language, "Version": f"kotoe-{record.kotoe}"}
    lines = [record.prompt]
    if record.negative_prompt:
        lines.append(f"{NEGATIVE} {record.negative_prompt}")
    lines.append(", ".join(f"{key}: {quoted(str(value))}" for key, value in pairs.items()))
    return "\n".join(lines)


def quoted(value: str) -> str:
    """A value as it stands in the last line."""
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:\n\r"]', value) else value


# --- Reading --------------------------------------------------------------------------------------


def read_settings(source: bytes | Image.Image, name: str = "the picture") -> Settings:
    """How a picture was drawn, from a file's bytes or from an open picture that has its texts still.

    See settings_in. Raises UserError for what is no picture, too.
    """
    return settings_in(images.texts(source, name), name)


def settings_in(texts: Mapping[str, str], name: str = "the picture") -> Settings:
    """How a picture was drawn, by the texts of its file (images.texts).

    Understands Kotoe's own record, and the texts of AUTOMATIC1111, Forge, SD.Next, stable-diffusion.cpp, ComfyUI,
    InvokeAI and NovelAI; of several the first one. Raises UserError for texts that hold no settings. What it finds is
    untrusted: it is checked, all its text is Unicode, and what Kotoe can't do stands in `notes`.
    """
    texts = {key: mended(text) for key, text in texts.items()}
    for read in (_own, _parameters, dialects.invokeai, dialects.comfyui, dialects.novelai):
        if (found := read(texts)) is not None:
            return found
    raise UserError(
        f"{name} holds no settings",
        allowed="a picture as Kotoe, AUTOMATIC1111, stable-diffusion.cpp, ComfyUI, InvokeAI or NovelAI saved it",
        hint="Programs that edit or share pictures often remove such data",
    )


def _own(texts: Mapping[str, str]) -> Settings | None:
    """Of Kotoe's record; None where there is none, or none that can be read."""
    text = texts.get(images.RECORD_KEY)
    if text is None:
        return None
    try:
        record = from_json(Record, foreign_json(text), "the record")
        request = record.request()
    except (ValueError, RecursionError, UserError):
        return None
    taking = Taking("Kotoe")
    taking.request["prompt"] = record.prompt
    plain = Request(prompt=record.prompt)
    for name in OWN:
        value = getattr(request, name)
        if value is not None and (name == "seed" or value != getattr(plain, name)):
            taking.request[name] = value
    taking.note(f"drawn by the model {record.model.name}, UNet {record.model.unet_sha256[:10]}")
    for adapter in record.adapters:
        taking.note(f"drawn with the {adapter.kind} {adapter.name}, which has to be given")
    if record.init_image is not None:
        what = "the picture and the mask" if record.mask is not None else "the picture"
        taking.note(f"drawn from another picture: strength goes with {what}, which have to be given")
    if record.translation is not None:
        taking.note(f"the prompt was translated: {record.translation.prompt!r} was read")
    return taking.done(text, record)


def _parameters(texts: Mapping[str, str]) -> Settings | None:
    text = texts.get(KEY)
    return None if text is None else from_infotext(text)


def from_infotext(text: str) -> Settings | None:
    """Settings of a `parameters` text, None if it is none."""
    prompt, negative, pairs = parsed(text)
    if not pairs:
        return None
    taking = Taking(_tool(pairs))
    taking.take("prompt", prompt)
    if negative:
        taking.take("negative_prompt", negative)
    if re.search(r"<(lora|lyco|hypernet):[^<>]+>", prompt):
        taking.note("the prompt names LoRAs as <lora:...>, which Kotoe reads as words; --lora FILE puts one in")
    rest = dict(pairs)
    for key, name, whole in (
        ("Steps", "steps", True),
        ("CFG scale", "guidance_scale", False),
        ("Seed", "seed", True),
        ("Denoising strength", "strength", False),
        (MARGIN, "padding_mask_crop", True),
    ):
        if key in rest:
            taking.number(name, rest.pop(key), key, whole=whole)
    if "strength" in taking.request and any(key.startswith("Hires") for key in rest):
        taking.left("Denoising strength", taking.request.pop("strength"), "belongs to the second pass (Hires)")
    if rest.get(AREA) == ONLY_MASKED:
        del rest[AREA]
    elif "padding_mask_crop" in taking.request:
        taking.left(MARGIN, taking.request.pop("padding_mask_crop"), f"goes with {AREA}: {ONLY_MASKED}")
    if "Sampler" in rest:
        taking.sampling(rest.pop("Sampler"), rest.pop("Schedule type", ""))
    if size := re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", rest.get("Size", "")):
        taking.take("width", int(size[1]))
        taking.take("height", int(size[2]))
        del rest["Size"]
    if rest.get("Emphasis") in EMPHASIS.values():
        taking.take("emphasis", next(k for k, v in EMPHASIS.items() if v == rest["Emphasis"]))
        del rest["Emphasis"]
    if rest.get("Clip skip") == "1":
        del rest["Clip skip"]
    if "Model" in rest or "Model hash" in rest:
        taking.note(f"drawn by the model {rest.get('Model', '')} {rest.get('Model hash', '')}".rstrip())
    if rest.get("RNG", "GPU") != "CPU" and "seed" in taking.request:
        taking.note("its noise was not drawn on a processor, so the same seed draws another picture")
    for key, value in rest.items():
        if key not in SILENT:
            taking.left(key, value)
    return taking.done(mended(text))


def parsed(text: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt and the pairs of the last line of a `parameters` text; no pairs: it is none."""
    text = mended(text)
    lines = text.strip().split("\n")
    last = lines.pop()
    pairs: dict[str, str] = {}
    if len(last) <= LONGEST_LINE:
        for match in _PAIR.finditer(last):
            pairs.setdefault(match[1].strip(), _unquoted(match[2].strip()))
    if len(pairs) < FEWEST_PAIRS:
        return text, "", {}
    prompt: list[str] = []
    negative: list[str] | None = None
    for line in (line.strip() for line in lines):
        if negative is None and line.startswith(NEGATIVE):
            negative, line = [], line.removeprefix(NEGATIVE).strip()
        (prompt if negative is None else negative).append(line)
    return "\n".join(prompt), "\n".join(negative or ()), pairs


def _unquoted(value: str) -> str:
    if value.startswith('"'):
        try:
            found = foreign_json(value)
        except (ValueError, RecursionError):
            return value
        return found if isinstance(found, str) else value
    return value


def _tool(pairs: Mapping[str, Any]) -> str:
    version = pairs.get("Version", "")
    if "App" in pairs:
        return str(pairs["App"])[:40]
    if version.startswith("kotoe"):
        return "Kotoe"
    if "stable-diffusion.cpp" in version:
        return "stable-diffusion.cpp"
    return "Forge" if re.match(r"f\d", version) else "AUTOMATIC1111"

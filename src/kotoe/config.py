"""What is asked for (Request), what was done (Record), and dataclasses to JSON and back, errors that teach."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from kotoe.errors import UserError, nearest, shown, unknown

T = TypeVar("T")

SAMPLER_NAMES = (
    "euler",
    "euler_ancestral",
    "heun",
    "lms",
    "ddim",
    "pndm",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "unipc",
)
ETA_SAMPLERS = ("ddim",)
LEGACY_SAMPLERS = ("ddim", "pndm")
GRID_NAMES = ("linspace", "leading", "trailing", "karras", "kerascv", "kerascv_0_8_1")
NumericsName = Literal["exact", "kerascv"]
EngineName = Literal["fast", "plain", "int8", "compiled"]
DecoderName = Literal["full", "small"]
Dtype = Literal["float32", "bfloat16", "float16"]
Emphasis = Literal["original", "no-norm", "ignore", "none"]
Ending = Literal["zero", "legacy"]
MAX_EDGE_PX = 8192  # a request beyond this is a slip or an attack, not a picture
MAX_BATCH = 1024  # pictures denoised together
MAX_THREADS = 1024
MAX_SEED = 2**32 - 1  # torch's CPU generator reads 32 bits
DEFAULT_STRENGTH = 0.8
MAX_INTERVAL = 100  # forwards of a network that share its coarser levels
MAX_MERGED = 0.75  # of positions: one of each 2 x 2 stays


# --- dataclasses to JSON and back -----------------------------------------------------------------


def to_json(value: Any) -> Any:
    """Dataclasses as dicts, tuples as lists, paths as text, recursively: only what `json.dumps` takes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def dumps(value: Any, *, indent: int | None = None) -> str:
    """JSON text that keeps every script readable and refuses NaN and infinity, which JSON does not have."""
    return json.dumps(to_json(value), ensure_ascii=False, allow_nan=False, indent=indent)


def from_json(cls: type[T], data: Any, where: str = "") -> T:
    """A `cls` (dataclass) from a JSON object. Unknown, missing and ill-typed keys are UserErrors naming it.

    where: what is being read, for the message ("request.json").
    """
    name = where or cls.__name__
    if not isinstance(data, Mapping):
        raise UserError(f"{name}: {shown(data)} is no JSON object", allowed='{"key": value, ...}')
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            near = nearest(str(key), fields)
            raise UserError(
                f"{name}: unknown key {shown(key)}",
                allowed=", ".join(fields),
                hint=f"Did you mean {near!r}?" if near else "",
            )
    required = [
        f.name
        for f in fields.values()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in data
    ]
    if required:
        raise UserError(f"{name}: key {required[0]!r} is missing", allowed=f"an object with {', '.join(required)}")
    hints = _hints(cls)
    return cls(**{key: _typed(hints[key], value, f"{name}: {key}") for key, value in data.items()})


def read_json(path: str | Path) -> Any:
    """The JSON document in a file, or a UserError that says why it can't be read and where."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}", allowed="a readable JSON file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start})", allowed="JSON in UTF-8") from error
    except (json.JSONDecodeError, RecursionError) as error:
        at = f"line {error.lineno}, column {error.colno}: {error.msg}" if isinstance(error, ValueError) else "too deep"
        raise UserError(f"{path} is no JSON document ({at})", allowed="JSON in UTF-8") from error


def foreign_json(text: str) -> Any:
    """A JSON document that others wrote, its texts as `mended` has them: JSON can spell half a character.

    Raises ValueError and RecursionError.
    """
    found = json.loads(text)
    whole = json.dumps(found, ensure_ascii=False)
    return found if (mended_text := mended(whole)) == whole else json.loads(mended_text)


def mended(text: str) -> str:
    """Text that can be written as UTF-8: half a character (a lone surrogate) becomes U+FFFD, as in broken bytes."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def check_types(value: Any) -> None:
    """Raise a UserError for the first field of a dataclass whose value isn't of its annotated type."""
    for name, hint in _hints(type(value)).items():
        _typed(hint, getattr(value, name), f"{type(value).__name__}: {name}")


def differing_keys(a: Any, b: Any, prefix: str = "") -> list[str]:
    """Dotted names of the keys whose values differ between two JSON documents, sorted."""
    a, b = to_json(a), to_json(b)
    if isinstance(a, dict) and isinstance(b, dict):
        absent = object()
        keys = sorted(set(a) | set(b))
        return [
            d for k in keys for d in differing_keys(a.get(k, absent), b.get(k, absent), f"{prefix}.{k}".lstrip("."))
        ]
    return [] if (type(a) is type(b) and a == b) or _same_number(a, b) else [prefix or "(the whole document)"]


def _same_number(a: Any, b: Any) -> bool:
    return isinstance(a, (int, float)) and isinstance(b, (int, float)) and not isinstance(a, bool) and a == b


_HINTS: dict[type, dict[str, Any]] = {}  # known annotations; evaluating them takes a millisecond


def _hints(cls: type) -> dict[str, Any]:
    if cls not in _HINTS:
        _HINTS[cls] = typing.get_type_hints(cls)
    return _HINTS[cls]


def _typed(hint: Any, value: Any, where: str) -> Any:
    """`value` as annotated: JSON's lists become tuples, its whole numbers floats; nothing else changes."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        for option in args:
            if dataclasses.is_dataclass(option):  # its own words say more than "an object or null"
                return _typed(option, value, where)
            if option is not type(None):
                try:
                    return _typed(option, value, where)
                except UserError:
                    continue
    elif origin is Literal:
        if value in args and type(value) is type(args[args.index(value)]):
            return value
        if isinstance(value, str):
            raise unknown(where, value, [str(a) for a in args])
    elif origin in (tuple, Sequence) and isinstance(value, (list, tuple)):
        inner = args[:1] * len(value) if len(args) == 1 or args[1] is ... else args
        if len(inner) == len(value):
            return tuple(_typed(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(inner, value, strict=True)))
    elif origin in (dict, Mapping) and isinstance(value, Mapping):
        return {k: _typed(args[1], v, f"{where}.{k}") for k, v in value.items()}
    elif dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_json(hint, value, where)  # type: ignore[arg-type]
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if math.isfinite(value):
            return float(value)
    elif isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise UserError(f"{where} is {shown(value)}", allowed=_described(hint))


def _described(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_described(a) for a in args))
    if origin is Literal:
        return ", ".join(map(str, args))
    if origin in (tuple, Sequence):
        return f"a list ({_described(args[0])} each)"
    names = {
        int: "a whole number",
        float: "a finite number",
        bool: "true or false",
        str: "text",
        type(None): "null",
    }
    return names.get(hint, "an object")


# --- Request --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for: the one input of command line, library, server, evaluation. None: the model's default.

    prompt:          what to draw, in any language the model has; one text or several.
    negative_prompt: what to keep out, in the language of the prompt.
    language:        BCP 47 tag of the prompts (en, ja, zh, ko, ...); None: detected for each prompt.
    translate_to:    with a translator: the model's language that prompts in none of its languages are translated into;
                     English, or its first one, when not given.
    width:           pixels; a multiple of the model's latent pixel.
    height:          the same.
    steps:           denoising steps, 1 or more.
    sampler:         euler, euler_ancestral, heun, lms, ddim, pndm, dpmpp_2m, dpmpp_2m_sde or unipc.
    grid:            where the steps lie: linspace, leading, trailing, karras, kerascv or kerascv_0_8_1.
    ending:          where ddim and pndm stop: "zero" leaves no noise; "legacy", which published Stable Diffusion 1.x
                     settings ask for, leaves that of timestep 0.
    guidance_scale:  how strongly to follow the prompt; 1.0 means unguided, at half the cost. 0 or more.
    guidance_rescale: 0.0 to 1.0, how much of the guided picture's excess contrast to take back.
    seed:            image k of each prompt has seed + k.
    n:               images per prompt.
    eta:             0.0 (deterministic) to 1.0, fresh noise in each step of the ddim sampler.
    init_image:      a picture to start from (img2img).
    mask:            with init_image: white is redrawn, black is kept (inpainting).
    strength:        with init_image: the share of the steps to run, above 0.0 to 1.0; 0.8 when not given, and 1.0 with
                     a model made for inpainting.
    padding_mask_crop: with mask: draws only the part of init_image that the mask's white is in, with so many pixels
                     around it, enlarged to width x height, the model's own when not given; then that part is put back,
                     and the picture has init_image's size, whatever that is. None: all of init_image is drawn.
    long_prompt:     "error" refuses prompts over the encoder's token limit, "chunk" reads them piecewise, "cut" drops
                     their ends and says which words those are.
    emphasis:        what (word:1.3), [word] and BREAK do. "original": weights multiply a word's states, and each
                     window's mean is restored, as in AUTOMATIC1111's web interface; "no-norm": it is not; "ignore":
                     weights are read and not applied; "none": every mark is text.
    full_width:      "folded" reads full-width letters, digits and marks as ordinary ones, and half-width kana as
                     ordinary kana; "kept" leaves them as typed.
    padding:         "max_length" pads a text to the encoder's length, as models are trained; "longest" only to the
                     longer of prompt and negative prompt, so that a BERT without a mask reads (nearly) words alone.
    punctuation:     "kept", or "ascii": full-width marks of a prompt, such as ，and 。, are read as , and .
    dtype:           "auto" is bfloat16 where the processor computes in it, float32 elsewhere.
    numerics:        "exact" is the arithmetic the weights were trained with, "kerascv" KerasCV's, to get its pictures.
    engine:          "fast" computes a model on a processor with fused operations, as exact as "plain" (numerically
                     equal), which all other devices and low memory use; the last bits of the two differ. "int8"
                     (approximate) is "fast" with the UNet's largest layers in whole numbers. "compiled" (numerically
                     equal) is "plain" through torch's compiler, for CUDA above all: the first picture of each size
                     waits for it, seconds to minutes, less in later processes.
    decoder:         "full", or "small" (approximate): the model's small decoder, if it has one or --taesd gave it one.
    guidance_start:  share of the steps before guidance begins: 0.0 with the first one, to 1.0.
    guidance_stop:   share of the steps after which there is none any more, to 1.0, with the last one. A step without
                     guidance costs half; either is approximate.
    cache_interval:  1 computes the whole network at every step; N at every Nth, and in between only its first and last
                     blocks, with what lies between them as it was (DeepCache; approximate).
    token_merging_ratio: 0.0 to 0.75: share of the finest level's positions that self-attention puts together
                     (approximate).
    batch_size:      images denoised together: 1 on a processor, 8 on an accelerator, what goes with --fast. More is
                     faster, and may move a pixel by one level of 255: arithmetic rounds otherwise for another size.
                     With engine int8 always 1: a picture would hang on what is beside it.
    """

    prompt: Sequence[str]  # stored as a tuple
    negative_prompt: str = ""
    language: str | None = None
    translate_to: str | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    sampler: str | None = None
    grid: str | None = None
    ending: Ending | None = None
    guidance_scale: float | None = None
    guidance_rescale: float = 0.0
    seed: int = 0
    n: int = 1
    eta: float = 0.0
    init_image: str | None = None
    mask: str | None = None
    strength: float | None = None
    padding_mask_crop: int | None = None
    long_prompt: Literal["error", "chunk", "cut"] = "error"
    emphasis: Emphasis = "original"
    full_width: Literal["folded", "kept"] = "folded"
    padding: Literal["max_length", "longest"] = "max_length"
    punctuation: Literal["kept", "ascii"] = "kept"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    numerics: NumericsName = "exact"
    engine: EngineName = "fast"
    decoder: DecoderName | None = None
    guidance_start: float = 0.0
    guidance_stop: float = 1.0
    cache_interval: int = 1
    token_merging_ratio: float = 0.0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.prompt, str):
            object.__setattr__(self, "prompt", (self.prompt,))
        elif isinstance(self.prompt, list):
            object.__setattr__(self, "prompt", tuple(self.prompt))
        check_types(self)
        if not self.prompt:
            raise UserError("no prompt", allowed="one or more texts", hint='For example: kotoe generate "a cat"')
        for text in (*self.prompt, self.negative_prompt):
            check_text(text)
        for name in ("width", "height"):
            edge = getattr(self, name)
            if edge is not None and not 1 <= edge <= MAX_EDGE_PX:
                raise UserError(f"{name} {edge}", allowed=f"1 to {MAX_EDGE_PX} pixels")
        for name in ("steps", "n", "batch_size"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise UserError(f"{name} {count}", allowed="1 or more")
        if self.batch_size is not None and self.batch_size > MAX_BATCH:
            raise UserError(f"batch_size {self.batch_size}", allowed=f"1 to {MAX_BATCH}")
        if self.sampler is not None and self.sampler not in SAMPLER_NAMES:
            raise unknown("sampler", self.sampler, SAMPLER_NAMES)
        if self.grid is not None and self.grid not in GRID_NAMES:
            raise unknown("grid", self.grid, GRID_NAMES)
        if not 0 <= self.seed <= MAX_SEED - (self.n - 1):
            raise UserError(f"seed {self.seed}", allowed=f"0 to {MAX_SEED - (self.n - 1)}")
        if self.guidance_scale is not None and self.guidance_scale < 0:
            raise UserError(f"guidance_scale {self.guidance_scale}", allowed="0.0 or more; 1.0 switches guidance off")
        for name in ("guidance_rescale", "eta", "guidance_start", "guidance_stop"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"{name} {getattr(self, name)}", allowed="0.0 to 1.0")
        if self.guidance_start >= self.guidance_stop:
            raise UserError(
                f"guidance_start {self.guidance_start}, guidance_stop {self.guidance_stop}: no step would be guided",
                allowed="a start below the stop",
                hint="guidance_scale 1 switches guidance off",
            )
        if self.guidance_scale is not None:
            check_guidance(self)
        if not 1 <= self.cache_interval <= MAX_INTERVAL:
            raise UserError(f"cache_interval {self.cache_interval}", allowed=f"1 (nothing is kept) to {MAX_INTERVAL}")
        if not 0.0 <= self.token_merging_ratio <= MAX_MERGED:
            raise UserError(f"token_merging_ratio {self.token_merging_ratio}", allowed=f"0.0 to {MAX_MERGED}")
        if self.eta != 0.0 and self.sampler not in (None, *ETA_SAMPLERS):
            raise UserError(
                f"eta {self.eta} with sampler {self.sampler} has no effect",
                allowed=f"eta with sampler {', '.join(ETA_SAMPLERS)}",
            )
        if self.ending == "legacy" and self.sampler not in (None, *LEGACY_SAMPLERS):
            raise UserError(
                f"ending legacy with sampler {self.sampler}",
                allowed=f"ending legacy with sampler {', '.join(LEGACY_SAMPLERS)}",
            )
        if self.init_image is None:
            for name in ("mask", "strength"):
                if getattr(self, name) is not None:
                    raise UserError(
                        f"{name} without init_image",
                        allowed=f"init_image together with {name}, or neither",
                        hint="Give the picture to start from as well (--init-image picture.png)",
                    )
        if self.padding_mask_crop is not None:
            if self.mask is None:
                raise UserError("padding_mask_crop without mask", allowed="a mask, or all of the picture is drawn")
            if not 0 <= self.padding_mask_crop <= MAX_EDGE_PX:
                raise UserError(f"padding_mask_crop {self.padding_mask_crop}", allowed=f"0 to {MAX_EDGE_PX} pixels")
        if self.padding == "longest" and self.long_prompt == "chunk":
            raise UserError(
                "padding longest with long_prompt chunk", allowed="one of them: windows are all of the encoder's length"
            )
        if self.strength is not None and not 0.0 < self.strength <= 1.0:
            raise UserError(f"strength {self.strength}", allowed="above 0.0 to 1.0")


def check_guidance(request: Request) -> None:
    """Refuse settings that guidance at 1.0 (one forward, no unconditional picture) would ignore."""
    if request.guidance_scale != 1.0:
        return
    plain = {"negative_prompt": "", "guidance_rescale": 0.0, "guidance_start": 0.0, "guidance_stop": 1.0}
    for name, unasked in plain.items():
        if getattr(request, name) != unasked:
            raise UserError(
                f"{name} with guidance_scale 1.0 has no effect",
                allowed=f"another guidance_scale, or no {name}",
            )


def check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"the prompt {shown(text)} is not valid Unicode at character {error.start + 1}",
            allowed="text in UTF-8",
            hint="Check the terminal's encoding",
        ) from error


@dataclass(frozen=True, kw_only=True)
class Resolved(Request):
    """A request whose every default is filled in (see `resolve`): nothing here is None for want of a choice."""

    width: int
    height: int
    steps: int
    sampler: str
    grid: str
    ending: Ending
    guidance_scale: float
    decoder: DecoderName
    batch_size: int

"""LoRA files of Stable Diffusion 1.x and 2.x: all published namings read into one table, folded into a copy of a model.

A LoRA of rank r changes a weight W (O, I, ...) by weight * alpha / r * B @ A, with A (r, I, ...) and B (O, r): Hu et
al. 2021 (arXiv 2106.09685). Of a convolution (LoCon) A has its kernel and B is 1x1. Read are diffusers' names (peft's
lora_A and lora_B; lora.down and lora.up; those of attention processors; lora_linear_layer) and kohya's (lora_unet_...,
lora_te_..., with an alpha for each module). alpha is r where nothing says it.

Legend: O, I a weight's outputs and inputs, r the rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kotoe.checkpoints import Bundle
from kotoe.checkpoints.files import FLOATS, SHOWN, Entry, M, entries, metadata
from kotoe.checkpoints.twins import Unchanging, base_hashes, exchanged, reading_as, twin
from kotoe.errors import CheckpointError, UserError, nearest
from kotoe.record import AdapterRecord
from kotoe.text import CLIPText
from kotoe.tokenizers import parse_json

UNET, TEXT = "unet", "text_encoder"
LARGEST_WEIGHT = 1e6
SAID = {UNET: "UNet", TEXT: "text encoder"}
PREFIXES = {"lora_unet_": UNET, "lora_te_": TEXT, "unet.": UNET, "text_encoder.": TEXT}
KOHYA = ("lora_unet_", "lora_te_")
ENDS = {  # how a tensor's name ends, and which of a module's three it is then
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_down.weight": "A",
    ".lora_up.weight": "B",
    ".lora.down.weight": "A",
    ".lora.up.weight": "B",
    "_lora.down.weight": "A",
    "_lora.up.weight": "B",
    ".lora_linear_layer.down.weight": "A",
    ".lora_linear_layer.up.weight": "B",
    ".alpha": "alpha",
}
OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}  # diffusers before 0.19
METHODS = {  # what other methods' tensors are called
    r"\.hada_w": "LoHa",
    r"\.lokr_": "LoKr",
    r"\.oft_": "OFT",
    r"\.lora_mid": "a LoCon in Tucker form",
    r"\.dora_scale": "DoRA",
    r"\.lora_magnitude_vector": "DoRA",
    r"\.diff(_b)?$": "a difference of whole weights",
}
ELSEWHERE = {
    "lora_te1_": "Stable Diffusion XL",
    "lora_te2_": "Stable Diffusion XL",
    "text_encoder_2.": "Stable Diffusion XL",
    "transformer.": "a model whose UNet is a transformer",
    "lora_transformer_": "a model whose UNet is a transformer",
    "diffusion_model.": "a model whose UNet is a transformer",
    "base_model.model.": "peft alone, which doesn't say of which network",
}
SETTINGS = "lora_adapter_metadata"  # where diffusers puts peft's settings, in a safetensors head
PLAIN = ("use_dora", "use_qalora", "lora_bias", "fan_in_fan_out", "layer_replication", "alora_invocation_tokens")
WHOLE = ("I64", "I32", "int64", "int32")  # an alpha may be a whole number


@dataclass(frozen=True, kw_only=True)
class Lora:
    """A LoRA file and how strongly to apply it: 1.0 as trained, 0.0 not at all, below 0.0 the other way."""

    file: str | Path
    weight: float = 1.0

    def __post_init__(self) -> None:
        weight: Any = self.weight
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not abs(weight) <= LARGEST_WEIGHT:
            raise UserError(f"weight {weight!r} of the LoRA {self.file}", allowed="a number, as 0.8, 0 or -1")
        object.__setattr__(self, "weight", float(weight))

    @classmethod
    def parse(cls, text: str) -> Lora:
        """FILE or FILE:WEIGHT. A file whose own name has a colon is told by being there."""
        file, colon, weight = text.rpartition(":")
        if not colon or Path(text).expanduser().is_file():
            return cls(file=text)
        try:
            return cls(file=file, weight=float(weight))
        except ValueError:
            raise UserError(
                f"weight {weight!r} of the LoRA {file}", allowed="FILE or FILE:WEIGHT, as style.safetensors:0.8"
            ) from None


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A module's two factors in the file `what`, not read yet. alpha: a tensor, a number, or None for r."""

    what: str
    a: Entry
    b: Entry
    alpha: Entry | float | None

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def scale(self) -> float:
        """alpha / r."""
        alpha = self.alpha
        if not isinstance(alpha, Entry):
            return 1.0 if alpha is None else alpha / self.rank
        value = float(alpha.read(None))
        if not math.isfinite(value):
            raise CheckpointError(f"{self.what}: {alpha.name} is {value}", allowed="a finite number")
        return value / self.rank

    def product(self, device: torch.device) -> Tensor:
        """B @ A, (O, I * kernel), in float32. Raises CheckpointError where a factor holds NaN or infinity."""
        factors = []
        for entry in (self.b, self.a):
            values = entry.read(torch.float32).to(device).flatten(1)
            if not values.isfinite().all():
                raise CheckpointError(
                    f"{self.what}: {entry.name} holds NaN or infinity", hint="Its training went wrong"
                )
            factors.append(values)
        return factors[0] @ factors[1]


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a LoRA file holds. parts: by part, a module's name with "_" for "." to its factors.

    form: "kohya" or "diffusers". texts: of a safetensors head.
    """

    what: str
    form: str
    parts: Mapping[str, Mapping[str, Pair]]
    texts: Mapping[str, str] = field(default_factory=dict)


# --- Reading ----------------------------------------------------------------------------------------


def read(path: Path, *, allow_pickle: bool = False) -> Contents:
    """The factors in a LoRA file, by part and module. No tensor is read.

    Raises CheckpointError for other methods than LoRA, unknown names, halves of pairs and ranks that don't fit.
    """
    what = path.name
    found = entries(path, what, allow_pickle)
    texts = metadata(path, what)
    _refuse_others([e.name for e in found], what)
    modules: dict[tuple[str, str], dict[str, Entry]] = {}
    dotted: dict[tuple[str, str], str] = {}  # as diffusers names it, for peft's settings
    unknown = []
    for entry in found:
        place = place_of(entry.name)
        if place is None:
            unknown.append(entry.name)
            continue
        part, module, role = place
        held = modules.setdefault((part, module.replace(".", "_")), {})
        dotted[part, module.replace(".", "_")] = module
        if role in held:
            raise CheckpointError(f"{what}: {held[role].name} and {entry.name} are the same factor of one module")
        if entry.kind not in FLOATS and not (role == "alpha" and entry.kind in WHOLE):
            raise CheckpointError(f"{what}: tensor {entry.name} holds {entry.kind}", allowed=", ".join(FLOATS))
        held[role] = entry
    if unknown:
        raise CheckpointError(
            f"{what}: {_listed(unknown)} of no naming that LoRAs have",
            allowed=", ".join((*KOHYA, "unet.", "text_encoder.")) + ", each with its pair of factors",
        )
    if not modules:
        raise CheckpointError(f"{what} holds no tensor")
    halves = [next(iter(held.values())).name for held in modules.values() if not {"A", "B"} <= set(held)]
    if halves:
        raise CheckpointError(f"{what}: {_listed(halves)} without the other factor of the pair")
    settings = _Settings(texts, what)
    parts: dict[str, dict[str, Pair]] = {}
    for (part, module), held in modules.items():
        pair = Pair(what=what, a=held["A"], b=held["B"], alpha=held.get("alpha"))
        _check_rank(pair)
        alpha = settings.alpha(part, dotted[part, module], pair.rank)
        if alpha is not None and pair.alpha is not None:
            raise CheckpointError(f"{what}: alpha both as a tensor and in {SETTINGS}", allowed="one of them")
        parts.setdefault(part, {})[module] = pair if alpha is None else replace(pair, alpha=alpha)
    kohya = any(e.name.startswith(KOHYA) for e in found)
    return Contents(what=what, form="kohya" if kohya else "diffusers", parts=parts, texts=texts)


def place_of(name: str) -> tuple[str, str, str] | None:
    """(part, module, "A", "B" or "alpha") of a tensor's name, or None for a name of no LoRA.

    kohya's modules have "_" for ".".
    """
    end = next((e for e in ENDS if name.endswith(e)), None)
    if end is None or len(name) == len(end):
        return None
    stem = name.removesuffix(end)
    prefix = next((p for p in PREFIXES if stem.startswith(p)), "")  # attention processors saved alone have none
    part, stem = PREFIXES.get(prefix, UNET), stem.removeprefix(prefix)
    if prefix in KOHYA:
        return (part, stem, ENDS[end]) if "." not in stem else None
    module = stem.replace(".processor.", ".")
    head, _, last = module.rpartition(".")
    if end.startswith("_lora"):
        if last not in OLD_TEXT:
            return None
        last = OLD_TEXT[last] if part == TEXT else "to_out.0" if last == "to_out" else last
    module = f"{head}.{last}" if head else last
    if part == TEXT and not module.startswith("text_model."):  # transformers 5 drops it
        module = f"text_model.{module}"
    return part, module, ENDS[end]


def _refuse_others(names: Sequence[str], what: str) -> None:
    for name in names:
        for word, method in METHODS.items():
            if re.search(word, name):
                raise CheckpointError(
                    f"{what} is {method} ({name})", allowed="LoRA and LoCon: two factors, and an alpha, for each module"
                )
        for prefix, made_for in ELSEWHERE.items():
            if name.startswith(prefix):
                raise CheckpointError(
                    f"{what} was made for {made_for} ({name})", allowed="LoRAs of Stable Diffusion 1.x and 2.x"
                )


def _check_rank(pair: Pair) -> None:
    """Refuse factors that can't be multiplied, whatever they are for."""
    a, b = pair.a.shape, pair.b.shape
    good = len(a) in (2, 4) and len(b) in (2, 4) and min(*a, *b) > 0 and b[1] == a[0] and set(b[2:]) <= {1}
    if not good:
        raise CheckpointError(
            f"{pair.what}: {pair.a.name} {list(a)} and {pair.b.name} {list(b)} are no pair of factors",
            allowed="[r, inputs, ...] and [outputs, r, 1, 1] or [outputs, r]",
        )
    alpha = pair.alpha
    if isinstance(alpha, Entry) and math.prod(alpha.shape) != 1:
        raise CheckpointError(f"{pair.what}: {alpha.name} of shape {list(alpha.shape)}", allowed="one number")


class _Settings:
    """peft's settings in the head of a file that diffusers wrote: what alpha is, where it isn't r."""

    def __init__(self, texts: Mapping[str, str], what: str) -> None:
        self.what = what
        self.values = parse_json(texts[SETTINGS].encode(), f"{what}: {SETTINGS}") if SETTINGS in texts else {}
        for part in (UNET, TEXT):
            for key in PLAIN:
                if self.values.get(f"{part}.{key}"):
                    raise self._refuse(f"{part}.{key}", "LoRA without it")
            if self.values.get(f"{part}.bias", "none") != "none":
                raise self._refuse(f"{part}.bias", "none")

    def _refuse(self, key: str, allowed: str) -> CheckpointError:
        return CheckpointError(f"{self.what}: {key} is {self.values[key]!r}", allowed=allowed)

    def alpha(self, part: str, module: str, rank: int) -> float | None:
        """alpha of a module, or None where the settings don't say it."""
        key, patterns = f"{part}.lora_alpha", f"{part}.alpha_pattern"
        given = self.values.get(key)
        table = self.values.get(patterns) or {}
        if not isinstance(table, dict):
            raise self._refuse(patterns, "a table of module to number")
        for pattern, value in table.items():
            plain = pattern.removeprefix("^")
            if not re.fullmatch(r"[\w.]+", plain):  # peft takes any regular expression
                raise self._refuse(patterns, "names of modules")
            whole = plain in (module, module.removeprefix("text_model."))
            if whole or (not pattern.startswith("^") and module.endswith(f".{plain}")):
                key, given = patterns, value
                break
        if given is None:
            return None
        if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
            raise self._refuse(key, "a finite number")
        rooted = f"{part}.use_rslora"
        if self.values.get(rooted) not in (None, True, False):
            raise self._refuse(rooted, "true, false")
        return given * math.sqrt(rank) if self.values.get(rooted) else float(given)  # rsLoRA: alpha / sqrt(r)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


# --- Folding ----------------------------------------------------------------------------------------


def with_loras(
    bundle: Bundle,
    loras: Iterable[Lora],
    *,
    language: str | None = None,
    text: bool = True,
    allow_pickle: bool = False,
) -> Bundle:
    """The bundle with LoRAs in its UNet, and in one text encoder if they have a part for it. `bundle` stays as it is.

    All are summed up in float32 before the result is rounded to the dtype of the weights, so they are given at once.

    language: whose text encoder gets their text parts (and so every language that the same encoder reads); None: the
              model's default language.
    text:     False leaves their text parts out, as for a language whose encoder they weren't made for.
    Raises UserError for what doesn't fit the model, naming it; nothing is applied then.
    """
    loras = tuple(loras)
    if not loras:
        return bundle
    if any(a.kind == "lora" for a in bundle.adapters):
        raise UserError(f"{bundle.name} has LoRAs already", allowed="all LoRAs of a picture given at once")
    files = [Unchanging(lora.file) for lora in loras]
    found = [read(file.path, allow_pickle=allow_pickle) for file in files]
    tag = bundle.default_language if language is None else language
    texts = [bool(c.parts.get(TEXT)) and text for c in found]
    if not text and not any(TEXT in c.parts for c in found):
        raise UserError(
            f"{found[0].what} has no part for the text encoder to leave out", allowed="text=True (the default)"
        )
    for contents in found if not text else ():
        if contents.parts.keys() == {TEXT}:
            raise UserError(f"{contents.what} has a part for the text encoder only", allowed="its text part left in")
    weights = [lora.weight for lora in loras]
    conditioners = bundle.conditioners
    unet = _folded(bundle.unet, found, weights, UNET, bundle.name)
    if any(texts):
        conditioner = bundle.conditioner(tag)
        encoder = conditioner.encoder
        having = [(c, w) for c, w, has in zip(found, weights, texts, strict=True) if has]
        if not isinstance(encoder, CLIPText):
            raise UserError(
                f"{having[0][0].what} has a part for CLIP's text encoder, that of {tag} is another kind",
                allowed="a language whose text encoder is CLIP",
                hint="--adapter-language TAG names one (language=), --no-lora-text leaves that part out (text=False)",
            )
        changed = _folded(encoder, [c for c, _ in having], [w for _, w in having], TEXT, f"{bundle.name}, {tag}")
        conditioners = reading_as(bundle, tag, replace(conditioner, encoder=changed))
    records = [
        AdapterRecord(
            name=file.path.name, kind="lora", sha256=file.sha256(), weight=lora.weight, language=tag if has else None
        )
        for lora, file, has in zip(loras, files, texts, strict=True)
    ]
    return replace(
        bundle,
        unet=unet,
        conditioners=conditioners,
        hashes=base_hashes(bundle),
        folder=None,
        adapters=(*bundle.adapters, *records),
    )


def targets(net: nn.Module) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The modules that a LoRA can change, by name with "_" for ".": their name and the shape of their weight."""
    return {
        name.replace(".", "_"): (name, tuple(module.weight.shape))
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


@torch.no_grad()
def _folded(net: M, loras: Sequence[Contents], weights: Sequence[float], part: str, whose: str) -> M:
    """A twin of the network with the LoRAs' changes of this part; itself where there are none."""
    known = targets(net)
    shares: dict[str, list[tuple[float, Pair]]] = {}
    for contents, weight in zip(loras, weights, strict=True):
        _check_fits(contents, known, part, whose)
        for name, pair in contents.parts.get(part, {}).items():
            shares.setdefault(known[name][0], []).append((weight * pair.scale(), pair))
    if not shares:
        return net
    made = twin(net)
    for place, pairs in shares.items():
        module = made.get_submodule(place)
        old = module.get_parameter("weight")
        total = None
        for scale, pair in pairs:
            change = pair.product(old.device)  # read, and so checked, whatever it is multiplied by
            if scale != 0.0:
                total = old.float() if total is None else total
                total = total + (scale * change).reshape(old.shape)
        if total is not None:
            new = nn.Parameter(total.to(old.dtype), requires_grad=False)
            if not new.isfinite().all():
                raise UserError(f"{place} of {whose} isn't finite with the LoRAs in it", allowed="smaller weights")
            exchanged(module, new)
    return made


def _check_fits(contents: Contents, known: Mapping[str, tuple[str, tuple[int, ...]]], part: str, whose: str) -> None:
    """Raise a CheckpointError that lists the modules which the network doesn't have, or has in another shape."""
    ours = contents.parts.get(part, {})
    problems: list[str] = []
    for module, pair in ours.items():
        if module not in known:
            near = nearest(module, known) if len(problems) < SHOWN else None
            problems.append(f"no module for {pair.a.name}" + (f" (nearest: {known[near][0]})" if near else ""))
            continue
        name, shape = known[module]
        if _bare(pair.a.shape[1:]) != _bare(shape[1:]) or pair.b.shape[0] != shape[0]:
            problems.append(f"{pair.a.name} {list(pair.a.shape)}, {list(pair.b.shape)} for {name} {list(shape)}")
    if not problems:
        return
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    family = base_family(contents)
    raise CheckpointError(
        f"{contents.what}: {len(problems)} of {len(ours)} modules don't fit the {SAID[part]} of {whose}: "
        + "; ".join(problems[:SHOWN])
        + more,
        hint=f"Its sizes are those of {family}" if family else "It was made for another model",
    )


def _bare(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without ones at its end: 1x1 convolutions and linear layers are the same, and kohya exchanges them."""
    kept = list(shape)
    while len(kept) > 1 and kept[-1] == 1:
        kept.pop()
    return tuple(kept)


# --- What a file is -----------------------------------------------------------------------------------

FAMILIES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}


def context_width(contents: Contents) -> int | None:
    """How wide the text states are that the LoRA's UNet part reads, or its text part makes; None: it doesn't show."""
    for part, ends in ((UNET, ("attn2_to_k", "attn2_to_v")), (TEXT, ("q_proj", "k_proj", "v_proj", "out_proj"))):
        for module, pair in contents.parts.get(part, {}).items():
            if module.endswith(ends):
                return pair.a.shape[1]
    return None


def base_family(contents: Contents) -> str | None:
    """The published family that has these widths, if one has."""
    return FAMILIES.get(context_width(contents) or 0)


def ranks(pairs: Iterable[Pair]) -> Iterator[int]:
    """The ranks that occur, in order."""
    yield from sorted({pair.rank for pair in pairs})

"""LoRAs and embeddings of a model together: put in, compared with a record's, and described."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from kotoe.checkpoints import Bundle, embeddings, lora
from kotoe.checkpoints.embeddings import Embedding
from kotoe.checkpoints.files import FLOATS, entries, file_sha256, metadata
from kotoe.checkpoints.lora import Lora
from kotoe.errors import UserError
from kotoe.record import AdapterRecord

SAID = (  # texts in the head of a file that `describe` repeats
    *("ss_base_model_version", "ss_sd_model_name", "ss_output_name", "ss_network_module", "ss_network_dim"),
    *("ss_network_alpha", "ss_v2", "modelspec.title", "modelspec.author", "modelspec.architecture"),
    *("modelspec.license", "modelspec.trigger_phrase", lora.SETTINGS),
)
LONGEST_TEXT = 300
A = TypeVar("A", Lora, Embedding)


def with_adapters(
    bundle: Bundle,
    loras: Sequence[str | Path | Lora] = (),
    embedded: Sequence[str | Path | Embedding] = (),
    *,
    language: str | None = None,
    text: bool = True,
    allow_pickle: bool = False,
) -> Bundle:
    """The bundle with LoRAs (FILE, FILE:WEIGHT, a Path or a Lora) and embeddings (FILE, TOKEN=FILE, a Path or an
    Embedding). All LoRAs of a picture are given at once.

    See `lora.with_loras` and `embeddings.with_embeddings`. Raises UserError for what doesn't fit, and for a language or
    a text=False that no adapter has any use for.
    """
    asked = [_one(Lora, x) for x in _listed(loras, "LoRAs")]
    words = [_one(Embedding, x) for x in _listed(embedded, "embeddings")]
    if not text and not asked:
        raise UserError("text False (--no-lora-text) without a LoRA", allowed="it with --lora FILE")
    found = embeddings.with_embeddings(bundle, words, language=language, allow_pickle=allow_pickle)
    found = lora.with_loras(found, asked, language=language, text=text, allow_pickle=allow_pickle)
    if language is not None and all(a.language is None for a in found.adapters[len(bundle.adapters) :]):
        raise UserError(
            f"adapter language {language} (--adapter-language) without anything for its text encoder",
            allowed="it with an embedding, or a LoRA that has a part for the text encoder",
        )
    return found


def _listed(given: Any, what: str) -> Sequence[Any]:
    if not isinstance(given, list | tuple):
        raise UserError(f"{what} as a {type(given).__name__}", allowed=f"a list of {what}")
    return given


def _one(cls: type[A], given: Any) -> A:
    if isinstance(given, str):
        return cls.parse(given)
    if isinstance(given, Path):
        return cls(file=given)
    if not isinstance(given, cls):
        raise UserError(f"{cls.__name__} as a {type(given).__name__}", allowed=f"a text, a Path or a {cls.__name__}")
    return given


def check_same(ours: Sequence[AdapterRecord], theirs: Sequence[AdapterRecord]) -> None:
    """Raise a UserError naming the first adapter of a record (`theirs`) that differs or is missing, or is one too many.

    Their files' names may differ. The order of LoRAs counts, that of embeddings doesn't.
    """
    left = [replace(a, name="") for a in ours]
    for adapter in theirs:
        same = replace(adapter, name="")
        if same in left:
            left.remove(same)
            continue
        here = [a for a in ours if a.kind == adapter.kind and (a.name == adapter.name or a.sha256 == adapter.sha256)]
        if here:
            raise UserError(
                f"the {_said(adapter)} that drew the picture differs here: {_said(here[0])}", hint=_again(adapter)
            )
        raise UserError(f"the picture was drawn with the {_said(adapter)}, which is missing", hint=_again(adapter))
    if left:
        extra = next(a for a in ours if replace(a, name="") in left)
        raise UserError(f"the picture was drawn without the {_said(extra)}", allowed="the adapters of its record")
    orders = [[a.sha256 for a in side if a.kind == "lora"] for side in (ours, theirs)]
    if orders[0] != orders[1]:
        names = ", ".join(a.name for a in theirs if a.kind == "lora")
        raise UserError("the LoRAs are in another order than when the picture was drawn", allowed=names)


def _said(adapter: AdapterRecord) -> str:
    own = f"weight {adapter.weight:g}" if adapter.weight is not None else f"token {adapter.token!r}"
    where = f"text encoder of {adapter.language}" if adapter.language is not None else "no text encoder"
    kind = "LoRA" if adapter.kind == "lora" else "embedding"
    return f"{kind} {adapter.name} ({own}, {where}, sha256 {adapter.sha256[:12]})"


def _again(adapter: AdapterRecord) -> str:
    text = "" if adapter.language is None else f" --adapter-language {adapter.language}"
    if adapter.kind == "embedding":
        return f"Give it by --embedding {adapter.token}=FILE{text}"
    return f"Give it by --lora FILE:{adapter.weight!r}" + (text or ", with --no-lora-text if it has a text part")


# --- Describing -----------------------------------------------------------------------------------------


def is_adapter(path: Path, allow_pickle: bool = False) -> bool:
    """Whether a file holds a LoRA or an embedding, by the names in it."""
    names = [entry.name for entry in entries(path, path.name, allow_pickle)]
    return len(names) == 1 or any("lora" in name for name in names)


def describe(source: str | Path, path: Path, allow_pickle: bool = False) -> dict[str, Any]:
    """JSON-able description of a LoRA's or an embedding's file: kind, form, ranks or vectors, width, what its head has.

    Of a LoRA no factor is read.
    """
    found = entries(path, path.name, allow_pickle)
    texts = metadata(path, path.name)
    document: dict[str, Any] = {"source": str(source), "name": path.stem, "folder": str(path.resolve())}
    if len(found) == 1:
        word = embeddings.read(path, allow_pickle=allow_pickle)
        width: int | None = word.vectors.shape[1]
        document |= {"adapter": "embedding", "token": word.token, "vectors": len(word.vectors), "width": width}
    else:
        contents = lora.read(path, allow_pickle=allow_pickle)
        width = lora.context_width(contents)
        document |= {"adapter": "lora", "form": contents.form, "width": width, "parts": _parts(contents)}
    return {
        **document,
        "family": lora.FAMILIES.get(width or 0),
        "bytes": sum(math.prod(e.shape) * FLOATS[e.kind].itemsize for e in found if e.kind in FLOATS),
        "licence": texts.get("modelspec.license"),
        "notes": [],
        "metadata": {key: texts[key][:LONGEST_TEXT] for key in SAID if key in texts},
        "hashes": {"file": file_sha256(path)},
    }


def _parts(contents: lora.Contents) -> dict[str, Any]:
    return {
        part: {
            "modules": len(pairs),
            "convolutions": sum(math.prod(pair.a.shape[2:]) > 1 for pair in pairs.values()),
            "ranks": list(lora.ranks(pairs.values())),
            "alphas": sorted({pair.scale() * pair.rank for pair in pairs.values()}),
        }
        for part, pairs in contents.parts.items()
    }


def lines(found: dict[str, Any]) -> list[str]:
    """A description as `kotoe inspect` prints it."""
    width = f"text states {found['width']} wide" if found["width"] else "width not told by its tensors"
    family = f", as of {found['family']}" if found["family"] else ""
    if found["adapter"] == "embedding":
        said = [
            f"{found['name']}: an embedding, token {found['token']!r} of {found['vectors']} vectors, {width}{family}"
        ]
    else:
        said = [f"{found['name']}: a LoRA in {found['form']}'s form, {width}{family}"]
        for part, about in found["parts"].items():
            ranks, alphas = (", ".join(f"{x:g}" for x in about[key]) for key in ("ranks", "alphas"))
            modules = f"{about['modules']} modules, {about['convolutions']} of them convolutions of several pixels"
            said.append(f"{part}: {modules}, ranks {ranks}, alphas {alphas}")
    said.append(f"file {found['folder']}: {found['bytes']:,} bytes of tensors, sha256 {found['hashes']['file']}")
    return said + [f"{key}: {text!r}" for key, text in found["metadata"].items()]

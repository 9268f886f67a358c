"""Captioned pictures for the plans that learn from them: which rows, at which size, and what was left out."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kotoe.checkpoints import Bundle
from kotoe.checkpoints.files import tensors_sha256
from kotoe.config import MAX_EDGE_PX, dumps, read_json
from kotoe.data.shards import Preparing, Row, Skipped, Source, at_once, encode, moments, opened, read_rows
from kotoe.drawing import pixel_multiple
from kotoe.errors import UserError
from kotoe.localize.plans import Captions
from kotoe.localize.settings import Localizing
from kotoe.runs import Run, write_atomic

SHOWN = 3  # reasons in a message


def listed(wanted: Localizing) -> Source:
    """The rows of `wanted.images`; no picture is opened. A row that says it is in another language is left out."""
    assert wanted.images is not None
    source = read_rows(wanted.images, caption_column=wanted.caption_column, image_column=wanted.image_column)
    wants = {_base(tag) for tag in wanted.tags}
    rows: list[Row] = []
    others: list[Skipped] = []
    for row in source.rows:
        if row.language is None or _base(row.language) in wants:
            rows.append(row)
        else:
            others.append(Skipped(row.name, f"its caption is in {row.language}, not {' or '.join(wanted.tags)}"))
    if not rows:
        raise UserError(
            f"none of {len(others)} captions is in {' or '.join(wanted.tags)} ({others[0].name}: {others[0].reason})",
            allowed="captions of that language; a column `language` says otherwise",
        )
    return replace(source, rows=rows, skipped=[*source.skipped, *others])


def _base(tag: str) -> str:
    return tag.lower().replace("_", "-").split("-")[0]


def preparing(bundle: Bundle, wanted: Localizing) -> Preparing:
    """How this model's pictures are prepared. Raises UserError for a resolution that it can't draw."""
    size = wanted.resolution or bundle.unet.spec.sample_size * bundle.vae.spec.downscale
    multiple = pixel_multiple(bundle)
    if size % multiple or size > MAX_EDGE_PX:
        below, above = size // multiple * multiple, -(-size // multiple) * multiple
        raise UserError(
            f"resolution {size} for {bundle.name}",
            allowed=f"multiples of {multiple} up to {MAX_EDGE_PX}",
            hint=f"The nearest are {below} and {above}" if 0 < below < above <= MAX_EDGE_PX else "",
        )
    return Preparing(
        size_px=size,
        crop=wanted.crop,
        resample=wanted.resample,
        seed=wanted.seed,
        sampled=wanted.latents == "sample",
    )


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Captioned pictures for a plan on a model: listed, not yet encoded.

    bar: makes what shows progress: a context manager that gives a callable of pictures done and pictures in all.
    say: gets one line that says how many were left out.
    """

    source: Source
    wanted: Localizing
    bundle: Bundle
    bar: Callable[[str], AbstractContextManager[Callable[[int, int], None]]] | None = None
    say: Callable[[str], None] | None = None

    @property
    def texts(self) -> Sequence[str]:
        """All captions, also of pictures that won't open."""
        return [row.caption for row in self.source.rows]

    def encoded(self, run: Run) -> Captions:
        """The captions whose pictures open, and their latents, made as far as the cache hasn't them.

        Writes into the run: skipped.jsonl, every row that was left out with its reason, and pictures.json.
        Raises UserError when the run has begun with other pictures or captions.
        """
        source, how = self.source, preparing(self.bundle, self.wanted)
        vae, hashes = self.bundle.vae, self.bundle.hashes
        identity = hashes["vae"] if "vae" in hashes else tensors_sha256(vae)
        cache = self.wanted.cache or run.path("cache")
        with self._progress("encoding pictures") as bar:
            shards = encode(source, how, vae, cache, vae_sha256=identity, on_progress=bar)
        kept = [source.rows[i] for i in shards.kept]
        skipped = [*source.skipped, *shards.skipped]
        about = {
            "source": self.wanted.images,
            "kept": len(kept),
            "skipped": len(skipped),
            "enlarged": shards.enlarged,
            "transparent": shards.transparent,
            "licences": _licences(kept),
            "size_px": how.size_px,
            "identity": _identity(source, kept, how, identity),
        }
        _check_same(run, about)
        write_atomic(run.path("skipped.jsonl"), "".join(dumps(asdict(one)) + "\n" for one in skipped))
        write_atomic(run.path("pictures.json"), dumps({**about, "cache": str(shards.folder)}, indent=2) + "\n")
        if skipped and self.say is not None:
            self.say(f"{_left_out(skipped, len(kept))}; all of them: {run.path('skipped.jsonl')}")
        texts = [row.caption for row in kept]
        return Captions(texts=texts, latents=shards.latents, spread=shards.spread, about=about)

    def looked_through(self) -> Captions:
        """Open every picture, encode a few and keep nothing: captions to forecast with.

        The captions are those that would be read; their latents are all one picture's. `about` says what encoding
        costs, and in `skipped` what would be left out.
        """
        source, how, vae = self.source, preparing(self.bundle, self.wanted), self.bundle.vae
        kept: list[Row] = []
        skipped = list(source.skipped)
        few: list[Tensor] = []
        enlarged = transparent = 0
        began = time.perf_counter()
        with self._progress("opening pictures") as bar:
            for done, (row, one) in enumerate(zip(source.rows, opened(source, how), strict=True), 1):
                if isinstance(one, Skipped):
                    skipped.append(one)
                else:
                    kept.append(row)
                    enlarged, transparent = enlarged + one.enlarged, transparent + one.transparent
                    few += [one.pixels] if len(few) < at_once(how.size_px) else []
                bar(done, len(source.rows))
        if not kept:
            raise UserError(_left_out(skipped, 0), allowed="a picture that opens")
        opening_s = time.perf_counter() - began
        moments(vae, few[0], how.sampled)  # the first call is slower
        began = time.perf_counter()
        found = moments(vae, torch.cat(few), how.sampled)  # (B, K, C, h, w)
        each_s = (time.perf_counter() - began) / len(few)
        about = {
            "kept": len(kept),
            "enlarged": enlarged,
            "transparent": transparent,
            "size_px": how.size_px,
            "encode_s": round(opening_s + each_s * len(kept), 3),
            "cache_bytes": found[0].nbytes * len(kept),
            "skipped": [asdict(one) for one in skipped],
        }
        whole = found[:1].expand(len(kept), *found.shape[1:])
        spread = whole[:, 1] if how.sampled else None
        return Captions(texts=[row.caption for row in kept], latents=whole[:, 0], spread=spread, about=about)

    def _progress(self, what: str) -> AbstractContextManager[Callable[[int, int], None]]:
        return nullcontext(lambda done, total: None) if self.bar is None else self.bar(what)


def _check_same(run: Run, about: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that has read something else."""
    if not run.has("pictures.json"):
        return
    before = read_json(run.path("pictures.json"))
    if before.get("identity") != about["identity"]:
        raise UserError(
            f"{run.directory} has begun with other pictures or captions: {before.get('kept')} there, "
            f"{about['kept']} now",
            allowed="the same, to resume, or another directory",
        )


def lines(about: Mapping[str, Any]) -> list[str]:
    """What `Pictures.looked_through` says of pictures, for a terminal."""
    figures = [f"pictures {key}: {value}" for key, value in about.items() if key != "skipped"]
    return [*figures, *(f"left out: {one['name']}: {one['reason']}" for one in about["skipped"])]


# --- Words ---------------------------------------------------------------------------------------------------------


def _left_out(skipped: Sequence[Skipped], kept: int) -> str:
    some = "; ".join(f"{one.name}: {one.reason}" for one in skipped[:SHOWN])
    more = f"; and {len(skipped) - SHOWN} more" if len(skipped) > SHOWN else ""
    return f"{len(skipped)} of {len(skipped) + kept} captioned pictures are left out ({some}{more})"


def _licences(rows: Sequence[Row]) -> dict[str, int]:
    return dict(Counter(row.licence or "not stated" for row in rows).most_common())


def _identity(source: Source, kept: Sequence[Row], how: Preparing, vae: str) -> str:
    found = hashlib.sha256(dumps([source.digest(stamps=False), asdict(how), vae]).encode())
    for row in kept:
        found.update(dumps([row.name, row.caption]).encode())
    return found.hexdigest()

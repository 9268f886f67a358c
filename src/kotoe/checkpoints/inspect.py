"""What a model is made of, from its configurations and the heads of its weight files: no tensor is read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kotoe import builtin, licences
from kotoe.checkpoints import _card, _model_index, bases, diffusers, fast, kerascv, schedulers, text_models, tiny
from kotoe.checkpoints.files import Folder, entries, file_sha256, weights
from kotoe.checkpoints.keras_h5 import layers_of
from kotoe.config import to_json
from kotoe.spec import BertSpec


def describe(source: str | Path = builtin.DEFAULT, *, allow_pickle: bool = False) -> dict[str, Any]:
    """JSON-able description of a built-in model's name, a folder or a single file: source, folder, family, languages,
    components, sizes, licence, terms, card, licences, hashes, fast.

    components: by part, the class and the configuration. sizes: by part, the number of parameters and the bytes on
    disk. hashes: by part, sha256 of the weights and of the tokenizers. terms: what the licence binds to, and since when
    it is accepted here; None where it leaves free what is done with the model or isn't known. card: what the model card
    says itself. licences: by conditioner that came from elsewhere, what its own licence is and binds to. fast: how it
    draws in few steps, or None.
    allow_pickle: look into .bin and .ckpt weights too, which are read whole for it, as tensors only.
    """
    found = _describe(source, allow_pickle)
    return {**found, **licences.described(source, found)}


def _describe(source: str | Path, allow_pickle: bool) -> dict[str, Any]:
    path = builtin.resolve(source, allow_pickle=allow_pickle)
    if path.is_file():
        from kotoe.checkpoints import adapters, single

        if adapters.is_adapter(path, allow_pickle):  # other keys then, of which "adapter" says which kind it is
            return adapters.describe(source, path, allow_pickle)
        return single.describe(source, path, allow_pickle)
    folder = Folder(path)
    if kerascv.is_kerascv(folder):
        return {"source": str(source), "folder": str(folder.root), **_describe_kerascv(folder)}
    index, card = _model_index(folder), _card(folder)
    schedule, grid, notes = schedulers.schedule_spec(folder.json("scheduler/scheduler_config.json"), index["scheduler"])
    notes += diffusers.half_notes(folder, allow_pickle)
    places = dict.fromkeys(bases(card).values())  # several languages can have one

    unet = diffusers.unet_spec(folder.json("unet/config.json"))
    vae = diffusers.vae_spec(folder.json("vae/config.json"))
    components: dict[str, Any] = {"unet": _spec("UNet", unet), "vae": _spec("VAE", vae)}
    components["scheduler"] = _spec("ScheduleSpec", schedule)
    extra = [fast.DECODER] if folder.has(f"{fast.DECODER}/config.json") else []
    for part in extra:
        components[part] = _spec("TinyVAE", tiny.tiny_spec(folder.json(f"{part}/config.json"), f"{part}/config.json"))
    sizes, hashes = {}, {}
    for part in ("unet", "vae", *extra, *(f"{base}text_encoder" for base in places)):
        files = diffusers.weight_files(folder, part, allow_pickle)
        listed = (e for file in files for e in weights(entries(file, part, allow_pickle), part))
        sizes[part] = {
            "parameters": sum(math.prod(e.shape) for e in listed),
            "bytes": sum(file.stat().st_size for file in files),
        }
        each = [file_sha256(file) for file in files]
        hashes[part] = each[0] if len(each) == 1 else each
    for base in places:
        config = folder.json(f"{base}text_encoder/config.json")
        positions = config.get("max_position_embeddings", diffusers.TEXT_DEFAULTS["max_position_embeddings"])
        tokenizer = diffusers.read_tokenizer(folder, f"{base}tokenizer", positions)
        components[f"{base}tokenizer"] = {
            "class": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "max_tokens": tokenizer.max_tokens,
        }
        text = diffusers.encoder_spec(config, tokenizer, f"{base}text_encoder/config.json")
        components[f"{base}text_encoder"] = _spec("BertText" if isinstance(text, BertSpec) else "CLIPText", text)
        hashes[f"{base}tokenizer"] = tokenizer.sha256
    return {
        "source": str(source),
        "folder": str(folder.root),
        "name": card["name"],
        "family": unet.family,
        "languages": list(card["languages"]),
        "size_px": unet.sample_size * vae.downscale,
        "defaults": {"sampler": schedule.sampler, **card["defaults"], "grid": grid or schedule.timestep_spacing},
        "fast": card["fast"],
        "components": components,
        "sizes": sizes,
        "licence": card["licence"],
        "hashes": hashes,
        "notes": list(notes),
    }


class _Listed(Folder):
    """A folder of which more files are listed than have arrived."""

    def __init__(self, root: Path, files: Sequence[str]) -> None:
        super().__init__(root)
        self._files = frozenset(files)

    def has(self, name: str) -> bool:
        return name in self._files


def foresee(folder: Path, files: Sequence[str], *, allow_pickle: bool, text_model: bool) -> None:
    """Raise what loading a model from the hub would raise, as far as all but its weights tell: before gigabytes are
    downloaded. See `builtin.resolve`.

    folder: with all but the weights. files: the names of all.
    """
    here, listed = Folder(folder), _Listed(folder, files)
    if text_model and text_models.is_text_model(here):
        diffusers.weight_names(listed, "", allow_pickle)
        return
    index = _model_index(here)
    _card(here)
    schedulers.schedule_spec(here.json("scheduler/scheduler_config.json"), index["scheduler"])
    diffusers.unet_spec(here.json("unet/config.json"))
    diffusers.vae_spec(here.json("vae/config.json"))
    config = here.json("text_encoder/config.json")
    diffusers.encoder_spec(config, diffusers.tokenizer_of(here, ""))
    for part in ("unet", "vae", "text_encoder"):
        diffusers.weight_names(listed, part, allow_pickle)


def _describe_kerascv(folder: Folder) -> dict[str, Any]:
    family, files = kerascv.weight_files(folder)
    with (
        layers_of(files["unet"]) as unet_layers,
        layers_of(files["decoder"]) as decoder,
        layers_of(files["encoder"]) as encoder,
        layers_of(files["text_encoder"]) as text_layers,
    ):
        unet = kerascv.unet_spec(unet_layers, family, files["unet"].name)
        vae = kerascv.vae_spec(decoder, encoder, files["encoder"].name)
        tokenizer = kerascv.words_of(folder)(kerascv.positions(text_layers, files["text_encoder"].name))
        text = kerascv.text_spec(text_layers, family, tokenizer, files["text_encoder"].name)
        read = {"unet": unet_layers, "vae": [*decoder, *encoder], "text_encoder": text_layers}
        parameters = {
            part: sum(math.prod(weight.shape) for layer in layers for weight in layer.weights)
            for part, layers in read.items()
        }
    paths = {part: [files[part]] for part in ("unet", "text_encoder")} | {"vae": [files["decoder"], files["encoder"]]}
    hashes: dict[str, Any] = {part: [file_sha256(path) for path in found] for part, found in paths.items()}
    words = {"class": tokenizer.kind, "vocab_size": tokenizer.vocab_size, "max_tokens": tokenizer.max_tokens}
    return {
        "name": folder.name,
        "family": family,
        "languages": [kerascv.LANGUAGE],
        "size_px": unet.sample_size * vae.downscale,
        "defaults": {
            "sampler": kerascv.SCHEDULE.sampler,
            "steps": kerascv.DEFAULTS.steps,
            "guidance_scale": kerascv.DEFAULTS.guidance_scale,
            "grid": kerascv.SCHEDULE.timestep_spacing,
        },
        "fast": None,
        "components": {
            "unet": _spec("UNet", unet),
            "vae": _spec("VAE", vae),
            "scheduler": _spec("ScheduleSpec", kerascv.SCHEDULE),
            "tokenizer": words,
            "text_encoder": _spec("CLIPText", text),
        },
        "sizes": {
            part: {"parameters": parameters[part], "bytes": sum(path.stat().st_size for path in paths[part])}
            for part in paths
        },
        "licence": None,
        "hashes": {part: each[0] if len(each) == 1 else each for part, each in hashes.items()}
        | {"tokenizer": tokenizer.sha256},
        "notes": list(kerascv.NOTES),
    }


def _spec(name: str, spec: Any) -> dict[str, Any]:
    return {"class": name, **{f.name: to_json(getattr(spec, f.name)) for f in dataclasses.fields(spec)}}

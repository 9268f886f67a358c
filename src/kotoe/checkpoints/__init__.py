"""Checkpoints: `load` makes a Bundle from a name, folder or single file, `save` writes one that others open too.

The canonical folder is diffusers' (model_index.json, unet/, vae/, text_encoder/, tokenizer/, scheduler/); the
conditioners of further languages lie beside it in conditioners/<language>/{tokenizer,text_encoder}, and kotoe.json
lists them; its read_by names the conditioner of languages that share one. Other layouts are read into the same Bundle:
single files by single.py, KerasCV's by kerascv.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import torch

from kotoe import __version__, builtin, hub, licences
from kotoe.bert import BertText
from kotoe.checkpoints import bert, diffusers, schedulers, terms
from kotoe.checkpoints.bundle import LANGUAGE, Bundle, Defaults
from kotoe.checkpoints.files import (
    LARGEST_TOKENIZER_BYTES,
    Folder,
    LazyHashes,
    check_whole,
    choose_dtype,
    replacing,
    write_tensors,
)
from kotoe.checkpoints.keys import DIFFUSERS_VERSION
from kotoe.errors import CheckpointError, UserError, nearest, unknown
from kotoe.spec import BertSpec, TextSpec
from kotoe.text import CLIPText, Conditioner, Conditioners
from kotoe.tokenizers import SPM_STOCK, parse_json
from kotoe.tokens import Tokenizer

FORMAT = 1
PARTS = ("unet", "vae", "text_encoder")
STABLE, INPAINT, ALT = "StableDiffusionPipeline", "StableDiffusionInpaintPipeline", "AltDiffusionPipeline"
ROBERTA = "RobertaSeriesModelWithTransformation"
ENCODERS = {"CLIPTextModel": "clip_text_model", "BertModel": bert.BERT, ROBERTA: bert.XLM}  # class: its model_type
TOKENIZERS = {  # kind: the classes of model_index.json, the one that is written first
    "clip-bpe": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "sentencepiece": ("T5Tokenizer", "T5TokenizerFast", SPM_STOCK),
    "wordpiece": ("BertTokenizer", "BertTokenizerFast"),
    "xlm-roberta": ("XLMRobertaTokenizer", "XLMRobertaTokenizerFast"),
}
SEVERAL = "mul"  # BCP 47's tag for several languages
SHORT, FEW = 5, 0.1  # pieces longer than one byte at a word's end; CLIP's own hold few of another script
UNSAID = (("decoder", "full"), ("batch_size", None))  # defaults that kotoe.json says only where they are others
NOT_LOADED = ("safety_checker", "feature_extractor", "image_encoder")


def load(
    source: str | Path = builtin.DEFAULT,
    *,
    dtype: str | torch.dtype | Mapping[str, str | torch.dtype] | None = None,
    device: str | torch.device | None = None,
    low_memory: bool = False,
    allow_pickle: bool = False,
    tokenizer: str | Path | None = None,
    ema: bool | None = None,
    prediction_type: str | None = None,
) -> Bundle:
    """The Bundle of a built-in model's name, of a folder in diffusers' layout, of a single file in CompVis names, or of
    a folder of KerasCV's files.

    dtype:        of the weights in memory: None or "auto" is bfloat16 where the processor has it and float32 otherwise;
                  "stored" is each tensor's own, to convert; a mapping gives each of "unet", "vae", "text_encoder" its
                  own ("auto" for those left out).
    device:       None is the CPU.
    low_memory:   text encoder, UNet and autoencoder are on the device in turn, not together, and attention is computed
                  piece by piece: the same pictures, more slowly, in less memory.
    allow_pickle: read .bin and .ckpt weights too, as tensors only.
    For files that can't say so themselves (each an error with a folder that can):
    tokenizer:       single files and KerasCV's: a folder with the tokenizer of the text encoder, or a checkpoint's
                     folder that has it.
    ema:             single files: which UNet, where the file holds two: True the running average, False the one as
                     trained.
    prediction_type: single files: epsilon or v_prediction; must be given for SD 2.x unless the file's head says it.
    Raises CheckpointError naming the file, key or tensor that is missing, damaged, unsafe or not implemented.
    """
    path = builtin.resolve(source, allow_pickle=allow_pickle)
    works_on = _device(device)
    dtypes = _dtypes(dtype, works_on)
    place = torch.device("cpu") if low_memory else works_on
    asked = {"tokenizer": tokenizer, "ema": ema, "prediction_type": prediction_type}
    if path.is_file():
        from kotoe.checkpoints import single

        found = single.load(path, dtypes=dtypes, device=place, allow_pickle=allow_pickle, **asked)  # type: ignore[arg-type]
        return _in_turns(found, works_on) if low_memory else found
    folder = Folder(path)
    if not folder.has("model_index.json"):
        from kotoe.checkpoints import kerascv

        if kerascv.is_kerascv(folder):
            for name in ("ema", "prediction_type"):
                if asked[name] is not None:
                    raise UserError(
                        f"{name} {asked[name]} for KerasCV's files", allowed=f"{name} for single files only"
                    )
            found = kerascv.load_kerascv(folder, tokenizer, dtypes, place)
            return _in_turns(found, works_on) if low_memory else found
    for name, value in asked.items():
        if value is not None:
            raise UserError(f"{name} {value} for the folder {source}", allowed=f"{name} for files that can't say it")
    index = _model_index(folder)
    card = _card(folder)
    schedule, grid, notes = schedulers.schedule_spec(folder.json("scheduler/scheduler_config.json"), index["scheduler"])
    notes += [f"{part}/ is not used" for part in NOT_LOADED if folder.has(part)]
    notes += diffusers.half_notes(folder, allow_pickle)
    main = card["languages"][0]

    words = cache(partial(diffusers.tokenizer_of, folder))  # several languages can have one

    @cache
    def conditioner(base: str) -> Conditioner:
        kind = dtypes["text_encoder"]
        found = diffusers.read_conditioner(folder, base, main, kind, place, allow_pickle, tokenizer=words(base))
        diffusers.check_fits(found, unet.spec.cross_attention_dim, f"{base}text_encoder")
        return found

    def of(language: str, base: str) -> Callable[[], Conditioner]:
        licence = terms.of_conditioner(folder, card, language)
        return lambda: replace(conditioner(base), language=language, licence=licence)

    unet = diffusers.read_unet(folder, dtypes["unet"], place, allow_pickle)
    vae = diffusers.read_vae(folder, dtypes["vae"], place, allow_pickle)
    hashes = LazyHashes({part: diffusers.weight_files(folder, part, allow_pickle) for part in ("unet", "vae")})
    bundle = Bundle(
        name=card["name"],
        unet=unet,
        vae=vae,
        schedule=schedule,
        conditioners=Conditioners(
            {language: of(language, base) for language, base in bases(card).items()},
            {language: partial(words, base) for language, base in bases(card).items()},
        ),
        default_language=main,
        family=unet.spec.family,
        licence=card["licence"],
        folder=folder.root,
        hashes=hashes,
        defaults=Defaults(**{"grid": grid, **card["defaults"]}),
        notes=tuple(notes),
    )
    from kotoe.checkpoints import fast

    bundle = fast.read(bundle, folder, card, "stored" if dtypes["vae"] is None else dtypes["vae"], place)
    return _in_turns(bundle, works_on) if low_memory else bundle


def _in_turns(bundle: Bundle, works_on: torch.device) -> Bundle:
    """A bundle, just loaded onto the host, in little memory: see `load`."""
    bundle.unet.slice_attention()
    bundle.vae.slice_attention()
    return replace(bundle, works_on=works_on)


def save(
    bundle: Bundle,
    path: str | Path,
    *,
    to: str = "diffusers",
    dtype: str | torch.dtype | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the bundle in one of FORMATS, all of it or nothing.

    to:        "diffusers", a folder that stock diffusers opens; "compvis", a single .safetensors file; or "kerascv", a
               folder of HDF5 files (in float32).
    dtype:     of the weights on disk: None as in memory, "float16" for half the size.
    overwrite: replace a checkpoint that is there already; a folder's other top-level files, such as the card, are kept.
    """
    if to not in FORMATS:
        raise unknown("format", to, FORMATS)
    for network in (bundle.unet, bundle.vae):
        check_whole(network)
    if hub.pinned(bundle.name):  # what is written is no longer that commit
        bundle = replace(bundle, name=bundle.name.partition("@")[0].partition("/")[2])
    for adapter in bundle.adapters:
        if adapter.kind == "embedding":
            raise UserError(
                f"{bundle.name} with the embedding {adapter.token!r} in it can't be saved",
                allowed="the model without embeddings; those of LoRAs are part of the weights",
                hint="A tokenizer's files don't say that a token stands for several vectors",
            )
    kind = None if dtype is None else choose_dtype(dtype, torch.device("cpu"))
    return FORMATS[to](bundle, Path(path), dtype=kind, overwrite=overwrite)


def _save_compvis(bundle: Bundle, path: Path, *, dtype: torch.dtype | None, overwrite: bool) -> Path:
    from kotoe.checkpoints import single

    return single.save(bundle, path, dtype=dtype, overwrite=overwrite)


def _save_diffusers(bundle: Bundle, folder: Path, *, dtype: torch.dtype | None, overwrite: bool) -> Path:
    from kotoe.checkpoints import fast

    scheduler, config = schedulers.schedule_config(bundle.schedule, bundle.defaults.grid)
    with replacing(folder, overwrite=overwrite, marker="model_index.json") as new:
        _write_part(
            new / "unet", diffusers.unet_config(bundle.unet.spec), bundle.unet, "diffusion_pytorch_model", dtype
        )
        _write_part(new / "vae", diffusers.vae_config(bundle.vae.spec), bundle.vae, "diffusion_pytorch_model", dtype)
        read_by, parts = _shared(bundle), {}
        for language in bundle.languages:
            name = read_by.get(language, language)
            base = new if name == bundle.default_language else new / "conditioners" / name
            if (base / "text_encoder").exists():
                continue
            conditioner = bundle.conditioners[language]
            if conditioner.licence is not None and terms.differs(conditioner.licence, bundle.licence):
                parts[name] = terms.laid(conditioner.licence, new, terms.text_name(name))
            diffusers.check_tokenizer(conditioner.tokenizer, conditioner.encoder.spec, f"conditioner {language}")
            _write_encoder(base / "text_encoder", conditioner.encoder, dtype)
            (base / "tokenizer").mkdir()
            conditioner.tokenizer.save(base / "tokenizer")
        (new / "scheduler").mkdir()
        _write_json(new / "scheduler" / "scheduler_config.json", config)
        text = bundle.conditioner()
        pipeline, encoder = _stock_classes(text)
        _write_json(
            new / "model_index.json",
            {
                "_class_name": INPAINT if bundle.unet.spec.inpaints else pipeline,
                "_diffusers_version": DIFFUSERS_VERSION,
                "unet": ["diffusers", "UNet2DConditionModel"],
                "vae": ["diffusers", "AutoencoderKL"],
                "text_encoder": encoder,
                "tokenizer": ["transformers", _stock_tokenizer(text.tokenizer)],
                "scheduler": ["diffusers", scheduler],
                **{part: [None, None] for part in NOT_LOADED},
                "requires_safety_checker": False,
            },
        )
        _write_json(
            new / "kotoe.json",
            {
                "format": FORMAT,
                "kotoe_version": __version__,
                "name": bundle.name,
                "family": bundle.family,
                "licence": bundle.licence,
                **({"licences": parts} if parts else {}),
                "languages": list(bundle.languages),
                **({"read_by": read_by} if read_by else {}),
                "defaults": {k: v for k, v in asdict(bundle.defaults).items() if (k, v) not in UNSAID},
                **fast.write(bundle, new, dtype),
            },
        )
    return folder


def _shared(bundle: Bundle) -> dict[str, str]:
    """By language the name of its conditioner, for those that several languages have: the first language's where that
    has it too, else "mul", BCP 47's for several."""
    together: dict[int, list[str]] = {}
    for language in bundle.languages:
        together.setdefault(id(bundle.conditioners[language].encoder), []).append(language)
    found: dict[str, str] = {}
    names = (name for k in count() if (name := SEVERAL if k == 0 else f"{SEVERAL}-x-{k}") not in bundle.languages)
    for languages in together.values():
        if len(languages) > 1:
            own = languages[0] == bundle.default_language
            found |= dict.fromkeys(languages[own:], languages[0] if own else next(names))
    return found


def _save_kerascv(bundle: Bundle, folder: Path, *, dtype: torch.dtype | None, overwrite: bool) -> Path:
    from kotoe.checkpoints import kerascv

    if dtype not in (None, torch.float32):
        raise UserError(f"dtype {dtype} for KerasCV's files", allowed="float32, which they are always in")
    return kerascv.save_kerascv(bundle, folder, overwrite=overwrite)


FORMATS: dict[str, Callable[..., Path]] = {  # what `save` writes
    "diffusers": _save_diffusers,
    "compvis": _save_compvis,
    "kerascv": _save_kerascv,
}


def _device(asked: str | torch.device | None) -> torch.device:
    """The device, if this machine has it."""
    here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    here += ["mps"] if torch.backends.mps.is_available() else []
    try:
        device = torch.device("cpu" if asked is None else asked)
    except RuntimeError:
        raise UserError(f"device {str(asked)!r}", allowed=", ".join(here)) from None
    if (f"cuda:{device.index or 0}" if device.type == "cuda" else device.type) not in here:
        raise UserError(f"device {str(asked)!r}, which this machine doesn't have", allowed=", ".join(here))
    return device


def _dtypes(asked: Any, device: torch.device) -> dict[str, torch.dtype | None]:
    if not isinstance(asked, Mapping):
        asked = dict.fromkeys(PARTS, asked)
    for part in asked:
        if part not in PARTS:
            raise unknown("part in dtype", part, PARTS)
    return {part: choose_dtype(asked.get(part), device) for part in PARTS}


def _model_index(folder: Folder) -> dict[str, str]:
    """Part to class name, after checking that these are the parts and classes we read."""
    if not folder.has("model_index.json"):
        raise CheckpointError(
            f"{folder.root} holds no model_index.json",
            allowed="a folder in diffusers' layout, as StableDiffusionPipeline.save_pretrained writes it, or KerasCV's",
        )
    index = folder.json("model_index.json")
    if index.get("_class_name") not in (STABLE, INPAINT, ALT):
        raise CheckpointError(
            f"{folder.name}: a pipeline of class {index.get('_class_name')!r}",
            allowed=f"{STABLE}, {INPAINT}, {ALT}",
        )
    classes = {
        "unet": ("UNet2DConditionModel",),
        "vae": ("AutoencoderKL",),
        "text_encoder": tuple(ENCODERS),
        "tokenizer": tuple(name for names in TOKENIZERS.values() for name in names),
        "scheduler": tuple(schedulers.SCHEDULERS),
    }
    found = {}
    for part, allowed in classes.items():
        value = index.get(part)
        kind = value[1] if isinstance(value, list) and len(value) == 2 else None
        if kind not in allowed:
            raise CheckpointError(f"{folder.name}: {part} is {value!r} in model_index.json", allowed=", ".join(allowed))
        found[part] = kind
    if folder.has("text_encoder/config.json"):
        own, asked = folder.json("text_encoder/config.json").get("model_type"), ENCODERS[found["text_encoder"]]
        if own is not None and own != asked:
            raise CheckpointError(
                f"{folder.name}: model_index.json says {found['text_encoder']}, but in text_encoder/config.json "
                f"model_type is {own!r}",
                allowed=asked,
            )
    for part in index:
        if part not in (*classes, *NOT_LOADED, "requires_safety_checker") and not part.startswith("_"):
            raise CheckpointError(f"{folder.name}: unknown part {part!r} in model_index.json")
    return found


def _guessed(folder: Folder) -> str:
    """The language of a folder that doesn't say: "en" where the words are CLIP's, "und" where they may be any."""
    for name in ("vocab.json", "tokenizer.json"):
        if folder.has(f"tokenizer/{name}"):
            value = parse_json(folder.read(f"tokenizer/{name}", LARGEST_TOKENIZER_BYTES), f"tokenizer/{name}")
            model = value.get("model")
            vocab = model.get("vocab") if isinstance(model, dict) else value
            words = [word for word in vocab if len(word) > SHORT] if isinstance(vocab, dict) else []
            # Bytes 0xD0 to 0xEF, which stand for themselves here, begin the letters of all scripts but the European.
            foreign = sum(any("\xd0" <= letter <= "\xef" for letter in word) for word in words)
            return "en" if foreign <= FEW * len(words) else "und"
    return "und"


def _card(folder: Folder) -> dict[str, Any]:
    """kotoe.json, or what stands for it in a folder that Kotoe didn't write."""
    if not folder.has("kotoe.json"):
        guess, licence = [_guessed(folder)], licences.stated(folder.root)
        known: dict[str, Any] = {"name": folder.name, "licence": licence, "languages": guess}
        return {**known, "licences": {}, "read_by": {}, "defaults": {}, "fast": None}
    card = folder.json("kotoe.json")
    allowed = (
        *("format", "kotoe_version", "name", "family", "licence", "licences", "languages", "read_by", "defaults"),
        "fast",
    )
    for key in card:
        if key not in allowed:
            near = nearest(key, allowed)
            raise CheckpointError(
                f"kotoe.json: unknown key {key!r}",
                allowed=", ".join(allowed),
                hint=f"Did you mean {near!r}?" if near else "",
            )
    if card.get("format") != FORMAT:
        raise CheckpointError(f"kotoe.json: format {card.get('format')!r}", allowed=str(FORMAT), hint="Update Kotoe")
    languages = card.get("languages")
    tags = [x for x in languages if isinstance(x, str) and LANGUAGE.fullmatch(x)] if isinstance(languages, list) else []
    if not tags or tags != languages or len({tag.lower() for tag in tags}) != len(tags):
        raise CheckpointError(f"kotoe.json: languages {languages!r}", allowed="a list of different BCP 47 tags")
    read_by = card.get("read_by", {})
    if not isinstance(read_by, dict) or not all(
        tag in tags[1:] and isinstance(by, str) and LANGUAGE.fullmatch(by) for tag, by in read_by.items()
    ):
        raise CheckpointError(
            f"kotoe.json: read_by {read_by!r}", allowed="further languages, and by each the name of its conditioner"
        )
    parts = card.get("licences", {})
    if not licences.are_parts(parts):
        raise CheckpointError(f"kotoe.json: licences {parts!r}", allowed=f"by name, {', '.join(licences.FIELDS)}")
    name, licence, defaults = card.get("name"), card.get("licence"), card.get("defaults", {})
    if not isinstance(name, str) or not isinstance(licence, str | None) or not isinstance(defaults, dict):
        raise CheckpointError("kotoe.json: name, licence and defaults", allowed="a text, a text or null, a table")
    names = [f.name for f in fields(Defaults)]
    for key in defaults:
        if key not in names:
            raise CheckpointError(f"kotoe.json: unknown key {key!r} in defaults", allowed=", ".join(names))
    found = {"name": hub.named(folder.root, name), "licence": licence, "licences": parts, "languages": languages}
    return {**found, "read_by": read_by, "defaults": defaults, "fast": card.get("fast")}


def bases(card: Mapping[str, Any]) -> dict[str, str]:
    """Where in a folder the conditioner of each language is: "" is the folder's own, the first language's."""
    main, *others = card["languages"]
    names = {language: card["read_by"].get(language, language) for language in others}
    return {main: "", **{tag: "" if name == main else f"conditioners/{name}/" for tag, name in names.items()}}


def _write_part(
    folder: Path,
    config: dict[str, Any],
    module: torch.nn.Module,
    stem: str,
    dtype: torch.dtype | None,
    rename: Callable[[str], str] = lambda name: name,
) -> None:
    folder.mkdir(parents=True)
    _write_json(folder / "config.json", config)
    write_tensors(module, folder / f"{stem}.safetensors", dtype, rename)


def _stock_classes(conditioner: Conditioner) -> tuple[str, list[str]]:
    """The pipeline and the text encoder's library and class, as stock diffusers calls them."""
    spec = conditioner.encoder.spec
    if isinstance(spec, TextSpec):
        return STABLE, ["transformers", "CLIPTextModel"]
    if spec.projection_dim is None:
        return STABLE, ["transformers", "BertModel"]
    return ALT, ["alt_diffusion", ROBERTA]


def _stock_tokenizer(tokenizer: Tokenizer) -> str:
    """The class that opens its files: T5Tokenizer, rinna's, reads a SentencePiece model alone, and not to its ids."""
    twice = tokenizer.kind == "sentencepiece" and "tokenizer.json" in tokenizer.files
    return SPM_STOCK if twice else TOKENIZERS[tokenizer.kind][0]


def _write_encoder(folder: Path, encoder: CLIPText | BertText, dtype: torch.dtype | None) -> None:
    spec = encoder.spec
    if isinstance(spec, BertSpec):
        _write_part(folder, bert.bert_config(spec), encoder, "model", dtype, lambda name: bert.name_for(name, spec))
        return
    stock = diffusers.stock_text(encoder)
    _write_part(folder, diffusers.text_config(stock.spec), stock, "model", dtype)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")

"""Single files of Stable Diffusion 1.x and 2.x (`compvis` has their names): one file to a Bundle, and back.

A file holds weights only. What it can't say is asked for (a tokenizer; which of two UNets; what an SD 2.x UNet
predicts), read from the ModelSpec texts in a safetensors head where they are, or what every published file has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kotoe.bert import BertText
from kotoe.checkpoints import Bundle, compvis, diffusers
from kotoe.checkpoints.compvis import TEXTS
from kotoe.checkpoints.files import (
    FLOATS,
    SHOWN,
    Entry,
    Folder,
    LazyHashes,
    M,
    check_shapes,
    entries,
    file_sha256,
    fill,
    held,
    metadata,
    save_tensors,
    skeleton,
    weights,
)
from kotoe.checkpoints.terms import joined
from kotoe.config import differing_keys, to_json
from kotoe.errors import CheckpointError, UserError, unknown
from kotoe.runs import atomic
from kotoe.schedule import alphas_cumprod
from kotoe.spec import BertSpec, ScheduleSpec, UNetSpec, VAESpec
from kotoe.text import CLIPText, Conditioner, Conditioners
from kotoe.tokens import Tokenizer
from kotoe.unet import UNet
from kotoe.vae import VAE

UNET, EMA, FIRST = "model.diffusion_model.", "model_ema.", "first_stage_model."  # FIRST: the VAE
BARE_CLIP = "cond_stage_model.transformer.embeddings.token_embedding.weight"  # transformers 5 drops "text_model."
# Buffers that training derives from its settings; of these two are read: `alphas_cumprod` and `scale_factor`.
BUFFERS = frozenset(
    "betas alphas_cumprod alphas_cumprod_prev sqrt_alphas_cumprod sqrt_one_minus_alphas_cumprod "
    "log_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod posterior_variance "
    "posterior_log_variance_clipped posterior_mean_coef1 posterior_mean_coef2 logvar lvlb_weights scale_factor "
    "model_ema.decay model_ema.num_updates cond_stage_model.logit_scale cond_stage_model.model.logit_scale "
    "cond_stage_model.model.attn_mask cond_stage_model.transformer.embeddings.position_ids "
    "cond_stage_model.transformer.text_model.embeddings.position_ids".split()
)
FOREIGN = {
    "conditioner.": "Stable Diffusion XL",
    "text_encoders.": "Stable Diffusion 3 or later",
    "control_model.": "a ControlNet",
    "depth_model.": "Stable Diffusion 2 with depth",
    "embedder.": "Stable unCLIP",
    "lora_": "a LoRA",
    "string_to_": "a textual inversion",
    "down_blocks.": "a UNet in diffusers' names",
    "text_model.": "a text encoder alone",
    "encoder.": "an autoencoder alone",
}
ABAR_TOLERANCE = 4e-3  # a file's table may be in bfloat16, 2e-3 off ours; zero terminal SNR is 35e-3 away
EDGES = {"epsilon": 64, "v_prediction": 96}  # latent pixels of published SD 2.x; 1.x has 64
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}  # ModelSpec's words to ours
SPEC = "modelspec."
IN_SHAPES = (  # what of a BERT its shapes and its tokenizer say
    *("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "positions", "token_types"),
    *("bos", "eos", "pad"),
)


# --- What a file holds --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The tensors of a file by part, without the parts' prefixes.

    text:    in the layout of that name in compvis.TEXTS, what is read of it. unused: what is never run.
    ema:     running averages of the UNet's tensors, under their names without dots; mostly empty.
    buffers: under their whole names.
    texts:   of a safetensors head.
    """

    unet: Mapping[str, Entry]
    ema: Mapping[str, Entry]
    vae: Mapping[str, Entry]
    text: Mapping[str, Entry]
    unused: Mapping[str, Entry]
    layout: str
    buffers: Mapping[str, Entry]
    texts: Mapping[str, str]


def contents(found: Iterable[Entry], texts: Mapping[str, str], where: str) -> Contents:
    """Every tensor in its place. Raises CheckpointError for one that has none, and for files of other families."""
    by_name = {entry.name: entry for entry in found}
    for prefix, family in FOREIGN.items():
        if any(name.startswith(prefix) for name in by_name):
            raise CheckpointError(f"{where} is {family}", allowed="single files of Stable Diffusion 1.x and 2.x")
    if BARE_CLIP in by_name:
        full = {_with_text_model(name): entry for name, entry in by_name.items()}
        if len(full) != len(by_name):
            raise CheckpointError(f"{where} holds the text encoder twice, with and without text_model.", allowed="one")
        by_name = full
    kinds = [kind for kind, layout in TEXTS.items() if layout.prefix + layout.tokens in by_name]
    if len(kinds) != 1:
        raise CheckpointError(
            f"{where} holds {' and '.join(kinds) or 'no'} text encoder",
            allowed="one, with " + " or ".join(f"{x.prefix}{x.tokens}" for x in TEXTS.values()),
        )
    layout = TEXTS[kinds[0]]
    buffers = {name: by_name.pop(name) for name in BUFFERS & by_name.keys()}
    unet, ema, vae, text = (_taken(by_name, prefix) for prefix in (UNET, EMA, FIRST, layout.prefix))
    if by_name:
        more = f" and {len(by_name) - SHOWN} more" if len(by_name) > SHOWN else ""
        raise CheckpointError(
            f"{where}: Stable Diffusion 1.x and 2.x have no tensors {', '.join(list(by_name)[:SHOWN])}{more}",
            hint="They may change what the model draws in a way that Kotoe doesn't know",
        )
    for part, prefix in ((unet, UNET), (vae, FIRST)):
        if not part:
            raise CheckpointError(f"{where} holds no tensor under {prefix}", allowed="UNet, VAE and text encoder")
    for part in (unet, ema, vae, text):
        list(weights(part.values(), where))  # for its refusal of dtypes that we don't read
    unused = {name: text.pop(name) for name in layout.unused(_shapes(text))}
    return Contents(
        unet=unet, ema=ema, vae=vae, text=text, unused=unused, layout=kinds[0], buffers=buffers, texts=texts
    )


def _with_text_model(name: str) -> str:
    prefix = TEXTS["clip"].prefix
    return prefix + diffusers.text_name(name.removeprefix(prefix)) if name.startswith(prefix) else name


def _taken(by_name: dict[str, Entry], prefix: str) -> dict[str, Entry]:
    """The entries under a prefix, without it, taken out of the table."""
    names = [name for name in by_name if name.startswith(prefix)]
    return {name.removeprefix(prefix): by_name.pop(name) for name in names}


def _shapes(found: Mapping[str, Entry]) -> dict[str, tuple[int, ...]]:
    return {name: entry.shape for name, entry in found.items()}


def chosen_unet(found: Contents, ema: bool | None, where: str) -> Mapping[str, Entry]:
    """The UNet's tensors: as trained, or (ema) their running averages. Where there are both, one must be asked for."""
    if not found.ema:
        if ema:
            raise UserError(f"{where} holds no running averages (model_ema.*)", allowed="ema False, or not given")
        return found.unet
    flat = compvis.ema_names(found.unet)
    averages = {name: found.ema[short] for name, short in flat.items() if short in found.ema}
    wrong = [f"{EMA}{name}" for name in found.ema.keys() ^ set(flat.values())]
    if wrong:
        raise CheckpointError(
            f"{where}: {len(wrong)} running averages don't fit the UNet: {', '.join(sorted(wrong)[:SHOWN])}",
            allowed="one for each tensor of the UNet, and no other",
        )
    if ema is None:
        raise UserError(
            f"{where} holds the UNet twice: as trained, and the running average of it (model_ema.*)",
            allowed="ema True or False (--ema, --no-ema)",
            hint="The average mostly draws better; training goes on from the other",
        )
    return averages if ema else found.unet


# --- What a file doesn't say --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a reader makes of a file: Specs, and of the text encoder all but the tokenizer's ids."""

    unet: UNetSpec
    vae: VAESpec
    text: Mapping[str, Any]
    schedule: ScheduleSpec
    notes: tuple[str, ...]


def said(found: Contents, prediction: str, where: str) -> Said:
    """The Specs that a file's shapes, buffers and texts imply, with a prediction type."""
    vae = compvis.vae_spec(_shapes(found.vae), 1, f"{where}: VAE")
    unet = compvis.unet_spec(_shapes(found.unet), EDGES[prediction], f"{where}: UNet")
    notes = []
    edge = EDGES[prediction] if unet.use_linear_projection else EDGES["epsilon"]
    resolution = found.texts.get(SPEC + "resolution")
    width, _, height = (resolution or "").partition("x")
    if width.isdecimal() and len(width) < 5 and width == height and int(width) and int(width) % vae.downscale == 0:
        edge = int(width) // vae.downscale
    elif resolution is None:
        notes.append(f"a single file doesn't say its picture size: {edge * vae.downscale} pixels, as published")
    else:
        notes.append(f"resolution {resolution!r} is no square that the VAE can give: {edge * vae.downscale} pixels")
    if "scale_factor" in found.buffers:
        vae = replace(vae, scaling_factor=_scale_factor(found.buffers["scale_factor"], where))
    if found.ema:
        notes.append("it holds the UNet twice, as trained and as a running average (model_ema.*)")
    if left := [*found.buffers, *found.unused]:
        notes.append(f"{len(left)} tensors are derived from others or never run: {', '.join(sorted(left))}")
    return Said(
        unet=replace(unet, sample_size=edge),
        vae=replace(vae, sample_size=edge * vae.downscale),
        text=compvis.text_dims(_shapes(found.text), TEXTS[found.layout], f"{where}: text encoder"),
        schedule=_schedule(found.buffers.get("alphas_cumprod"), prediction, where),
        notes=tuple(notes),
    )


def known_prediction(found: Contents, where: str) -> str | None:
    """What the UNet predicts, where the file's head says so or there is one published kind; None where it is open."""
    text = found.texts.get(SPEC + "prediction_type")
    if text is not None:
        if text not in PREDICTIONS:
            raise CheckpointError(f"{where}: {SPEC}prediction_type {text!r}", allowed=", ".join(PREDICTIONS))
        return PREDICTIONS[text]
    linear = compvis.is_linear(_shapes(found.unet))
    return None if linear else "epsilon"


def chosen_prediction(found: Contents, asked: str | None, where: str) -> str:
    """The prediction type asked for, or else the one known. Raises UserError where neither is."""
    if asked is not None:
        if asked not in EDGES:
            raise unknown("prediction_type", asked, EDGES)
        return asked
    known = known_prediction(found, where)
    if known is None:
        raise UserError(
            f"{where} doesn't say what its UNet predicts, and Stable Diffusion 2.x has been published with either",
            allowed="prediction_type epsilon or v_prediction (--prediction-type)",
            hint="Models of 512 pixels (2-base, 2-1-base) predict epsilon, those of 768 pixels (2, 2-1) v_prediction; "
            "the wrong one draws noise",
        )
    return known


def _scale_factor(entry: Entry, where: str) -> float:
    value = float(entry.read(None).flatten()[0]) if entry.shape in ((), (1,)) else math.nan
    if not 1e-6 < value < 1e6:
        raise CheckpointError(f"{where}: scale_factor {value}, shape {list(entry.shape)}", allowed="a number above 0")
    return value


def _schedule(table: Entry | None, prediction: str, where: str) -> ScheduleSpec:
    """The published schedule, with zero terminal SNR where the file's table says so."""
    plain = ScheduleSpec(prediction_type=prediction, sampler="ddim" if prediction == "v_prediction" else "pndm")
    zero = replace(plain, rescale_betas_zero_snr=True, timestep_spacing="trailing", sampler="ddim")
    if table is None:
        return plain
    for spec in (plain, zero):
        ours = alphas_cumprod(spec)
        if table.shape == ours.shape and bool((table.read(None).double() - ours).abs().max() < ABAR_TOLERANCE):
            return spec
    raise CheckpointError(
        f"{where}: its table alphas_cumprod {list(table.shape)} is of another noise schedule",
        allowed="1000 steps, beta 0.00085 to 0.012, scaled_linear, with or without zero terminal SNR",
    )


# --- Reading ------------------------------------------------------------------------------------------------


def load(
    path: Path,
    *,
    dtypes: Mapping[str, torch.dtype | None],
    device: torch.device,
    tokenizer: str | Path | None,
    ema: bool | None,
    prediction_type: str | None,
    allow_pickle: bool,
) -> Bundle:
    """The Bundle of a single file. See `kotoe.load`."""
    name = path.name
    found = contents(entries(path, name, allow_pickle), metadata(path, name), name)
    unet_entries = chosen_unet(found, ema, name)
    specs = said(found, chosen_prediction(found, prediction_type, name), name)
    if specs.text["hidden_size"] != specs.unet.cross_attention_dim:
        width = specs.text["hidden_size"]
        raise CheckpointError(f"{name}: states {width} wide for a UNet that reads {specs.unet.cross_attention_dim}")
    words = _tokenizer(tokenizer, specs.text, name)
    layout = TEXTS[found.layout]
    text = compvis.text_spec(specs.text, layout, words)
    diffusers.check_tokenizer(words, text, name)
    u, v = specs.unet, specs.vae
    unet = _filled(
        lambda: UNet(u),
        unet_entries,
        lambda t: compvis.unet_to_compvis(t, u),
        lambda t: compvis.unet_from_compvis(t, u),
        f"{name}: {UNET}*",
        dtypes["unet"],
        device,
    )
    vae = _filled(
        lambda: VAE(v),
        found.vae,
        lambda t: compvis.vae_to_compvis(t, v),
        lambda t: compvis.vae_from_compvis(t, v),
        f"{name}: {FIRST}*",
        dtypes["vae"],
        device,
    )

    def conditioner() -> Conditioner:
        encoder: CLIPText | BertText = _filled(
            lambda: diffusers.encoder_of(text),
            found.text,
            layout.to_compvis,
            layout.from_compvis,
            f"{name}: {layout.prefix}*",
            dtypes["text_encoder"],
            device,
        )
        hashes = LazyHashes({"text_encoder": (path,)}, {"tokenizer": words.sha256})
        return Conditioner(language, words, encoder, hashes)

    language = "en" if words.kind == "clip-bpe" else "und"
    return Bundle(
        name=path.stem,
        unet=unet,
        vae=vae,
        schedule=specs.schedule,
        conditioners=Conditioners({language: conditioner}),
        default_language=language,
        family=u.family,
        licence=found.texts.get(SPEC + "license"),
        # Of two UNets the file's hash doesn't say which: then the tensors' own counts.
        hashes={} if found.ema else LazyHashes({"unet": (path,), "vae": (path,)}),
        notes=specs.notes,
    )


def _tokenizer(folder: str | Path | None, dims: Mapping[str, Any], where: str) -> Tokenizer:
    """The tokenizer in a folder, or in the tokenizer/ of a checkpoint, which must have the encoder's vocabulary."""
    ids = dims["vocab_size"]
    if folder is None:
        raise UserError(
            f"{where} holds weights only: it has no tokenizer",
            allowed=f"tokenizer=FOLDER (--tokenizer FOLDER), one of {ids} ids",
            hint="The tokenizer/ folder of any checkpoint in diffusers' layout with the same vocabulary is one, "
            "and those of Stable Diffusion's own releases fit all models tuned from them",
        )
    root = Folder(folder)
    found = diffusers.read_tokenizer(root, "tokenizer" if root.has("tokenizer") else "", dims["max_tokens"])
    if found.vocab_size != ids:
        raise CheckpointError(
            f"{folder}: a tokenizer of {found.vocab_size} ids for a text encoder of {ids} embeddings",
            allowed="the tokenizer that the text encoder was trained with",
        )
    return found


def _filled(
    make: Callable[[], M],
    found: Mapping[str, Entry],
    to_compvis: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    from_compvis: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    what: str,
    dtype: torch.dtype | None,
    device: torch.device,
) -> M:
    """The module with the file's tensors: exactly those that writing it would give, by name and shape."""
    net = skeleton(make)
    expected = {name: tuple(t.shape) for name, t in to_compvis(net.state_dict()).items()}
    hint = "The file is damaged, or of an architecture that Kotoe doesn't read"
    check_shapes(expected, _shapes(found), what, says="the other tensors", hint=hint)
    ours = from_compvis({name: found[name].read(dtype) for name in expected})
    return fill(net, {name: t.to(device) for name, t in ours.items()})


# --- Writing ------------------------------------------------------------------------------------------------


def save(bundle: Bundle, path: Path, *, dtype: torch.dtype | None, overwrite: bool) -> Path:
    """Write a bundle of one language as a single .safetensors file in CompVis names, whole or not at all.

    Refuses what a reader of such a file would take for something else: other numbers of heads or groups, another
    scaling factor or noise schedule. Not kept: sampler, grid, steps and guidance by default, and the tokenizer.
    The encoder of SD 2.x is written with the blocks that are run; readers load it without the last one, which isn't.
    """
    if path.suffix != ".safetensors":
        raise UserError(f"{path} as a single file", allowed="a name that ends in .safetensors")
    if path.exists() and not (overwrite and path.is_file()):
        raise UserError(f"{path} is there already", hint="Pass overwrite=True to replace it, or another name")
    if len(bundle.languages) != 1:
        raise UserError(
            f"{bundle.name} has {len(bundle.languages)} languages, and a single file has one text encoder",
            allowed=f"one of {', '.join(bundle.languages)} (kotoe convert: --language)",
        )
    conditioner = bundle.conditioner()
    diffusers.check_tokenizer(conditioner.tokenizer, conditioner.encoder.spec, f"conditioner {conditioner.language}")
    encoder, layout = _text_of(conditioner.encoder)
    unet, vae = bundle.unet, bundle.vae
    tensors = {
        **_under(UNET, compvis.unet_to_compvis(unet.state_dict(), unet.spec)),
        **_under(FIRST, compvis.vae_to_compvis(vae.state_dict(), vae.spec)),
        **_under(layout.prefix, layout.to_compvis(encoder.state_dict())),
    }
    tensors = {name: t.detach().to("cpu", dtype).contiguous() for name, t in tensors.items()}
    tensors["alphas_cumprod"] = alphas_cumprod(bundle.schedule).float()
    texts = _texts(bundle)
    _check_said(bundle, encoder, tensors, texts)
    with atomic(path) as temporary:
        save_tensors(tensors, temporary, texts)
    return path


def _text_of(encoder: CLIPText | BertText) -> tuple[CLIPText | BertText, compvis.TextLayout]:
    """A text encoder as a single file holds it, and how."""
    if isinstance(encoder, BertText):
        spec = encoder.spec
        said = replace(BertSpec(), **{key: getattr(spec, key) for key in IN_SHAPES})
        if differing := differing_keys(to_json(spec), to_json(said)):
            raise CheckpointError(
                f"a single file can't say that a BERT's {differing[0]} is {getattr(spec, differing[0])}",
                allowed=f"{getattr(said, differing[0])}, as in Taiyi Stable Diffusion",
                hint="Keep this model in diffusers' layout",
            )
        return encoder, TEXTS["bert"]
    stock = diffusers.stock_text(encoder)
    kinds = [kind for kind, layout in TEXTS.items() if layout.act == stock.spec.hidden_act]
    return stock, TEXTS[kinds[0]]


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: t for name, t in tensors.items()}


def _texts(bundle: Bundle) -> dict[str, str]:
    """What ModelSpec 1.0 has words for."""
    two, v = bundle.family.startswith("sd2"), bundle.schedule.prediction_type == "v_prediction"
    edge = bundle.unet.spec.sample_size * bundle.vae.spec.downscale
    licence = joined(bundle.licence, [bundle.conditioner().licence])
    found = {
        "sai_model_spec": "1.0.0",
        "architecture": f"stable-diffusion-v2-{'768-v' if v else '512'}" if two else "stable-diffusion-v1",
        "implementation": f"https://github.com/{'Stability-AI/stablediffusion' if two else 'CompVis/stable-diffusion'}",
        "title": bundle.name,
        "resolution": f"{edge}x{edge}",
        "prediction_type": "v" if v else "epsilon",
        **({} if licence is None else {"license": licence}),
    }
    return {SPEC + key: text for key, text in found.items()}


def _check_said(
    bundle: Bundle, encoder: CLIPText | BertText, tensors: Mapping[str, Tensor], texts: Mapping[str, str]
) -> None:
    """Refuse a bundle that reading its file would make another one of."""
    listed = [Entry(name, tuple(t.shape), "F32", partial(held, t.detach())) for name, t in tensors.items()]
    keep = "Keep this model in diffusers' layout"
    try:
        read = said(contents(listed, texts, bundle.name), bundle.schedule.prediction_type, bundle.name)
    except CheckpointError as error:
        raise CheckpointError(f"as a single file, {error.given}", allowed=error.allowed, hint=keep) from None
    same_schedule = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "rescale_betas_zero_snr")
    pairs = {
        "UNet": (to_json(bundle.unet.spec), to_json(read.unet)),
        "VAE": (to_json(replace(bundle.vae.spec, sample_size=read.vae.sample_size)), to_json(read.vae)),
        "text encoder": ({key: getattr(encoder.spec, key) for key in read.text}, dict(read.text)),
        "schedule": tuple({key: getattr(s, key) for key in same_schedule} for s in (bundle.schedule, read.schedule)),
    }
    for what, (ours, theirs) in pairs.items():
        for key in differing_keys(ours, theirs):
            raise CheckpointError(
                f"{bundle.name}: a single file can't say that the {what}'s {key} is {ours[key]}",
                allowed=f"{theirs[key]}, which every reader takes it to be",
                hint=keep,
            )


# --- Describing ---------------------------------------------------------------------------------------------


def describe(source: str | Path, path: Path, allow_pickle: bool = False) -> dict[str, Any]:
    """JSON-able description of a single file, with the keys of `inspect.describe`. No tensor of safetensors is read."""
    name = path.name
    found = contents(entries(path, name, allow_pickle), metadata(path, name), name)
    prediction = known_prediction(found, name)
    specs = said(found, prediction or "epsilon", name)
    schedule = to_json(specs.schedule) | {"prediction_type": prediction}
    parts = {"unet": found.unet, "vae": found.vae, "text_encoder": found.text, "ema": found.ema}
    open_ = [] if prediction else ["it doesn't say what its UNet predicts: pass prediction_type"]
    return {
        "source": str(source),
        "folder": str(path.resolve()),
        "name": path.stem,
        "family": specs.unet.family,
        "languages": [],
        "size_px": specs.vae.sample_size,
        "defaults": {"sampler": specs.schedule.sampler, "grid": specs.schedule.timestep_spacing},
        "fast": None,
        "components": {
            "unet": {"class": "UNet", **to_json(specs.unet)},
            "vae": {"class": "VAE", **to_json(specs.vae)},
            "scheduler": {"class": "ScheduleSpec", **schedule},
            "text_encoder": {
                "class": "BertText" if found.layout == "bert" else "CLIPText",
                "layout": found.layout,
                **specs.text,
            },
        },
        "sizes": {
            part: {
                "parameters": sum(math.prod(e.shape) for e in each.values()),
                "bytes": sum(math.prod(e.shape) * FLOATS[e.kind].itemsize for e in each.values()),
            }
            for part, each in parts.items()
            if each
        },
        "licence": found.texts.get(SPEC + "license"),
        "hashes": {"file": file_sha256(path)},
        "notes": [*specs.notes, *open_, "it holds no tokenizer: pass one to load or convert it"],
    }
